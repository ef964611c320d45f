"""What a person drew over a picture: strokes as vectors, in pixels of the source whatever the screen showed.

A stroke is a line of points drawn with a round brush: pixel (i, j) belongs to it where the middle of the
pixel, (i + 1/2, j + 1/2), lies within half the brush's diameter of the line, or where a point of the line
lies in it. Strokes take effect in the order in which they were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from webui.request import invalid

MAX_STROKES = 2000
MAX_POINTS = 10_000  # of one stroke
MAX_POINTS_IN_ALL = 200_000
MAX_BRUSH = 8192  # pixels
MAX_WORK = 3 * 10**7  # points times the rows under the brush: about ten seconds of computing
FARTHEST = 100_000  # pixels: how far outside a picture a point may lie

_SPANS_AT_ONCE = 2**20  # bounds the memory that a stroke takes

Size = tuple[int, int]
Floats = npt.NDArray[np.float64]
Coordinate = Annotated[float, Field(ge=-FARTHEST, le=FARTHEST, strict=True)]


class Stroke(BaseModel):
    """One line drawn with a round brush, in pixels of the source."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["mask", "paint", "erase"]
    color: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = "#ffffff"  # of "paint"
    size: Annotated[float, Field(gt=0, le=MAX_BRUSH, strict=True)]  # the brush's diameter
    points: Annotated[tuple[tuple[Coordinate, Coordinate], ...], Field(min_length=1, max_length=MAX_POINTS)]


_STROKES = TypeAdapter(Annotated[tuple[Stroke, ...], Field(max_length=MAX_STROKES)])


def read(value: Any) -> tuple[Stroke, ...]:
    """The strokes that a page sent, as lists and dictionaries.

    Raises:
        InvalidField: they are not strokes, or too many; the field is ``mask_image``.
    """
    try:
        strokes = _STROKES.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(place) for place in first["loc"])
        raise invalid("mask_image", f"the strokes cannot be read ({where}: {first['msg']})") from None
    points = sum(len(stroke.points) for stroke in strokes)
    if points > MAX_POINTS_IN_ALL or sum(len(s.points) * s.size for s in strokes) > MAX_WORK:
        raise invalid("mask_image", f"its strokes have too many points ({points}); upload it as a picture")
    return strokes


def mask(
    size: Size, strokes: Sequence[Stroke], base: Image.Image | None = None, paint: bool = True
) -> Image.Image:
    """What the strokes say is to be repainted, over ``base``, a mask that was there before them.

    Args:
        size: (width, height) of the source and of ``base``, in pixels.
        base: mode L. Where nothing was drawn it stays as it is.
        paint: whether what was painted is repainted too.

    Returns: mode L; 255 where drawn, 0 where erased or untouched.

    Raises:
        InvalidField: ``base`` has another size; the field is ``mask_image``.
    """
    if base is not None and base.size != size:
        raise invalid("mask_image", f"has {base.width}x{base.height} pixels, its picture {size[0]}x{size[1]}")
    drawn = base.convert("L") if base else Image.new("L", size)
    for stroke in strokes:
        if paint or stroke.kind != "paint":
            _stamp(drawn, stroke, 0 if stroke.kind == "erase" else 255)
    return drawn


def painted(image: Image.Image, strokes: Sequence[Stroke]) -> Image.Image:
    """The picture (mode RGB) with the painted colours on it, and itself again where they were erased."""
    colors, where = image.copy(), Image.new("L", image.size)
    for stroke in strokes:
        if stroke.kind == "paint":
            _stamp(colors, stroke, stroke.color)
        if stroke.kind != "mask":
            _stamp(where, stroke, 255 if stroke.kind == "paint" else 0)
    return Image.composite(colors, image, where)


def _stamp(canvas: Image.Image, stroke: Stroke, ink: int | str) -> None:
    """Cover the canvas with ink where the stroke goes."""
    points = np.array(stroke.points)
    reach = stroke.size / 2 + 1
    left, top = np.clip(np.floor(points.min(0) - reach), 0, canvas.size).astype(int).tolist()
    right, bottom = np.clip(np.ceil(points.max(0) + reach), 0, canvas.size).astype(int).tolist()
    if left < right and top < bottom:
        shape = _shape(points - (left, top), stroke.size / 2, (right - left, bottom - top))
        canvas.paste(ink, (left, top), Image.fromarray(shape))


def _shape(points: Floats, radius: float, size: Size) -> npt.NDArray[np.uint8]:
    """The stroke in a field of ``size``: 255 inside, 0 outside.

    Around each piece of the line lies a capsule, which covers one span of each row. A span adds 1 where it
    begins and takes 1 away where it ends; summed along a row, that is how many spans lie over a pixel.
    """
    width, height = size
    changes = np.zeros((height, width + 1), np.int32)
    starts, ends = (points[:-1], points[1:]) if len(points) > 1 else (points, points)
    pieces = max(1, _SPANS_AT_ONCE // (height + 1))
    for at in range(0, len(starts), pieces):
        rows, left, right = _spans(starts[at : at + pieces], ends[at : at + pieces], radius, height)
        first = np.clip(np.ceil(left - 0.5), 0, width).astype(int)
        past = np.clip(np.floor(right + 0.5), 0, width).astype(int)
        np.add.at(changes, (rows, np.minimum(first, past)), 1)
        np.add.at(changes, (rows, past), -1)
    inside = np.cumsum(changes[:, :-1], axis=1, dtype=np.int32) > 0
    columns, lines = np.floor(points).astype(int).T  # a brush finer than a pixel still leaves a mark
    seen = (columns >= 0) & (columns < width) & (lines >= 0) & (lines < height)
    inside[lines[seen], columns[seen]] = True
    return inside.astype(np.uint8) * np.uint8(255)


def _spans(a: Floats, b: Floats, radius: float, height: int) -> tuple[npt.NDArray[np.intp], Floats, Floats]:
    """(row, left, right) of every row's middle that lies in the capsule round a piece from a to b."""
    top = np.clip(np.ceil(np.minimum(a, b)[:, 1] - radius - 0.5), 0, height).astype(int)
    bottom = np.clip(np.floor(np.maximum(a, b)[:, 1] + radius + 0.5), 0, height).astype(int)
    count = np.maximum(bottom - top, 0)
    piece = np.repeat(np.arange(len(a)), count)
    rows = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + top[piece]
    y = rows + 0.5
    left_a, right_a = _circle(a[piece], radius, y)
    left_b, right_b = _circle(b[piece], radius, y)
    left_s, right_s = _slab(a[piece], b[piece], radius, y)
    left = np.minimum(np.minimum(left_a, left_b), left_s)
    right = np.maximum(np.maximum(right_a, right_b), right_s)
    hit = left <= right
    return rows[hit], left[hit], right[hit]


def _circle(center: Floats, radius: float, y: Floats) -> tuple[Floats, Floats]:
    """Where the line at height y enters and leaves a circle; (inf, -inf) where it misses."""
    squared = radius**2 - (y - center[:, 1]) ** 2
    half = np.where(squared >= 0, np.sqrt(np.maximum(squared, 0)), -np.inf)
    return center[:, 0] - half, center[:, 0] + half


def _slab(a: Floats, b: Floats, radius: float, y: Floats) -> tuple[Floats, Floats]:
    """The same for the rectangle between two circles: |across| <= radius and 0 <= along <= length."""
    direction = b - a
    length = np.hypot(direction[:, 0], direction[:, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = (direction / length[:, None]).T
        dy = y - a[:, 1]
        along = np.sort([-dy * v / u, (length - dy * v) / u], axis=0)
        across = np.sort([(dy * u - radius) / v, (dy * u + radius) / v], axis=0)
    along = np.where(np.abs(u) > 1e-12, along, _all_or_nothing((dy * v >= 0) & (dy * v <= length)))
    across = np.where(np.abs(v) > 1e-12, across, _all_or_nothing(np.abs(dy * u) <= radius))
    left, right = np.maximum(along[0], across[0]), np.minimum(along[1], across[1])
    hit = (left <= right) & (length > 0)
    return np.where(hit, a[:, 0] + left, np.inf), np.where(hit, a[:, 0] + right, -np.inf)


def _all_or_nothing(inside: npt.NDArray[np.bool_]) -> Floats:
    """Bounds on x of a condition in which x plays no part."""
    return np.where(inside, np.array([[-np.inf], [np.inf]]), np.array([[np.inf], [-np.inf]]))
