"""Models from the Hugging Face Hub, by a person's click and in no other way.

What is asked for is listed first, with sizes; then one choice of it is fetched into a models folder. Files
under way lie in a folder that begins with a dot, which is no models folder, and move into place when all are
there and as promised. A child process does the asking (:mod:`webui.hub_process`): this one stays offline.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from webui.errors import HubError, NotAllowed, StorageError, WebuiError
from webui.hub_offer import HUB, Choice, Offer, offer, parse

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
UNDER_WAY = ".downloads"  # below a models folder
SPARE = 2**28  # bytes that a download leaves free on the disk
QUIET = 20.0  # seconds without news, after which a download is called slow
PATIENCE = 90.0  # seconds for a listing
KEPT = "What has come is kept, for the next time."


@dataclass(frozen=True)
class Download:
    """A snapshot of the download under way, or of the last one."""

    title: str
    state: Literal["running", "done", "failed", "cancelled"]
    bytes: int
    total: int
    message: str = ""
    speed: float = 0.0  # bytes per second, lately
    news: float = 0.0  # time.monotonic() when it last grew

    @property
    def slow(self) -> bool:
        return self.state == "running" and time.monotonic() - self.news > QUIET


class Hub:
    """The desk for all of this: one download at a time, for everyone."""

    def __init__(
        self,
        folders: Sequence[Path],
        endpoint: str | None = None,
        free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        """``folders``: of models; the first one that can be written takes what comes. ``free``: bytes."""
        self.folders = tuple(folders)
        self.endpoint = endpoint or os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB
        self.free = free
        #: The one under way, or the last one.
        self.download: Download | None = None
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._complete = False
        self._ended = threading.Event()
        self._ended.set()

    def look(self, text: str) -> Offer:
        """Ask the hub what it has.

        Raises:
            InvalidField: that is no name of a model.
            HubError: there is nothing to fetch, or the hub does not answer.
        """
        wanted = parse(text, self.endpoint)
        with self._asked({"do": "look", "repo": wanted.repo, "revision": wanted.revision}) as child:
            clock = threading.Timer(PATIENCE, child.kill)
            clock.start()
            answer = next(_answers(child), {"error": "The hub does not answer. Try again later."})
            clock.cancel()
        if "error" in answer:
            raise HubError(answer["error"])
        return offer(wanted, answer)

    def here(self, offer: Offer, choice: Choice) -> int:
        """Bytes of a choice that an earlier download has left."""
        staged = _staged(self._folder(), offer, choice)
        sizes = ((file, staged / file.saved_as) for file in choice.files)
        return sum(min(path.stat().st_size, file.bytes) for file, path in sizes if path.exists())

    def start(self, offer: Offer, choice: Choice) -> None:
        """Fetch a choice, going on with what is there of it; returns at once.

        Raises:
            NotAllowed: something of that name is there already, or another download is under way.
            StorageError: the disk has no room for it, or no models folder can be written.
        """
        folder = self._folder()
        _refuse_existing(folder, choice)
        here = self.here(offer, choice)
        self._check_room(folder, choice.bytes - here)
        with self._lock:
            if self.download and self.download.state == "running":
                raise NotAllowed("Another download is under way: wait for it, or cancel it.")
            title = f"{offer.repo}: {choice.target}"
            self.download = Download(title, "running", here, choice.bytes, news=time.monotonic())
            self._ended.clear()
        threading.Thread(
            target=self._fetch, args=(offer, choice, folder), name="download", daemon=True
        ).start()

    def cancel(self) -> None:
        """Stop the download. What has come is kept, for the next time."""
        with self._lock:
            self._end("cancelled", f"Cancelled. {KEPT}")
            if self._child is not None:
                self._child.kill()

    def wait(self, timeout: float) -> bool:
        """Until no download is under way; False if one still is after ``timeout`` seconds."""
        return self._ended.wait(timeout)

    # The download's thread

    def _fetch(self, offer: Offer, choice: Choice, folder: Path) -> None:
        staged = _staged(folder, offer, choice)
        order = {"do": "fetch", "repo": offer.repo, "revision": offer.revision, "folder": str(staged)}
        try:
            with self._asked({**order, "files": [vars(file) for file in choice.files]}) as child:
                self._follow(child)
            with self._lock:
                if self._complete:
                    _put(staged, folder, choice)
                    self._end("done", "In the models folder.")
                self._end("failed", f"The download broke off. {KEPT}")
        except (WebuiError, OSError) as error:
            log.warning("a download could not be put into place", exc_info=error)
            words = (
                str(error) if isinstance(error, WebuiError) else "It could not be put into the models folder."
            )
            with self._lock:
                self._end("failed", words)
        finally:
            self._ended.set()

    def _follow(self, child: subprocess.Popen[str]) -> None:
        """Note what the child says, until it ends or is killed."""
        with self._lock:
            self._child, self._complete = child, False
            if self.download is None or self.download.state != "running":  # cancelled before it began
                child.kill()
        for answer in _answers(child):
            with self._lock:
                if "error" in answer:
                    self._end("failed", str(answer["error"]))
                elif "done" in answer:
                    self._complete = True
                elif self.download is not None:
                    self.download = _grown(self.download, int(answer["bytes"]))
        with self._lock:
            self._child = None

    def _end(self, state: Literal["done", "failed", "cancelled"], message: str) -> None:
        """How the download ended; the first word on it counts."""
        if self.download is not None and self.download.state == "running":
            self.download = replace(self.download, state=state, message=message)

    def _asked(self, order: Mapping[str, Any]) -> subprocess.Popen[str]:
        """The child with its order: the one program that may ask another host. It ends with its context."""
        online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
        child = subprocess.Popen(
            [sys.executable, "-m", "webui.hub_process"],
            cwd=ROOT,
            env={**os.environ, **online},
            text=True,
            encoding="utf-8",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdin is not None
        child.stdin.write(json.dumps({**order, "endpoint": self.endpoint}) + "\n")
        child.stdin.flush()
        return child

    # The disk

    def _folder(self) -> Path:
        """
        Raises:
            StorageError: none can be written.
        """
        for folder in self.folders:
            if folder.is_dir() and os.access(folder, os.W_OK):
                return folder
        raise StorageError("None of the models folders can be written into.")

    def _check_room(self, folder: Path, needed: int) -> None:
        """
        Raises:
            StorageError: there is none.
        """
        free = self.free(folder)
        if free < needed + SPARE:
            raise StorageError(
                f"There is no room on the disk: {needed / 1e9:.1f} GB are still to come, {free / 1e9:.1f} GB "
                f"are free, and {SPARE / 1e9:.1f} GB must stay so."
            )


def _staged(folder: Path, offer: Offer, choice: Choice) -> Path:
    """Where the files of a choice gather: those of one version only."""
    version = re.sub(r"\W", "", offer.revision)[:16]
    return folder / UNDER_WAY / f"{offer.repo.replace('/', '--')}-{version}-{choice.target}"


def _answers(child: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert child.stdout is not None
    return (json.loads(line) for line in child.stdout)


def _grown(before: Download, size: int) -> Download:
    """With its speed, levelled over some seconds."""
    now = time.monotonic()
    if size <= before.bytes:
        return before
    speed = (size - before.bytes) / max(now - before.news, 1e-3)
    level = 0.8 * before.speed + 0.2 * speed if before.speed else speed
    return replace(before, bytes=size, speed=level, news=now)


def _refuse_existing(folder: Path, choice: Choice) -> None:
    """
    Raises:
        NotAllowed: it would take the place of something.
    """
    if os.path.lexists(folder / choice.target):
        raise NotAllowed(f"There is something named {choice.target} in the models folder already.")


def _put(staged: Path, folder: Path, choice: Choice) -> None:
    """Move what has come into place.

    Raises:
        NotAllowed: something of that name has appeared there meanwhile.
    """
    _refuse_existing(folder, choice)
    (staged if choice.folder else staged / choice.target).rename(folder / choice.target)
    for emptied in (staged, folder / UNDER_WAY):
        with contextlib.suppress(OSError):  # gone already, or there is more in it
            emptied.rmdir()
