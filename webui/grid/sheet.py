"""A grid drawn as pictures with a legend: one sheet a page, and one of all pages.

First everything gets its place (:func:`sheets`, boxes that never overlap), then it is painted
(:func:`write`). What would be too large for one file is laid out over several, each with its own legend.

A value with a character that no font here has (:mod:`webui.grid.lettering`) has its number before it. The
text inside the file has all of it, unharmed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from webui import images
from webui.grid.lettering import LONGEST, Pen, drawable, is_drawn
from webui.grid.plan import Index, Value
from webui.grid.results import Results, size

MAX_SIDE = 16_000  # pixels: what image viewers and phones open
MAX_PIXELS = 89_000_000  # where Pillow begins to warn of a bomb; 360 MB in memory

_INK, _FAINT, _PAPER, _BLANK = (20, 20, 20), (90, 90, 90), (255, 255, 255), (236, 236, 236)
_BOXES = "Boxes are characters that the fonts lack; the text inside this file has them."

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class Text:
    """Lines in a box, from its top left, or centred; each line fits the width."""

    box: Box
    lines: tuple[str, ...]
    size: int  # of the font, pixels
    centred: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Slot:
    """Where a picture lies, at its own size in the middle of its box."""

    box: Box
    index: Index


@dataclass(frozen=True)
class Sheet:
    """One file of the drawn grid, laid out. ``name`` is a part of its file's name."""

    name: str
    width: int
    height: int
    texts: tuple[Text, ...]
    slots: tuple[Slot, ...]


def _label(values: Sequence[Value], at: int) -> str:
    """Of a value; with its number, where boxes could not be told apart."""
    text = drawable(values[at].label)
    return text if all(map(is_drawn, text)) else f"{at + 1}: {text}"


def sheets(results: Results, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS) -> Iterator[Sheet]:
    """The sheets of a grid, laid out: each page, and all pages under each other if there are several.

    A sheet over a limit is cut into several between its columns and rows; a single cell is never cut.
    """
    layout = _Layout(results)
    pages = [[(z, y) for y in range(len(results.plan.y))] for z in range(len(results.plan.z))]
    names = [f"page-{z + 1:0{len(str(len(pages)))}}" for z in range(len(pages))]
    if len(pages) == 1:
        names = ["grid"]
    else:
        pages.append([row for page in pages for row in page])
        names.append("all-pages")
    for name, rows in zip(names, pages, strict=True):
        yield from layout.sheets(name, rows, max_side, max_pixels)


def write(
    results: Results, folder: Path, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS
) -> list[Path]:
    """Draw the sheets as PNG files, one after the other; each holds the infotext that restores the axes.

    Raises:
        OSError: one cannot be written.
    """
    chunks = PngInfo()
    chunks.add_text(images.KEY, results.infotext())
    paths = []
    for sheet in sheets(results, max_side, max_pixels):
        paths.append(folder / f"{sheet.name}.png")
        paint(sheet, results).save(paths[-1], "PNG", pnginfo=chunks, compress_level=3)
    return paths


def paint(sheet: Sheet, results: Results) -> Image.Image:
    """The sheet, 8-bit RGB."""
    canvas = Image.new("RGB", (sheet.width, sheet.height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for text in sheet.texts:
        _write(draw, text)
    for slot in sheet.slots:
        picture = _opened(results.pictures.get(slot.index))
        if picture:
            canvas.paste(picture, _centred(picture, slot.box))
        else:
            draw.rectangle(_inclusive(slot.box), _BLANK)
            _write(draw, _why(slot, results))
    return canvas


def _write(draw: ImageDraw.ImageDraw, text: Text) -> None:
    pen = Pen(text.size)
    left, top, right, _ = text.box
    for n, line in enumerate(text.lines):
        inset = (right - left - pen.width(line)) // 2 if text.centred else 0
        pen.draw(draw, left + inset, top + n * pen.line, line, _FAINT if text.faint else _INK)


def _why(slot: Slot, results: Results) -> Text:
    """The reason for a blank, as much of it as the box holds."""
    left, top, right, bottom = slot.box
    pen = Pen(min(16, max(11, (right - left) // 12)))
    reason = drawable(results.reason(slot.index))
    lines = pen.wrap(reason, right - left - 8, (bottom - top - 8) // pen.line)
    above = max(0, (bottom - top - len(lines) * pen.line) // 2)
    return Text((left + 4, top + above, right - 4, bottom), lines, pen.size, centred=True, faint=True)


def _opened(path: Path | None) -> Image.Image | None:
    """A picture's pixels; None if there is none (any more)."""
    try:
        return Image.open(path).convert("RGB") if path else None
    except OSError:
        return None


def _centred(picture: Image.Image, box: Box) -> tuple[int, int]:
    left, top, right, bottom = box
    return left + (right - left - picture.width) // 2, top + (bottom - top - picture.height) // 2


def _inclusive(box: Box) -> Box:
    """Pillow draws the right and bottom edges too."""
    left, top, right, bottom = box
    return left, top, right - 1, bottom - 1


class _Layout:
    """The measures that all sheets of a grid share, so that their columns and labels agree."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.plan = plan = results.plan
        self.across = math.ceil(math.sqrt(plan.grid.per_cell))  # pictures side by side in a cell
        self.down = math.ceil(plan.grid.per_cell / self.across)
        self.wide, self.high = _picture_sizes(results)
        self.pen = Pen(min(36, max(13, round(median(self.wide) / 17))))
        self.gap = max(4, self.pen.size // 2)
        self.inner = max(2, self.gap // 3)  # between the pictures of one cell
        self.margin = 2 * self.gap
        self._measure_labels()

    def _measure_labels(self) -> None:
        plan, pen = self.plan, self.pen
        above = [_label(plan.x, x) for x in range(len(plan.x))]
        blocks = [self.across * wide + (self.across - 1) * self.inner for wide in self.wide]
        self.columns = [  # pixels; wide enough for a label of one or two words
            max(block, min(pen.width(label[:LONGEST]), 9 * pen.size))
            for block, label in zip(blocks, above, strict=True)
        ]
        self.above = [pen.wrap(label, width, 6) for label, width in zip(above, self.columns, strict=True)]
        beside = [_label(plan.y, y) for y in range(len(plan.y))]
        whole = [label[:LONGEST] for label in beside] + plan.titles[1].split()
        longest = max(map(pen.width, whole))
        most = max(8 * pen.size, min(24 * pen.size, round(median(self.columns))))
        self.beside_width = min(max(longest, 5 * pen.size), most) if plan.titles[1] else 0
        self.beside = [pen.wrap(label, self.beside_width, 12) for label in beside]
        self.rows = {  # pixels, by page and row
            (z, y): max(self.down * high + (self.down - 1) * self.inner, len(self.beside[y]) * pen.line)
            for (z, y), high in self.high.items()
        }

    # Cutting

    def sheets(
        self, name: str, rows: list[tuple[int, int]], max_side: int, max_pixels: int
    ) -> Iterator[Sheet]:
        """The rows (page, row) in as many files as the limits demand."""
        groups = list(_groups([width + self.gap for width in self.columns], max_side - self._outside()))
        parts = []
        for columns in groups:
            room = min(max_side, max_pixels // self._width(columns))
            parts += [(columns, part) for part in self._cut(rows, columns, room)]
        for n, (columns, part) in enumerate(parts):
            which = f"Part {n + 1} of {len(parts)}" if len(parts) > 1 else ""
            ending = f"-part-{n + 1:0{len(str(len(parts)))}}-of-{len(parts)}" if which else ""
            yield self._sheet(name + ending, columns, part, which)

    def _cut(self, rows: list[tuple[int, int]], columns: range, room: int) -> Iterator[list[tuple[int, int]]]:
        """Rows in groups that fit the room below the title, a page's heading counted where it stands."""
        room -= 2 * self.margin + self._height(self._title(columns, "Part 000 of 000")) + self.gap
        part: list[tuple[int, int]] = []
        height = 0
        for z, y in rows:
            own = self.rows[z, y] + self.gap
            starts = not part or part[-1][0] != z
            head = self._head_height(z, columns) if starts else 0
            if part and height + head + own > room:
                yield part
                part, height, head = [], 0, self._head_height(z, columns)
            part.append((z, y))
            height += head + own
        yield part

    # Placing

    def _sheet(self, name: str, columns: range, rows: list[tuple[int, int]], which: str) -> Sheet:
        width = self._width(columns)
        texts: list[Text] = []
        slots: list[Slot] = []
        title = self._title(columns, which)
        top = self.margin
        texts.append(self._text(self.margin, top, width - 2 * self.margin, title))
        top += self._height(title) + self.gap
        page = -1
        for z, y in rows:
            if z != page:
                texts += self._head(z, columns, top)
                top += self._head_height(z, columns)
                page = z
            texts.append(self._text(self.margin, top, self.beside_width, self.beside[y]))
            slots += self._slots(z, y, columns, top)
            top += self.rows[z, y] + self.gap
        shown = tuple(text for text in texts if text.lines)
        return Sheet(name, width, top - self.gap + self.margin, shown, tuple(slots))

    def _slots(self, z: int, y: int, columns: range, top: int) -> Iterator[Slot]:
        for x, left in self._lefts(columns):
            wide, high = self.wide[x], self.high[z, y]
            block = self.across * wide + (self.across - 1) * self.inner
            left += (self.columns[x] - block) // 2
            for k in range(self.plan.grid.per_cell):
                at = left + (k % self.across) * (wide + self.inner)
                down = top + (k // self.across) * (high + self.inner)
                yield Slot((at, down, at + wide, down + high), (x, y, z, k))

    def _head(self, z: int, columns: range, top: int) -> Iterator[Text]:
        """What stands over a page: its value, the axes' titles, the columns' labels."""
        inner = self._width(columns) - 2 * self.margin
        page = self._page_lines(z, columns)
        if page:
            yield self._text(self.margin, top, inner, page)
            top += self._height(page) + self.gap
        left = self._lefts(columns)[0][1]
        titles = self._titles(columns)
        yield self._text(self.margin, top, self.beside_width, titles[1], faint=True)
        yield self._text(left, top, self._width(columns) - self.margin - left, titles[0], True, True)
        for x, at in self._lefts(columns):
            yield self._text(at, top + self._height(titles[0]), self.columns[x], self.above[x], centred=True)

    def _head_height(self, z: int, columns: range) -> int:
        page = self._page_lines(z, columns)
        over, beside = self._titles(columns)
        labels = self._height(over) + self.pen.line * max(len(self.above[x]) for x in columns)
        return max(labels, self._height(beside)) + self.gap + (self._height(page) + self.gap if page else 0)

    def _titles(self, columns: range) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of X, over the columns; of Y, over the rows' labels."""
        over, beside, _ = self.plan.titles
        width = sum(self.columns[x] for x in columns)
        return self.pen.wrap(over, width, 2), self.pen.wrap(beside, self.beside_width, 4)

    def _page_lines(self, z: int, columns: range) -> tuple[str, ...]:
        title = self.plan.titles[2]
        text = f"{title}: {_label(self.plan.z, z)}" if title else ""
        return self.pen.wrap(text, self._width(columns) - 2 * self.margin, 3)

    def _title(self, columns: range, which: str) -> tuple[str, ...]:
        """The settings that all cells share."""
        base, varied = self.plan.grid.base, self.plan.varied
        negative = "" if "negative_prompt" in varied else base.negative_prompt
        width = self._width(columns) - 2 * self.margin
        words = [
            ("" if "prompt" in varied else base.prompt, 3),
            (f"Negative prompt: {negative}" if negative else "", 2),
            (", ".join(f"{label}: {value}" for label, value in self.results.settings()), 8),
        ]
        lines = [line for text, most in words for line in self.pen.wrap(drawable(text), width, most)]
        if self._has_boxes("".join(lines)):
            lines += self.pen.wrap(_BOXES, width, 3)
        return (*lines, *self.pen.wrap(which, width, 1))

    def _has_boxes(self, title: str) -> bool:
        labels = (line for lines in (*self.above, *self.beside) for line in lines)
        pages = (_label(self.plan.z, z)[:LONGEST] for z in range(len(self.plan.z)))
        return not all(map(is_drawn, {*title, *"".join(labels), *"".join(pages)} - {" "}))

    # Measures

    def _text(
        self,
        left: int,
        top: int,
        width: int,
        lines: tuple[str, ...],
        centred: bool = False,
        faint: bool = False,
    ) -> Text:
        box = left, top, left + width, top + self._height(lines)
        return Text(box, lines, self.pen.size, centred, faint)

    def _height(self, lines: Sequence[str]) -> int:
        return len(lines) * self.pen.line

    def _outside(self) -> int:
        """Pixels of a sheet's width beside its columns."""
        return 2 * self.margin + (self.beside_width + self.gap if self.beside_width else 0)

    def _width(self, columns: range) -> int:
        """Of a sheet; never too narrow to read its title."""
        inside = sum(self.columns[x] + self.gap for x in columns) - self.gap
        return max(self._outside() + inside, 20 * self.pen.size)

    def _lefts(self, columns: range) -> list[tuple[int, int]]:
        """(column, its left edge)."""
        at = self._outside() - self.margin
        found = []
        for x in columns:
            found.append((x, at))
            at += self.columns[x] + self.gap
        return found


def _picture_sizes(results: Results) -> tuple[list[int], dict[tuple[int, int], int]]:
    """The widest picture of each column, the highest of each (page, row); of blanks, as planned."""
    plan, blank = results.plan, results.plan.grid.base.final_size
    wide = dict.fromkeys(range(len(plan.x)), 0)
    high = dict.fromkeys(((z, y) for z in range(len(plan.z)) for y in range(len(plan.y))), 0)
    for (x, y, z, _), path in results.pictures.items():
        if found := size(path):
            wide[x] = max(wide[x], found[0])
            high[z, y] = max(high[z, y], found[1])
    for (x, y, z, _), request in results.requests.items():
        if not wide[x] or not high[z, y]:
            planned = request.final_size
            wide[x], high[z, y] = wide[x] or planned[0], high[z, y] or planned[1]
    return [width or blank[0] for width in wide.values()], {row: h or blank[1] for row, h in high.items()}


def _groups(sizes: Sequence[int], room: int) -> Iterator[range]:
    """Neighbours that fit the room together; at least one."""
    begin, filled = 0, 0
    for at, own in enumerate(sizes):
        if at > begin and filled + own > room:
            yield range(begin, at)
            begin, filled = at, 0
        filled += own
    yield range(begin, len(sizes))
