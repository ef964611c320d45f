"""The controls of what goes with a model: VAE, LoRAs, ControlNet, refiner.

Each is there where there are files for it. What these do is in ``adapting``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from webui.ui import show
from webui.ui.maker import Maker
from webui.ui.panels import PICTURES

WIDE = {"min_width": 200}  # pixels: two in a row, but on a phone
AUTOMATIC = ("Automatic", "")
NONE = ("None", "")


@dataclass(frozen=True)
class Companions:
    """Every component of these that is no field."""

    loras: Any  # those in the prompt
    known: Any  # gr.State: trigger words by the name of each LoRA there is
    refining: Any  # the refiner's section
    referring: Any  # that of the reference
    picture_file: Any  # takes the reference picture
    picture_shown: Any
    no_picture: Any
    note: Any  # what the model cannot do


def words(parts: dict[str, Any]) -> None:
    """Beside the prompts: the LoRAs that they name."""
    parts["known"] = gr.State({})
    parts["loras"] = gr.Dropdown(
        [],
        value=[],
        multiselect=True,
        label="LoRAs",
        info="Each is a tag in the prompt; the number in it is its weight",
        elem_id="loras",
        visible=False,
    )


def settings(make: Maker, parts: dict[str, Any]) -> None:
    """Among the settings."""
    make(gr.Dropdown, "vae", choices=[AUTOMATIC], visible=False)
    with (
        gr.Accordion(
            "Refiner: another model makes the last steps", open=False, elem_id="refining", visible=False
        ) as parts["refining"],
        gr.Row(),
    ):
        make(gr.Dropdown, "refiner", choices=[NONE], **WIDE)
        make.slider("refiner_switch", 0.05, 1, 0.05, "After this share of the steps")

    _reference(make, parts)


def _reference(make: Maker, parts: dict[str, Any]) -> None:
    """A picture as a prompt. The field holds its digest; what is seen of it follows from that."""
    with gr.Accordion(
        "Reference: a picture as a prompt", open=False, elem_id="referring", visible=False
    ) as parts["referring"]:
        with gr.Row():
            make(gr.Dropdown, "reference_model", choices=[NONE], **WIDE)
            make.slider("reference_scale", 0, 2, 0.05, "How much it counts beside the words")
        with gr.Row(elem_id="reference-row"):
            parts["picture_shown"] = gr.HTML(show.reference(None), elem_id="reference-shown")
            with gr.Column(min_width=120):
                parts["picture_file"] = gr.UploadButton(
                    "Choose a picture",
                    size="sm",
                    file_types=PICTURES,
                    type="filepath",
                    elem_id="reference-file",
                )
                parts["no_picture"] = gr.Button("Remove", size="sm", elem_id="no-reference")
        make(gr.Textbox, "reference_image", visible="hidden")


def note(parts: dict[str, Any]) -> None:
    """Under the model."""
    parts["note"] = gr.HTML(show.model_limits(None), elem_id="model-limits")
