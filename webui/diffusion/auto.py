"""Pictures by diffusers' pipelines called as they are, of the families of :mod:`webui.catalogue.auto`.

Such a pipeline reads its prompt, denoises and decodes by itself, in the device's precision. It is only told
what a request says, and looked at where all pipelines meet: every step of the scheduler is counted and
shown, and every part is on the device before it computes. The pictures of a batch are made one after
another, so that each equals its single run bit for bit.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn

from webui.diffusion import lineage, noise, schedulers
from webui.diffusion.codec import in_full, require_finite
from webui.diffusion.denoiser import interruptible
from webui.diffusion.families.auto import Auto, Reader
from webui.diffusion.model import Model, Stage
from webui.diffusion.passes import Means, taken
from webui.diffusion.pipelines import Ours, unpacked
from webui.diffusion.preview import Reading
from webui.errors import Unsupported
from webui.jobs import Progress
from webui.request import GenerationRequest, invalid

HOOKS = ("patch", "attention", "start", "guide", "step_end")  # of plugins that work inside a pipeline
PIXELS = 8  # of a latent pixel's side, of the latents that are shown


class AsIs:
    """Makes the pictures of one request."""

    def __init__(self, request: GenerationRequest, model: Model, means: Means) -> None:
        """
        Raises:
            Unsupported: a plugin of the request works inside a pipeline.
        """
        self.model = model
        self.means = means
        self.device = torch.device(means.device.name)
        self.family, self.reader = _parts(model)
        self.preview = means.preview(model)
        self.net_calls = 0
        self.expected_calls = lineage.calls(request, self.family.name)
        for plugin in (each for hook in HOOKS for each in means.plugged.having(hook)):
            field = next(name for name, _ in request.plugins if name.startswith(f"{plugin.id}."))
            raise invalid(field, f"cannot be used with {model.name}", Unsupported)

    def picture(self, request: GenerationRequest, **inputs: Image.Image) -> Image.Image:
        """The picture of a request for one. ``inputs``: its source (RGB) and mask (L), where it has them."""
        self._tell("Reading the prompt")
        self._check_length(request)
        with ExitStack() as self._computing, ExitStack() as hooks:
            self._stage: Stage | None = None
            for part in (self.model.net, self.model.vae, *self.reader.parts.values()):
                if isinstance(part, nn.Module):
                    hooks.enter_context(interruptible(part, self.means.check))
            pipe = self._pipeline(request)
            known = inspect.signature(type(pipe).__call__).parameters
            pictures = pipe(
                **self.family.told_scale(request.guidance_scale, known),
                **taken(
                    pipe,
                    prompt=request.prompt,
                    negative_prompt=request.negative_prompt,
                    width=request.width,
                    height=request.height,
                    num_inference_steps=request.num_inference_steps,
                    strength=request.strength,
                    eta=schedulers.eta(request),
                    generator=noise.generator(request.seed),
                    clean_caption=False,  # the words as they are written
                    use_resolution_binning=False,  # the size as it is asked for
                    return_dict=False,
                    **inputs,
                ),
            )[0]
        picture: Image.Image = pictures[0]
        return picture

    def enter(self, stage: Stage) -> None:
        """The parts of this stage are to compute now."""
        if stage != self._stage:
            self._computing.close()
            self._computing.enter_context(self.model.stage(stage))
            self._stage = stage

    def read(self, key: str, encode: Callable[[], Any]) -> Any:
        """What the pipeline's encoders make of a prompt, or made of it before."""

        def entered() -> Any:
            self.enter("text")
            return encode()

        return self.reader.read(key, entered)

    def decoding(self) -> None:
        self._tell("Decoding the picture")

    def _check_length(self, request: GenerationRequest) -> None:
        for field in ("prompt", "negative_prompt") if self.family.guided else ("prompt",):
            count, room = self.reader.count_tokens(getattr(request, field))
            if count > room:
                raise invalid(field, f"is too long for this model: {count} tokens, where it reads {room}")

    def _pipeline(self, request: GenerationRequest) -> Any:
        """A fresh one round the model's parts, with a fresh scheduler."""
        kind = self.family.kind(request.task)
        config = self.model.scheduler_config
        parts = {
            **self.reader.parts,
            self.family.facts.net: Part(self.model.net, "net", self),
            "vae": Vae(self.model.vae, "vae", self),
            "scheduler": self._watched(schedulers.build(request, config, [request.seed]), request),
        }
        wanted = inspect.signature(kind.__init__).parameters
        lacking = {name: None for name, each in wanted.items() if each.default is each.empty}
        known = {name: part for name, part in parts.items() if name in wanted}
        del lacking["self"]
        pipe = type(kind.__name__, (Remembering, kind), {"run": self})(**lacking | known)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _watched(self, scheduler: Any, request: GenerationRequest) -> Any:
        """The scheduler; each of its steps follows a call of the net, whose halves of CFG count as one."""
        step, calls = scheduler.step, itertools.count()

        @functools.wraps(step)
        def watched(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            x = scheduler.scale_model_input(sample, timestep)
            self._called(request, next(calls), timestep, x, model_output)
            return step(model_output, timestep, sample, *args, **kwargs)

        scheduler.step = watched
        return scheduler

    def _called(
        self, request: GenerationRequest, call: int, timestep: Any, x: torch.Tensor, output: torch.Tensor
    ) -> None:
        """Count the picture's ``call`` of the net, and show what it predicts of its input ``x``."""
        self.net_calls += 1
        every = self.means.delivery.preview_every
        preview = None
        if every and call % every == 0 and isinstance(self.model.vae, AutoencoderKL):
            x0 = self._reading(timestep).x0(x.float(), output.float())
            preview = self.preview.jpeg(_cells(x0, request))
        rounds_up = self.family.facts.rounds_up
        steps, calls = schedulers.steps(request, rounds_up)[0], schedulers.calls(request, rounds_up)
        self._tell(f"Step {call * steps // calls + 1} of {steps}", preview)

    @functools.cached_property
    def _alphas(self) -> torch.Tensor | None:
        alphas: torch.Tensor | None = schedulers.alphas_cumprod(self.model.scheduler_config)
        return alphas

    def _reading(self, timestep: Any) -> Reading:
        return Reading.at(timestep, self._alphas, schedulers.prediction_type(self.model.scheduler_config))

    def _tell(self, stage: str, preview: bytes | None = None) -> None:
        """Report what happens now."""
        self.means.report(Progress(stage, self.net_calls, self.expected_calls, preview))


class Remembering(Ours):
    """Before a pipeline of diffusers among the bases: a prompt is read once."""

    run: AsIs

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        encode = functools.partial(super().encode_prompt, *args, **kwargs)  # type: ignore[misc]
        if any(isinstance(each, torch.Tensor) for each in (*args, *kwargs.values())):
            return encode()  # of embeddings: nothing is read
        return self.run.read(repr((args, kwargs)), encode)


class Part:
    """A part as the pipeline sees it: the run is told before it computes."""

    def __init__(self, module: Any, stage: Stage, run: AsIs) -> None:
        self._module = module
        self._stage = stage
        self._run = run

    @property
    def device(self) -> torch.device:
        """Where it will be when it computes."""
        return self._run.device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._run.enter(self._stage)
        return self._module(*args, **kwargs)


class Vae(Part):
    def encode(self, *args: Any, **kwargs: Any) -> Any:
        self._run.enter(self._stage)
        return self._module.encode(*args, **kwargs)

    def decode(self, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self._run.decoding()
        self._run.enter(self._stage)
        require_finite(latents, "net")
        decoded = self._module.decode(latents, *args, **kwargs)
        if self.dtype != torch.float32 and not torch.isfinite(decoded[0]).all():
            with in_full(self._module):
                decoded = self._module.decode(latents.float(), *args, **kwargs)
        require_finite(decoded[0], "VAE")
        return decoded


def _parts(model: Model) -> tuple[Auto, Reader]:
    assert isinstance(model.family, Auto)
    assert isinstance(model.encoder, Reader)
    return model.family, model.encoder


def _cells(latents: torch.Tensor, request: GenerationRequest) -> torch.Tensor:
    """(B, C, h, w) of a picture's, packed as Flux has them or not."""
    return (
        unpacked(latents, request.height // PIXELS, request.width // PIXELS) if latents.ndim == 3 else latents
    )
