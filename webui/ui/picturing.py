"""What sections with a picture do: it is kept and shown, and models are offered that fit."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from html import escape
from typing import Any, ClassVar

import gradio as gr
from PIL import Image

from webui import images
from webui.catalogue.found import CONTROLLED, REFERRING, Found, Kind
from webui.engine import Engine
from webui.errors import InvalidField
from webui.request import GenerationRequest
from webui.ui import form
from webui.ui.companions import NONE
from webui.ui.desk import encoded
from webui.ui.layout import Layout
from webui.ui.pictured import Pictured
from webui.ui.source import Update, owner_of, plainly

SIDE = 256  # pixels of the picture as it is shown


class Picturing(ABC):
    """The handlers of one section."""

    kind: ClassVar[Kind]  # of its models
    title: ClassVar[str]  # of the picture that is shown
    told: ClassVar[tuple[str, ...]] = ()  # the fields that it hangs on, besides the picture's own

    def __init__(self, engine: Engine, layout: Layout, parts: Pictured) -> None:
        self.engine = engine
        self.fields = layout.fields
        self.parts = parts

    @abstractmethod
    def suits(self, found: Found, family: str) -> bool:
        """Whether it may go with a model of this family."""

    @abstractmethod
    def view(self, digest: str, owner: str, told: form.Values) -> Image.Image:
        """What is shown of the owner's picture.

        Raises:
            InvalidField: the picture is damaged, or a field is wrong.
        """

    def follow(self, model: str | None, chosen: str | None) -> Update:
        """What goes with the model. Where nothing does, there is no section."""
        info = next((info for info in self.engine.models() if info.name == model), None)
        things = self.engine.catalogue.of(self.kind) if info else {}
        names = [
            name
            for name, found in things.items()
            if info and not found.problem and self.suits(found, info.family)
        ]
        choices = [NONE, *((name, name) for name in names)]
        stays = not chosen or chosen in names  # what fills the form while the page loads is left alone
        field = self.fields[self.parts.field("model")]
        return {
            self.parts.section: gr.update(visible=bool(names)),
            field: gr.update(choices=choices, **({} if stays else {"value": ""})),
        }

    @plainly
    def take(self, request: gr.Request, file: str | None) -> Any:
        """Keep a picture: (its hash, nothing in the place that takes files)."""
        if not file:
            return gr.skip(), gr.skip()
        try:
            return self.engine.sources.keep(images.open_picture(file), owner_of(request)), None
        except InvalidField as error:
            self._warn(error.message)
            return gr.skip(), None

    def show(self, request: gr.Request, digest: str | None, *told: Any) -> Update:
        """The picture, small. One that is no longer here is taken out of the form."""
        owner, field = owner_of(request), self.parts.field("image")
        if digest and not self.engine.sources.has(digest, owner):
            self._warn("is no longer here; choose it again")
            digest = ""
        shown = self._shown(digest, owner, dict(zip(self.told, told, strict=True))) if digest else ""
        return {
            self.fields[field]: digest or "",
            self.parts.shown: gr.update(value=shown, visible=bool(shown)),
            self.parts.drop: gr.update(visible=bool(shown)),
        }

    def _warn(self, message: str) -> None:
        gr.Warning(escape(str(form.invalid(self.parts.field("image"), message))))

    def _shown(self, digest: str, owner: str, told: form.Values) -> str:
        """As HTML; why it cannot be shown, if it cannot."""
        try:
            jpeg = encoded(self.view(digest, owner, told), SIDE)
        except InvalidField as error:
            return f"<p>{escape(str(error))}</p>"
        return f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" alt="{self.title}">'


class Controlling(Picturing):
    """Of a ControlNet: what it will be shown of its picture."""

    kind = "controlnet"
    title = "What the ControlNet is shown"
    told = ("control_preprocessor", "task", "width", "height", "resize_mode")

    def suits(self, found: Found, family: str) -> bool:
        return found.family in ("", family) and family in CONTROLLED

    def view(self, digest: str, owner: str, told: form.Values) -> Image.Image:
        unused = {"task", *form.UNUSED[told["task"]]}
        wanted = {name: value for name, value in told.items() if name not in unused}
        return self.engine.shown_to_control(GenerationRequest(**wanted, control_image=digest), owner)


class Referring(Picturing):
    """Of a reference picture."""

    kind = "ip-adapter"
    title = "The reference picture"

    def suits(self, found: Found, family: str) -> bool:
        return found.family in ("", family) and family in REFERRING

    def view(self, digest: str, owner: str, told: form.Values) -> Image.Image:
        return self.engine.sources.open(digest, owner, "reference_image")
