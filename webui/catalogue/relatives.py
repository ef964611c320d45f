"""What goes with a checkpoint, told by names and shapes: LoRAs, embeddings, ControlNets, VAEs, and so on.

Each ``Guess`` says what a file with this header and name is, or None if it is something else. A layout names
who writes tensors so; a family is told by the width of the text that the parts attend to: 768 in
Stable Diffusion 1.x, 1024 in 2.x, 2048 in XL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from webui.catalogue.found import PICTURE_ENCODER, Family, Identity
from webui.catalogue.headers import Header

Guess = Callable[[Header, str], Identity | None]

WIDTHS: Mapping[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
#: In the order of trying: what metadata calls an architecture, as modelspec and kohya's trainer write it.
ARCHITECTURES: tuple[tuple[str, Family], ...] = (
    (r"refiner", "sdxl-refiner"),
    (r"sdxl|stable-diffusion-xl|xl_base", "sdxl"),
    (r"flux[-_.]?1|^flux", "flux"),
    (r"sd3|sd_3|stable-diffusion-(v?3)|sd3\.5", "sd3"),
    (r"sd_v2|stable-diffusion-v2|sd_2", "sd2"),
    (r"sd_v1|stable-diffusion-v1|sd_1", "sd1"),
)
LAYOUTS = (  # of LoRAs and their relatives; the first that fits
    (".hada_", "LoHa"),
    (".lokr_", "LoKr"),
    (".oft_", "OFT"),
    (".a1.weight", "GLoRA"),
    (".on_input", "IA3"),
    (".dora_scale", "DoRA"),
    (".lora_mid.", "LoCon"),
    (".w_norm", "LoCon"),
    (".lora_down.weight", "kohya"),
    (".lora_A.", "peft"),
    (".lora.down.weight", "diffusers"),
    ("_lora.down.weight", "diffusers"),
    (".lora_linear_layer.down.weight", "diffusers"),
)
FULL = re.compile(r"^(lora|lycoris)_\w+\.diff(_b)?$")  # LyCORIS' whole differences
#: Layouts of LyCORIS' kinds, which are laid into a model's weights; diffusers reads the others.
LAID = frozenset({"LoHa", "LoKr", "OFT", "BOFT", "GLoRA", "IA3", "DoRA", "LoCon", "full"})
UNKNOWN_LORAS = (  # what only peft writes
    (".oft_R", "an OFT as peft saves it"),
    (".boft_", "a BOFT as peft saves it"),
    (".ia3_l", "an (IA)³ as peft saves it"),
    ("vera_lambda", "a VeRA"),
)
FOREIGN = (  # in LoRAs of other families: Wan, Qwen-Image, Lumina and the like
    "blocks.0.self_attn", "blocks_0_self_attn", "blocks.0.cross_attn", "blocks_0_cross_attn", "img_mod",
    "lora_unet_layers_", "lora_unet_blocks_",
)  # fmt: skip


# ControlNets and the like

CONTROLNETS: Mapping[str, Family] = {"SD3ControlNetModel": "sd3", "FluxControlNetModel": "flux"}  # by class


def controlnet(header: Header, _: str) -> Identity | None:
    names = header.tensors
    if "lora_controlnet" in names:
        return Identity("controlnet", layout="control-lora", problem=_unsupported("a Control-LoRA"))
    if any(name.startswith("lllite_") for name in names):
        return Identity("controlnet", "sdxl", "lllite", _unsupported("a ControlNet-LLLite"))
    if {"pos_embed_input.weight", "controlnet_blocks.0.weight"} <= set(names):
        return Identity("controlnet", "flux", "xlabs", _unsupported("a ControlNet in XLabs' own layout"))
    if "controlnet_x_embedder.weight" in names:
        return Identity("controlnet", "flux", "diffusers")
    if "pos_embed_input.proj.weight" in names:
        return Identity("controlnet", "sd3", "diffusers")
    if "task_embedding" in names and "control_add_embedding.linear_1.weight" in names:
        return Identity("controlnet", "sdxl", "diffusers", UNION)
    if _t2i_adapter(header):
        return Identity("controlnet", _adapter_family(header), "t2i-adapter", _unsupported("a T2I-Adapter"))
    ldm = next((start for start in ("control_model.", "") if f"{start}zero_convs.0.0.weight" in names), None)
    if ldm is not None:
        return Identity("controlnet", _control_family(header, f"{ldm}label_emb."), "ldm")
    if "controlnet_down_blocks.0.weight" in names:
        return Identity("controlnet", _control_family(header, "add_embedding."), "diffusers")
    return None


def _control_family(header: Header, large: str) -> Family:
    """By its cross-attention; the smallest of XL has none, but is told sizes like the others."""
    if any(name.startswith(large) for name in header.tensors):
        return "sdxl"
    return WIDTHS.get(_attended(header), "")


def _attended(header: Header) -> int:
    widths = (
        tensor.shape[-1] for name, tensor in header.tensors.items() if name.endswith("attn2.to_k.weight")
    )
    return next(widths, 0)


def _t2i_adapter(header: Header) -> bool:
    starts = (
        "body.0.block1.weight",
        "adapter.body.0.resnets.0.block1.weight",
        "body.0.resnets.0.block1.weight",
    )
    return any(name in header.tensors for name in starts)


def _adapter_family(header: Header) -> Family:
    """By how finely it takes the picture: 8x8 pixels to a cell, 16x16 for XL."""
    shapes = (header.shape(f"{start}conv_in.weight") for start in ("", "adapter."))
    channels = next((shape[1] for shape in shapes if shape), 0)
    return "sdxl" if channels in (256, 768) else "sd1" if channels in (64, 192) else ""


def ip_adapter(header: Header, _: str) -> Identity | None:
    if not any(name.startswith("ip_adapter.") for name in header.tensors):
        return None
    keys = (t.shape[-1] for n, t in header.tensors.items() if n.endswith("to_k_ip.weight"))
    return Identity("ip-adapter", WIDTHS.get(next(keys, 0), ""), "ip-adapter")


# LoRAs


def lora(header: Header, _: str) -> Identity | None:
    names, text = header.tensors, "\n".join(header.tensors)
    if what := next((title for mark, title in UNKNOWN_LORAS if mark in text), ""):
        return Identity("lora", _lora_family(header), "peft", _unsupported(what))
    layout = next((title for mark, title in LAYOUTS if mark in text), "")
    if layout in ("", "kohya") and any(FULL.match(name) for name in names):
        layout = "full"
    if layout == "OFT" and any(len(shape) == 4 for _, shape in names.values()):
        layout = "BOFT"
    problem = ""
    if layout in LAID and any(name.startswith("base_model.model.") for name in names):
        problem = _unsupported(f"a {layout} as peft saves it, with its strength in another file")
    return Identity("lora", _lora_family(header), layout, problem) if layout else None


def _lora_family(header: Header) -> Family:
    """By what is in the names, then by sizes, then by what the trainer said."""
    text = "\n".join(header.tensors)
    if any(mark in text for mark in ("single_transformer_blocks", "double_blocks", "single_blocks")):
        return "flux"
    if "joint_blocks" in text:
        return "sd3"
    if any(mark in text for mark in FOREIGN):
        return "other"
    inputs = dict(_lora_inputs(header))
    if re.search(r"(^|\n)(transformer|lora_transformer|lycoris_transformer)[._]", text):
        widths = {width for name, width in inputs.items() if "attn" in name and "to_q" in name}
        return "flux" if 3072 in widths else "sd3" if widths & {1536, 2432} else architecture(header)
    if re.search(r"(^|\n)(lora_te[12]_|text_encoder_2\.)", text):
        return "sdxl"
    attended = {
        width for name, width in inputs.items() if "attn2" in name and ("to_k" in name or "to_v" in name)
    }
    read = {width for name, width in inputs.items() if "te" in name and "q_proj" in name}
    return _first(attended) or _first(read) or architecture(header)


def _first(widths: Iterable[int]) -> Family:
    return next((WIDTHS[width] for width in sorted(widths) if width in WIDTHS), "")


def _lora_inputs(header: Header) -> Iterator[tuple[str, int]]:
    """(what is changed, the width of what goes into it). LoHa and LoKr are products of their parts."""
    for name, (_, shape) in header.tensors.items():
        whole = name.endswith(".diff") and len(shape) > 1
        if whole or re.search(
            r"lora_down\.weight$|lora_A\.(\w+\.)?weight$|lora\.down\.weight$|hada_w1_b$", name
        ):
            yield name, shape[1]
        elif name.endswith((".lokr_w1", ".lokr_w1_b")):
            stem = name.rpartition(".")[0]
            second = header.shape(f"{stem}.lokr_w2") or header.shape(f"{stem}.lokr_w2_b")
            if second:
                yield name, shape[1] * second[1]


def architecture(header: Header) -> Family:
    """What the metadata says it belongs to; "" if it says nothing, "other" never."""
    metadata = header.metadata
    said = (metadata.get(key, "") for key in ("modelspec.architecture", "ss_base_model_version"))
    for text in filter(None, said):
        for pattern, family in ARCHITECTURES:
            if re.search(pattern, text.lower()):
                return family
    return ""


# Embeddings of words


def embedding(header: Header, _: str) -> Identity | None:
    names = header.tensors
    if not names or any(len(tensor.shape) > 2 or not tensor.shape for tensor in names.values()):
        return None
    if {"clip_l", "clip_g"} <= set(names):
        return Identity("embedding", "sd3" if "t5xxl" in names else "sdxl", "clip_l, clip_g")
    if len(names) > 1 or not (shape := next(iter(names.values())).shape)[-1]:
        return None
    name = next(iter(names))
    if name in ("emb_params", "clip_l", "clip_g") or (name.startswith("<") and name.endswith(">")):
        return Identity("embedding", WIDTHS.get(shape[-1], ""), name)
    plain = "." not in name and shape[-1] in WIDTHS and (len(shape) == 1 or shape[0] <= 75)
    return Identity("embedding", WIDTHS[shape[-1]], "diffusers") if plain else None


# VAEs and previews


def vae(header: Header, name: str) -> Identity | None:
    """With 4 channels of latents those of 1.x, 2.x and XL have the same tensors; with 16, SD3's and Flux'."""
    for start in ("", "first_stage_model.", "vae."):
        if not {f"{start}encoder.conv_in.weight", f"{start}decoder.conv_in.weight"} <= set(header.tensors):
            continue
        shape = header.shape(f"{start}decoder.conv_in.weight")
        if len(shape) != 4:
            return Identity("vae", "other", problem="It is a VAE of videos, which is not supported here.")
        ldm = f"{start}decoder.mid.block_1.conv1.weight" in header.tensors
        if ldm or f"{start}decoder.mid_block.resnets.0.conv1.weight" in header.tensors:
            family = _vae_family(header, name, shape[1])
            return Identity("vae", family, "ldm" if ldm else "diffusers", width=shape[1])
    return None


def _vae_family(header: Header, name: str, channels: int) -> Family:
    if said := architecture(header):
        return said
    name = name.lower()
    if channels == 16:
        return "flux" if re.match(r"ae\b|.*flux", name) else "sd3" if "sd3" in name else ""
    return "sdxl" if re.search(r"xl", name) else ""


def preview(header: Header, name: str) -> Identity | None:
    """A tiny autoencoder (TAESD): its own two files, or diffusers' one."""
    own = {"1.weight", "3.conv.0.weight"} <= set(header.tensors) or {
        "0.weight", "1.conv.0.weight"
    } <= set(header.tensors)  # fmt: skip
    ours = "decoder.layers.0.weight" in header.tensors and "encoder.layers.0.weight" in header.tensors
    if not own and not ours:
        return None
    family = preview_family(name)
    if own and "encoder" in name.lower():
        return Identity(
            "other", family, "taesd", "It is the encoder of TAESD; only its decoder is used here."
        )
    return Identity("preview", family, "taesd" if own else "diffusers")


def preview_family(name: str) -> Family:
    """As its published name says it: taesd, taesdxl, taesd3, taef1."""
    kinds: tuple[tuple[str, Family], ...] = (("xl", "sdxl"), ("3", "sd3"), ("f1", "flux"), ("flux", "flux"))
    return next((family for mark, family in kinds if mark in name.lower()), "sd1")


# Text encoders, upscalers, and what only looks like a model


def text_encoder(header: Header, _: str) -> Identity | None:
    names = header.tensors
    if any(name.startswith(("vision_model.", "visual.")) for name in names):
        return Identity("other", layout=PICTURE_ENCODER, problem=OF_PICTURES)
    for start in ("text_model.", ""):
        if shape := header.shape(f"{start}embeddings.token_embedding.weight"):
            return Identity("text encoder", layout="CLIP", note=READS, width=shape[-1])
    if shape := header.shape("encoder.block.0.layer.0.SelfAttention.q.weight"):
        return Identity("text encoder", layout="T5", note=READS, width=shape[-1])
    if any("transformer.resblocks.0." in name for name in names):
        return Identity("text encoder", layout="OpenCLIP", problem=OPEN_CLIP)
    return None


def upscaler(header: Header, _: str) -> Identity | None:
    """ESRGAN and its kin, by the names of their first layers."""
    marks = (
        "model.0.weight", "conv_first.weight", "body.0.rdb1.conv1.weight", "body.0.weight",
        "layers.0.residual_group.blocks.0.norm1.weight",
    )  # fmt: skip
    starts = ("", "params_ema.", "params.")
    is_one = any(start + mark in header.tensors for mark in marks for start in starts)
    return Identity("upscaler", layout="esrgan") if is_one else None


def motion(header: Header, _: str) -> Identity | None:
    if any(".motion_modules." in name for name in header.tensors):
        return Identity("other", problem="It is a motion module for videos, which is not supported here.")
    return None


def _unsupported(what: str) -> str:
    return f"It is {what}, which is not supported here."


UNION = _unsupported("a union ControlNet of Stable Diffusion XL")
READS = "It reads prompts for nets that lie alone."
OPEN_CLIP = "It is a text encoder under OpenCLIP's names; only those under transformers' can be used."
OF_PICTURES = "It is an encoder of pictures (CLIP vision), a part of an IP-Adapter, not a model by itself."

#: Tried before the nets, whose names some of these hold too, and after them.
KINDS: tuple[Guess, ...] = (motion, controlnet, ip_adapter, lora, embedding)
LATER_KINDS: tuple[Guess, ...] = (vae, preview, text_encoder, upscaler)


# Words that a LoRA or an embedding listens to


def trigger_words(metadata: Mapping[str, str], card: str = "", most: int = 12) -> tuple[str, ...]:
    """From A1111's .json beside a file (``card``), else from the trainer's metadata; the best first."""
    said = _json(card).get("activation text")
    if not isinstance(said, str) or not said.strip():
        said = metadata.get("modelspec.trigger_phrase", "")
    if words := [word.strip() for word in said.split(",") if word.strip()]:
        return tuple(dict.fromkeys(words))[:most]
    return _frequent_tags(metadata.get("ss_tag_frequency", ""))[:most]


def _frequent_tags(text: str) -> tuple[str, ...]:
    """The tags that at least half as many pictures have as the most frequent one."""
    counts: dict[str, int] = {}
    for tags in _json(text).values():
        for tag, count in (tags if isinstance(tags, dict) else {}).items():
            if isinstance(count, int):
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    enough = max(counts.values(), default=0) / 2
    frequent = sorted((tag for tag in counts if tag and counts[tag] >= enough), key=lambda tag: -counts[tag])
    return tuple(frequent)


def _json(text: str) -> Mapping[str, object]:
    try:
        content = json.loads(text) if text else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
