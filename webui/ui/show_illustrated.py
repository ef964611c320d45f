"""What the browser is told of a run that is watched: its progress, and of its record all that is drawn.

All numbers are those of :mod:`webui.illustrated`. Of at most :data:`MOST_SHOWN` calls there are pictures,
maps and colours; numbers there are of all. Arrays are base64 of little-endian numbers, the calls first.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from webui.flight import FlightRecord, Pixels
from webui.illustrated import arrays, bands, colours, guidance, path, reading, script, times, words
from webui.illustrated.checks import Check
from webui.jobs import JobView
from webui.request import LABELS
from webui.ui import show

Message = dict[str, Any]

MOST_SHOWN = 40  # calls
LARGEST = 256  # pixels: the side of a guess; the finished picture may have twice as many
LARGEST_MAP = 32  # places: the side of colours that are mixed in the browser, and of maps
SMALL = 64  # pixels: pictures up to this side are PNG
SETTLED = 0.1  # see webui.illustrated.path.settled
SCALES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0)
WHOLE = 65535  # a share of 1, in the browser
REST = "start, end and padding"


def state(view: JobView, note: str = "") -> Message:
    """How far a job is. ``note``: said instead of its own stage."""
    preview = base64.b64encode(view.preview).decode() if view.preview and not view.ended else ""
    return {
        "job": view.id,
        "ended": view.ended,
        "done": view.state == "done",
        "headline": note if note and not view.ended else show.headline_of(view),
        "details": show.details_of(view),
        "share": show.progress(view),
        "preview": preview and f"data:image/jpeg;base64,{preview}",
    }


def refused(message: str) -> Message:
    """Nothing was started, and why."""
    details = "Nothing was started. Everything you typed is still there."
    return {"job": "", "ended": True, "done": False, "headline": message, "details": details, "share": 0.0,
            "preview": ""}  # fmt: skip


def record(flight: FlightRecord, id: int | str) -> Message:
    """All that is drawn of a record. ``id``: a number, of its picture in the library; a text, of a file."""
    calls = len(flight.timesteps)
    shown = shown_of(calls)
    height, width = flight.picture.shape[:2]
    return {
        "id": id,
        "about": _about(flight),
        "calls": calls,
        "shown": shown,
        "steps": flight.steps.tolist(),
        "timesteps": _numbers(flight.timesteps),
        "signal": _numbers(flight.signal),
        "noise": _numbers(flight.noise),
        "prediction": flight.prediction_type,
        "picture": _uri(flight.picture, 2 * LARGEST),
        "width": width,
        "height": height,
        "film": _film(flight, shown),
        "path": {
            "change": _numbers(path.changes(flight)),
            "distance": _numbers(path.distance_to_end(flight)),
            "settled": path.settled(flight, SETTLED),
            "threshold": SETTLED,
        },
        "words": _words(flight, shown),
        "guidance": _guidance(flight, shown),
        "bands": _bands(flight),
        "arrays": [_array(row) for row in arrays.rows(flight)],
        "ratio": arrays.compression(flight),
        "time": {
            "stages": times.stages(flight),
            "wall": flight.wall,
            "net": flight.seconds.get("net", 0.0),
        },
        "script": asdict(script.script(flight)),
        "checks": {name: [_check(each) for each in found] for name, found in checks_of(flight).items()},
    }


def shown_of(calls: int) -> list[int]:
    """Which calls have pictures: evenly chosen, the first and the last among them."""
    return sorted({round(at) for at in np.linspace(0, calls - 1, min(calls, MOST_SHOWN))})


def checks_of(flight: FlightRecord) -> dict[str, list[Check]]:
    """By panel."""
    return {
        "film": reading.checks(flight),
        "words": words.checks(flight),
        "guidance": guidance.checks(flight),
        "bands": bands.checks(flight),
        "arrays": arrays.checks(flight),
        "time": times.checks(flight),
    }


def _about(flight: FlightRecord) -> Message:
    asked = flight.request
    facts = [
        ("Model", flight.model),
        (LABELS["scheduler"], asked.scheduler),
        (LABELS["num_inference_steps"], str(asked.num_inference_steps)),
        (LABELS["guidance_scale"], f"{asked.guidance_scale:g}"),
        (LABELS["seed"], str(asked.seed)),
        ("Device", flight.device),
        *((name, version) for name, version in flight.versions.items()),
    ]
    return {
        "prompt": asked.prompt,
        "negative": asked.negative_prompt,
        "scale": asked.guidance_scale,
        "seed": asked.seed,
        "facts": facts,
        "notes": list(flight.notes),
    }


def _film(flight: FlightRecord, shown: Sequence[int]) -> Message:
    """What the net was given and what it believed, as pictures."""
    given = colours.pixels(colours.linear(flight, flight.latents[shown]))
    if flight.guesses is not None:
        guess = flight.guesses[shown]
    else:
        guess = colours.pixels(colours.linear(flight, reading.x0(flight)[shown]))
    return {
        "given": [_uri(each, LARGEST) for each in given],
        "guess": [_uri(each, LARGEST) for each in guess],
        "decoded": flight.guesses is not None,
    }


def _guidance(flight: FlightRecord, shown: Sequence[int]) -> Message | None:
    found = guidance.guidance(flight)
    if found is None:
        return None
    cond, uncond = (
        _smaller(colours.linear(flight, reading.x0(flight, which)[shown])) for which in ("cond", "uncond")
    )
    scales = sorted({*SCALES, found.scale})
    clipped = [guidance.clipped(flight, call, scales) for call in shown]
    made = scales.index(found.scale)
    return {
        "grid": list(cond.shape[1:3]),
        "cond": _packed(cond, "<f4"),
        "uncond": _packed(uncond, "<f4"),
        "pull": _packed(_smaller(found.where[shown, :, :, None]), "<f4"),
        "size": _numbers(found.share),
        "scales": scales,
        "clipped": [_numbers(each) for each in clipped],
        "beyond": _numbers(each[made] for each in clipped),
    }


def _bands(flight: FlightRecord) -> Message:
    """A row for each band, the coarsest first; what is opposed to the end counts as nothing of it."""
    found = bands.bands(flight)
    waves = [flight.scale / edge for edge in found.edges]  # pixels
    return {
        "values": [_numbers(np.clip(band, 0, 1)) for band in found.coherence.T],
        "labels": [f"{longest:.0f}–{shortest:.0f} px" for longest, shortest in pairwise(waves)],
    }


def _words(flight: FlightRecord, shown: Sequence[int]) -> Message | None:
    """Shares of the attention by word, last of what is no word."""
    of_words, overlap = words.maps(flight), words.overlap(flight)
    if of_words is None or overlap is None or flight.attention is None:
        return None
    all_of_it = flight.attention.sum(axis=1) + (0 if flight.padding is None else flight.padding)
    parts = np.concatenate([of_words, (all_of_it - of_words.sum(axis=0))[None]])  # (W + 1, K, gh, gw)
    small = _smaller(np.moveaxis(parts, 0, -1))  # (K, gh, gw, W + 1)
    maps = np.moveaxis(small, -1, 1)
    uneven = of_words.mean(axis=1).std(axis=(1, 2))
    return {
        "words": [word.text for word in words.words(flight)],
        "rest": REST,
        "first": int(uneven.argmax()) if len(uneven) else 0,  # shown first: what has its own places
        "grid": list(maps.shape[2:]),
        "shares": _packed(_shares(maps[shown]), "<u2"),
        "mean": _packed(_shares(maps.mean(axis=0)), "<u2"),
        "overlap": [_numbers(line) for line in overlap],
    }


def _shares(maps: NDArray[Any]) -> NDArray[Any]:
    return np.asarray((np.clip(maps, 0, 1) * WHOLE).round())


def _array(row: arrays.Row) -> Message:
    return {**asdict(row), "shape": " × ".join(map(str, row.shape))}


def _check(check: Check) -> Message:
    """JSON has no infinity: what is not finite is said by null."""
    error = float(check.error)
    return {"name": check.name, "error": error if math.isfinite(error) else None,
            "tolerance": check.tolerance, "held": check.held}  # fmt: skip


# Numbers and pictures


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Seven significant digits, which is what float32 has; null for what is not finite."""
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in map(float, values)]


def _packed(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()


def _smaller(values: NDArray[Any]) -> NDArray[Any]:
    """(n, h, w, c) with no side longer than ``LARGEST_MAP``, by the mean of blocks, which keeps linear things
    linear; rows and columns that fill no block are left out."""
    n, height, width, c = values.shape
    block = math.ceil(max(height, width) / LARGEST_MAP)
    rows, columns = max(1, height // block), max(1, width // block)
    tall, wide = min(block, height), min(block, width)
    cut = values[:, : rows * tall, : columns * wide]
    return np.asarray(cut.reshape(n, rows, tall, columns, wide, c).mean(axis=(2, 4)))


def _uri(pixels: Pixels, longest: int) -> str:
    """(h, w, 3) as a picture inside the page."""
    image = Image.fromarray(pixels)
    if max(image.size) > longest:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    kind, options = ("png", {"optimize": True}) if max(image.size) <= SMALL else ("jpeg", {"quality": 90})
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
