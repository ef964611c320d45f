"""Seamless: pictures whose opposite edges belong together, so that they tile."""

from __future__ import annotations

from contextlib import AbstractContextManager

from PIL import Image

from webui.errors import InvalidField
from webui.hookspecs import Parts, Setting, Values, hookimpl


@hookimpl
def settings() -> list[Setting]:
    return [
        Setting("tile_x", False, "Tile across", "The right edge goes on at the left."),
        Setting("tile_y", False, "Tile down", "The bottom edge goes on at the top."),
        Setting("show_tile", False, "Show 2 × 2", "Keeps a view of four tiles beside the picture."),
    ]


@hookimpl
def patch(parts: Parts, settings: Values) -> AbstractContextManager[None] | None:
    if not (settings.tile_x or settings.tile_y):
        return None
    if parts.unet is None:
        field = "seamless.tile_x" if settings.tile_x else "seamless.tile_y"
        raise InvalidField(field, "this model has no UNet, whose convolutions could go round the edges")
    from .wrapping import wrapped  # needs torch, which is not there yet when the page is laid out

    return wrapped((parts.unet, parts.vae), x=settings.tile_x, y=settings.tile_y)


@hookimpl
def postprocess(image: Image.Image, settings: Values) -> list[Image.Image] | None:
    return [image, four(image)] if settings.show_tile else None


def four(image: Image.Image) -> Image.Image:
    """Four of it, two by two."""
    width, height = image.size
    view = Image.new("RGB", (2 * width, 2 * height))
    for corner in ((0, 0), (width, 0), (0, height), (width, height)):
        view.paste(image, corner)
    return view
