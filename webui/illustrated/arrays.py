"""Every array of the run: its shape, what its numbers are, and how much memory they take."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from webui.flight import FlightRecord
from webui.illustrated.checks import Check


@dataclass(frozen=True)
class Row:
    name: str  # for a person
    shape: tuple[int, ...]
    dtype: str  # as torch names it
    bytes: int
    smaller: float | None  # how many times fewer numbers than the picture, of one picture's latents


def rows(record: FlightRecord) -> list[Row]:
    return [
        Row(note.name, note.shape, note.dtype, note.bytes, _smaller(record, note.shape))
        for note in record.arrays
    ]


def itemsize(dtype: str) -> int:
    """Bytes of one number, by the bits that its name says ("bfloat16", "float8_e4m3fn"); 0: not known."""
    bits = re.search(r"\d+", dtype)
    if bits is None:
        return int(dtype == "bool")
    return int(bits[0]) // 8


def compression(record: FlightRecord) -> float:
    """Numbers of the picture for each of its latents: 48 for Stable Diffusion, 8 x 8 x 3 / 4."""
    return record.picture.size / record.final.size


def checks(record: FlightRecord) -> list[Check]:
    """The last is left out where a second pass made the picture larger than these latents are."""
    found = []
    for row in rows(record):
        error = abs(math.prod(row.shape) * itemsize(row.dtype) - row.bytes)
        found.append(Check(f"{row.name}: product of its shape · bytes of a number = its bytes", error, 0))
    channels, height, width = record.final.shape
    if record.picture.shape[:2] == (height * record.scale, width * record.scale):
        expected = 3 * record.scale**2 / channels
        name = f"numbers of the picture / latents = 3 · {record.scale}² / {channels} = {expected:g}"
        found.append(Check(name, abs(compression(record) - expected), 0))
    return found


def _smaller(record: FlightRecord, shape: tuple[int, ...]) -> float | None:
    if shape[-3:] != record.final.shape:
        return None
    return compression(record)
