"""From the canvas to the pictures that a request names, and back. No page in sight: Pillow and the store.

What comes from a browser is checked here: digests are opened as their owner's only, and
strokes are read strictly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from gradio.processing_utils import save_bytes_to_cache
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from webui import masks, strokes
from webui.errors import InvalidField
from webui.request import GenerationRequest
from webui.sources import SourceStore
from webui.strokes import Stroke
from webui.ui import form
from webui.ui.canvas import Drawing
from webui.ui.form import Values

PROXY = 2048  # pixels: the longest side of what the canvas shows for a source
EXACT = 512 * 512  # pixels: up to this many, it is shown as it is
FRAME = "#14b8a6"
VIEW = 768  # pixels: the longest side of small pictures shown beside the controls
SOME_DIGEST = "0" * 64  # where a request must name a picture that was not stored


class NothingPainted(InvalidField):
    """Inpainting without a mask: a person is asked what is meant."""


@dataclass(frozen=True)
class Drawn:
    """A canvas' value, read: what the digests name is opened only when it is asked for."""

    source: str = ""
    mask: str = ""
    strokes: tuple[Stroke, ...] = ()

    @property
    def paint(self) -> bool:
        """Whether colours were painted over the source."""
        return any(stroke.kind == "paint" for stroke in self.strokes)


def read(value: Any) -> Drawn:
    """
    Raises:
        InvalidField: the value is not a canvas'.
    """
    if value is None:
        return Drawn()
    if not isinstance(value, dict):
        raise form.invalid("canvas", "cannot be read; choose the picture again")
    source, mask = (value.get(name) or "" for name in ("source", "mask"))
    if not isinstance(source, str) or not isinstance(mask, str):
        raise form.invalid("canvas", "cannot be read; choose the picture again")
    return Drawn(source, mask, strokes.read(value.get("strokes") or []))


class Desk:
    """One person's sources: opened, painted on, masked, stored, and shown on the canvas."""

    def __init__(self, store: SourceStore, owner: str, cache: str) -> None:
        """``cache``: Gradio's folder for the files of a component, from which a browser may be given some."""
        self.store = store
        self.owner = owner
        self.cache = cache

    def picture(self, drawn: Drawn) -> Image.Image:
        """The source with what was painted on it, RGB.

        Raises:
            InvalidField: there is none, or it is not this person's.
        """
        if not drawn.source:
            raise form.invalid("image", "choose a picture first, or take a blank sheet")
        image = self.store.open(drawn.source, self.owner).convert("RGB")
        return strokes.painted(image, drawn.strokes) if drawn.paint else image

    def mask(self, drawn: Drawn, size: tuple[int, int]) -> Image.Image:
        """What was masked and painted, over the mask there was before; mode L.

        Raises:
            InvalidField: that mask is not this person's, or of another size.
        """
        base = self.store.open(drawn.mask, self.owner, "mask_image").convert("L") if drawn.mask else None
        return strokes.mask(size, drawn.strokes, base)

    def keep(self, image: Image.Image) -> str:
        return self.store.keep(image, self.owner)

    def flat(self, drawn: Drawn) -> Drawn:
        """The same picture without strokes: what was painted is part of it, what was masked is gone."""
        return Drawn(self.keep(self.picture(drawn)) if drawn.paint else drawn.source)

    def pictures(self, values: Values) -> dict[str, str]:
        """The request fields ``image`` and ``mask_image`` that the canvas among ``values`` stands for.

        Raises:
            InvalidField: there is no picture, or it is not this person's.
            NothingPainted: inpainting, and nothing is masked or extended.
        """
        task = form.task_of(values)
        if task in (None, "txt2img"):
            return {}
        drawn = read(values.get("canvas"))
        picture = self.picture(drawn)
        found = {"image": self.keep(picture) if drawn.paint else drawn.source}
        if task == "inpaint":
            mask = self.mask(drawn, picture.size)
            if not _is_blank(mask, inverted=values.get("mask_inverted") is True):
                found["mask_image"] = self.keep(mask)
            elif not any(values.get(name) for name in form.OF_EXTENSION):
                raise NothingPainted("mask_image", "nothing is painted", form.LABELS["mask_image"])
        return found

    def shown(self, drawn: Drawn) -> Drawing:
        """What the canvas takes to show it.

        Raises:
            InvalidField: a picture is no longer here, or not this person's.
        """
        image = self.store.open(drawn.source, self.owner)
        mask = self.store.open(drawn.mask, self.owner, "mask_image") if drawn.mask else None
        return Drawing(
            source=drawn.source,
            url=self._url(image),
            width=image.width,
            height=image.height,
            mask=drawn.mask,
            mask_url=self._url(mask) if mask else "",
            strokes=[stroke.model_dump(mode="json") for stroke in drawn.strokes],
        )

    def with_mask(self, drawn: Drawn, mask: Image.Image) -> Drawing:
        """The picture with this mask alone: nothing of one before it is left. Scaled if its shape is right.

        Raises:
            InvalidField: there is no picture, or the mask is of other proportions.
        """
        flat = self.flat(drawn)
        size = self.picture(flat).size
        return self.shown(replace(flat, mask=self.keep(masks.fitted(mask, size))))

    def _url(self, image: Image.Image) -> str:
        """Where the browser finds a picture of it, of at most ``PROXY`` pixels a side."""
        exact = image.mode == "L" or image.width * image.height <= EXACT
        name = "picture.png" if exact else "picture.jpg"
        path = save_bytes_to_cache(encoded(image, PROXY, "PNG" if exact else "JPEG"), name, self.cache)
        return f"gradio_api/file={Path(path).as_posix()}"


def view_of_mask(request: GenerationRequest, image: Image.Image, mask: Image.Image) -> Image.Image:
    """The mask over the picture as it will be used, with a line where it is half, and a frame round what is
    computed; small enough to be shown beside the controls.

    Raises:
        InvalidField: nothing is to repaint.
    """
    layout = masks.prepare(request, image, mask)
    scale = min(1.0, VIEW / max(layout.canvas.size))
    size = round(layout.canvas.width * scale) or 1, round(layout.canvas.height * scale) or 1
    canvas, used = layout.canvas.resize(size), layout.mask.resize(size)
    view = masks.overlay(canvas, used)
    half = used.point(lambda level: 255 * (level > 127))
    view.paste("white", mask=ImageChops.difference(half, half.filter(ImageFilter.MinFilter(3))))
    if layout.box != (0, 0, *layout.canvas.size):
        left, top, right, bottom = (round(edge * scale) for edge in layout.box)
        ImageDraw.Draw(view).rectangle((left, top, right - 1, bottom - 1), outline=FRAME, width=2)
    return view


def encoded(image: Image.Image, longest: int, format: str = "JPEG") -> bytes:
    """As a file, with no side longer than ``longest`` pixels."""
    if max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, format, **({"quality": 90} if format == "JPEG" else {}))
    return file.getvalue()


def _is_blank(mask: Image.Image, inverted: bool) -> bool:
    return mask.getextrema() == ((255, 255) if inverted else (0, 0))
