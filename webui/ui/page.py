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
CACHE_SWEEP, CACHE_AGE = 3600, 86_400  # seconds; Gradio's copies of pictures, not the pictures

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
        _wire(demo, layout, Actions(engine, layout))
    demo.max_threads += 2 * settings.queue_size  # each stream waits in a thread of its own
    # Gradio checks that an uploaded file's path really is an upload only once it "has launched", which
    # mounting does not set: without this, anybody could have any file of the server read.
    demo.has_launched = True
    demo.queue(api_open=False, default_concurrency_limit=None)
    return demo, {
        "theme": _theme(),
        "footer_links": [],
        "head": _head(),
    }


def _head() -> str:
    """Our style and script. Not by Gradio's ``css``, which rewrites rules, and only after the first paint."""
    style, script = ((HERE / name).read_text("utf-8") for name in ("style.css", "keys.js"))
    return f"<style>{style}</style><script>{script}</script>"


def _wire(demo: gr.Blocks, layout: Layout, do: Actions) -> None:
    fields = layout.fields
    form = set(fields.values())
    picked = [layout.saved, layout.selected]
    shown = [
        layout.gallery,
        layout.infotext,
        layout.stage,
        layout.caption,
        layout.cancel,
        layout.again,
        *picked,
    ]
    about = [layout.model_note, layout.examples]
    scheduling = [fields["scheduler"], fields["sigma_schedule"]]
    said = [*layout.tokens.values(), layout.status, layout.ticker]
    prompts = [fields["prompt"], fields["negative_prompt"], fields["model"]]

    layout.generate.click(
        do.generate,
        inputs_kwargs=dict(fields),
        outputs=shown,
        api_name="txt2img",
        preprocess=False,  # the request refuses what is wrong, naming the field; the components would not
        trigger_mode="multiple",
        show_progress="hidden",
    )
    streams = {"show_progress": "hidden", "api_visibility": "private"}
    demo.load(do.attach, None, [*shown, *form, *about], **streams)

    # Answered at once, beside the queue.
    quick = {**streams, "queue": False}
    layout.cancel.click(do.cancel, None, None, **quick)
    layout.again.click(do.again, picked, [*form, *about], **quick)
    layout.reuse_seed.click(do.reuse_seed, picked, fields["seed"], **quick)
    layout.fill.click(do.fill_from_text, [fields["prompt"], *picked], [*form, *about], **quick)
    layout.dropped.upload(do.fill_from_file, layout.dropped, [*form, *about], **quick)
    layout.gallery.select(
        do.select, layout.saved, [layout.infotext, layout.caption, layout.again, layout.selected], **quick
    )
    fields["model"].input(do.choose_model, fields["model"], [*form, *about], **quick)
    fields["scheduler"].input(
        do.choose_scheduler, scheduling, [fields["sigma_schedule"], fields["eta"]], **quick
    )
    layout.refresh.click(do.refresh, fields["model"], [fields["model"], *about], **quick)
    layout.ticker.tick(do.tick, prompts, said, **quick)
    gr.on(
        [fields["prompt"].change, fields["negative_prompt"].change],
        do.count,
        prompts,
        list(layout.tokens.values()),
        trigger_mode="always_last",
        **quick,
    )

    # In the browser alone.
    sides = [fields["width"], fields["height"]]
    layout.swap.click(None, sides, sides, js="(width, height) => [height, width]", **streams)
    layout.aspect.input(None, [layout.aspect, *sides], sides, js="studio.shape", **streams)
    layout.random_seed.click(None, None, fields["seed"], js="() => -1", **streams)
    layout.examples.click(lambda sample: sample[0], layout.examples, fields["prompt"], **quick)


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
