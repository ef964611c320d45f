"""The layers of a model under the names by which files of LoRA's relatives call them.

kohya's trainer joins the path of a layer by underscores and puts the part's name before it:
``lora_unet_down_blocks_0_attentions_0_proj_in``; for XL's UNet the path is CompVis' ("LDM"), not diffusers':
``lora_unet_input_blocks_4_1_proj_in``. Others write dots. Both are compared with underscores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": ("lora_unet_", "lycoris_", "unet_", "diffusion_model_"),
    "transformer": ("lora_unet_", "lora_transformer_", "lycoris_", "transformer_"),
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
_BLOCK = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)")


def named(parts: Mapping[str, nn.Module]) -> dict[str, tuple[str, nn.Module]]:
    """Every name of every layer -> (the part's name, the layer)."""
    found: dict[str, tuple[str, nn.Module]] = {}
    for part, whole in parts.items():
        for path, layer in whole.named_modules():
            if isinstance(getattr(layer, "weight", None), nn.Parameter):
                for name in _paths(part, whole, path):
                    for prefix in PREFIXES[part]:
                        found[prefix + name.replace(".", "_")] = part, layer
    return found


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
