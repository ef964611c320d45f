"""The passes of a batch: diffusers' own pipelines, round resident nets, watched while they run."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

from webui.diffusion import prompts, references, schedulers
from webui.diffusion.adapters import silent
from webui.diffusion.additions import NOTHING, Additions, Guests, unkept
from webui.diffusion.controls import Control, Controlled
from webui.diffusion.denoiser import Denoiser, Prediction, Turn, interruptible
from webui.diffusion.devices import Device
from webui.diffusion.model import Model
from webui.diffusion.plugged import Plugged
from webui.diffusion.preview import TRAIN_TIMESTEPS, Preview, Reading
from webui.diffusion.recorder import Recorder
from webui.hookspecs import StepEnd
from webui.jobs import Progress
from webui.request import Delivery, GenerationRequest, Task


@dataclass(frozen=True)
class Means:
    """What a request is made with.

    Args:
        report: is told of each stage and of every call of the net.
        check: is called often, between any two blocks of the net and the VAE; raises Cancelled to stop.
        plugged: the plugins that take part.
        image, mask: the request's source (RGB) and mask (L), where it names them.
        refiner: the model that finishes the last pass, where the request names one.
        share: remember the net's first predictions for requests that differ only in the guidance scale, as
            those of a grid do; they are the same, bit for bit.
        preview: says how predictions of a model are shown.
        additions: what the request adds to the model.
        guests: has what the additions hold besides the model's own parts.
        controls: the pictures for ControlNets by the stem of their unit; None where it is the source.
        reference: the picture (RGB) that is a prompt too, where the request names one.
    """

    model: Model
    device: Device
    delivery: Delivery
    report: Callable[[Progress], None]
    check: Callable[[], None]
    plugged: Plugged
    image: Image.Image | None = None
    mask: Image.Image | None = None
    share: bool = False
    refiner: Model | None = None
    preview: Callable[[Model], Preview] = lambda model: model.preview
    additions: Additions = NOTHING
    reference: Image.Image | None = None
    guests: Guests = unkept
    controls: Mapping[str, Image.Image | None] = field(default_factory=dict)


class Sampler:
    """Makes latents. ``pictures`` are the requests of its pictures, ``request`` what they share.

    ``scale``: pixels of a latent pixel's side. ``start`` is set to what the first pass begins with, noise or
    what plugins made of it, (B, C, h, w).
    """

    start: torch.Tensor
    controls: Sequence[Control] = ()
    recorder: Recorder | None = None  # watches, if the run is recorded

    def __init__(
        self,
        request: GenerationRequest,
        pictures: Sequence[GenerationRequest],
        model: Model,
        means: Means,
        generators: Sequence[torch.Generator],
        scale: int,
    ) -> None:
        self.request = request
        self.pictures = pictures
        self.model = model
        self.latest = model  # whose net was called last
        self.family = model.family
        self.device = torch.device(means.device.name)
        self.means = means
        self.plugged = means.plugged
        self.check = means.check
        self.share = means.share and not self.plugged.plugins
        self.generators = generators
        self.scale = scale
        self.expected_calls = schedulers.calls(request, self.family.facts.rounds_up)
        self.net_calls = 0
        self.preview = means.preview(model) if means.delivery.preview_every else model.preview

    def run(
        self,
        task: Task,
        steps: int,
        num_inference_steps: int,
        start: Mapping[str, Any] = MappingProxyType({}),
        second: bool = False,
        **inputs: Any,
    ) -> torch.Tensor:
        """Run one pass of ``steps`` steps; returns its last latents (B, C, h, w) float32.

        ``start``: attributes of the pipeline that say what it starts from; ``inputs``: of its call.
        """
        request, model, family = self.request, self.model, self.family
        self.tell("Reading the prompt")
        with ExitStack() as computing:
            turns = self._turns(computing, steps, second)
            denoiser = Denoiser(
                turns=turns,
                device=self.device,
                guidance_scales=[picture.guidance_scale for picture in self.pictures],
                guided=family.guided and not told_scale(model.net),
                steps=steps,
                channels=model.vae.config.latent_channels,
                calls=lambda: pipe.num_timesteps,
                watch=lambda prediction: self._watch(prediction, steps, second),
                first=(lambda predict: predict()) if second else self._first,
                guide=functools.partial(self._guided, steps) if self.plugged.having("guide") else None,
                **({"calling": self.recorder.calling} if self.recorder else {}),
            )
            scheduler = schedulers.build(
                request.replace(num_inference_steps=num_inference_steps),
                model.scheduler_config,
                [picture.seed for picture in self.pictures],
            )
            if self.recorder:
                self.recorder.begin(scheduler)
            pipe = family.pipeline(task, denoiser, model.vae, scheduler)
            pipe.set_progress_bar_config(disable=True)
            for name, value in start.items():
                setattr(pipe, name, value)
            width, height = request.final_size if second else (request.width, request.height)
            cells = height // self.scale, width // self.scale
            inputs |= self._after_steps(pipe, steps, bool(start.get("soft")), cells)
            inputs |= taken(pipe, width=width, height=height, eta=schedulers.eta(request))
            if self.controls:
                at = functools.partial(_place, denoiser, pipe)
                calls = Controlled(turns[0].calls, self.controls, (width, height), at)
                denoiser.turns[0] = replace(turns[0], calls=calls)
            first = turns[0].conditioning.at(0)
            with self._timed("scheduler"):
                latents = pipe(
                    **family.told(first),
                    num_images_per_prompt=len(self.pictures) // len(first.negative.tokens),
                    num_inference_steps=num_inference_steps,
                    guidance_scale=denoiser.pipeline_scale,
                    generator=self.generators,
                    output_type="latent",
                    return_dict=False,
                    **inputs,
                )[0]
        latents = family.unpacked(latents, *cells)
        if self.recorder:
            self.recorder.end(latents)
        return latents

    def _timed(self, stage: str) -> AbstractContextManager[None]:
        """What is within it counts to this stage, where the run is recorded."""
        return self.recorder.clock.stage(stage) if self.recorder else nullcontext()

    def _turns(self, computing: ExitStack, steps: int, second: bool) -> list[Turn]:
        """The model's, and that of a refiner in the last pass; the net whose turn it is is ``computing``."""
        turns = [self._turn(computing, self.model, math.inf, steps, second)]
        refiner = self.means.refiner
        if refiner is not None and second == self.request.hires:
            below = round(TRAIN_TIMESTEPS * (1 - self.request.refiner_switch))
            own = refiner.family is self.family  # then the LoRAs are its own as well
            with nullcontext() if own else silent(refiner):
                turns.append(self._turn(computing, refiner, below, steps, second))
        return turns

    def _turn(self, computing: ExitStack, model: Model, below: float, steps: int, second: bool) -> Turn:
        with ExitStack() as reading:
            for tower in model.encoder.towers:
                reading.enter_context(interruptible(tower.text_encoder, self.check))
            reading.enter_context(self._timed("prompt"))
            conditioning = prompts.encode_all(
                model.encoder,
                self.pictures,
                steps,
                self.request.num_inference_steps if second else 0,
                lambda: model.stage("text"),
            )

        def begin() -> None:
            self.latest = model
            computing.close()
            computing.enter_context(model.stage("net"))
            computing.enter_context(interruptible(model.net, self.check))

        return Turn(model.net, references.calls(model, self.model), conditioning, below, begin)

    def _after_steps(self, pipe: Any, steps: int, soft: bool, cells: tuple[int, int]) -> dict[str, Any]:
        """What the pipeline is to call after each step, on latents of so many ``cells`` (h, w)."""
        touched = bool(self.plugged.having("step_end"))
        if not (soft or touched):
            return {}

        def after(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            if soft:
                pipe.soften(step)
            if not touched:
                return {}
            latents = self.family.unpacked(tensors["latents"], *cells)
            changed = self.plugged.step_end(self._end(pipe, step, steps, timestep, latents))
            return {"latents": self.family.packed(changed)}

        return {"callback_on_step_end": after, "callback_on_step_end_tensor_inputs": ["latents"]}

    def _end(
        self, pipe: Any, call: int, steps: int, timestep: torch.Tensor, latents: torch.Tensor
    ) -> StepEnd:
        """Of the step that ended with the pass's ``call``, 0-based, of the net."""
        seen, signal, noise = self.last, 1.0, 0.0
        left = pipe.num_timesteps - call - 1
        if left:
            upcoming = pipe.scheduler.timesteps[-left]
            scaling = float(pipe.scheduler.scale_model_input(torch.ones(()), upcoming))
            reading = self._reading(upcoming)
            signal, noise = reading.signal / scaling, reading.noise / scaling
        x0 = self._reading(seen.timestep).x0(seen.model_input, seen.guided)
        at = seen.step, steps, timestep, latents, seen.cond, seen.uncond
        return StepEnd(self.request, *at, x0, signal, noise, self.start)

    @functools.cached_property
    def _alphas(self) -> torch.Tensor | None:
        alphas: torch.Tensor | None = schedulers.alphas_cumprod(self.model.scheduler_config)
        return alphas

    def _reading(self, timestep: torch.Tensor) -> Reading:
        """Of what the net predicts there."""
        return Reading.at(timestep, self._alphas, schedulers.prediction_type(self.model.scheduler_config))

    def _guided(
        self, steps: int, seen: Prediction, scale: torch.Tensor, predict: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """What plugins make of a guided prediction."""

        def once_more() -> torch.Tensor:
            self.net_calls += 1
            return predict()

        return self.plugged.guide(seen, steps, scale, self._reading(seen.timestep), once_more)

    def _first(self, predict: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        """The net's first predictions. They do not depend on the guidance scale: made once for all."""
        if not self.share:
            return predict()
        firsts, key = self.model.firsts, tuple(picture.beginning for picture in self.pictures)
        before = firsts.computed
        parts = firsts(key, predict)
        if not all(part.isfinite().all() for part in parts):
            firsts.forget(key)
        if firsts.computed == before:
            self.net_calls -= 1  # it will be counted as seen, but was not made
            self.expected_calls -= 1
        return parts

    def _watch(self, prediction: Prediction, steps: int, second: bool) -> None:
        """After each call of the net: count it, and show what it predicts."""
        self.check()
        self.last = prediction
        self.net_calls += 1
        if self.recorder and not second:
            self.recorder.watch(prediction, self._reading(prediction.timestep))
        step = prediction.call * steps // prediction.calls + 1
        every = self.means.delivery.preview_every
        preview = None
        if every and prediction.call % every == 0:
            with self._timed("other"):
                x0 = self._reading(prediction.timestep).x0(prediction.model_input, prediction.guided)
                preview = self.preview.jpeg(x0)
        self.tell(f"{'Second pass, step' if second else 'Step'} {step} of {steps}", preview)

    def tell(self, stage: str, preview: bytes | None = None) -> None:
        """Report what happens now; raises if it is to stop."""
        self.check()
        self.means.report(Progress(stage, self.net_calls, max(self.expected_calls, self.net_calls), preview))


def told_scale(net: Any) -> bool:
    """Whether a UNet was distilled to be told the guidance scale (Luo et al. 2023, arXiv:2310.04378)."""
    return bool(net.config.get("time_cond_proj_dim"))


def _place(denoiser: Denoiser, pipe: Any) -> tuple[int, int]:
    """(call, calls of the pass)."""
    return denoiser.call, pipe.num_timesteps


def taken(pipe: Any, **inputs: Any) -> dict[str, Any]:
    """Those that this pipeline's call takes."""
    known = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in inputs.items() if name in known}
