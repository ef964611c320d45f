"""A resident model: its modules, and what is derived from them once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from webui.diffusion.families.family import Family
from webui.diffusion.memo import Memo
from webui.diffusion.noise import NoiseMemo
from webui.diffusion.preview import FittedLater, LatentPreview
from webui.diffusion.prompts import TextEncoder
from webui.diffusion.tiers import Stage as Stage
from webui.request import GenerationRequest

REMEMBERED = 16  # sources and noises, of latent size
FIRSTS = 128  # predictions of a net's first call, of latent size each
VARIANTS = 4  # sets of LoRAs and the like, whose memories are kept


@dataclass(frozen=True)
class Model:
    """A resident checkpoint with what is derived from it once.

    ``net`` denoises: a UNet, or a transformer. ``stage(part)`` is entered while a part computes, and sees
    to it that the part is on the device. ``digest`` gives the weights' hash, which may take seconds at first.
    """

    name: str
    digest: Callable[[], str]
    signature: tuple[tuple[str, int, int], ...]
    scheduler_config: Mapping[str, Any]
    net: Any
    vae: Any
    encoder: TextEncoder
    preview: LatentPreview | FittedLater
    family: Family
    stage: Callable[[Stage], AbstractContextManager[Any]] = lambda _: nullcontext()
    encoded: Memo[bytes, Any] = field(default_factory=lambda: Memo(REMEMBERED))  # by pixels
    noises: NoiseMemo = field(default_factory=lambda: Memo(REMEMBERED))
    firsts: Memo[tuple[GenerationRequest, ...], list[Any]] = field(default_factory=lambda: Memo(FIRSTS))
    variants: Memo[Hashable, Model] = field(default_factory=lambda: Memo(VARIANTS))  # by what is added
    described: tuple[Any, Any] | None = None  # what a picture beside the prompt says, and what none does

    @property
    def sha256(self) -> str:
        """Of the weights, hexadecimal."""
        return self.digest()

    def apart(self, **changes: Any) -> Model:
        """A variant of it, with memories of its own: what it computes must not be taken for the others'."""
        own: dict[str, Any] = {
            "encoder": changes.get("encoder") or self.encoder.apart(),
            "encoded": self.encoded.empty(),
            "firsts": self.firsts.empty(),
        }
        return replace(self, **(own | {"variants": self.variants.empty()} | changes))
