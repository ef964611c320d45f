"""The way from noise to the picture: how much each guess of x0 differs from the next and from the last."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from webui.flight import FlightRecord, Floats
from webui.illustrated.checks import ratio
from webui.illustrated.reading import x0


def changes(record: FlightRecord) -> Floats:
    """(K - 1,): ||x0[k + 1] - x0[k]|| / ||x0[k + 1]||. Not negative; 0 is no change."""
    guesses = x0(record)
    return ratio(_lengths(np.diff(guesses, axis=0)), _lengths(guesses[1:])).astype(np.float32)


def distance_to_end(record: FlightRecord) -> Floats:
    """(K,): ||x0[k] - x0[-1]|| / ||x0[-1]||; the last is 0."""
    guesses = x0(record)
    return ratio(_lengths(guesses - guesses[-1]), _lengths(guesses[-1:])).astype(np.float32)


def snr(record: FlightRecord) -> Floats:
    """(K,): signal^2 / noise^2, how many times stronger the picture is than the noise, in variance.

    Infinite where there is no noise. (Kingma et al. 2021, arXiv:2107.00630, eq. 2)
    """
    return ratio(record.signal.astype(float) ** 2, record.noise.astype(float) ** 2).astype(np.float32)


def settled(record: FlightRecord, share: float = 0.1) -> int:
    """The first call from which on every x0 is within that share of the last one's length from it."""
    beyond = np.flatnonzero(~(distance_to_end(record) <= share))
    return min(int(beyond[-1]) + 1, len(record.timesteps) - 1) if len(beyond) else 0


def _lengths(latents: Floats) -> NDArray[np.float64]:
    """(K, C, h, w) -> (K,), Euclidean."""
    return np.asarray(np.sqrt((latents.astype(float) ** 2).sum(axis=(1, 2, 3))))
