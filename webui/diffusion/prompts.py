"""Prompts -> embeddings for CLIP text encoders (Stable Diffusion 1.x and 2.x).

A text of any length is cut into chunks of as many tokens as the encoder has positions, less two for the
start and end marks (75 for real models); each chunk is encoded alone and the results are joined along the
sequence. A text that fits one chunk gives what diffusers' ``encode_prompt`` gives, bit for bit.

:mod:`webui.prompt_syntax` reads the syntax; what holds at which step is decided once, in :func:`encode`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from webui.diffusion.memo import Memo
from webui.prompt_syntax import MAX_WEIGHT, Blocks, Segment, check, parse
from webui.request import GenerationRequest, invalid

MAX_CHUNKS = 1000  # embedded for one pass, padding included: 236 MB of Stable Diffusion 1.x in float32
CACHED_CHUNKS = 256
COMMA_BACK_OFF = 20 / 75  # of a chunk: how far back A1111 looks for a comma to break after
_TOO_LONG = f"too long, or changes too often for its length: more than {MAX_CHUNKS} chunks of tokens in all"


@dataclass(frozen=True)
class Chunk:
    """At most one chunk of token ids, start, end and padding left out, and the weight of each."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Step:
    """What the net is told at one step: embeddings (1, L, D), and the weight of each composed part."""

    negative: torch.Tensor
    positives: tuple[tuple[torch.Tensor, float], ...]


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


class Encoder:
    """A model's tokenizer and CLIP text encoder, with the latest chunks it has encoded."""

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        positions = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        self.chunk_size = int(positions) - 2
        self.memo: Memo[tuple[Chunk, int], torch.Tensor] = Memo(CACHED_CHUNKS)

    def apart(self) -> Encoder:
        """Another round the same parts, with a memory of its own."""
        return Encoder(self.tokenizer, self.text_encoder)

    def chunks(self, words: Blocks) -> tuple[Chunk, ...]:
        """Tokenise and cut into chunks of at most ``chunk_size`` tokens; at least one chunk, maybe empty.

        A block begins a chunk. As in A1111 a full chunk ends after its last comma if that is within
        :data:`COMMA_BACK_OFF` of its end, and an empty block is an empty chunk, unless it is the last.
        """
        comma = self.tokenizer(",", add_special_tokens=False).input_ids[0]
        cut = [chunk for block in words for chunk in _cut(self._tokens(block), self.chunk_size, comma)]
        if len(cut) > 1 and not cut[-1].ids:
            cut.pop()
        return tuple(cut)

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

    def encode(self, text: Sequence[Chunk], clip_skip: int = 1, length: int = 1) -> torch.Tensor:
        """Embeddings (1, L, D) of a text's chunks, padded with empty ones to ``length`` of them.

        L is (chunk_size + 2) times the number of chunks; device and dtype are the text encoder's.
        ``clip_skip`` is A1111's: 1 is the last layer the encoder has. (Stable Diffusion 2 comes with its
        very last one removed, so 1 is right there too.)

        Raises:
            InvalidField: the encoder has no such layer.
        """
        layers = self.text_encoder.config.num_hidden_layers
        if not 1 <= clip_skip <= layers:
            raise invalid(
                "clip_skip", f"must be 1 to {layers} for this model: its text encoder has {layers} layers"
            )
        padding = [Chunk()] * (length - len(text))
        return torch.cat([self._chunk(chunk, clip_skip) for chunk in (*text, *padding)], dim=1)

    def _tokens(self, block: Sequence[Segment]) -> list[tuple[int, float]]:
        """(id, weight) of each token. Segments are tokenised apart, so that a weight never cuts a token."""
        if not block:
            return []
        texts = [text for text, _ in block]
        rows = self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        return [(token, weight) for row, (_, weight) in zip(rows, block, strict=True) for token in row]

    def _chunk(self, chunk: Chunk, clip_skip: int) -> torch.Tensor:
        return self.memo((chunk, clip_skip), lambda: self._weighted(chunk, clip_skip))

    def _weighted(self, chunk: Chunk, clip_skip: int) -> torch.Tensor:
        """(1, chunk_size + 2, D): each token's embedding times its weight, then the chunk's mean restored.

        This is what A1111 calls 'Original'. Where weighting takes the mean to the other sign or so near
        zero that restoring it would drown the text, it is left (A1111 divides all the same).
        """
        embeds = self._embed(chunk.ids, clip_skip)
        if all(weight == 1 for weight in chunk.weights):
            return embeds
        weights = torch.ones(embeds.shape[1], device=embeds.device)
        weights[1 : len(chunk.weights) + 1] = torch.tensor(chunk.weights)
        plain = embeds.float()
        weighted = plain * weights[:, None]
        scale = plain.mean() / weighted.mean()
        if 0 < scale < MAX_WEIGHT:
            weighted = weighted * scale
        return weighted.to(embeds.dtype)

    @torch.no_grad()
    def _embed(self, ids: Sequence[int], clip_skip: int) -> torch.Tensor:
        """(1, chunk_size + 2, D) of plain token ids; one call of the text encoder.

        diffusers' own ``clip_skip`` fails on Stable Diffusion 1.x: transformers 5.6 took away the
        ``text_model`` that it looks in for the final layer norm (huggingface/diffusers#14124).
        """
        tokenizer = self.tokenizer
        row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        row += [tokenizer.pad_token_id] * (self.chunk_size + 2 - len(row))
        device = self.text_encoder.device
        output = self.text_encoder(torch.tensor([row], device=device), output_hidden_states=True)
        body = getattr(self.text_encoder, "text_model", self.text_encoder)
        embeds: torch.Tensor = body.final_layer_norm(output.hidden_states[-clip_skip])
        return embeds


def encode(
    encoder: Encoder, prompt: str, negative_prompt: str, clip_skip: int, steps: int, steps_before: int = 0
) -> Conditioning:
    """Everything the denoiser needs of the texts for a pass of ``steps`` steps, encoded now.

    ``steps_before``: the steps of the first pass, when this is the second one; else 0.

    Raises:
        InvalidField: a prompt holds what :func:`webui.prompt_syntax.check` refuses, or needs more than
            :data:`MAX_CHUNKS`; or ``clip_skip`` is more than the encoder's layers.
    """
    check(prompt, "prompt")
    check(negative_prompt, "negative_prompt")
    parts = parse(prompt)
    texts = (*parse(negative_prompt, compose=False), *parts)
    rows = list(zip(*(text.over(steps, steps_before) for text in texts), strict=True))  # [step][text]
    words = _words(encoder, rows)
    length = max(map(len, words.values()))
    embeds = {text: encoder.encode(split, clip_skip, length) for text, split in words.items()}

    def step(negative: Blocks, *positives: Blocks) -> Step:
        weighted = zip(positives, (part.weight for part in parts), strict=True)
        return Step(embeds[negative], tuple((embeds[text], weight) for text, weight in weighted))

    known = {row: step(*row) for row in dict.fromkeys(rows)}
    return Conditioning(tuple(known[row] for row in rows))


def encode_all(
    encoder: Encoder, pictures: Sequence[GenerationRequest], steps: int, steps_before: int = 0
) -> Conditioning:
    """What the denoiser needs for a batch: one :class:`Conditioning`, whose embeddings are (1, L, D) where
    all pictures have the same prompts, else (B, L, D).

    Raises:
        InvalidField: as :func:`encode`.
    """
    texts = [(picture.prompt, picture.negative_prompt) for picture in pictures]
    clip_skip = pictures[0].clip_skip
    known = {pair: encode(encoder, *pair, clip_skip, steps, steps_before) for pair in dict.fromkeys(texts)}
    if len(known) == 1:
        return known[texts[0]]

    def stacked(*of_each: Step) -> Step:
        positives = zip(*(step.positives for step in of_each), strict=True)
        return Step(
            torch.cat([step.negative for step in of_each]),
            tuple((torch.cat([embeds for embeds, _ in part]), part[0][1]) for part in positives),
        )

    rows = list(zip(*(known[pair].steps for pair in texts), strict=True))
    distinct = {tuple(map(id, row)): row for row in rows}
    steps_of = {key: stacked(*row) for key, row in distinct.items()}
    return Conditioning(tuple(steps_of[tuple(map(id, row))] for row in rows))


def form(encoder: Encoder, request: GenerationRequest) -> tuple[int, tuple[float, ...]]:
    """(chunks of tokens, weights of the composed parts): what prompts of one batch must share."""
    _, positive = encoder.count_tokens(request.prompt, request.num_inference_steps)
    _, negative = encoder.count_tokens(request.negative_prompt, request.num_inference_steps, compose=False)
    weights = tuple(part.weight for part in parse(request.prompt))
    return max(positive, negative) // encoder.chunk_size, weights


def _words(encoder: Encoder, rows: Sequence[tuple[Blocks, ...]]) -> dict[Blocks, tuple[Chunk, ...]]:
    """The chunks of each distinct text in ``rows``, which hold the negative prompt and the parts per step."""
    words: dict[Blocks, tuple[Chunk, ...]] = {}
    length = 0
    for row in dict.fromkeys(rows):
        for i, text in enumerate(row):
            words[text] = words.get(text) or encoder.chunks(text)
            length = max(length, len(words[text]))
            if length * len(words) > MAX_CHUNKS:
                raise invalid("prompt" if i else "negative_prompt", _TOO_LONG)
    return words


def _cut(tokens: Sequence[tuple[int, float]], size: int, comma: int) -> Iterator[Chunk]:
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
