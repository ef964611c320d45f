"""From two or three axes to cells: what is computed, in which order, and what cannot be.

A cell is an ordinary request of one picture; a grid is nothing but a list of them. The order follows the
cost of change: one model after the other, within it the corners first (so that the range is seen early),
then size before prompt before anything cheap, and every cell's first picture before its second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from webui.diffusion import schedulers
from webui.errors import InvalidField
from webui.grid.axes import COST, AxisKind, Known, kinds
from webui.grid.values import MAX_VALUES
from webui.infotext import Reading, read
from webui.request import RANDOM_SEED, GenerationRequest, drawn

MAX_CELLS = 10_000  # pictures of one grid
AXES = ("x", "y", "z")

Index = tuple[int, int, int, int]  # x, y, z, picture


@dataclass(frozen=True)
class AxisSpec:
    """What a person chose and typed; ``kind`` "" is no axis."""

    kind: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not isinstance(self.text, str):
            raise InvalidField("axis", "must be text", "Axis")


def check_per_cell(count: Any) -> None:
    """
    Raises:
        InvalidField: so many pictures cannot be in a cell.
    """
    if type(count) is not int or not 1 <= count <= MAX_CELLS:
        raise InvalidField("per_cell", f"must be a whole number from 1 to {MAX_CELLS:,}", "Pictures per cell")


@dataclass(frozen=True)
class Grid:
    """What a person asks for. ``base`` holds every setting that does not vary; its batch size is ignored.

    ``per_cell``: pictures of each cell, with consecutive seeds.
    """

    base: GenerationRequest
    x: AxisSpec = AxisSpec()
    y: AxisSpec = AxisSpec()
    z: AxisSpec = AxisSpec()
    per_cell: int = 1

    def __post_init__(self) -> None:
        check_per_cell(self.per_cell)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**{name: asdict(self.axis(name)) for name in AXES}, "per_cell": self.per_cell,
                "base": self.base.model_dump(mode="json")}  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grid:
        """Of foreign JSON.

        Raises:
            InvalidField: it is no grid, or its request is wrong.
        """
        try:
            axes = {name: AxisSpec(**values[name]) for name in AXES}
            return cls(GenerationRequest(**values["base"]), **axes, per_cell=values["per_cell"])
        except (LookupError, TypeError) as error:
            raise InvalidField("grid", "is not a grid that was saved here", "Grid") from error

    def axis(self, name: str) -> AxisSpec:
        """ "x", "y" or "z"."""
        spec: AxisSpec = getattr(self, name)
        return spec


@dataclass(frozen=True)
class Value:
    """One place on an axis: what stands beside its line, and what is applied."""

    label: str
    value: Any


@dataclass(frozen=True)
class Cell:
    """One picture of the grid. ``request`` makes exactly it, through any door."""

    index: Index
    request: GenerationRequest


@dataclass(frozen=True)
class Impossible:
    """A cell that cannot be computed. The last number of ``index`` is 0: no picture of it can."""

    index: Index
    reason: str  # for a person


@dataclass(frozen=True)
class Plan:
    """All cells of a grid.

    ``grid`` has nothing left to chance: planned again, it gives the same cells. An axis that is not used
    has one value, with no label, and the title "".
    """

    grid: Grid
    titles: tuple[str, str, str]
    x: tuple[Value, ...]
    y: tuple[Value, ...]
    z: tuple[Value, ...]
    cells: tuple[Cell, ...]  # in run order
    impossible: tuple[Impossible, ...]
    net_calls: int  # of all cells; what they share counts once
    model_switches: int
    varied: frozenset[str]  # fields that no cell has from the base
    notes: tuple[str, ...]  # for a person: values given twice


@dataclass(frozen=True)
class _Axis:
    name: str
    kind: AxisKind | None
    values: tuple[Value, ...]
    given: int = 1  # values before equal ones were collapsed

    @property
    def title(self) -> str:
        return self.kind.label if self.kind else ""

    @property
    def cost(self) -> int:
        return self.kind.cost if self.kind else 0


def plan(
    grid: Grid,
    known: Known,
    check: Callable[[GenerationRequest], None],
    available: Mapping[str, AxisKind] | None = None,
) -> Plan:
    """The cells of a grid.

    A seed of -1 is drawn once: all cells share it, unless the seed is an axis.

    Args:
        check: raises :class:`InvalidField` for a request that cannot be computed; such cells are left out.
        available: the axes there are; None: :func:`~webui.grid.axes.kinds`.

    Raises:
        InvalidField: an axis is wrong (its ``field`` is "x", "y" or "z"); there are too many cells; no
            cell can be computed; an axis changes nothing.
    """
    available = kinds() if available is None else available
    grid = _settled(grid, known, available)
    x, y, z = axes = [_axis(name, grid, known, available) for name in AXES]
    _check_axes(axes, grid)
    applied = sorted(axes, key=lambda axis: _place(axis, available))
    found, impossible = _cells(grid, axes, applied, check)
    _check_effect(axes, found)
    cells, blocks = _in_run_order(found, axes)
    return Plan(
        grid=grid,
        titles=(x.title, y.title, z.title),
        x=x.values,
        y=y.values,
        z=z.values,
        cells=cells,
        impossible=tuple(impossible),
        net_calls=_net_calls({cell.request for cell in cells}),
        model_switches=blocks - 1,
        varied=frozenset(field for axis in axes if axis.kind for field in axis.kind.overwrites),
        notes=tuple(_notes(axes)),
    )


# Reading the axes


def _settled(grid: Grid, known: Known, available: Mapping[str, AxisKind]) -> Grid:
    """With every seed drawn that a cell may use, and every "all" spelt out."""
    varied = grid.base.variation_strength or "variation_strength" in (grid.x.kind, grid.y.kind, grid.z.kind)
    base = grid.base.replace(
        num_images_per_prompt=1,
        seed=drawn(grid.base.seed),
        variation_seed=drawn(grid.base.variation_seed) if varied else RANDOM_SEED,
    )
    x, y, z = (_settled_axis(name, grid.axis(name), known, available) for name in AXES)
    return replace(grid, base=base, x=x, y=y, z=z)


def _settled_axis(name: str, spec: AxisSpec, known: Known, available: Mapping[str, AxisKind]) -> AxisSpec:
    kind = available.get(spec.kind)
    if kind is None:
        return spec
    with _naming(name, kind):
        return replace(spec, text=kind.settle(spec.text, known))


def _axis(name: str, grid: Grid, known: Known, available: Mapping[str, AxisKind]) -> _Axis:
    spec = grid.axis(name)
    if not spec.kind:
        return _Axis(name, None, (Value("", None),))
    kind = available.get(spec.kind)
    if kind is None:
        raise InvalidField(name, f"there is no axis named “{spec.kind[:60]}”", f"{name.upper()} axis")
    with _naming(name, kind):
        given = kind.parse(spec.text, grid.base, known)
        if not given:
            raise InvalidField(name, "give at least one value")
        if len(given) > MAX_VALUES:
            raise InvalidField(name, f"has {len(given)} values; at most {MAX_VALUES} are taken")
    distinct = tuple(Value(kind.show(value), value) for value in dict.fromkeys(given))
    return _Axis(name, kind, distinct, len(given))


@contextmanager
def _naming(name: str, kind: AxisKind) -> Iterator[None]:
    """Let errors name the axis as the page does: "X (CFG scale)"."""
    try:
        yield
    except InvalidField as error:
        raise InvalidField(name, error.message, f"{name.upper()} ({kind.label})") from None


def _check_axes(axes: Iterable[_Axis], grid: Grid) -> None:
    used = [(axis, axis.kind) for axis in axes if axis.kind]
    if not used:
        raise InvalidField("x", "choose what varies", "X axis")
    for n, (axis, kind) in enumerate(used):
        for other, before in used[:n]:
            again = kind is before and grid.axis(axis.name).text == grid.axis(other.name).text
            if again or set(kind.overwrites) & set(before.overwrites):
                with _naming(axis.name, kind):
                    raise InvalidField(axis.name, f"{before.label} varies along {other.name.upper()} already")
    count = math.prod(len(axis.values) for axis in axes) * grid.per_cell
    if count > MAX_CELLS:
        raise InvalidField("grid", f"has {count:,} pictures; at most {MAX_CELLS:,} are taken", "Grid")


def _notes(axes: Iterable[_Axis]) -> Iterator[str]:
    for axis in axes:
        if axis.kind and (twice := axis.given - len(axis.values)):
            were = "1 value was" if twice == 1 else f"{twice} values were"
            yield f"{axis.name.upper()} ({axis.kind.label}): {were} given before and count once."


# Making the cells


def _place(axis: _Axis, available: Mapping[str, AxisKind]) -> int:
    """Where among all axes this one is applied: a whole prompt before what is replaced in it."""
    return list(available).index(axis.kind.name) if axis.kind else -1


def _cells(
    grid: Grid, axes: list[_Axis], applied: list[_Axis], check: Callable[[GenerationRequest], None]
) -> tuple[list[Cell], list[Impossible]]:
    """Every cell, possible or not, row by row and page by page.

    Raises:
        InvalidField: none is possible; why the first is not.
    """
    found: list[Cell] = []
    impossible: list[Impossible] = []
    error: InvalidField | None = None
    x, y, z = (range(len(axis.values)) for axis in axes)
    for k, j, i in product(z, y, x):
        at = {"x": i, "y": j, "z": k}
        try:
            request = _request(grid.base, [(axis, at[axis.name]) for axis in applied])
            check(request)
        except InvalidField as why:
            error = error or why
            impossible.append(Impossible((i, j, k, 0), str(why)))
        else:
            found += [Cell((i, j, k, n), request.picture(n) if n else request) for n in range(grid.per_cell)]
    if error and not found:
        raise error
    return found, impossible


def _request(base: GenerationRequest, places: Iterable[tuple[_Axis, int]]) -> GenerationRequest:
    """The request of one cell, validated as a whole.

    Raises:
        InvalidField: there is no such request.
    """
    request = base
    for axis, place in places:
        if axis.kind:
            with _naming(axis.name, axis.kind):
                request = axis.kind.apply(request, axis.values[place].value)
    varied = request.variation_strength > 0  # else the engine completes it so
    return request.replace(variation_seed=request.variation_seed if varied else RANDOM_SEED)


def _check_effect(axes: Iterable[_Axis], cells: list[Cell]) -> None:
    """Refuse an axis that would show the same picture all along.

    Raises:
        InvalidField: why it would.
    """
    for axis in axes:
        if axis.kind and len(axis.values) > 1:
            reasons = {axis.kind.idle(cell.request) for cell in cells}
            if "" not in reasons:
                with _naming(axis.name, axis.kind):
                    raise InvalidField(axis.name, reasons.pop())


def net_calls(request: GenerationRequest) -> int:
    """As :mod:`webui.diffusion.generate` counts them: both halves of CFG are one call."""
    return schedulers.calls(request)


def _net_calls(requests: set[GenerationRequest]) -> int:
    """Of all together: requests that differ only in the guidance scale share their first call."""
    return sum(map(net_calls, requests)) - len(requests) + len({request.beginning for request in requests})


def _in_run_order(cells: list[Cell], axes: list[_Axis]) -> tuple[tuple[Cell, ...], int]:
    """The cells in run order, and how many models' blocks they make."""
    x, y, z = (axis.cost for axis in axes)
    # Slowest first: the dearest axis; among equals the picture, then pages, rows and columns.
    ranks = sorted([(-COST, 0, 3), (-z, 1, 2), (-y, 2, 1), (-x, 3, 0)])
    ranked = sorted(cells, key=lambda cell: [cell.index[dimension] for *_, dimension in ranks])
    blocks: dict[str, list[Cell]] = {}
    for cell in ranked:
        blocks.setdefault(cell.request.model, []).append(cell)
    return tuple(cell for block in blocks.values() for cell in _corners_first(block)), len(blocks)


def _corners_first(block: list[Cell]) -> list[Cell]:
    ends = [{min(line), max(line)} for line in zip(*(cell.index[:3] for cell in block), strict=True)]

    def inside(cell: Cell) -> bool:
        *place, picture = cell.index
        return picture > 0 or not all(at in end for at, end in zip(place, ends, strict=True))

    return sorted(block, key=inside)


# A grid in the infotext of its sheet

_SCRIPT = "X/Y/Z plot"  # A1111's
_TYPES = {  # A1111's names of axes
    "Prompt S/R": "prompt_replace",
    "Prompt order": "prompt_order",
    "Checkpoint name": "model",
    "Sampler": "scheduler",
    "Schedule type": "sigma_schedule",
    "Steps": "num_inference_steps",
    "CFG Scale": "guidance_scale",
    "Eta": "eta",
    "Seed": "seed",
    "Var. seed": "variation_seed",
    "Var. strength": "variation_strength",
    "Size": "size",
    "Clip skip": "clip_skip",
    "Hires steps": "hires_steps",
    "Hires upscaler": "hires_upscaler",
    "Denoising": "strength",
    "Nothing": "",
}
_WRITTEN = {kind: name for name, kind in _TYPES.items() if kind}


def pairs(grid: Grid) -> dict[str, str]:
    """What :func:`webui.infotext.write` is given as ``extra``, so that a sheet restores its axes.

    With A1111's keys and names, where it has them; our own names of the axes otherwise.
    """
    found = {"Script": _SCRIPT}
    for name in AXES:
        spec = grid.axis(name)
        if spec.kind:
            found |= {
                f"{name.upper()} Type": _WRITTEN.get(spec.kind, spec.kind),
                f"{name.upper()} Values": spec.text,
            }
    return found | ({"Pictures per cell": str(grid.per_cell)} if grid.per_cell > 1 else {})


def from_infotext(text: str) -> Grid | None:
    """The grid whose sheet holds this text, one of ours or A1111's; None if it is no grid's.

    Raises:
        InvalidField: its settings are out of range.
    """
    reading = read(text)
    if reading.unknown.get("Script") != _SCRIPT:
        return None
    x, y, z = (_read_axis(name.upper(), reading) for name in AXES)
    per_cell = reading.unknown.get("Pictures per cell", "")
    return Grid(reading.request(), x, y, z, int(per_cell) if re.fullmatch("[1-9][0-9]{0,3}", per_cell) else 1)


def _read_axis(name: str, reading: Reading) -> AxisSpec:
    type_ = reading.unknown.get(f"{name} Type", "")
    kind = _TYPES.get(type_, type_)
    if kind == "strength" and "hires_scale" in reading.fields:  # A1111 has one for both tabs
        kind = "hires_strength"
    # A1111 keeps the seeds it drew apart from what was typed.
    text = reading.unknown.get(f"Fixed {name} Values") or reading.unknown.get(f"{name} Values", "")
    return AxisSpec(kind, text)
