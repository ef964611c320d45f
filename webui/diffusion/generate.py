"""One request in, one result out. Nothing else makes pictures.

Each pass is diffusers' own pipeline, made anew round the resident weights with a fresh scheduler; this
module draws the noise, watches, decodes, and adds the second ('hires') pass. The same request gives the
same pixels as a plain call of the pipeline (in float32 on a CPU: bit for bit).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch.nn import functional

from webui.diffusion import prompts, schedulers
from webui.diffusion.denoiser import Denoiser, Prediction, interruptible
from webui.diffusion.devices import Device, PeakMemory
from webui.diffusion.manager import Model
from webui.diffusion.preview import predict_x0
from webui.errors import NotANumber, OutOfMemory
from webui.jobs import Progress
from webui.request import MAX_SEED, Delivery, GenerationRequest, GenerationResult, Picture

LATENT_MODES: dict[str, dict[str, Any]] = {  # names as users know them -> torch.nn.functional.interpolate
    "Latent": {"mode": "bilinear"},
    "Latent (nearest)": {"mode": "nearest"},
    "Latent (bicubic)": {"mode": "bicubic"},
}
IMAGE_MODES = {
    "Lanczos": Image.Resampling.LANCZOS,
    "Bicubic": Image.Resampling.BICUBIC,
    "Nearest": Image.Resampling.NEAREST,
}


def generate(
    request: GenerationRequest,
    model: Model,
    device: Device,
    delivery: Delivery,
    report: Callable[[Progress], None],
    check: Callable[[], None],
) -> GenerationResult:
    """Make the pictures of one request.

    Args:
        request: complete, as :meth:`webui.engine.Engine.submit` leaves it: real seeds, a known scheduler.
        report: is told of each stage and of every call of the net.
        check: is called often, between any two blocks of the net and the VAE; raises Cancelled to stop.

    Raises:
        Cancelled: ``check`` said so.
        InvalidField: this model cannot do what was asked (clip skip, scheduler, prompt).
        OutOfMemory, NotANumber: the run failed; the message says what may help.
    """
    start = time.perf_counter()
    memory = PeakMemory(device)
    run = _Run(request, model, delivery, report, check)
    with torch.no_grad(), _plain_memory_errors():
        latents = run.first_pass()
        if request.hires:
            latents = run.second_pass(run.enlarge(latents))
        images = run.decode(latents)
    return GenerationResult(
        request=request,
        pictures=tuple(Picture(image, request.picture(k), k) for k, image in enumerate(images)),
        model=model.name,
        model_hash=model.sha256,
        net_calls=run.net_calls,
        seconds=time.perf_counter() - start,
        peak_memory=memory.read(),
        device=str(device),
    )


class _Run:
    """The passes of one request. Its generators go on from one pass to the next."""

    def __init__(
        self,
        request: GenerationRequest,
        model: Model,
        delivery: Delivery,
        report: Callable[[Progress], None],
        check: Callable[[], None],
    ) -> None:
        self.request = request
        self.model = model
        self.delivery = delivery
        self.report = report
        self.check = check
        self.generators = [_generator(request.seed + k) for k in range(request.num_images_per_prompt)]
        if request.variation_strength > 0:
            self.generators = [_generator(request.seed) for _ in self.generators]
        self.scale = 2 ** (len(model.vae.config.block_out_channels) - 1)  # pixels per latent pixel
        self.processor = VaeImageProcessor(vae_scale_factor=self.scale)
        self.second_steps = _second_steps(request)
        self.expected_calls = schedulers.net_calls(request.scheduler, request.num_inference_steps)
        if request.hires:
            self.expected_calls += schedulers.net_calls(request.scheduler, self.second_steps)
        self.net_calls = 0

    def first_pass(self) -> torch.Tensor:
        """Text to latents (B, C, h, w), float32."""
        request = self.request
        return self._sample(
            StableDiffusionPipeline,
            request.num_inference_steps,
            width=request.width,
            height=request.height,
            latents=self.noise(),
            num_inference_steps=request.num_inference_steps,
        )

    def second_pass(self, latents: torch.Tensor) -> torch.Tensor:
        """Image to image over the enlarged latents (B, C, H, W), with its own steps and strength."""
        request = self.request
        return self._sample(
            StableDiffusionImg2ImgPipeline,
            self.second_steps,
            second=True,
            image=latents,
            strength=request.hires_strength,
            num_inference_steps=request.hires_steps or request.num_inference_steps,
        )

    def noise(self) -> torch.Tensor:
        """Standard normal start noise, (B, C, h, w) float32, drawn on the CPU: the same on every device."""
        request = self.request
        channels = self.model.vae.config.latent_channels
        shape = (1, channels, request.height // self.scale, request.width // self.scale)
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in self.generators])
        if request.variation_strength > 0:
            others = [_generator(request.variation_seed + k) for k in range(len(noise))]
            other = torch.cat([torch.randn(shape, generator=generator) for generator in others])
            noise = slerp(noise, other, request.variation_strength)
        return noise

    def enlarge(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) of the first pass at the size of the second."""
        width, height = self.request.final_size
        upscaler = self.request.hires_upscaler
        if upscaler in LATENT_MODES:
            size = (height // self.scale, width // self.scale)
            return functional.interpolate(latents, size=size, **LATENT_MODES[upscaler])
        images = [image.resize((width, height), IMAGE_MODES[upscaler]) for image in self.decode(latents)]
        return self.encode(images)

    def encode(self, images: list[Image.Image]) -> torch.Tensor:
        """Pictures of one size -> scaled latents (B, C, h, w) float32, sampled with their generators."""
        vae = self.model.vae
        pixels = self.processor.preprocess(images).to(vae.device, vae.dtype)
        with interruptible(vae.encoder, self.check):
            latents = [
                vae.encode(pixel[None]).latent_dist.sample(generator)
                for pixel, generator in zip(pixels, self.generators, strict=True)
            ]
        return torch.cat(latents).float() * float(vae.config.scaling_factor)

    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Scaled latents (B, C, h, w) -> 8-bit RGB pictures.

        Raises:
            NotANumber: the latents or the decoded pixels are not finite.
        """
        vae = self.model.vae
        self._tell("Decoding the picture")
        _require_finite(latents, "net")
        with interruptible(vae.decoder, self.check):
            pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
        _require_finite(pixels, "VAE")
        self.check()
        images: list[Image.Image] = self.processor.postprocess(pixels.float(), output_type="pil")
        return images

    def _sample(
        self,
        pipeline: type[Any],
        steps: int,
        num_inference_steps: int,
        second: bool = False,
        **inputs: Any,
    ) -> torch.Tensor:
        """Run one pass of ``steps`` steps; returns its last latents (B, C, h, w) float32."""
        request, model = self.request, self.model
        self._tell("Reading the prompt")
        with interruptible(model.encoder.text_encoder, self.check):
            conditioning = prompts.encode(
                model.encoder,
                request.prompt,
                request.negative_prompt,
                request.clip_skip,
                steps,
                steps_before=request.num_inference_steps if second else 0,
            )
        scheduler = schedulers.build(
            request.replace(num_inference_steps=num_inference_steps), model.scheduler_config
        )
        denoiser = Denoiser(
            net=model.unet,
            conditioning=conditioning,
            guidance_scale=request.guidance_scale,
            steps=steps,
            calls=lambda: pipe.num_timesteps,
            watch=lambda prediction: self._watch(prediction, steps, second, scheduler),
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
        start = conditioning.at(0)
        with interruptible(model.unet, self.check):
            latents: torch.Tensor = pipe(
                prompt_embeds=start.positives[0][0].float(),
                negative_prompt_embeds=start.negative.float(),
                num_images_per_prompt=request.num_images_per_prompt,
                num_inference_steps=num_inference_steps,
                guidance_scale=request.guidance_scale,
                eta=schedulers.eta(request),
                generator=self.generators,
                output_type="latent",
                return_dict=False,
                **inputs,
            )[0]
        return latents

    def _watch(self, prediction: Prediction, steps: int, second: bool, scheduler: Any) -> None:
        """After each call of the net: count it, and show what it predicts."""
        self.check()
        self.net_calls += 1
        step = prediction.call * steps // prediction.calls + 1
        every = self.delivery.preview_every
        preview = None
        if every and prediction.call % every == 0:
            x0 = predict_x0(
                prediction.model_input,
                prediction.guided,
                prediction.timestep,
                getattr(scheduler, "alphas_cumprod", None),
                scheduler.config.get("prediction_type", "flow_prediction"),
            )
            preview = self.model.preview.jpeg(x0)
        self._tell(f"{'Second pass, step' if second else 'Step'} {step} of {steps}", preview)

    def _tell(self, stage: str, preview: bytes | None = None) -> None:
        self.check()
        self.report(Progress(stage, self.net_calls, max(self.expected_calls, self.net_calls), preview))


def slerp(a: torch.Tensor, b: torch.Tensor, strength: float) -> torch.Tensor:
    """Between two noises along the sphere, per picture, so that the result is as large as noise is.

    a, b: (B, C, h, w); strength 0 gives ``a``, 1 gives ``b``. Shoemake, 'Animating rotation with
    quaternion curves' (1985): (sin((1-s) w) a + sin(s w) b) / sin w, w the angle between them.
    """
    x, y = a.flatten(1).double(), b.flatten(1).double()
    cosine = functional.cosine_similarity(x, y, dim=1).clamp(-1, 1)[:, None]
    angle = torch.acos(cosine)
    along = (torch.sin((1 - strength) * angle) * x + torch.sin(strength * angle) * y) / torch.sin(angle)
    parallel = angle.abs() < 1e-6  # the same noise twice: nothing to turn through
    mixed = torch.where(parallel, x, along)
    return mixed.to(a.dtype).view_as(a)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed % (MAX_SEED + 1))


def _second_steps(request: GenerationRequest) -> int:
    """Steps that the second pass really takes: as diffusers' img2img counts them."""
    return int((request.hires_steps or request.num_inference_steps) * request.hires_strength)


def _require_finite(tensor: torch.Tensor, where: str) -> None:
    if not torch.isfinite(tensor).all():
        raise NotANumber(
            f"The {where} produced values that are not numbers, so there is no picture. "
            "Starting the program with --dtype float32 usually helps; a damaged model does this too."
        )


@contextmanager
def _plain_memory_errors() -> Iterator[None]:
    """torch's ways of running out of memory, as one error that says what helps."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory() from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch's CPU allocator has no class of its own
            raise
        raise _out_of_memory() from error


def _out_of_memory() -> OutOfMemory:
    return OutOfMemory("The device ran out of memory. A smaller size, batch or hires scale needs less.")
