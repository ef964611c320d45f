"""The comparison grid's panels: what varies, what that comes to, and the grid itself.

What they do is in ``comparing``; the grid is drawn by ``compare.js`` from the messages of ``runs``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from webui.grid.axes import AxisKind, Known, kinds
from webui.grid.plan import AXES, AxisSpec
from webui.grid.values import split, written
from webui.request import ModelInfo, SchedulerInfo
from webui.ui import show_plan
from webui.ui.presets import BUILT_IN, FIRST, Preset

HERE = Path(__file__).parent
SCRIPTS = ("compare_chart.js", "compare_numbers.js", "compare_viewer.js", "compare.js")
TAB = "compare"
MOST_PER_CELL = 16  # on this page
TITLES = {"x": "X: columns", "y": "Y: rows", "z": "Z: pages"}

# The axes in the order of the list: what is varied most comes first, the rest as the grid has it.
COMMON = (
    "scheduler", "guidance_scale", "num_inference_steps", "seed", "prompt_replace", "prompt",
    "sigma_schedule", "model", "size", "negative_prompt",
)  # fmt: skip
# What to begin with when an axis is chosen, so that there is something to change; of a pick list, everything.
STARTS = {
    "guidance_scale": "1, 2, 4, 8",
    "num_inference_steps": "5, 10, 20, 40",
    "eta": "0, 0.5, 1",
    "seed": "1-4",
    "variation_seed": "1-4",
    "variation_strength": "0-1 [5]",
    "clip_skip": "1-3",
    "strength": "0.2-1 [5]",
    "hires_strength": "0.2-1 [5]",
    "hires_scale": "1.5, 2",
    "mask_blur": "0, 4, 16",
    "mask_grow": "-8, 0, 8",
    "masked_padding": "0, 32, 128",
}
HINTS = {
    "prompt": "One prompt a line, or between commas; quotation marks keep a comma",
    "negative_prompt": "One a line, or between commas; quotation marks keep a comma",
    "prompt_replace": "What to look for in the prompt, then what takes its place: cat, dog, owl",
    "negative_prompt_replace": "What to look for, then what takes its place: blur, noise",
    "prompt_order": "Words of the prompt, in all orders: red, round, shiny",
    "negative_prompt_order": "Words of the negative prompt, in all orders",
    "size": "512x768, 768x512",
}
NUMBERS = "1-10 · 1-10 (+2) · 1-10 [5] · 4, 7, 12"


@dataclass(frozen=True)
class Axis:
    """The controls of one axis. Either ``text`` or ``pick`` and ``every`` are visible."""

    kind: Any
    text: Any
    pick: Any
    every: Any


@dataclass(frozen=True)
class Compare:
    """Every component of these panels."""

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
    run: Any
    stop: Any
    grid: Any

    def inputs(self) -> dict[str, Any]:
        """What a grid is read from, besides the form."""
        named = {f"{name}_{part}": getattr(axis, part) for name, axis in self.axes.items()
                 for part in ("kind", "text", "pick")}  # fmt: skip
        return {**named, "per_cell": self.per_cell, "seeds": self.seeds}

    def choosing(self) -> list[Any]:
        """What a preset sets."""
        return [*(part for axis in self.axes.values() for part in vars(axis).values()), self.per_cell]


def build(
    models: Sequence[ModelInfo], schedulers: Sequence[SchedulerInfo], tasks: Mapping[Any, str]
) -> Compare:
    """Lay the panels out, in two columns. ``compare.css`` shows them when the tab is open.

    Args:
        tasks: what each cell may be; task -> label.
    """
    known, parts = Known(tuple(models), tuple(schedulers)), dict[str, Any]()
    with gr.Column(elem_id="axes"):
        _presets(parts)
        _axes(parts, known)
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


def _axes(parts: dict[str, Any], known: Known) -> None:
    parts["axes"] = {}
    start = BUILT_IN[FIRST]
    for name, following in zip(AXES, (*AXES[1:], ""), strict=True):
        parts["axes"][name] = _axis(name, getattr(start, name), known)
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


def _axis(name: str, spec: AxisSpec, known: Known) -> Axis:
    shown, values = properties(spec, known), f"Values of {name.upper()}"
    with gr.Column(elem_id=f"axis-{name}", elem_classes="axis"):
        with gr.Row():
            kind = gr.Dropdown(choices(), label=TITLES[name], elem_id=f"axis-{name}-kind", **shown["kind"])
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


# What the controls of an axis show


def choices() -> list[tuple[str, str]]:
    """Of an axis, for its list: (label, name)."""
    found = kinds()
    names = [*COMMON, *(name for name in found if name not in COMMON)]
    return [("None", ""), *((found[name].label, name) for name in names)]


def properties(spec: AxisSpec, known: Known) -> dict[str, dict[str, Any]]:
    """The properties of each control of an axis that stands at ``spec``."""
    kind = kinds().get(spec.kind)
    listed = kind.choices(known) if kind and kind.choices else ()
    typed = kind is not None and kind.choices is None
    return {
        "kind": {"value": spec.kind if kind else ""},
        "text": {"value": spec.text if typed else "", "visible": typed,
                 "placeholder": HINTS.get(spec.kind, NUMBERS), "lines": 2 if spec.kind in HINTS else 1},
        "pick": {"choices": list(listed), "value": list(picked(spec.text, listed)), "visible": bool(listed)},
        "every": {"visible": bool(listed)},
    }  # fmt: skip


def started(kind: AxisKind, known: Known) -> AxisSpec:
    """An axis just chosen: with values to begin with, where any are as good as others."""
    if kind.choices:
        return AxisSpec(kind.name, written(kind.choices(known)[:6]))
    return AxisSpec(kind.name, STARTS.get(kind.name, ""))


def picked(text: str, listed: Sequence[str]) -> Iterator[str]:
    """The choices that a text names and that there are, "all" being everything; each once."""
    spelt = {choice.casefold(): choice for choice in listed}
    words = [word.casefold() for word in _words(text)]
    words = [each for word in words for each in (spelt if word == "all" and word not in spelt else [word])]
    return (spelt[word] for word in dict.fromkeys(words) if word in spelt)


def missing(spec: AxisSpec, known: Known) -> list[str]:
    """What a text names that is on no list here."""
    kind = kinds().get(spec.kind)
    if not kind or not kind.choices:
        return []
    here = {choice.casefold() for choice in kind.choices(known)} | {"all"}
    return [word for word in _words(spec.text) if word.casefold() not in here]


def _words(text: str) -> list[str]:
    try:
        return split(text)
    except ValueError:  # not written by us
        return []


def spec_of(values: Mapping[str, Any], name: str, known: Known) -> AxisSpec:
    """What the controls of an axis say."""
    kind = kinds().get(values[f"{name}_kind"] or "")
    if kind is None:
        return AxisSpec()
    if kind.choices:
        return AxisSpec(kind.name, written(values[f"{name}_pick"] or []))
    return AxisSpec(kind.name, values[f"{name}_text"] or "")


def preset_of(values: Mapping[str, Any], known: Known) -> Preset:
    x, y, z = (spec_of(values, name, known) for name in AXES)
    return Preset(x, y, z, whole(values["per_cell"]))


def whole(value: Any) -> Any:
    """20.0 is a whole number to a person."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def head() -> str:
    """What the page's ``<head>`` needs for it, after ``keys.js``."""
    style, *scripts = ((HERE / name).read_text("utf-8") for name in ("compare.css", *SCRIPTS))
    return f"<style>{style}</style><script>{''.join(scripts)}</script>"
