"""Named grids: some that come with the program, and each person's own, kept in the data folder.

A preset holds the axes and the pictures per cell, nothing else of the form. The last grid of a person is kept
beside them, whole, so that it can be gone on with after a restart.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from webui.errors import InvalidField, StorageError, WebuiError
from webui.grid.plan import AXES, AxisSpec, Grid, check_per_cell

log = logging.getLogger(__name__)

LONGEST_NAME = 60  # characters
MOST = 100  # of one person
MAX_BYTES = 20 * 2**20  # of a file that is read back


_NONE = AxisSpec()


@dataclass(frozen=True)
class Preset:
    """The axes of a grid, and how many pictures are in each cell."""

    x: AxisSpec
    y: AxisSpec = _NONE
    z: AxisSpec = _NONE
    per_cell: int = 1

    def __post_init__(self) -> None:
        check_per_cell(self.per_cell)

    @classmethod
    def of(cls, grid: Grid) -> Preset:
        return cls(grid.x, grid.y, grid.z, grid.per_cell)


SOME_SCHEDULERS = "DPM++ 2M, Euler, Euler a, Heun, UniPC"
BUILT_IN: Mapping[str, Preset] = {
    "Scheduler × CFG scale": Preset(
        AxisSpec("scheduler", SOME_SCHEDULERS), AxisSpec("guidance_scale", "1, 2, 4, 8")
    ),
    "Steps × scheduler": Preset(
        AxisSpec("num_inference_steps", "2, 4, 8, 16, 32"), AxisSpec("scheduler", SOME_SCHEDULERS)
    ),
    "Scheduler × sigma schedule": Preset(
        AxisSpec("scheduler", SOME_SCHEDULERS), AxisSpec("sigma_schedule", "all")
    ),
    "CFG scale, three seeds each": Preset(AxisSpec("guidance_scale", "1-9 (+2)"), per_cell=3),
    "All schedulers": Preset(AxisSpec("scheduler", "all")),
}
FIRST = next(iter(BUILT_IN))


@dataclass(frozen=True)
class _Kept:
    """What one person's file holds."""

    presets: Mapping[str, Preset]
    last: Grid | None = None


class Presets:
    """The named grids of everybody."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "grids"
        self._lock = threading.Lock()

    def names(self, owner: str) -> list[str]:
        """Those that come with the program first."""
        return [*BUILT_IN, *sorted(self._read(owner).presets, key=str.casefold)]

    def get(self, name: Any, owner: str) -> Preset:
        """
        Raises:
            InvalidField: there is none of this name.
        """
        found = {**self._read(owner).presets, **BUILT_IN}.get(name) if isinstance(name, str) else None
        if found is None:
            raise _wrong("choose one from the list")
        return found

    def save(self, given: Any, preset: Preset, owner: str) -> str:
        """Keep a preset, in place of one of the same name: the name, as it was kept.

        Raises:
            InvalidField: it cannot have this name, or there are too many.
        """
        name = _named(given)
        with self._lock:
            kept = self._read(owner)
            if name not in kept.presets and len(kept.presets) >= MOST:
                raise _wrong(f"there are {MOST} already; delete one first")
            self._write(owner, replace(kept, presets={**kept.presets, name: preset}))
        return name

    def delete(self, name: Any, owner: str) -> None:
        """
        Raises:
            InvalidField: it is not one's own.
        """
        with self._lock:
            kept = self._read(owner)
            if name not in kept.presets:
                raise _wrong("only grids that you saved yourself can be deleted")
            self._write(owner, replace(kept, presets={n: p for n, p in kept.presets.items() if n != name}))

    def last(self, owner: str) -> Grid | None:
        """The grid that was run last."""
        return self._read(owner).last

    def remember(self, grid: Grid, owner: str) -> None:
        """Keep it as the last one; a full disk is no reason not to run it."""
        with self._lock:
            try:
                self._write(owner, replace(self._read(owner), last=grid))
            except StorageError as error:
                log.warning("%s", error)

    # Files

    def _path(self, owner: str) -> Path:
        return self._folder / f"{hashlib.sha256(owner.encode()).hexdigest()[:32]}.json"

    def _read(self, owner: str) -> _Kept:
        """What is there and can be read; a damaged part is left out."""
        path = self._path(owner)
        try:
            if path.stat().st_size > MAX_BYTES:
                return _Kept({})
            values = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return _Kept({})
        values = values if isinstance(values, dict) else {}
        presets = values.get("presets")
        presets = presets if isinstance(presets, dict) else {}
        read = {name: preset for name, each in presets.items() if (preset := _preset(each))}
        return _Kept(read, _grid(values.get("last")))

    def _write(self, owner: str, kept: _Kept) -> None:
        """
        Raises:
            StorageError: the disk refuses.
        """
        values = {
            "presets": {name: asdict(preset) for name, preset in kept.presets.items()},
            "last": kept.last.to_dict() if kept.last else None,
        }
        path = self._path(owner)
        temporary = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(values, ensure_ascii=False, indent=1), "utf-8")
            os.replace(temporary, path)
        except OSError as error:
            raise StorageError("The grid could not be kept: the server's disk refuses.") from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _preset(values: Any) -> Preset | None:
    try:
        axes = {name: AxisSpec(**values[name]) for name in AXES}
        return Preset(**axes, per_cell=values["per_cell"])
    except (LookupError, TypeError, WebuiError):
        return None


def _grid(values: Any) -> Grid | None:
    try:
        return Grid.from_dict(values) if isinstance(values, dict) else None
    except WebuiError:
        return None


def _named(given: Any) -> str:
    """
    Raises:
        InvalidField: it cannot be a name.
    """
    name = " ".join(given.split()) if isinstance(given, str) else ""
    if not name:
        raise _wrong("give it a name")
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise _wrong(f"a name has at most {LONGEST_NAME} characters, all of them visible")
    if name in BUILT_IN:
        raise _wrong("this name is taken by a grid that comes with the program")
    return name


def _wrong(message: str) -> InvalidField:
    return InvalidField("preset", message, "Saved grids")
