"""What the source panels do: a picture comes onto the canvas, its size is found, its mask made and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from html import escape
from typing import Any, TypeVar

import gradio as gr
from PIL import Image, ImageColor

from webui import images, masks
from webui.engine import Engine
from webui.errors import WebuiError
from webui.request import GenerationRequest, SavedPicture
from webui.ui import desk as desks
from webui.ui import form, show, sizes
from webui.ui.desk import VIEW, Desk, Drawn
from webui.ui.form import Values
from webui.ui.layout import Layout
from webui.ui.panels import EXTEND_BY, LONGEST_EXTENSION

Update = dict[Any, Any]  # component -> its new value or properties
Handler = TypeVar("Handler", bound=Callable[..., Any])

# What the size follows from, besides the picture.
OF_VIEW = ("width", "height", "resize_mode")  # what the mask as it will be used follows from, besides its own
SIZING = ("task", "model", "width", "height", "inpaint_area", *form.OF_EXTENSION)


def owner_of(request: gr.Request) -> str:
    """Who is asking, as the guard found out."""
    return str(request.request.state.owner)


def may_manage(engine: Engine, request: gr.Request) -> bool:
    """Whether who is asking may change what everyone uses: plugins, and the models in memory."""
    return engine.settings.is_admin(getattr(request.request.state, "user", None))


def plainly(handler: Handler) -> Handler:
    """A handler whose refusals are said to the person, and then change nothing."""

    @wraps(handler)
    def careful(*arguments: Any, **keywords: Any) -> Any:
        try:
            return handler(*arguments, **keywords)
        except WebuiError as error:
            gr.Warning(escape(str(error)), title="Not done")
            return gr.skip()

    return careful  # type: ignore[return-value]


class SourceActions:
    """The handlers of the source panels. No state here."""

    def __init__(self, engine: Engine, layout: Layout) -> None:
        self.engine = engine
        self.layout = layout
        self.parts = layout.source

    def desk(self, owner: str) -> Desk:
        return Desk(self.engine.sources, owner, self.layout.gallery.GRADIO_CACHE)

    # A picture

    @plainly
    def take_file(self, request: gr.Request, file: str | None = None, **values: Any) -> Any:
        """A file that was chosen, dropped, pasted or photographed."""
        if not file:
            return gr.skip()
        image, alpha = images.open_picture(file), masks.of_alpha(images.open_upright(file))
        return self.chosen(self.desk(owner_of(request)), image, values, alpha)

    @plainly
    def take_blank(self, request: gr.Request, **values: Any) -> Update:
        """A white sheet of the form's size."""
        sheet = Image.new("RGB", (int(values["width"]), int(values["height"])), "white")
        return self.chosen(self.desk(owner_of(request)), sheet, {**values, "detect_size": False})

    @plainly
    def take_last(
        self, request: gr.Request, saved: tuple[SavedPicture, ...] = (), selected: int = 0, **values: Any
    ) -> Any:
        """The picture that is looked at in the gallery, else the newest one kept."""
        owner = owner_of(request)
        picture = saved[selected] if saved else next(iter(self.engine.library.recent(owner, 1)), None)
        if picture is None:
            gr.Info("There is no finished picture yet.")
            return gr.skip()
        return self.chosen(self.desk(owner), images.open_picture(picture.path), values)

    def chosen(
        self, desk: Desk, image: Image.Image, values: Values, alpha: Image.Image | None = None
    ) -> Update:
        """Put a picture onto the canvas, and the form to its size."""
        drawn = Drawn(desk.keep(image))
        kept = desk.keep(alpha) if alpha else ""
        return {
            self.layout.fields["canvas"]: gr.update(value=desk.shown(drawn)),
            self.parts.alpha: kept,
            self.parts.from_alpha: gr.update(interactive=bool(kept)),
            **self.detected(image.size, values),
        }

    def restored(self, desk: Desk, image: str, mask: str) -> Update:
        """Put stored pictures back onto the canvas.

        Raises:
            InvalidField: one of them is no longer here.
        """
        return {self.layout.fields["canvas"]: gr.update(value=desk.shown(Drawn(image, mask)))}

    # Its size

    def detected(self, source: sizes.Size, values: Values) -> Update:
        """The size that suits a picture just chosen, if the form asks for it."""
        if not values.get("detect_size"):
            return {}
        by = sizes.factor(_whole(source, values), self.native(values))
        return self._sized(source, by, values) | {self.parts.resize_by: by}

    def detect(self, canvas: Any = None, **values: Any) -> Any:
        """The same for the picture that is there."""
        size = _size_on(canvas)
        return self.detected(size, values) if size else gr.skip()

    def choose_area(self, canvas: Any = None, **values: Any) -> Update:
        """Only the masked part needs padding, and it is computed at the model's own size."""
        padding = gr.update(visible=values["inpaint_area"] == "Only masked")
        size = _size_on(canvas)
        return {self.layout.fields["masked_padding"]: padding} | (self.detected(size, values) if size else {})

    def resize(self, canvas: Any = None, resize_by: float = 1.0, **values: Any) -> Any:
        """A size in proportion to the source's, with what is added at its sides."""
        size = _size_on(canvas)
        return self._sized(size, resize_by, values) if size else gr.skip()

    def extend(self, canvas: Any = None, resize_by: float = 1.0, **values: Any) -> Update:
        """More at all four sides, as far as the sliders go."""
        more = {side: min(int(values[side]) + EXTEND_BY, LONGEST_EXTENSION) for side in form.OF_EXTENSION}
        return self._margins(more, canvas, resize_by, values)

    def extend_none(self, canvas: Any = None, resize_by: float = 1.0, **values: Any) -> Update:
        """Nothing at any side."""
        return self._margins(dict.fromkeys(form.OF_EXTENSION, 0), canvas, resize_by, values)

    def _margins(self, margins: Mapping[str, int], canvas: Any, resize_by: float, values: Values) -> Update:
        resized = self.resize(canvas, resize_by, **{**values, **margins})
        return {self.layout.fields[side]: value for side, value in margins.items()} | components(resized)

    def native(self, values: Values) -> sizes.Native:
        models = self.engine.models()
        info = next((info for info in models if info.name == values.get("model")), None)
        return sizes.Native(info.width, info.height, info.multiple) if info else sizes.Native(512, 512)

    def _sized(self, source: sizes.Size, by: float, values: Values) -> Update:
        """Width and height: of the resized source, or the model's own where only the masked part is made."""
        part = values["task"] == "inpaint" and values["inpaint_area"] == "Only masked"
        native = self.native(values)
        size = native[:2] if part else sizes.scaled(_whole(source, values), by, native.step)
        return {self.layout.fields["width"]: size[0], self.layout.fields["height"]: size[1]}

    # Its mask

    @plainly
    def take_mask(self, request: gr.Request, file: str | None, canvas: Any) -> Any:
        """A mask from a file: what is transparent in it, else what is bright."""
        if not file:
            return gr.skip()
        mask = masks.of_alpha(images.open_upright(file)) or images.open_picture(file).convert("L")
        return self._masked(request, mask, canvas)

    @plainly
    def mask_of_alpha(self, request: gr.Request, alpha: str, canvas: Any) -> Any:
        """What was transparent in the source's file."""
        mask = self.engine.sources.open(alpha, owner_of(request), "mask_image")
        return self._masked(request, mask, canvas)

    @plainly
    def mask_of_color(self, request: gr.Request, color: str, tolerance: float, canvas: Any) -> Any:
        """What has a colour, or nearly."""
        picture = self.desk(owner_of(request)).picture(desks.read(canvas))
        return self._masked(request, masks.of_color(picture, _rgb(color), int(tolerance)), canvas)

    def _masked(self, request: gr.Request, mask: Image.Image, canvas: Any) -> Update:
        if mask.getbbox() is None:
            raise form.invalid("mask_image", "would be empty; the one before is kept")
        shown = self.desk(owner_of(request)).with_mask(desks.read(canvas), mask)
        return {self.layout.fields["canvas"]: gr.update(value=shown)}

    def view_mask(self, request: gr.Request, **values: Any) -> str:
        """The mask over the picture as it will be used."""
        desk = self.desk(owner_of(request))
        try:
            drawn = desks.read(values["canvas"])
            picture = desk.picture(drawn)
            named = {"image": desks.SOME_DIGEST, "mask_image": desks.SOME_DIGEST}
            wanted = {name: values[name] for name in (*form.OF_MASK, *OF_VIEW) if name in values} | named
            view = desks.view_of_mask(GenerationRequest(**wanted), picture, desk.mask(drawn, picture.size))
        except WebuiError as error:
            return show.mask_view(None, str(error))
        return show.mask_view(desks.encoded(view, VIEW))

    # How much of it is left

    def survive(self, request: gr.Request, eta: float | None = None, **values: Any) -> Any:
        """What of the picture is left at the first step, at this strength."""
        owner = owner_of(request)
        try:
            drawn = desks.read(values["canvas"])
            if not drawn.source:
                return show.survival()
            desk = self.desk(owner)
            image = desk.keep(desk.picture(drawn)) if drawn.paint else drawn.source
            wanted = form.used({**values, "eta": eta, "task": "img2img", "image": image})
            left = self.engine.survival(GenerationRequest(**wanted), owner)
        except WebuiError as error:
            return show.survival(message=str(error))
        if left is None:
            return show.survival(message="The device is busy. Move the slider to look again.")
        return show.survival(desks.encoded(left, VIEW))


def components(update: Any) -> Update:
    """An update by components: of :func:`gr.skip`, none."""
    return {} if "__type__" in update else update


def _whole(source: sizes.Size, values: Values) -> sizes.Size:
    """The source with what is added at its sides."""
    if values["task"] != "inpaint":
        return source
    left, top, right, bottom = (int(values[side]) for side in form.OF_EXTENSION)
    return source[0] + left + right, source[1] + top + bottom


def _size_on(canvas: Any) -> sizes.Size | None:
    """The size of the source on the canvas, which is arithmetic's alone; None without one."""
    if not isinstance(canvas, Mapping):
        return None
    width, height = canvas.get("width"), canvas.get("height")
    if type(width) is not int or type(height) is not int:
        return None
    return (width, height) if 0 < width < 2**20 and 0 < height < 2**20 else None


def _rgb(color: str) -> tuple[int, int, int]:
    """A colour as a browser's picker gives it: #rrggbb or rgba(r, g, b, a).

    Raises:
        InvalidField: it is none.
    """
    try:
        if color.startswith("rgba"):
            red, green, blue = (round(float(part)) for part in color[5:-1].split(",")[:3])
            return red, green, blue
        red, green, blue = ImageColor.getrgb(color)[:3]
        return red, green, blue
    except ValueError:
        raise form.invalid("mask_image", "the colour to mask cannot be read") from None
