"""What a request adds to its model, found among a person's files. No torch: weights are read by others.

A request names things (``<lora:ink:0.8>``); this module says which files those are, refuses what cannot
go with the model, and tells what of them decides the pixels: their content, not their names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from webui import prompt_syntax
from webui.catalogue.found import CONTROLLED, FAMILY_TITLES, Found, Kind
from webui.diffusion import ip_adapters
from webui.diffusion.checkpoints import Finder
from webui.diffusion.ip_adapters import Reference
from webui.diffusion.lineage import FACTS
from webui.errors import Unsupported
from webui.request import GenerationRequest, ModelInfo, invalid
from webui.units import Unit

MODEL_DIGITS = 10  # of a VAE's
HASH_DIGITS = 12  # of a LoRA's or an embedding's SHA-256 in a picture's text, as A1111 writes them

# Gives what a file holds and a job adds beside its model's parts, such as a VAE: told what that is, the file,
# and how to read it into RAM, unless it is there already.
Guests = Callable[[str, Found, Callable[[], Any]], Any]


def unkept(component: str, found: Found, load: Callable[[], Any]) -> Any:
    """:data:`Guests` that are read each time."""
    return load()


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
    weights_sha256: Callable[[Found], str]  # of it without its header, as A1111 knows a LoRA
    loras: tuple[Adapter, ...] = ()
    embeddings: tuple[Found, ...] = ()
    vae: Found | None = None
    controls: tuple[tuple[Unit, Found], ...] = ()
    reference: Reference | None = None

    @property
    def guests(self) -> dict[str, Found]:
        """What there is to be room for from the start, by the names of :data:`Guests`."""
        reference = self.reference.adapter if self.reference else None
        parts = {"vae": self.vae, "reference": reference}
        controls = {self.component(found): found for _, found in self.controls}
        return {component: found for component, found in parts.items() if found} | controls

    def component(self, control: Found) -> str:
        """What one of its ControlNets is among the guests; the same for two units with one file."""
        return next(unit.stem for unit, found in self.controls if found.path == control.path)

    @property
    def refining(self) -> Additions:
        """What of it a refiner has too."""
        return replace(self, loras=(), embeddings=(), controls=(), reference=None)

    @property
    def key(self) -> tuple[Hashable, ...]:
        """The same for the same LoRAs and embeddings, unchanged; empty of none."""
        loras = [(_place(each.found), each.text, each.net) for each in self.loras]
        return (*loras, *map(_place, self.embeddings))

    def identity(self) -> list[Any]:
        """What of it decides the pixels, for JSON; empty of nothing."""
        loras = (["lora", self.sha256(each.found), each.text, each.net] for each in self.loras)
        words = (["embedding", found.name, self.sha256(found)] for found in self.embeddings)
        vaes = (["vae", self.sha256(each)] for each in (self.vae,) if each)
        controls = (["control", self.sha256(found)] for _, found in self.controls)
        references = (["reference", *map(self.sha256, each.files)] for each in (self.reference,) if each)
        return [*loras, *words, *vaes, *controls, *references]

    def infotext(self) -> dict[str, str]:
        """What a picture's text says of it, in A1111's words."""
        loras = (f"{lora.found.name}: {self.weights_sha256(lora.found)[:HASH_DIGITS]}" for lora in self.loras)
        words = (f"{found.name}: {self.sha256(found)[:HASH_DIGITS]}" for found in self.embeddings)
        named = {"Lora hashes": ", ".join(loras), "TI hashes": ", ".join(words)}
        told = {key: hashes for key, hashes in named.items() if hashes}
        if self.vae:
            told["VAE hash"] = self.sha256(self.vae)[:MODEL_DIGITS]
        if self.controls:
            hashes = (self.sha256(found)[:MODEL_DIGITS] for _, found in self.controls)
            told["ControlNet hash"] = ", ".join(hashes)
        if self.reference:
            told["Reference model hash"] = self.sha256(self.reference.adapter)[:HASH_DIGITS]
        return told


def _place(found: Found) -> tuple[Hashable, ...]:
    return found.kind, found.path, found.signature


NOTHING = Additions(lambda found: "", lambda found: "")


def find(request: GenerationRequest, finder: Finder, model: ModelInfo) -> Additions:
    """What the request adds to its model. Weights of 0 add nothing.

    Things are as they were when models were last looked for, as each submission and each turn begins with
    that; what is not among them is looked for anew.

    Raises:
        InvalidField: something is not there, cannot be used, or belongs to another family of models.
    """
    tags = prompt_syntax.loras(request.prompt)
    loras = (Adapter(_fitting("lora", tag.name, "prompt", finder, model), tag.text, tag.net) for tag in tags)
    words = named(finder, request.prompt, request.negative_prompt)
    return Additions(
        finder.catalogue.sha256,
        finder.catalogue.weights_sha256,
        loras=tuple(each for each in loras if each.text or each.net),
        embeddings=tuple(_fitting("embedding", *word, finder, model) for word in words.items()),
        vae=_fitting("vae", request.vae, "vae", finder, model) if request.vae else None,
        controls=tuple(_controls(request, finder, model)),
        reference=_reference(request, finder, model),
    )


def named(finder: Finder, prompt: str, negative_prompt: str = "") -> dict[str, str]:
    """The embeddings whose names are words of a prompt, and the field in which they are."""
    found: dict[str, str] = {}
    usable = [
        name for (kind, name), each in finder.latest.items() if kind == "embedding" and not each.problem
    ]
    for field, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        words = prompt_syntax.without_loras(text)
        folded = words.casefold()
        for name in usable:
            if name.casefold() in folded and re.search(prompt_syntax.whole_word(name), words, re.IGNORECASE):
                found.setdefault(name, field)
    return found


def _controls(request: GenerationRequest, finder: Finder, model: ModelInfo) -> Iterator[tuple[Unit, Found]]:
    """The ControlNets; scales of 0 add nothing."""
    for unit in request.controls:
        field = unit.field("model")
        if model.family not in CONTROLLED:
            raise invalid(field, f"there are none for {model.title}", Unsupported)
        if unit.scale:
            yield unit, _fitting("controlnet", unit.model, field, finder, model)


def _reference(request: GenerationRequest, finder: Finder, model: ModelInfo) -> Reference | None:
    if not request.reference_model:
        return None
    adapter = _fitting("ip-adapter", request.reference_model, ip_adapters.FIELD, finder, model)
    others = (found for (kind, _), found in finder.latest.items() if kind == "other")
    found = ip_adapters.find(request, adapter, model, others)
    return found if found.scale else None


def _alike(found: Found, model: ModelInfo) -> bool:
    """Whether two families have one kind of latents."""
    latents = {FACTS[family].latents for family in (found.family, model.family) if family in FACTS}
    return len(latents) == 1


def _fitting(kind: Kind, name: str, field: str, finder: Finder, model: ModelInfo) -> Found:
    """The thing of this name, if it can go with the model. If its header says no family, loading tells."""
    found = finder.latest.get((kind, name))
    if found is None or found.problem:
        found = finder.catalogue.get(kind, name, field)
    if found.family not in ("", "other", model.family) and not (kind == "vae" and _alike(found, model)):
        made_for, is_a = (FAMILY_TITLES.get(family, family) for family in (found.family, model.family))
        raise invalid(field, f"{found.name} is made for {made_for}, and the model {model.title} is {is_a}")
    return found
