"""From coarse to fine: how far each guess of x0 agrees with the last one, by size of detail.

In the runs observed, large areas agree with the end before fine detail does. That is drawn as it was
observed in this run; it is no law of diffusion, and nothing here asserts it (Falck et al. 2025,
arXiv:2505.11278, train models for which it does not hold).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from webui.flight import FlightRecord, Floats
from webui.illustrated.checks import Check, apart
from webui.illustrated.reading import x0

COUNT = 6
TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Bands:
    """B rings of spatial frequency, from the longest wave across the picture to the shortest.

    Coherence in a ring, Re<X_k, X_end> / sqrt(P_k P_end) over its coefficients in all channels, is 1 where a
    guess agrees with the last one but for contrast, and 0 where it has nothing to do with it.
    """

    edges: Floats  # (B + 1,), cycles per latent place, rising; a ring has its lower edge, the last both
    coherence: Floats  # (K, B), -1..1; 0 where a ring is empty
    power: Floats  # (K, B): the rings' shares of the mean of x0^2, whose other part is of its channels' means


def bands(record: FlightRecord, count: int = COUNT) -> Bands:
    """``count``: of rings at most, each as many times wider than the one before; small latents have fewer."""
    guesses = x0(record).astype(float)
    edges, ring = _rings(guesses.shape[2], guesses.shape[3], count)
    spectra = np.fft.fft2(guesses) / np.sqrt(guesses[0].size * guesses[0, 0].size)
    members = [spectra[:, :, ring == n].reshape(len(guesses), -1) for n in range(len(edges) - 1)]
    power = np.stack([(abs(each) ** 2).sum(axis=1) for each in members], axis=1)
    shared = np.stack([(each * each[-1].conj()).real.sum(axis=1) for each in members], axis=1)
    scale = np.sqrt(power * power[-1])
    coherence = np.divide(shared, scale, out=np.zeros_like(shared), where=scale > 0)
    return Bands(edges.astype(np.float32), coherence.astype(np.float32), power.astype(np.float32))


def checks(record: FlightRecord) -> list[Check]:
    found, guesses = bands(record), x0(record).astype(float)
    means = guesses.mean(axis=(2, 3))
    held = found.power[-1] > 0  # a ring without anything in it agrees with nothing
    return [
        Check(
            "power of all bands + of the means = mean of x0² (Parseval)",
            apart(found.power.sum(axis=1) + (means**2).mean(axis=1), (guesses**2).mean(axis=(1, 2, 3))),
            TOLERANCE,
        ),
        Check(
            "coherence of the last x0 with itself = 1",
            float(np.abs(found.coherence[-1][held] - 1).max(initial=0)),
            TOLERANCE,
        ),
    ]


def _rings(height: int, width: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The edges, and of each coefficient of an FFT (h, w) which ring it is in; -1 of the mean."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    lowest, highest = 1 / max(height, width, 2), np.sqrt(0.5)
    edges = np.geomspace(lowest, highest, count + 1)
    ring = np.clip(np.searchsorted(edges, radius, side="right") - 1, -1, count - 1)
    taken = [n for n in range(count) if (ring == n).any()] or [0]
    joined = np.searchsorted(taken, ring)  # rings without a coefficient go to the one below
    return edges[[*taken, count]], np.where(ring < 0, -1, joined)
