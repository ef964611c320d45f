"""What a person says of their models: favourites, notes and a thumbnail, by kind and name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from webui.catalogue.found import Kind
from webui.catalogue.store import Store

MAX_TEXT = 10_000  # characters of a note


@dataclass(frozen=True)
class Note:
    """``thumbnail`` is a picture's path below the outputs folder, with forward slashes; "" is none."""

    favourite: bool = False
    text: str = ""
    thumbnail: str = ""


class Notes:
    """Kept in one file; safe from any thread. What is said of a model outlives its file."""

    def __init__(self, path: Path | None) -> None:
        self._store = Store(path)

    def get(self, kind: Kind, name: str) -> Note:
        return _note(self._store.get(_key(kind, name)))

    def favourites(self, kind: Kind) -> set[str]:
        """The names of this kind that are marked."""
        with self._store.lock:
            keys = [key for key in self._store.entries if key.startswith(f"{kind}/")]
        names = (key.removeprefix(f"{kind}/") for key in keys)
        return {name for name in names if self.get(kind, name).favourite}

    def change(self, kind: Kind, name: str, **changes: Any) -> Note:
        """Replace fields of a :class:`Note` and save.

        Raises:
            TypeError: there is no such field.
            ValueError: the note is longer than :data:`MAX_TEXT`, or the thumbnail leaves the outputs folder.
        """
        with self._store.lock:
            note = replace(self.get(kind, name), **changes)
            if len(note.text) > MAX_TEXT:
                raise ValueError(f"a note holds {MAX_TEXT:,} characters at most")
            if not _below(note.thumbnail):
                raise ValueError("a thumbnail is a picture below the outputs folder")
            self._store.put(_key(kind, name), asdict(note) if note != Note() else None)
            self._store.save()
        return note


def _key(kind: str, name: str) -> str:
    return f"{kind}/{name}"


def _note(entry: Any) -> Note:
    """What a file holds that somebody may have edited: what does not fit is left out."""
    given = entry if isinstance(entry, dict) else {}
    text, thumbnail = (str(given.get(name, "")) for name in ("text", "thumbnail"))
    return Note(given.get("favourite") is True, text[:MAX_TEXT], thumbnail if _below(thumbnail) else "")


def _below(path: str) -> bool:
    parts = path.split("/")
    return not path or not ("\\" in path or ":" in path or "" in parts or ".." in parts or "." in parts)
