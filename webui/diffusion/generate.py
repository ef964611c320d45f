"""One request in, one result out. Nothing else makes pictures.

Each pass is diffusers' own pipeline, made anew round the resident weights with a fresh scheduler
(:mod:`webui.diffusion.passes`); this module draws the noise, decodes, and adds the second ('hires') pass. The
same request gives the
same pixels as a plain call of the pipeline (in float32 on a CPU: bit for bit).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from webui import masks
from webui.diffusion import adapters, controls, prompts, references, schedulers, vaes
from webui.diffusion.auto import AsIs
from webui.diffusion.codec import LATENT_MODES, Codec
from webui.diffusion.devices import PeakMemory, plain_memory_errors
from webui.diffusion.model import Model
from webui.diffusion.noise import Noise
from webui.diffusion.passes import Means as Means
from webui.diffusion.passes import Sampler
from webui.diffusion.pipelines import cells_of
from webui.diffusion.recorder import Recorder
from webui.flight import FlightRecord
from webui.request import GenerationRequest, GenerationResult, Picture

IMAGE_MODES = {
    "Lanczos": Image.Resampling.LANCZOS,
    "Bicubic": Image.Resampling.BICUBIC,
    "Nearest": Image.Resampling.NEAREST,
}


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
    with _added(means) as added, _refined(means) as means, means.plugged.around(added) as model:
        run = (_AsIs if model.family.facts.auto else _Passes)(request, pictures, model, means)
        return run.result(request, run.images())


def together(requests: Sequence[GenerationRequest], means: Means) -> list[GenerationResult]:
    """Make one picture of each request in one batch. Requests must be :func:`alike`, and without plugins.

    All add the same LoRAs, and no embeddings. Each equals its single run but for the last bits of float32: a
    batch adds up in another order. The seconds of each result are its share. None of them is recorded. Raises
    as :func:`generate`.
    """
    whole = requests[0].replace(num_images_per_prompt=len(requests))
    means = replace(means, delivery=means.delivery.replace(record=False))
    with _added(means) as model, _refined(means) as means:
        run = _Passes(whole, requests, model, means)
        images = run.images()
    return [run.result(one, [image]) for one, image in zip(requests, images, strict=True)]


@contextmanager
def _added(means: Means) -> Iterator[Model]:
    """The model with what the request adds to it. Plugins patch that, and are watched while it is so."""
    if means.model.family.facts.auto:  # nothing can be added
        yield means.model
        return
    with (
        adapters.applied(means.model, means.additions) as model,
        references.applied(
            model, means.additions.reference, means.reference, means.device, means.guests
        ) as told,
    ):
        heeding = controls.controlled(told, [found for _, found in means.additions.controls])
        yield _with_vae(heeding, means)


@contextmanager
def _refined(means: Means) -> Iterator[Means]:
    """With a refiner as the request changes it: LoRAs are for the model's own family, a VAE is for any."""
    if means.refiner is None:
        yield means
        return
    own = means.refiner.family is means.model.family
    with adapters.applied(means.refiner, means.additions) if own else nullcontext(means.refiner) as refiner:
        yield replace(means, refiner=_with_vae(refiner, means))


def _with_vae(model: Model, means: Means) -> Model:
    """Last of all: what is remembered of the others' changes is not to keep a VAE in memory."""
    return vaes.with_vae(model, means.additions.vae, means.device, means.guests)


def alike(a: GenerationRequest, b: GenerationRequest, encoder: prompts.TextEncoder) -> bool:
    """Whether two requests can share a batch: they differ only in prompts, seeds and guidance scale.

    Both or neither must be guided, and their prompts must take as many parts and chunks of tokens.
    """
    if not encoder.towers:  # their pipelines make one picture after another
        return False
    own = {"prompt", "negative_prompt", "seed", "variation_seed", "guidance_scale"}
    own |= {"template", "negative_template", "prepared"}
    if a.replace(**{name: getattr(b, name) for name in own}) != b:
        return False
    if (a.guidance_scale > 1) != (b.guidance_scale > 1) or a.num_images_per_prompt > 1:
        return False
    return prompts.form(encoder, a) == prompts.form(encoder, b)


class _Run(ABC):
    """What makes one batch. ``pictures`` are the requests of its pictures, ``request`` what they share."""

    net_calls: int
    flight: FlightRecord | None = None
    recorder: Recorder | None = None

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
        self.batch = len(pictures)

    def images(self) -> list[Image.Image]:
        """One picture for each request."""
        image = self.means.image
        with torch.no_grad(), plain_memory_errors():
            if image is None:
                return self.text_to_image()
            if self.request.task == "img2img":
                return self.image_to_image(image)
            return self.inpaint(masks.prepare(self.request, image, self.means.mask))

    @abstractmethod
    def text_to_image(self) -> list[Image.Image]: ...

    @abstractmethod
    def image_to_image(self, image: Image.Image) -> list[Image.Image]:
        """Noise the source up to the strength, and go on from there."""

    @abstractmethod
    def inpaint(self, plan: masks.Repaint) -> list[Image.Image]:
        """Repaint what the mask covers, and lay it into the source: outside not a pixel changes."""

    def result(self, request: GenerationRequest, images: Sequence[Image.Image]) -> GenerationResult:
        """Of the request that made these of the batch's pictures."""
        watching = self.recorder.seconds if self.recorder else 0.0
        return GenerationResult(
            request=request,
            pictures=tuple(self._finished(request, images)),
            plugins=self.plugged.versions,
            model=self.model.name,
            model_hash=self.model.sha256,
            net_calls=self.net_calls,
            seconds=(time.perf_counter() - self.began - watching) * len(images) / self.batch,
            peak_memory=self.memory.read(),
            device=str(self.means.device),
            flight=self.flight,
        )

    def _finished(self, request: GenerationRequest, images: Sequence[Image.Image]) -> Iterator[Picture]:
        """Each picture, and after it what a plugin keeps beside it."""
        for k, image in enumerate(images):
            own = request.picture(k)
            for n, each in enumerate(self.plugged.finish(image, own, self.check)):
                yield Picture(each, own, k, beside=n > 0)

    def _corrected(self, picture: Image.Image, source: Image.Image) -> Image.Image:
        return masks.match_colors(picture, source) if self.request.color_correction else picture


class _AsIs(_Run):
    """By a pipeline of diffusers called as it is."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.maker = AsIs(self.request, self.model, self.means)

    @property
    def net_calls(self) -> int:  # type: ignore[override]
        return self.maker.net_calls

    def text_to_image(self) -> list[Image.Image]:
        return [self.maker.picture(own) for own in self.pictures]

    def image_to_image(self, image: Image.Image) -> list[Image.Image]:
        request = self.request
        source = masks.resized(image, (request.width, request.height), request.resize_mode)
        return [self._corrected(self.maker.picture(own, image=source), source) for own in self.pictures]

    def inpaint(self, plan: masks.Repaint) -> list[Image.Image]:
        sources = {"image": plan.image, "mask_image": plan.hard}
        pictures = (self.maker.picture(own, **sources) for own in self.pictures)
        return [plan.finish(self._corrected(picture, plan.image)) for picture in pictures]


class _Passes(_Run):
    """By passes of our own, between whose steps we work."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        request, pictures, model, means = self.request, self.pictures, self.model, self.means
        self.family = model.family
        self.device = torch.device(means.device.name)
        self.noise = Noise(pictures, model.noises)
        self.codec = Codec(model, self.check, self.noise.generators)
        self.scale = self.codec.scale
        self.steps, self.second_steps = schedulers.steps(request, self.family.facts.rounds_up)
        if means.delivery.record:
            self._recorded()
        self.sampler = Sampler(request, pictures, self.model, self.means, self.noise.generators, self.scale)
        self.sampler.recorder = self.recorder

    def _recorded(self) -> None:
        """Let the run be watched, and its parts be timed."""
        means, steps = self.means, self.steps
        self.recorder = recorder = Recorder(
            *(self.pictures, self.model, means.device, means.plugged, steps, self.scale, means.refiner),
            means.additions.infotext(),
        )
        self.model = recorder.timed(self.model)
        if means.refiner is not None:
            self.means = replace(means, refiner=recorder.timed(means.refiner))
        self.codec = Codec(self.model, self.check, self.noise.generators)

    @property
    def net_calls(self) -> int:  # type: ignore[override]
        return self.sampler.net_calls

    def images(self) -> list[Image.Image]:
        with torch.no_grad(), plain_memory_errors():
            self.sampler.controls = list(self._controls())
        images = super().images()
        if self.recorder is not None:
            with torch.no_grad(), plain_memory_errors():
                self.sampler.tell("Keeping the record")
                codec = self.codec if self.request.hires else self._made_by()
                self.flight = self.recorder.finish(codec.decode)
        return images

    def _controls(self) -> Iterator[controls.Control]:
        """The ControlNets of the request, and what they look at."""
        means = self.means
        for unit, found in means.additions.controls:
            picture = means.controls.get(unit.stem) or means.image
            if picture is not None:
                component = means.additions.component(found)
                net = controls.load(self.model, found, unit, component, means.device, means.guests)
                yield controls.of(
                    self.request, unit, self.model, net, self.codec, picture, means.image, means.mask
                )

    # The three tasks

    def text_to_image(self) -> list[Image.Image]:
        latents = self.first_pass()
        if self.request.hires:
            latents = self.second_pass(self._enlarge(latents))
        return self._decode(latents)

    def image_to_image(self, image: Image.Image) -> list[Image.Image]:
        request = self.request
        size = request.width, request.height
        source = masks.resized(image, size, request.resize_mode)
        if request.resize_mode == "Latent":
            latents = self.codec.encode([self.codec.whole_cells(image)] * self.batch)
            latents = self.codec.resized(latents, size, "Latent")
        else:
            latents = self.codec.encode([source] * self.batch)
        latents = self.sampler.run(
            "img2img",
            self.steps,
            start={"noise": self.start_noise()},
            image=latents,
            strength=request.strength,
            num_inference_steps=request.num_inference_steps,
        )
        return [self._corrected(picture, source) for picture in self._decode(latents)]

    def inpaint(self, plan: masks.Repaint) -> list[Image.Image]:
        request = self.request
        cells = cells_of(
            plan.soft if request.soft_inpainting else plan.hard, self.scale, request.soft_inpainting
        )
        latents = self.sampler.run(
            "inpaint",
            self.steps,
            start=self._repainting(plan, cells),
            image=plan.image,
            mask_image=plan.hard,
            strength=request.strength,
            num_inference_steps=request.num_inference_steps,
        )
        pictures = (self._corrected(picture, plan.image) for picture in self._decode(latents))
        return [plan.finish(picture) for picture in pictures]

    # Their parts

    def first_pass(self) -> torch.Tensor:
        """Text to latents (B, C, h, w), float32."""
        request = self.request
        return self.sampler.run(
            "txt2img",
            request.num_inference_steps,
            latents=self.family.packed(self.start_noise()),
            num_inference_steps=request.num_inference_steps,
        )

    def second_pass(self, latents: torch.Tensor) -> torch.Tensor:
        """Image to image over the enlarged latents (B, C, H, W), with its own steps and strength."""
        request = self.request
        self.sampler.start = self.noise.draw(latents.shape).to(latents)
        return self.sampler.run(
            "img2img",
            self.second_steps,
            start={"noise": self.sampler.start},
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
        noise = self.noise.start(shape).to(self.device)
        self.sampler.start = self.plugged.start(
            noise, lambda image: self.codec.glance(image.convert("RGB")), self.means.image
        )
        return self.sampler.start

    def _repainting(self, plan: masks.Repaint, cells: torch.Tensor) -> dict[str, Any]:
        """What an inpainting starts from: the attributes of :class:`Repainting`.

        The generators are used in the order in which diffusers' pipeline uses them: source, noise, masked
        source. It encodes the last even for a net that takes no mask; only its draw is repeated here.
        """
        request = self.request
        takes_mask = self.family.takes_mask(self.model.net, self.model.vae)
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
            "calls": self.sampler.expected_calls,
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
        """By the model that made them."""
        self.sampler.tell("Decoding the picture")
        images = self._made_by().decode(latents)
        if self.recorder is not None:
            self.recorder.saw(latents, images)
        return images

    def _made_by(self) -> Codec:
        """Of the model whose net was called last."""
        maker = self.sampler.latest
        return self.codec if maker is self.model else Codec(maker, self.check, self.noise.generators)
