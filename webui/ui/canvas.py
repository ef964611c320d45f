"""The drawing canvas: a source picture, and over it what a person masks, paints and erases.

Its markup is ``canvas.html``, its looks ``canvas.css``, its behaviour ``canvas.js`` and what that is made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import gradio as gr

HERE = Path(__file__).parent
HEAD = ("canvas.css", "canvas_view.js", "canvas_incoming.js", "canvas.js")


class Drawing(TypedDict):
    """The value of a :func:`Canvas`, both ways. From the browser it comes unchecked."""

    source: str  # digest of the source picture; "": there is none
    url: str  # of a picture to show for it, in any size
    width: int  # of the source, in its own pixels, which are also those of the strokes
    height: int
    mask: str  # digest of a mask to start from; "": none
    mask_url: str  # of a greyscale picture of it, white where to repaint, in any size
    strokes: list[dict[str, Any]]  # see webui.strokes; in the order in which they were drawn


EMPTY = Drawing(source="", url="", width=0, height=0, mask="", mask_url="", strokes=[])


def Canvas(value: Drawing | None = None, **keywords: Any) -> Any:
    """A component that takes and gives a :class:`Drawing`; ``None`` asks the person for a picture.

    Strokes are in the value as soon as they are drawn; none of them asks the server for anything. Events:
    ``clear`` when the person removes the picture, ``change`` after everything that changes the value.
    """
    # Not a subclass: beside the source of each of those, Gradio writes a stub file when it is imported.
    return gr.HTML(
        value,
        html_template=(HERE / "canvas.html").read_text("utf-8"),
        js_on_load="studio.canvas.attach(element, props, trigger, watch)",
        apply_default_css=False,
        **keywords,
    )


def head() -> str:
    """What the page's ``<head>`` needs for it, after the ``studio`` of ``keys.js``."""
    style, *scripts = ((HERE / name).read_text("utf-8") for name in HEAD)
    return f"<style>{style}</style><script>{''.join(scripts)}</script>"
