"""SHA-256 of weights: reckoned once, and remembered for as long as size and time of a file stay the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from webui.catalogue.found import Signature
from webui.catalogue.store import Store

CHUNK = 4 << 20  # bytes read at once
LENGTH = 8  # bytes at the beginning of a .safetensors file that say how long its header is


class Weights(Protocol):
    """A file, or a folder and which files of it."""

    @property
    def path(self) -> Path: ...
    @property
    def signature(self) -> Signature: ...


class _Piece(NamedTuple):
    """One file of several."""

    path: Path
    signature: Signature


class Stopped(Exception):
    """Reckoning was given up, as :meth:`Hashes.close` asked."""


class Hashes:
    """The hashes of what a catalogue lists. Everything may be called from any thread."""

    def __init__(self, path: Path | None) -> None:
        self._store = Store(path)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def known(self, found: Weights) -> str:
        """Hexadecimal; "" if it has not been reckoned yet."""
        return str(self._store.get(_key(found.path, found.signature)) or "")

    def of(self, found: Weights) -> str:
        """The hash, reckoned now if need be.

        Raises:
            OSError: a file cannot be read.
        """
        return self._of(found, lambda: False)

    def of_weights(self, found: Weights) -> str:
        """Of a .safetensors file, without its header: see :func:`weights_digest`. Reckoned now if need be.

        Raises:
            OSError: the file cannot be read.
        """
        key = f"{_key(found.path, found.signature)}|weights"
        known = self._store.get(key)
        if known is None:
            known = weights_digest(found.path)
            self._store.put(key, known)
            self._store.save()
        return str(known)

    def start(self, wanted: Callable[[], Iterable[Weights]]) -> None:
        """Reckon those that are wanted and not known, in one thread in the background, then end."""
        if self._thread is None or not self._thread.is_alive():
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, args=(wanted,), name="hashes", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop what runs in the background, within a chunk's time."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _of(self, found: Weights, stop: Callable[[], bool]) -> str:
        key = _key(found.path, found.signature)
        known = self._store.get(key)
        if known is None:
            known = self._digest(found, stop)
            self._store.put(key, known)
            self._store.save()
        return str(known)

    def _digest(self, found: Weights, stop: Callable[[], bool]) -> str:
        """Of several files, the digest of theirs: each is reckoned once for all that share it."""
        if found.path.is_dir() or len(found.signature) < 2:
            return digest(found.path, found.signature, stop)
        pieces = (_Piece(found.path.parent / file[0], (file,)) for file in found.signature)
        return hashlib.sha256("".join(self._of(piece, stop) for piece in pieces).encode()).hexdigest()

    def _run(self, wanted: Callable[[], Iterable[Weights]]) -> None:
        with contextlib.suppress(
            OSError, AttributeError
        ):  # on Linux of this thread alone; elsewhere not there
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        for found in wanted():
            with contextlib.suppress(OSError):  # gone, or not readable: it is asked for when it is used
                try:
                    self._of(found, self._stop.is_set)
                except Stopped:
                    return


def _key(path: Path, signature: Signature) -> str:
    parts = "|".join(f"{name}:{size}:{changed}" for name, size, changed in signature)
    return f"{path}|{hashlib.sha256(parts.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def digest(path: Path, signature: Signature, stop: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 of a file; of a folder that of its weights' digests, in the order of their names.

    The same for a copy under another name. ``stop`` is asked between chunks.

    Raises:
        OSError: a file cannot be read.
        Stopped: ``stop`` said so.
    """
    if not path.is_dir():
        return _file_digest(path, stop).hex()
    whole = hashlib.sha256()
    for name, _, _ in signature:
        whole.update(_file_digest(path / name, stop))
    return whole.hexdigest()


def weights_digest(path: Path) -> str:
    """SHA-256 of what follows a .safetensors file's header, which stays the same when its notes are edited.

    By its first 12 digits A1111, kohya's scripts and Civitai ("AutoV3") know a LoRA.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        header = int.from_bytes(file.read(LENGTH), "little")
    return _file_digest(path, lambda: False, LENGTH + header).hex()


def _file_digest(path: Path, stop: Callable[[], bool], start: int = 0) -> bytes:
    whole = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while chunk := file.read(CHUNK):
            if stop():
                raise Stopped
            whole.update(chunk)
    return whole.digest()
