"""The geometry of a picture that is changed in part: which pixels are kept, which are made anew.

Masks are of mode L: 0 is kept exactly, 255 is made anew, what lies between is blended. The *canvas* is the
picture as it will be finished, before anything is made anew; lengths are in its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageFilter, ImageOps

from webui.errors import InvalidField
from webui.request import GenerationRequest, ResizeMode, invalid

MAX_CANVAS = 64 * 2**20  # pixels of an extended picture
TINT = (230, 30, 60)  # of a mask that is shown over its picture

_SOLID = 128  # from here on a grey counts as painted
_TILE = 256  # pixels
_MOST = 3.0  # by how much match_colors widens a spread

# IEC 61966-2-1: sRGB's primaries and white, and its levels as linear light.
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = _TO_XYZ.sum(1)
_SRGB = np.arange(256) / 255
_LINEAR = np.where(_SRGB > 0.04045, ((_SRGB + 0.055) / 1.055) ** 2.4, _SRGB / 12.92).astype(np.float32)

Size = tuple[int, int]  # width, height
Box = tuple[int, int, int, int]  # left, top, right, bottom
Levels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]
LANCZOS, BILINEAR = Image.Resampling.LANCZOS, Image.Resampling.BILINEAR


@dataclass(frozen=True)
class Repaint:
    """How one inpainting is laid out.

    ``canvas`` (RGB) and ``mask`` (L, as it is used: inverted, grown, blurred, extended) have the size of the
    finished picture. ``box`` is the part of both that is computed; ``image``, ``hard`` and ``soft`` show that
    part at the size at which it is computed, the request's ``width`` x ``height``.
    """

    canvas: Image.Image
    mask: Image.Image
    box: Box
    image: Image.Image  # RGB; holes filled with their surroundings where the request says so
    hard: Image.Image  # L, 0 or 255: before the blur; where the net may change something
    soft: Image.Image  # L: ``mask``

    def finish(self, picture: Image.Image) -> Image.Image:
        """The canvas with a picture (RGB, ``width`` x ``height``) put into its box.

        Where the mask is 0 every pixel is the canvas's own, where it is 255 the resized picture's.
        """
        left, top, right, bottom = self.box
        finished = self.canvas.copy()
        new = picture.resize((right - left, bottom - top), LANCZOS)
        finished.paste(new, self.box, self.mask.crop(self.box))
        return finished


class Used(NamedTuple):
    """A mask on the canvas: as it is used, and before its blur (0 or 255). Both of mode L."""

    mask: Image.Image
    hard: Image.Image


def prepare(request: GenerationRequest, image: Image.Image, mask: Image.Image | None) -> Repaint:
    """Lay out the inpainting of ``image`` (RGB, upright). Without a mask only its extension is painted.

    Raises:
        InvalidField: nothing is left to repaint, the mask does not fit the picture, or the extended picture
            is too large.
    """
    mask, hard = used(request, image.size, mask)
    canvas = _canvas(request, image)
    size = request.width, request.height
    box = _box(request, mask) if _only_masked(request) else (0, 0, *canvas.size)
    part, soft = canvas.resize(size, LANCZOS, box), mask.resize(size, BILINEAR, box)
    hard = Image.fromarray(_covering(np.asarray(hard), size, box))
    if request.masked_content == "Fill":
        part = _filled(part, soft if request.soft_inpainting else hard)
    return Repaint(canvas, mask, box, part, hard, soft)


def used(request: GenerationRequest, size: Size, mask: Image.Image | None) -> Used:
    """The mask of a source of ``size`` on the canvas, as the request uses it.

    What the source is extended by is painted wholly, and feathered into the source by twice the blur. Greys
    count with soft inpainting only; without it a pixel is painted from 128 on.

    Raises:
        InvalidField: as :func:`prepare`.
    """
    canvas, kept = _layout(request, size)
    painted = _painted(request, size, mask)
    grown = _grown(painted, request.mask_grow)
    hard = Image.fromarray(np.maximum(grown, _outside(_feathered(kept, canvas, request.mask_blur), canvas)))
    blurred = hard.filter(ImageFilter.GaussianBlur(request.mask_blur))
    soft = ImageChops.lighter(blurred, Image.fromarray(_outside(kept, canvas)))
    if not soft.getbbox():
        raise _nothing_left(painted, grown)
    return Used(soft, hard.point([0] + [255] * 255))


def fitted(mask: Image.Image, size: Size) -> Image.Image:
    """A mask scaled to its picture's size, if it has the picture's proportions to a pixel.

    Raises:
        InvalidField: it has other proportions.
    """
    if abs(mask.width * size[1] - mask.height * size[0]) > max(mask.size + size):
        theirs, ours = f"{mask.width}x{mask.height}", f"{size[0]}x{size[1]}"
        raise invalid("mask_image", f"has {theirs} pixels, its picture {ours}: the shapes differ")
    return mask.convert("L").resize(size, BILINEAR)


def resized(image: Image.Image, size: Size, mode: ResizeMode) -> Image.Image:
    """A picture (mode RGB or L) at another size.

    "Stretch" (and "Latent", whose latents are stretched instead) takes all of it to the new proportions;
    "Crop" cuts off what is too much, evenly; "Fill" fits all of it inside, and fills the border with its
    edges, drawn out and blurred.
    """
    part, inner = _placement(image.size, size, mode)
    placed = image.resize((inner[2] - inner[0], inner[3] - inner[1]), LANCZOS, part)
    return _bordered(placed, size, inner)


def overlay(canvas: Image.Image, mask: Image.Image) -> Image.Image:
    """The mask as a tint over its canvas: the more of a pixel is made anew, the stronger."""
    return Image.composite(
        Image.new("RGB", canvas.size, TINT), canvas, mask.point(lambda level: level * 6 // 10)
    )


def of_alpha(image: Image.Image) -> Image.Image | None:
    """What is transparent, as a mask, upright as the picture is seen; None if nothing is.

    Args:
        image: as opened, in any mode.
    """
    if not image.has_transparency_data:
        return None
    alpha = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    mask = ImageChops.invert(alpha)
    return mask if mask.getbbox() else None


def of_color(image: Image.Image, color: tuple[int, int, int], tolerance: int) -> Image.Image:
    """The pixels of an RGB picture none of whose channels is more than ``tolerance`` (0 to 255) off."""
    away = ImageChops.difference(image, Image.new("RGB", image.size, color))
    red, green, blue = away.split()
    return ImageChops.lighter(ImageChops.lighter(red, green), blue).point(
        lambda level: 255 * (level <= tolerance)
    )


# The canvas


def _only_masked(request: GenerationRequest) -> bool:
    return request.inpaint_area == "Only masked"


def _extended(request: GenerationRequest, size: Size) -> tuple[Size, Box]:
    """The size of the extended source, and where the source lies in it."""
    left, top = request.extend_left, request.extend_top
    width = left + size[0] + request.extend_right
    height = top + size[1] + request.extend_bottom
    if request.extends and width * height > MAX_CANVAS:
        margins = ["extend_left", "extend_top", "extend_right", "extend_bottom"]
        raise invalid(
            max(margins, key=lambda name: getattr(request, name)),
            f"{width}x{height} is more than {MAX_CANVAS // 2**20} megapixels",
        )
    return (width, height), (left, top, left + size[0], top + size[1])


def _layout(request: GenerationRequest, size: Size) -> tuple[Size, Box]:
    """The size of the canvas, and its pixels that show nothing but the source."""
    extended, source = _extended(request, size)
    if _only_masked(request):
        return extended, source
    canvas = request.width, request.height
    part, inner = _placement(extended, canvas, request.resize_mode)
    kept = []
    for axis in (0, 1):
        scale = (inner[axis + 2] - inner[axis]) / (part[axis + 2] - part[axis])
        low, high = (inner[axis] + (source[k] - part[axis]) * scale for k in (axis, axis + 2))
        kept.append((max(inner[axis], math.ceil(low - 1e-6)), min(inner[axis + 2], math.floor(high + 1e-6))))
    (left, right), (top, bottom) = kept
    return canvas, (left, top, right, bottom)


def _placement(source: Size, target: Size, mode: ResizeMode) -> tuple[tuple[float, float, float, float], Box]:
    """Which part of a source is shown, and where in the target."""
    (w, h), (width, height) = source, target
    if mode == "Crop":
        seen_w, seen_h = min(w, width * h / height), min(h, height * w / width)
        part = (w - seen_w) / 2, (h - seen_h) / 2, (w + seen_w) / 2, (h + seen_h) / 2
        return part, (0, 0, width, height)
    if mode == "Fill":
        fit_w = max(1, min(width, round(height * w / h)))
        fit_h = max(1, min(height, round(width * h / w)))
        left, top = (width - fit_w) // 2, (height - fit_h) // 2
        return (0, 0, w, h), (left, top, left + fit_w, top + fit_h)
    return (0, 0, w, h), (0, 0, width, height)


def _canvas(request: GenerationRequest, image: Image.Image) -> Image.Image:
    extended = _bordered(image, *_extended(request, image.size))
    if _only_masked(request):
        return extended
    return resized(extended, (request.width, request.height), request.resize_mode)


def _bordered(image: Image.Image, size: Size, inner: Box) -> Image.Image:
    """The picture at ``inner`` in a field of ``size``; round it its edges drawn out, and blurred."""
    left, top, right, bottom = inner
    margins = left, top, size[0] - right, size[1] - bottom
    if not any(margins):
        return image
    pixels = np.asarray(image)
    around = [(top, margins[3]), (left, margins[2]), (0, 0)][: pixels.ndim]
    border = Image.fromarray(np.pad(pixels, around, mode="edge"))
    factor = max(1, max(margins) // 16)  # blurred small, where it costs nothing
    small = border.reduce(factor).filter(ImageFilter.GaussianBlur(max(margins) / factor / 8))
    border = small.resize(size, BILINEAR)
    border.paste(image, (left, top))
    return border


# The mask


def _painted(request: GenerationRequest, size: Size, mask: Image.Image | None) -> Levels:
    """A source's mask brought to the canvas."""
    canvas, _ = _layout(request, size)
    if mask is None:
        return np.zeros(canvas[::-1], np.uint8)
    mask = fitted(mask, size)
    if not request.soft_inpainting:
        mask = mask.point(lambda level: 255 * (level >= _SOLID))
    if request.mask_inverted:
        mask = ImageChops.invert(mask)
    extended, (left, top, right, bottom) = _extended(request, size)
    levels = np.zeros(extended[::-1], np.uint8)
    levels[top:bottom, left:right] = np.asarray(mask)
    if _only_masked(request):
        return levels
    part, (left, top, right, bottom) = _placement(extended, canvas, request.resize_mode)
    placed = np.zeros(canvas[::-1], np.uint8)
    placed[top:bottom, left:right] = _covering(levels, (right - left, bottom - top), part)
    return placed


def _covering(levels: Levels, size: Size, part: tuple[float, float, float, float]) -> Levels:
    """A part of a mask at another size: each pixel the highest of those that it touches."""
    for axis, pixels in ((0, size[1]), (1, size[0])):
        low, high = part[1 - axis], part[3 - axis]
        edges = np.linspace(low, high, pixels + 1)
        first = np.floor(edges[:-1] + 1e-6).astype(int)
        past = np.maximum(np.ceil(edges[1:] - 1e-6).astype(int), first + 1)
        last = np.minimum(past, levels.shape[axis]) - 1
        levels = _highest(levels, np.minimum(first, last), last, axis)
    return levels


def _highest(levels: Levels, first: npt.NDArray[np.intp], last: npt.NDArray[np.intp], axis: int) -> Levels:
    """The highest level from ``first`` to ``last``, for each pair of them."""
    highest = levels.take(first, axis)
    for step in range(1, int((last - first).max()) + 1):
        np.maximum(highest, levels.take(np.minimum(first + step, last), axis), out=highest)
    return highest


def _grown(levels: Levels, radius: int) -> Levels:
    """Painted farther out by a disc, or less far for a negative radius. The picture's border is no edge."""
    if radius > 0:
        return np.maximum(levels, _near(levels >= _SOLID, radius) * np.uint8(255))
    if radius < 0:
        return levels * ~_near(levels < _SOLID, -radius)
    return levels


def _near(shape: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:
    """Whether a pixel lies within ``radius`` of one of the shape's.

    In tiles: distances are computed only where they are in doubt, and their memory is bounded.
    """
    from scipy.ndimage import distance_transform_edt

    near = shape.copy()
    height, width = shape.shape
    for y in range(0, height, _TILE):
        for x in range(0, width, _TILE):
            top, left = max(0, y - radius), max(0, x - radius)
            around = shape[top : y + _TILE + radius, left : x + _TILE + radius]
            tile = near[y : y + _TILE, x : x + _TILE]
            if around.any() and not tile.all():
                distance = distance_transform_edt(~around)[y - top :, x - left :][:_TILE, :_TILE]
                tile |= distance <= radius
    return near


def _outside(box: Box, size: Size) -> Levels:
    levels = np.full(size[::-1], 255, np.uint8)
    levels[box[1] : max(box[1], box[3]), box[0] : max(box[0], box[2])] = 0
    return levels


def _feathered(kept: Box, canvas: Size, blur: float) -> Box:
    """The box drawn in by twice the blur, at most a quarter, where it does not reach the canvas's border."""
    left, top, right, bottom = kept
    x = min(math.ceil(2 * blur), (right - left) // 4)
    y = min(math.ceil(2 * blur), (bottom - top) // 4)
    return (
        left + x * (left > 0),
        top + y * (top > 0),
        right - x * (right < canvas[0]),
        bottom - y * (bottom < canvas[1]),
    )


def _nothing_left(painted: Levels, grown: Levels) -> InvalidField:
    if grown.any():
        return invalid("mask_blur", "is so wide that nothing is left of the mask")
    if painted.any():
        return invalid("mask_grow", "shrinks the mask until nothing of it is left")
    return invalid("mask_image", "is empty: paint over what is to be made anew")


def _box(request: GenerationRequest, mask: Image.Image) -> Box:
    """Round the mask with its padding, in the proportions of what is computed, inside the canvas."""
    bounds = mask.getbbox()
    assert bounds  # used() leaves no mask empty
    pad, (width, height) = request.masked_padding, mask.size
    left, top = max(0, bounds[0] - pad), max(0, bounds[1] - pad)
    w, h = min(width, bounds[2] + pad) - left, min(height, bounds[3] + pad) - top
    wider = min(width, max(w, round(h * request.width / request.height)))
    higher = min(height, max(h, round(w * request.height / request.width)))
    left = min(max(0, left - (wider - w) // 2), width - wider)
    top = min(max(0, top - (higher - h) // 2), height - higher)
    return left, top, left + wider, top + higher


# Colours


def _filled(image: Image.Image, hole: Image.Image) -> Image.Image:
    """A picture whose holes are filled from their surroundings.

    Steven J. Gortler et al., "The Lumigraph", 1996, section 3.3 (pull-push): the surroundings are averaged
    over squares of 2, 4, 8, ... pixels, by how much of each is known, and every pixel takes what it lacks
    from the finest average that knows something.
    """
    known: Floats = 1 - np.asarray(hole, np.float32)[..., None] / 255
    return Image.fromarray(_rounded(_pushed(np.asarray(image) * known, known)))


def _pushed(colors: Floats, known: Floats) -> Floats:
    """Colours (height, width, 3), each times how much of it is known (height, width, 1), made whole."""
    height, width, _ = colors.shape
    if known.min() == 1:
        return colors
    if height == width == 1:
        return colors / known if known.any() else colors + 128
    weight = _halved(known)
    enough = 1 / np.maximum(weight, 1)  # four pixels that are known make one that is known, not more
    coarse = _pushed(_halved(colors) * enough, weight * enough)
    size = 2 * coarse.shape[1], 2 * coarse.shape[0]
    fine = [np.asarray(Image.fromarray(coarse[..., c]).resize(size, BILINEAR)) for c in range(3)]
    whole: Floats = colors + (1 - known) * np.stack(fine, -1)[:height, :width]
    return whole


def _halved(values: Floats) -> Floats:
    """Sums over squares of 2 x 2."""
    height, width, _ = values.shape
    even: Floats = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    return even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]


def match_colors(picture: Image.Image, reference: Image.Image) -> Image.Image:
    """The picture (RGB) with the mean and the spread of another's colours, of which it may be any size.

    Erik Reinhard et al., "Color Transfer between Images", 2001, equations 10 and 11, in CIELAB: each channel
    becomes (x - mean) * spread' / spread + mean'. Spreads grow threefold at most, so that what has almost no
    colour is not torn into bands.
    """
    pixels = np.array(picture)
    mean, spread = _moments(pixels)
    goal, wide = _moments(np.asarray(reference))
    factor = np.minimum(wide / np.maximum(spread, 1e-6), _MOST)
    for band in _bands(pixels):
        band[:] = _rounded(_rgb((_lab(band) - mean) * factor + goal))
    return Image.fromarray(pixels)


def _moments(pixels: Levels) -> tuple[Floats, Floats]:
    """Mean and standard deviation of L, a and b."""
    total = sum(
        np.stack([lab.sum((0, 1), float), (lab**2).sum((0, 1), float)]) for lab in map(_lab, _bands(pixels))
    )
    mean, square = np.asarray(total) / (pixels.size // 3)
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def _bands(pixels: Levels) -> Iterator[Levels]:
    """Views of a few rows each: what is computed of them stays small."""
    for top in range(0, len(pixels), 16):
        yield pixels[top : top + 16]


def _lab(rgb: Levels) -> Floats:
    """sRGB -> CIELAB (D65; L from 0 to 100)."""
    xyz = _LINEAR[rgb] @ (_TO_XYZ / _WHITE[:, None]).T.astype(np.float32)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _rgb(lab: Floats) -> Floats:
    """CIELAB -> sRGB, 0 to 255; lightness is clipped first, then what no screen shows."""
    y = (np.clip(lab[..., 0], 0, 100) + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, (116 * f - 16) * 27 / 24389)
    linear = np.clip(xyz @ (np.linalg.inv(_TO_XYZ) * _WHITE).T.astype(np.float32), 0, 1)
    encoded: Floats = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return 255 * encoded


def _rounded(colors: Floats) -> Levels:
    levels: Levels = np.clip(colors + 0.5, 0, 255).astype(np.uint8)
    return levels
