"""What diffusers' pipelines of every family are given, so that they start from what we tell them.

A studio draws the noise itself (variations, batches), encodes a source in the VAE's own precision, and
knows more ways to fill a mask than the pipelines do. So their two methods that prepare latents are
replaced; everything else, and so every number when the start is the same, is theirs. The classes here come
before a pipeline of diffusers among the bases of a family's own (:mod:`webui.diffusion.families`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

# B pictures, C latent channels, h x w latent pixels; scaled latents, float32, on the net's device.


class Ours:
    """Computes where the net does, wherever the other parts are."""

    @property
    def _execution_device(self) -> torch.device:
        net: Any = getattr(self, "unet", None) or getattr(self, "transformer", None)
        device: torch.device = net.device
        return device


class FromLatents(Ours):
    """Starts from latents (B, C, h, w), passed as ``image``, and from this noise of the same shape."""

    noise: torch.Tensor
    scheduler: Any

    def prepare_latents(self, image: torch.Tensor, timestep: torch.Tensor, *_: Any, **__: Any) -> Any:
        return self.scheduler.add_noise(image, self.noise, timestep)


class Repainting(Ours):
    """Repaints cells of the source's latents. A cell is a latent pixel.

    ``source`` and ``content`` (B, C, h, w) are the picture's latents and what the repainted cells start
    from; both None if nothing of them is needed (strength 1 of a net that takes the mask as input).
    ``masked`` (B, C, h, w) are the latents of the picture without what is masked, for such nets.
    ``cells`` (1, 1, h, w) is 1 where the net may repaint. With ``soft``, it is between: a cell of 0.3 is
    held to the source for the first 0.7 of the steps (differential diffusion, arXiv:2306.00950).
    """

    source: torch.Tensor | None
    content: torch.Tensor | None
    noise: torch.Tensor
    masked: torch.Tensor | None
    cells: torch.Tensor
    soft: bool
    calls: int  # of the net in this pass
    scheduler: Any

    def prepare_latents(
        self,
        *_: Any,
        timestep: torch.Tensor,
        is_strength_max: bool,
        return_image_latents: bool,
        **__: Any,
    ) -> tuple[Any, ...]:
        start = self._start(timestep, is_strength_max)
        return (start, self.noise, self.source) if return_image_latents else (start, self.noise)

    def _start(self, timestep: torch.Tensor, from_noise: bool) -> torch.Tensor:
        start: torch.Tensor = (
            self.noise * self.scheduler.init_noise_sigma
            if from_noise
            else self.scheduler.add_noise(self.content, self.noise, timestep)
        )
        return start

    def prepare_mask_latents(self, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self._mask = self._of_step(0).expand(len(self.noise), -1, -1, -1)
        masked = self.noise if self.masked is None else self.masked  # only the shape counts then
        if getattr(self, "do_classifier_free_guidance", False):
            self._mask, masked = torch.cat([self._mask] * 2), torch.cat([masked] * 2)
        else:
            self._mask = self._mask.clone()
        return self._mask, masked

    def soften(self, step: int) -> None:
        """After ``step``: let the mask, which the pipeline holds, be that of the one after it."""
        self._mask.copy_(self._of_step(step + 1))

    def _of_step(self, step: int) -> torch.Tensor:
        """1 where what ``step`` made is kept, 0 where the source takes its place again."""
        if not self.soft:
            return self.cells
        return (self.cells > 1 - (step + 1) / self.calls).to(self.cells)


def cells_of(mask: Image.Image, scale: int, soft: bool) -> torch.Tensor:
    """A mask (L, W x H) by latent pixels, (1, 1, h, w) in 0..1, float32.

    Hard: 1 where any pixel is painted, so that no stroke is too thin. Soft: the mean of its pixels.
    """
    pixels = torch.from_numpy(np.array(mask, dtype=np.float32) / 255)[None, None]
    if soft:
        return functional.avg_pool2d(pixels, scale)
    return (functional.max_pool2d(pixels, scale) >= 0.5).float()


def packed(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (B, h/2 * w/2, 4 C)."""
    batch, channels, height, width = latents.shape
    cells = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // 2 * (width // 2), channels * 4)


def unpacked(latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of :func:`packed`, to (B, C, height, width)."""
    batch, _, channels = latents.shape
    cells = latents.reshape(batch, height // 2, width // 2, channels // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)
