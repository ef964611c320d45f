"""A grid as one HTML file that opens from a disk: pictures inside, no server, no network.

Its own Content-Security-Policy allows the one script and the one style sheet written here, by their hash,
and pictures inside the file; nothing else, least of all what a prompt may hold.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from webui.grid.measures import MEASURES
from webui.grid.plan import Index
from webui.grid.results import Results, Size, described, size

_HERE = Path(__file__).parent
_CHUNK = 3 * 2**18  # bytes read at once; divisible by 3, so that base64 can be joined
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def write(results: Results, path: Path) -> None:
    """The whole grid as one HTML file. Streams: one picture at a time is in memory.

    Pictures are inside byte for byte as they were saved, with their own infotext.

    Raises:
        OSError: it cannot be written.
    """
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for part in _parts(results):
            file.write(part)


def _parts(results: Results) -> Iterator[str]:
    sizes = {index: found for index, path in results.pictures.items() if (found := size(path))}
    texts = _texts(results, sizes)
    before, after = (_HERE / "page.html").read_text("utf-8").split("<!-- the grid -->")
    yield Template(before).substitute(texts)
    for z in range(len(results.plan.z)):
        yield from _table(results, z, sizes)
    yield Template(after).substitute(texts)


def _texts(results: Results, sizes: Mapping[Index, Size]) -> dict[str, str]:
    """What stands in the page besides the grid; escaped."""
    plan, base = results.plan, results.plan.grid.base
    script, style = (_HERE.joinpath(name).read_text("utf-8") for name in ("page.js", "page.css"))
    negative = "" if "negative_prompt" in plan.varied else base.negative_prompt
    return {
        "policy": _policy(script, style),
        "script": script,
        "style": style,
        "data": _data(results, sizes),
        "title": escape(f"{' × '.join(filter(None, plan.titles))}: {base.prompt[:80]}"),
        "prompt": "" if "prompt" in plan.varied else escape(base.prompt),
        "negative_prompt": escape(f"Negative prompt: {negative}") if negative else "",
        "settings": escape(_joined(results.settings())),
        "page_title": escape(plan.titles[2]),
        "pages": _options((str(z), value.label) for z, value in enumerate(plan.z)),
        "measures": _options((field, MEASURES[field].label) for field in _measured(results)),
        "no_pages": "hidden" if len(plan.z) == 1 else "",
        "no_stars": "" if results.stars else "hidden",
    }


def _options(values: Iterable[tuple[str, str]]) -> str:
    return "".join(f'<option value="{escape(value)}">{escape(label)}</option>' for value, label in values)


def _measured(results: Results) -> list[str]:
    """The measures that any picture has."""
    numbers = results.numbers.values()
    return [field for field in MEASURES if any(getattr(one, field) is not None for one in numbers)]


def _policy(script: str, style: str) -> str:
    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; script-src 'sha256-{digest(script)}'; "
        f"style-src 'sha256-{digest(style)}'; base-uri 'none'; form-action 'none'"
    )


# The grid


def _table(results: Results, z: int, sizes: Mapping[Index, Size]) -> Iterator[str]:
    plan = results.plan
    arrows = zip(plan.titles, ("→", "↓"), strict=False)
    corner = "<br>".join(escape(f"{title} {arrow}") for title, arrow in arrows if title)
    heads = "".join(f'<th scope="col">{_label(value.label)}</th>' for value in plan.x)
    yield f'<table data-z="{z}"><thead><tr><th class="corner">{corner}</th>{heads}</tr></thead><tbody>\n'
    for y, value in enumerate(plan.y):
        yield f'<tr><th scope="row">{_label(value.label)}</th>'
        for x in range(len(plan.x)):
            yield '<td><div class="cell">'
            for k in range(plan.grid.per_cell):
                yield from _picture(results, (x, y, z, k), sizes)
            yield "</div></td>"
        yield "</tr>\n"
    yield "</tbody></table>\n"


def _label(text: str) -> str:
    return f'<div class="label">{escape(text)}</div>'


def _picture(results: Results, index: Index, sizes: Mapping[Index, Size]) -> Iterator[str]:
    if index not in sizes:
        yield f'<div class="blank">{escape(results.reason(index))}</div>'
        return
    path, (width, height) = results.pictures[index], sizes[index]
    kind, alt = _TYPES.get(path.suffix.lower(), "image/png"), escape(_name(results, index))
    yield f'<button class="picture" data-cell="{_key(index)}">'
    yield f'<img width="{width}" height="{height}" decoding="async" alt="{alt}" src="data:{kind};base64,'
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            yield base64.b64encode(chunk).decode()
    star = '<span class="star" aria-label="starred">★</span>' if index in results.stars else ""
    yield f'"><span class="number" hidden></span>{star}</button>'


# What the script reads


def _data(results: Results, sizes: Mapping[Index, Size]) -> str:
    """JSON without a sign that could end the element it stands in."""
    data = {
        "across": _across(results.plan.grid.per_cell),
        "wide": max((width for width, _ in sizes.values()), default=256),
        "measures": {field: measure.note for field, measure in MEASURES.items()},
        "cells": {_key(index): _about(results, index) for index in results.indices() if index in sizes},
    }
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _about(results: Results, index: Index) -> dict[str, Any]:
    numbers = results.numbers.get(index)
    shown = {
        field: (value, measure.show(value))
        for field, measure in MEASURES.items()
        if numbers and (value := getattr(numbers, field)) is not None
    }
    request = results.requests[index]
    lines = [
        _joined(results.labels(index)),
        request.prompt,
        request.negative_prompt and f"Negative prompt: {request.negative_prompt}",
        _joined(described(request)),
        _joined([(MEASURES[field].label, text) for field, (_, text) in shown.items()]),
    ]
    return {
        "name": _name(results, index),
        "text": "\n".join(filter(None, lines)),
        "numbers": shown,
        "star": index in results.stars,
    }


def _name(results: Results, index: Index) -> str:
    picture = [("Picture", str(index[3] + 1))] if results.plan.grid.per_cell > 1 else []
    return _joined(results.labels(index) + picture)


def _joined(pairs: list[tuple[str, str]]) -> str:
    return ", ".join(f"{label}: {value}" for label, value in pairs)


def _key(index: Index) -> str:
    return ",".join(map(str, index))


def _across(per_cell: int) -> int:
    """Pictures side by side in a cell: as near to a square as it goes."""
    return next(n for n in range(1, per_cell + 1) if n * n >= per_cell)
