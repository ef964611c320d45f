"""One request in, one result out. Nothing else makes pictures.

Each pass is diffusers' own pipeline, made anew round the resident weights with a fresh scheduler; this
module draws the noise, watches, decodes, and adds the second ('hires') pass. The same request gives the
same pixels as a plain call of the pipeline (in float32 on a CPU: bit for bit).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from webui import masks
from webui.diffusion import prompts, schedulers
from webui.diffusion.codec import LATENT_MODES, Codec
from webui.diffusion.denoiser import Denoiser, Prediction, interruptible
from webui.diffusion.devices import Device, PeakMemory, plain_memory_errors
from webui.diffusion.model import Model
from webui.diffusion.noise import Noise
from webui.diffusion.pipelines import Img2Img, Inpaint, cells_of
from webui.diffusion.plugged import Plugged
from webui.diffusion.preview import Reading
from webui.hookspecs import StepEnd
from webui.jobs import Progress
from webui.request import Delivery, GenerationRequest, GenerationResult, Picture

IMAGE_MODES = {
    "Lanczos": Image.Resampling.LANCZOS,
    "Bicubic": Image.Resampling.BICUBIC,
    "Nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Means:
    """What a request is made with.

    Args:
        report: is told of each stage and of every call of the net.
        check: is called often, between any two blocks of the net and the VAE; raises Cancelled to stop.
        plugged: the plugins that take part.
        image, mask: the request's source (RGB) and mask (L), where it names them.
        share: remember the net's first predictions for requests that differ only in the guidance scale, as
            those of a grid do; they are the same, bit for bit.
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


def generate(request: GenerationRequest, means: Means) -> GenerationResult:
    """Make the pictures of one request.

    Args:
        request: complete, as :meth:`webui.engine.Engine.submit` leaves it: real seeds, a known scheduler.

    Raises:
        Cancelled: ``check`` said so.
        InvalidField: this model cannot do what was asked (clip skip, scheduler, prompt); the mask is empty.
        OutOfMemory, NotANumber, PluginError: the run failed; the message says what may help.
    """
    pictures = [request.picture(k) for k in range(request.num_images_per_prompt)]
    with means.plugged.around(means.model) as model:
        run = _Run(request, pictures, model, means)
        return run.result(request, run.images())


def together(requests: Sequence[GenerationRequest], means: Means) -> list[GenerationResult]:
    """Make one picture of each request in one batch. Requests must be :func:`alike`, and without plugins.

    Each equals its single run but for the last bits of float32: a batch adds up in another order. The
    seconds of each result are its share. Raises what :func:`generate` does.
    """
    whole = requests[0].replace(num_images_per_prompt=len(requests))
    run = _Run(whole, requests, means.model, means)
    images = run.images()
    return [run.result(one, [image]) for one, image in zip(requests, images, strict=True)]


def alike(a: GenerationRequest, b: GenerationRequest, encoder: prompts.Encoder) -> bool:
    """Whether two requests can share a batch: they differ only in prompts, seeds and guidance scale.

    Both or neither must be guided, and their prompts must take as many parts and chunks of tokens.
    """
    own = {"prompt", "negative_prompt", "seed", "variation_seed", "guidance_scale"}
    own |= {"template", "negative_template", "prepared"}
    if a.replace(**{name: getattr(b, name) for name in own}) != b:
        return False
    if (a.guidance_scale > 1) != (b.guidance_scale > 1) or a.num_images_per_prompt > 1:
        return False
    return prompts.form(encoder, a) == prompts.form(encoder, b)


class _Run:
    """The passes of one batch. ``pictures`` are the requests of its pictures, ``request`` what they share."""

    def __init__(
        self,
        request: GenerationRequest,
        pictures: Sequence[GenerationRequest],
        model: Model,
        means: Means,
    ) -> None:
        self.began = time.perf_counter()
        self.memory = PeakMemory(means.device)
        self.request = request
        self.pictures = pictures
        self.model = model
        self.means = means
        self.plugged = means.plugged
        self.check = means.check
        self.share = means.share and not self.plugged.plugins
        self.noise = Noise(pictures, model.noises)
        self.batch = len(pictures)
        self.codec = Codec(model, self.check, self.noise.generators)
        self.scale = self.codec.scale
        self.steps, self.second_steps = schedulers.steps(request)
        self.expected_calls = schedulers.calls(request)
        self.net_calls = 0

    def images(self) -> list[Image.Image]:
        """One picture for each request."""
        image = self.means.image
        with torch.no_grad(), plain_memory_errors():
            if image is None:
                return self.text_to_image()
            if self.request.task == "img2img":
                return self.image_to_image(image)
            return self.inpaint(masks.prepare(self.request, image, self.means.mask))

    def result(self, request: GenerationRequest, images: Sequence[Image.Image]) -> GenerationResult:
        """Of the request that made these of the batch's pictures."""
        return GenerationResult(
            request=request,
            pictures=tuple(self._finished(request, images)),
            plugins=self.plugged.versions,
            model=self.model.name,
            model_hash=self.model.sha256,
            net_calls=self.net_calls,
            seconds=(time.perf_counter() - self.began) * len(images) / self.batch,
            peak_memory=self.memory.read(),
            device=str(self.means.device),
        )

    def _finished(self, request: GenerationRequest, images: Sequence[Image.Image]) -> Iterator[Picture]:
        """Each picture, and after it what a plugin keeps beside it."""
        for k, image in enumerate(images):
            own = request.picture(k)
            for n, each in enumerate(self.plugged.finish(image, own, self.check)):
                yield Picture(each, own, k, beside=n > 0)

    # The three tasks

    def text_to_image(self) -> list[Image.Image]:
        latents = self.first_pass()
        if self.request.hires:
            latents = self.second_pass(self._enlarge(latents))
        return self._decode(latents)

    def image_to_image(self, image: Image.Image) -> list[Image.Image]:
        """Noise the source up to the strength, and go on from there."""
        request = self.request
        size = request.width, request.height
        source = masks.resized(image, size, request.resize_mode)
        if request.resize_mode == "Latent":
            latents = self.codec.encode([self.codec.whole_cells(image)] * self.batch)
            latents = self.codec.resized(latents, size, "Latent")
        else:
            latents = self.codec.encode([source] * self.batch)
        latents = self._sample(
            Img2Img,
            self.steps,
            start={"noise": self.start_noise()},
            image=latents,
            strength=request.strength,
            num_inference_steps=request.num_inference_steps,
        )
        return [self._corrected(picture, source) for picture in self._decode(latents)]

    def inpaint(self, plan: masks.Repaint) -> list[Image.Image]:
        """Repaint what the mask covers, and lay it into the source: outside not a pixel changes."""
        request = self.request
        cells = cells_of(
            plan.soft if request.soft_inpainting else plan.hard, self.scale, request.soft_inpainting
        )
        latents = self._sample(
            Inpaint,
            self.steps,
            start=self._repainting(plan, cells),
            image=plan.image,
            mask_image=plan.hard,
            width=request.width,
            height=request.height,
            strength=request.strength,
            num_inference_steps=request.num_inference_steps,
        )
        pictures = (self._corrected(picture, plan.image) for picture in self._decode(latents))
        return [plan.finish(picture) for picture in pictures]

    # Their parts

    def first_pass(self) -> torch.Tensor:
        """Text to latents (B, C, h, w), float32."""
        request = self.request
        return self._sample(
            StableDiffusionPipeline,
            request.num_inference_steps,
            width=request.width,
            height=request.height,
            latents=self.start_noise(),
            num_inference_steps=request.num_inference_steps,
        )

    def second_pass(self, latents: torch.Tensor) -> torch.Tensor:
        """Image to image over the enlarged latents (B, C, H, W), with its own steps and strength."""
        request = self.request
        self.start = self.noise.draw(latents.shape).to(latents)
        return self._sample(
            Img2Img,
            self.second_steps,
            start={"noise": self.start},
            second=True,
            image=latents,
            strength=request.hires_strength,
            num_inference_steps=request.hires_steps or request.num_inference_steps,
        )

    def start_noise(self) -> torch.Tensor:
        """(B, C, h, w) float32, on the net's device."""
        request = self.request
        channels = self.model.vae.config.latent_channels
        shape = (self.batch, channels, request.height // self.scale, request.width // self.scale)
        noise = self.noise.start(shape).to(self.model.net.device)
        self.start = self.plugged.start(
            noise, lambda image: self.codec.glance(image.convert("RGB")), self.means.image
        )
        return self.start

    def _repainting(self, plan: masks.Repaint, cells: torch.Tensor) -> dict[str, Any]:
        """What an inpainting starts from: the attributes of :class:`Inpaint`.

        The generators are used in the order in which diffusers' pipeline uses them: source, noise, masked
        source. It encodes the last even for a net that takes no mask; only its draw is repeated here.
        """
        request, net = self.request, self.model.net
        takes_mask = net.config.in_channels != self.model.vae.config.latent_channels
        source = masked = content = None
        if not takes_mask or request.strength < 1:
            source = content = self.codec.encode(
                [plan.image] * self.batch
            ).contiguous()  # as the pipeline's own
        noise = self.start_noise()
        if takes_mask:
            masked = self.codec.encode([plan.image] * self.batch, without=plan.hard)
        else:
            self.noise.draw(noise.shape)
        cells = cells.to(noise)
        if content is not None and request.masked_content.startswith("Latent"):
            inside = self.noise.draw(noise.shape).to(noise) if request.masked_content == "Latent noise" else 0
            content = torch.where(cells > 0, inside, content)
        return {
            "source": source,
            "content": content,
            "noise": noise,
            "masked": masked,
            "cells": cells,
            "soft": request.soft_inpainting,
            "calls": self.expected_calls,
        }

    def _enlarge(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) of the first pass at the size of the second."""
        size, upscaler = self.request.final_size, self.request.hires_upscaler
        if upscaler in LATENT_MODES:
            return self.codec.resized(latents, size, upscaler)
        images = self._decode(latents)
        if upscaler in IMAGE_MODES:
            return self.codec.encode([image.resize(size, IMAGE_MODES[upscaler]) for image in images])
        return self.codec.encode([self.plugged.enlarge(image, self.check) for image in images])

    def _decode(self, latents: torch.Tensor) -> list[Image.Image]:
        self._tell("Decoding the picture")
        return self.codec.decode(latents)

    def _corrected(self, picture: Image.Image, source: Image.Image) -> Image.Image:
        return masks.match_colors(picture, source) if self.request.color_correction else picture

    def _sample(
        self,
        pipeline: type[Any],
        steps: int,
        num_inference_steps: int,
        start: Mapping[str, Any] = MappingProxyType({}),
        second: bool = False,
        **inputs: Any,
    ) -> torch.Tensor:
        """Run one pass of ``steps`` steps; returns its last latents (B, C, h, w) float32.

        ``start``: attributes of the pipeline that say what it starts from; ``inputs``: of its call.
        """
        request, model = self.request, self.model
        self._tell("Reading the prompt")
        with interruptible(model.encoder.text_encoder, self.check):
            conditioning = prompts.encode_all(
                model.encoder, self.pictures, steps, request.num_inference_steps if second else 0
            )
        scheduler = schedulers.build(
            request.replace(num_inference_steps=num_inference_steps),
            model.scheduler_config,
            [picture.seed for picture in self.pictures],
        )
        denoiser = Denoiser(
            net=model.net,
            conditioning=conditioning,
            guidance_scales=[picture.guidance_scale for picture in self.pictures],
            steps=steps,
            channels=model.vae.config.latent_channels,
            calls=lambda: pipe.num_timesteps,
            watch=lambda prediction: self._watch(prediction, steps, second),
            first=(lambda predict: predict()) if second else self._first,
            guide=functools.partial(self._guided, steps) if self.plugged.having("guide") else None,
        )
        pipe = pipeline(
            vae=model.vae,
            text_encoder=None,  # the embeddings are ours
            tokenizer=None,
            unet=denoiser,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        for name, value in start.items():
            setattr(pipe, name, value)
        inputs |= self._after_steps(pipe, steps, bool(start.get("soft")))
        first = conditioning.at(0)
        with interruptible(model.net, self.check):
            latents: torch.Tensor = pipe(
                prompt_embeds=first.positives[0][0].float(),
                negative_prompt_embeds=first.negative.float(),
                num_images_per_prompt=self.batch // len(first.negative),
                num_inference_steps=num_inference_steps,
                guidance_scale=denoiser.pipeline_scale,
                eta=schedulers.eta(request),
                generator=self.noise.generators,
                output_type="latent",
                return_dict=False,
                **inputs,
            )[0]
        return latents

    def _after_steps(self, pipe: Any, steps: int, soft: bool) -> dict[str, Any]:
        """What the pipeline is to call after each step, and with which of its tensors."""
        touched = bool(self.plugged.having("step_end"))
        if not (soft or touched):
            return {}

        def after(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            changed = pipe.soften(pipe, step, timestep, tensors) if soft else {}
            if touched:
                end = self._end(pipe, step, steps, timestep, tensors["latents"])
                changed["latents"] = self.plugged.step_end(end)
            return changed

        names = [name for name, wanted in (("mask", soft), ("latents", touched)) if wanted]
        return {"callback_on_step_end": after, "callback_on_step_end_tensor_inputs": names}

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
        step = prediction.call * steps // prediction.calls + 1
        every = self.means.delivery.preview_every
        preview = None
        if every and prediction.call % every == 0:
            x0 = self._reading(prediction.timestep).x0(prediction.model_input, prediction.guided)
            preview = self.model.preview.jpeg(x0)
        self._tell(f"{'Second pass, step' if second else 'Step'} {step} of {steps}", preview)

    def _tell(self, stage: str, preview: bytes | None = None) -> None:
        self.check()
        self.means.report(Progress(stage, self.net_calls, max(self.expected_calls, self.net_calls), preview))
