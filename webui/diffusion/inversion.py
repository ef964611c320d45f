"""Textual inversion: words that files give vectors of their own (Gal et al. 2022, arXiv:2208.01618).

No weight is touched: a word's tokens have ids beyond the vocabulary, and where a text encoder looks up what
those ids mean it is given the file's vectors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from webui.catalogue.found import Found
from webui.prompt_syntax import whole_word
from webui.request import invalid


class Vocabulary:
    """The words of one text encoder.

    Args:
        first: the first id that the encoder's own vocabulary does not use.
        words: word -> its vectors (n, D).
    """

    def __init__(self, first: int, words: Mapping[str, torch.Tensor]) -> None:
        self.first = first
        self.vectors = torch.cat(list(words.values())) if words else torch.empty(0, 0)
        self.ids: dict[str, range] = {}
        for word, vectors in words.items():
            self.ids[word.casefold()] = range(first, first + len(vectors))
            first += len(vectors)
        longest = sorted(words, key=len, reverse=True)
        self._word = re.compile("|".join(map(whole_word, longest)), re.IGNORECASE) if words else None

    def split(self, text: str) -> Iterator[tuple[str, Sequence[int]]]:
        """(words, ()) of each stretch of ordinary words, (word, its ids) of each of ours, in order."""
        end = 0
        for match in self._word.finditer(text) if self._word else ():
            yield text[end : match.start()], ()
            yield match[0], self.ids[match[0].casefold()]
            end = match.end()
        yield text[end:], ()

    @contextmanager
    def spoken(self, layer: nn.Module, ids: torch.Tensor) -> Iterator[torch.Tensor]:
        """While ``layer`` looks up the ids (1, L) that this yields, our vectors stand in their places."""
        ours = ids >= self.first
        if not self.ids or not ours.any():
            yield ids
            return
        vectors = self.vectors[(ids[ours] - self.first).cpu()]

        def put_in(_: nn.Module, __: object, embeds: torch.Tensor) -> torch.Tensor:
            return embeds.masked_scatter(ours[..., None], vectors.to(embeds))

        hook = layer.register_forward_hook(put_in)
        try:
            yield ids.masked_fill(ours, 0)
        finally:
            hook.remove()


NO_WORDS = Vocabulary(0, {})


def vocabularies(embeddings: Sequence[Found], encoders: Sequence[nn.Module]) -> list[Vocabulary]:
    """For each of a model's text encoders, which take the vectors that are as wide as their own.

    Raises:
        InvalidField: a file cannot be read, or has vectors for none of the encoders.
    """
    layers = [encoder.get_input_embeddings() for encoder in encoders]  # type: ignore[operator]
    words: list[dict[str, torch.Tensor]] = [{} for _ in layers]
    for found in embeddings:
        tensors = _read(found)
        for layer, own in zip(layers, words, strict=True):
            if (fitting := tensors.get(layer.weight.shape[1])) is not None:
                own[found.name] = fitting
        if not any(found.name in own for own in words):
            widths = " and ".join(str(layer.weight.shape[1]) for layer in layers)
            raise invalid(
                "prompt",
                f"the embedding {found.name} does not fit this model: its vectors are "
                f"{' and '.join(map(str, tensors))} numbers wide, and the model's {widths}",
            )
    return [Vocabulary(len(layer.weight), own) for layer, own in zip(layers, words, strict=True)]


def _read(found: Found) -> dict[int, torch.Tensor]:
    """Width -> vectors (n, width) of a file."""
    try:
        tensors = load_file(found.path)
    except (OSError, SafetensorError) as error:
        raise invalid(
            "prompt", f"the embedding {found.name} cannot be read: it is damaged or gone"
        ) from error
    vectors = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors.values() if tensor.ndim in (1, 2)]
    return {each.shape[1]: each for each in vectors}
