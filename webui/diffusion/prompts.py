"""Prompts -> embeddings, with CLIP text encoders; :mod:`webui.diffusion.towers` has the others.

A text of any length is cut into chunks of as many tokens as the encoder has positions, less two for the
start and end marks (75 for real models); each chunk is encoded alone and the results are joined along the
sequence. A text that fits one chunk gives what diffusers' ``encode_prompt`` gives, bit for bit.

:mod:`webui.prompt_syntax` reads the syntax; what holds at which step is decided once, in :func:`encode`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

import torch

from webui.catalogue.found import Found
from webui.diffusion.inversion import NO_WORDS, Vocabulary, vocabularies
from webui.diffusion.memo import Memo
from webui.prompt_syntax import MAX_WEIGHT, Blocks, Segment, check, parse
from webui.request import GenerationRequest, invalid

MAX_CHUNKS = 1000  # embedded for one pass, padding included: 236 MB of Stable Diffusion 1.x in float32
CLIP_CHUNK = 75  # tokens; a larger chunk counts as several
CACHED_CHUNKS = 256
COMMA_BACK_OFF = 20 / 75  # of a chunk: how far back A1111 looks for a comma to break after
_TOO_LONG = f"too long, or changes too often for its length: more than {MAX_CHUNKS} chunks of tokens in all"


@dataclass(frozen=True)
class Chunk:
    """At most one chunk of token ids, start, end and padding left out, and the weight of each."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


Split: TypeAlias = tuple[tuple[Chunk, ...], ...]  # of a text, for each tower of an encoder


class Text(NamedTuple):
    """What a net is told of a text: embeddings (B, L, D), and of some families a summary (B, P) of it."""

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None

    @classmethod
    def stacked(cls, texts: Sequence[Text]) -> Text:
        """One batch of all."""
        pooled = [text.pooled for text in texts if text.pooled is not None]
        return cls(torch.cat([text.tokens for text in texts]), torch.cat(pooled) if pooled else None)

    def expanded(self, batch: int) -> Text:
        """For so many pictures."""
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        return Text(self.tokens.expand(batch, -1, -1), pooled)

    def to(self, device: torch.device, dtype: torch.dtype) -> Text:
        return self._each(lambda part: part.to(device, dtype))

    @property
    def zeroed(self) -> Text:
        """The same number of nothing."""
        return self._each(torch.zeros_like)

    def _each(self, do: Callable[[torch.Tensor], torch.Tensor]) -> Text:
        return Text(do(self.tokens), None if self.pooled is None else do(self.pooled))


@dataclass(frozen=True, eq=False)
class Step:
    """What the net is told at one step, and the weight of each composed part."""

    negative: Text
    positives: tuple[tuple[Text, float], ...]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """One :class:`Step` per step of a pass. All embeddings have one length L; equal ones are one tensor."""

    steps: tuple[Step, ...]

    def at(self, step: int) -> Step:
        """``step`` counts from 0, in steps as a person does, not in calls of the net."""
        return self.steps[step]

    @property
    def plain(self) -> bool:
        """One prompt of weight 1 that never changes: what a bare pipeline can take."""
        first = self.steps[0]
        return all(step is first for step in self.steps) and [w for _, w in first.positives] == [1.0]


class TextEncoder(Protocol):
    """What a family makes embeddings with: one or several towers, each a tokenizer with its network."""

    guided: bool  # False: the net takes no negative prompt
    zeroes: bool  # an empty negative prompt is all zeros, and not what the towers make of no words

    @property
    def towers(self) -> Sequence[Encoder]: ...

    @property
    def counted(self) -> Encoder:
        """The tower whose chunks are shown to a person."""
        ...

    @property
    def text_encoder(self) -> Any:
        """The first tower's."""
        ...

    def count_tokens(self, text: str, steps: int = 20, compose: bool = True) -> tuple[int, int]:
        """See :meth:`Encoder.count_tokens`; of the ``counted`` tower."""
        ...

    def joined(self, texts: Sequence[Text]) -> Text:
        """Of what each tower made of a text."""
        ...

    def apart(self) -> TextEncoder:
        """Another round the same parts, with memories of its own."""
        ...

    def learning(self, embeddings: Sequence[Found]) -> TextEncoder:
        """Another that knows the words of these files, with memories of its own."""
        ...


class Encoder:
    """A model's tokenizer and CLIP text encoder, with the latest chunks it has encoded.

    ``layer``: the one, counted from the end, that the net was trained on. If that is the last, its output
    and that of any layer before it pass the encoder's final norm; else nothing does.
    """

    guided = True
    zeroes = False
    remembers = CACHED_CHUNKS

    def __init__(self, tokenizer: Any, text_encoder: Any, layer: int = 1) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.layer = layer
        self.vocabulary = NO_WORDS
        self.chunk_size = self._positions() - 2
        self.memo: Memo[tuple[Chunk, int], Text] = Memo(self.remembers)

    def _positions(self) -> int:
        return int(min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings))

    @property
    def towers(self) -> tuple[Encoder, ...]:
        return (self,)

    @property
    def counted(self) -> Encoder:
        return self

    def joined(self, texts: Sequence[Text]) -> Text:
        """The embeddings alone: these nets take no summary."""
        return Text(texts[0].tokens)

    def apart(self) -> Self:
        """Another round the same parts, with a memory of its own."""
        other = copy.copy(self)
        other.memo = self.memo.empty()
        return other

    def taught(self, vocabulary: Vocabulary) -> Self:
        """Another that knows more words."""
        other = self.apart()
        other.vocabulary = vocabulary
        return other

    def learning(self, embeddings: Sequence[Found]) -> Self:
        return self.taught(*vocabularies(embeddings, [self.text_encoder]))

    def chunks(self, words: Blocks) -> tuple[Chunk, ...]:
        """Tokenise and cut into chunks of at most ``chunk_size`` tokens; at least one chunk, maybe empty.

        A block begins a chunk. As in A1111 a full chunk ends after its last comma if that is within
        :data:`COMMA_BACK_OFF` of its end, and an empty block is an empty chunk, unless it is the last.
        """
        comma = self.tokenizer(",", add_special_tokens=False).input_ids[0]
        chunks = [chunk for block in words for chunk in cut(self._tokens(block), self.chunk_size, comma)]
        if len(chunks) > 1 and not chunks[-1].ids:
            chunks.pop()
        return tuple(chunks)

    def count_tokens(self, text: str, steps: int = 20, compose: bool = True) -> tuple[int, int]:
        """(places taken, places in the chunks used) of the longest form the text takes in ``steps`` steps.

        Such as (12, 75) or (80, 150). What a break or a comma leaves empty in a chunk counts as taken.
        ``compose``: False for a negative prompt. Any thread may ask, also while another one encodes.
        """
        forms = dict.fromkeys(chain.from_iterable(part.over(steps) for part in parse(text, compose)))
        splits = (self.chunks(words) for words in forms)
        return max(
            ((len(split) - 1) * self.chunk_size + len(split[-1].ids), len(split) * self.chunk_size)
            for split in splits
        )

    def encode(self, text: Sequence[Chunk], clip_skip: int = 1, length: int = 1) -> Text:
        """Embeddings (1, L, D) of a text's chunks, padded with empty ones to ``length`` of them.

        L is (chunk_size + 2) times the number of chunks; device and dtype are the text encoder's. The
        summary is that of the first chunk. ``clip_skip`` is A1111's: 1 is the last layer the encoder has.
        (Stable Diffusion 2 comes with its very last one removed, so 1 is right there too.) Where the net
        was trained on the layer before the last, 1 and 2 both mean that one.

        Raises:
            InvalidField: the encoder has no such layer.
        """
        layers = self.text_encoder.config.num_hidden_layers
        if not 1 <= clip_skip <= layers:
            raise invalid(
                "clip_skip", f"must be 1 to {layers} for this model: its text encoder has {layers} layers"
            )
        padded = [self._chunk(chunk, clip_skip) for chunk in self._padded(text, length)]
        return Text(torch.cat([chunk.tokens for chunk in padded], dim=1), padded[0].pooled)

    def knows(self, text: Sequence[Chunk], clip_skip: int, length: int) -> bool:
        """Whether encoding it would compute nothing."""
        return all((chunk, clip_skip) in self.memo for chunk in self._padded(text, length))

    def _padded(self, text: Sequence[Chunk], length: int) -> tuple[Chunk, ...]:
        return (*text, *[Chunk()] * (length - len(text)))

    def _tokens(self, block: Sequence[Segment]) -> list[tuple[int, float]]:
        """(id, weight) of each token. Segments are tokenised apart, so that a weight never cuts a token."""
        if not block:
            return []
        pieces = [(*piece, weight) for text, weight in block for piece in self.vocabulary.split(text)]
        texts = [text for text, _, _ in pieces]
        rows = self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        return [(id, weight) for row, (_, own, weight) in zip(rows, pieces, strict=True) for id in own or row]

    def _chunk(self, chunk: Chunk, clip_skip: int) -> Text:
        return self.memo((chunk, clip_skip), lambda: self._weighted(chunk, clip_skip))

    def _weighted(self, chunk: Chunk, clip_skip: int) -> Text:
        """(1, chunk_size + 2, D), each token's embedding weighted; the summary is of the plain text."""
        embeds, pooled = self._embed(chunk.ids, clip_skip)
        if all(weight == 1 for weight in chunk.weights):
            return Text(embeds, pooled)
        weights = torch.ones(embeds.shape[1], device=embeds.device)
        first = self._first
        weights[first : len(chunk.weights) + first] = torch.tensor(chunk.weights)
        return Text(self._weigh(embeds.float(), weights[:, None]).to(embeds.dtype), pooled)

    _first = 1  # place of a text's first token; before it is the start mark

    def _weigh(self, plain: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Each token's embedding times its weight, then the chunk's mean restored.

        This is what A1111 calls 'Original'. Where weighting takes the mean to the other sign or so near
        zero that restoring it would drown the text, it is left (A1111 divides all the same).
        """
        weighted = plain * weights
        scale = plain.mean() / weighted.mean()
        return weighted * scale if 0 < scale < MAX_WEIGHT else weighted

    def _spoken(self, row: Sequence[int]) -> AbstractContextManager[torch.Tensor]:
        """The ids to give to the encoder (1, L), while it knows the words of the vocabulary."""
        ids = torch.tensor([row], device=self.text_encoder.device)
        return self.vocabulary.spoken(self.text_encoder.get_input_embeddings(), ids)

    @torch.no_grad()
    def _embed(self, ids: Sequence[int], clip_skip: int) -> Text:
        """(1, chunk_size + 2, D) and (1, P) of plain token ids; one call of the text encoder.

        diffusers' own ``clip_skip`` fails on Stable Diffusion 1.x: transformers 5.6 took away the
        ``text_model`` that it looks in for the final layer norm (huggingface/diffusers#14124).
        """
        tokenizer = self.tokenizer
        row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        row += [tokenizer.pad_token_id] * (self.chunk_size + 2 - len(row))
        with self._spoken(row) as spoken:
            output = self.text_encoder(spoken, output_hidden_states=True)
        embeds = output.hidden_states[-max(clip_skip, self.layer)]
        if self.layer == 1:
            body = getattr(self.text_encoder, "text_model", self.text_encoder)
            embeds = body.final_layer_norm(embeds)
        projected = "text_embeds" in output  # where the encoder has a projection, the summary is projected
        return Text(embeds, output.text_embeds if projected else output.pooler_output)


def encode(
    encoder: TextEncoder,
    prompt: str,
    negative_prompt: str,
    clip_skip: int,
    steps: int,
    steps_before: int = 0,
    stage: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Conditioning:
    """Everything the denoiser needs of the texts for a pass of ``steps`` steps, encoded now.

    Args:
        steps_before: the steps of the first pass, when this is the second one; else 0.
        stage: is entered while the encoder computes, if it has to.

    Raises:
        InvalidField: a prompt holds what :func:`webui.prompt_syntax.check` refuses, or needs more than
            :data:`MAX_CHUNKS`; or ``clip_skip`` is more than the encoder's layers.
    """
    check(prompt, "prompt")
    check(negative_prompt, "negative_prompt")
    parts = parse(prompt)
    texts = (*parse(negative_prompt if encoder.guided else "", compose=False), *parts)
    rows = list(zip(*(text.over(steps, steps_before) for text in texts), strict=True))  # [step][text]
    splits, lengths = _splits(encoder, rows)
    known = all(_known(encoder, split, clip_skip, lengths) for split in splits.values())
    with nullcontext() if known else stage():
        embeds = {text: _embedded(encoder, split, clip_skip, lengths) for text, split in splits.items()}
    blank = encoder.zeroes and not negative_prompt

    def step(negative: Blocks, *positives: Blocks) -> Step:
        weighted = zip(positives, (part.weight for part in parts), strict=True)
        against = embeds[negative].zeroed if blank else embeds[negative]
        return Step(against, tuple((embeds[text], weight) for text, weight in weighted))

    by_row = {row: step(*row) for row in dict.fromkeys(rows)}
    return Conditioning(tuple(by_row[row] for row in rows))


def encode_all(
    encoder: TextEncoder,
    pictures: Sequence[GenerationRequest],
    steps: int,
    steps_before: int = 0,
    stage: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Conditioning:
    """What the denoiser needs for a batch: one :class:`Conditioning`, whose texts are of one row where
    all pictures have the same prompts, else of B rows.

    Raises:
        InvalidField: as :func:`encode`.
    """
    texts = [(picture.prompt, picture.negative_prompt) for picture in pictures]
    clip_skip = pictures[0].clip_skip
    known = {
        pair: encode(encoder, *pair, clip_skip, steps, steps_before, stage) for pair in dict.fromkeys(texts)
    }
    if len(known) == 1:
        return known[texts[0]]

    def stacked(*of_each: Step) -> Step:
        positives = zip(*(step.positives for step in of_each), strict=True)
        return Step(
            Text.stacked([step.negative for step in of_each]),
            tuple((Text.stacked([text for text, _ in part]), part[0][1]) for part in positives),
        )

    rows = list(zip(*(known[pair].steps for pair in texts), strict=True))
    distinct = {tuple(map(id, row)): row for row in rows}
    steps_of = {key: stacked(*row) for key, row in distinct.items()}
    return Conditioning(tuple(steps_of[tuple(map(id, row))] for row in rows))


def form(encoder: TextEncoder, request: GenerationRequest) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(chunks of tokens for each tower, weights of the composed parts): what prompts of one batch share."""
    weights = tuple(part.weight for part in parse(request.prompt))
    return tuple(_chunks(tower, request) for tower in encoder.towers), weights


def _chunks(tower: Encoder, request: GenerationRequest) -> int:
    _, positive = tower.count_tokens(request.prompt, request.num_inference_steps)
    _, negative = tower.count_tokens(request.negative_prompt, request.num_inference_steps, compose=False)
    return max(positive, negative) // tower.chunk_size


def _splits(
    encoder: TextEncoder, rows: Sequence[tuple[Blocks, ...]]
) -> tuple[Mapping[Blocks, Split], Sequence[int]]:
    """Each distinct text in ``rows`` cut for each tower; and how many chunks each tower is to encode.

    ``rows`` hold the negative prompt and the parts per step. Towers with chunks of one size, whose
    embeddings are put side by side, get as many.
    """
    towers = encoder.towers
    splits: dict[Blocks, Split] = {}
    longest = dict.fromkeys((tower.chunk_size for tower in towers), 0)
    for row in dict.fromkeys(rows):
        for i, text in enumerate(row):
            splits[text] = splits.get(text) or tuple(tower.chunks(text) for tower in towers)
            for tower, chunks in zip(towers, splits[text], strict=True):
                longest[tower.chunk_size] = max(longest[tower.chunk_size], len(chunks))
            at_once = sum(count * max(1, size // CLIP_CHUNK) for size, count in longest.items())
            if at_once * len(splits) > MAX_CHUNKS:
                raise invalid("prompt" if i else "negative_prompt", _TOO_LONG)
    return splits, [longest[tower.chunk_size] for tower in towers]


def _known(encoder: TextEncoder, split: Split, clip_skip: int, lengths: Sequence[int]) -> bool:
    towers = zip(encoder.towers, split, lengths, strict=True)
    return all(tower.knows(chunks, clip_skip, length) for tower, chunks, length in towers)


def _embedded(encoder: TextEncoder, split: Split, clip_skip: int, lengths: Sequence[int]) -> Text:
    towers = zip(encoder.towers, split, lengths, strict=True)
    return encoder.joined([tower.encode(chunks, clip_skip, length) for tower, chunks, length in towers])


def cut(tokens: Sequence[tuple[int, float]], size: int, comma: int) -> Iterator[Chunk]:
    """Chunks of at most ``size`` tokens, broken after a near ``comma`` (-1: wherever they are full)."""
    start = 0
    while len(tokens) - start > size:
        end = start + size
        if tokens[end][0] != comma:
            reach = range(end, end - int(size * COMMA_BACK_OFF), -1)
            end = next((i for i in reach if tokens[i - 1][0] == comma), end)
        yield _chunk(tokens[start:end])
        start = end
    yield _chunk(tokens[start:])


def _chunk(tokens: Sequence[tuple[int, float]]) -> Chunk:
    return Chunk(tuple(token for token, _ in tokens), tuple(weight for _, weight in tokens))
