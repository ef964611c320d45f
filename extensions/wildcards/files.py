"""The wildcard files: UTF-8 text below one folder, one value a line.

A file is only ever looked up in a list of what is there, and never by a path made of what somebody wrote: so
no name leads out of the folder. Links are neither followed nor listed.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from webui.errors import InvalidField, StorageError

from .syntax import Option, Wrong, weighted

MAX_BYTES = 1_000_000  # of a file
MAX_FILES = 10_000
MAX_DEPTH = 6  # of folders in one another
MAX_NAME = 100  # characters

_PART = r"[^\W_](?:(?!__|  )[\w -]{0,58}[^\W_])?"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])", re.IGNORECASE)  # by Windows
_ENDING = ".txt"
_HOW = "letters, digits, single blanks, - and _, and / between folders"


def is_name(name: str) -> bool:
    """Whether a file can be named so, in a prompt and on every system: ``animals/cat``."""
    fits = len(name) <= MAX_NAME and name.count("/") < MAX_DEPTH and _NAME.fullmatch(name)
    return bool(fits) and not any(map(_RESERVED.fullmatch, name.split("/")))


class Listing:
    """The files as they are while a prompt is drawn."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._options: dict[str, list[Option]] = {}

    def options(self, name: str) -> list[Option]:
        """The lines of a file, or of all whose names fit, where ``name`` holds ``*``.

        Raises:
            Wrong: there is no such file, or it cannot be read.
        """
        if name not in self._options:
            self._options[name] = [
                option for each in self._fitting(name) for option in _lines(each, self._paths[each])
            ]
        return self._options[name]

    def _fitting(self, name: str) -> list[str]:
        if not is_name(name.replace("*", "x")):
            raise Wrong(f"“{name}” cannot be the name of a wildcard file: {_HOW}")
        parts = name.split("/")
        fitting = [each for each in sorted(self._paths) if _fits(each.split("/"), parts)]
        if not fitting:
            raise Wrong(f"there is no wildcard file “{name}”{self._instead(name)}")
        return fitting

    def _instead(self, name: str) -> str:
        """The nearest name there is, for a person."""
        if not self._paths:
            return ": there are none yet"
        last = name.rpartition("/")[2]
        near = [each for each in self._paths if each.rpartition("/")[2] == last]
        near = near or difflib.get_close_matches(name, self._paths, 1)
        return f"; did you mean “{near[0]}”?" if near else rf"; if these are words, write \__{name}__"


class Files:
    """All wildcard files of a data folder, to list and to change. Safe to use from several threads."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / "wildcards"
        self._lock = threading.Lock()

    def look(self) -> Listing:
        return Listing(self._paths())

    def names(self) -> list[str]:
        """Those that a prompt can name, sorted."""
        return sorted(self._paths())

    def text(self, name: str) -> str:
        """What a file holds.

        Raises:
            InvalidField: there is no such file, or it cannot be read.
        """
        try:
            return _text(name, self._paths()[name])
        except KeyError:
            raise _refused("there is no such file (any more)") from None
        except Wrong as error:
            raise _refused(str(error)) from None

    def save(self, name: str, text: str, before: str | None) -> None:
        """Write a whole file.

        Args:
            before: what was in it when it was opened; None if it is to be new.

        Raises:
            InvalidField: it cannot be named so, the text does not fit, or somebody else was faster.
            StorageError: the disk refuses.
        """
        if not is_name(name):
            raise _refused(f"the name may hold {_HOW}")
        data = _data(text)
        with self._lock:
            names = self.names()
            if before is None and name.casefold() in map(
                str.casefold, names
            ):  # a disk may not tell them apart
                raise _refused(f"there is a file {name} already; open it to change it")
            if before is not None and (name not in names or self.text(name) != before):
                raise _refused("somebody has changed or deleted it meanwhile; open it again")
            try:
                self._write(self._place(name), data)
            except OSError as error:
                raise StorageError("The file could not be saved: the server's disk refuses.") from error

    def delete(self, name: str) -> None:
        """
        Raises:
            InvalidField: there is no such file.
            StorageError: the disk refuses.
        """
        with self._lock:
            try:
                self._paths()[name].unlink()
            except (KeyError, FileNotFoundError):
                raise _refused("there is no such file (any more)") from None
            except OSError as error:
                raise StorageError("The file could not be deleted: the server's disk refuses.") from error

    def _paths(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in _below(self.folder, MAX_DEPTH):
            name = path.relative_to(self.folder).as_posix().removesuffix(_ENDING)
            if is_name(name):
                found[name] = path
            if len(found) == MAX_FILES:
                break
        return found

    def _place(self, name: str) -> Path:
        """Where a file of this name belongs; its folders are made.

        Raises:
            InvalidField: one of them is a link.
        """
        *folders, last = name.split("/")
        path = self.folder
        path.mkdir(parents=True, exist_ok=True)
        for folder in folders:
            path /= folder
            if path.is_symlink():
                raise _refused(f"the folder {folder} is a link, and links are not followed")
            path.mkdir(exist_ok=True)
        return path / f"{last}{_ENDING}"

    def _write(self, path: Path, data: bytes) -> None:
        partial = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Text files, sorted; no links, nothing hidden."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and depth > 1 and not entry.name.startswith("."):
            yield from _below(Path(entry.path), depth - 1)
        elif entry.is_file(follow_symlinks=False) and entry.name.endswith(_ENDING):
            yield Path(entry.path)


def _fits(name: list[str], pattern: list[str]) -> bool:
    return len(name) == len(pattern) and all(map(fnmatchcase, name, pattern))


def _lines(name: str, path: Path) -> tuple[Option, ...]:
    """
    Raises:
        Wrong: it cannot be read.
    """
    try:
        stat = path.stat()
    except OSError:
        raise Wrong(f"the wildcard file “{name}” cannot be read") from None
    return _read_lines(name, path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _read_lines(name: str, path: Path, changed: int, size: int) -> tuple[Option, ...]:
    """Of a file that was last changed then."""
    lines = map(str.strip, _text(name, path).split("\n"))
    values = (weighted(line) for line in lines if line and not line.startswith("#"))
    return tuple(Option(text, weight) for weight, text in values)


def _text(name: str, path: Path) -> str:
    """
    Raises:
        Wrong: it cannot be read, is too large, or no text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError:
        raise Wrong(f"the wildcard file “{name}” cannot be read") from None
    if len(data) > MAX_BYTES:
        raise Wrong(f"the wildcard file “{name}” has more than {MAX_BYTES:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Wrong(f"the wildcard file “{name}” is not UTF-8 text") from None


def _data(text: str) -> bytes:
    """
    Raises:
        InvalidField: it is too long, or holds what no prompt can.
    """
    text = text.replace("\r\n", "\n").rstrip()
    for character in text:
        if character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs"):
            raise _refused(f"holds a character that cannot be stored (U+{ord(character):04X})")
    data = f"{text}\n".encode()
    if len(data) > MAX_BYTES:
        raise _refused(f"holds {len(data):,} bytes; at most {MAX_BYTES:,} fit")
    return data


def _refused(message: str) -> InvalidField:
    return InvalidField("name", message, "Wildcard file")
