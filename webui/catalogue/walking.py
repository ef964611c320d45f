"""Going through the models folders: which files and folders may be models, and what lies beside them.

Nothing is opened here. Links are followed as long as they stay within the folders that were named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from webui.catalogue.found import Kind, Signature

WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
UNFINISHED = (".part", ".partial", ".tmp", ".incomplete", ".crdownload", ".download", ".aria2")
CONFIG = ".config"  # the ending of a folder with the configuration of the file beside it
PART = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)([.-].*)?\.(safetensors|bin)$"
)  # its weights
DEPTH = 4  # folders below a root that are looked into
#: What A1111's and ComfyUI's folders are for, in lower case.
PLACES: Mapping[str, Kind] = {
    "stable-diffusion": "checkpoint",
    "checkpoints": "checkpoint",
    "diffusers": "checkpoint",
    "diffusion_models": "net",
    "unet": "net",
    "lora": "lora",
    "loras": "lora",
    "lycoris": "lora",
    "vae": "vae",
    "embeddings": "embedding",
    "controlnet": "controlnet",
    "t2i_adapter": "controlnet",
    "esrgan": "upscaler",
    "realesrgan": "upscaler",
    "upscale_models": "upscaler",
    "vae-approx": "preview",
    "vae_approx": "preview",
    "text_encoders": "text encoder",
    "text_encoder": "text encoder",
    "clip": "text encoder",
    "ipadapter": "ip-adapter",
    "ip-adapter": "ip-adapter",
    "ip_adapter": "ip-adapter",
}
LEFT = (
    "It is a link to a place outside the models folders. Name that folder with --models-dir to have it here."
)


@dataclass(frozen=True)
class Spot:
    """A file or a folder that may be a model. ``files`` has what decides on what it is.

    They are (path below the spot's own folder, bytes, nanoseconds of the last change): of a folder the files
    in it and in its subfolders, of a file itself and those beside it that say more of it.
    """

    location: str
    files: Signature
    place: Kind | None = None  # what its folder is for
    folder: bool = False
    title: str = ""  # what to call it, where that is not its own name
    problem: str = ""

    @property
    def path(self) -> Path:
        return Path(self.location)

    @property
    def name(self) -> str:
        return self.title or (self.path.name if self.folder else self.path.stem)


class Walk:
    """One walk through ``roots`` and the Hugging Face cache ``hub``. What cannot be read is passed by."""

    def __init__(self, roots: Sequence[Path], hub: Path | None = None) -> None:
        self.roots = list(dict.fromkeys(os.path.realpath(root) for root in roots))
        self.hub = os.path.realpath(hub) if hub else None
        self._seen: set[str] = set()

    def spots(self) -> Iterator[Spot]:
        """Those of each root in turn, by their paths; then those of the cache."""
        for root in self.roots:
            yield from self._folder(root, PLACES.get(os.path.basename(root).lower()), 0)
        if self.hub:
            yield from self._cache(self.hub)

    def _folder(self, path: str, place: Kind | None, depth: int) -> Iterator[Spot]:
        """A model may be there under several names, by links; any other folder is gone through once."""
        entries = _entries(path)
        is_model = _is_model(entries)
        own = path if is_model else os.path.realpath(path)
        if own in self._seen or not entries:
            return
        self._seen.add(own)
        if is_model:
            yield Spot(path, tuple(_inside(path, entries)), place, folder=True)
            return
        for name in sorted(entries):
            yield from self._entry(entries[name], entries, place, depth)

    def _entry(
        self, entry: os.DirEntry[str], beside: Mapping[str, os.DirEntry[str]], place: Kind | None, depth: int
    ) -> Iterator[Spot]:
        name = entry.name.lower()
        is_weights = name.endswith(WEIGHTS)
        if entry.is_symlink() and not self._allowed(entry.path):
            if is_weights or (depth < DEPTH and entry.is_dir()):
                yield Spot(entry.path, (), place, problem=LEFT)
        elif entry.is_dir():
            if depth < DEPTH and not name.endswith(CONFIG):
                yield from self._folder(entry.path, PLACES.get(name, place), depth + 1)
        elif is_weights and (files := tuple(_with_besides(entry, beside))):
            yield Spot(entry.path, files, place)

    def _allowed(self, path: str) -> bool:
        """Whether a link ends within the folders that were named."""
        real = os.path.realpath(path)
        return any(f"{real}{os.sep}".startswith(root + os.sep) for root in (*self.roots, self.hub) if root)

    def _cache(self, hub: str) -> Iterator[Spot]:
        """The newest snapshot of each repository, as huggingface_hub's documents describe its cache."""
        for name, entry in sorted(_entries(hub).items()):
            if name.startswith("models--") and (snapshot := _newest(entry.path)):
                title = name.rsplit("--", 1)[-1]
                entries = _entries(snapshot)
                if _is_model(entries):
                    yield Spot(snapshot, tuple(_inside(snapshot, entries)), None, True, title)
                    continue
                for file in sorted(entries):
                    yield from self._entry(entries[file], entries, None, DEPTH)


def _is_model(entries: Iterable[str]) -> bool:
    """Whether these are the files of a folder in diffusers' layout: of a pipeline, or of one part."""
    names = set(entries)
    return "model_index.json" in names or ("config.json" in names and any(map(PART.match, names)))


def _entries(path: str) -> dict[str, os.DirEntry[str]]:
    """What is in a folder, but for what is hidden or on its way; nothing if it cannot be read."""
    try:
        with os.scandir(path) as scan:
            return {
                entry.name: entry
                for entry in scan
                if not entry.name.startswith(".") and not entry.name.lower().endswith(UNFINISHED)
            }
    except OSError:
        return {}


def _stat(entry: os.DirEntry[str], name: str) -> Iterator[tuple[str, int, int]]:
    """Nothing if it has gone meanwhile, or is a link to nowhere."""
    try:
        stat = entry.stat()
    except OSError:
        return
    yield name, stat.st_size, stat.st_mtime_ns


def _inside(path: str, entries: Mapping[str, os.DirEntry[str]]) -> Iterator[tuple[str, int, int]]:
    for name, entry in sorted(entries.items()):
        if entry.is_dir():
            for inner, file in sorted(_entries(os.path.join(path, name)).items()):
                if not file.is_dir():
                    yield from _stat(file, f"{name}/{inner}")
        else:
            yield from _stat(entry, name)


def _with_besides(
    entry: os.DirEntry[str], entries: Mapping[str, os.DirEntry[str]]
) -> Iterator[tuple[str, int, int]]:
    """The file first, if it is (still) there."""
    stem = os.path.splitext(entry.name)[0]
    own = list(_stat(entry, entry.name))
    yield from own
    for ending in (".yaml", ".json", CONFIG) if own else ():
        if other := entries.get(stem + ending):
            yield from _stat(other, other.name)


def _newest(repository: str) -> str:
    """The snapshot that ``main`` names, else the one changed last; "" if there is none."""
    snapshots = os.path.join(repository, "snapshots")
    try:
        with open(os.path.join(repository, "refs", "main"), encoding="ascii") as file:
            named = os.path.join(snapshots, os.path.basename(file.read().strip()))
    except (OSError, ValueError):
        named = ""
    if named and os.path.isdir(named) and not os.path.samefile(named, snapshots):
        return named
    entries = [entry for entry in _entries(snapshots).values() if entry.is_dir()]
    return max(entries, key=lambda entry: entry.stat().st_mtime_ns).path if entries else ""
