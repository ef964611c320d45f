"""Draw every concept in every style, once: RGBA cut-outs that scenes are composed of."""

import io
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

from training.concepts import Concept
from training.packages import STYLE_PACKAGES, fetch

Sprites = dict[tuple[str, str], np.ndarray]
"""(concept name, style) -> (height, width, 4) uint8, tightly cropped, its longer side 7/8 of the picture."""


def render(concepts: Iterable[Concept], styles: Iterable[str], image_size: int, packages: Path) -> Sprites:
    """Fetch the styles' packages into a folder and draw; a style that lacks a concept leaves it out."""
    sprites: Sprites = {}
    concepts = list(concepts)
    for style in styles:
        folder = fetch(STYLE_PACKAGES[style], packages)
        draw = draw_3d if style == "3d" else draw_vector
        for concept in concepts:
            picture = draw(folder, concept.code)
            if picture is not None:
                sprites[concept.name, style] = cut_out(picture, image_size * 7 // 8)
    return sprites


def save(sprites: Sprites, path: Path) -> None:
    arrays: Any = {f"{name}|{style}": pixels for (name, style), pixels in sprites.items()}
    np.savez_compressed(path, **arrays)


def load(path: Path) -> Sprites:
    with np.load(path) as file:
        return {tuple(key.split("|")): file[key] for key in file.files}


def draw_vector(package: Path, code: str) -> Image.Image | None:
    """Render an icon of an Iconify JSON set at 256 px."""
    icons, names = icon_set(package)
    if code not in names:
        return None
    icon = icon_of(icons, names[code])
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="256" height="256">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=256, height=256))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def draw_3d(package: Path, code: str) -> Image.Image | None:
    files = code_files(package)
    return Image.open(files[code]).convert("RGBA") if code in files else None


def cut_out(picture: Image.Image, longest: int) -> np.ndarray:
    """Crop away what is transparent and scale the longer side to `longest` px, alpha premultiplied."""
    visible = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 8))
    picture = picture.crop(visible.getbbox())
    scale = longest / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return np.asarray(picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA"))


@cache
def icon_set(package: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """An Iconify set, and its icons' names by code point."""
    icons = json.loads((package / "icons.json").read_text())
    names = json.loads((package / "chars.json").read_text())
    return icons, {plain(code): name for code, name in names.items()}


def icon_of(icons: dict[str, Any], name: str) -> dict[str, Any]:
    while name not in icons["icons"]:
        name = icons["aliases"][name]["parent"]
    icon: dict[str, Any] = icons["icons"][name]
    return icon


@cache
def code_files(package: Path) -> dict[str, Path]:
    return {plain(path.stem): path for path in sorted((package / "assets").glob("*.webp"))}


def plain(code: str) -> str:
    """Without the variation selector, which sets spell or leave out as they please."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")
