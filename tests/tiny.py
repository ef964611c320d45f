"""Tiny random pipelines of every family, saved as diffusers saves them: one to three MB, seconds to run.

Every class is diffusers' or transformers' own; only sizes are small. Weights are random but the same each
time, and large enough that prompts and seeds make different pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn

CLIP_WORDS = Path(__file__).parent.parent / "models" / "pocket-model" / "tokenizer"
T5_WORDS = ("a", "fox", "owl", "blue", "red", "on", "background", "of", "in", "the", "forest", ",")
WIDTH = 16  # of embeddings of CLIP L; CLIP G has twice that, T5 the sum of both or half of it
SEED = 20
Makers: TypeAlias = Mapping[str, Callable[[dict[str, Any]], Any]]


def folder(family: str, at: Path, makers: Makers | None = None, **changes: Any) -> Path:
    """Write the pipeline of ``family`` into ``at`` and return it.

    Args:
        family: "sd1", "sd2", "sdxl", "sdxl-refiner", "sd3" or "flux", or one of other ``makers``.
        changes: ``seed`` (other weights); ``t5=False`` (sd3 without its third encoder);
            ``guidance_embeds=False`` (flux as schnell is); ``scheduler`` (a mapping laid over the
            scheduler's config); anything else is laid over the config of the UNet or the transformer.
    """
    scheduler = changes.pop("scheduler", {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(changes.pop("seed", SEED)))
        pipe = (makers or MAKERS)[family](changes)
    if scheduler:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **scheduler)
    pipe.save_pretrained(at)
    return at


def _sd1(changes: dict[str, Any]) -> Any:
    tokenizer = _clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=_vae(4, 0.18215),
        text_encoder=_clip(tokenizer, WIDTH),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=WIDTH, **changes),
        scheduler=diffusers.PNDMScheduler(**_BETAS, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd2(changes: dict[str, Any]) -> Any:
    """As stabilityai/stable-diffusion-2-1: OpenCLIP's activation and padding, v-prediction."""
    tokenizer = _clip_tokenizer(pad_token="!")
    options = {"use_linear_projection": True, "cross_attention_dim": 2 * WIDTH, **changes}
    return diffusers.StableDiffusionPipeline(
        vae=_vae(4, 0.18215),
        text_encoder=_clip(tokenizer, 2 * WIDTH, hidden_act="gelu"),
        tokenizer=tokenizer,
        unet=_unet(**options),
        scheduler=diffusers.DDIMScheduler(
            **_BETAS,
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(changes: dict[str, Any]) -> Any:
    tokenizer, second = _clip_tokenizer(), _clip_tokenizer(pad_token="!")
    times = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    options = {**times, "projection_class_embeddings_input_dim": 6 * 8 + 2 * WIDTH, **_LINEAR, **changes}
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(4, 0.13025),
        text_encoder=_clip(tokenizer, WIDTH),
        text_encoder_2=_clip(second, 2 * WIDTH, hidden_act="gelu", projected=True),
        tokenizer=tokenizer,
        tokenizer_2=second,
        unet=_unet(**{"cross_attention_dim": 3 * WIDTH, **options}),
        scheduler=diffusers.EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def _sdxl_refiner(changes: dict[str, Any]) -> Any:
    """It has the second encoder alone, and is told an aesthetic score instead of the size to make."""
    second = _clip_tokenizer(pad_token="!")
    times = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    options = {**times, "projection_class_embeddings_input_dim": 5 * 8 + 2 * WIDTH, **_LINEAR, **changes}
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=_vae(4, 0.13025),
        text_encoder=None,
        text_encoder_2=_clip(second, 2 * WIDTH, hidden_act="gelu", projected=True),
        tokenizer=None,
        tokenizer_2=second,
        unet=_unet(**{"cross_attention_dim": 2 * WIDTH, **options}),
        scheduler=diffusers.EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def _sd3(changes: dict[str, Any]) -> Any:
    with_t5 = bool(changes.pop("t5", True))
    tokenizer, second = _clip_tokenizer(), _clip_tokenizer(pad_token="!")
    t5_width = 4 * WIDTH  # wider than both CLIPs together, as the real one is
    options = {
        "sample_size": 16, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 2,
        "attention_head_dim": 16, "num_attention_heads": 4, "caption_projection_dim": 64,
        "joint_attention_dim": t5_width, "pooled_projection_dim": 3 * WIDTH, "pos_embed_max_size": 32,
        **changes,
    }  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=_random(diffusers.SD3Transformer2DModel(**options)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16, 1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(tokenizer, WIDTH, projected=True),
        tokenizer=tokenizer,
        text_encoder_2=_clip(second, 2 * WIDTH, hidden_act="gelu", projected=True),
        tokenizer_2=second,
        text_encoder_3=_t5(t5_width) if with_t5 else None,
        tokenizer_3=_t5_tokenizer(77) if with_t5 else None,
    )


def _flux(changes: dict[str, Any]) -> Any:
    tokenizer = _clip_tokenizer()
    options = {
        "in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH,
        "axes_dims_rope": (4, 4, 8), "guidance_embeds": True, **changes,
    }  # fmt: skip
    dev = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    return diffusers.FluxPipeline(
        transformer=_random(diffusers.FluxTransformer2DModel(**options)),
        scheduler=FlowMatchEulerDiscreteScheduler(**(dev if options["guidance_embeds"] else {"shift": 1.0})),
        vae=_vae(16, 0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(tokenizer, WIDTH),
        tokenizer=tokenizer,
        text_encoder_2=_t5(WIDTH),
        tokenizer_2=_t5_tokenizer(512),
    )


MAKERS: Makers = {
    "sd1": _sd1,
    "sd2": _sd2,
    "sdxl": _sdxl,
    "sdxl-refiner": _sdxl_refiner,
    "sd3": _sd3,
    "flux": _flux,
}
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_LINEAR = {"use_linear_projection": True}


def _unet(**changes: Any) -> UNet2DConditionModel:
    options = {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
        "block_out_channels": (16, 32), "norm_num_groups": 8, "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), **changes,
    }  # fmt: skip
    return _random(UNet2DConditionModel(**options))


def _vae(channels: int, scaling: float, **changes: Any) -> AutoencoderKL:
    return _random(
        AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            latent_channels=channels,
            sample_size=128,
            scaling_factor=scaling,
            **changes,
        )
    )


def _clip_tokenizer(**changes: Any) -> Any:
    return transformers.CLIPTokenizer.from_pretrained(CLIP_WORDS, model_max_length=77, **changes)


def _clip(tokenizer: Any, width: int, projected: bool = False, **changes: Any) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, projection_dim=width,
        num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **changes,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return _random(kind(config), words=0.5)


def _t5_tokenizer(length: int) -> Any:
    """SentencePiece's kind, with a few words and all of ASCII's letters and signs."""
    special = ["<pad>", "</s>", "<unk>"]
    letters = [chr(code) for code in range(33, 127)]
    pieces = dict.fromkeys([*special, "▁", *(f"▁{word}" for word in T5_WORDS), *letters])
    scores = [(piece, 0.0 if piece in special else -float(10 - len(piece))) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.T5TokenizerFast(
        tokenizer_object=tokenizer, vocab=scores, extra_ids=0, model_max_length=length,
        pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip


def _t5(width: int) -> Any:
    config = transformers.T5Config(
        vocab_size=128, d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return _random(transformers.T5EncoderModel(config), words=1.0)


@torch.no_grad()
def _random(module: Any, words: float | None = None) -> Any:
    """Every weight drawn anew, so that nothing is at the zero it starts training from.

    Products keep the size of what goes in; norms and biases stray a little from 1 and 0; embeddings of
    words have the standard deviation ``words``.
    """
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            if isinstance(part, nn.Embedding):
                weight.normal_(0, words or 0.02)
            elif weight.ndim >= 2:
                weight.normal_(0, 1 / math.sqrt(weight[0].numel()))
            else:
                weight.normal_(1.0 if name == "weight" else 0.0, 0.05)
    return module.eval()
