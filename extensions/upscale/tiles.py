"""A network over a large picture, tile by tile: the memory it takes does not grow with the picture.

::

    |<---------------- TILE ---------------->|
    |  MARGIN  |  BLEND  |        |  MARGIN  |     of a tile between two others
         0       0 ... 1      1        0          its share of the picture, laid over what is there

Neighbours overlap by twice MARGIN, and BLEND in between. Near the edge of its input a network does not
compute what it would in the whole picture. If it looks no further than MARGIN pixels, all that is kept is
exact, and BLEND changes nothing; what one computes that looks further is blended, which hides the seams.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

import numpy as np
from PIL import Image

TILE = 256  # pixels a side
MARGIN = 24
BLEND = 16

T = TypeVar("T")
Net = Callable[[Image.Image], Image.Image]  # RGB -> RGB, larger by its scale
Work = Generator[float, None, Image.Image]  # yields how much of it is done, 0 to 1; returns the picture


def enlarged(image: Image.Image, scale: int, net: Net, margin: int = MARGIN) -> Work:
    """The picture, ``scale`` times as large."""
    canvas = Image.new("RGB", (image.width * scale, image.height * scale))
    places = [(left, top) for top in starts(image.height, margin) for left in starts(image.width, margin)]
    for done, (left, top) in enumerate(places, 1):
        right, bottom = min(left + TILE, image.width), min(top + TILE, image.height)
        tile = net(image.crop((left, top, right, bottom)))
        across = ramp(tile.width, left > 0, right < image.width, margin * scale, BLEND * scale)
        down = ramp(tile.height, top > 0, bottom < image.height, margin * scale, BLEND * scale)
        share = Image.fromarray(np.rint(255 * np.outer(down, across)).astype(np.uint8))
        canvas.paste(tile, (left * scale, top * scale), share)
        yield done / len(places)
    return canvas


def starts(length: int, margin: int = MARGIN) -> list[int]:
    """Where the tiles begin along a side of so many pixels. The last one ends where the side does."""
    if length <= TILE:
        return [0]
    return [*range(0, length - TILE, TILE - 2 * margin - BLEND), length - TILE]


def ramp(length: int, before: bool, after: bool, margin: int, blend: int) -> np.ndarray:
    """(length,) float, a tile's share along one side, with neighbours before or after it or not."""
    share = np.ones(length)
    if before:
        share = np.clip((np.arange(length) + 0.5 - margin) / blend, 0, 1)
    if after and margin:
        share[-margin:] = 0
    return share


def told(work: Work, how: Callable[[float], T]) -> Generator[T, None, Image.Image]:
    """The same work, which yields what ``how`` makes of the share that is done."""
    while True:
        try:
            share = next(work)
        except StopIteration as end:
            picture: Image.Image = end.value
            return picture
        yield how(share)


def finish(work: Work, check: Callable[[], None]) -> Image.Image:
    """Do work to its end. ``check`` is called between its parts, and may raise to stop it."""
    while True:
        check()
        try:
            next(work)
        except StopIteration as end:
            picture: Image.Image = end.value
            return picture
