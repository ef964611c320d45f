"""The Models tab: what is in memory, what is on the disk, and what can be had from the hub.

What these do is in ``shelving`` and ``fetching``; lists are drawn by ``models_shelf.js`` and
``models_memory.js`` from the messages of ``show_models``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from webui.ui import show_models

HERE = Path(__file__).parent
SCRIPTS = ("models_shelf.js", "models_memory.js")
TAB = "models"


@dataclass(frozen=True)
class Models:
    """Every component of the tab."""

    tab: Any
    shelf: Any
    memory: Any
    hub_section: Any
    hub_note: Any
    hub_row: Any
    hub_text: Any
    hub_look: Any
    offer: Any  # gr.State: what the hub has, an Offer
    choice: Any
    files: Any
    start_row: Any
    start: Any
    cancel: Any
    progress: Any


def build() -> Models:
    """The tab, with a page to itself."""
    parts: dict[str, Any] = {}
    with gr.Tab("Models", id=TAB, elem_id=f"tab-{TAB}") as parts["tab"], gr.Row(elem_id="models"):
        with gr.Column(elem_id="models-memory"):
            gr.HTML("<h2>In memory</h2>")
            parts["memory"] = _app("memory", ("look", "release", "pin"), "In memory")
            _hub(parts)
        with gr.Column(elem_id="models-shelf"):
            gr.HTML("<h2>On the disk</h2>")
            parts["shelf"] = _app("shelf", ("refresh", "use", "bring", "note"), "On the disk")
    return Models(**parts)


def _app(name: str, events: Sequence[str], label: str) -> Any:
    """A list drawn in the browser; what a person does with it comes as events."""
    tell = ", ".join(f"{event}: (data) => trigger('{event}', data)" for event in events)
    return gr.HTML(
        None,
        html_template=f'<div class="models-app {name}"></div>',
        js_on_load=f"studio.models.attach{name.title()}(element, props, watch, {{ {tell} }})",
        apply_default_css=False,
        elem_id=f"models-{name}-app",
        label=label,
    )


def _hub(parts: dict[str, Any]) -> None:
    section = gr.Accordion("From the Hugging Face Hub", open=False, elem_id="hub")
    parts["hub_section"], parts["offer"] = section, gr.State(None)
    with section:
        parts["hub_note"] = gr.HTML(show_models.hub_note(admin=True))
        with gr.Row(elem_classes="with-button") as parts["hub_row"]:
            parts["hub_text"] = gr.Textbox(
                label="Model on the hub",
                placeholder="org/name",
                max_lines=1,
                elem_id="hub-text",
                min_width=150,
            )
            parts["hub_look"] = gr.Button("Look up", size="sm", scale=0, min_width=90, elem_id="hub-look")
        parts["choice"] = gr.Radio([], label="What of it", visible=False, elem_id="hub-choice")
        parts["files"] = gr.HTML(elem_id="hub-files")
        with gr.Row(visible=False) as parts["start_row"]:
            parts["start"] = gr.Button("Download", variant="primary", elem_id="hub-start", min_width=120)
        parts["progress"] = gr.HTML(elem_id="hub-progress")
        parts["cancel"] = gr.Button("Cancel the download", size="sm", visible=False, elem_id="hub-cancel")


def head() -> str:
    """What the page's ``<head>`` needs for it, after ``keys.js``."""
    style, *scripts = ((HERE / name).read_text("utf-8") for name in ("models.css", *SCRIPTS))
    return f"<style>{style}</style><script>{''.join(scripts)}</script>"
