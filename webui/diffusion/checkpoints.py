"""Finding checkpoints. Listing reads a few small JSON files and no weights.

A checkpoint is a folder in diffusers' layout of a Stable Diffusion 1.x or 2.x pipeline, straight below
one of the models folders. A file ``webui.json`` in it may say more: ``title``, ``note`` (one line: what it
is good for), ``examples`` (prompts that work) and ``defaults`` (request fields it works best with).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webui.errors import InvalidField
from webui.request import TASKS, GenerationRequest, ModelInfo, Task

log = logging.getLogger(__name__)

SUPPORTED = ("StableDiffusionPipeline",)
PARTS = ("unet", "vae", "text_encoder")
EMBEDDED = "pocket-model"


Signature = tuple[tuple[str, int, int], ...]  # (file, bytes, nanoseconds of its last change)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. ``signature`` changes when any of its weights does (size or time of a file)."""

    name: str
    path: Path
    info: ModelInfo
    scheduler_config: Mapping[str, Any]
    signature: Signature
    family: str = "sd1"
    file: bool = False  # whether ``path`` is a single file
    config: Path | None = None  # the shipped config folder of a single file


def find(folders: Iterable[Path]) -> dict[str, Checkpoint]:
    """The usable checkpoints by name, in the order of ``folders``, then alphabetically.

    A name met a second time is told apart by its parent folder's name. What cannot be used is left out
    and named in the log.
    """
    found: dict[str, Checkpoint] = {}
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        for index in sorted(folder.glob("*/model_index.json")):
            path = index.parent
            name = path.name if path.name not in found else f"{path.name} ({folder.name})"
            try:
                found[name] = _read(name, path)
            except (OSError, ValueError, KeyError, TypeError, InvalidField) as error:
                log.warning("models: %s is left out: %s", path.name, error)
    return found


def default(found: Collection[str], wanted: str | None) -> str:
    """The name of the model to use where none is named: the wanted one, the embedded one, any; else ""."""
    return next((name for name in (wanted or EMBEDDED, EMBEDDED, *found) if name in found), "")


def _read(name: str, path: Path) -> Checkpoint:
    kind = _json(path / "model_index.json").get("_class_name")
    if kind not in SUPPORTED:
        raise ValueError(f"it is a {kind}; supported: {', '.join(SUPPORTED)}")
    unet, vae = _json(path / "unet/config.json"), _json(path / "vae/config.json")
    tasks = _tasks(unet["in_channels"], vae["latent_channels"])
    weights = sorted(file for part in PARTS for file in (path / part).glob("*.safetensors"))
    if {file.parent.name for file in weights} != set(PARTS):
        raise ValueError(f"it lacks .safetensors weights of {', '.join(PARTS)}")
    card = _json(path / "webui.json") if (path / "webui.json").exists() else {}
    side = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    stats = [(file.relative_to(path).as_posix(), file.stat()) for file in weights]
    defaults = {"width": side, "height": side, **card.get("defaults", {})}
    GenerationRequest(**defaults)  # so that a wrong default is named here, not at the first click
    info = ModelInfo(
        name=name,
        title=str(card.get("title", name)),
        note=str(card.get("note", "")),
        width=side,
        height=side,
        examples=tuple(map(str, card.get("examples", ()))),
        defaults=defaults,
        bytes=sum(stat.st_size for _, stat in stats),
        tasks=tasks,
    )
    signature = tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats)
    return Checkpoint(name, path, info, _json(path / "scheduler/scheduler_config.json"), signature)


def _tasks(channels: int, latent_channels: int) -> tuple[Task, ...]:
    """What a net can do that takes so many channels: one for inpainting takes mask and masked latents too."""
    if channels == latent_channels:
        return TASKS
    if channels == 2 * latent_channels + 1:
        return ("inpaint",)
    raise ValueError(f"its UNet takes {channels} channels, which is no task that is known here")


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} does not hold an object")
    return content


def sha256(checkpoint: Checkpoint) -> str:
    """SHA-256 of all weights, in the order of their names: the same for a copy under another name."""
    digest = hashlib.sha256()
    base = checkpoint.path.parent if checkpoint.file else checkpoint.path
    for name, _, _ in checkpoint.signature:
        with (base / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
