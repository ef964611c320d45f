"""The controls of a ControlNet. What they do is in ``controlling``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from webui.request import PREPROCESSORS
from webui.ui.companions import NONE, WIDE
from webui.ui.maker import Maker
from webui.ui.panels import PICTURES

HEIGHT = 180  # pixels


@dataclass(frozen=True)
class Control:
    """Every component of these that is no field. The picture's field is the hash of its content."""

    section: Any  # is there where a ControlNet is
    file: Any  # takes a picture
    shown: Any  # shows what the ControlNet will be shown
    drop: Any  # takes the picture away


def build(make: Maker) -> Control:
    """Among the settings."""
    title = "ControlNet: a picture gives the outlines"
    with gr.Accordion(title, open=False, elem_id="controlling", visible=False) as section:
        with gr.Row():
            make(gr.Dropdown, "control_model", choices=[NONE], **WIDE)
            make(gr.Dropdown, "control_preprocessor", choices=list(PREPROCESSORS), **WIDE)
        with gr.Row():
            file = gr.File(
                label="Control picture (without one, the source)",
                type="filepath",
                file_types=PICTURES,
                height=HEIGHT,
                elem_id="control-file",
                **WIDE,
            )
            shown = gr.HTML(elem_id="control-shown", visible=False, **WIDE)
        drop = gr.Button("Take the picture away", size="sm", visible=False, elem_id="control-drop")
        make.slider("control_scale", 0, 2, 0.05, "How much it counts")
        with gr.Row():
            make.slider("control_start", 0, 0.95, 0.05, "It counts from this share of the steps on")
            make.slider("control_end", 0.05, 1, 0.05, "and up to this")
        make(gr.Textbox, "control_image", visible="hidden")
    return Control(section, file, shown, drop)
