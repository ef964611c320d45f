"""What is made of predictions: tensors in, tensors out. All are (B, C, h, w) and float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PLACES = (2, 3)  # dimensions of a latent picture


def guided(cond: torch.Tensor, uncond: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): ``cond`` where there is none."""
    return cond if uncond is None else uncond + scale * (cond - uncond)


def rescaled(guided: torch.Tensor, cond: torch.Tensor, phi: float) -> torch.Tensor:
    """CFG rescale (Lin et al. 2023, arXiv:2305.08891, section 3.4).

    A guided prediction spreads more than the net's own, which burns colours. A share ``phi`` of it is
    brought back to the standard deviation of ``cond``, over each picture. It is defined on whatever the net
    predicts, noise or velocity, as here.
    """
    dims = tuple(range(1, guided.ndim))
    factor = cond.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return phi * factor * guided + (1 - phi) * guided


def thresholded(x0: torch.Tensor, reference: torch.Tensor, quantile: float) -> torch.Tensor:
    """Dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487, section 2.3), for latents.

    Imagen works on pixels, which must lie in -1..1: where the ``quantile`` s of abs(x0) is above 1, x0 is
    cut at -s and s and divided by s. Latents have no such limits, no common middle and no common size. So
    here, for each picture and channel, the middle is the mean of x0, and the limit in the place of 1 is
    the largest distance r from its own mean that ``reference``, the x0 of a lower guidance scale, has::

        c = x0 - mean(x0)
        s = max(quantile(abs(c)), r)
        x0' = mean(x0) + clamp(c, -s, s) * r / s

    With the reference's own scale nothing changes, whatever the quantile.
    """
    middle = x0.mean(dim=PLACES, keepdim=True)
    centred = x0 - middle
    limit = (reference - reference.mean(dim=PLACES, keepdim=True)).abs().amax(dim=PLACES, keepdim=True)
    spread = centred.abs().flatten(2).quantile(quantile, dim=2)[:, :, None, None].maximum(limit)
    return middle + centred.clamp(-spread, spread) * (limit / spread)
