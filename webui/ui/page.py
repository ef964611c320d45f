"""The page: components, what they do when, and what it looks like. ``build`` is the one public name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from webui.engine import Engine
from webui.settings import Settings
from webui.ui import layout as layouts
from webui.ui.actions import Actions
from webui.ui.layout import Layout

HERE = Path(__file__).parent
QUEUE_LOOKS = 0.02  # seconds between two looks for a new event
CACHE_SWEEP, CACHE_AGE = 3600, 86_400  # seconds; Gradio's copies of pictures, not the pictures

# Events of the page alone, no endpoints. Those answered at once go beside Gradio's queue, and so cannot show
# a message: that travels through it.
OWN = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE = {**OWN, "queue": False}

SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO_FONTS = ["ui-monospace", "SFMono-Regular", "Consolas", "monospace"]


def build(engine: Engine, settings: Settings) -> tuple[gr.Blocks, dict[str, Any]]:
    """The page over ``engine``, and what ``gr.mount_gradio_app`` wants besides."""
    with gr.Blocks(
        title=layouts.NAME,
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(CACHE_SWEEP, CACHE_AGE),
    ) as demo:
        layout = layouts.build(engine.models(), engine.schedulers())
        do = Actions(engine, layout)
        _making(demo, layout, do)
        _filling(layout, do)
        _telling(layout, do)
    demo.max_threads += 2 * settings.queue_size  # each stream waits in a thread of its own
    # Gradio checks that an uploaded file's path really is an upload only once it "has launched", which
    # mounting does not set: without this, anybody could have any file of the server read.
    demo.has_launched = True
    demo.queue(api_open=False, default_concurrency_limit=None)
    # Gradio looks for new events a thousand times a second, for which a run stops computing each time.
    demo._queue.sleep_when_free = QUEUE_LOOKS
    return demo, {
        "theme": _theme(),
        "footer_links": [],
        "head": _head(),
    }


def _head() -> str:
    """Our style and script. Not by Gradio's ``css``, which rewrites rules, and only after the first paint."""
    style, script = ((HERE / name).read_text("utf-8") for name in ("style.css", "keys.js"))
    return f"<style>{style}</style><script>{script}</script>"


def _making(demo: gr.Blocks, layout: Layout, do: Actions) -> None:
    """Pictures: asked for, found again, cancelled, looked at."""
    about_one = [layout.infotext, layout.caption, layout.again, layout.selected]
    shown = [layout.gallery, *about_one, layout.stage, layout.cancel, layout.saved]
    layout.generate.click(
        do.generate,
        inputs_kwargs=dict(layout.fields),
        outputs=shown,
        api_name="txt2img",
        preprocess=False,  # the request refuses what is wrong, naming the field; the components would not
        trigger_mode="multiple",
        show_progress="hidden",
    )
    demo.load(do.attach, None, [*shown, *_form(layout)], **OWN)
    layout.cancel.click(do.cancel, None, None, **AT_ONCE)
    layout.gallery.select(do.select, layout.saved, about_one, **AT_ONCE)


def _filling(layout: Layout, do: Actions) -> None:
    """The form: filled from pictures, texts, models and buttons."""
    fields, form = layout.fields, _form(layout)
    picked = [layout.saved, layout.selected]
    layout.again.click(do.again, picked, form, **OWN)
    layout.reuse_seed.click(do.reuse_seed, picked, fields["seed"], **OWN)
    layout.fill.click(do.fill_from_text, [fields["prompt"], *picked], form, **OWN)
    layout.dropped.upload(do.fill_from_file, layout.dropped, form, **OWN)
    layout.refresh.click(do.refresh, fields["model"], form, **OWN)
    fields["model"].input(do.choose_model, fields["model"], form, **OWN)
    schedule = fields["sigma_schedule"]
    fields["scheduler"].input(
        do.choose_scheduler, [fields["scheduler"], schedule], [schedule, fields["eta"]], **AT_ONCE
    )
    layout.examples.click(lambda sample: sample[0], layout.examples, fields["prompt"], **AT_ONCE)
    sides = [fields["width"], fields["height"]]
    layout.swap.click(None, sides, sides, js="(width, height) => [height, width]", **OWN)
    layout.aspect.input(None, [layout.aspect, *sides], sides, js="studio.shape", **OWN)
    layout.random_seed.click(None, None, fields["seed"], js="() => -1", **OWN)


def _telling(layout: Layout, do: Actions) -> None:
    """The engine's state, and the length of the prompts."""
    fields, counters = layout.fields, list(layout.tokens.values())
    prompts = [fields["prompt"], fields["negative_prompt"]]
    counted = [*prompts, fields["model"]]
    layout.ticker.tick(do.tick, counted, [*counters, layout.status, layout.ticker], **AT_ONCE)
    typed = [prompt.change for prompt in prompts]
    gr.on(typed, do.count, counted, counters, trigger_mode="always_last", **AT_ONCE)


def _form(layout: Layout) -> list[Any]:
    """What filling the form may change."""
    return [*layout.fields.values(), layout.model_note, layout.examples]


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
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
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
