"""``styles.csv``: named pieces of prompts, as AUTOMATIC1111 keeps them.

Columns ``name,prompt,negative_prompt``, and any others, in any order; UTF-8, with or without a byte order
mark. A row whose name begins with ``#`` is a comment. Of two rows with one name the later one counts.

Every row is kept together with the very text that it was read from, and only a row that is changed is written
anew: the rest of the file stays byte for byte.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

PLACE = "{prompt}"  # where a style's text takes the prompt in
COLUMNS = ("name", "prompt", "negative_prompt")
MARK = "\ufeff"
LINE_END = "\r\n"  # of a new file, as Python's csv writes


class Damaged(ValueError):
    """The file cannot be read; in a person's words."""


@dataclass(frozen=True)
class Style:
    name: str
    prompt: str = ""
    negative_prompt: str = ""

    def applied(self, text: str, field: str) -> str:
        """What becomes of a prompt; ``field`` says which of the two."""
        own: str = getattr(self, field)
        if not own.strip():
            return text
        if PLACE in own:
            return own.replace(PLACE, text)
        return ", ".join(filter(None, (text.strip(), own.strip())))


@dataclass(frozen=True)
class Row:
    source: str  # as it stands in the file, with its line end
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """The whole file. Changing gives a new one."""

    rows: tuple[Row, ...] = (
        Row(MARK + ",".join(COLUMNS) + LINE_END, COLUMNS),
    )  # the first names the columns

    @classmethod
    def read(cls, data: bytes) -> Table:
        """
        Raises:
            Damaged: it is no UTF-8, no CSV, or lacks a column.
        """
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise Damaged(f"line {line} is not UTF-8 text") from None
        if text in ("", MARK):
            return cls()
        table = cls(tuple(_rows(text)))
        if missing := [name for name in COLUMNS if name not in table.columns]:
            raise Damaged(f"it has no column {missing[0]}")
        return table

    @property
    def data(self) -> bytes:
        return "".join(row.source for row in self.rows).encode()

    @property
    def columns(self) -> tuple[str, ...]:
        return self.rows[0].cells

    @property
    def styles(self) -> dict[str, Style]:
        """By name, in the order of the file."""
        found = (self._style(row) for row in self.rows[1:])
        return {style.name: style for style in found if style.name and not style.name.startswith("#")}

    def having(self, style: Style) -> Table:
        """With this style: in the place of the one of that name, else at the end.

        Raises:
            Damaged: the file ends within quotation marks.
        """
        index = self._index(style.name)
        if index is None:
            *before, last = self.rows
            whole = (
                last
                if last.source.endswith(("\n", "\r"))
                else replace(last, source=last.source + self.line_end)
            )
            longer = Table((*before, whole, self._row((), style)))
            if Table.read(longer.data) != longer:
                raise Damaged("its last row has a quotation mark that is not closed")
            return longer
        if self._style(self.rows[index]) == style:
            return self
        return Table((*self.rows[:index], self._row(self.rows[index].cells, style), *self.rows[index + 1 :]))

    def without(self, name: str) -> Table:
        """Without any style of this name."""
        head, *rows = self.rows
        return Table((head, *(row for row in rows if self._style(row).name != name)))

    @property
    def line_end(self) -> str:
        head = self.rows[0].source
        return head[len(head.rstrip("\r\n")) :] or LINE_END

    def _index(self, name: str) -> int | None:
        """Of the row that counts."""
        found = [n for n, row in enumerate(self.rows) if n and self._style(row).name == name]
        return found[-1] if found else None

    def _style(self, row: Row) -> Style:
        cells = dict(zip(self.columns, row.cells, strict=False))
        return Style(*(cells.get(column, "") for column in COLUMNS))

    def _row(self, cells: Sequence[str], style: Style) -> Row:
        """A row with the style's cells; what stands in the other columns stays."""
        own = {column: getattr(style, column) for column in COLUMNS}
        old = dict(zip(self.columns, cells, strict=False))
        new = tuple(own.get(column, old.get(column, "")) for column in self.columns) + tuple(
            cells[len(self.columns) :]
        )
        return Row(written(new, self.line_end), new)


def written(cells: Iterable[str], line_end: str) -> str:
    """A row as csv writes it: with quotation marks round any line end, whichever the file has."""
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=LINE_END).writerow(cells)
    return file.getvalue().removesuffix(LINE_END) + line_end


def _rows(text: str) -> list[Row]:
    """Each row with its own lines: the reader tells how many it took."""
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader([lines[0].removeprefix(MARK), *lines[1:]], strict=False)
    rows: list[Row] = []
    taken = 0
    try:
        for cells in reader:
            rows.append(Row("".join(lines[taken : reader.line_num]), tuple(cells)))
            taken = reader.line_num
    except csv.Error as error:
        raise Damaged(f"line {reader.line_num}: {error}") from None
    return rows
