"""Files of LoRA's relatives, laid into a model's weights, and these put back as they were.

Each weight that is changed is kept as it was, beside the part it belongs to: in the system's memory, so that
a device holds no more than before. Putting back is exact: the very numbers return, whatever was computed
meanwhile and however often other files were laid over them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from safetensors import safe_open
from torch import nn

from webui.catalogue.found import Found
from webui.diffusion import layers, lycoris
from webui.diffusion.additions import Adapter
from webui.diffusion.devices import GB, system_memory
from webui.diffusion.layers import Layers
from webui.diffusion.loading import weight
from webui.diffusion.lycoris import Tensors
from webui.errors import InvalidField, OutOfMemory
from webui.request import invalid

KEPT = "_studio_kept"  # attribute of a part: its weights before, by (layer, name)
Kept = dict[tuple[nn.Module, str], torch.Tensor]
Change = Callable[[torch.Tensor, Tensors, float], torch.Tensor]
_NAME = re.compile(r"(.+?)\.((?:lora_(?:up|down|mid)|[ab][12])\.weight|[^.]+)")


def lay(parts: Mapping[str, nn.Module], adapter: Adapter) -> None:
    """Change the weights of these parts, which are named as in diffusers' pipelines, as the file says.

    Raises:
        KeyError, RuntimeError, ValueError: it does not fit them; some of its layers may be changed.
        OSError, SafetensorError: it cannot be read.
        InvalidField: it holds values that are not numbers.
        OutOfMemory: there is no room for the weights as they were; nothing is changed.
    """
    known = layers.named(parts)
    with safe_open(adapter.found.path, framework="pt") as file:
        found = [(*known[layer], names) for layer, names in _by_layer(file.keys()).items()]
        _check_room(adapter, [each for _, whole, _ in found for each in whole])
        for part, whole, names in found:
            factor = adapter.text if part.startswith("text_encoder") else adapter.net
            if factor:
                tensors = {end: file.get_tensor(name).float() for end, name in names.items()}
                if not all(tensor.isfinite().all() for tensor in tensors.values()):
                    raise not_numbers(adapter.found)
                _change(parts[part], whole, tensors, factor)


def restore(part: nn.Module) -> None:
    """Put its weights back as they were before anything was laid into it."""
    kept: Kept = vars(part).get(KEPT, {})
    for place in list(kept):
        _swap(*place, kept[place])
        del kept[place]  # not before: a device may be full


def kept_bytes(part: nn.Module) -> int:
    """Of the system's memory, for its weights as they were."""
    kept: Kept = vars(part).get(KEPT, {})
    return sum(before.nbytes for before in kept.values())


@contextmanager
def without(part: nn.Module) -> Iterator[None]:
    """While its weights are as they were before anything was laid into it."""
    kept: Kept = vars(part).get(KEPT, {})
    laid = {place: _swap(*place, before) for place, before in kept.items()}
    try:
        yield
    finally:
        for place, after in laid.items():
            _swap(*place, after)


def not_numbers(found: Found) -> InvalidField:
    return invalid("prompt", f"the LoRA {found.name} holds values that are not numbers (NaN or infinity)")


def _check_room(adapter: Adapter, changed: Sequence[nn.Module]) -> None:
    needed, (_, free) = sum(weight(layer) for layer in changed), system_memory()
    if needed > free:
        raise OutOfMemory(
            f"The LoRA {adapter.found.name} changes weights of {needed / GB:.1f} GB, which are kept as they "
            f"were meanwhile, and {free / GB:.1f} GB of memory are free. Releasing a model makes room."
        )


def _by_layer(names: Iterator[str]) -> dict[str, dict[str, str]]:
    """Layer, with underscores -> the last part of each tensor's name -> its whole name."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if not (match := _NAME.fullmatch(name)):
            raise KeyError(name)
        found.setdefault(match[1].replace(".", "_"), {})[match[2]] = name
    return found


def _change(part: nn.Module, whole: Layers, tensors: Tensors, factor: float) -> None:
    _lay(part, whole, "weight", lycoris.weight, tensors, factor)
    if lycoris.changes_bias(tensors):
        _lay(part, whole, "bias", lycoris.bias, tensors, factor)


@torch.no_grad()
def _lay(part: nn.Module, whole: Layers, name: str, change: Change, tensors: Tensors, factor: float) -> None:
    olds = [layer.get_parameter(name) for layer in whole]
    there = {end: tensor.to(olds[0].device) for end, tensor in tensors.items()}
    news = change(torch.cat([old.float() for old in olds]), there, factor)
    kept: Kept = vars(part).setdefault(KEPT, {})
    for layer, old, new in zip(whole, olds, torch.split(news, [len(old) for old in olds]), strict=True):
        after = torch.empty_like(old).copy_(new)
        kept.setdefault((layer, name), old.data.cpu())
        old.data = after


def _swap(layer: nn.Module, name: str, numbers: torch.Tensor) -> torch.Tensor:
    """Give a parameter these numbers, where it is now; its own until now."""
    parameter: nn.Parameter = layer.get_parameter(name)
    before, parameter.data = parameter.data, numbers.to(parameter.device)
    return before
