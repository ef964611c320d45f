"""What the controls of a ControlNet do: its picture is kept and shown, and nets are offered that fit."""

from __future__ import annotations

import base64
from typing import Any

import gradio as gr

from webui import images
from webui.engine import Engine
from webui.preprocess import preprocessed
from webui.ui import form
from webui.ui.companions import NONE
from webui.ui.desk import encoded
from webui.ui.layout import Layout
from webui.ui.source import Update, owner_of, plainly

SIDE = 256  # pixels of the picture as it is shown


class Controlling:
    """The handlers."""

    def __init__(self, engine: Engine, layout: Layout) -> None:
        self.engine = engine
        self.layout = layout
        self.parts = layout.control

    def follow(self, model: str | None, chosen: str | None) -> Update:
        """The ControlNets that go with the model. Without any, there is no section."""
        info = next((info for info in self.engine.models() if info.name == model), None)
        names = [
            name
            for name, found in self.engine.catalogue.of("controlnet").items()
            if info and not found.problem and found.family in ("", "other", info.family)
        ]
        choices = [NONE, *((name, name) for name in names)]
        stays = not chosen or chosen in names  # what fills the form while the page loads is left alone
        return {
            self.parts.section: gr.update(visible=bool(names)),
            self.layout.fields["control_model"]: gr.update(
                choices=choices, **({} if stays else {"value": ""})
            ),
        }

    @plainly
    def take(self, request: gr.Request, file: str | None) -> Any:
        """Keep a picture: (its hash, nothing in the place that takes files)."""
        if not file:
            return gr.skip(), gr.skip()
        return self.engine.sources.keep(images.open_picture(file), owner_of(request)), None

    def show(self, request: gr.Request, digest: str | None, preprocessor: str) -> Update:
        """What the ControlNet will be shown, small. A picture that is no longer here leaves the form."""
        sources, owner, field = self.engine.sources, owner_of(request), self.layout.fields["control_image"]
        if digest and not sources.has(digest, owner):
            gr.Warning("It is no longer here; choose it again.", title=form.LABELS["control_image"])
            digest = ""
        small = b""
        if digest:
            picture = sources.open(digest, owner, "control_image").convert("RGB")
            small = encoded(preprocessed(picture, preprocessor), SIDE)
        return {
            field: digest or "",
            self.parts.shown: gr.update(value=_html(small) if small else "", visible=bool(small)),
            self.parts.drop: gr.update(visible=bool(small)),
        }


def _html(jpeg: bytes) -> str:
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return f'<img src="{source}" alt="What the ControlNet is shown">'
