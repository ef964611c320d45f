"""The file of styles in a data folder: read when it is needed, written whole or not at all."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from webui.errors import InvalidField, StorageError

from .table import Damaged, Style, Table

MAX_BYTES = 5_000_000
MAX_NAME, MAX_TEXT = 100, 20_000  # characters


class Store:
    """Safe to use from several threads."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "styles.csv"
        self._lock = threading.Lock()

    def styles(self) -> dict[str, Style]:
        """By name, in the order of the file.

        Raises:
            InvalidField: the file cannot be read.
        """
        return self._table().styles

    def save(self, style: Style, before: Style | None) -> None:
        """
        Args:
            before: what was there when it was opened; None if it is to be new.

        Raises:
            InvalidField: it cannot be a style, or somebody else was faster.
            StorageError: the disk refuses.
        """
        _check(style)
        self._change(style.name, before, lambda table: table.having(style))

    def delete(self, style: Style) -> None:
        """
        Raises:
            InvalidField, StorageError: as :meth:`save`.
        """
        self._change(style.name, style, lambda table: table.without(style.name))

    def _change(self, name: str, before: Style | None, change: Callable[[Table], Table]) -> None:
        with self._lock:
            table = self._table()
            there = table.styles.get(name)
            if before is None and there is not None:
                raise refused(f"there is a style {name} already; open it to change it")
            if there != before:
                raise refused("somebody has changed or deleted it meanwhile; open it again")
            try:
                changed = change(table)
            except Damaged as error:
                raise refused(f"styles.csv cannot be changed: {error}") from None
            if changed != table:
                self._write(changed.data)

    def _table(self) -> Table:
        try:
            stat = self.path.stat()
            if stat.st_size > MAX_BYTES:
                raise Damaged(f"it has more than {MAX_BYTES:,} bytes")
            return _read(self.path, stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError:
            return Table()
        except (OSError, Damaged) as error:
            why = str(error) if isinstance(error, Damaged) else "the server's disk refuses"
            raise refused(f"styles.csv cannot be read: {why}") from None

    def _write(self, data: bytes) -> None:
        path = self.path.resolve()  # it may be a link to another program's file
        partial = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            raise StorageError("The style could not be saved: the server's disk refuses.") from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


@lru_cache(maxsize=4)
def _read(path: Path, changed: int, size: int) -> Table:
    """The file as it was last changed then."""
    return Table.read(path.read_bytes())


def _check(style: Style) -> None:
    name = style.name
    if not name or not name.isprintable() or name != name.strip() or name.startswith("#"):
        raise refused("a name is one line, and begins with neither a blank nor #")
    if len(name) > MAX_NAME or max(len(style.prompt), len(style.negative_prompt)) > MAX_TEXT:
        raise refused(f"at most {MAX_NAME} characters of a name and {MAX_TEXT:,} of a prompt fit")


def refused(message: str) -> InvalidField:
    return InvalidField("styles.names", message, "Styles")
