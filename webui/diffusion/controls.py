"""ControlNet (Zhang et al. 2023, arXiv:2302.05543): a net that looks at a picture and corrects the net."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from webui import masks
from webui.catalogue.found import Found
from webui.diffusion.additions import Guests
from webui.diffusion.codec import Codec
from webui.diffusion.control_nets import KINDS, Call, Kind
from webui.diffusion.denoiser import Arguments, Calls
from webui.diffusion.devices import Device, plain_memory_errors
from webui.diffusion.loading import LOADING, finite, owned
from webui.diffusion.model import Model
from webui.diffusion.prompts import Text
from webui.preprocess import preprocessed
from webui.request import GenerationRequest, invalid

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Control:
    """A ControlNet, and the picture (RGB) that it looks at; ``hole`` (L) is white where that is hidden."""

    net: Any
    kind: Kind
    request: GenerationRequest
    codec: Codec
    picture: Image.Image
    hole: Image.Image | None = None

    def seen(self, size: tuple[int, int]) -> torch.Tensor:
        """What it is told, one row, for a picture of ``size``: (width, height)."""
        picture = masks.resized(self.picture, size, self.request.resize_mode)
        shown = preprocessed(picture, self.request.control_preprocessor)
        hole = self.hole.resize(size) if self.hole else None
        return self.kind.seen(self.net, shown, hole, self.codec)

    def calls(self, calls: Calls, size: tuple[int, int], at: Callable[[], tuple[int, int]]) -> Controlled:
        return Controlled(calls, self, self.seen(size), at)


class Controlled:
    """Calls of a family's net with what the ControlNet adds to it. ``at`` tells (call, calls of the pass)."""

    def __init__(
        self, calls: Calls, control: Control, seen: torch.Tensor, at: Callable[[], tuple[int, int]]
    ) -> None:
        self.calls, self.control, self.seen, self.at = calls, control, seen, at
        self.latents, self.packed, self.timestep = calls.latents, calls.packed, calls.timestep

    def arguments(
        self,
        net: Any,
        x: torch.Tensor,
        timestep: torch.Tensor,
        text: Text,
        against: int,
        scales: torch.Tensor,
        kwargs: Mapping[str, Any],
    ) -> Arguments:
        placed, named = self.calls.arguments(net, x, timestep, text, against, scales, kwargs)
        call, calls = self.at()
        control, request = self.control, self.control.request
        if call / calls < request.control_start or (call + 1) / calls > request.control_end:
            return placed, named
        seen = torch.cat([self.seen.contiguous().to(x)] * len(x))
        return placed, named | control.kind.adds(control.net, net, seen, Call(request, scales, placed, named))


def controlled(model: Model, found: Found | None) -> Model:
    """The model with memories of its own for this ControlNet."""
    if found is None:
        return model
    key = "control", found.path, found.signature
    return model.variants(key, lambda: model.apart(encoder=model.encoder))


def of(
    request: GenerationRequest,
    model: Model,
    net: Any,
    codec: Codec,
    picture: Image.Image,
    source: Image.Image | None,
    mask: Image.Image | None,
) -> Control:
    """What ``net`` looks at: ``picture`` (in any mode), laid out as the source is.

    Raises:
        InvalidField: this ControlNet needs something else of the request.
    """
    kind = KINDS[model.family.name]
    if lacking := kind.lacking(net, request):
        raise lacking
    picture = picture.convert("RGB")
    if request.task != "inpaint" or source is None:
        return Control(net, kind, request, codec, picture)
    whole = masks.resized(picture, source.size, "Stretch")
    plan = masks.prepare(request.replace(masked_content="Original"), whole, mask)
    return Control(net, kind, request, codec, plan.image, plan.hard if kind.hides(net, request) else None)


def load(model: Model, found: Found, device: Device, guests: Guests) -> Any:
    """The ControlNet, ready to compute.

    Raises:
        InvalidField: the file is damaged, or does not fit the model.
    """
    kind = KINDS[model.family.name]
    net = guests("control", found, lambda: _load(model, found, kind, device))
    if not (isinstance(net, kind.model) and kind.fits(net, model.net)):
        raise invalid("control_model", f"{found.name} does not fit this model; it is made for another one")
    return net


def _load(model: Model, found: Found, kind: Kind, device: Device) -> Any:
    try:
        with LOADING, plain_memory_errors():
            net = _of_folder(found, kind) if found.folder else _of_file(model, found, kind)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        log.error("the ControlNet %s cannot be loaded", found.name, exc_info=error)
        raise invalid("control_model", f"{found.name} is damaged, or does not fit this model") from error
    if not finite(net):
        raise invalid("control_model", f"{found.name} holds values that are not numbers (NaN or infinity)")
    return owned(net).to(device.torch_dtype).eval().requires_grad_(False)


def _of_folder(found: Found, kind: Kind) -> Any:
    config = kind.model.load_config(found.path, local_files_only=True)
    if config["_class_name"] != kind.model.__name__:
        raise ValueError(f"it is a {config['_class_name']}")
    return kind.model.from_pretrained(found.path, local_files_only=True)


def _of_file(model: Model, found: Found, kind: Kind) -> Any:
    """A file has no config: its net is shaped by its tensors, and else as the model's is."""
    config, tensors = kind.shaped(model.net, load_file(found.path))
    with init_empty_weights():
        net = kind.model.from_config(config)
    net.load_state_dict(tensors, assign=True)
    return net
