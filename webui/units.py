"""Several ControlNets in one request. A unit is one of them with what it looks at.

A request has the fields of three; those of the first are the axes of a grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

STEMS = ("control", "control2", "control3")  # of the names of their fields
_LABELS = {
    "model": "ControlNet",
    "image": "Control picture",
    "preprocessor": "Preprocessor",
    "scale": "Control scale",
    "start": "Control start",
    "end": "Control end",
}


@dataclass(frozen=True)
class Unit:
    """``scale``: how much it counts; between ``start`` and ``end``, shares of the steps."""

    stem: str
    model: str
    image: str
    preprocessor: str
    scale: float
    start: float
    end: float

    def field(self, name: str) -> str:
        return f"{self.stem}_{name}"


def fields(stem: str) -> list[str]:
    """The names of a unit's fields."""
    return [f"{stem}_{name}" for name in _LABELS]


#: Of all units, as the page and a picture's text have them: "Control scale 2".
LABELS = {
    f"{stem}_{name}": label if number == 1 else f"{label} {number}"
    for number, stem in enumerate(STEMS, 1)
    for name, label in _LABELS.items()
}
FURTHER = frozenset(name for stem in STEMS[1:] for name in fields(stem))  # those of all but the first


def of(request: Any) -> tuple[Unit, ...]:
    """Those of a request that name a ControlNet."""
    every = (Unit(stem, *(getattr(request, name) for name in fields(stem))) for stem in STEMS)
    return tuple(unit for unit in every if unit.model)


def idle(values: Any) -> Iterator[str]:
    """The fields that say nothing, by a mapping of fields: those of units without a ControlNet."""
    for stem in STEMS:
        if not values.get(f"{stem}_model"):
            yield from fields(stem)


def problems(request: Any) -> Iterator[str]:
    """What is wrong with them, as "field: what"."""
    for unit in of(request):
        if not (unit.image or request.image):
            yield f"{unit.field('image')}: a ControlNet needs a picture to look at"
        if unit.start >= unit.end:
            yield f"{unit.field('end')}: must be more than {LABELS[unit.field('start')]}"
        if unit.preprocessor == "Inpaint" and request.task != "inpaint":
            yield f"{unit.field('preprocessor')}: Inpaint needs a mask"
