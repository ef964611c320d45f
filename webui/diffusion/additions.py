"""What a request adds to its model, found among a person's files. No torch: weights are read by others.

A request names things (``<lora:ink:0.8>``); this module says which files those are, refuses what cannot
go with the model, and tells what of them decides the pixels: their content, not their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from webui import prompt_syntax
from webui.catalogue.found import FAMILY_TITLES, Found, Kind
from webui.diffusion import ip_adapters
from webui.diffusion.checkpoints import Finder
from webui.diffusion.ip_adapters import Reference
from webui.request import GenerationRequest, ModelInfo, invalid

HASH_DIGITS = 12  # of a LoRA's or an embedding's SHA-256 in a picture's text, as A1111 writes them


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA, with its weights in the text encoders and in the net."""

    found: Found
    text: float
    net: float


@dataclass(frozen=True, eq=False)
class Additions:
    """All that one request adds."""

    sha256: Callable[[Found], str]  # of a file's content, hexadecimal
    loras: tuple[Adapter, ...] = ()
    reference: Reference | None = None

    def identity(self) -> list[Any]:
        """What of it decides the pixels, for JSON; empty of nothing."""
        loras: list[Any] = [["lora", self.sha256(each.found), each.text, each.net] for each in self.loras]
        return loras + ([["reference", *map(self.sha256, self.reference.files)]] if self.reference else [])

    def infotext(self) -> dict[str, str]:
        """What a picture's text says of it, in A1111's words."""
        hashes = (f"{each.found.name}: {self.sha256(each.found)[:HASH_DIGITS]}" for each in self.loras)
        told = {"Lora hashes": ", ".join(hashes)} if self.loras else {}
        if self.reference:
            told["Reference model hash"] = self.sha256(self.reference.adapter)[:HASH_DIGITS]
        return told


NOTHING = Additions(lambda found: "")


def find(request: GenerationRequest, finder: Finder, model: ModelInfo) -> Additions:
    """What the request adds to its model. Weights of 0 add nothing.

    Things are as they were when models were last looked for, as each submission and each turn begins with
    that; what is not among them is looked for anew.

    Raises:
        InvalidField: something is not there, cannot be used, or belongs to another family of models.
    """
    tags = prompt_syntax.loras(request.prompt)
    loras = (Adapter(_fitting("lora", tag.name, "prompt", finder, model), tag.text, tag.net) for tag in tags)
    added = tuple(each for each in loras if each.text or each.net)
    return Additions(finder.catalogue.sha256, loras=added, reference=_reference(request, finder, model))


def _reference(request: GenerationRequest, finder: Finder, model: ModelInfo) -> Reference | None:
    if not request.reference_model:
        return None
    adapter = _fitting("ip-adapter", request.reference_model, ip_adapters.FIELD, finder, model)
    others = (found for (kind, _), found in finder.latest.items() if kind == "other")
    found = ip_adapters.find(request, adapter, model, others)
    return found if found.scale else None


def _fitting(kind: Kind, name: str, field: str, finder: Finder, model: ModelInfo) -> Found:
    """The thing of this name, if it can go with the model. If its header says no family, loading tells."""
    found = finder.latest.get((kind, name))
    if found is None or found.problem:
        found = finder.catalogue.get(kind, name, field)
    if found.family not in ("", "other", model.family):
        made_for, is_a = (FAMILY_TITLES.get(family, family) for family in (found.family, model.family))
        raise invalid(field, f"{found.name} is made for {made_for}, and the model {model.title} is {is_a}")
    return found
