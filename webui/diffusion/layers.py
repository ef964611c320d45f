"""The layers of a model under the names by which files of LoRA's relatives call them.

kohya's trainer joins the path of a layer by underscores and puts the part's name before it:
``lora_unet_down_blocks_0_attentions_0_proj_in``; for XL's UNet the path is CompVis' ("LDM"), not diffusers':
``lora_unet_input_blocks_4_1_proj_in``, for Flux and Stable Diffusion 3 that of their makers, who have some
layers in one that diffusers has in parts. Others write dots. All are compared with underscores.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

Layers = tuple[nn.Module, ...]  # one of a file: what diffusers has of it, in the order of its rows

PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": ("lora_unet_", "lycoris_", "unet_", "diffusion_model_"),
    "transformer": ("lora_unet_", "lora_transformer_", "lycoris_", "transformer_", "diffusion_model_"),
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder_"),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_"),
    "text_encoder_3": ("lora_te3_", "text_encoder_3_"),
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_QKV = "attn.to_q", "attn.to_k", "attn.to_v"
_ADDED = "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"
_DOUBLE = {
    "img_attn.qkv": _QKV,
    "txt_attn.qkv": _ADDED,
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_JOINT = {  # but for the modulations, of which diffusers has some rows in another order
    "x_block.attn.qkv": _QKV,
    "context_block.attn.qkv": _ADDED,
    "x_block.attn.proj": ("attn.to_out.0",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
#: diffusers' list of blocks, its makers' name of it, and within a block: their layer -> diffusers' paths.
Tables = tuple[tuple[str, str, Mapping[str, tuple[str, ...]]], ...]
FLUX: Tables = (
    ("transformer_blocks", "double_blocks", _DOUBLE),
    ("single_transformer_blocks", "single_blocks", _SINGLE),
)
SD3: Tables = (("transformer_blocks", "joint_blocks", _JOINT),)
_BLOCK = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)")


def named(parts: Mapping[str, nn.Module]) -> dict[str, tuple[str, Layers]]:
    """Every name of every layer -> (the part's name, the layer)."""
    found: dict[str, tuple[str, Layers]] = {}
    for part, whole in parts.items():
        known = {
            path: layer
            for path, layer in whole.named_modules()
            if isinstance(getattr(layer, "weight", None), nn.Parameter)
        }
        alone = ((name, (path,)) for path in known for name in _paths(part, whole, path))
        for name, paths in itertools.chain(alone, _of_makers(part, whole)):
            if known.keys() >= set(paths):
                layers = tuple(known[path] for path in paths)
                found |= {prefix + name.replace(".", "_"): (part, layers) for prefix in PREFIXES[part]}
    return found


def _of_makers(part: str, whole: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(name, paths) of the layers of Flux' or SD3's transformer, as those who made it name them."""
    tables = FLUX if hasattr(whole, "single_transformer_blocks") else SD3
    for blocks, theirs, table in tables if part == "transformer" else ():
        for n in range(len(getattr(whole, blocks))):
            for name, paths in table.items():
                yield f"{theirs}.{n}.{name}", tuple(f"{blocks}.{n}.{path}" for path in paths)


def _paths(part: str, whole: Any, path: str) -> Iterator[str]:
    """What the layer at this path may be called, without the part's name."""
    yield path
    if part == "unet":
        yield _ldm(path, whole.config)
    if part.startswith("text_encoder"):  # transformers once had everything of a CLIP in its text_model
        yield path.removeprefix("text_model.")
        yield f"text_model.{path.removeprefix('text_model.')}"


def _ldm(path: str, config: Any) -> str:
    """CompVis' name of a UNet's layer: its blocks are counted through, whatever level they are on."""
    if path in OUTSIDE or not (match := _BLOCK.fullmatch(path)):
        return OUTSIDE.get(path, path)
    way, level, kind, number, rest = match.groups()
    rest = RESNET.get(rest, rest)
    if not way:
        return f"middle_block.{2 * int(number) if kind == 'resnets' else 1}.{rest}"
    each = config.layers_per_block + 1
    if kind == "downsamplers":
        return f"input_blocks.{(int(level) + 1) * each}.0.op"
    if kind == "upsamplers":
        after = 2 if "Attn" in config.up_block_types[int(level)] else 1
        return f"output_blocks.{int(level) * each + each - 1}.{after}.{rest}"
    block = int(level) * each + int(number) + (way == "down")
    return f"{'in' if way == 'down' else 'out'}put_blocks.{block}.{int(kind == 'attentions')}.{rest}"
