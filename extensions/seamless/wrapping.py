"""Convolutions on a cylinder or a torus: what lies beyond an edge is the opposite edge.

The only places where a net of Stable Diffusion knows the edge of a picture are the zeros that its
convolutions pad with: attention, norms and upsampling treat all places alike. With circular padding instead,
rolling what goes in rolls what comes out, and there is no edge any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.downsampling import Downsample2D
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle


@contextmanager
def wrapped(nets: Iterable[nn.Module], x: bool, y: bool) -> Iterator[None]:
    """With all of their convolutions padded circularly along x, y or both; undone on exit."""
    with ExitStack() as undo:
        for module in (module for net in nets for module in net.modules()):
            if isinstance(module, nn.Conv2d):
                undo.enter_context(_conv(module, x, y))
            elif isinstance(module, Downsample2D) and module.padding == 0:
                undo.enter_context(_shrinking(module, x, y))
        yield


@contextmanager
def _conv(conv: nn.Conv2d, x: bool, y: bool) -> Iterator[None]:
    """Pad the input beforehand where it wraps, and let the convolution pad the rest with zeros."""
    padding = conv.padding
    assert isinstance(padding, tuple), "diffusers gives numbers, not “same”"
    down, across = padding
    wrap = (across * x, across * x, down * y, down * y)  # left, right, top, bottom
    if not any(wrap):
        yield
        return
    hook = _before(conv, lambda input: functional.pad(input, wrap, mode="circular"))
    conv.padding = (0 if y else down, 0 if x else across)
    try:
        yield
    finally:
        conv.padding = padding
        hook.remove()


@contextmanager
def _shrinking(layer: Downsample2D, x: bool, y: bool) -> Iterator[None]:
    """The VAE's encoder pads on its own before it halves: a row and a column of zeros, at the far ends."""

    def wrap(input: torch.Tensor) -> torch.Tensor:
        inside = input[..., : -1 if y else None, : -1 if x else None]
        return functional.pad(inside, (0, int(x), 0, int(y)), mode="circular")

    hook = _before(layer.conv, wrap)
    try:
        yield
    finally:
        hook.remove()


def _before(module: nn.Module, change: Any) -> RemovableHandle:
    """Change the input (B, C, h, w) of a module."""
    return module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))
