"""What a weights file says of itself in its first bytes: no weight is read, and no pickle is opened.

A .safetensors file is eight bytes (the header's length N, little-endian), N bytes of JSON, and the weights:
https://github.com/huggingface/safetensors, "Format". The JSON maps each tensor's name to its ``dtype``,
``shape`` and ``data_offsets`` (from where to where, counted from the end of the header), and
``__metadata__`` to texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

MAX_HEADER = 100_000_000  # bytes: the format's own limit
PEEK = 512
# Bits of one number. Types that are not here are listed without a check of their size.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
PRECISIONS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8",
}  # fmt: skip

PICKLE = (
    "It is a pickle, which can run programs of its maker when it is opened, so it is left closed. "
    "Most such files can also be had as .safetensors."
)
GGUF = "It is a GGUF file, a quantised form that is not supported here. Ask for it as .safetensors."


class Unreadable(Exception):
    """The file is no sound .safetensors file. The message is a sentence for a person, without a path."""


class Foreign(Unreadable):
    """It is something else, which is known by its first bytes."""


class Tensor(NamedTuple):
    dtype: str  # as the file says it, such as "F16"
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """The tensors of a file by name, and what its maker wrote beside them."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the tensor called so; () if there is none."""
        tensor = self.tensors.get(name)
        return tensor.shape if tensor else ()

    @property
    def precision(self) -> str:
        """Of most numbers, as torch calls it; "" if there are none."""
        numbers: dict[str, int] = {}
        for dtype, shape in self.tensors.values():
            numbers[dtype] = numbers.get(dtype, 0) + math.prod(shape)
        most = max(numbers, key=numbers.__getitem__, default="")
        return PRECISIONS.get(most, most.lower())


def read(path: Path) -> Header:
    """
    Raises:
        Unreadable: it is damaged, or something else; says what.
        OSError: it cannot be read at all.
    """
    with path.open("rb") as file:
        start = file.read(PEEK)
        size = path.stat().st_size
        length = int.from_bytes(start[:8], "little")
        _check_start(start, size, length)
        file.seek(8)
        text = file.read(length)
    content = _json(text)
    metadata = content.pop("__metadata__", {})
    tensors = {name: _tensor(name, entry) for name, entry in content.items()}
    _check_layout(content, size - 8 - length)
    return Header(tensors, _texts(metadata))


def _check_start(start: bytes, size: int, length: int) -> None:
    """
    Raises:
        Unreadable: it cannot be a whole .safetensors file, by its first bytes and its size.
    """
    if not start:
        raise Foreign("It is empty.")
    has_header = start[8:9] == b"{" and 2 <= length <= MAX_HEADER
    if has_header and length <= size - 8:
        return
    if problem := sort(start):
        raise Foreign(problem)
    if has_header:
        raise Unreadable("It is cut short: not even its header is whole. Download or copy it again.")
    if length > MAX_HEADER:
        raise Unreadable(f"It is damaged: its header claims to be {length:,} bytes long.")
    raise Unreadable("It is no .safetensors file, and of no kind that is known here.")


def sort(start: bytes) -> str:
    """What a file that is not .safetensors is, by its first bytes, as a sentence; "" if that is not known."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"GGUF"):
        return GGUF
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return PICKLE
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "It is a web page, not a model: the download did not work, perhaps as it asks for a sign-in."
    if text.startswith(b"version https://git-lfs"):
        return "It is only a pointer of Git LFS, not the file itself. Run 'git lfs pull' in its folder."
    if text.startswith((b'{"error', b'{"message')):
        return "It is a server's error message, not a model: the download did not work."
    return ""


def _json(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, _Repeated) else "its header is not the JSON it should be"
        raise Unreadable(f"It is damaged: {what}.") from error
    if not isinstance(content, dict):
        raise Unreadable("It is damaged: its header is not an object.")
    return content


class _Repeated(ValueError):
    pass


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _Repeated("its header names something twice")
    return content


def _tensor(name: str, entry: Any) -> Tensor:
    """
    Raises:
        Unreadable: the entry is not one of a tensor, or its bytes do not fit its shape.
    """
    given: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = given.get("dtype"), given.get("shape"), given.get("data_offsets")
    if not (isinstance(dtype, str) and _sizes(shape) and _sizes(offsets)) or len(offsets) != 2:
        raise Unreadable(f"It is damaged: its header describes {_short(name)} wrongly.")
    bits = BITS.get(dtype)
    if bits is not None and (offsets[1] - offsets[0]) * 8 != math.prod(shape) * bits:
        raise Unreadable(f"It is damaged: the bytes of {_short(name)} do not fit its shape.")
    if offsets[1] < offsets[0]:
        raise Unreadable(f"It is damaged: {_short(name)} ends before it begins.")
    return Tensor(dtype, tuple(shape))


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return type(value) is list and all(type(number) is int and number >= 0 for number in value)


def _check_layout(content: Mapping[str, Any], room: int) -> None:
    """That the tensors lie one after another, without a gap, and end where the file does.

    Args:
        room: bytes after the header.
    """
    end = 0
    for start, stop, name in sorted((*entry["data_offsets"], name) for name, entry in content.items()):
        if stop > room:
            raise Unreadable("It is cut short: weights at its end are missing. Download or copy it again.")
        if start < end:
            raise Unreadable(f"It is damaged: {_short(name)} overlaps another tensor.")
        if start > end:
            raise Unreadable(f"It is damaged: there is a gap before {_short(name)}.")
        end = stop
    if end < room:
        raise Unreadable("It is damaged: there is something after its last tensor.")


def _texts(metadata: Any) -> dict[str, str]:
    """What of the metadata is texts, as all of it should be."""
    pairs = metadata.items() if isinstance(metadata, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, str)}


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:79]}…")
