"""ControlNet (Zhang et al. 2023, arXiv:2302.05543): a net that looks at a picture and corrects the net."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
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
from webui.diffusion.control_nets import KINDS, Call, Kind, Named
from webui.diffusion.denoiser import Arguments, Calls
from webui.diffusion.devices import Device, plain_memory_errors
from webui.diffusion.loading import LOADING, finite, owned
from webui.diffusion.model import Model
from webui.diffusion.prompts import Text
from webui.preprocess import preprocessed
from webui.request import GenerationRequest, ResizeMode, invalid
from webui.units import Unit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Control:
    """A ControlNet, and the picture (RGB) that it looks at; ``hole`` (L) is white where that is hidden."""

    net: Any
    kind: Kind
    unit: Unit
    resize_mode: ResizeMode
    codec: Codec
    picture: Image.Image
    hole: Image.Image | None = None

    def seen(self, size: tuple[int, int]) -> torch.Tensor:
        """What it is told, one row, for a picture of ``size``: (width, height)."""
        picture = masks.resized(self.picture, size, self.resize_mode)
        shown = preprocessed(picture, self.unit.preprocessor)
        hole = self.hole.resize(size) if self.hole else None
        return self.kind.seen(self.net, shown, hole, self.codec)

    def counts(self, call: int, calls: int) -> bool:
        """In this call of the net, of so many."""
        return call / calls >= self.unit.start and (call + 1) / calls <= self.unit.end


class Controlled:
    """Calls of a family's net with what ControlNets add to it, for a picture of ``size``: (width, height).

    ``at`` tells (call, calls of the pass).
    """

    def __init__(
        self,
        calls: Calls,
        controls: Sequence[Control],
        size: tuple[int, int],
        at: Callable[[], tuple[int, int]],
    ) -> None:
        self.calls, self.at = calls, at
        self.controls = [(control, control.seen(size)) for control in controls]
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
        added: Named = {}
        for control, seen in self.controls:
            if control.counts(*self.at()):
                rows = torch.cat([seen.contiguous().to(x)] * len(x))
                more = control.kind.adds(control.net, net, rows, Call(control.unit, scales, placed, named))
                added = _summed(added, more, control.unit) if added else more
        return placed, named | added


def _summed(one: Named, other: Named, unit: Unit) -> Named:
    """What two ControlNets add together: each tensor to that of its place.

    Raises:
        InvalidField: they correct a net in other places.
    """
    if any(_places(one[name]) != _places(other[name]) for name in one):
        raise invalid(unit.field("model"), "corrects the model in other places than those before it")
    return {name: _sum(value, other[name]) for name, value in one.items()}


def _places(value: Any) -> Any:
    return len(value) if isinstance(value, list | tuple) else isinstance(value, torch.Tensor) or value


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, list | tuple):
        return [a + b for a, b in zip(one, other, strict=True)]
    return one + other if isinstance(one, torch.Tensor) else one


def controlled(model: Model, found: Sequence[Found]) -> Model:
    """The model with memories of its own for these ControlNets."""
    if not found:
        return model
    key = "control", *((each.path, each.signature) for each in found)
    return model.variants(key, lambda: model.apart(encoder=model.encoder))


def of(
    request: GenerationRequest,
    unit: Unit,
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
    if lacking := kind.lacking(net, unit, request.task):
        raise lacking
    picture = picture.convert("RGB")
    if request.task != "inpaint" or source is None:
        return Control(net, kind, unit, request.resize_mode, codec, picture)
    whole = masks.resized(picture, source.size, "Stretch")
    plan = masks.prepare(request.replace(masked_content="Original"), whole, mask)
    hole = plan.hard if kind.hides(net, unit) else None
    return Control(net, kind, unit, request.resize_mode, codec, plan.image, hole)


def load(model: Model, found: Found, unit: Unit, component: str, device: Device, guests: Guests) -> Any:
    """The ControlNet of a unit, ready to compute. ``component``: what it is among the guests.

    Raises:
        InvalidField: the file is damaged, or does not fit the model.
    """
    kind = KINDS[model.family.name]
    net = guests(component, found, lambda: _load(model, found, kind, unit, device))
    if not (isinstance(net, kind.model) and kind.fits(net, model.net)):
        raise invalid(
            unit.field("model"), f"{found.name} does not fit this model; it is made for another one"
        )
    return net


def _load(model: Model, found: Found, kind: Kind, unit: Unit, device: Device) -> Any:
    field = unit.field("model")
    try:
        with LOADING, plain_memory_errors():
            net = _of_folder(found, kind) if found.folder else _of_file(model, found, kind)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        log.error("the ControlNet %s cannot be loaded", found.name, exc_info=error)
        raise invalid(field, f"{found.name} is damaged, or does not fit this model") from error
    if not finite(net):
        raise invalid(field, f"{found.name} holds values that are not numbers (NaN or infinity)")
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
