"""How large a picture may become; checked before any work begins."""

from __future__ import annotations

from webui.errors import InvalidField
from webui.images import MAX_PICTURE_PIXELS

MEGA = 2**20


def check(size: tuple[int, int], larger: tuple[int, int], most: int = MAX_PICTURE_PIXELS) -> None:
    """
    Args:
        size, larger: (width, height) in pixels, before and after.
        most: pixels; by default what this program can open again.

    Raises:
        InvalidField: it would be too large; says the numbers.
    """
    pixels = larger[0] * larger[1]
    if pixels > most:
        raise InvalidField(
            "upscale.factor",
            f"{size[0]}x{size[1]} would become {larger[0]}x{larger[1]}, which is {pixels / MEGA:.1f} "
            f"megapixels; at most {most // MEGA} work",
            "Upscale",
        )


def times(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """(width, height) of the enlarged picture."""
    return round(size[0] * factor), round(size[1] * factor)
