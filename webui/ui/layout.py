"""The page's components: what there is to see, and in which words.

What they do is in ``actions``, what they look like in ``style.css``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from webui.grid.axes import AxisKind
from webui.plugins.loading import Plugin
from webui.request import HIRES_UPSCALERS, PREVIEW_DECODERS, ModelInfo, SchedulerInfo, Task
from webui.ui import companions, compare, extensions, form, illustrated, panels, pictured, sending, show
from webui.ui import models as models_tab
from webui.ui.choosing import Choosing
from webui.ui.maker import Maker

NAME = "Diffusion Studio"
ASPECTS = ("1:1", "5:4", "4:3", "3:2", "16:9")
TABS: Mapping[Task, str] = {
    "txt2img": "Text to image",
    "img2img": "Image to image",
    "inpaint": "Inpainting",
}
COMPARISON = "Compare"
NEGATIVE_HINT = "What should not be in it (optional)"
KEYS = (
    "<p><kbd>Ctrl</kbd> <kbd>Enter</kbd> generates · <kbd>Esc</kbd> cancels · "
    "<kbd>Ctrl</kbd> <kbd>↑↓</kbd> weighs a word</p>"
)
FORMATS = [("PNG", "png"), ("JPEG", "jpeg"), ("WebP", "webp")]


@dataclass(frozen=True)
class Layout:
    """Every component that an action reads or changes. ``fields`` are keyed by field name."""

    fields: Mapping[str, Any]
    source: panels.Source
    compare: compare.Compare
    illustrated: illustrated.Illustrated
    extensions: extensions.Extensions
    models: models_tab.Models
    companions: companions.Companions
    controls: Sequence[pictured.Pictured]
    reference: pictured.Pictured
    comparison: Any  # its tab
    illustration: Any  # its tab
    tabs: Any
    tab: Mapping[Task, Any]
    refresh: Any
    status: Any
    model_note: Any
    ticker: Any
    tokens: Mapping[str, Any]  # for each of the two prompts
    examples: Any
    dropped: Any  # takes the files dropped on the prompt
    generate: Any
    cancel: Any
    fill: Any
    gallery: Any
    stage: Any
    caption: Any
    infotext: Any
    again: Any
    question: Any  # asks before a press of Generate changes the whole picture
    change_all: Any
    paint_first: Any
    send_to: Mapping[str, Any]  # a button for each of sending.TARGETS
    compare_it: Any  # takes the picture's settings to the grid
    illustrate_it: Any  # makes it again, watched
    with_settings: Any
    swap: Any
    aspect: Any
    random_seed: Any
    reuse_seed: Any
    saved: Any  # gr.State: the pictures in the gallery, tuple[SavedPicture, ...]
    selected: Any  # gr.State: the index of the one looked at


def build(
    models: Sequence[ModelInfo],
    schedulers: Sequence[SchedulerInfo],
    axes: Iterable[AxisKind] = (),
    upscalers: Sequence[str] = HIRES_UPSCALERS,
    plugins: Sequence[Plugin] = (),
    tabs: Sequence[extensions.Panel] = (),
) -> Layout:
    """Lay out the page inside the current ``gr.Blocks``.

    Args:
        axes: what may vary in a grid besides our own.
        plugins: those whose settings are shown, and which are listed.
        tabs: what plugins show in tabs of their own.
    """
    at_start = form.at_start(list(models), plugins)
    maker = Maker(at_start)
    of_plugins: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    parts: dict[str, Any] = {"saved": gr.State(()), "selected": gr.State(0), "ticker": gr.Timer(0.5)}
    with gr.Column(elem_id="page"):
        _top(maker, parts, models)
        companions.note(beside)
        _tabs(maker, parts, partial(extensions.tabs, plugins, tabs, of_plugins))
        with gr.Row(elem_id="studio"):  # of all three tabs
            source = panels.build(maker)
            with gr.Column(elem_id="words"):
                _words(maker, parts, models, beside)
            with gr.Column(elem_id="picture"):
                _picture(parts)
            with gr.Column(elem_id="settings"):
                _settings(maker, parts, list(schedulers), list(upscalers))
                companions.settings(maker, beside)
                controlling = pictured.controls(maker)
                referring = pictured.reference(maker)
                extensions.sections(maker, plugins, of_plugins)
            comparison = compare.build(Choosing.among(models, schedulers, axes), TABS)
            illustration = illustrated.build(TABS)
    about_plugins = extensions.Extensions(**of_plugins)
    return Layout(
        fields=maker.fields,
        source=source,
        compare=comparison,
        illustrated=illustration,
        extensions=about_plugins,
        companions=companions.Companions(**beside),
        controls=controlling,
        reference=referring,
        **parts,
    )


def model_choices(models: Sequence[ModelInfo]) -> list[tuple[str, str]]:
    """By title; of those that have the same, by name as well."""
    titles = Counter(info.title for info in models)
    return [
        (info.title if titles[info.title] == 1 else f"{info.title}: {info.name}", info.name)
        for info in models
    ]


def _top(make: Maker, parts: dict[str, Any], models: Sequence[ModelInfo]) -> None:
    with gr.Row(elem_id="top"):
        with gr.Column(elem_id="brand", min_width=0):
            gr.HTML(f"<h1>{NAME}</h1>")
            parts["status"] = gr.HTML(show.status("Starting", "", ready=False), elem_id="status")
        with gr.Row(elem_id="chooser"):
            make(
                gr.Dropdown,
                "model",
                choices=model_choices(models),
                info="Sets the size and settings it recommends; your prompts stay.",
                filterable=False,
            )
            parts["refresh"] = gr.Button("Refresh", size="sm", elem_id="refresh", min_width=80)
    parts["model_note"] = gr.HTML(show.model_note(models[0] if models else None), elem_id="model-note")


def _tabs(make: Maker, parts: dict[str, Any], further: Callable[[], None]) -> None:
    """The strip. They are empty, for what they need lies below; ``further`` tabs hold a whole page."""
    parts["tab"] = {}
    with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
        for task, label in TABS.items():
            parts["tab"][task] = gr.Tab(label, id=task, elem_id=f"tab-{task}", elem_classes="studio-tab")
        parts["comparison"] = gr.Tab(
            COMPARISON, id=compare.TAB, elem_id="tab-compare", elem_classes="studio-tab"
        )
        parts["illustration"] = gr.Tab(
            illustrated.LABEL, id=illustrated.TAB, elem_id="tab-illustrated", elem_classes="studio-tab"
        )
        parts["models"] = models_tab.build()
        further()
    parts["tabs"] = tabs
    make(gr.Textbox, "task", visible="hidden")


def _words(make: Maker, parts: dict[str, Any], models: Sequence[ModelInfo], beside: dict[str, Any]) -> None:
    parts["tokens"] = {}
    for field, lines, hint in (
        (
            "prompt",
            3,
            "What should be in the picture? You can also drop a picture here to take its settings.",
        ),
        ("negative_prompt", 2, NEGATIVE_HINT),
    ):
        with gr.Group(elem_id=f"{field}-box", elem_classes="words"):
            make(gr.Textbox, field, lines=lines, max_lines=12, placeholder=hint)
            parts["tokens"][field] = gr.HTML(show.tokens(None))
    companions.words(beside)
    with gr.Row(elem_id="actions"):
        parts["generate"] = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
        parts["cancel"] = gr.Button(
            "Cancel", variant="stop", interactive=False, elem_id="cancel", min_width=90, scale=0
        )
    with gr.Row(elem_id="question", visible=False) as parts["question"]:
        gr.HTML('<p role="alert">Nothing is painted. Change the whole picture?</p>')
        parts["change_all"] = gr.Button("Change the whole picture", size="sm", elem_id="change-all")
        parts["paint_first"] = gr.Button("I will paint first", size="sm", elem_id="paint-first")
    with gr.Row(elem_id="extras"):
        gr.HTML(KEYS, elem_id="keys")
        parts["fill"] = gr.Button("Fill from text", size="sm", scale=0, min_width=130, elem_id="fill")
    parts["examples"] = gr.Dataset(
        label="Example prompts, to click",
        components=[make.fields["prompt"]],
        samples=[[example] for example in (models[0].examples if models else ())],
        samples_per_page=20,
        elem_id="examples",
        visible=bool(models and models[0].examples),
    )
    parts["dropped"] = gr.File(
        label="Picture to take the settings of", visible="hidden", elem_id="dropped", type="filepath"
    )


def _picture(parts: dict[str, Any]) -> None:
    parts["gallery"] = gr.Gallery(
        label="Pictures",
        show_label=False,
        elem_id="gallery",
        columns=3,
        height="100%",
        object_fit="contain",
        preview=True,
        interactive=False,
        buttons=["download", "fullscreen"],
    )
    parts["stage"] = gr.HTML(show.stage(), label="Progress", elem_id="stage")
    with gr.Row(elem_id="afterwards"):
        parts["caption"] = gr.HTML(show.caption(None), label="Saved as", elem_id="caption")
        parts["again"] = gr.Button(
            "Use these settings again", size="sm", interactive=False, elem_id="again", min_width=190
        )
    with gr.Row(elem_id="send"):
        gr.HTML("<p>Send it to</p>", elem_id="send-to")
        parts["send_to"] = {
            target.name: gr.Button(
                target.label, size="sm", interactive=False, elem_id=f"send-{target.name}", min_width=90
            )
            for target in sending.TARGETS
        }
        parts["compare_it"] = gr.Button(
            "Compare", size="sm", interactive=False, elem_id="send-compare", min_width=90
        )
        parts["illustrate_it"] = gr.Button(
            "Illustrate", size="sm", interactive=False, elem_id="send-illustrated", min_width=90
        )
        parts["with_settings"] = gr.Checkbox(
            False, label="With its settings", elem_id="with-settings", container=False, min_width=140
        )
    parts["infotext"] = gr.Textbox(
        label="Infotext of the picture",
        lines=3,
        max_lines=8,
        interactive=False,
        buttons=["copy"],
        elem_id="infotext",
        placeholder="How the picture was made. The same text is inside the saved file.",
    )


def _settings(
    make: Maker, parts: dict[str, Any], schedulers: list[SchedulerInfo], upscalers: list[str]
) -> None:
    with gr.Row():
        make.slider("num_inference_steps", 1, 150, 1)
        make.slider("guidance_scale", 0, 30, 0.5)
    with gr.Row():
        make(gr.Dropdown, "scheduler", choices=[info.name for info in schedulers], min_width=200)
        make(
            gr.Dropdown,
            "sigma_schedule",
            choices=list(form.schedules(make.at_start["scheduler"], schedulers)),
            min_width=200,
        )
    with gr.Row():
        make.slider("width", 64, 2048, 8)
        make.slider("height", 64, 2048, 8)
    with gr.Row(elem_classes="with-button"):
        parts["aspect"] = gr.Radio(list(ASPECTS), label="Aspect", elem_id="aspect")
        parts["swap"] = gr.Button("Swap sides", size="sm", scale=0, min_width=110, elem_id="swap")
    with gr.Row(elem_classes="with-button"):
        make(gr.Number, "seed", info="-1 draws a new one for every press", min_width=150)
        parts["random_seed"] = gr.Button("Random", size="sm", scale=0, min_width=90, elem_id="random-seed")
        parts["reuse_seed"] = gr.Button("Reuse", size="sm", scale=0, min_width=90, elem_id="reuse-seed")
    with gr.Row():
        make.slider("batch_count", 1, 20, 1, "Batches, one after the other")
        make.slider("num_images_per_prompt", 1, 8, 1, "Pictures at once; needs more memory")
    _hires(make, upscalers)
    _variation(make)
    _more(make, schedulers)


def _hires(make: Maker, upscalers: list[str]) -> None:
    with gr.Accordion("Hires: a second, larger pass", open=False, elem_id="hires"):
        with gr.Row():
            make.slider("hires_scale", 1, 4, 0.05, "1 is off; 2 doubles both sides")
            make(gr.Dropdown, "hires_upscaler", choices=upscalers, min_width=200)
        with gr.Row():
            make.slider("hires_steps", 0, 150, 1, "0: as many as the first pass")
            make.slider("hires_strength", 0.05, 1, 0.05, "How much the second pass may change")


def _variation(make: Maker) -> None:
    with gr.Accordion("Variations of one seed", open=False, elem_id="variation"), gr.Row():
        make(gr.Number, "variation_seed", info="-1 draws a new one", min_width=150)
        make.slider("variation_strength", 0, 1, 0.01, "0 keeps the seed, 1 is the variation seed alone")


def _more(make: Maker, schedulers: list[SchedulerInfo]) -> None:
    with gr.Accordion("Preview, file format and more", open=False, elem_id="more"):
        with gr.Row():
            make.slider("preview_every", 0, 20, 1, "In steps; 0 shows no previews")
            make(
                gr.Dropdown,
                "preview_decoder",
                choices=list(PREVIEW_DECODERS),
                info="TAESD shows more, and needs its file among the models",
                min_width=200,
            )
            make.slider("clip_skip", 1, 12, 1, "1 uses the text encoder's last layer")
        with gr.Row():
            make(gr.Radio, "image_format", FORMATS)
            make.slider("image_quality", 1, 100, 1, "Of JPEG and WebP")
        make(
            gr.Number,
            "eta",
            info="0 to 1: noise added at each step. Empty: as the scheduler likes it",
            placeholder="Automatic",
            step=0.05,
            visible=form.uses_eta(make.at_start["scheduler"], schedulers),
        )
