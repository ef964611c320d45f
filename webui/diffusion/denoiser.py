"""The net as a pipeline sees it, with us looking over its shoulder.

diffusers' pipelines hide what a studio needs: the net's two predictions, the place inside a step, and a
way out. A :class:`Denoiser` stands where the pipeline expects its UNet and passes every call on to the
resident one, unchanged bit for bit, while it

* counts the calls of the net and reports each, with what was predicted;
* lets a person's cancel through between any two blocks of the net;
* puts in the embeddings that are due at this step (``[from:to:when]``, ``[a|b]``);
* computes every part of ``A AND B`` and combines them (composable diffusion, arXiv 2206.01714).

Sampling is float32 throughout: only the net itself computes in its own precision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from webui.diffusion.prompts import Conditioning


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


class Denoiser(nn.Module):
    """Takes a pipeline's calls to its UNet. Made for one pass and thrown away."""

    def __init__(
        self,
        net: nn.Module,
        conditioning: Conditioning,
        guidance_scales: Sequence[float],
        steps: int,
        channels: int,
        calls: Callable[[], int],
        watch: Callable[[Prediction], None],
        first: Callable[[Callable[[], list[torch.Tensor]]], list[torch.Tensor]],
        guide: Callable[[Prediction, torch.Tensor, Callable[[], torch.Tensor]], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.conditioning = conditioning
        self.guided = guidance_scales[0] > 1  # all of them or none
        self.guide = guide  # makes another guided prediction of one
        self.scales = torch.tensor(guidance_scales, device=self.device)[:, None, None, None]
        self.itself = guide is not None or len(set(guidance_scales)) > 1  # guides, and not the pipeline
        self.scale: float | torch.Tensor = self.scales if self.itself else guidance_scales[0]
        self.steps = steps  # as a person counts them; Heun calls the net 2 * steps - 1 times
        self.channels = (
            channels  # of latents; what the net takes beyond them (mask, masked picture) is no sample
        )
        self.calls = calls  # of this pass; the pipeline knows once it runs
        self.watch = watch
        self.first = first  # is given the first call to make, and may remember what it gives
        self.call = 0

    @property
    def config(self) -> Any:
        return self.net.config

    @property
    def device(self) -> torch.device:
        return self.net.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """What the pipeline keeps its latents in."""
        return torch.float32

    @property
    def pipeline_scale(self) -> float:
        """What to tell the pipeline, which knows one scale for all: not to guide where it must not."""
        return 1.0 if isinstance(self.scale, torch.Tensor) else self.scale

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor]:
        """The net's prediction for ``sample``: (B, C, h, w), with guidance (2B, C, h, w), negative first.

        Where scales differ or plugins guide, the guided prediction alone: then the pipeline does not guide.
        ``sample`` has the net's own channels: for one that takes a mask, latents, mask and masked picture.
        """
        calls = self.calls()
        at = self.call * self.steps // calls
        step = self.conditioning.at(at)
        x = sample[: len(sample) // 2] if self.guided and not self.itself else sample
        texts = [embeds for embeds, _ in step.positives]
        weights = [weight for _, weight in step.positives]
        composed = weights != [1.0]
        if self.guided or composed:
            texts = [step.negative, *texts]
        shared = self.call == 0 and kwargs.get("timestep_cond") is None  # a scale in it would tell them apart
        predict = functools.partial(self._predict, x, timestep, texts, kwargs)
        parts = self.first(predict) if shared else predict()
        negative = parts[0]
        if composed:
            whole = _composed(negative, parts[1:], weights)
            parts = [negative, whole] if self.guided else [negative + self.scale * (whole - negative)]
        uncond = parts[0] if self.guided else None
        guided = parts[0] + self.scale * (parts[1] - parts[0]) if self.guided else parts[0]
        prediction = Prediction(
            self.call, calls, timestep, x[:, : self.channels], guided, parts[-1], uncond, at
        )
        if self.guide is not None:

            def again() -> torch.Tensor:
                positives = self._predict(x, timestep, texts[-len(weights) :], kwargs)
                return _composed(negative, positives, weights) if composed else positives[0]

            prediction = replace(prediction, guided=self.guide(prediction, self.scales, again))
        self.watch(prediction)
        self.call += 1
        return (prediction.guided if self.itself else torch.cat(parts),)

    def _predict(
        self, x: torch.Tensor, timestep: torch.Tensor, texts: list[torch.Tensor], kwargs: dict[str, Any]
    ) -> list[torch.Tensor]:
        """One batched call of the net: ``x`` under each text. Returns a (B, C, h, w) for each."""
        dtype = next(self.net.parameters()).dtype
        if kwargs.get("timestep_cond") is not None:  # of guidance-distilled nets, one row per sample
            kwargs = {**kwargs, "timestep_cond": kwargs["timestep_cond"].repeat(len(texts), 1).to(dtype)}
        output = self.net(
            torch.cat([x] * len(texts)).to(dtype),
            timestep,
            encoder_hidden_states=torch.cat([text.expand(len(x), -1, -1) for text in texts]).to(dtype),
            **kwargs,
        )[0]
        return list(output.float().chunk(len(texts)))


def _composed(
    negative: torch.Tensor, positives: Sequence[torch.Tensor], weights: Sequence[float]
) -> torch.Tensor:
    """Each (B, C, h, w)."""
    return negative + sum(w * (p - negative) for w, p in zip(weights, positives, strict=True))


@contextmanager
def interruptible(module: nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Call ``check``, which may raise, before each block of ``module``; leaves no hook behind."""
    blocks = [
        block
        for child in module.children()
        for block in (child.children() if isinstance(child, nn.ModuleList) else [child])
    ]
    hooks = [block.register_forward_pre_hook(lambda *_: check()) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
