"""What a ControlNet is shown of a picture: edges, lines, or less of its detail. Pillow and numpy only."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

SMOOTHED = 1.4  # pixels, standard deviation, before edges are looked for
STRONG, WEAK = 100.0, 50.0  # gradients (of 8-bit levels, by Sobel's operator) where an edge begins, goes on
LINE = 8.0  # levels by which a line is darker than what surrounds it
NEAR, AROUND = 0.5, 5.0  # pixels: a line's own blur, and that of what surrounds it
TILE = 2  # of the sides, that are given up and guessed again


def preprocessed(image: Image.Image, name: str) -> Image.Image:
    """What the preprocessor ``name`` makes of a picture (RGB); RGB of the same size."""
    if name == "Canny":
        return _white(canny(np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(SMOOTHED)), float)))
    if name == "Scribble":
        return _white(_lines(image.convert("L")))
    if name == "Tile":
        small = max(1, image.width // TILE), max(1, image.height // TILE)
        return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)
    return image


def canny(grey: np.ndarray) -> np.ndarray:
    """Where the edges of smoothed grey levels (H, W) are, True (Canny 1986, 10.1109/TPAMI.1986.4767851)."""
    dy, dx = _sobel(grey), _sobel(grey.T).T
    strength = np.hypot(dx, dy)
    ridge = strength * (strength >= _beside(strength, np.degrees(np.arctan2(dy, dx)) % 180))
    return _joined(ridge >= STRONG, ridge >= WEAK)


def _sobel(grey: np.ndarray) -> np.ndarray:
    """How fast the levels (H, W) grow downwards, times 8."""
    around = np.pad(grey, 1, mode="edge")
    rows = around[:, :-2] + 2 * around[:, 1:-1] + around[:, 2:]
    difference: np.ndarray = rows[2:] - rows[:-2]
    return difference


def _beside(strength: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """The larger of each place's two neighbours across the edge."""
    around = np.pad(strength, 1)
    height, width = strength.shape
    found = np.zeros_like(strength)
    for sector, (down, right) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        here = np.floor((degrees + 22.5) / 45).astype(int) % 4 == sector
        ahead = around[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        behind = around[1 - down : 1 - down + height, 1 - right : 1 - right + width]
        found = np.where(here, np.maximum(ahead, behind), found)
    return found


def _joined(strong: np.ndarray, weak: np.ndarray) -> np.ndarray:
    """The strong places, and the weak ones that touch them, directly or through others."""
    while True:
        near = np.asarray(Image.fromarray(strong).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
        grown = strong | (weak & near)
        if (grown == strong).all():
            return strong
        strong = grown


def _lines(grey: Image.Image) -> np.ndarray:
    """Where a picture or a drawing is darker than what surrounds it."""
    near, around = (np.asarray(grey.filter(ImageFilter.GaussianBlur(r)), float) for r in (NEAR, AROUND))
    found: np.ndarray = around - near > LINE
    return found


def _white(places: np.ndarray) -> Image.Image:
    """On black."""
    return Image.fromarray(places.astype(np.uint8) * 255).convert("RGB")
