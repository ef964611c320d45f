"""The tab: any picture, enlarged, to look at and to take along."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from webui.errors import WebuiError
from webui.images import KEY, open_picture, read_infotext

from . import limits, nets
from .tiles import told
from .ways import LANCZOS, Way

OWN = {"show_progress": "hidden", "api_visibility": "private"}  # events of the page, no endpoints
MOST = 8  # times
NONE = "Choose a picture."
HERE = (
    "For ESRGAN networks, put their <code>.safetensors</code> files into <code>models/ESRGAN</code> in the "
    "data folder, and start the program anew."
)
MISSING = f"ESRGAN networks work here too, once spandrel is installed: <code>{nets.INSTALL}</code>"


class Page:
    """Lays the tab out inside the current ``gr.Blocks``, and does what it is asked."""

    def __init__(self, ways: Mapping[str, Way]) -> None:
        self.ways = ways
        self.size = gr.State(None)  # (width, height) of the picture; None without one
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320):
                self._asking()
            with gr.Column(min_width=320):
                self._answering()
        self._wire()

    def _asking(self) -> None:
        self.source = gr.File(  # not gr.Image, which would fail where we can say what is wrong with a file
            label="Picture", file_types=["image"], height=140, elem_id="upscale-source"
        )
        with gr.Row():
            self.factor = gr.Slider(
                1,
                MOST,
                2,
                step=0.25,
                label="Enlarge",
                info="Times as wide and high",
                min_width=200,
                buttons=[],
                elem_id="upscale-factor",
            )
            self.way = gr.Dropdown(
                list(self.ways),
                value=LANCZOS,
                label="Upscaler",
                filterable=False,
                min_width=200,
                elem_id="upscale-way",
            )
        with gr.Row():
            self.start = gr.Button("Upscale", variant="primary", min_width=120, elem_id="upscale-start")
            self.stop = gr.Button(
                "Stop", variant="stop", interactive=False, scale=0, min_width=90, elem_id="upscale-stop"
            )
        self.stage = gr.HTML(stage(NONE), elem_id="upscale-stage", padding=False)
        gr.HTML(f'<p class="note">{HERE if nets.installed() else MISSING}</p>', padding=False)

    def _answering(self) -> None:
        self.result = gr.ImageSlider(
            label="Before and after",
            interactive=False,
            type="filepath",
            max_height=560,
            buttons=["fullscreen"],
            elem_id="upscale-result",
        )
        self.download = gr.DownloadButton("Download", interactive=False, elem_id="upscale-download")

    def _wire(self) -> None:
        shown = [self.stage, self.result, self.download, self.start, self.stop]
        asked = [self.source, self.factor, self.way]
        work = self.start.click(self.enlarge, asked, shown, **OWN)
        self.stop.click(lambda: self._shown(stage("Stopped.")), None, shown, cancels=[work], **OWN)
        self.source.change(
            self.measure, asked[:2], [self.size, self.stage, self.result, self.download], **OWN
        )
        moved = {"trigger_mode": "always_last", "queue": False, **OWN}
        self.factor.change(sized, [self.size, self.factor], self.stage, **moved)

    # What is done

    def measure(self, path: str | None, factor: float) -> Any:
        """A picture that was chosen, its size, and what it would come to."""
        empty = None, gr.DownloadButton(value=None, interactive=False)
        try:
            size = open_picture(path).size if path else None
        except WebuiError as error:
            return None, stage(str(error), wrong=True), *empty
        return size, sized(size, factor), (path, path) if path else None, empty[1]

    def enlarge(self, path: str | None, factor: float, name: str) -> Iterator[Any]:
        if not path:
            yield self._shown(stage("Choose a picture first.", wrong=True))
            return
        try:
            yield self._busy(0)
            image = open_picture(path)
            size = limits.times(image.size, factor)
            limits.check(image.size, size)
            larger = yield from told(self.ways[name].work(image, size), self._busy)
            file = self._kept(larger, path, factor)
            result = {
                self.result: (path, file),
                self.download: gr.DownloadButton(value=file, interactive=True),
            }
            yield self._shown(stage(f"{size[0]} × {size[1]} pixels.")) | result
        except WebuiError as error:
            yield self._shown(stage(str(error), wrong=True))

    def _kept(self, image: Image.Image, path: str, factor: float) -> str:
        """The path of the result, where a browser may fetch it. How the picture was made stays inside."""
        chunks = PngInfo()
        if text := read_infotext(path):
            chunks.add_text(KEY, text)
        data = BytesIO()
        image.save(data, "PNG", pnginfo=chunks)
        name = f"{Path(path).stem[:60]}-{factor:g}x.png"
        return str(save_bytes_to_cache(data.getvalue(), name, self.result.GRADIO_CACHE))

    def _busy(self, share: float) -> dict[Any, Any]:
        return self._shown(stage("Enlarging", share), busy=True)

    def _shown(self, said: str, busy: bool = False) -> dict[Any, Any]:
        buttons = {self.start: gr.Button(interactive=not busy), self.stop: gr.Button(interactive=busy)}
        return {self.stage: said} | buttons


def sized(size: tuple[int, int] | None, factor: float) -> str:
    """What a picture of this size would come to."""
    if size is None:
        return stage(NONE)
    larger = limits.times(size, factor)
    try:
        limits.check(size, larger)
    except WebuiError as error:
        return stage(str(error), wrong=True)
    return stage(f"{size[0]} × {size[1]} becomes {larger[0]} × {larger[1]} pixels.")


def stage(words: str, share: float | None = None, wrong: bool = False) -> str:
    """A line, and a bar where something goes on."""
    bar = f'<div class="bar"><span style="width: {share:.0%}"></span></div>' if share is not None else ""
    role = ' role="alert"' if wrong else ""
    return f'{bar}<p class="note"{role}>{html.escape(words)}</p>'
