"""Pictures <-> latents, with a model's VAE."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch.nn import functional

from webui.diffusion.denoiser import interruptible
from webui.diffusion.model import Model
from webui.errors import NotANumber

LATENT_MODES: dict[str, dict[str, Any]] = {  # names as users know them -> torch.nn.functional.interpolate
    "Latent": {"mode": "bilinear"},
    "Latent (nearest)": {"mode": "nearest"},
    "Latent (bicubic)": {"mode": "bicubic"},
}


def scaled(vae: Any, latents: torch.Tensor, shifted: bool = True) -> torch.Tensor:
    """What a net is given of a VAE's latents, float32: shifted where the VAE says so, and of variance 1."""
    if shifted and (shift := getattr(vae.config, "shift_factor", None)):
        latents = latents.float() - shift
    return latents.float() * float(vae.config.scaling_factor)


def unscaled(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`scaled`, in the VAE's precision."""
    latents = latents / vae.config.scaling_factor
    if shift := getattr(vae.config, "shift_factor", None):
        latents = latents + shift
    return latents.to(vae.dtype)


class Codec:
    """For one batch of B pictures: each is encoded with its own ``generators``."""

    def __init__(
        self, model: Model, check: Callable[[], None], generators: Sequence[torch.Generator]
    ) -> None:
        """``check`` is called between any two blocks of the VAE, and may raise."""
        self.model = model
        self.check = check
        self.generators = generators
        self.scale = 2 ** (len(model.vae.config.block_out_channels) - 1)  # pixels per latent pixel
        self.processor = VaeImageProcessor(vae_scale_factor=self.scale)

    def encode(self, images: Sequence[Image.Image], without: Image.Image | None = None) -> torch.Tensor:
        """Pictures of one size -> scaled latents (B, C, h, w) float32, sampled with their generators.

        Where the mask ``without`` (L) is white, they are grey, which is 0 to the VAE.
        """
        vae = self.model.vae
        pixels = self.processor.preprocess(list(images))
        if without is not None:
            pixels = pixels * torch.from_numpy(np.array(without) < 128)
        with interruptible(vae.encoder, self.check):
            latents = [  # slices, which keep the strides: others would give other last bits
                self._distribution(pixels[k : k + 1]).sample(generator)
                for k, generator in zip(range(len(pixels)), self.generators, strict=True)
            ]
        return scaled(vae, torch.cat(latents))

    def glance(self, image: Image.Image) -> torch.Tensor:
        """A picture -> the mean of its scaled latents (1, C, h, w) float32; draws nothing."""
        return scaled(self.model.vae, self._mean(self.processor.preprocess(image)))

    def shown(self, image: Image.Image, shifted: bool = True) -> torch.Tensor:
        """As :meth:`glance`, for a ControlNet: of pixels as its pipelines have them in memory, to the last
        bit; ``shifted`` or only scaled."""
        return scaled(self.model.vae, self._mean(self.processor.preprocess(image).contiguous()), shifted)

    def _mean(self, pixels: torch.Tensor) -> torch.Tensor:
        with interruptible(self.model.vae.encoder, self.check):
            mean: torch.Tensor = self._distribution(pixels).mean
        return mean

    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Scaled latents (B, C, h, w) -> 8-bit RGB pictures.

        Raises:
            NotANumber: the latents or the decoded pixels are not finite.
        """
        vae = self.model.vae
        require_finite(latents, "net")
        with self.model.stage("vae"), interruptible(vae.decoder, self.check):
            pixels = vae.decode(unscaled(vae, latents), return_dict=False)[0]
            if vae.dtype != torch.float32 and not torch.isfinite(pixels).all():
                with in_full(vae):
                    pixels = vae.decode(unscaled(vae, latents), return_dict=False)[0]
        require_finite(pixels, "VAE")
        self.check()
        images: list[Image.Image] = self.processor.postprocess(pixels.float(), output_type="pil")
        return images

    def resized(self, latents: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
        """Latents (B, C, h, w) as of pictures of ``size``: (width, height) in pixels."""
        width, height = size
        cells = height // self.scale, width // self.scale
        return functional.interpolate(latents, size=cells, **LATENT_MODES[mode])

    def whole_cells(self, image: Image.Image) -> Image.Image:
        """Cut to a multiple of ``scale`` pixels each way, as diffusers does, but never to nothing."""
        scale = self.scale
        size = max(scale, image.width // scale * scale), max(scale, image.height // scale * scale)
        return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)

    def _distribution(self, pixels: torch.Tensor) -> Any:
        """The VAE's distribution over latents of one picture (1, 3, H, W), encoded once."""
        vae = self.model.vae
        layout = f"{tuple(pixels.shape)} {pixels.stride()}"
        key = hashlib.sha256(layout.encode() + pixels.numpy().tobytes()).digest()

        def encode() -> Any:
            with self.model.stage("vae"):
                return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist

        return self.model.encoded(key, encode)


@contextmanager
def in_full(vae: Any) -> Iterator[None]:
    """In float32: some VAEs, SDXL's first among them, overflow in half precision.

    The weights are given back as they were: what half precision holds, float32 holds exactly.
    """
    half = vae.dtype
    try:
        vae.to(torch.float32)
        yield
    finally:
        vae.to(half)


def require_finite(tensor: torch.Tensor, where: str) -> None:
    """
    Raises:
        NotANumber: what ``where`` gave holds values that are not finite.
    """
    if not torch.isfinite(tensor).all():
        raise NotANumber(
            f"The {where} produced values that are not numbers, so there is no picture. "
            "Starting the program with --dtype float32 usually helps; a damaged model does this too."
        )
