"""The catalogue: all models of several folders, each as what it is, read anew whenever somebody asks.

Only what has changed since the last time is opened, and of that only headers and small JSON files; what the
headers said is remembered in the data folder, so that thousands of files cost a look at each one's size and
time. A file that is damaged is listed with its problem; nothing here fails because of it.
"""

from __future__ import annotations

import difflib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from webui.catalogue import folders, headers, identify, pickles, relatives, wholes
from webui.catalogue.found import KINDS, Found, Identity, Kind, Signature
from webui.catalogue.hashes import Hashes
from webui.catalogue.notes import Notes
from webui.catalogue.store import Store
from webui.catalogue.walking import CONFIG, PICKLES, Spot, Walk
from webui.request import invalid

log = logging.getLogger(__name__)

SCHEME = 5  # raised when headers are read in another way, so that what is remembered is read again
LONG = 1000  # characters of a metadata value that are kept
MAX_CARD = 1_000_000  # bytes of a .json or .yaml beside a file
#: What people call a kind, where that is not its name.
TITLES = {
    "checkpoint": "model",
    "net": "denoising net alone",
    "lora": "LoRA",
    "vae": "VAE",
    "controlnet": "ControlNet",
    "ip-adapter": "IP-Adapter",
    "other": "file of no known kind",
}
ONLY_MODELS = "It is a pickle; of these only whole models are taken. Most can be had as .safetensors."
T5_VOCABULARY = "t5-vocabulary"  # a folder of a models folder, with a person's own tokenizer.json


class _Known(NamedTuple):
    """What was found at a path, while its files stay the same; ``named``: what it is beside all others."""

    files: Signature
    found: Found
    named: Found

    def called(self, found: Found, name: str) -> _Known:
        """With ``found`` under this name, as the same object as before if nothing has changed."""
        if found is self.found and name == self.named.name:
            return self
        named = replace(found, name=name)
        return self if named == self.named else self._replace(named=named)


class Catalogue:
    """
    Args:
        folders: where models lie, in this order; those that are missing are no trouble.
        data_dir: where hashes, notes and what headers said are kept; None keeps them in memory.
        more: further folders, asked for at each look.
        hub: the Hugging Face cache, see :func:`hub_cache`.
        allow_pickle: list pickled models as usable; their names are read without running what they name.

    Everything may be called from any thread.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        data_dir: Path | None = None,
        more: Callable[[], Iterable[Path]] = tuple,
        hub: Path | None = None,
        allow_pickle: bool = False,
    ) -> None:
        self.allow_pickle = allow_pickle
        self.folders = tuple(folders)
        self.hub = hub
        cache = data_dir / "cache" if data_dir else None
        self.hashes = Hashes(cache / "hashes.json" if cache else None)
        self.notes = Notes(data_dir / "models.json" if data_dir else None)
        self._more = more
        self._headers = Store(cache / "headers.json" if cache else None)
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def all(self) -> list[Found]:
        """Everything there is, also what cannot be used. What has not changed is the same object as before.

        The first of one name keeps it; others are told apart by their folder, and, in one folder, by their
        ending.
        """
        with self._lock:
            spots = Walk([*self.folders, *self._more()], self.hub).spots()
            known = {spot.location: self._as_known(spot) for spot in spots}
            parts, taken = [each.found for each in known.values()], set[tuple[str, str]]()
            for location, before in known.items():
                found = before.found
                if found.kind == "net" and not found.problem:
                    found = wholes.whole(found, parts)
                name = next(name for name in _names(found) if (found.kind, name) not in taken)
                taken.add((found.kind, name))
                known[location] = before.called(found, name)
            self._known = known
            self._headers.keep(known)
            self._headers.save()
        return [each.named for each in known.values()]

    def t5_vocabulary(self) -> Path | None:
        """The folder of a person's own vocabulary of T5, which goes before the one that comes along."""
        places = (folder / T5_VOCABULARY for folder in (*self.folders, *self._more()))
        return next((place for place in places if (place / "tokenizer.json").is_file()), None)

    def of(self, kind: Kind) -> dict[str, Found]:
        """Those of one kind by name, also what cannot be used."""
        return {found.name: found for found in self.all() if found.kind == kind}

    def get(self, kind: Kind, name: str, field: str) -> Found:
        """The usable one of this kind and name.

        Raises:
            InvalidField: there is none; names ``field``, and what may have been meant.
        """
        listed = self.all()
        called = {each.kind: each for each in listed if each.name == name}
        found = called.get(kind) or (called.get("net") if kind == "checkpoint" else None)  # which lacks parts
        if found is None:
            raise invalid(field, _missing(kind, name, listed))
        if found.problem:
            raise invalid(field, f"{name!r} cannot be used. {found.problem}")
        return found

    def sha256(self, found: Found) -> str:
        """Of its weights, hexadecimal; reckoned now if need be.

        Raises:
            OSError: a file cannot be read.
        """
        return self.hashes.of(found)

    def weights_sha256(self, found: Found) -> str:
        """Of the weights in a .safetensors file, without its header; of anything else as :meth:`sha256`.

        Raises:
            OSError: the file cannot be read.
        """
        return self.hashes.of_weights(found) if found.path.suffix == ".safetensors" else self.sha256(found)

    def known_sha256(self, found: Found) -> str:
        """The hash, or "" while it has not been reckoned."""
        return self.hashes.known(found)

    def start(self) -> None:
        """Begin to reckon the hashes of all that can be used, in the background."""
        self.hashes.start(lambda: (found for found in self.all() if not found.problem))

    def close(self) -> None:
        self.hashes.close()

    # Looking at one

    def _as_known(self, spot: Spot) -> _Known:
        before = self._known.get(spot.location)
        if before is not None and before.files == spot.files:
            return before
        found = self._look(spot)
        return _Known(spot.files, found, found)

    def _look(self, spot: Spot) -> Found:
        if spot.problem:
            return _found(spot, Identity(spot.place or "other", problem=spot.problem), ())
        if spot.folder:
            return _folder(spot, self.allow_pickle)
        stamp = [SCHEME, self.allow_pickle, [list(file) for file in spot.files]]
        entry = self._headers.get(spot.location)
        try:
            if entry["stamp"] == stamp:
                return _remembered(spot, entry)
        except (TypeError, KeyError):
            pass  # never read, or somebody has edited the file
        entry = {"stamp": stamp, **_read(spot, self.allow_pickle)}
        self._headers.put(spot.location, entry)
        return _remembered(spot, entry)


def hub_cache() -> Path | None:
    """The Hugging Face cache, if there is one, as its documents say where it is."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    path = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    return path if path.is_dir() else None


def _folder(spot: Spot, pickled: bool) -> Found:
    try:
        identity = folders.read(spot, pickled)
    except folders.Unusable as error:
        is_pipeline = any(name == "model_index.json" for name, _, _ in spot.files)
        identity = Identity("checkpoint" if is_pipeline else spot.place or "other", problem=str(error))
    return _found(spot, identity, folders.weights(spot, pickled))


def _read(spot: Spot, allow_pickle: bool) -> dict[str, Any]:
    """What is remembered of a file: its identity, its trigger words, its metadata."""
    beside = {os.path.splitext(name)[1] for name, _, _ in spot.files[1:]}
    yaml, card = (_text(spot.path.with_suffix(end)) if end in beside else "" for end in (".yaml", ".json"))
    header = headers.Header({})
    try:
        header, problem = _header(spot.path, allow_pickle)
        identity = identify.identify(header, identify.Beside(spot.path.stem, yaml, CONFIG in beside))
        if problem and not (identity.kind == "checkpoint" and problem == ONLY_MODELS):
            identity = replace(identity, problem=problem)
    except (headers.Unreadable, OSError) as error:
        identity = _unreadable(spot, error, allow_pickle)
    words = relatives.trigger_words(header.metadata, card)
    cut = {name: value[:LONG] for name, value in header.metadata.items()}
    return {"identity": asdict(_misplaced(identity, spot)), "words": words, "metadata": cut}


def _header(path: Path, allow_pickle: bool) -> tuple[headers.Header, str]:
    """What a file holds, and why it cannot be used all the same.

    Raises:
        Unreadable, OSError: that cannot be told.
    """
    is_pickle = path.suffix.lower() in PICKLES
    try:
        return headers.read(
            path
        ), "It is a .safetensors file by its content: rename it so." if is_pickle else ""
    except headers.Unreadable as error:
        foreign = isinstance(error, headers.Foreign) and str(error) != headers.PICKLE
        if not (allow_pickle and is_pickle) or foreign:
            raise
    return pickles.read(path), ONLY_MODELS


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(MAX_CARD)
    except OSError:
        return ""


def _remembered(spot: Spot, entry: Mapping[str, Any]) -> Found:
    identity = Identity(**{**entry["identity"], "tasks": tuple(entry["identity"]["tasks"])})
    return _found(spot, identity, spot.files[:1], tuple(entry["words"]), entry["metadata"])


def _unreadable(spot: Spot, error: Exception, allow_pickle: bool) -> Identity:
    ending = spot.path.suffix.lower()
    kind: Kind = spot.place or ("checkpoint" if ending in (".ckpt", ".safetensors", ".sft") else "other")
    problem = str(error)
    if isinstance(error, OSError):
        problem = f"It cannot be read: {error.strerror}."
    elif ending in PICKLES and not isinstance(error, headers.Foreign) and not allow_pickle:
        problem = headers.PICKLE
    return Identity(kind, problem=problem)


def _misplaced(identity: Identity, spot: Spot) -> Identity:
    """Say of a file that lies in a folder for something else that it is not that."""
    if spot.place in (None, identity.kind) or identity.problem or identity.note:
        return identity
    return replace(identity, note=f"It lies in a folder for another kind; it is {_a(identity.kind)}.")


def _found(
    spot: Spot,
    identity: Identity,
    files: Signature,
    words: tuple[str, ...] = (),
    metadata: dict[str, str] | None = None,
) -> Found:
    told = {name: getattr(identity, name) for name in identity.__dataclass_fields__}
    size = sum(size for _, size, _ in files)
    if not spot.name.isprintable():
        told["problem"] = told["problem"] or "Its name has a character that cannot be shown: rename it."
    name = "".join(sign if sign.isprintable() else "?" for sign in spot.name)
    return Found(
        name=name, path=spot.path, bytes=size, signature=files, words=words, metadata=metadata or {}, **told
    )


def _names(found: Found) -> Iterator[str]:
    """What it may be called, the best first."""
    yield found.name
    folder = found.path.parent.name
    if folder == "snapshots":  # of the Hugging Face cache: whose it is
        folder = found.path.parent.parent.name.removeprefix("models--").partition("--")[0]
    yield f"{found.name} ({folder})"
    yield f"{found.name} ({found.path.suffix.removeprefix('.') or found.path.parent.parent.name})"
    yield from (f"{found.name} ({folder}, {number})" for number in range(2, 1_000_000))


def _title(kind: str) -> str:
    return TITLES.get(kind, kind)


def _a(kind: str) -> str:
    """With its article: a LoRA, an embedding."""
    return f"{'an' if _title(kind)[0] in 'aeiouI' else 'a'} {_title(kind)}"


def _missing(kind: Kind, name: str, listed: Sequence[Found]) -> str:
    """What to say of a name that this kind has not: that it is something else, or what is like it."""
    others = sorted({each.kind for each in listed if each.name == name}, key=KINDS.index)
    if others:
        return f"{name!r} is not {_a(kind)}: it is {_a(others[0])}"
    names = {each.name.lower(): each.name for each in listed if each.kind == kind and not each.problem}
    near = difflib.get_close_matches(name.lower(), names, 3, 0.5)
    meant = f"; there is {', '.join(names[each] for each in near)}" if near else ""
    return f"there is no {_title(kind)} named {name!r}{meant}"
