"""A small JSON file that is read once and written whole, so that it is never half there."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class Store:
    """A mapping kept in a file; in memory alone where ``path`` is None. Safe from any thread.

    A file that cannot be read is taken for empty and replaced at the next save: what is kept here can be
    reckoned again, or is worth less than a start that fails.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.entries: dict[str, Any] = _read(path) if path else {}
        self._saved = dict(self.entries)

    def get(self, key: str) -> Any:
        with self.lock:
            return self.entries.get(key)

    def put(self, key: str, value: Any) -> None:
        """Without saving; None forgets."""
        with self.lock:
            if value is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = value

    def keep(self, keys: Iterable[str]) -> None:
        """Forget all others."""
        with self.lock:
            self.entries = {key: self.entries[key] for key in keys if key in self.entries}

    def save(self) -> None:
        """Write the file if something is new. A disk that is full or read-only is named in the log."""
        with self.lock:
            if self.path is None or self.entries == self._saved:
                return
            try:
                _write(self.path, self.entries)
            except OSError as error:
                log.warning("models: %s cannot be written: %s", self.path.name, error.strerror)
            self._saved = dict(self.entries)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("models: %s cannot be read and is begun anew: %s", path.name, error)
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, entries: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(entries, file)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
