"""Write a folder in diffusers' layout as one .safetensors file, as A1111, ComfyUI and trainers know it.

The names are those of the published checkpoints: CompVis' and Stability's for the UNets and VAEs (1.x, 2.x,
XL), Stability's for SD3, Black Forest Labs' for Flux, OpenAI's and OpenCLIP's for the text encoders. This is
the inverse of what diffusers does on loading, and is tested against it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

Layout = Literal["ldm", "net", "prefixed net", "diffusers net"]
State = dict[str, torch.Tensor]
PREFIX = "model.diffusion_model."
OPEN_CLIP = [  # of one tensor; what is left of transformers' names, what is right OpenCLIP's
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]
RESNET = [
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("time_emb_proj.", "emb_layers.1."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("conv_shortcut.", "skip_connection."),
]
UNET = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
SD3 = {
    "context_embedder.": "context_embedder.",
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj.": "x_embedder.proj.",
    "time_text_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
    "time_text_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
    "time_text_embed.text_embedder.linear_1.": "y_embedder.mlp.0.",
    "time_text_embed.text_embedder.linear_2.": "y_embedder.mlp.2.",
    "proj_out.": "final_layer.linear.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
}
SD3_BLOCK = {
    "attn.norm_q.": "x_block.attn.ln_q.",
    "attn.norm_k.": "x_block.attn.ln_k.",
    "attn.norm_added_q.": "context_block.attn.ln_q.",
    "attn.norm_added_k.": "context_block.attn.ln_k.",
    "attn.to_out.0.": "x_block.attn.proj.",
    "attn.to_add_out.": "context_block.attn.proj.",
    "attn2.norm_q.": "x_block.attn2.ln_q.",
    "attn2.norm_k.": "x_block.attn2.ln_k.",
    "attn2.to_out.0.": "x_block.attn2.proj.",
    "norm1.linear.": "x_block.adaLN_modulation.1.",
    "norm1_context.linear.": "context_block.adaLN_modulation.1.",
    "ff.net.0.proj.": "x_block.mlp.fc1.",
    "ff.net.2.": "x_block.mlp.fc2.",
    "ff_context.net.0.proj.": "context_block.mlp.fc1.",
    "ff_context.net.2.": "context_block.mlp.fc2.",
}
FLUX = {
    "time_text_embed.timestep_embedder.linear_1.": "time_in.in_layer.",
    "time_text_embed.timestep_embedder.linear_2.": "time_in.out_layer.",
    "time_text_embed.text_embedder.linear_1.": "vector_in.in_layer.",
    "time_text_embed.text_embedder.linear_2.": "vector_in.out_layer.",
    "time_text_embed.guidance_embedder.linear_1.": "guidance_in.in_layer.",
    "time_text_embed.guidance_embedder.linear_2.": "guidance_in.out_layer.",
    "context_embedder.": "txt_in.",
    "x_embedder.": "img_in.",
    "proj_out.": "final_layer.linear.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
}
FLUX_DOUBLE = {
    "norm1.linear.": "img_mod.lin.",
    "norm1_context.linear.": "txt_mod.lin.",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0.": "img_attn.proj.",
    "attn.to_add_out.": "txt_attn.proj.",
    "ff.net.0.proj.": "img_mlp.0.",
    "ff.net.2.": "img_mlp.2.",
    "ff_context.net.0.proj.": "txt_mlp.0.",
    "ff_context.net.2.": "txt_mlp.2.",
}
FLUX_SINGLE = {
    "norm.linear.": "modulation.lin.",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out.": "linear2.",
}
QKV = {  # of one block: the parts that the original keeps in one tensor
    "sd3": {
        "x_block.attn.qkv.": ("attn.to_q.", "attn.to_k.", "attn.to_v."),
        "context_block.attn.qkv.": ("attn.add_q_proj.", "attn.add_k_proj.", "attn.add_v_proj."),
        "x_block.attn2.qkv.": ("attn2.to_q.", "attn2.to_k.", "attn2.to_v."),
    },
    "double": {
        "img_attn.qkv.": ("attn.to_q.", "attn.to_k.", "attn.to_v."),
        "txt_attn.qkv.": ("attn.add_q_proj.", "attn.add_k_proj.", "attn.add_v_proj."),
    },
    "single": {"linear1.": ("attn.to_q.", "attn.to_k.", "attn.to_v.", "proj_mlp.")},
}


def write(
    folder: Path,
    at: Path,
    layout: Layout = "ldm",
    config: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the pipeline in ``folder`` to the file ``at`` and return it.

    Args:
        layout: "ldm" is all in one, with the VAE and the text encoders; "net" the denoising net alone,
            "prefixed net" that under ComfyUI's prefix, "diffusers net" it under diffusers' own names.
        config: also write what a model of an unusual size needs, the folder's configuration without its
            weights, beside it as ``NAME.config/``.
        metadata: of the header.
    """
    state = net(folder, layout != "diffusers net")
    if layout in ("ldm", "prefixed net"):
        state = {PREFIX + name: weight for name, weight in state.items()}
    if layout == "ldm":
        state |= _vae(folder) | _encoders(folder)
    at.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in state.items()}, at, dict(metadata or {}))
    if config:
        weights = shutil.ignore_patterns("*.safetensors*", "*.bin")
        shutil.copytree(folder, at.with_suffix(".config"), ignore=weights, dirs_exist_ok=True)
    return at


def net(folder: Path, original: bool = True) -> State:
    """The weights of its UNet or transformer, under their ``original`` names or diffusers'."""
    part = "unet" if (folder / "unet").exists() else "transformer"
    state = _weights(folder / part)
    if not original:
        return state
    if part == "unet":
        settings = _settings(folder / part)
        return {unet_name(name, settings): weight for name, weight in state.items()}
    return sd3(state) if "pos_embed.pos_embed" in state else flux(state)


def _weights(folder: Path) -> State:
    return {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}


def _settings(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise KeyError(name)


# UNet and VAE


def unet_name(name: str, settings: Mapping[str, Any]) -> str:
    """CompVis' name of a UNet's tensor: its blocks are counted through, whatever level they are on."""
    each = settings["layers_per_block"] + 1
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        way, level, kind, layer, rest = found.groups()
        index = int(level) * each + int(layer) + (way == "down")
        place = f"{'input' if way == 'down' else 'output'}_blocks.{index}"
        return f"{place}.0.{_resnet(rest)}" if kind == "resnets" else f"{place}.1.{rest}"
    if found := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)", name):
        return f"input_blocks.{(int(found[1]) + 1) * each}.0.op.{found[2]}"
    if found := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.(.+)", name):
        after = 2 if "Attn" in settings["up_block_types"][int(found[1])] else 1
        return f"output_blocks.{int(found[1]) * each + each - 1}.{after}.{found[2]}"
    if found := re.match(r"mid_block\.resnets\.(\d)\.(.+)", name):
        return f"middle_block.{2 * int(found[1])}.{_resnet(found[2])}"
    if found := re.match(r"mid_block\.attentions\.0\.(.+)", name):
        return f"middle_block.1.{found[1]}"
    return _renamed(name, UNET)


def controlnet(folder: Path, prefix: str = "") -> State:
    """The weights of a UNet's ControlNet under the names of its authors."""
    settings = _settings(folder)
    return {prefix + _controlnet_name(name, settings): weight for name, weight in _weights(folder).items()}


def _controlnet_name(name: str, settings: Mapping[str, Any]) -> str:
    for old, new in (
        (r"controlnet_down_blocks\.(\d+)\.", r"zero_convs.\1.0."),
        (r"controlnet_mid_block\.", "middle_block_out.0."),
        (r"controlnet_cond_embedding\.conv_in\.", "input_hint_block.0."),
        (r"controlnet_cond_embedding\.conv_out\.", "input_hint_block.14."),
    ):
        if re.match(old, name):
            return re.sub(old, new, name)
    if found := re.match(r"controlnet_cond_embedding\.blocks\.(\d)\.(.+)", name):
        return f"input_hint_block.{2 * int(found[1]) + 2}.{found[2]}"
    return unet_name(name, settings)


def _resnet(name: str) -> str:
    return _renamed(name, dict(RESNET))


def _vae(folder: Path) -> State:
    levels = len(_settings(folder / "vae")["block_out_channels"])
    prefix = "vae." if "Flux" in _settings_of_pipeline(folder) else "first_stage_model."
    return {prefix + name: weight for name, weight in vae(_weights(folder / "vae"), levels).items()}


def vae(state: State, levels: int) -> State:
    """An AutoencoderKL's weights under CompVis' names; its attention's are those of 1x1 convolutions."""
    named = {}
    for name, weight in state.items():
        in_attention = ".attentions.0." in name and weight.ndim == 2
        named[_vae_name(name, levels)] = weight[:, :, None, None] if in_attention else weight
    return named


def _vae_name(name: str, levels: int) -> str:
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
    name = re.sub(r"\.mid_block\.resnets\.(\d)", lambda found: f".mid.block_{int(found[1]) + 1}", name)
    for old, new in (
        ("down_blocks.", "down."),
        (".resnets.", ".block."),
        ("downsamplers.0.", "downsample."),
        ("upsamplers.0.", "upsample."),
        (".mid_block.attentions.0.", ".mid.attn_1."),
        (".group_norm.", ".norm."),
        (".to_out.0.", ".proj_out."),
        (".to_", "."),
        ("conv_norm_out.", "norm_out."),
        ("conv_shortcut.", "nin_shortcut."),
    ):
        name = name.replace(old, new)
    return name


# Text encoders


def _settings_of_pipeline(folder: Path) -> str:
    return str(json.loads((folder / "model_index.json").read_text())["_class_name"])


def _encoders(folder: Path) -> State:
    first, second = (clip(folder / part) for part in ("text_encoder", "text_encoder_2"))
    if (folder / "transformer").exists():
        return _comfy_encoders(folder)
    if not second:
        wide = _settings(folder / "unet").get("use_linear_projection")
        prefix = "cond_stage_model.model." if wide else "cond_stage_model.transformer.text_model."
        return _prefixed(open_clip(first) if wide else first, prefix)
    place = 1 if first else 0  # the refiner has OpenCLIP's alone
    small = _prefixed(first, "conditioner.embedders.0.transformer.text_model.")
    return small | _prefixed(open_clip(second), f"conditioner.embedders.{place}.model.")


def _comfy_encoders(folder: Path) -> State:
    """CLIP L's projection is left out, as diffusers puts the identity there whatever the file says."""
    state: State = {}
    for part, name in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        own = clip(folder / part)
        projection = own.pop("text_projection.weight", None)
        state |= _prefixed(own, f"text_encoders.{name}.transformer.text_model.")
        if projection is not None and name == "clip_g":
            state[f"text_encoders.{name}.transformer.text_projection.weight"] = projection
    for part in ("text_encoder_2", "text_encoder_3"):
        state |= _prefixed(t5(folder / part), "text_encoders.t5xxl.transformer.")
    return state


def _prefixed(state: State, prefix: str) -> State:
    return {prefix + name: weight for name, weight in state.items()}


def clip(folder: Path) -> State:
    """A CLIP's weights under transformers' names without ``text_model.``; none if it is not one."""
    if not folder.exists() or "CLIP" not in _settings(folder)["architectures"][0]:
        return {}
    return {name.removeprefix("text_model."): weight for name, weight in _weights(folder).items()}


def t5(folder: Path) -> State:
    """A T5 encoder's weights. The embedding is there under both of its names, as in Stability's files."""
    if not folder.exists() or "T5" not in _settings(folder)["architectures"][0]:
        return {}
    state = _weights(folder)
    return state | {"encoder.embed_tokens.weight": state["shared.weight"].clone()}


def open_clip(state: State) -> State:
    """A CLIP's weights under OpenCLIP's names: query, key and value in one, the projection transposed."""
    named: State = {}
    for name, weight in state.items():
        if name == "text_projection.weight":
            named["text_projection"] = weight.T
        elif found := re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            named[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[2]}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            for old, new in OPEN_CLIP:
                name = re.sub(old, new, name)
            named[name] = weight
    return named


# Transformers


def sd3(state: State) -> State:
    """An SD3Transformer2DModel's weights under Stability's names."""
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
    named = {}
    for name, weight in _joined(state, "transformer_blocks", "joint_blocks", SD3_BLOCK, QKV["sd3"]):
        last = name.startswith(f"joint_blocks.{blocks - 1}.context_block.adaLN")
        named[name] = _halves_swapped(weight) if last else weight
    return named | _outside(state, SD3)


def flux(state: State) -> State:
    """A FluxTransformer2DModel's weights under Black Forest Labs' names."""
    double = _joined(state, "transformer_blocks", "double_blocks", FLUX_DOUBLE, QKV["double"])
    single = _joined(state, "single_transformer_blocks", "single_blocks", FLUX_SINGLE, QKV["single"])
    return dict(double) | dict(single) | _outside(state, FLUX)


def _outside(state: State, table: Mapping[str, str]) -> State:
    """What is in no block. The last norm's shift and scale have changed places."""
    outside = {name: weight for name, weight in state.items() if "transformer_blocks." not in name}
    return {
        _renamed(name, table): _halves_swapped(weight) if name.startswith("norm_out.") else weight
        for name, weight in outside.items()
    }


def _joined(
    state: State, old: str, new: str, table: Mapping[str, str], joined: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, torch.Tensor]]:
    rest = {part for parts in joined.values() for part in parts[1:]}
    firsts = {parts[0]: (name, parts) for name, parts in joined.items()}
    for name, weight in state.items():
        found = re.fullmatch(rf"{old}\.(\d+)\.(.+\.)(weight|bias)", name)
        if not found or found[2] in rest:
            continue
        if found[2] in firsts:
            whole, parts = firsts[found[2]]
            pieces = [state[f"{old}.{found[1]}.{part}{found[3]}"] for part in parts]
            yield f"{new}.{found[1]}.{whole}{found[3]}", torch.cat(pieces)
        else:
            yield f"{new}.{found[1]}.{_renamed(found[2] + found[3], table)}", weight


def _halves_swapped(weight: torch.Tensor) -> torch.Tensor:
    """Shift and scale, in the other order."""
    return torch.cat(weight.chunk(2)[::-1])


def small_flux_loads(monkeypatch: Any, width: int = 32) -> None:
    """Let diffusers load a Flux file whose net is ``width`` wide: its converter knows only 3072."""
    from diffusers.loaders import single_file_model, single_file_utils

    convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    constants = tuple(width if value == 3072 else value for value in convert.__code__.co_consts)
    small = type(convert)(convert.__code__.replace(co_consts=constants), convert.__globals__)
    table = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    monkeypatch.setitem(table, "checkpoint_mapping_fn", small)
