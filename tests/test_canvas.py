"""The canvas without a browser: its markup, and what Gradio makes of its value."""

import re
from html.parser import HTMLParser
from pathlib import Path

import gradio as gr
import pytest

from webui.ui import canvas

HERE = Path(canvas.__file__).parent
MARKUP = (HERE / "canvas.html").read_text("utf-8")
STROKE = {"kind": "mask", "color": "#ffffff", "size": 20, "points": [[1.5, 2.0], [30, 40]]}
DRAWN = canvas.Drawing(
    source="s", url="/a.png", width=30, height=40, mask="m", mask_url="/b.png", strokes=[STROKE]
)


class Buttons(HTMLParser):
    """The attributes of every button, and the text in it."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        if tag == "button":
            self.found.append((dict(attrs), ""))

    def handle_data(self, data):
        if self.found and self.lasttag != "p":
            attributes, text = self.found[-1]
            self.found[-1] = attributes, text + data.strip()


@pytest.mark.parametrize("value", [None, DRAWN])
def test_a_drawing_passes_unchanged_both_ways(value):
    with gr.Blocks():
        board = canvas.Canvas(value, elem_id="canvas")
    assert board.preprocess(board.postprocess(value)) == value
    assert board.get_config()["value"] == value
    assert board.get_config()["elem_id"] == "canvas"


def test_the_markup_holds_nothing_that_gradios_templates_would_change():
    assert not re.search(r"\$\{|`|\\|\{\{|@children", MARKUP)


def test_every_button_has_a_name_and_something_to_do():
    deeds = re.search(r"const DEEDS = \{(.*?)\n    \};", (HERE / "canvas.js").read_text("utf-8"), re.S)
    names = set(re.findall(r"^      (\w+):", deeds[1], re.M))
    found = Buttons(MARKUP).found
    assert len(found) > 15
    for attributes, text in found:
        assert text or attributes.get("aria-label")
        assert attributes["type"] == "button"
        assert ("data-tool" in attributes) or attributes["data-do"] in names


def test_making_one_writes_no_files():
    assert not list(HERE.glob("*.pyi"))
