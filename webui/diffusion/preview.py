"""What the picture will be: the predicted clean latents (x0) of one net call, shown as a small JPEG.

Many schedulers report no x0, so it is computed here from what the net saw and said. Decoding it with the
VAE would cost as much as a step; an affine map from latents to colours, fitted once per VAE, costs nothing.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch.nn import functional

LONG_SIDE = 512  # pixels of a preview, at most
ENLARGE = 8  # pixels per latent pixel, at most: what the picture itself has
TRAIN_TIMESTEPS = 1000  # of flow models, whose sigma is timestep / 1000


@dataclass(frozen=True)
class Reading:
    """How a net's output is read at one timestep, where its input is signal * x0 + noise * eps.

    Variance-exploding and variance-preserving schedulers agree on that after ``scale_model_input``, with
    signal^2 = alphas_cumprod = 1 - noise^2. Of flow models noise is sigma, and signal 1 - sigma.
    """

    prediction_type: str
    signal: float
    noise: float

    @classmethod
    def at(
        cls, timestep: torch.Tensor | float, alphas_cumprod: torch.Tensor | None, prediction_type: str
    ) -> Reading:
        """``timestep``: 0..999, fractional for Karras and other sigmas.

        Raises:
            ValueError: there are no ``alphas_cumprod``, which all but flow models need.
        """
        if prediction_type == "flow_prediction":
            sigma = float(timestep) / TRAIN_TIMESTEPS
            return cls(prediction_type, 1 - sigma, sigma)
        if alphas_cumprod is None:
            raise ValueError(f"alphas_cumprod is needed for {prediction_type}")
        alpha = alpha_at(alphas_cumprod, float(timestep))
        return cls(prediction_type, math.sqrt(alpha), math.sqrt(1 - alpha))

    def x0(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The clean latents that an output for the input ``x`` means.

        * "epsilon": x0 = (x - noise eps) / signal  (Ho et al. 2020, arXiv:2006.11239, eq. 15)
        * "v_prediction": x0 = signal x - noise v  (Salimans & Ho 2022, arXiv:2202.00512, app. D)
        * "flow_prediction": x0 = x - noise v  (Lipman et al. 2022, arXiv:2210.02747)
        * "sample": the output is x0
        """
        match self.prediction_type:
            case "sample":
                return output
            case "flow_prediction":
                return x - self.noise * output
            case "v_prediction":
                return self.signal * x - self.noise * output
            case _:
                return (x - self.noise * output) / self.signal

    def output(self, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """The output for the input ``x`` that means the clean latents ``x0``: the inverse of :meth:`x0`."""
        match self.prediction_type:
            case "sample":
                return x0
            case "flow_prediction":
                return (x - x0) / self.noise
            case "v_prediction":
                return (self.signal * x - x0) / self.noise
            case _:
                return (x - self.signal * x0) / self.noise


def alpha_at(alphas_cumprod: torch.Tensor, timestep: float) -> float:
    """alphas_cumprod between two timesteps, linear in log sigma, as schedulers place Karras sigmas.

    sigma^2 = (1 - a) / a, so that log sigma = -logit(a) / 2.
    """
    last = len(alphas_cumprod) - 1
    index = min(max(int(timestep), 0), last)
    pair = alphas_cumprod[[index, min(index + 1, last)]].double()
    below, above = torch.logit(pair.clamp(min=2**-24))  # zero terminal SNR; diffusers' own bound
    return float(torch.lerp(below, above, timestep - index).sigmoid())


class Preview(Protocol):
    """Shows scaled latents (B, C, h, w) as one row of pictures, at most 512 px long."""

    def jpeg(self, x0: torch.Tensor) -> bytes: ...
    def picture(self, x0: torch.Tensor) -> Image.Image: ...


@dataclass(frozen=True)
class LatentPreview:
    """An affine map from scaled latents to RGB in -1..1, the same for every latent pixel.

    ``weight`` (3, C) and ``bias`` (3,), float32 on the CPU.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, vae: Any) -> LatentPreview:
        """Least squares over a few synthetic pictures, encoded once by this VAE.

        ``vae``: an ``AutoencoderKL`` of any channel count, dtype and device. Where half precision makes
        its encoder overflow, the previews are grey. Costs four encodings of 128 x 128 px.
        """
        pictures, latents = probes(vae)
        colours = functional.adaptive_avg_pool2d(pictures, (latents.shape[2], latents.shape[3]))

        known = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
        rows, targets = (a.movedim(1, -1).flatten(0, -2).double() for a in (known, colours))
        finite = rows.isfinite().all(dim=1)
        solution = torch.linalg.lstsq(rows[finite], targets[finite]).solution.float()
        return cls(weight=solution[:-1].T.contiguous(), bias=solution[-1])

    def affine(self) -> torch.Tensor:
        """(3, C + 1), weight and bias."""
        return torch.cat([self.weight, self.bias[:, None]], dim=1)

    def jpeg(self, x0: torch.Tensor) -> bytes:
        """Scaled latents (B, C, h, w) of a batch as a JPEG: one row of pictures, at most 512 px long."""
        return jpeg(self.picture(x0))

    def picture(self, x0: torch.Tensor) -> Image.Image:
        """The same, RGB."""
        rgb = torch.einsum("rc,bchw->bhwr", self.weight, x0.float().cpu()) + self.bias
        return row(rgb, ENLARGE)


class FittedLater:
    """A latent preview that is fitted when it is first asked for: encoding is no part of loading a model."""

    def __init__(self, fit: Callable[[], LatentPreview]) -> None:
        self._fit = fit

    @functools.cached_property
    def _fitted(self) -> LatentPreview:
        return self._fit()

    def affine(self) -> torch.Tensor:
        return self._fitted.affine()

    def jpeg(self, x0: torch.Tensor) -> bytes:
        return self._fitted.jpeg(x0)

    def picture(self, x0: torch.Tensor) -> Image.Image:
        return self._fitted.picture(x0)


def jpeg(picture: Image.Image) -> bytes:
    """A preview as it is sent."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def row(rgb: torch.Tensor, enlarge: float) -> Image.Image:
    """Pictures (B, h, w, 3) in -1..1 beside each other, ``enlarge`` times as large, at most 512 px long."""
    batch, height, width, _ = rgb.shape
    pixels = ((rgb + 1) * 127.5).clamp(0, 255).round().byte().numpy()
    enlarge = min(enlarge, LONG_SIDE / max(height, batch * width))
    size = max(1, int(width * enlarge)), max(1, int(height * enlarge))
    whole = Image.new("RGB", (batch * size[0], size[1]))
    for k, picture in enumerate(pixels):
        whole.paste(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC), (k * size[0], 0))
    return whole


@torch.no_grad()
def probes(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (4, 3, 128, 128) in -1..1, and what this VAE makes of them: scaled latents, float32, CPU."""
    pictures = _pictures()
    moments = [vae.encode(picture[None].to(vae.device, vae.dtype)).latent_dist for picture in pictures]
    latents = torch.cat([distribution.mode() for distribution in moments]).float().cpu()
    return pictures, (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor


def _pictures() -> torch.Tensor:
    """Pictures to fit on, (4, 3, 128, 128) in -1..1: random colours flowing into each other every 16 px.

    Of solid pictures, patches, gradients, rectangles and such noise of several grain sizes, this came
    nearest to true decodings (21.1 dB at latent resolution with the embedded VAE; the best affine map there
    is, fitted to the decodings themselves, has 21.8): it covers all colours, and the borders between them.
    """
    grains = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return functional.interpolate(grains, size=(128, 128), mode="bicubic").clamp(-1, 1)
