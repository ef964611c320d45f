"""Ways to compute with little of the device's memory, put on for one stage of a job and taken off again.

Both give way to what is bit-identical without them: group offloading changes no result, tiling only pictures
larger than a tile. Group offloading was run from the CPU to itself, never between a GPU and RAM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from webui.diffusion.devices import Device

HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")  # diffusers' names


@contextmanager
def grouped(module: nn.Module, device: Device) -> Iterator[None]:
    """The module's layers are on the device only while each computes; the rest is in RAM."""
    from diffusers.hooks import HookRegistry, apply_group_offloading

    places = torch.device(device.name), torch.device("cpu")
    try:
        apply_group_offloading(module, *places, offload_type="leaf_level")
        yield
    finally:
        registry = HookRegistry.check_if_exists_or_initialize(module)
        for name in HOOKS:
            registry.remove_hook(name, recurse=True)
        module.to("cpu")


@contextmanager
def tiling(modules: Sequence[Any]) -> Iterator[None]:
    """VAEs decode and encode in tiles, one picture at a time, where they know how to."""
    able = [module for module in modules if hasattr(module, "enable_tiling")]
    before = [(module, module.use_tiling, module.use_slicing) for module in able]
    for module in able:
        module.enable_tiling()
        module.enable_slicing()
    try:
        yield
    finally:
        for module, tiles, slices in before:
            module.use_tiling, module.use_slicing = tiles, slices
