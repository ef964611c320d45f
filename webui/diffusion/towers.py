"""Text encoders of several towers: a prompt goes to each, and what they say is put together.

Stable Diffusion XL and 3 have two CLIPs, Stable Diffusion 3 and Flux a T5; how the parts are joined is the
family's (:mod:`webui.diffusion.families`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from webui.catalogue.found import Found
from webui.diffusion.inversion import vocabularies
from webui.diffusion.prompts import Chunk, Encoder, Text, cut
from webui.prompt_syntax import Blocks


class T5(Encoder):
    """A T5 encoder. ``size``: places of a chunk, the end mark included; what is left is padded, and seen."""

    remembers = 16  # 8 MB each of Flux in float32

    def __init__(self, tokenizer: Any, text_encoder: Any, size: int) -> None:
        self._size = size
        super().__init__(tokenizer, text_encoder)
        self.chunk_size = size - 1

    _first = 0

    def _positions(self) -> int:
        return self._size

    def chunks(self, words: Blocks) -> tuple[Chunk, ...]:
        """Of the whole text: a break means nothing to T5, whose chunks are long enough for most prompts."""
        block = tuple(segment for block in words for segment in block)
        if len(block) > 1:  # each would get a blank of its own besides the one T5 begins with
            block = tuple(segment._replace(text=segment.text.strip()) for segment in block)
        return tuple(cut(self._tokens(block), self.chunk_size, comma=-1))

    def encode(self, text: Sequence[Chunk], clip_skip: int = 1, length: int = 1) -> Text:
        """(1, L, D) of a text's chunks; ``clip_skip`` means CLIPs."""
        return super().encode(text, 1, length)

    def knows(self, text: Sequence[Chunk], clip_skip: int, length: int) -> bool:
        return super().knows(text, 1, length)

    def _weigh(self, plain: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Each token's embedding times its weight. T5's have a mean near 0: restoring it would be noise."""
        return plain * weights

    @torch.no_grad()
    def _embed(self, ids: Sequence[int], clip_skip: int) -> Text:
        row = [*ids, self.tokenizer.eos_token_id]
        row += [self.tokenizer.pad_token_id] * (self._size - len(row))
        with self._spoken(row) as spoken:
            return Text(self.text_encoder(spoken)[0])


class Towers:
    """A :class:`webui.diffusion.prompts.TextEncoder` of several.

    Args:
        join: what each tower made of a text -> what the net is told.
        counted: which tower's chunks are shown to a person.
        guided, zeroes: see :class:`webui.diffusion.prompts.TextEncoder`.
    """

    def __init__(
        self,
        towers: Sequence[Encoder],
        join: Callable[[Sequence[Text]], Text],
        counted: int = 0,
        guided: bool = True,
        zeroes: bool = False,
    ) -> None:
        self.towers = tuple(towers)
        self.join = join
        self.guided = guided
        self.zeroes = zeroes
        self._counted = counted

    @property
    def counted(self) -> Encoder:
        return self.towers[self._counted]

    @property
    def text_encoder(self) -> Any:
        return self.towers[0].text_encoder

    def count_tokens(self, text: str, steps: int = 20, compose: bool = True) -> tuple[int, int]:
        return self.counted.count_tokens(text, steps, compose)

    def joined(self, texts: Sequence[Text]) -> Text:
        return self.join(texts)

    def apart(self) -> Towers:
        return self._of([tower.apart() for tower in self.towers])

    def learning(self, embeddings: Sequence[Found]) -> Towers:
        own = vocabularies(embeddings, [tower.text_encoder for tower in self.towers])
        return self._of([tower.taught(words) for tower, words in zip(self.towers, own, strict=True)])

    def _of(self, towers: Sequence[Encoder]) -> Towers:
        return Towers(towers, self.join, self._counted, self.guided, self.zeroes)
