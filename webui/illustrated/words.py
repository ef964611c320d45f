"""Whom each place looks at: cross-attention by word.

It says where the net looked, and not why the picture is as it is: attention is no proof of a cause.
The marks of start and end are no words. What they and the padding get is the rest, which is most of it in
nets of CLIP: their marks hold a summary of the whole prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from webui.flight import FlightRecord, Floats
from webui.illustrated.checks import Check, apart, ratio

MARKS = {"<|startoftext|>", "<|endoftext|>", "<s>", "</s>", "<pad>"}
WORD_END = "</w>"  # of CLIP's tokens
WORD_START = "▁"  # of SentencePiece's, which T5 has
COMPARED = 75  # words, as many as the tokens of a chunk
TOLERANCE = 1e-4  # attention may be of half precision


@dataclass(frozen=True)
class Word:
    """``tokens``: which ones of the record's it is made of, in their order."""

    text: str
    tokens: tuple[int, ...]


def words(record: FlightRecord) -> list[Word]:
    """The words of the prompt in their order, also where there is no attention; one said twice is two."""
    starting = any(token.startswith(WORD_START) for token in record.tokens)
    spoken = _written if starting else _decoded
    return [
        Word(spoken("".join(record.tokens[n] for n in group)), tuple(group))
        for group in _groups(record.tokens, starting)
    ]


def maps(record: FlightRecord) -> Floats | None:
    """(W, K, gh, gw): the share that each place pays each word at each call; None without attention."""
    if record.attention is None:
        return None
    calls, _, *places = record.attention.shape
    sums = [record.attention[:, list(word.tokens)].sum(axis=1) for word in words(record)]
    return np.stack(sums) if sums else np.zeros((0, calls, *places), np.float32)


def shares(record: FlightRecord) -> Floats | None:
    """(W, K): the mean of :func:`maps` over the places."""
    of_words = maps(record)
    return None if of_words is None else np.asarray(of_words.mean(axis=(2, 3)))


def rest(record: FlightRecord) -> Floats | None:
    """(K,): what goes to start, end and padding, the mean over the places."""
    others = _rest(record)
    return None if others is None else np.asarray(others.mean(axis=(1, 2)))


def overlap(record: FlightRecord) -> Floats | None:
    """(V, V): the cosine of the words' maps, each the mean over the calls; 1 is the same places, 0 none.

    Of the first ``COMPARED`` words: nobody reads a larger table.
    """
    of_words = maps(record)
    if of_words is None:
        return None
    of_words = of_words[:COMPARED]
    means = of_words.mean(axis=1).astype(float)
    flat = means.reshape(len(means), means[0].size if len(means) else 0)
    lengths = np.linalg.norm(flat, axis=1)
    return ratio(flat @ flat.T, np.outer(lengths, lengths)).astype(np.float32)


def at(record: FlightRecord, call: int, row: int, column: int) -> Floats | None:
    """(W + 1,): how one place shares its attention out at one call; last is the rest. They sum to 1."""
    of_words, others = maps(record), _rest(record)
    if of_words is None or others is None:
        return None
    return np.append(of_words[:, call, row, column], others[call, row, column])


def checks(record: FlightRecord) -> list[Check]:
    """None without attention. A word that nothing looks at overlaps with nothing."""
    of_words, others, same = maps(record), _rest(record), overlap(record)
    if of_words is None or others is None or same is None:
        return []
    sums = of_words.sum(axis=0) + others
    seen = of_words[:COMPARED].any(axis=(1, 2, 3))
    itself = np.diagonal(same)[seen]
    return [
        Check("words + start, end and padding = 1 at every place", apart(sums, np.ones(1)), TOLERANCE),
        Check("overlap of a word with itself = 1", apart(itself, np.ones_like(itself)), TOLERANCE),
    ]


def _rest(record: FlightRecord) -> Floats | None:
    """(K, gh, gw)."""
    if record.attention is None:
        return None
    of_words = {n for word in words(record) for n in word.tokens}
    marks = [n for n in range(len(record.tokens)) if n not in of_words]
    others = record.attention[:, marks].sum(axis=1)
    return others if record.padding is None else np.asarray(others + record.padding)


def _groups(tokens: tuple[str, ...], starting: bool) -> Iterator[list[int]]:
    """The tokens of each word; ``starting``: the start of a word is marked, and not its end.

    One that a mark cuts off is a word all the same.
    """
    group: list[int] = []
    for n, token in enumerate(tokens):
        begins = token in MARKS or (starting and token.startswith(WORD_START))
        if begins and group:
            yield group
            group = []
        if token not in MARKS and token != WORD_START:
            group.append(n)
        if group and not starting and token.endswith(WORD_END):
            yield group
            group = []
    if group:
        yield group


def _written(pieces: str) -> str:
    """SentencePiece's pieces of one word, as a person wrote it."""
    return pieces.removeprefix(WORD_START)


def _decoded(pieces: str) -> str:
    """CLIP's of one word: its characters stand for the bytes of what a person wrote."""
    text = pieces.removesuffix(WORD_END)
    known = [_BYTES.get(character) for character in text]
    if None in known:  # a word of an embedding's, which is no part of the vocabulary
        return text
    return bytes(byte for byte in known if byte is not None).decode(errors="replace")


def _byte_characters() -> dict[str, int]:
    """Characters that stand for bytes in CLIP's vocabulary (as in GPT-2's, Radford et al. 2019): visible ones
    of Latin-1 for themselves, and for the other bytes, in their order, those from U+0100 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_characters()
