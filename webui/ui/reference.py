"""The controls of a reference picture. What they do is in ``referring``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from webui.ui.companions import NONE, WIDE
from webui.ui.maker import Maker
from webui.ui.panels import PICTURES

HEIGHT = 180  # pixels


@dataclass(frozen=True)
class Reference:
    """Every component of these that is no field. The picture's field is the hash of its content."""

    section: Any  # is there where an adapter is
    file: Any  # takes a picture
    shown: Any  # shows the one there is
    drop: Any  # takes it away


def build(make: Maker) -> Reference:
    """Among the settings."""
    title = "Reference: a picture as a prompt"
    with gr.Accordion(title, open=False, elem_id="referring", visible=False) as section:
        with gr.Row():
            make(gr.Dropdown, "reference_model", choices=[NONE], **WIDE)
            make.slider("reference_scale", 0, 2, 0.05, "How much it counts beside the words")
        with gr.Row():
            file = gr.File(
                label="Reference picture",
                type="filepath",
                file_types=PICTURES,
                height=HEIGHT,
                elem_id="reference-file",
                **WIDE,
            )
            shown = gr.HTML(elem_id="reference-shown", visible=False, **WIDE)
        drop = gr.Button("Take the picture away", size="sm", visible=False, elem_id="reference-drop")
        make(gr.Textbox, "reference_image", visible="hidden")
    return Reference(section, file, shown, drop)
