"""What the picture will be: the predicted clean latents (x0) of one net call, shown as a small JPEG.

Many schedulers report no x0, so it is computed here from what the net saw and said. Decoding it with the
VAE would cost as much as a step; an affine map from latents to colours, fitted once per VAE, costs nothing.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

LONG_SIDE = 512  # pixels of a preview, at most
ENLARGE = 8  # pixels per latent pixel, at most: what the picture itself has
TRAIN_TIMESTEPS = 1000  # of flow models, whose sigma is timestep / 1000


def predict_x0(
    model_input: torch.Tensor,
    output: torch.Tensor,
    timestep: torch.Tensor | float,
    alphas_cumprod: torch.Tensor | None,
    prediction_type: str,
) -> torch.Tensor:
    """The clean latents that one net call predicts, float32, of the shape of ``output``.

    ``model_input`` is what the net was given, after ``scale_model_input``: then variance-exploding and
    variance-preserving schedulers agree that it is sqrt(a) x0 + sqrt(1 - a) eps, with a = alphas_cumprod
    at ``timestep`` (0..999, fractional for Karras and other sigmas). ``output`` is after guidance. Hence

    * "epsilon": x0 = (x - sqrt(1 - a) eps) / sqrt(a)  (Ho et al. 2020, arXiv:2006.11239, eq. 15)
    * "v_prediction": x0 = sqrt(a) x - sqrt(1 - a) v  (Salimans & Ho 2022, arXiv:2202.00512, app. D)
    * "sample": the output is x0
    * "flow_prediction": x0 = x - sigma v  (Lipman et al. 2022, arXiv:2210.02747); takes no alphas_cumprod
    """
    x, output, t = model_input.float(), output.float(), float(timestep)
    if prediction_type == "sample":
        return output
    if prediction_type == "flow_prediction":
        return x - t / TRAIN_TIMESTEPS * output
    if alphas_cumprod is None:
        raise ValueError(f"alphas_cumprod is needed for {prediction_type}")
    alpha = alpha_at(alphas_cumprod, t)
    signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
    if prediction_type == "v_prediction":
        return signal * x - noise * output
    return (x - noise * output) / signal


def alpha_at(alphas_cumprod: torch.Tensor, timestep: float) -> float:
    """alphas_cumprod between two timesteps, linear in log sigma, as schedulers place Karras sigmas.

    sigma^2 = (1 - a) / a, so that log sigma = -logit(a) / 2.
    """
    last = len(alphas_cumprod) - 1
    index = min(max(int(timestep), 0), last)
    pair = alphas_cumprod[[index, min(index + 1, last)]].double()
    below, above = torch.logit(pair.clamp(min=2**-24))  # zero terminal SNR; diffusers' own bound
    return float(torch.lerp(below, above, timestep - index).sigmoid())


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
        pictures = _probes()
        moments = [vae.encode(picture[None].to(vae.device, vae.dtype)).latent_dist for picture in pictures]
        latents = torch.cat([distribution.mode() for distribution in moments]).float().cpu()
        latents = (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor
        colours = functional.adaptive_avg_pool2d(pictures, latents.shape[-2:])

        known = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
        rows, targets = (a.movedim(1, -1).flatten(0, -2).double() for a in (known, colours))
        finite = rows.isfinite().all(dim=1)
        solution = torch.linalg.lstsq(rows[finite], targets[finite]).solution.float()
        return cls(weight=solution[:-1].T.contiguous(), bias=solution[-1])

    def jpeg(self, x0: torch.Tensor) -> bytes:
        """Scaled latents (B, C, h, w) of a batch as a JPEG: one row of pictures, at most 512 px long."""
        buffer = io.BytesIO()
        self.picture(x0).save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    def picture(self, x0: torch.Tensor) -> Image.Image:
        """The same, RGB."""
        batch, _, height, width = x0.shape
        rgb = torch.einsum("rc,bchw->bhwr", self.weight, x0.float().cpu()) + self.bias
        pixels = ((rgb + 1) * 127.5).clamp(0, 255).round().byte().numpy()
        enlarge = min(ENLARGE, LONG_SIDE / max(height, batch * width))
        size = max(1, int(width * enlarge)), max(1, int(height * enlarge))
        row = Image.new("RGB", (batch * size[0], size[1]))
        for k, picture in enumerate(pixels):
            row.paste(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC), (k * size[0], 0))
        return row


def _probes() -> torch.Tensor:
    """Pictures to fit on, (4, 3, 128, 128) in -1..1: random colours flowing into each other every 16 px.

    Of solid pictures, patches, gradients, rectangles and such noise of several grain sizes, this came
    nearest to true decodings (21.1 dB at latent resolution with the embedded VAE; the best affine map there
    is, fitted to the decodings themselves, has 21.8): it covers all colours, and the borders between them.
    """
    grains = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return functional.interpolate(grains, size=(128, 128), mode="bicubic").clamp(-1, 1)
