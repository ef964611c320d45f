"""Weights on their way from a file into memory: converted and laid out by one copy, and looked at.

diffusers converts each tensor; another layout would take a second copy of it, into memory that has to be had
from the system once more, which is what such a load mostly waits for. What comes out is equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.loaders import single_file_model, single_file_utils
from diffusers.models import model_loading_utils
from torch import nn

from webui.diffusion.devices import Device

# What fills an empty model, and where diffusers looks it up.
FILL = model_loading_utils.load_model_dict_into_meta
KNOWN_TO = (model_loading_utils, single_file_model, single_file_utils)


class Landing:
    """What one load brings into memory. Not for two threads at once: see :data:`loading.LOADING`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._filled: list[nn.Module] = []
        self._unsound: list[nn.Module] = []

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Fill the models that diffusers loads meanwhile."""

        def fill(model: nn.Module, state_dict: Mapping[str, torch.Tensor], **options: Any) -> tuple[Any, Any]:
            if options.get("hf_quantizer") is not None:  # which keeps tensors of its own kinds
                kept: tuple[Any, Any] = FILL(model, state_dict, **options)
                return kept
            self._fill(model, state_dict, options.get("dtype"), options.get("keep_in_fp32_modules") or ())
            return None, None

        for module in KNOWN_TO:
            module.load_model_dict_into_meta = fill
        try:
            yield
        finally:
            for module in KNOWN_TO:
                module.load_model_dict_into_meta = FILL

    def filled(self, part: nn.Module) -> bool:
        """Whether it came this way: its weights are its own, and laid out as the device likes them."""
        return any(part is each for each in self._filled)

    def sound(self, part: nn.Module) -> bool:
        """Whether all that landed of it are numbers."""
        return not any(part is each for each in self._unsound)

    def _fill(
        self,
        model: nn.Module,
        state_dict: Mapping[str, torch.Tensor],
        dtype: torch.dtype | None,
        in_float32: Collection[str],
    ) -> None:
        """Give an empty model what a file holds for it.

        Raises:
            ValueError: a tensor is of another shape than the model's.
        """
        self._filled.append(model)
        own, by_channels = model.state_dict(), self.by_channels(model)
        sound = True
        for name, source in state_dict.items():
            if name not in own:
                continue
            if source.shape != own[name].shape:
                raise ValueError(f"{name} is {tuple(source.shape)}, and not {tuple(own[name].shape)}")
            kept = source.dtype if not source.is_floating_point() else dtype or own[name].dtype
            if not set(in_float32).isdisjoint(name.split(".")):
                kept = torch.float32
            copies = self.device.kind == "cpu"  # elsewhere it goes on to the device as it is
            landed, numbers = land(source, kept, by_channels and source.ndim == 4, copies)
            _put(model, name, landed)
            sound = sound and numbers
        if not sound:
            self._unsound.append(model)

    def by_channels(self, part: nn.Module) -> bool:
        """Whether its pictures and kernels are laid out with channels last: what convolves no films.

        To some VAEs a picture is a film of one frame.
        """
        filmic = any(isinstance(each, nn.Conv3d) for each in part.modules())
        return self.device.channels_last and not filmic


def land(
    source: torch.Tensor, dtype: torch.dtype, by_channels: bool, copies: bool
) -> tuple[torch.Tensor, bool]:
    """A tensor of a file in this precision and layout, and whether all in it are numbers.

    Args:
        by_channels: its layout is NHWC.
        copies: also where it is right as it is, so that it does not hang on the file.
    """
    layout = torch.channels_last if by_channels else torch.contiguous_format
    if copies or source.dtype != dtype or not source.is_contiguous(memory_format=layout):
        landed = torch.empty(source.shape, dtype=dtype, memory_format=layout).copy_(source)
    else:
        landed = source
    return landed, is_sound(source if _holds(dtype, source.dtype) else landed)


def _holds(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether numbers of the other type are numbers in this one: then the smaller one is looked at."""
    if not (dtype.is_floating_point and other.is_floating_point and other.itemsize > 1):
        return False
    return torch.finfo(other).max <= torch.finfo(dtype).max


def is_sound(tensor: torch.Tensor) -> bool:
    """Whether all are numbers. One pass: a sum is not finite if a number in it is not.

    Summed in their own precision, which is ten times as fast for bfloat16; a sum that is too large for it is
    looked at once more. Numbers of 8 bits have no such sum, and are not looked at.
    """
    if not tensor.is_floating_point() or tensor.itemsize == 1:
        return True
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _put(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Let a model's parameter or buffer of this name be that."""
    at, _, leaf = name.rpartition(".")
    owner = model.get_submodule(at)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[leaf] = value
