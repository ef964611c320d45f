"""Headers of published models, without their weights: names and shapes as the real classes have them.

The classes are built at their published sizes on torch's meta device, from the shipped configurations, and
their tensors named as :mod:`tests.single_file` names them.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests import single_file
from webui.catalogue.headers import BITS, Header, Tensor
from webui.diffusion.checkpoints import CONFIGS

State = dict[str, torch.Tensor]
CLASSES = {"CLIPTextModel": "CLIPTextConfig", "CLIPTextModelWithProjection": "CLIPTextConfig"}


def header(state: Mapping[str, Any], dtype: str = "F16", **metadata: str) -> Header:
    """Of tensors, or of shapes, by name."""
    shapes = {name: tuple(getattr(each, "shape", each)) for name, each in state.items()}
    return Header({name: Tensor(dtype, shape) for name, shape in shapes.items()}, metadata)


def write(path: Path, about: Header) -> Path:
    """A file with this header whose weights are a hole of the right size: it takes no room on the disk."""
    entries: dict[str, Any] = {"__metadata__": dict(about.metadata)} if about.metadata else {}
    end = 0
    for name, (dtype, shape) in about.tensors.items():
        start, end = end, end + torch.Size(shape).numel() * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@functools.cache
def part(config: str, name: str) -> State:
    """A part's tensors under diffusers' and transformers' own names."""
    settings = json.loads((CONFIGS / config / name / "config.json").read_text())
    with torch.device("meta"):
        if title := settings.get("_class_name"):
            return dict(getattr(diffusers, title).from_config(settings).state_dict())
        title = settings["architectures"][0]
        kind = getattr(transformers, CLASSES.get(title, "T5Config"))
        state = getattr(transformers, title)(kind(**settings)).state_dict()
    return {name.removeprefix("text_model."): each for name, each in state.items()}


def net(config: str) -> State:
    """Under the names of those who published it, without a prefix."""
    index = json.loads((CONFIGS / config / "model_index.json").read_text())
    if "unet" in index:
        settings = json.loads((CONFIGS / config / "unet/config.json").read_text())
        return {single_file.unet_name(name, settings): each for name, each in part(config, "unet").items()}
    state = part(config, "transformer")
    return single_file.flux(state) if config.startswith("flux") else single_file.sd3(state)


def whole(config: str, t5: bool = False) -> State:
    """All in one file, as A1111 and ComfyUI load it."""
    return {single_file.PREFIX + name: each for name, each in net(config).items()} | rest(config, t5)


def rest(config: str, t5: bool = False) -> State:
    """VAE and text encoders of such a file."""
    start = "vae." if config.startswith("flux") else "first_stage_model."
    vae = single_file.vae(part(config, "vae"), 4)
    return _under(start, vae) | ENCODERS[config.partition("-")[0]](config, t5)


def _under(prefix: str, state: State) -> State:
    return {prefix + name: each for name, each in state.items()}


def _sd1(config: str, _: bool) -> State:
    return _under("cond_stage_model.transformer.text_model.", part(config, "text_encoder"))


def _sd2(config: str, _: bool) -> State:
    return _under("cond_stage_model.model.", single_file.open_clip(part(config, "text_encoder")))


def _sdxl(config: str, _: bool) -> State:
    large = single_file.open_clip(part(config, "text_encoder_2"))
    if config == "sdxl-refiner":
        return _under("conditioner.embedders.0.model.", large)
    small = _under("conditioner.embedders.0.transformer.text_model.", part(config, "text_encoder"))
    return small | _under("conditioner.embedders.1.model.", large)


def _comfy(config: str, t5: bool) -> State:
    state = _clip("clip_l", part(config, "text_encoder"))
    if not config.startswith("flux"):
        state |= _clip("clip_g", part(config, "text_encoder_2"))
    if t5:
        last = "text_encoder_2" if config.startswith("flux") else "text_encoder_3"
        state |= _under("text_encoders.t5xxl.transformer.", part(config, last))
    return state


def _clip(title: str, state: State) -> State:
    """Its projection is beside the ``text_model``, not in it."""
    rest = dict(state)
    projection = {name: rest.pop(name) for name in state if name == "text_projection.weight"}
    start = f"text_encoders.{title}.transformer."
    return _under(start, projection) | _under(f"{start}text_model.", rest)


ENCODERS: Mapping[str, Callable[[str, bool], State]] = {
    "sd1": _sd1,
    "sd2": _sd2,
    "sdxl": _sdxl,
    "sd3": _comfy,
    "sd35": _comfy,
    "flux": _comfy,
}
