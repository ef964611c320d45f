"""The ways to enlarge a picture that this plugin knows, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, ImageFilter

from webui.request import HIRES_UPSCALERS

from . import nets, tiles

LANCZOS, SHARPENED = "Lanczos", "Lanczos, sharpened"


@dataclass(frozen=True)
class Way:
    """``work`` takes an RGB picture and the (width, height) it shall have."""

    work: Callable[[Image.Image, tuple[int, int]], tiles.Work]
    path: Path | None = None  # of its network

    def enlarge(
        self, image: Image.Image, size: tuple[int, int], check: Callable[[], None] = lambda: None
    ) -> Image.Image:
        """All of it at once. ``check`` is called now and then, and may raise to stop it."""
        return tiles.finish(self.work(image, size), check)


def ways(data_dir: Path, loader: nets.Nets) -> dict[str, Way]:
    """Those that work here: networks only where spandrel is installed."""
    found = {LANCZOS: Way(lanczos), SHARPENED: Way(sharpened)}
    if nets.installed():
        for name, path in nets.find(data_dir).items():
            if name not in found and name not in HIRES_UPSCALERS:
                found[name] = Way(partial(loader.work, path), path)
    return found


def lanczos(image: Image.Image, size: tuple[int, int]) -> tiles.Work:
    yield 0.0
    return image.resize(size, Image.Resampling.LANCZOS)


def sharpened(image: Image.Image, size: tuple[int, int]) -> tiles.Work:
    """With an unsharp mask as wide as half a pixel of the small picture."""
    larger = yield from lanczos(image, size)
    return larger.filter(ImageFilter.UnsharpMask(radius=size[0] / image.width / 2, percent=100, threshold=2))
