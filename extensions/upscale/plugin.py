"""Upscale: larger pictures, from finished ones, for the second pass of hires, and of any file.

Shows how a plugin offers upscalers (``upscalers``), changes finished pictures (``postprocess``) and says what
else decides their pixels (``cell_key``), refuses what cannot be done before it is queued
(``prepare_request``), and keeps something between its hooks that takes long to load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from webui.hookspecs import Setting, Tab, Upscaler, Values, hookimpl
from webui.request import MAX_PIXELS, GenerationRequest

from . import limits
from .nets import Nets, sha256
from .ways import LANCZOS, ways

loader = Nets()  # of this process: whoever enlarges a picture, one network is in memory


@hookimpl
def settings(data_dir: Path) -> Sequence[Setting]:
    return (
        Setting(
            "factor", 1.0, "Enlarge", "Times as wide and high. 1 is off.", minimum=1, maximum=4, step=0.25
        ),
        Setting("upscaler", LANCZOS, "Upscaler", choices=tuple(ways(data_dir, loader))),
    )


@hookimpl
def upscalers(data_dir: Path) -> Sequence[Upscaler]:
    """Those that the program does not have itself."""
    return [Upscaler(name, way.enlarge) for name, way in ways(data_dir, loader).items() if name != LANCZOS]


@hookimpl
def prepare_request(request: GenerationRequest, settings: Values) -> None:
    limits.check(request.final_size, limits.times(request.final_size, settings.factor), MAX_PIXELS)


@hookimpl
def postprocess(
    image: Image.Image, settings: Values, data_dir: Path, check: Callable[[], None]
) -> Image.Image | None:
    if settings.factor == 1:
        return None
    size = limits.times(image.size, settings.factor)
    limits.check(image.size, size, MAX_PIXELS)  # again: what is repainted has the size of its source
    return ways(data_dir, loader)[settings.upscaler].enlarge(image, size, check)


@hookimpl
def cell_key(request: GenerationRequest, settings: Values, data_dir: Path) -> Any:
    """The content of the network's file: another file of the same name makes other pictures."""
    chosen = {request.hires_upscaler, settings.upscaler}
    return {
        name: sha256(way.path) for name, way in ways(data_dir, loader).items() if name in chosen and way.path
    }


@hookimpl
def model_loaded(device: str) -> None:
    loader.device = device  # where everything is computed


@hookimpl
def tab(data_dir: Path) -> Tab:
    def build() -> None:
        from .page import Page  # with Gradio, which need not be there before the page is

        Page(ways(data_dir, loader))

    return Tab("Upscale", build)
