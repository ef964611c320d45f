"""LoRAs, put into a resident model for a run and taken out again without a trace.

diffusers' own loaders read plain LoRAs (its, kohya's and peft's keys) and put layers beside the model's own,
whose weights are never touched: taking them out gives back the very same modules. LyCORIS' kinds are laid
into the weights first (:mod:`webui.diffusion.laying`). What was put in stays until a run asks for something
else, so that a hundred pictures with the same LoRAs load them once. Each part of the model remembers what it
has been given, as parts may be shared between models.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.loaders.lora_base import set_adapters_for_text_encoder
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError

from webui.catalogue.found import Found
from webui.catalogue.relatives import LAID
from webui.diffusion import laying
from webui.diffusion.additions import Adapter, Additions
from webui.diffusion.devices import plain_memory_errors
from webui.diffusion.loading import LOADING, finite, owned
from webui.diffusion.model import Model
from webui.request import invalid

log = logging.getLogger(__name__)

GIVEN = "_studio_loras"  # attribute of a part: what it was last given, in order
DAMAGED = (OSError, SafetensorError)
UNFIT = (RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError, AssertionError)


@contextmanager
def applied(model: Model, additions: Additions) -> Iterator[Model]:
    """The model with these LoRAs and no others, in this order, and with these words.

    Kinds that are laid into the weights come first, each upon the one before it. The model has memories of
    its own for each set of these: what one computes must not be taken for another's.

    Raises:
        InvalidField: one of them is damaged, no LoRA, or does not fit the model.
        OutOfMemory: there is no room for them.
    """
    pipe = _pipeline(model)
    laid = [each for each in additions.loras if each.found.layout in LAID]
    beside = [each for each in additions.loras if each.found.layout not in LAID]
    try:
        _give(pipe, laid, beside)
        _weigh(pipe, beside)
    except BaseException:
        _clear(pipe)
        raise
    if not additions.key:
        yield model
        return
    yield model.variants(additions.key, lambda: _variant(model, additions))


def _give(pipe: Any, laid: Sequence[Adapter], beside: Sequence[Adapter]) -> None:
    """See that its parts have these and no others; what only has another weight beside them stays."""
    given: tuple[Hashable, ...] = tuple((_name(each.found), each.text, each.net) for each in laid)
    given += tuple(_name(each.found) for each in beside)
    parts = _parts(pipe)
    if all(getattr(part, GIVEN, ()) == given for part in parts.values()):
        return
    _clear(pipe)
    for each in laid:
        with _named(each.found):
            laying.lay(parts, each)
    for each in beside:
        with _named(each.found):
            _load(pipe, each.found)
    for part in parts.values():
        setattr(part, GIVEN, given)


def _variant(model: Model, additions: Additions) -> Model:
    words = additions.embeddings
    return model.apart(**({"encoder": model.encoder.learning(words)} if words else {}))


@contextmanager
def silent(model: Model) -> Iterator[None]:
    """While it reads a prompt without the LoRAs that parts it shares with another model have been given."""
    encoders = [tower.text_encoder for tower in model.encoder.towers]
    modules = (module for encoder in encoders for module in encoder.modules())
    layers = [module for module in modules if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        with ExitStack() as stack:
            for encoder in encoders:
                stack.enter_context(laying.without(encoder))
            yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _pipeline(model: Model) -> Any:
    """diffusers' pipeline round the parts that take LoRAs: it knows how to read them."""
    pipe = model.family.pipeline("img2img", model.net, None, None)
    for name, tower in zip(model.family.readers, model.encoder.towers, strict=False):  # T5 may be missing
        setattr(pipe, name, tower.text_encoder)
    return pipe


def _parts(pipe: Any) -> dict[str, Any]:
    """Name -> module, of those that take LoRAs."""
    named = ((name, getattr(pipe, name, None)) for name in pipe._lora_loadable_modules)
    return {name: part for name, part in named if part is not None}


def _name(found: Found) -> str:
    """Of the adapter inside the model: another for another content."""
    content = repr((str(found.path), found.signature))
    return "a" + hashlib.sha256(content.encode()).hexdigest()[:16]  # a dot would be a submodule


def _clear(pipe: Any) -> None:
    """Give every part its own modules back."""
    parts = list(_parts(pipe).values())
    if any(getattr(part, "peft_config", None) for part in parts):
        pipe.unload_lora_weights()
    for part in parts:
        laying.restore(part)
        vars(part).pop(GIVEN, None)


@contextmanager
def _named(found: Found) -> Iterator[None]:
    """Whatever goes wrong with a file is told by its name."""
    try:
        with plain_memory_errors():
            yield
    except DAMAGED as error:
        log.error("the LoRA %s cannot be read", found.name, exc_info=error)
        raise invalid("prompt", f"the LoRA {found.name} cannot be read: it is damaged or gone") from error
    except UNFIT as error:
        log.error("the LoRA %s cannot be applied", found.name, exc_info=error)
        raise invalid(
            "prompt", f"the LoRA {found.name} does not fit this model; it is made for another one"
        ) from error


def _load(pipe: Any, found: Found) -> None:
    """Put the layers of one file beside the model's."""
    name = _name(found)
    with LOADING, _as_computed(_parts(pipe).values()):
        pipe.load_lora_weights(
            str(found.path), adapter_name=name, use_safetensors=True, local_files_only=True
        )
    if not any(name in part for part in pipe.get_list_adapters().values()):
        raise ValueError("nothing of it is a layer of the model")
    if not all(map(_settle, _parts(pipe).values())):
        raise laying.not_numbers(found)


@contextmanager
def _as_computed(parts: Iterable[Any]) -> Iterator[None]:
    """While weights that are stored in 8 bits seem to be what they are computed in.

    peft gives its layers the type of those that they stand beside, and nothing computes in 8 bits.
    """
    stored = {}
    for part in parts:
        dtype = part.dtype
        for weight in part.parameters():
            if weight.itemsize == 1:
                stored[weight] = weight.data
                weight.data = weight.new_empty(1, dtype=dtype).expand(weight.shape)
    try:
        yield
    finally:
        for weight, numbers in stored.items():
            weight.data = numbers


def _settle(part: torch.nn.Module) -> bool:
    """New layers as the part's own: for computing alone, and in its precision if that is a half one.

    Returns whether all of their weights are numbers.
    """
    numbers, dtype = True, part.dtype  # which diffusers looks for in all of the part
    for layer in part.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.eval().requires_grad_(False)
            for name in layer.adapter_layer_names:  # out of the mapped file, which may be overwritten
                for module in getattr(layer, name).children():
                    numbers = finite(owned(module)) and numbers
                    if dtype in (torch.bfloat16, torch.float16):
                        module.to(dtype)
    return numbers


def _weigh(pipe: Any, wanted: Sequence[Adapter]) -> None:
    """Set the weight of each LoRA in the parts that it has something for."""
    for name, part in _parts(pipe).items():
        has = getattr(part, "peft_config", None) or {}
        own = [each for each in wanted if _name(each.found) in has]
        names = [_name(each.found) for each in own]
        if names and name.startswith("text_encoder"):
            set_adapters_for_text_encoder(names, part, [each.text for each in own])
        elif names:
            part.set_adapters(names, [each.net for each in own])
