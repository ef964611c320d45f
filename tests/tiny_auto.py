"""Tiny random pipelines of the families that run as diffusers has them.

As in :mod:`tests.tiny`: the real classes, small, with random weights; tokenizers of a few words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from tokenizers import pre_tokenizers

from tests import tiny
from tests.tiny import T5_WORDS, WIDTH

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
FLUX_VAE = {"shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}


def folder(family: str, at: Path, **changes: Any) -> Path:
    """Write the pipeline of ``family`` into ``at``; see :func:`tests.tiny.folder`."""
    return tiny.folder(family, at, MAKERS, **changes)


def _pixart(kind: Any, changes: dict[str, Any]) -> Any:
    micro = {"use_additional_conditions": False}
    options = {
        "sample_size": 8, "num_layers": 2, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 4,
        "caption_channels": WIDTH, "cross_attention_dim": 32, "in_channels": 4, "out_channels": 8, **micro,
        **changes,
    }  # fmt: skip
    return kind(
        tokenizer=tiny._t5_tokenizer(120),
        text_encoder=tiny._t5(WIDTH),
        vae=tiny._vae(4, 0.13025),
        transformer=tiny._random(diffusers.PixArtTransformer2DModel(**options)),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear"),
    )


def _sana(changes: dict[str, Any]) -> Any:
    options = {
        "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_attention_heads": 2,
        "attention_head_dim": 8, "num_cross_attention_heads": 2, "cross_attention_head_dim": 8,
        "cross_attention_dim": 16, "caption_channels": WIDTH, "sample_size": 2, **changes,
    }  # fmt: skip
    return diffusers.SanaPipeline(
        tokenizer=_gemma_tokenizer(),
        text_encoder=_gemma2(),
        vae=_dc(4),
        transformer=tiny._random(diffusers.SanaTransformer2DModel(**options)),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def _lumina2(changes: dict[str, Any]) -> Any:
    options = {
        "sample_size": 8, "patch_size": 2, "in_channels": 16, "hidden_size": 24, "num_layers": 1,
        "num_refiner_layers": 1, "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2,
        "axes_dim_rope": (4, 2, 2), "axes_lens": (320, 64, 64), "cap_feat_dim": WIDTH, **changes,
    }  # fmt: skip
    return diffusers.Lumina2Pipeline(
        transformer=tiny._random(diffusers.Lumina2Transformer2DModel(**options)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=tiny._vae(16, 0.3611, **FLUX_VAE),
        text_encoder=_gemma2(),
        tokenizer=_gemma_tokenizer(),
    )


def _lumina(changes: dict[str, Any]) -> Any:
    options = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 2,
        "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 16, "learn_sigma": True,
        "cross_attention_dim": WIDTH, **changes,
    }  # fmt: skip
    return diffusers.LuminaPipeline(
        transformer=tiny._random(diffusers.LuminaNextDiT2DModel(**options)),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=tiny._vae(4, 0.13025),
        text_encoder=_language_model(transformers.GemmaModel, transformers.GemmaConfig, head_dim=4),
        tokenizer=_gemma_tokenizer(),
    )


def _aura_flow(changes: dict[str, Any]) -> Any:
    options = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 1,
        "num_single_dit_layers": 1, "attention_head_dim": 8, "num_attention_heads": 4,
        "joint_attention_dim": WIDTH, "caption_projection_dim": 32, "pos_embed_max_size": 256, **changes,
    }  # fmt: skip
    umt5 = transformers.UMT5Config(
        vocab_size=128, d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return diffusers.AuraFlowPipeline(
        tokenizer=tiny._t5_tokenizer(256),
        text_encoder=tiny._random(transformers.UMT5EncoderModel(umt5), words=1.0),
        vae=tiny._vae(4, 0.13025),
        transformer=tiny._random(diffusers.AuraFlowTransformer2DModel(**options)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def _chroma(changes: dict[str, Any]) -> Any:
    options = {
        "in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 4, 8),
        "approximator_hidden_dim": 16, "approximator_layers": 1, "approximator_num_channels": 16, **changes,
    }  # fmt: skip
    return diffusers.ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_beta_sigmas=False),
        vae=tiny._vae(16, 0.3611, **FLUX_VAE),
        text_encoder=tiny._t5(WIDTH),
        tokenizer=tiny._t5_tokenizer(512),
        transformer=tiny._random(diffusers.ChromaTransformer2DModel(**options)),
    )


def _z_image(changes: dict[str, Any]) -> Any:
    options = {
        "in_channels": 16, "dim": 32, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
        "cap_feat_dim": WIDTH, "axes_dims": [8, 4, 4], "axes_lens": [256, 32, 32], **changes,
    }  # fmt: skip
    return diffusers.ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny._vae(16, 0.3611, **FLUX_VAE),
        text_encoder=_language_model(transformers.Qwen3Model, transformers.Qwen3Config, head_dim=4),
        tokenizer=_qwen_tokenizer(),
        transformer=tiny._random(diffusers.ZImageTransformer2DModel(**options)),
    )


def _qwen_image(changes: dict[str, Any]) -> Any:
    options = {
        "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (8, 4, 4), **changes,
    }  # fmt: skip
    rope = {"type": "default", "mrope_section": [1, 1, 0], "rope_type": "default", "rope_theta": 1e6}
    config = transformers.Qwen2_5_VLConfig(
        text_config=_language_config(rope_scaling=rope, rope_parameters=rope),
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
        },
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return diffusers.QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift_terminal=0.02
        ),
        vae=tiny._random(vae),
        text_encoder=tiny._random(transformers.Qwen2_5_VLForConditionalGeneration(config), words=1.0),
        tokenizer=_qwen_tokenizer(),
        transformer=tiny._random(diffusers.QwenImageTransformer2DModel(**options)),
    )


def _lcm(changes: dict[str, Any]) -> Any:
    """A net that is told the guidance scale (Luo et al. 2023, arXiv:2310.04378)."""
    base = tiny._sd1({"time_cond_proj_dim": 16, **changes})
    parts = {name: getattr(base, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    return diffusers.LatentConsistencyModelPipeline(
        **parts,
        scheduler=diffusers.LCMScheduler(**tiny._BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _ovis(changes: dict[str, Any]) -> Any:
    options = {
        "in_channels": 64, "out_channels": 64, "num_layers": 1, "num_single_layers": 1,
        "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": WIDTH,
        "axes_dims_rope": (4, 4, 8), **changes,
    }  # fmt: skip
    return diffusers.OvisImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=tiny._vae(16, 0.3611, **FLUX_VAE),
        text_encoder=_language_model(transformers.Qwen3Model, transformers.Qwen3Config, head_dim=4),
        tokenizer=_qwen_tokenizer(),
        transformer=tiny._random(diffusers.OvisImageTransformer2DModel(**options)),
    )


def _flux2_klein(changes: dict[str, Any]) -> Any:
    """The base model, or with ``is_distilled=True`` the one for four steps. It reads layers 9, 18 and 27."""
    distilled = bool(changes.pop("is_distilled", False))
    options = {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 3 * WIDTH, "axes_dims_rope": (4, 4, 4, 4),
        "timestep_guidance_channels": 16, "guidance_embeds": False, **changes,
    }  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4,
        sample_size=128,
    )  # fmt: skip
    qwen = transformers.Qwen3Config(**_language_config(head_dim=4, num_hidden_layers=28))
    return diffusers.Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=tiny._random(vae),
        text_encoder=tiny._random(transformers.Qwen3ForCausalLM(qwen), words=1.0),
        tokenizer=_qwen_tokenizer(),
        transformer=tiny._random(diffusers.Flux2Transformer2DModel(**options)),
        is_distilled=distilled,
    )


def _cogview3(changes: dict[str, Any]) -> Any:
    options = {
        "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1, "attention_head_dim": 8,
        "num_attention_heads": 4, "text_embed_dim": WIDTH, "time_embed_dim": 8, "condition_dim": 4,
        "pos_embed_max_size": 16, "sample_size": 8, **changes,
    }  # fmt: skip
    return diffusers.CogView3PlusPipeline(
        tokenizer=tiny._t5_tokenizer(224),
        text_encoder=tiny._t5(WIDTH),
        vae=tiny._vae(16, 1.0),
        transformer=tiny._random(diffusers.CogView3PlusTransformer2DModel(**options)),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            beta_end=0.012, beta_start=0.00085, beta_schedule="scaled_linear", prediction_type="v_prediction",
            clip_sample=False, rescale_betas_zero_snr=True, set_alpha_to_one=True, snr_shift_scale=4.0,
            timestep_spacing="trailing",
        ),
    )  # fmt: skip


def _cogview4(changes: dict[str, Any]) -> Any:
    options = {
        "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1, "attention_head_dim": 8,
        "num_attention_heads": 4, "text_embed_dim": WIDTH, "time_embed_dim": 8, "condition_dim": 4,
        "rope_axes_dim": (8, 8), "pos_embed_max_size": 16, "sample_size": 8, **changes,
    }  # fmt: skip
    return diffusers.CogView4Pipeline(
        tokenizer=_qwen_tokenizer(),
        text_encoder=_language_model(transformers.GlmModel, transformers.GlmConfig, head_dim=4),
        vae=tiny._vae(16, 1.0, use_quant_conv=False, use_post_quant_conv=False),
        transformer=tiny._random(diffusers.CogView4Transformer2DModel(**options)),
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
    )  # fmt: skip


def _hunyuan(changes: dict[str, Any]) -> Any:
    options = {
        "sample_size": 16, "num_layers": 2, "patch_size": 2, "attention_head_dim": 8,
        "num_attention_heads": 3, "in_channels": 4, "cross_attention_dim": WIDTH,
        "cross_attention_dim_t5": WIDTH, "pooled_projection_dim": 16, "hidden_size": 24,
        "activation_fn": "gelu-approximate", **changes,
    }  # fmt: skip
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *T5_WORDS]
    tokenizer = transformers.BertTokenizer(
        vocab={word: k for k, word in enumerate(words)}, model_max_length=77
    )
    bert = transformers.BertConfig(
        vocab_size=len(words), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=2 * WIDTH, max_position_embeddings=77,
    )  # fmt: skip
    return diffusers.HunyuanDiTPipeline(
        transformer=tiny._random(diffusers.HunyuanDiT2DModel(**options)),
        vae=tiny._vae(4, 0.13025),
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.03,
            prediction_type="v_prediction",
            clip_sample=False,
        ),
        text_encoder=tiny._random(transformers.BertModel(bert), words=1.0),
        tokenizer=tokenizer,
        text_encoder_2=tiny._t5(WIDTH),
        tokenizer_2=tiny._t5_tokenizer(256),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


MAKERS: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "pixart-alpha": partial(_pixart, diffusers.PixArtAlphaPipeline),
    "pixart-sigma": partial(_pixart, diffusers.PixArtSigmaPipeline),
    "sana": _sana,
    "lumina": _lumina,
    "lumina2": _lumina2,
    "aura-flow": _aura_flow,
    "chroma": _chroma,
    "z-image": _z_image,
    "qwen-image": _qwen_image,
    "ovis-image": _ovis,
    "flux2-klein": _flux2_klein,
    "cogview3": _cogview3,
    "cogview4": _cogview4,
    "hunyuan-dit": _hunyuan,
    "lcm": _lcm,
}


def _vocabulary(*special: str) -> dict[str, int]:
    """Byte-level BPE's, with no merges: a letter a token."""
    return {piece: k for k, piece in enumerate([*special, *LETTERS])}


def _qwen_tokenizer() -> Any:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=_vocabulary(*special),
        merges=[],
        pad_token=special[0],
        eos_token=special[2],
        unk_token=special[0],
    )
    tokenizer.chat_template = TURNS
    return tokenizer


def _gemma_tokenizer() -> Any:
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = dict.fromkeys([*special, "▁", *(f"▁{word}" for word in T5_WORDS), *letters])
    return transformers.GemmaTokenizer(vocab={piece: k for k, piece in enumerate(vocabulary)}, merges=[])


def _language_config(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": 300, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, **changes,
    }  # fmt: skip


def _language_model(kind: Any, config: Any, **changes: Any) -> Any:
    return tiny._random(kind(config(**_language_config(**changes))), words=1.0)


def _gemma2() -> Any:
    return _language_model(transformers.Gemma2Model, transformers.Gemma2Config, head_dim=4)


def _dc(channels: int) -> Any:
    """Deep-compression autoencoder: 32 pixels to a latent pixel, as the real one has them."""
    return tiny._random(
        diffusers.AutoencoderDC(
            latent_channels=channels, attention_head_dim=2,
            encoder_block_types="ResBlock", decoder_block_types="ResBlock",
            encoder_block_out_channels=(4,) * 5 + (8,), decoder_block_out_channels=(4,) * 5 + (8,),
            encoder_layers_per_block=(1,) * 6, decoder_layers_per_block=(1,) * 6,
            encoder_qkv_multiscales=((),) * 6, decoder_qkv_multiscales=((),) * 6,
            scaling_factor=0.41407,
        )
    )  # fmt: skip
