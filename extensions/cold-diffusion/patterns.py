"""Pictures to start from: heights over the plane, drawn in two colours.

x and y are 0 in the middle, and one short side long in all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.float64]

LOW, HIGH = np.array((32, 40, 120)), np.array((250, 200, 90))  # RGB of the lowest and the highest


def checkerboard(x: Plane, y: Plane) -> Plane:
    return (np.floor(4 * x) + np.floor(4 * y)) % 2


def gradient(x: Plane, y: Plane) -> Plane:
    return x + y


def rings(x: Plane, y: Plane) -> Plane:
    return np.cos(8 * np.pi * np.hypot(x, y))


def clouds(x: Plane, y: Plane) -> Plane:
    """Waves of all directions, the longer the higher. Always the same clouds."""
    random = np.random.default_rng(0)
    height = np.zeros_like(x)
    for length in (2.0, 1.0, 0.5, 0.25, 0.125, 0.0625) * 4:
        direction, phase = random.uniform(0, 2 * np.pi, 2)
        along = x * np.cos(direction) + y * np.sin(direction)
        height += length * np.sin(2 * np.pi * along / length + phase)
    return height


def stripes(x: Plane, y: Plane) -> Plane:
    return np.floor(4 * (x + y)) % 2


PATTERNS: dict[str, Callable[[Plane, Plane], Plane]] = {
    "Checkerboard": checkerboard,
    "Gradient": gradient,
    "Rings": rings,
    "Clouds": clouds,
    "Stripes": stripes,
}


def drawn(name: str, size: tuple[int, int]) -> Image.Image:
    """One of :data:`PATTERNS` as an RGB picture of ``size``, (width, height) in pixels."""
    width, height = size
    y, x = (np.mgrid[:height, :width] + 0.5 - np.array((height, width))[:, None, None] / 2) / min(size)
    heights = PATTERNS[name](x, y)
    shares = (heights - heights.min()) / np.ptp(heights)
    return Image.fromarray((LOW + shares[..., None] * (HIGH - LOW)).round().astype(np.uint8))
