"""Files read before they are needed, so that the system has them in memory when they are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

CHUNK = 8 * 2**20  # bytes


class ReadAhead:
    """Reads one wish at a time, in a thread of its own; a newer wish takes the place of an older one.

    What is read is dropped at once: the system keeps it while nothing else needs the memory.
    """

    def __init__(self) -> None:
        self.bytes = 0  # read for the present wish
        self._wish: tuple[Path, ...] = ()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def read(self, files: Sequence[Path]) -> None:
        """Begin with these, if they are not the ones that were read last."""
        if tuple(files) == self._wish:
            return
        self.stop()
        self.bytes, self._wish, self._stop = 0, tuple(files), threading.Event()
        wish = self._wish, self._stop
        self._thread = threading.Thread(target=self._run, args=wish, name="read-ahead", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read no further."""
        self._wish = ()
        self._stop.set()
        self.wait()

    def wait(self) -> None:
        """Until all is read, or stopped."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, files: Sequence[Path], stop: threading.Event) -> None:
        for path in files:
            try:
                with path.open("rb", buffering=0) as file:
                    while not stop.is_set() and (chunk := file.read(CHUNK)):
                        self.bytes += len(chunk)
            except (OSError, MemoryError) as error:  # it will be said when the file is needed
                log.debug("not read ahead: %s", error)
