"""Sections with a picture of their own among the settings: a ControlNet's, a reference's.

What they do is in ``picturing``.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import gradio as gr

from webui.request import PREPROCESSORS
from webui.ui.companions import NONE, WIDE
from webui.ui.maker import Maker
from webui.ui.panels import PICTURES
from webui.units import STEMS

HEIGHT = 180  # pixels


@dataclass(frozen=True)
class Pictured:
    """Every component of a section that is no field. The picture's field is the hash of its content."""

    stem: str  # of the names of its fields, as of "control_image"
    section: Any  # is there where a model for it is
    file: Any  # takes a picture
    shown: Any  # shows the one there is
    drop: Any  # takes it away

    def field(self, name: str) -> str:
        return f"{self.stem}_{name}"


def controls(make: Maker) -> list[Pictured]:
    """Of ControlNets, each inside the one before it: it is there once that has a model."""
    for stem in STEMS:
        _digest(make, stem)
    with ExitStack() as outer:
        return [_control(make, stem, outer) for stem in STEMS]


def _control(make: Maker, stem: str, outer: ExitStack) -> Pictured:
    first = stem == STEMS[0]
    title = "ControlNet: a picture gives the outlines" if first else "Another ControlNet"
    section = outer.enter_context(_section(title, "controlling" if first else f"{stem}-section"))
    with gr.Row():
        make(gr.Dropdown, f"{stem}_model", choices=[NONE], **WIDE)
        make(gr.Dropdown, f"{stem}_preprocessor", choices=list(PREPROCESSORS), **WIDE)
    parts = _picture(make, stem, section, "Control picture (without one, the source)")
    make.slider(f"{stem}_scale", 0, 2, 0.05, "How much it counts")
    with gr.Row():
        make.slider(f"{stem}_start", 0, 0.95, 0.05, "It counts from this share of the steps on")
        make.slider(f"{stem}_end", 0.05, 1, 0.05, "and up to this")
    return parts


def reference(make: Maker) -> Pictured:
    """Of a reference picture."""
    _digest(make, "reference")
    with _section("Reference: a picture as a prompt", "referring") as section:
        with gr.Row():
            make(gr.Dropdown, "reference_model", choices=[NONE], **WIDE)
            make.slider("reference_scale", 0, 2, 0.05, "How much it counts beside the words")
        return _picture(make, "reference", section, "Reference picture")


def _section(title: str, element: str) -> Any:
    return gr.Accordion(title, open=False, elem_id=element, visible=False)


def _digest(make: Maker, stem: str) -> None:
    """The picture's field. Outside of its section: Gradio shows what it hid in one that comes to be seen."""
    make(gr.Textbox, f"{stem}_image", visible="hidden")


def _picture(make: Maker, stem: str, section: Any, label: str) -> Pictured:
    """The place for a picture, and the picture in it."""
    with gr.Row():
        file = gr.File(
            label=label,
            type="filepath",
            file_types=PICTURES,
            height=HEIGHT,
            elem_id=f"{stem}-file",
            **WIDE,
        )
        shown = gr.HTML(elem_id=f"{stem}-shown", visible=False, **WIDE)
    drop = gr.Button("Take the picture away", size="sm", visible=False, elem_id=f"{stem}-drop")
    return Pictured(stem, section, file, shown, drop)
