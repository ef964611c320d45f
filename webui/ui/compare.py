"""The comparison grid's panels: what varies, what that comes to, and the grid itself.

What they do is in ``comparing``; the grid is drawn by ``compare_board.js`` from the messages of ``runs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from webui.grid.axes import AxisKind
from webui.grid.plan import AXES, AxisSpec
from webui.ui import show_plan
from webui.ui.choosing import Choosing
from webui.ui.presets import BUILT_IN, FIRST

HERE = Path(__file__).parent
SCRIPTS = (
    "compare_chart.js", "compare_numbers.js", "compare_viewer.js", "compare_stars.js", "compare_table.js",
    "compare_board.js", "compare.js",
)  # fmt: skip
TAB = "compare"
MOST_PER_CELL = 16  # on this page
TITLES = {"x": "X: columns", "y": "Y: rows", "z": "Z: pages"}


CELLS = [
    ("Automatic", "auto"),
    ("Exactly as alone", "exact"),
    ("Faster: together, equal to about 1e-5", "together"),
]


@dataclass(frozen=True)
class Axis:
    """The controls of one axis. Either ``text`` or ``pick`` and ``every`` are visible."""

    kind: Any
    text: Any
    pick: Any
    every: Any


@dataclass(frozen=True)
class Compare:
    """Every component of these panels, and the ``kinds`` of axes on their lists."""

    kinds: Mapping[str, AxisKind]
    axes: Mapping[str, Axis]
    swap_xy: Any
    swap_yz: Any
    per_cell: Any
    preset: Any
    save_preset: Any
    delete_preset: Any
    task: Any
    plan: Any  # what the grid comes to
    look: Any  # a hidden button: something has changed
    new_seed: Any
    seeds: Any  # gr.State: dict of the seeds drawn for the last grid, or None
    cells: Any  # whether they may share batches
    run: Any
    stop: Any
    grid: Any

    def inputs(self) -> dict[str, Any]:
        """What a grid is read from, besides the form."""
        named = {f"{name}_{part}": getattr(axis, part) for name, axis in self.axes.items()
                 for part in ("kind", "text", "pick")}  # fmt: skip
        return {**named, "per_cell": self.per_cell, "seeds": self.seeds, "cells": self.cells}

    def choosing(self) -> list[Any]:
        """What a preset sets."""
        return [*(part for axis in self.axes.values() for part in vars(axis).values()), self.per_cell]


def build(choosing: Choosing, tasks: Mapping[Any, str]) -> Compare:
    """Lay the panels out, in two columns. ``compare.css`` shows them when the tab is open.

    Args:
        choosing: what can be chosen for the axes.
        tasks: what each cell may be; task -> label.
    """
    parts: dict[str, Any] = {"kinds": choosing.kinds}
    with gr.Column(elem_id="axes"):
        _presets(parts)
        _axes(parts, choosing)
        _cells(parts, tasks)
    with gr.Column(elem_id="grid-dock"):
        _planned(parts)
    with gr.Column(elem_id="comparison"):
        parts["grid"] = gr.HTML(
            None,
            html_template='<div class="grid-app"></div>',
            js_on_load="""studio.compare.attach(element, props, watch, {
                again: (data) => trigger('again', data), use: (data) => trigger('use', data),
                files: (data) => trigger('files', data), resync: (data) => trigger('resync', data),
                infotext: (data) => trigger('infotext', data),
                resume: (data) => trigger('resume', data) })""",
            apply_default_css=False,
            elem_id="grid",
            label="Comparison grid",
        )
    return Compare(**parts)


def _presets(parts: dict[str, Any]) -> None:
    with gr.Row(elem_classes="with-button"):
        parts["preset"] = gr.Dropdown(
            list(BUILT_IN),
            value=FIRST,
            label="Saved grids",
            info="Choose one, or write a name and save it",
            allow_custom_value=True,
            elem_id="grid-preset",
            min_width=150,
        )
        parts["save_preset"] = gr.Button("Save", size="sm", scale=0, min_width=64, elem_id="grid-save")
        parts["delete_preset"] = gr.Button("Delete", size="sm", scale=0, min_width=64, elem_id="grid-delete")


def _axes(parts: dict[str, Any], choosing: Choosing) -> None:
    parts["axes"] = {}
    start = BUILT_IN[FIRST]
    for name, following in zip(AXES, (*AXES[1:], ""), strict=True):
        parts["axes"][name] = _axis(name, getattr(start, name), choosing)
        if following:
            parts[f"swap_{name}{following}"] = gr.Button(
                f"⇅ Swap {name.upper()} and {following.upper()}",
                size="sm",
                elem_id=f"swap-{name}{following}",
                elem_classes="swap",
            )


def _cells(parts: dict[str, Any], tasks: Mapping[Any, str]) -> None:
    with gr.Row():
        parts["per_cell"] = gr.Number(
            BUILT_IN[FIRST].per_cell,
            label="Pictures per cell",
            info="Their seeds count on",
            minimum=1,
            maximum=MOST_PER_CELL,
            precision=0,
            elem_id="grid-per-cell",
            min_width=120,
        )
        parts["task"] = gr.Dropdown(
            [(label, task) for task, label in tasks.items()],
            value=next(iter(tasks)),
            label="Each picture is",
            info="From what is in that tab",
            filterable=False,
            elem_id="grid-task",
            min_width=120,
        )
    parts["cells"] = gr.Radio(
        CELLS,
        value="auto",
        label="Cells are made",
        info="Automatic is exact on a CPU. What was made together is never taken for exact.",
        elem_id="grid-cells",
    )


def _axis(name: str, spec: AxisSpec, choosing: Choosing) -> Axis:
    shown, values = choosing.properties(spec), f"Values of {name.upper()}"
    with gr.Column(elem_id=f"axis-{name}", elem_classes="axis"):
        with gr.Row():
            kind = gr.Dropdown(
                choosing.kinds_by_label(), label=TITLES[name], elem_id=f"axis-{name}-kind", **shown["kind"]
            )
            every = gr.Button(
                "All", size="sm", scale=0, min_width=52, elem_id=f"axis-{name}-all", **shown["every"]
            )
        named = {"label": values, "show_label": False}
        text = gr.Textbox(elem_id=f"axis-{name}-text", max_lines=6, **named, **shown["text"])
        pick = gr.Dropdown(multiselect=True, elem_id=f"axis-{name}-pick", **named, **shown["pick"])
    return Axis(kind, text, pick, every)


def _planned(parts: dict[str, Any]) -> None:
    parts["plan"] = gr.HTML(show_plan.plan(), elem_id="grid-plan")
    parts["look"] = gr.Button("Look again", visible="hidden", elem_id="grid-look")
    parts["seeds"] = gr.State(None)
    with gr.Row(elem_id="grid-actions"):
        parts["run"] = gr.Button("Run the grid", variant="primary", elem_id="grid-run", min_width=120)
        parts["stop"] = gr.Button(
            "Stop", variant="stop", interactive=False, elem_id="grid-stop", min_width=90, scale=0
        )
    with gr.Row(elem_id="grid-extras"):
        gr.HTML("<p><kbd>Ctrl</kbd> <kbd>Enter</kbd> runs it · <kbd>Esc</kbd> stops</p>", elem_id="grid-keys")
        parts["new_seed"] = gr.Button(
            "Draw a new seed", size="sm", scale=0, min_width=130, visible=False, elem_id="grid-new-seed"
        )


def head() -> str:
    """What the page's ``<head>`` needs for it, after ``keys.js``."""
    style, *scripts = ((HERE / name).read_text("utf-8") for name in ("compare.css", *SCRIPTS))
    return f"<style>{style}</style><script>{''.join(scripts)}</script>"
