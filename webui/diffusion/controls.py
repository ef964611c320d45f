"""ControlNet (Zhang et al. 2023, arXiv:2302.05543): a net that looks at a picture and corrects the net."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from webui import masks
from webui.catalogue.found import Found
from webui.diffusion.additions import Vaes
from webui.diffusion.denoiser import Calls
from webui.diffusion.devices import Device
from webui.diffusion.loading import LOADING, finite, owned
from webui.diffusion.model import Model
from webui.diffusion.prompts import Text
from webui.preprocess import preprocessed
from webui.request import GenerationRequest, invalid

log = logging.getLogger(__name__)

HIDDEN = -1.0  # what a ControlNet made for inpainting sees where it shall invent
START = "control_model."  # of names in a file in LDM's layout


@dataclass(frozen=True)
class Control:
    """A ControlNet, and the picture (RGB) that it looks at; ``hole`` (L) is white where that is hidden."""

    net: Any
    request: GenerationRequest
    picture: Image.Image
    hole: Image.Image | None = None

    def pixels(self, size: tuple[int, int]) -> torch.Tensor:
        """(1, 3, H, W) of 0..1, and -1 where hidden, for a picture of ``size``: (width, height)."""
        picture = masks.resized(self.picture, size, self.request.resize_mode)
        shown = preprocessed(picture, self.request.control_preprocessor)
        pixels: torch.Tensor = VaeImageProcessor(do_normalize=False).preprocess(shown)
        if self.request.control_preprocessor == "Inpaint" and self.hole is not None:
            hole = torch.from_numpy(np.array(self.hole.resize(size)) > 127)
            pixels = pixels.masked_fill(hole, HIDDEN)
        return pixels

    def calls(
        self, calls: Calls, size: tuple[int, int], channels: int, at: Callable[[], tuple[int, int]]
    ) -> Controlled:
        return Controlled(calls, self, self.pixels(size), channels, at)


class Controlled:
    """Calls of a family's UNet with what the ControlNet adds to it.

    ``at`` tells (call, calls of the pass); ``channels`` are the latents', which it alone is given.
    """

    def __init__(
        self,
        calls: Calls,
        control: Control,
        pixels: torch.Tensor,
        channels: int,
        at: Callable[[], tuple[int, int]],
    ) -> None:
        self.calls, self.control, self.pixels, self.channels, self.at = calls, control, pixels, channels, at
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
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        placed, told = self.calls.arguments(net, x, timestep, text, against, scales, kwargs)
        call, calls = self.at()
        request = self.control.request
        if call / calls < request.control_start or (call + 1) / calls > request.control_end:
            return placed, told
        down, middle = self.control.net(
            x[:, : self.channels],
            timestep,
            encoder_hidden_states=text.tokens,
            controlnet_cond=torch.cat([self.pixels.contiguous().to(x)] * len(x)),
            conditioning_scale=request.control_scale,
            added_cond_kwargs=told.get("added_cond_kwargs"),
            return_dict=False,
        )
        told |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return placed, told


def controlled(model: Model, found: Found | None) -> Model:
    """The model with memories of its own for this ControlNet."""
    if found is None:
        return model
    key = "control", found.path, found.signature
    return model.variants(key, lambda: model.apart(encoder=model.encoder))


def of(
    request: GenerationRequest,
    net: Any,
    picture: Image.Image,
    source: Image.Image | None,
    mask: Image.Image | None,
) -> Control:
    """What ``net`` looks at: ``picture`` (RGB), laid out as the source is."""
    if request.task != "inpaint" or source is None:
        return Control(net, request, picture)
    whole = masks.resized(picture, source.size, "Stretch")
    plan = masks.prepare(request.replace(masked_content="Original"), whole, mask)
    return Control(net, request, plan.image, plan.hard)


def load(model: Model, found: Found, device: Device, known: Vaes) -> Any:
    """The ControlNet, ready to compute.

    Raises:
        InvalidField: the file is damaged, or does not fit the model.
    """
    net = known(("control", found.path, found.signature), lambda: _load(model, found, device))
    widths = [each.config.cross_attention_dim for each in (net, model.net)]
    if widths[0] != widths[1]:
        raise invalid("control_model", f"{found.name} does not fit this model; it is made for another one")
    return net


def _load(model: Model, found: Found, device: Device) -> Any:
    try:
        with LOADING:
            if found.folder:
                net = ControlNetModel.from_pretrained(found.path, local_files_only=True)
            else:
                net = _of_file(model, found)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        log.error("the ControlNet %s cannot be loaded", found.name, exc_info=error)
        raise invalid("control_model", f"{found.name} is damaged, or does not fit this model") from error
    if not finite(net):
        raise invalid("control_model", f"{found.name} holds values that are not numbers (NaN or infinity)")
    return owned(net).to(device.name, device.torch_dtype).eval().requires_grad_(False)


def _of_file(model: Model, found: Found) -> Any:
    """A file has no config: its net is shaped as the model's is."""
    tensors = load_file(found.path)
    net = ControlNetModel.from_unet(model.net, load_weights_from_unet=False)
    if any(name.startswith(("input_hint_block.", f"{START}input_hint_block.")) for name in tensors):
        tensors = convert_controlnet_checkpoint(tensors, net.config)
    net.load_state_dict(tensors)
    return net
