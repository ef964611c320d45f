"""What a UNet pays each token of its prompt, reckoned beside it from its own queries and keys.

T tokens, L places of the embeddings, N rows of a call of the net, gh x gw places of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from webui import prompt_syntax
from webui.diffusion.denoiser import NetCall
from webui.diffusion.prompts import Encoder

PLACES = 32 * 32  # of a layer that is watched, at most


@dataclass(frozen=True)
class Words:
    """The tokens of a prompt as its first tower is given them, start and end marks among them.

    ``places``: where each is in the embeddings; ``rows`` x ``length`` places have been tokenised.
    """

    texts: tuple[str, ...]
    places: tuple[int, ...]
    rows: int
    length: int

    @classmethod
    def of(cls, tower: Encoder, prompt: str, steps: int) -> Words:
        """Of the prompt's first part at the first step."""
        chunks = tower.chunks(next(iter(prompt_syntax.parse(prompt)[0].over(steps))))
        tokenizer, length = tower.tokenizer, tower.chunk_size + 2
        texts: list[str] = []
        places: list[int] = []
        for n, chunk in enumerate(chunks):
            row = [tokenizer.bos_token_id, *chunk.ids, tokenizer.eos_token_id]
            texts += [_text(tower, token) for token in row]
            places += range(n * length, n * length + len(row))
        return cls(tuple(texts), tuple(places), len(chunks), length)


def _text(tower: Encoder, token: int) -> str:
    """As the tokenizer writes it; a word that a file has taught is itself."""
    taught = (f"{word}</w>" for word, ids in tower.vocabulary.ids.items() if token in ids)
    return next(taught, None) or str(tower.tokenizer.convert_ids_to_tokens(token))


class Attention:
    """What one call of a UNet pays each token, reckoned beside it.

    Args:
        cells: (h, w) of the latents: a layer has as many places as these, or as a power of two less each way.
        words: the tokens to tell apart; all others are one.
        call: of its rows, that of the first picture's prompt is looked at.
        within: is entered while this reckons.
    """

    def __init__(
        self,
        cells: tuple[int, int],
        words: Words,
        call: NetCall,
        within: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.words = words
        self.rows, self.length = call.text.tokens.shape[:2]
        self.row = call.prompt
        self._others = sorted(set(range(self.length)).difference(words.places))
        self.within = within
        self.odd = False  # a layer did something else than look at the prompt
        halved = [tuple(math.ceil(side / 2**n) for side in cells) for n in range(8)]
        self.grids = {height * width: (height, width) for height, width in reversed(halved)}
        self._sums: dict[tuple[int, int], torch.Tensor] = {}
        self._layers = 0
        self._half: dict[nn.Module, dict[str, torch.Tensor]] = {}

    @contextmanager
    def watching(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """While the net is called; leaves no hook behind."""
        with ExitStack() as hooks:
            for layer in layers:
                for part in ("to_q", "to_k"):
                    hook = getattr(layer, part).register_forward_hook(partial(self._saw, layer, part))
                    hooks.callback(hook.remove)
            yield
        self.odd |= bool(self._half)

    def _saw(self, layer: nn.Module, part: str, _: nn.Module, __: object, output: torch.Tensor) -> None:
        with self.within():
            half = self._half.setdefault(layer, {})
            half[part] = output
            if len(half) == 2:
                del self._half[layer]
                self._add(layer, half["to_q"], half["to_k"])

    def _add(self, layer: Any, query: torch.Tensor, key: torch.Tensor) -> None:
        """``query`` (N, places, D) and ``key`` (N, L, D) of one layer."""
        places = query.shape[1]
        if places > PLACES:
            return
        known = query.shape[0] == self.rows and key.shape[:2] == (self.rows, self.length)
        if not known or places not in self.grids or layer.norm_q is not None or layer.norm_k is not None:
            self.odd = True
            return
        shares = attended(query[self.row], key[self.row], layer.heads)
        rest = shares[:, self._others].sum(dim=1, keepdim=True)
        grid = self.grids[places]
        told = torch.cat([shares[:, list(self.words.places)], rest], dim=1).T.view(-1, *grid)
        self._sums[grid] = self._sums[grid] + told if grid in self._sums else told
        self._layers += 1

    @property
    def shares(self) -> NDArray[np.float32] | None:
        """(T + 1, gh, gw): of each token, and lastly of all else, the mean over the layers; None of odd ones.

        On the finest grid that a layer has; bilinear weights sum to 1, so that shares still do.
        """
        if self.odd or not self._sums:
            return None
        finest = max(self._sums, key=math.prod)
        each = (
            functional.interpolate(total[None], size=finest, mode="bilinear")[0]
            for total in self._sums.values()
        )
        return copied(sum(each, torch.zeros(())) / self._layers)


def attended(query: torch.Tensor, key: torch.Tensor, heads: int) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)), the mean over heads: (places, L) of ``query`` (places, D), ``key`` (L, D)."""
    q, k = (each.float().view(len(each), heads, -1).transpose(0, 1) for each in (query, key))
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1).mean(dim=0)


def copied(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.to("cpu", torch.float32, copy=True).numpy()
    return array
