"""Families that run as diffusers has them (:mod:`webui.catalogue.auto`)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from webui.catalogue.auto import AUTO
from webui.diffusion.families.family import Assembled, Family
from webui.diffusion.memo import Memo
from webui.diffusion.prompts import Encoder
from webui.diffusion.towers import Towers
from webui.request import Task

READ = 16  # prompts whose embeddings are remembered
TITLES: Mapping[Task, str] = {"txt2img": "", "img2img": "Img2Img", "inpaint": "Inpaint"}


class Reader(Towers):
    """What reads prompts inside a pipeline: its parts but for net and VAE, and what they made of the latest.

    It has no towers that embeddings could be asked of. ``room``: places for tokens; what is beyond, the
    pipeline would cut off.
    """

    def __init__(self, parts: Mapping[str, Any], guided: bool, room: int) -> None:
        super().__init__((), lambda texts: texts[0], guided=guided)
        self.parts = parts
        self.room = room
        self.read: Memo[str, Any] = Memo(READ)

    @property
    def text_encoder(self) -> Any:
        return self.parts["text_encoder"]

    def count_tokens(self, text: str, steps: int = 20, compose: bool = True) -> tuple[int, int]:
        return len(self.parts["tokenizer"](text).input_ids), self.room

    def _of(self, towers: Sequence[Encoder]) -> Reader:
        return self


class Auto(Family):
    """One of them."""

    def kind(self, task: Task) -> type[Any]:
        """diffusers' pipeline for a task of the family's."""
        import diffusers

        kind: type[Any] = getattr(diffusers, f"{AUTO[self.name].pipeline}{TITLES[task]}Pipeline")
        return kind

    def assemble(self, parts: Mapping[str, Any]) -> Assembled:
        others = {name: part for name, part in parts.items() if name not in (self.facts.net, "vae")}
        return parts[self.facts.net], parts["vae"], Reader(others, self.guided, self._room())

    def _room(self) -> int:
        known = inspect.signature(self.kind("txt2img").__call__).parameters
        return AUTO[self.name].room or int(known["max_sequence_length"].default)

    def told_scale(self, scale: float, known: Mapping[str, Any]) -> dict[str, float]:
        """A CFG scale as the pipeline, whose call knows these arguments, has it. 1 is without guidance."""
        if AUTO[self.name].from_zero:
            scale = max(0.0, scale - 1)
        return {"true_cfg_scale" if self.guided and "true_cfg_scale" in known else "guidance_scale": scale}


FAMILIES = {name: Auto(name) for name in AUTO}
