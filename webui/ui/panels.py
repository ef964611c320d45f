"""The controls of image to image and inpainting: the source, its size, the mask, many files at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from webui.request import INPAINT_AREAS, MASKED_CONTENTS, RESIZE_MODES
from webui.ui import form, show, sizes
from webui.ui.canvas import Canvas
from webui.ui.form import LABELS
from webui.ui.maker import Maker

# What the upload fields take. Pillow decides what it is; Python 3.11 does not know all of these as pictures.
PICTURES = ["image", ".avif", ".webp"]
WIDE = {"min_width": 200}  # pixels: two in a row, but on a phone
EXTEND_BY = 64  # pixels, by one press
LONGEST_EXTENSION = 1024  # at one side, on this page


@dataclass(frozen=True)
class Source:
    """Every component of these panels that is no field."""

    source_file: Any  # hidden uploads, which the canvas hands files to
    mask_file: Any
    blank_sheet: Any  # hidden buttons, which the canvas presses
    use_last: Any
    survival: Any  # how much of the source is left
    survive: Any  # a hidden button: the source is another one
    detect_size: Any
    resize_by: Any
    size_note: Any
    from_alpha: Any
    alpha: Any  # gr.State: digest of the mask that the source's file came with, or ""
    color: Any
    tolerance: Any
    from_color: Any
    extend_more: Any
    extend_none: Any
    mask_view: Any
    mask_view_update: Any  # a hidden button
    mask_view_section: Any
    batch_files: Any
    batch_section: Any
    batch_folder: Any
    batch_refresh: Any
    batch: Any  # gr.State: what there is to do, see webui.ui.batch
    batch_report: Any
    batch_start: Any


def build(make: Maker) -> Source:
    """Lay the panels out, each in a column of its own. ``style.css`` shows those of the chosen tab."""
    parts: dict[str, Any] = {"alpha": gr.State(""), "batch": gr.State(None)}
    with gr.Column(elem_id="source"):
        _source(make, parts)
        parts["size_note"] = gr.HTML(show.size_note(), elem_id="size-note")
        _strength(make, parts)
        _size(make, parts)
    with gr.Column(elem_id="own-img2img", elem_classes="own"):
        _loopback(make)
        _batch(parts)
    with gr.Column(elem_id="own-inpaint", elem_classes="own"):
        _repainting(make)
        _mask(make, parts)
        _extension(make, parts)
        _mask_view(parts)
    return Source(**parts)


def _source(make: Maker, parts: dict[str, Any]) -> None:
    make.fields["canvas"] = Canvas(None, elem_id="canvas", label=LABELS["canvas"])
    for name, label in (("source_file", "Source picture"), ("mask_file", "Mask picture")):
        parts[name] = gr.File(
            label=label,
            visible="hidden",
            elem_id=name.replace("_", "-"),
            type="filepath",
            file_types=PICTURES,
        )
    parts["blank_sheet"] = gr.Button("Blank sheet", visible="hidden", elem_id="blank-sheet")
    parts["use_last"] = gr.Button("Last result", visible="hidden", elem_id="use-last")


def _strength(make: Maker, parts: dict[str, Any]) -> None:
    with gr.Row(elem_id="strength-row"):
        make.slider(
            "strength", 0.01, 1, 0.01, "How much may change. Beside it: what is left at the first step"
        )
        parts["survival"] = gr.HTML(show.survival(), elem_id="survival")
    parts["survive"] = gr.Button("Look again", visible="hidden", elem_id="survive")


def _size(make: Maker, parts: dict[str, Any]) -> None:
    with gr.Accordion("Size and colours of the source", open=False, elem_id="sizing"):
        make(gr.Radio, "resize_mode", list(RESIZE_MODES), info="How it comes to another shape")
        parts["resize_by"] = gr.Slider(
            sizes.LOWEST_FACTOR,
            sizes.HIGHEST_FACTOR,
            1,
            step=0.001,
            label="Resize by",
            info="Sets width and height",
            elem_id="resize-by",
            buttons=[],
        )
        with gr.Row():
            parts["detect_size"] = gr.Checkbox(
                True, label="Size from the picture", info="When one is chosen", elem_id="detect-size", **WIDE
            )
            make(gr.Checkbox, "color_correction", info="Gives them to the result", **WIDE)


def _loopback(make: Maker) -> None:
    with gr.Accordion("Loopback: each round starts from the last", open=False, elem_id="loopback"):
        with gr.Row():
            make.slider("loopback_rounds", 1, form.MAX_ROUNDS, 1, "1 is off")
            make.slider("loopback_strength", 0.05, 1, 0.05, "Denoising strength of the last round")
        make(gr.Radio, "loopback_curve", list(form.CURVES), info="How the strength goes from first to last")


def _batch(parts: dict[str, Any]) -> None:
    section = gr.Accordion("Batch: many pictures, one after the other", open=False, elem_id="batch")
    parts["batch_section"] = section
    with section:
        parts["batch_files"] = gr.File(
            label="Pictures to change",
            file_count="multiple",
            file_types=PICTURES,
            type="filepath",
            elem_id="batch-files",
            height=140,
        )
        with gr.Row(elem_classes="with-button"):
            parts["batch_folder"] = gr.Dropdown(
                [],
                label="Or a folder of the server's inputs",
                value=None,
                elem_id="batch-folder",
                **WIDE,
            )
            parts["batch_refresh"] = gr.Button(
                "Refresh", size="sm", scale=0, min_width=90, elem_id="batch-refresh"
            )
        parts["batch_report"] = gr.HTML(show.batch(), elem_id="batch-report")
        parts["batch_start"] = gr.Button("Change all of them", interactive=False, elem_id="batch-start")


def _repainting(make: Maker) -> None:
    with gr.Row():
        make(gr.Radio, "masked_content", list(MASKED_CONTENTS), info="What the repainted part starts from")
    with gr.Row():
        make(gr.Radio, "inpaint_area", list(INPAINT_AREAS), **WIDE)
        make.slider("masked_padding", 0, 256, 4, "Pixels round it, to see the surroundings", visible=False)


def _mask(make: Maker, parts: dict[str, Any]) -> None:
    with gr.Accordion("Mask: edges, colours, transparency", open=False, elem_id="mask"):
        with gr.Row():
            make.slider("mask_blur", 0, 64, 1, "Pixels; softens its edge")
            make.slider("mask_grow", -64, 64, 1, "Pixels; below 0 it shrinks")
        with gr.Row():
            make(gr.Checkbox, "mask_inverted", **WIDE)
            make(gr.Checkbox, "soft_inpainting", info="Paler places change less", **WIDE)
        with gr.Row(elem_classes="with-button"):
            parts["color"] = gr.ColorPicker(
                "#ffffff", label="Colour to mask", elem_id="mask-color", min_width=90
            )
            parts["tolerance"] = gr.Slider(
                0, 255, 24, step=1, label="Tolerance", elem_id="mask-tolerance", min_width=150, buttons=[]
            )
            parts["from_color"] = gr.Button("Mask it", size="sm", scale=0, min_width=90, elem_id="from-color")
        parts["from_alpha"] = gr.Button(
            "Mask what is transparent in the file", size="sm", interactive=False, elem_id="from-alpha"
        )


def _extension(make: Maker, parts: dict[str, Any]) -> None:
    with gr.Accordion("Extend the picture", open=False, elem_id="extend"):
        for row in (("left", "right"), ("top", "bottom")):
            with gr.Row():
                for side in row:
                    make.slider(f"extend_{side}", 0, LONGEST_EXTENSION, 8)
        with gr.Row():
            parts["extend_more"] = gr.Button(f"All sides +{EXTEND_BY}", size="sm", elem_id="extend-more")
            parts["extend_none"] = gr.Button("None", size="sm", elem_id="extend-none")


def _mask_view(parts: dict[str, Any]) -> None:
    section = gr.Accordion("The mask as it will be used", open=False, elem_id="mask-view-section")
    parts["mask_view_section"] = section
    with section:
        parts["mask_view"] = gr.HTML(show.mask_view(None), elem_id="mask-view")
        parts["mask_view_update"] = gr.Button("Update", visible="hidden", elem_id="mask-view-update")


def fields_of_mask(fields: Mapping[str, Any]) -> list[Any]:
    """The controls on which the mask as it will be used depends."""
    names = (*form.OF_MASK, "resize_mode", "width", "height", "canvas")
    return [fields[name] for name in names if name in fields]
