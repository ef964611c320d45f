"""What sections with a picture do: it is kept and shown, and models are offered that fit."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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
from webui.ui.source import OF_VIEW, Update, owner_of, plainly
from webui.units import STEMS

SIDE = 256  # pixels of the picture as it is shown


class Picturing(ABC):
    """The handlers of sections of one kind, each inside the one before it."""

    kind: ClassVar[Kind]  # of its models
    title: ClassVar[str]  # of a picture that is shown
    told: tuple[str, ...] = ()  # the fields that these hang on, besides the pictures' own

    def __init__(self, engine: Engine, layout: Layout, parts: Sequence[Pictured]) -> None:
        self.engine = engine
        self.fields = layout.fields
        self.parts = parts

    @abstractmethod
    def suits(self, found: Found, family: str) -> bool:
        """Whether it may go with a model of this family."""

    @abstractmethod
    def view(self, part: Pictured, digest: str, owner: str, told: form.Values) -> Image.Image:
        """What is shown of the owner's picture.

        Raises:
            InvalidField: the picture is damaged, or a field is wrong.
        """

    def follow(self, model: str | None, *chosen: str | None) -> Update:
        """What goes with the model, in each section. Where nothing does, there is none."""
        info = next((info for info in self.engine.models() if info.name == model), None)
        things = self.engine.catalogue.of(self.kind) if info else {}
        names = [
            name
            for name, found in things.items()
            if info and not found.problem and self.suits(found, info.family)
        ]
        choices = [NONE, *((name, name) for name in names)]
        offered: Update = {self.parts[0].section: gr.update(visible=bool(names))}
        for part, name in zip(self.parts, chosen, strict=True):
            stays = not name or name in names  # what fills the form while the page loads is left alone
            value = {} if stays else {"value": ""}
            offered[self.fields[part.field("model")]] = gr.update(choices=choices, **value)
        return offered

    def take(self, part: Pictured) -> Callable[[gr.Request, str | None], Any]:
        """Keeps a picture of this section: (its hash, nothing in the place that takes files)."""

        @plainly
        def take(request: gr.Request, file: str | None) -> Any:
            if not file:
                return gr.skip(), gr.skip()
            try:
                return self.engine.sources.keep(images.open_picture(file), owner_of(request)), None
            except InvalidField as error:
                _warn(part, error.message)
                return gr.skip(), None

        return take

    def show(self, request: gr.Request, *values: Any) -> Update:
        """The pictures, small, by their hashes and what they are ``told``."""
        told = dict(zip(self.told, values[len(self.parts) :], strict=True))
        shown: Update = {}
        for part, digest in zip(self.parts, values[: len(self.parts)], strict=True):
            shown |= self._show(part, digest or "", owner_of(request), told)
        return shown

    def _show(self, part: Pictured, digest: str, owner: str, told: form.Values) -> Update:
        """One that is no longer here is taken out of the form."""
        gone: Update = {}
        if digest and not self.engine.sources.has(digest, owner):
            _warn(part, "is no longer here; choose it again")
            digest, gone = "", {self.fields[part.field("image")]: ""}
        shown = self._html(part, digest, owner, told) if digest else ""
        return gone | {
            part.shown: gr.update(value=shown, visible=bool(shown)),
            part.drop: gr.update(visible=bool(shown)),
        }

    def _html(self, part: Pictured, digest: str, owner: str, told: form.Values) -> str:
        """A picture; why it cannot be shown, if it cannot."""
        try:
            jpeg = encoded(self.view(part, digest, owner, told), SIDE)
        except InvalidField as error:
            return f"<p>{escape(str(error))}</p>"
        return f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" alt="{self.title}">'


def _warn(part: Pictured, message: str) -> None:
    gr.Warning(escape(str(form.invalid(part.field("image"), message))))


class Controlling(Picturing):
    """Of ControlNets: what each will be shown of its picture."""

    kind = "controlnet"
    title = "What the ControlNet is shown"
    told = (*(f"{stem}_preprocessor" for stem in STEMS), "task", "width", "height", "resize_mode")

    def suits(self, found: Found, family: str) -> bool:
        return found.family in ("", family) and family in CONTROLLED

    def view(self, part: Pictured, digest: str, owner: str, told: form.Values) -> Image.Image:
        unused = form.UNUSED[told["task"]]
        placed = {name: told[name] for name in OF_VIEW if name not in unused}
        preprocessor = told[part.field("preprocessor")]
        wanted = GenerationRequest(control_image=digest, control_preprocessor=preprocessor, **placed)
        return self.engine.shown_to_control(wanted, owner)


class Referring(Picturing):
    """Of a reference picture."""

    kind = "ip-adapter"
    title = "The reference picture"

    def suits(self, found: Found, family: str) -> bool:
        return found.family in ("", family) and family in REFERRING

    def view(self, part: Pictured, digest: str, owner: str, told: form.Values) -> Image.Image:
        return self.engine.sources.open(digest, owner, "reference_image")
