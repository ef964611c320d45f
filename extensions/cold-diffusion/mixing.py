"""Noise and a pattern put together, as large as noise alone.

A net is told how much noise there is, and goes by it: a start of another variance would be another timestep
than it is told. So the pattern is first made like noise, without the mean of each channel and with variance
1 over all of them. It then has a share ``amount`` of the variance, or of the places or frequencies, and the
noise has the rest. Whatever variance is left over or missing, because a pattern and a noise are not wholly
unlike each other, is evened out at the end.

All tensors are (B, C, h, w) and float32.
"""

from __future__ import annotations

import math

import torch

EVERYTHING = (1, 2, 3)  # dimensions of a picture's latents


def mixed(noise: torch.Tensor, pattern: torch.Tensor, transform: str, amount: float) -> torch.Tensor:
    """``transform``: one of "Blend", "Circle wipe", "Blur"; an ``amount`` of 1 is the pattern alone."""
    pattern = of_variance_1(pattern - pattern.mean(dim=(2, 3), keepdim=True))
    match transform:
        case "Blend":
            result = blended(noise, pattern, amount)
        case "Circle wipe":
            result = wiped(noise, pattern, amount)
        case _:
            result = blurred(noise, pattern, amount)
    return of_variance_1(result)


def blended(noise: torch.Tensor, pattern: torch.Tensor, amount: float) -> torch.Tensor:
    """sqrt(1 - amount) noise + sqrt(amount) pattern: variances add up, and not what is added."""
    return math.sqrt(1 - amount) * noise + math.sqrt(amount) * pattern


def wiped(noise: torch.Tensor, pattern: torch.Tensor, amount: float) -> torch.Tensor:
    """The pattern in the share ``amount`` of the latent pixels that is nearest to the middle."""
    h, w = noise.shape[-2:]
    inside = nearest(torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, amount)
    return torch.where(inside.to(noise.device), pattern, noise)


def blurred(noise: torch.Tensor, pattern: torch.Tensor, amount: float) -> torch.Tensor:
    """The pattern in the share ``amount`` of frequencies that is lowest, and noise for what blur took away.

    What is left of the pattern is given that share of the variance.
    """
    h, w = noise.shape[-2:]
    coarse = nearest(torch.fft.fftfreq(h), torch.fft.fftfreq(w), amount).to(noise.device)
    low: torch.Tensor = torch.fft.ifft2(torch.fft.fft2(pattern) * coarse).real
    high: torch.Tensor = torch.fft.ifft2(torch.fft.fft2(noise) * ~coarse).real
    return math.sqrt(coarse.float().mean()) * of_variance_1(low) + high


def nearest(y: torch.Tensor, x: torch.Tensor, share: float) -> torch.Tensor:
    """Which places (len(y), len(x)) are the ``share`` that is nearest to 0; the equally far go together."""
    distances = torch.hypot(y[:, None], x)
    return distances <= distances.flatten().quantile(share)


def of_variance_1(latents: torch.Tensor) -> torch.Tensor:
    """For each picture; one that is 0 everywhere is left so."""
    return latents / latents.std(dim=EVERYTHING, keepdim=True).clamp(min=1e-6)
