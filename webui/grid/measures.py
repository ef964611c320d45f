"""Numbers of a grid's pictures: what a cell costs, how it looks, and how far it is from others.

Distances are taken between copies of :data:`SIDE` x :data:`SIDE` pixels (area averages, stretched to a
square), so that pictures of different sizes compare, composition and colour count for more than grain, and a
grid of any length stays small in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 96  # pixels, of the copies that distances are taken between: 27 kB each
WINDOW = 7  # pixels, of SSIM

Index = tuple[int, int, int, int]  # x, y, z, picture
Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Numbers:
    """Of one cell's picture; None: not known (yet)."""

    net_calls: int | None
    seconds: float | None
    clipped: float  # share of pixels with a channel at 0 or 255; grows with too high a CFG scale
    saturation: float  # mean chroma, 0..1
    sharpness: float  # variance of the Laplacian
    to_neighbours: float | None = None  # mean RMS distance, 0..1, to the cells left, right, above, below
    to_most_expensive: float | None = None  # RMS distance, 0..1
    structure_to_most_expensive: float | None = None  # structural distance, 0..1


@dataclass(frozen=True)
class Measure:
    """How a field of :class:`Numbers` is shown."""

    label: str
    note: str  # one line: what it means
    digits: int  # behind the point
    percent: bool = False

    def show(self, value: float | None) -> str:
        if value is None:
            return "–"
        return f"{value * 100:.{self.digits}f} %" if self.percent else f"{value:.{self.digits}f}"


MEASURES: Mapping[str, Measure] = {
    "seconds": Measure("Seconds", "of computing this picture", 2),
    "net_calls": Measure("Net calls", "of the denoising net; both halves of CFG are one call", 0),
    "clipped": Measure("Clipped", "share of pixels at the end of a channel's range", 2, percent=True),
    "saturation": Measure("Saturation", "mean distance of the strongest channel from the weakest", 1, True),
    "sharpness": Measure("Sharpness", "variance of the Laplacian of the brightness", 0),
    "to_neighbours": Measure("To neighbours", "mean difference from the cells beside it", 2, True),
    "to_most_expensive": Measure(
        "To most net calls", "difference from the dearest cell of its line", 2, True
    ),
    "structure_to_most_expensive": Measure(
        "Structure, to most net calls", "structural difference from the dearest cell of its line", 2, True
    ),
}


@dataclass(frozen=True)
class Look:
    """One picture, measured."""

    clipped: float
    saturation: float
    sharpness: float
    small: Bytes  # (SIDE, SIDE, 3)


def look(image: Image.Image) -> Look:
    """Measure an 8-bit picture.

    * clipped: the share of pixels where any channel is 0 or 255.
    * saturation: the mean over pixels of (max - min) / 255 of the channels, the chroma of HSV. HSV's own
      saturation divides by max, which makes invisible noise in black areas fully saturated.
    * sharpness: the variance of the 4-neighbour Laplacian of the brightness (Rec. 601, 0..255), without
      the border (Pech-Pacheco et al. 2000, doi:10.1109/ICPR.2000.903548). Compare pictures of one size.
    """
    image = image.convert("RGB")
    red, green, blue = (np.asarray(channel) for channel in image.split())
    top, bottom = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return Look(
        clipped=float(np.mean((top == 255) | (bottom == 0))),
        saturation=float(np.mean(top - bottom) / 255),
        sharpness=_sharpness(np.asarray(image.convert("L"), np.int16)),
        small=np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)),
    )


def _sharpness(grey: npt.NDArray[np.int16]) -> float:
    """Of (h, w) brightness, 0..255; 0 where there is no inside."""
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    laplacian = around - 4 * grey[1:-1, 1:-1]
    return float(np.var(laplacian)) if laplacian.size else 0.0


def distance(one: Bytes, others: Bytes) -> Floats:
    """Root of the mean square difference of sRGB values, 0 (the same) to 1 (black and white).

    Args:
        one: (h, w, 3).
        others: (n, h, w, 3).

    Returns: (n,).
    """
    difference = others.astype(np.float32) - one
    root: Floats = np.sqrt(np.mean(difference * difference, axis=(1, 2, 3), dtype=np.float64)) / 255
    return root


def structure(one: Bytes, others: Bytes) -> Floats:
    """(1 - SSIM) / 2, 0 (the same) to 1, of the brightness (mean of the channels).

    SSIM after Wang et al. 2004 (doi:10.1109/TIP.2003.819861), with uniform windows of :data:`WINDOW`
    pixels, K1 = 0.01, K2 = 0.03, biased variances, and only whole windows.

    Args, returns: as :func:`distance`.
    """
    a, b = one.mean(axis=-1)[None], others.mean(axis=-1)
    mean_a, mean_b = _windowed(a), _windowed(b)
    variances = _windowed(a * a) - mean_a**2 + _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    alike = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    ssim = alike / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
    half: Floats = np.clip((1 - ssim.mean(axis=(1, 2))) / 2, 0, 1)
    return half


def _windowed(values: Floats) -> Floats:
    """(n, h, w) -> means of all whole windows, (n, h - WINDOW + 1, w - WINDOW + 1)."""
    sums = np.pad(values, ((0, 0), (1, 0), (1, 0))).cumsum(axis=1).cumsum(axis=2)
    total: Floats = (
        sums[:, WINDOW:, WINDOW:] - sums[:, :-WINDOW, WINDOW:]
        - sums[:, WINDOW:, :-WINDOW] + sums[:, :-WINDOW, :-WINDOW]
    )  # fmt: skip
    return total / WINDOW**2


class Measured:
    """The numbers of a grid, kept up to date as its pictures arrive, each measured once.

    "The most expensive" is the cell with the most net calls in a cell's own line, along the axis over which
    the net calls vary most: how early does a scheduler converge? Where none vary there is no such cell.
    """

    def __init__(self, net_calls: Mapping[Index, int]) -> None:
        """
        Args:
            net_calls: of every cell that is to come.
        """
        self._net_calls = dict(net_calls)
        self._dearest = _dearest(self._net_calls)
        self._dependants: defaultdict[Index, list[Index]] = defaultdict(list)
        for index, dearest in self._dearest.items():
            self._dependants[dearest].append(index)
        self._small: dict[Index, Bytes] = {}
        self._numbers: dict[Index, Numbers] = {}
        self._apart: dict[frozenset[Index], float] = {}  # neighbours

    @property
    def numbers(self) -> Mapping[Index, Numbers]:
        """Of the pictures that have arrived."""
        return self._numbers

    def add(self, index: Index, image: Image.Image, seconds: float | None = None) -> None:
        """Measure a cell's picture; a second one takes the place of the first."""
        seen = look(image)
        self._small[index] = seen.small
        self._numbers[index] = Numbers(
            self._net_calls.get(index), seconds, seen.clipped, seen.saturation, seen.sharpness
        )
        self._measure_neighbours(index)
        self._measure_line(index)

    def _measure_neighbours(self, index: Index) -> None:
        near = self._here(_around(index))
        if near:
            apart = distance(self._small[index], np.stack([self._small[other] for other in near]))
            self._apart |= {frozenset((index, other)): float(d) for other, d in zip(near, apart, strict=True)}
        for cell in (index, *near):
            known = [self._apart[frozenset((cell, other))] for other in self._here(_around(cell))]
            self._set(cell, to_neighbours=float(np.mean(known)) if known else None)

    def _measure_line(self, index: Index) -> None:
        """The distance to the dearest of its line; of the whole line, if this is the dearest."""
        dearest = self._dearest.get(index)
        waiting = self._dependants[index] if dearest == index else [index]
        line = self._here(waiting) if dearest in self._small else []
        if not line or dearest is None:
            return
        one, others = self._small[dearest], np.stack([self._small[cell] for cell in line])
        for cell, far, unlike in zip(line, distance(one, others), structure(one, others), strict=True):
            self._set(cell, to_most_expensive=float(far), structure_to_most_expensive=float(unlike))

    def _here(self, cells: Iterable[Index]) -> list[Index]:
        return [cell for cell in cells if cell in self._small]

    def _set(self, index: Index, **values: float | None) -> None:
        self._numbers[index] = replace(self._numbers[index], **values)  # type: ignore[arg-type]


def _around(index: Index) -> list[Index]:
    x, y, z, k = index
    return [(x - 1, y, z, k), (x + 1, y, z, k), (x, y - 1, z, k), (x, y + 1, z, k)]


def _dearest(net_calls: Mapping[Index, int]) -> dict[Index, Index]:
    """For each cell the one with the most net calls (the last of equals) in its line."""
    spreads = []
    for axis in range(3):
        lines = _lines(net_calls, axis)
        spreads.append(max((_spread([net_calls[cell] for cell in line]) for line in lines), default=1.0))
    if max(spreads) <= 1:
        return {}
    dearest: dict[Index, Index] = {}
    for line in _lines(net_calls, spreads.index(max(spreads))):
        most = max(line, key=lambda cell: (net_calls[cell], cell))
        dearest |= dict.fromkeys(line, most)
    return dearest


def _lines(cells: Iterable[Index], axis: int) -> list[list[Index]]:
    """The cells that differ only along an axis, together."""
    lines: defaultdict[tuple[int, ...], list[Index]] = defaultdict(list)
    for cell in cells:
        lines[cell[:axis] + cell[axis + 1 :]].append(cell)
    return list(lines.values())


def _spread(values: list[int]) -> float:
    return max(values) / max(min(values), 1)
