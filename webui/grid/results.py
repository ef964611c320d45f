"""What a grid has come to: its plan, its pictures and numbers; and these as a ZIP and as a table.

What leaves the house is made from this one noun: files (here), sheets (:mod:`webui.grid.sheet`) and a page
(:mod:`webui.grid.page`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from itertools import product
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from PIL import Image

from webui import filenames, infotext, units
from webui.grid.axes import figure
from webui.grid.measures import MEASURES, Numbers
from webui.grid.plan import Index, Plan, pairs
from webui.request import LABELS, GenerationRequest

Size = tuple[int, int]  # pixels

NOT_COMPUTED = "Not computed yet"
_UNNAMED = {"prompt", "negative_prompt", "image", "mask_image", "reference_image", "num_images_per_prompt",
            "width", "height", "plugins", *(f"{stem}_image" for stem in units.STEMS)}  # fmt: skip
_ALWAYS = {"scheduler", "sigma_schedule", "num_inference_steps", "guidance_scale", "seed"}
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # OWASP, "CSV injection"


@dataclass(frozen=True)
class Results:
    """A grid so far.

    ``pictures`` are files as they were saved; ``reasons`` say of others why they failed; what is in neither
    was not computed. ``model`` and ``model_hash`` are those of the base settings.
    """

    plan: Plan
    pictures: Mapping[Index, Path]
    reasons: Mapping[Index, str] = field(default_factory=dict)
    numbers: Mapping[Index, Numbers] = field(default_factory=dict)
    stars: frozenset[Index] = frozenset()
    model: str = ""
    model_hash: str = ""

    def indices(self) -> Iterator[Index]:
        """Of all pictures, possible or not: page by page, row by row."""
        plan = self.plan
        sizes = len(plan.z), len(plan.y), len(plan.x), plan.grid.per_cell
        return ((x, y, z, k) for z, y, x, k in product(*map(range, sizes)))

    def labels(self, index: Index) -> list[tuple[str, str]]:
        """(axis, value), of each axis there is."""
        plan = self.plan
        axes = zip(plan.titles, (plan.x, plan.y, plan.z), index[:3], strict=True)
        return [(title, values[at].label) for title, values, at in axes if title]

    @cached_property
    def requests(self) -> Mapping[Index, GenerationRequest]:
        """Of every possible cell."""
        return {cell.index: cell.request for cell in self.plan.cells}

    def reason(self, index: Index) -> str:
        """Why there is no picture."""
        x, y, z, _ = index
        return self.reasons.get(index) or self._impossible.get((x, y, z, 0), NOT_COMPUTED)

    @cached_property
    def _impossible(self) -> Mapping[Index, str]:
        return {one.index: one.reason for one in self.plan.impossible}

    def settings(self) -> list[tuple[str, str]]:
        """(label, value) of what all cells share."""
        base = self.plan.grid.base
        base = base.replace(model=base.model or self.model)
        return described(base, without=self.plan.varied)

    def infotext(self) -> str:
        """Of a sheet: the base settings, and the axes, which it restores."""
        base = self.plan.grid.base
        return infotext.write(base, base.model or self.model, self.model_hash, extra=pairs(self.plan.grid))


def described(request: GenerationRequest, without: frozenset[str] = frozenset()) -> list[tuple[str, str]]:
    """(label, value) of the settings a person would name, but for the prompts: not those at their default."""
    found = {}
    for setting, info in GenerationRequest.model_fields.items():
        value = getattr(request, setting)
        if setting not in without | _UNNAMED and (setting in _ALWAYS or value != info.default):
            found[LABELS[setting]] = figure(value)
    sides = [side for side in ("width", "height") if side not in without]
    if len(sides) == 2:
        found["Size"] = f"{request.width}x{request.height}"
    else:
        found |= {LABELS[side]: figure(getattr(request, side)) for side in sides}
    found |= {setting: figure(value) for setting, value in request.plugins if setting not in without}
    return list(found.items())


def size(path: Path) -> Size | None:
    """Width and height of a picture's file; None if it has gone, or is none."""
    try:
        with Image.open(path) as image:
            return image.size
    except OSError:
        return None


def name(results: Results, index: Index) -> str:
    """A file's name: sorts as the grid does, says the values, and fits every disk."""
    x, y, z, k = index
    plan = results.plan
    sizes = {
        "z": (z, len(plan.z)),
        "y": (y, len(plan.y)),
        "x": (x, len(plan.x)),
        "n": (k, plan.grid.per_cell),
    }
    place = "-".join(f"{axis}{at + 1:0{len(str(count))}}" for axis, (at, count) in sizes.items() if count > 1)
    values = ", ".join(f"{title} {label[:40]}" for title, label in results.labels(index))
    ending = results.pictures[index].suffix.lower() if index in results.pictures else ""
    return filenames.stem("[name]", {"name": f"{place} {values}"}) + ending


def write_zip(results: Results, path: Path) -> None:
    """All pictures byte for byte, with the table and the grid's description. Streams: memory stays small.

    A picture whose file has gone is left out.

    Raises:
        OSError: it cannot be written.
    """
    with ZipFile(path, "w", ZIP_STORED, strict_timestamps=False) as archive:
        for index in results.indices():
            picture = results.pictures.get(index)
            if picture and picture.is_file():
                archive.write(picture, name(results, index))
        grid = json.dumps(results.plan.grid.to_dict(), ensure_ascii=False, indent=1)
        archive.writestr("grid.json", grid, ZIP_DEFLATED)
        archive.writestr("numbers.csv", table(results), ZIP_DEFLATED)


def table(results: Results) -> bytes:
    """One row a picture, as CSV: UTF-8 with a mark, without which Excel guesses another encoding.

    Texts that a spreadsheet would run as a formula begin with an apostrophe.
    """
    text = StringIO()
    writer = csv.writer(text)
    axes = [f"{axis}: {title}" for axis, title in zip("XYZ", results.plan.titles, strict=True) if title]
    measures = [measure.label for measure in MEASURES.values()]
    writer.writerow(map(_cell, [*axes, "Picture", "Seed", *measures, "Star", "File", "Why there is none"]))
    for index in results.indices():
        writer.writerow(map(_cell, _row(results, index)))
    return text.getvalue().encode("utf-8-sig")


def _row(results: Results, index: Index) -> list[object]:
    labels = [label for _, label in results.labels(index)]
    request, picture = results.requests.get(index), results.pictures.get(index)
    numbers = results.numbers.get(index)
    return [
        *labels,
        index[3] + 1,
        request.seed if request else None,
        *(getattr(numbers, field, None) for field in MEASURES),
        "*" if index in results.stars else "",
        name(results, index) if picture else "",
        "" if picture else results.reason(index),
    ]


def _cell(value: object) -> object:
    """What a spreadsheet shows, and does not run. Numbers stay numbers."""
    if not isinstance(value, str) or not value.lstrip().startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
