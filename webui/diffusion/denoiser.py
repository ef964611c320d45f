"""The net as a pipeline sees it, with us looking over its shoulder.

diffusers' pipelines hide what a studio needs: the net's two predictions, the place inside a step, and a
way out. A :class:`Denoiser` stands where the pipeline expects its UNet or transformer and passes every call
on to the resident one, unchanged bit for bit, while it

* counts the calls of the net and reports each, with what was predicted;
* lets a person's cancel through between any two blocks of the net;
* puts in the embeddings that are due at this step (``[from:to:when]``, ``[a|b]``);
* computes every part of ``A AND B`` and combines them (composable diffusion, arXiv 2206.01714);
* lets another net take over from a step on (a refiner).

Sampling is float32 throughout: only the net itself computes in its own precision.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from webui.diffusion.prompts import Conditioning, Text


@dataclass(frozen=True)
class Prediction:
    """One call of the net. B pictures, C latent channels, h x w latent pixels, float32."""

    call: int  # 0-based, in this pass
    calls: int  # of this pass
    timestep: torch.Tensor  # 0-dimensional, in training steps; may be fractional
    model_input: torch.Tensor  # (B, C, h, w), scaled as the net takes it
    guided: torch.Tensor  # (B, C, h, w), after classifier-free guidance
    cond: torch.Tensor  # (B, C, h, w), with the prompt
    uncond: torch.Tensor | None  # (B, C, h, w), with the negative prompt, if that was asked
    step: int  # 0-based, in steps as a person counts them


@dataclass(frozen=True)
class NetCall:
    """A call of the net that is about to be made, with N rows: negative prompts first, then prompts."""

    given: torch.Tensor  # N rows of what is to be denoised, as the net takes them
    text: Text  # of N rows
    prompt: int  # the row of the first picture with its prompt; of one that AND composes, with its first part


def _make(_: NetCall, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    return make()


Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


class Calls(Protocol):
    """How the nets of a family are called, and what their latents look like to a pipeline.

    A pipeline's tensors may be packed and its timesteps scaled; everything here is (B, C, h, w) and in
    training steps. ``kwargs`` are the pipeline's own arguments, besides these.
    """

    def latents(self, sample: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor:
        """(B, C, h, w) of a pipeline's ``sample``."""
        ...

    def packed(self, output: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`latents`."""
        ...

    def timestep(self, timestep: torch.Tensor) -> torch.Tensor:
        """0-dimensional, in training steps, of what the pipeline tells its net."""
        ...

    def arguments(
        self,
        net: Any,
        x: torch.Tensor,
        timestep: torch.Tensor,
        text: Text,
        against: int,
        scales: torch.Tensor,
        kwargs: Mapping[str, Any],
    ) -> Arguments:
        """What to call ``net`` with: by place and by name, as its pipelines do.

        Args:
            x: (N, C, h, w), with any mask and masked picture after the latents, in the net's precision.
            timestep: as the pipeline gave it.
            text: of N rows, in the net's precision; the first ``against`` are negative prompts.
            scales: (B, 1, 1, 1), the CFG scale of each picture; N is a multiple of B.
        """
        ...


@dataclass(frozen=True)
class Turn:
    """A net's part of a pass: it begins where the timesteps fall below ``below``."""

    net: Any
    calls: Calls
    conditioning: Conditioning
    below: float = math.inf
    begin: Callable[[], None] = lambda: None  # called before its first call


class Denoiser(nn.Module):
    """Takes a pipeline's calls to its net. Made for one pass and thrown away."""

    def __init__(
        self,
        turns: Sequence[Turn],
        device: torch.device,
        guidance_scales: Sequence[float],
        guided: bool,
        steps: int,
        channels: int,
        calls: Callable[[], int],
        watch: Callable[[Prediction], None],
        first: Callable[[Callable[[], list[torch.Tensor]]], list[torch.Tensor]],
        guide: Callable[[Prediction, torch.Tensor, Callable[[], torch.Tensor]], torch.Tensor] | None = None,
        calling: Callable[[NetCall, Callable[[], torch.Tensor]], torch.Tensor] = _make,
    ) -> None:
        """``guided``: whether the nets have guidance at all; of others the scale is an input."""
        super().__init__()
        self.turns = list(turns)
        self.turn: Turn | None = None
        self.device = device
        self.guided = guided and guidance_scales[0] > 1  # all of them or none
        self.guide = guide  # makes another guided prediction of one
        self.scales = torch.tensor(guidance_scales, device=device)[:, None, None, None]
        self.itself = guide is not None or len(set(guidance_scales)) > 1  # guides, and not the pipeline
        self.scale: float | torch.Tensor = self.scales if self.itself else guidance_scales[0]
        self.steps = steps  # as a person counts them; Heun calls the net 2 * steps - 1 times
        self.channels = (
            channels  # of latents; what the net takes beyond them (mask, masked picture) is no sample
        )
        self.calls = calls  # of this pass; the pipeline knows once it runs
        self.watch = watch
        self.first = first  # is given the first call to make, and may remember what it gives
        self.calling = calling  # is given each call to make
        self.call = 0

    @property
    def config(self) -> Any:
        return self.turns[0].net.config

    @property
    def add_embedding(self) -> Any:
        """Where a pipeline of SDXL looks up how much the net wants to be told."""
        return self.turns[0].net.add_embedding

    def cache_context(self, name: str) -> AbstractContextManager[Any]:
        """Entered by Flux's pipeline round each call."""
        return nullcontext()

    @property
    def dtype(self) -> torch.dtype:
        """What the pipeline keeps its latents in."""
        return torch.float32

    @property
    def pipeline_scale(self) -> float:
        """What to tell the pipeline, which knows one scale for all: not to guide where it must not."""
        return 1.0 if isinstance(self.scale, torch.Tensor) else self.scale

    def forward(
        self,
        sample: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        hidden_states: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor]:
        """The net's prediction for ``sample``, which transformers call ``hidden_states``.

        (B, C, h, w), with guidance (2B, C, h, w), negative first; packed as the sample is. Where scales
        differ or plugins guide, the guided prediction alone: then the pipeline does not guide. ``sample``
        has the net's own channels: for one that takes a mask, latents, mask and masked picture.
        """
        given = sample if sample is not None else hidden_states
        assert given is not None
        assert timestep is not None
        calls = self.calls()
        at = self.call * self.steps // calls
        turn = self._turn(timestep)
        whole = turn.calls.latents(given, kwargs)
        x = whole[: len(whole) // 2] if self.guided and not self.itself else whole
        step = turn.conditioning.at(at)
        texts = [text for text, _ in step.positives]
        weights = [weight for _, weight in step.positives]
        composed = weights != [1.0]
        if against := int(self.guided or composed):
            texts = [step.negative, *texts]
        predict = functools.partial(self._predict, turn, x, timestep, texts, against, kwargs)
        parts = self.first(predict) if self.call == 0 and not _told_scale(kwargs) else predict()
        negative = parts[0]
        if composed:
            whole = _composed(negative, parts[1:], weights)
            parts = [negative, whole] if self.guided else [negative + self.scale * (whole - negative)]
        uncond = parts[0] if self.guided else None
        guided = parts[0] + self.scale * (parts[1] - parts[0]) if self.guided else parts[0]
        when = turn.calls.timestep(timestep)
        prediction = Prediction(self.call, calls, when, x[:, : self.channels], guided, parts[-1], uncond, at)
        if self.guide is not None:

            def again() -> torch.Tensor:
                own = texts[-len(weights) :]
                positives = self._predict(turn, x, timestep, own, 0, kwargs)
                return _composed(negative, positives, weights) if composed else positives[0]

            prediction = replace(prediction, guided=self.guide(prediction, self.scales, again))
        self.watch(prediction)
        self.call += 1
        return (turn.calls.packed(prediction.guided if self.itself else torch.cat(parts)),)

    def _turn(self, timestep: torch.Tensor) -> Turn:
        """Whose turn it is."""
        now = float(self.turns[0].calls.timestep(timestep))
        turn = [turn for turn in self.turns if now < turn.below][-1]
        if turn is not self.turn:
            turn.begin()
            self.turn = turn
        return turn

    def _predict(
        self,
        turn: Turn,
        x: torch.Tensor,
        timestep: torch.Tensor,
        texts: Sequence[Text],
        against: int,
        kwargs: Mapping[str, Any],
    ) -> list[torch.Tensor]:
        """One batched call of the net: ``x`` under each text. Returns a (B, C, h, w) for each."""
        dtype = turn.net.dtype
        text = Text.stacked([text.expanded(len(x)) for text in texts]).to(x.device, dtype)
        samples = torch.cat([x] * len(texts)).to(dtype)
        placed, named = turn.calls.arguments(
            turn.net, samples, timestep, text, against * len(x), self.scales, _others(kwargs)
        )
        given = placed[0] if placed else named["hidden_states"]
        call = NetCall(given, text, against * len(x))
        output = self.calling(call, lambda: turn.net(*placed, **named)[0])
        output = turn.calls.latents(output.float(), kwargs)
        return list(output.chunk(len(texts)))


def _others(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a pipeline says besides its own embeddings, whose place ours take."""
    return {name: value for name, value in kwargs.items() if name != "encoder_hidden_states"}


def _told_scale(kwargs: Mapping[str, Any]) -> bool:
    """Whether the scale is an input of the net: then its predictions differ from one to another."""
    return any(kwargs.get(name) is not None for name in ("timestep_cond", "guidance"))


def _composed(
    negative: torch.Tensor, positives: Sequence[torch.Tensor], weights: Sequence[float]
) -> torch.Tensor:
    """Each (B, C, h, w)."""
    return negative + sum(w * (p - negative) for w, p in zip(weights, positives, strict=True))


@contextmanager
def interruptible(module: nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Call ``check``, which may raise, before each block of ``module``; leaves no hook behind."""
    hooks = [block.register_forward_pre_hook(lambda *_: check()) for block in _blocks(module)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of its first lists, and what else it has that holds no list."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if block is not None)
        elif any(isinstance(inner, nn.ModuleList) for inner in child.modules()):
            yield from _blocks(child)
        else:
            yield child
