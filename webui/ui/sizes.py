"""Which size a picture is computed at, given the size of its source and of the model. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

Size = tuple[int, int]  # width, height in pixels

STEP = 8
LOWEST, HIGHEST = 64, 2048  # of a side, on this page
LOWEST_FACTOR, HIGHEST_FACTOR = 0.01, 4.0
ENOUGH = 4  # times the pixels of the model's own size: more, and it loses the thread of the picture


class Native(NamedTuple):
    """A model's own size, and what its sizes are multiples of, in pixels."""

    width: int
    height: int
    step: int = STEP


def factor(source: Size, native: Native) -> float:
    """By how much to resize a source for a model whose own size is ``native``.

    1 where that is reasonable, else the nearest factor that is: so that the result has at most ``ENOUGH``
    times the model's pixels and no side is too long or too short, rounded down to a thousandth.
    """
    pixels = ENOUGH * native.width * native.height
    most = min(1.0, math.sqrt(pixels / (source[0] * source[1])), HIGHEST / max(source))
    least = LOWEST / min(source)
    return max(least, math.floor(1000 * most) / 1000 or most)


def scaled(source: Size, by: float, step: int = STEP) -> Size:
    """The source's size times a factor, each side to the nearest multiple of ``step`` within the limits.

    The factor gives way to the limits as far as the source's proportions allow.
    """
    by = max(LOWEST / min(source), min(by, HIGHEST / max(source)))
    width, height = (min(HIGHEST, max(LOWEST, math.floor(side * by / step + 0.5) * step)) for side in source)
    return width, height
