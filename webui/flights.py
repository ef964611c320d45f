"""Flight records kept in the data folder, one file beside each picture that was recorded.

They are large and can be made again: only the latest are kept. No index: a file is named as its picture.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from pathlib import Path

from webui.errors import NotFound, StorageError
from webui.flight import FlightRecord
from webui.request import SavedPicture

log = logging.getLogger(__name__)

KEPT = 50  # files
KEPT_BYTES = 2 * 2**30
LEFTOVER_AGE = 3600.0  # seconds after which a file that is not finished never will be
GONE = "There is no flight record of this picture (any more)."


class FlightStore:
    """Safe from several threads. Pictures are named by their ``id`` in the library."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir.resolve() / "flights"
        self._lock = threading.Lock()

    def path(self, picture_id: int) -> Path:
        """Where the record of a picture is, if there is one."""
        return self._folder / f"{picture_id}.npz"

    def has(self, picture_id: int) -> bool:
        return self.path(picture_id).is_file()

    def keep(self, picture_id: int, record: FlightRecord) -> None:
        """Keep a record, and let the oldest go that there is no room for.

        Raises:
            StorageError: the disk is full or read-only; nothing is left behind.
        """
        data = record.to_bytes()
        with self._lock:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                _write(self.path(picture_id), data)
                self._evict()
            except OSError as error:
                reason = error.strerror or type(error).__name__
                raise StorageError(f"The flight record could not be kept ({reason}).") from error

    def open(self, picture_id: int) -> FlightRecord:
        """
        Raises:
            NotFound: there is none, or it was damaged and is removed.
        """
        path = self.path(picture_id)
        try:
            return FlightRecord.from_bytes(path.read_bytes())
        except ValueError as error:
            log.error("the flight record of picture %s is removed: %s", picture_id, error)
            path.unlink(missing_ok=True)
            raise NotFound(GONE) from error
        except OSError as error:
            raise NotFound(GONE) from error

    def of(self, picture: SavedPicture) -> FlightRecord:
        """The record of this very picture: an index that was built anew counts its pictures anew.

        Raises:
            NotFound: there is none.
        """
        record = self.open(picture.id)
        if record.request != picture.request:
            raise NotFound(GONE)
        return record

    def _evict(self) -> None:
        """Keep as many of the latest as there may be, and no file that was never finished."""
        for left in self._folder.glob(".*.part"):
            if time.time() - left.stat().st_mtime > LEFTOVER_AGE:
                left.unlink(missing_ok=True)
        total = 0
        files = sorted(((path.stat(), path) for path in self._folder.glob("*.npz")), key=_latest_first)
        for count, (found, path) in enumerate(files, 1):
            total += found.st_size
            if count > KEPT or total > KEPT_BYTES:
                path.unlink(missing_ok=True)


def _latest_first(entry: tuple[os.stat_result, Path]) -> tuple[int, int]:
    found, path = entry
    return -found.st_mtime_ns, -int(path.stem) if path.stem.isdecimal() else 0


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
