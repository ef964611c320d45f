"""The Illustrated tab: how one picture came about. What it does is in ``illustrating``.

The browser is told what happens by the messages of ``show_illustrated``; ``illustrated_board.js`` draws them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from webui.ui import glossary

HERE = Path(__file__).parent
SCRIPTS = (
    "illustrated_draw.js", "illustrated_curve.js", "illustrated_panels.js", "illustrated_words.js",
    "illustrated_guidance.js", "illustrated_facts.js", "illustrated_board.js",
)  # fmt: skip
TAB = "illustrated"
LABEL = "Illustrated"
KEYS = "<p><kbd>Ctrl</kbd> <kbd>Enter</kbd> makes it · <kbd>Esc</kbd> cancels</p>"


@dataclass(frozen=True)
class Illustrated:
    """Every component of this tab."""

    task: Any
    run: Any
    stop: Any
    opened: Any
    view: Any


def build(tasks: Mapping[Any, str]) -> Illustrated:
    """Lay it out, in two columns. ``illustrated.css`` shows them when the tab is open.

    Args:
        tasks: what the picture may be; task -> label.
    """
    parts: dict[str, Any] = {}
    with gr.Column(elem_id="watching"):
        with gr.Row(elem_id="watch-actions"):
            parts["run"] = gr.Button(
                "Make it and watch", variant="primary", elem_id="watch-run", min_width=120
            )
            parts["stop"] = gr.Button(
                "Cancel", variant="stop", interactive=False, elem_id="watch-stop", min_width=90, scale=0
            )
        gr.HTML(KEYS, elem_id="watch-keys")
        parts["task"] = gr.Dropdown(
            [(label, task) for task, label in tasks.items()],
            value=next(iter(tasks)),
            label="The picture is",
            info="From what is in that tab",
            filterable=False,
            elem_id="watch-task",
        )
        parts["opened"] = gr.UploadButton(
            "Open a flight record…", file_types=[".npz"], size="sm", elem_id="watch-open", min_width=120
        )
    with gr.Column(elem_id="illustration"):
        parts["view"] = gr.HTML(
            None,
            html_template='<div class="illustrated"></div>',
            js_on_load="""studio.illustrated.attach(element, props, watch, {
                wanted: () => trigger('wanted', {}), files: (data) => trigger('files', data) })""",
            apply_default_css=False,
            elem_id="illustrated",
            label="How the picture is made",
        )
    return Illustrated(**parts)


def style() -> str:
    return (HERE / "illustrated.css").read_text("utf-8")


def script() -> str:
    """What draws it, here and in an exported page; it expects ``studio`` to be there."""
    drawing = "".join((HERE / name).read_text("utf-8") for name in SCRIPTS)
    return f"{drawing}studio.illustrated.texts = {plain_json(glossary.texts())};"


def plain_json(value: Any) -> str:
    """JSON without a sign that could end the element it stands in."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def head() -> str:
    """What the page's ``<head>`` needs for it, after ``keys.js`` and ``compare_chart.js``."""
    wired = (HERE / "illustrated.js").read_text("utf-8")
    return f"<style>{style()}</style><script>{script()}{wired}</script>"
