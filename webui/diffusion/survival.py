"""How much of a source picture is left at the first step, as a picture: no call of the net is needed.

Image to image starts at a timestep t of its schedule from sqrt(a) x + sqrt(1 - a) noise, with a =
alphas_cumprod at t (Ho et al. 2020, arXiv:2006.11239, eq. 4), or (1 - s) x + s noise for a flow with s its
sigma (Lipman et al. 2022, arXiv:2210.02747): the latents that the net is given, decoded here.
"""

from __future__ import annotations

import math

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from webui import masks
from webui.diffusion import schedulers
from webui.diffusion.codec import scaled, unscaled
from webui.diffusion.devices import Device
from webui.diffusion.model import Model
from webui.diffusion.preview import TRAIN_TIMESTEPS, alpha_at
from webui.request import GenerationRequest

DECODED_PIXELS = 256 * 256  # on a CPU; beyond, the latents' approximate colours are shown


class Survival:
    """Remembers the latents of the last source, so that moving a slider costs one decoding."""

    def __init__(self) -> None:
        self._key: object = None
        self._latents = torch.empty(0)

    @torch.no_grad()
    def __call__(
        self, request: GenerationRequest, model: Model, device: Device, image: Image.Image
    ) -> Image.Image:
        """The noised picture at the first step of ``request``, RGB. Noise is that of its seed (0 for -1)."""
        latents = self._encoded(request, model, image)
        generator = torch.Generator("cpu").manual_seed(max(request.seed, 0))
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        signal, share = weights(request, model)
        noised = signal * latents + share * noise
        if device.name == "cpu" and request.width * request.height > DECODED_PIXELS:
            return model.preview.picture(noised)
        vae = model.vae
        with model.stage("vae"):
            pixels = vae.decode(unscaled(vae, noised), return_dict=False)[0]
        picture: Image.Image = VaeImageProcessor().postprocess(pixels.float(), output_type="pil")[0]
        return picture

    def _encoded(self, request: GenerationRequest, model: Model, image: Image.Image) -> torch.Tensor:
        """Scaled latents (1, C, h, w) of the resized source, float32: the mode of their distribution."""
        size = request.width, request.height
        key = (model.sha256, request.image, size, request.resize_mode)
        if key != self._key:
            vae = model.vae
            source = masks.resized(image, size, request.resize_mode)
            pixels = VaeImageProcessor().preprocess(source)
            with model.stage("vae"):
                mode = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
            self._latents = scaled(vae, mode)
            self._key = key
        return self._latents


def weights(request: GenerationRequest, model: Model) -> tuple[float, float]:
    """(of the picture, of the noise) in what the net is first given."""
    scheduler = schedulers.build(request, model.scheduler_config)
    model.family.set_timesteps(scheduler, request.num_inference_steps, request.width, request.height)
    rounds_up = model.family.facts.rounds_up
    skipped = request.num_inference_steps - schedulers.steps(request, rounds_up)[0]
    timestep = float(scheduler.timesteps[skipped * scheduler.order])
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        sigma = timestep / TRAIN_TIMESTEPS
        return 1 - sigma, sigma
    alpha = alpha_at(alphas, timestep)
    return math.sqrt(alpha), math.sqrt(1 - alpha)
