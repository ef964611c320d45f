"""The controls of what goes with a model: VAE, LoRAs, ControlNet, refiner.

Each is there where there are files for it. What these do is in ``adapting``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from webui.ui import show
from webui.ui.maker import Maker

WIDE = {"min_width": 200}  # pixels: two in a row, but on a phone
AUTOMATIC = ("Automatic", "")
NONE = ("None", "")


@dataclass(frozen=True)
class Companions:
    """Every component of these that is no field."""

    loras: Any  # those in the prompt
    known: Any  # gr.State: trigger words by the name of each LoRA there is
    refining: Any  # the refiner's section
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


def note(parts: dict[str, Any]) -> None:
    """Under the model."""
    parts["note"] = gr.HTML(show.model_limits(None), elem_id="model-limits")
