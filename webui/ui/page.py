"""The page: components, what they do when, and what it looks like. ``build`` is the one public name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr

from webui.engine import Engine
from webui.grid.axes import AxisKind
from webui.plugins import axes as plugins_axes
from webui.settings import Settings
from webui.ui import canvas, compare, extensions, illustrated, models
from webui.ui import layout as layouts
from webui.ui.actions import Actions
from webui.ui.adapting import SIDES, Adapting
from webui.ui.comparing import Comparing
from webui.ui.fetching import Fetching
from webui.ui.filling import Filling
from webui.ui.form import OF_EXTENSION, neutral
from webui.ui.illustrating import Illustrating
from webui.ui.layout import Layout
from webui.ui.making import Making
from webui.ui.panels import fields_of_mask
from webui.ui.picturing import Picturing
from webui.ui.sending import TARGETS
from webui.ui.shelving import FIELDS, Shelving
from webui.ui.source import SIZING, SourceActions
from webui.ui.switching import Switching
from webui.ui.telling import Telling

HERE = Path(__file__).parent
QUEUE_LOOKS = 0.02  # seconds between two looks for a new event
CACHE_SWEEP, CACHE_AGE = 3600, 86_400  # seconds; Gradio's copies of pictures, not the pictures

# Events of the page alone, no endpoints. Those answered at once go beside Gradio's queue, and so cannot show
# a message: that travels through it.
OWN = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE = {**OWN, "queue": False}

SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO_FONTS = ["ui-monospace", "SFMono-Regular", "Consolas", "monospace"]


def build(
    engine: Engine, settings: Settings, axes: Iterable[AxisKind] = ()
) -> tuple[gr.Blocks, dict[str, Any]]:
    """The page over ``engine``, and what ``gr.mount_gradio_app`` wants besides.

    Args:
        axes: what may vary in a grid besides our own and those of plugins; their names are new.
    """
    host = engine.plugins
    axes = [*axes, *plugins_axes.offered(host)]
    tabs = extensions.panels(host)
    with gr.Blocks(
        title=layouts.NAME,
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(CACHE_SWEEP, CACHE_AGE),
    ) as demo:
        layout = layouts.build(
            engine.models(), engine.schedulers(), axes, engine.upscalers(), host.plugins, tabs
        )
        do = Actions(engine, layout)
        _making(demo, layout, do.making)
        _batch(layout, do.making)
        _filling(layout, do.filling)
        _sending(layout, do.filling)
        _source(layout, do.source)
        _mask(layout, do.source)
        _telling(layout, do.telling)
        _comparing(demo, layout, do.comparing)
        _illustrating(layout, do.illustrating)
        _plugins(demo, layout, do.switching)
        _adapting(demo, layout, do.adapting)
        for pictured in do.picturing:
            _picturing(demo, layout, pictured)
        _models(demo, layout, do.shelving)
        _hub(layout, do.fetching, do.shelving)
    demo.max_threads += 2 * settings.queue_size  # each stream waits in a thread of its own
    # Gradio checks that an uploaded file's path really is an upload only once it "has launched", which
    # mounting does not set: without this, anybody could have any file of the server read.
    demo.has_launched = True
    demo.queue(api_open=False, default_concurrency_limit=None)
    # Gradio's page searches its whole tree for each output of an event whenever the progress moves, shown or
    # not: 6,500 searches while it opens, which would be half of the time until it can be used.
    for event in demo.fns.values():
        if event.show_progress == "hidden":
            event.show_progress_on = []
    # Gradio looks for new events a thousand times a second, for which a run stops computing each time.
    demo._queue.sleep_when_free = QUEUE_LOOKS
    return demo, {
        "theme": _theme(),
        "footer_links": [],
        "head": _head(),
    }


def _head() -> str:
    """Our style and script. Not by Gradio's ``css``, which rewrites rules, and only after the first paint."""
    styles, scripts = (
        "".join((HERE / name).read_text("utf-8") for name in names)
        for names in (("style.css", "extensions.css"), ("keys.js", "prompt_keys.js"))
    )
    own = f"<style>{styles}</style><script>{scripts}</script>"
    return "".join([own, canvas.head(), compare.head(), illustrated.head(), models.head()])


def _making(demo: gr.Blocks, layout: Layout, do: Making) -> None:
    """Pictures: asked for, found again, cancelled, looked at."""
    shown = [layout.gallery, *_about_one(layout), layout.stage, layout.cancel, layout.saved, layout.question]
    pressed: dict[str, Any] = {
        "outputs": shown,
        "preprocess": False,  # the request refuses what is wrong, naming the field; the components would not
        "trigger_mode": "multiple",
        "show_progress": "hidden",
    }
    fields, parts = dict(layout.fields), layout.source
    made = [
        layout.generate.click(do.generate, inputs_kwargs=fields, api_name="generate", **pressed),
        layout.change_all.click(do.change_all, inputs_kwargs=fields, api_visibility="private", **pressed),
    ]
    layout.paint_first.click(lambda: gr.update(visible=False), None, layout.question, **AT_ONCE)
    many = fields | {"batch": parts.batch, "detect_size": parts.detect_size}
    pressed["outputs"] = [*shown, parts.batch_report]
    made.append(
        parts.batch_start.click(do.change_files, inputs_kwargs=many, **pressed, api_visibility="private")
    )
    for job in made:
        job.then(None, None, None, js="studio.freed", **OWN)
    demo.load(do.attach, None, [*shown, *_form(layout)], **OWN)
    layout.cancel.click(do.cancel, None, None, **AT_ONCE)


def _filling(layout: Layout, do: Filling) -> None:
    """The form: filled from pictures, texts, models and buttons."""
    fields, form = layout.fields, _form(layout)
    picked = [layout.saved, layout.selected]
    layout.again.click(do.again, picked, form, **OWN)
    layout.reuse_seed.click(do.reuse_seed, picked, fields["seed"], **OWN)
    layout.fill.click(do.fill_from_text, [fields["prompt"], *picked], form, **OWN)
    layout.refresh.click(do.refresh, fields["model"], form, **OWN)
    model = _sizing(layout) | {"canvas": fields["canvas"]}
    fields["model"].input(do.choose_model, inputs_kwargs=model, outputs=form, js="studio.light", **OWN)
    schedule = fields["sigma_schedule"]
    fields["scheduler"].input(
        do.choose_scheduler, [fields["scheduler"], schedule], [schedule, fields["eta"]], **AT_ONCE
    )
    layout.examples.click(lambda sample: sample[0], layout.examples, fields["prompt"], **AT_ONCE)
    sides = [fields["width"], fields["height"]]
    layout.swap.click(None, sides, sides, js="(width, height) => [height, width]", **OWN)
    layout.aspect.input(None, [layout.aspect, *sides], sides, js="studio.shape", **OWN)
    layout.random_seed.click(None, None, fields["seed"], js="() => -1", **OWN)


def _sending(layout: Layout, do: Filling) -> None:
    """The buttons under the gallery."""
    given = _sizing(layout) | {
        "saved": layout.saved,
        "selected": layout.selected,
        "with_settings": layout.with_settings,
    }
    for target in TARGETS:
        sent = layout.send_to[target.name].click(
            do.sender(target), inputs_kwargs=given, outputs=_form(layout), **OWN
        )
        sent.then(None, None, None, js=f"() => studio.arrived('{target.tool}')", **OWN)


def _source(layout: Layout, do: SourceActions) -> None:
    """The source panels: pictures onto the canvas, their size, and what they look like at the start."""
    fields, parts, sizing = layout.fields, layout.source, _sizing(layout)
    sides, canvas = [fields["width"], fields["height"]], fields["canvas"]
    taken = [canvas, *sides, parts.resize_by, parts.alpha, parts.from_alpha]
    last = sizing | {"saved": layout.saved, "selected": layout.selected}
    file = sizing | {"file": parts.source_file}
    _upload(parts.source_file, do.take_file, taken, inputs_kwargs=file)
    parts.blank_sheet.click(do.take_blank, inputs_kwargs=sizing, outputs=taken, **OWN)
    parts.use_last.click(do.take_last, inputs_kwargs=last, outputs=taken, **OWN)

    lightly = {"js": "studio.light", **AT_ONCE}
    sized = {"inputs_kwargs": sizing | {"canvas": canvas}, **lightly}
    resized = {"inputs_kwargs": sizing | {"canvas": canvas, "resize_by": parts.resize_by}, **lightly}
    fitted = [*sides, parts.resize_by]
    margins = [fields[name] for name in OF_EXTENSION]
    parts.detect_size.input(do.detect, outputs=fitted, **sized)
    fields["inpaint_area"].input(do.choose_area, outputs=[*fitted, fields["masked_padding"]], **sized)
    moved = [parts.resize_by.input, *(margin.input for margin in margins)]
    gr.on(moved, do.resize, outputs=sides, trigger_mode="always_last", **resized)
    parts.extend_more.click(do.extend, outputs=[*margins, *sides], **resized)
    parts.extend_none.click(do.extend_none, outputs=[*margins, *sides], **resized)

    survived = {"inputs_kwargs": dict(fields), "outputs": parts.survival, "preprocess": False, **AT_ONCE}
    other = [parts.survive.click, fields["strength"].change]
    gr.on(other, do.survive, trigger_mode="always_last", **survived)
    canvas.change(None, canvas, None, js="studio.sourceChanged", **OWN)
    said = [canvas, *sides, fields["inpaint_area"], fields["task"]]
    gr.on([part.change for part in said], None, said, parts.size_note, js="studio.sizeNote", **OWN)


def _mask(layout: Layout, do: SourceActions) -> None:
    """The mask: from files and colours, and as it will be used."""
    fields, parts = layout.fields, layout.source
    canvas = fields["canvas"]
    _upload(parts.mask_file, do.take_mask, canvas, inputs=[parts.mask_file, canvas])
    parts.from_alpha.click(do.mask_of_alpha, [parts.alpha, canvas], canvas, **OWN)
    parts.from_color.click(do.mask_of_color, [parts.color, parts.tolerance, canvas], canvas, **OWN)
    seen = [parts.mask_view_update.click, parts.mask_view_section.expand]
    view = {"inputs_kwargs": dict(fields), "outputs": parts.mask_view, "preprocess": False, **AT_ONCE}
    gr.on(seen, do.view_mask, trigger_mode="always_last", **view)
    changed = [field.change for field in fields_of_mask(fields)]
    gr.on(changed, None, None, None, js="studio.maskChanged", **OWN)


def _batch(layout: Layout, do: Making) -> None:
    """Many files."""
    parts = layout.source
    read = [parts.batch, parts.batch_report, parts.batch_start]
    files = [parts.batch_files.upload, parts.batch_files.clear, parts.batch_files.delete]
    gr.on(files, do.read_files, parts.batch_files, read, **OWN)
    parts.batch_folder.input(do.read_folder, parts.batch_folder, read, **OWN)
    look = [parts.batch_section.expand, parts.batch_refresh.click]
    gr.on(look, do.folders, None, parts.batch_folder, **AT_ONCE)


def _telling(layout: Layout, do: Telling) -> None:
    """The engine's state, the length of the prompts, the picture looked at, the open tab."""
    fields, counters = layout.fields, list(layout.tokens.values())
    prompts = [fields["prompt"], fields["negative_prompt"]]
    counted = [*prompts, fields["model"]]
    layout.ticker.tick(do.tick, counted, [*counters, layout.status, layout.ticker], **AT_ONCE)
    typed = [prompt.change for prompt in prompts]
    gr.on(typed, do.count, counted, counters, trigger_mode="always_last", **AT_ONCE)
    layout.gallery.select(do.select, layout.saved, _about_one(layout), **AT_ONCE)
    for task, tab in layout.tab.items():
        tab.select(None, None, fields["task"], js=f"() => studio.opened('{task}')", **OWN)


def _comparing(demo: gr.Blocks, layout: Layout, do: Comparing) -> None:
    """The comparison tab."""
    parts, fields = layout.compare, dict(layout.fields)
    asked, chosen = fields | parts.inputs(), parts.choosing()
    running = [parts.grid, parts.plan, parts.run, parts.stop, parts.seeds]
    filled = [*_form(layout), *chosen, parts.task]
    streamed: dict[str, Any] = {"trigger_mode": "multiple", **OWN}
    parts.run.click(do.run, inputs_kwargs=asked, outputs=running, preprocess=False, **streamed)
    parts.grid.again(do.again, None, running, **streamed)
    parts.grid.resume(do.resume, parts.cells, [*running, *filled], **streamed)
    demo.load(None, None, parts.cells, js="studio.compare.rememberedCells", **OWN)
    parts.cells.input(None, parts.cells, None, js="studio.compare.rememberCells", **OWN)
    demo.load(do.attach, None, [*running, *filled, parts.preset], **OWN)
    parts.stop.click(do.stop, None, None, **AT_ONCE)
    parts.grid.resync(do.resync, None, parts.grid, **OWN)
    parts.grid.files(do.files, None, parts.grid, **OWN)
    parts.grid.infotext(do.infotext, None, parts.grid, **streamed)
    parts.grid.use(do.use, inputs_kwargs=_sizing(layout), outputs=_form(layout), **OWN)
    layout.compare_it.click(do.take, [layout.saved, layout.selected], filled, **OWN)
    _upload(layout.dropped, do.fill_from_file, filled, inputs=layout.dropped)

    looked = {"inputs_kwargs": asked, "outputs": [parts.plan, parts.new_seed], "preprocess": False}
    parts.look.click(do.look, trigger_mode="always_last", **looked, **AT_ONCE)
    changing = [part for name, part in asked.items() if name != "seeds"]
    again = [*(part.change for part in changing), layout.comparison.select]
    gr.on(again, None, None, None, js="studio.compare.changed", **OWN)
    undrawn = parts.new_seed.click(lambda: None, None, parts.seeds, **AT_ONCE)
    undrawn.then(None, None, None, js="studio.compare.changed", **OWN)

    for name, axis in parts.axes.items():
        controls = list(vars(axis).values())
        axis.kind.select(do.varying.choose(name), axis.kind, [*controls, parts.preset], **AT_ONCE)
        axis.every.click(do.varying.choose_all(name), axis.kind, controls, **AT_ONCE)
    swapped = {"inputs_kwargs": parts.inputs(), "outputs": chosen, "preprocess": False, **AT_ONCE}
    parts.swap_xy.click(do.varying.swap("x", "y"), **swapped)
    parts.swap_yz.click(do.varying.swap("y", "z"), **swapped)
    parts.preset.select(do.varying.choose_preset, parts.preset, chosen, **OWN)
    saving = parts.inputs() | {"preset": parts.preset}
    parts.save_preset.click(
        do.varying.save_preset, inputs_kwargs=saving, outputs=parts.preset, preprocess=False, **OWN
    )
    parts.delete_preset.click(do.varying.delete_preset, parts.preset, parts.preset, **OWN)
    layout.comparison.select(None, fields["task"], parts.task, js="(task) => task", **OWN)
    parts.task.input(None, parts.task, fields["task"], js="(task) => task", **OWN)


def _illustrating(layout: Layout, do: Illustrating) -> None:
    """The Illustrated tab."""
    parts, fields = layout.illustrated, dict(layout.fields)
    shown = [parts.view, parts.run, parts.stop]
    streamed: dict[str, Any] = {"trigger_mode": "multiple", **OWN}
    made = [*shown, layout.gallery, layout.saved, *_about_one(layout)]
    parts.run.click(do.run, inputs_kwargs=fields, outputs=made, preprocess=False, **streamed)
    taken = [*shown, *_form(layout), parts.task]
    layout.illustrate_it.click(do.take, [layout.saved, layout.selected], taken, **streamed)
    parts.view.wanted(do.attach, None, shown, **streamed)
    parts.stop.click(do.stop, None, None, **AT_ONCE)
    _upload(parts.opened, do.open, parts.view, inputs=parts.opened)
    parts.view.files(do.files, None, parts.view, **OWN)
    opened = "(task) => { studio.illustrated.opened(); return task; }"
    layout.illustration.select(None, fields["task"], parts.task, js=opened, **OWN)
    parts.task.input(None, parts.task, fields["task"], js="(task) => task", **OWN)


def _plugins(demo: gr.Blocks, layout: Layout, do: Switching) -> None:
    """The plugins' settings, and the list of them all."""
    parts, fields = layout.extensions, layout.fields
    for section in parts.sections.values():
        own = [fields[name] for name in section.fields]
        section.reset.click(None, None, own, js=extensions.resetting(section.plugin), **OWN)
        marked = extensions.marking(section.plugin)
        gr.on([field.change for field in own], None, own, section.accordion, js=marked, **OWN)
    lists = [fields["scheduler"], fields["hires_upscaler"], *(a.kind for a in layout.compare.axes.values())]
    shown = [*parts.listed(), *parts.places(), *lists]
    demo.load(do.show, None, shown, **OWN)
    parts.tab.select(do.list, None, parts.listed(), **OWN)
    for entry in parts.entries:
        own = [fields[name] for name in neutral([entry.plugin])]
        entry.switch.click(do.switch(entry.plugin), None, [*shown, *own], **OWN)


def _adapting(demo: gr.Blocks, layout: Layout, do: Adapting) -> None:
    """What hangs on the model, and on the files there are."""
    parts, fields = layout.companions, layout.fields
    read = [fields[name] for name in ("model", "prompt", "refiner", "vae")]
    following = ("negative_prompt", "guidance_scale", "scheduler", "refiner", "vae", *SIDES)
    of_form = [fields[name] for name in following]
    changed = [*of_form, parts.note, parts.known, parts.loras, parts.refining]
    looked = [demo.load, fields["model"].change, layout.refresh.click, layout.models.tab.select]
    gr.on(looked, do.follow, read, changed, trigger_mode="always_last", **OWN)
    prompt = fields["prompt"]
    prompt.change(do.loras_in, [prompt, parts.known], parts.loras, trigger_mode="always_last", **AT_ONCE)
    parts.loras.input(do.choose_loras, [prompt, parts.loras, parts.known], prompt, **OWN)


def _picturing(demo: gr.Blocks, layout: Layout, do: Picturing) -> None:
    """Sections with a picture: those of ControlNets, or the reference's."""
    fields = layout.fields
    looked = [demo.load, fields["model"].change, layout.refresh.click, layout.models.tab.select]
    chosen, kept = ([fields[part.field(name)] for part in do.parts] for name in ("model", "image"))
    offered = [do.parts[0].section, *chosen]
    gr.on(looked, do.follow, [fields["model"], *chosen], offered, trigger_mode="always_last", **OWN)
    read = [*kept, *(fields[name] for name in do.told)]
    shown = [each for k, part in enumerate(do.parts) for each in (kept[k], part.shown, part.drop)]
    gr.on([each.change for each in read], do.show, read, shown, trigger_mode="always_last", **OWN)
    for part, digest in zip(do.parts, kept, strict=True):
        part.file.upload(do.take(part), part.file, [digest, part.file], **OWN)
        part.drop.click(lambda: "", None, digest, **AT_ONCE)
    for before, after, part in zip(chosen, chosen[1:], do.parts[1:], strict=False):
        pair = [before, after]
        gr.on([each.change for each in pair], _either, pair, part.section, **AT_ONCE)


def _either(before: str | None, own: str | None) -> Any:
    """A further section is there once the one before it has a model, or it has one itself."""
    return gr.update(visible=bool(before or own))


def _models(demo: gr.Blocks, layout: Layout, do: Shelving) -> None:
    """What is on the disk and in memory."""
    parts, fields = layout.models, layout.fields
    lists = _listed(layout)
    parts.tab.select(do.list, None, lists, **OWN)
    refreshed = parts.shelf.refresh(do.list, None, lists, **OWN)
    refreshed.then(None, None, None, js="() => studio.models.refreshed()", **OWN)
    parts.memory.look(do.look, None, parts.memory, **AT_ONCE)
    each: dict[str, Any] = {"trigger_mode": "multiple", **OWN}  # also while another is under way
    parts.shelf.bring(do.load, None, parts.memory, **each)
    parts.memory.release(do.release, None, parts.memory, **each)
    parts.memory.pin(do.pin, None, parts.memory, **each)
    parts.shelf.note(do.note, None, None, **each)
    for field, kind in (("model", "checkpoint"), *((field, kind) for kind, field in FIELDS.items())):
        marked = f"(name) => studio.models.mark('{kind}', name)"
        gr.on([demo.load, fields[field].change], None, fields[field], None, js=marked, **OWN)
    form = _sizing(layout) | {name: fields[name] for name in ("prompt", "canvas")}
    used = parts.shelf.use(do.use, inputs_kwargs=form, outputs=_form(layout), **each)
    used.then(None, None, None, js="() => studio.models.used()", **OWN)


def _hub(layout: Layout, do: Fetching, shelving: Shelving) -> None:
    """Downloads."""
    parts = layout.models
    found = [parts.offer, parts.choice, parts.files, parts.start_row]
    gr.on([parts.hub_look.click, parts.hub_text.submit], do.look, parts.hub_text, found, **OWN)
    parts.choice.input(do.choose, [parts.offer, parts.choice], parts.files, **OWN)
    followed = [parts.progress, parts.cancel]
    started = [*followed, parts.start_row, parts.files]
    loaded = parts.start.click(do.start, [parts.offer, parts.choice], started, **OWN)
    loaded.then(shelving.list, None, _listed(layout), **OWN)
    parts.cancel.click(do.cancel, None, None, **AT_ONCE)
    parts.tab.select(do.show, None, [parts.hub_note, parts.hub_row], **OWN)
    parts.tab.select(do.follow, None, followed, **OWN)


def _listed(layout: Layout) -> list[Any]:
    """What a look at the models changes."""
    return [layout.models.shelf, layout.models.memory, layout.fields["model"]]


def _about_one(layout: Layout) -> list[Any]:
    """What says something about one picture."""
    sending = [*layout.send_to.values(), layout.compare_it, layout.illustrate_it]
    return [layout.infotext, layout.caption, layout.again, layout.selected, *sending]


def _form(layout: Layout) -> list[Any]:
    """What filling the form may change."""
    parts = layout.source
    of_source = [parts.resize_by, parts.alpha, parts.from_alpha]
    return [*layout.fields.values(), layout.model_note, layout.examples, layout.tabs, *of_source]


def _upload(field: Any, do: Any, outputs: Any, **inputs: Any) -> None:
    """Do something with an uploaded file. The field is emptied in any case: a full one takes no other."""
    field.upload(do, outputs=outputs, **inputs, **OWN).then(None, None, field, js="() => null", **OWN)


def _sizing(layout: Layout) -> dict[str, Any]:
    """What the size of a source follows from."""
    return {name: layout.fields[name] for name in SIZING} | {"detect_size": layout.source.detect_size}


def _theme() -> gr.themes.Base:
    """Slate and teal; fonts of the person's own system, so that nothing is fetched."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
        font=SYSTEM_FONTS,
        font_mono=MONO_FONTS,
    ).set(
        # Darker than the theme's own in the light, where they would be too pale to read (WCAG 2.2, 1.4.3).
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        error_text_color_dark="#fca5a5",
        color_accent="*primary_700",
        body_background_fill="*neutral_50",
        block_background_fill="white",
        block_background_fill_dark="*neutral_800",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )
