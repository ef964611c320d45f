"""The letters of a sheet: which font has them, how wide they are, and where a line is broken.

The fonts in ``fonts/`` have the scripts of Europe and the Near East, and Chinese, Japanese and Korean. What
neither has, such as most emoji, is drawn as a box.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

#: Of each character the first that has it is taken.
FONTS = tuple(Path(__file__).parent / "fonts" / name for name in ("DejaVuSans.ttf", "DroidSansFallback.ttf"))
LONGEST = 500  # characters of a text that are looked at

_UNSEEN = ("Me", "Cf", "Cc")  # categories: controls, and marks that turn or enclose their neighbours
_NOBODY = "\uffff"  # no character: each font draws its box
_LOOKED_AT = 20  # pixels, of the letters by which a font is asked what it has


class Pen:
    """Measures, breaks and draws text of one size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fonts = _fonts(size)
        self.line = round(size * 1.3)  # pixels from one line to the next

    def width(self, text: str) -> int:
        return math.ceil(sum(self.fonts[n].getlength(run) for n, run in _runs(text)))

    def draw(self, canvas: ImageDraw.ImageDraw, left: int, top: int, text: str, ink: tuple[int, ...]) -> None:
        """One line; the fonts stand on one base line."""
        base, at = top + self.fonts[0].getmetrics()[0], float(left)
        for n, run in _runs(text):
            canvas.text((at, base), run, ink, self.fonts[n], anchor="ls")
            at += self.fonts[n].getlength(run)

    def wrap(self, text: str, width: int, most: int) -> tuple[str, ...]:
        """At most ``most`` lines that fit ``width``, the last with an ellipsis if there is more."""
        words = [part for word in text[:LONGEST].split() for part in self._parts(word, width)]
        lines: list[str] = []
        for word in words:
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and self.width(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        if len(lines) <= most and len(text) <= LONGEST:
            return tuple(lines)
        lines = lines[: max(most, 1)]
        while lines and lines[-1] and self.width(f"{lines[-1]}…") > width:
            lines[-1] = lines[-1][:-1]
        return (*lines[:-1], f"{lines[-1]}…") if lines else ()

    def _parts(self, word: str, width: int) -> Iterator[str]:
        """A word in pieces that fit; of at least one letter."""
        if self.width(word) <= width:
            yield word
            return
        begin = 0
        for end in range(1, len(word) + 1):
            if end - begin > 1 and self.width(word[begin:end]) > width:
                yield word[begin : end - 1]
                begin = end - 1
        yield word[begin:]


def drawable(text: str) -> str:
    """The text as it can be drawn on one line: without controls; what no font has stays, as boxes."""
    return "".join(map(_letter, unicodedata.normalize("NFC", " ".join(text.splitlines()))))


def is_drawn(character: str) -> bool:
    """Whether a font has it."""
    return _font_of(character) is not None


@lru_cache(maxsize=4096)
def _letter(character: str) -> str:
    if unicodedata.category(character) in _UNSEEN:
        return " " if character == "\t" else ""
    if is_drawn(character):
        return character
    base = unicodedata.normalize("NFKD", character)[0]
    return base if is_drawn(base) else character


def _runs(text: str) -> Iterator[tuple[int, str]]:
    """(font, neighbours that it draws). Boxes are drawn by the first."""
    return ((font, "".join(run)) for font, run in groupby(text, lambda character: _font_of(character) or 0))


@lru_cache(maxsize=65_536)
def _font_of(character: str) -> int | None:
    """The place among :data:`FONTS` of the first that has this character."""
    return next((n for n, font in enumerate(_fonts(_LOOKED_AT)) if _mask(font, character) != _box(n)), None)


@lru_cache
def _box(n: int) -> bytes:
    """What a font draws for what it lacks."""
    return _mask(_fonts(_LOOKED_AT)[n], _NOBODY)


def _mask(font: ImageFont.FreeTypeFont, character: str) -> bytes:
    return bytes(font.getmask(character))


@lru_cache(maxsize=64)
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    return tuple(ImageFont.truetype(path, size) for path in FONTS)
