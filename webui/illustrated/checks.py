"""Identity checks: what must hold of a record if it is right, how far it is off, and how far it may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Check:
    """``name`` is the identity, written for a person; ``error`` and ``tolerance`` are of one unit."""

    name: str
    error: float
    tolerance: float

    @property
    def held(self) -> bool:
        return math.isfinite(self.error) and self.error <= self.tolerance


def apart(value: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference of two arrays, in shares of the largest number expected; inf if one is NaN."""
    largest = float(np.abs(np.asarray(expected, float)).max(initial=0))
    difference = float(np.abs(np.asarray(value, float) - expected).max(initial=0))
    if math.isnan(difference) or math.isnan(largest):
        return math.inf
    return float(ratio(np.array(difference), np.array(largest)))


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """``part / whole``, neither negative; nothing of nothing is 0, and something of nothing is infinite."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    of_nothing = np.where(part > 0, np.inf, 0.0)
    return np.asarray(np.divide(part, whole, out=of_nothing, where=whole > 0))


def cosine(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Of vectors along the last axis; 0 where one of them is all zeros."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    products = (a * b).sum(axis=-1)
    return np.asarray(np.divide(products, lengths, out=np.zeros(np.shape(products)), where=lengths > 0))
