"""The flight record: everything that happened while one picture was made, to be looked at again at leisure.

It is written once, by watching (:mod:`webui.diffusion.recorder`), and read by the pure functions of
:mod:`webui.illustrated`, with no model and no device. Numbers are as the run had them, float32, so that what
is shown can be checked against what was computed.

K calls of the net, C channels of latents, h x w latent pixels, T tokens, H x W pixels of a picture.
"""

from __future__ import annotations

import io
import json
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from webui.errors import WebuiError
from webui.request import GenerationRequest

VERSION = 1
MAX_BYTES = 512 * 2**20  # of a record, unpacked
MAX_ABOUT = 4 * 2**20  # bytes of what is no array
MAX_CALLS = 5000  # of the net: 1000 steps of the most that a solver takes in one, and some
MAX_TOKENS = 20_000
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ArrayNote:
    """An array that the run had, whether the record keeps it or not."""

    name: str  # what it is, for a person: "prompt embeddings"
    shape: tuple[int, ...]
    dtype: str  # as torch names it, without the "torch."
    bytes: int


@dataclass(frozen=True, eq=False)
class FlightRecord:
    """One picture: the first of its batch, in the first pass of its run.

    At call k the net was given ``latents[k]`` = signal[k] * x0 + noise[k] * eps, and said ``cond[k]`` with
    the prompt, ``uncond[k]`` with the negative prompt; ``guided[k]`` is what the scheduler was told. How such
    an output is read is ``prediction_type``: "epsilon", "v_prediction", "sample" or "flow_prediction".
    """

    request: GenerationRequest  # makes exactly this picture
    model: str
    model_hash: str  # SHA-256 of its weights, hexadecimal
    family: str  # one of webui.catalogue.found.Family
    device: str  # such as "cpu, float32, sdpa"
    versions: Mapping[str, str]  # of torch, diffusers and transformers
    prediction_type: str
    scale: int  # pixels of a latent pixel's side
    steps: NDArray[np.int32]  # (K,) which step each call belongs to, 0-based: Heun has two calls a step
    timesteps: Floats  # (K,) in training steps, 999 to 0
    signal: Floats  # (K,)
    noise: Floats  # (K,)
    latents: Floats  # (K, C, h, w)
    cond: Floats  # (K, C, h, w)
    uncond: Floats | None  # (K, C, h, w); None where nothing was guided
    guided: Floats  # (K, C, h, w)
    final: Floats  # (C, h, w), what the scheduler ended with, and the VAE was given
    to_rgb: Floats  # (3, C + 1): affine, from latents to colours in -1..1; last its offset
    guesses: Pixels | None  # (K, H, W, 3): each x0 through the VAE; None where that costs too much
    picture: Pixels  # (H, W, 3), as decoded, before anything that plugins do
    tokens: tuple[str, ...]  # (T,) of the prompt at the first step, with start and end, without padding
    attention: Floats | None  # (K, T, gh, gw): share of its attention that each place pays each token,
    # the mean over heads, and over the layers that look at the prompt; None where the net has no such layers
    padding: Floats | None  # (K, gh, gw): the share that goes to what follows the last token
    seconds: Mapping[str, float]  # by stage, in order: "prompt", "net", "scheduler", "vae"; and "watching"
    wall: float  # seconds of all of it
    arrays: tuple[ArrayNote, ...]
    notes: tuple[str, ...] = ()  # what of the run is not in here, for a person
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)  # its ``_class_name``, and how its
    # options differ from the checkpoint's own: webui.diffusion.schedulers.changes; empty where not known
    additions: Mapping[str, str] = field(default_factory=dict)  # to the model, as a picture's text names them

    def to_bytes(self) -> bytes:
        """As a NumPy archive (``.npz``) without pickles: arrays by name, all else as JSON in ``about``."""
        arrays: dict[str, Any] = {}
        about: dict[str, Any] = {"version": VERSION}
        for name in (each.name for each in fields(self)):
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                arrays[name] = np.ascontiguousarray(value)
            else:
                about[name] = _plain(value)
        buffer = io.BytesIO()
        text = json.dumps(about).encode()
        np.savez_compressed(buffer, about=np.frombuffer(text, np.uint8), **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> FlightRecord:
        """The inverse of :meth:`to_bytes`. Its arrays cannot be written to.

        Raises:
            ValueError: this is no such file, it is damaged, of another version, or too large.
        """
        try:
            arrays: dict[str, Any] = _unpacked(data)
            text = arrays.pop("about")
            if text.nbytes > MAX_ABOUT:
                raise _Refused("a flight record that says too much")
            about = json.loads(text.tobytes())
            if about.pop("version") != VERSION:
                raise _Refused("a flight record of another version")
            about["request"] = GenerationRequest(**about["request"])
            about["arrays"] = tuple(
                ArrayNote(**note | {"shape": tuple(note["shape"])}) for note in about["arrays"]
            )
            about |= {name: tuple(about[name]) for name in ("tokens", "notes")}
            record = cls(**about, **arrays)
            record._check()
        except _Refused:
            raise
        except _DAMAGED as error:
            raise _Refused("no flight record, or a damaged one") from error
        return record

    def _check(self) -> None:
        """
        Raises:
            ValueError: something is not of its kind, or the arrays do not belong together.
        """
        if len(self.timesteps) > MAX_CALLS or len(self.tokens) > MAX_TOKENS:
            raise _Refused("a flight record of too long a run")
        dimensions = {"3": 3, "T": len(self.tokens), "C+1": self.latents.shape[1] + 1}
        for name, (dtype, axes) in _ARRAYS.items():
            array = getattr(self, name)
            if array is None and name in _OPTIONAL:
                continue
            if array.dtype != dtype or not np.isfinite(array).all():
                raise _Refused(f"a flight record whose {name} are not numbers")
            for axis, size in zip(axes.split(), array.shape, strict=True):
                if size < 1 or dimensions.setdefault(axis, size) != size:
                    raise _Refused("a flight record whose arrays do not belong together")
        texts = (
            *(getattr(self, name) for name in _TEXTS),
            *self.tokens,
            *self.notes,
            *self.versions.values(),
        )
        texts += tuple(self.seconds) + tuple(text for note in self.arrays for text in (note.name, note.dtype))
        numbers = (self.scale, self.wall, *self.seconds.values())
        numbers += tuple(number for note in self.arrays for number in (*note.shape, note.bytes))
        if (
            not all(isinstance(text, str) for text in texts)
            or not all(math.isfinite(number) for number in numbers)
            or self.prediction_type not in PREDICTION_TYPES
            or (self.attention is None) != (self.padding is None)
            or not isinstance(self.scheduler_config, dict)
            or not isinstance(self.additions, dict)
        ):
            raise _Refused("a flight record that says something else than it should")


_ARRAYS: Mapping[str, tuple[type[np.generic], str]] = {  # name -> type, axes
    "steps": (np.int32, "K"),
    **dict.fromkeys(("timesteps", "signal", "noise"), (np.float32, "K")),
    **dict.fromkeys(("latents", "cond", "uncond", "guided"), (np.float32, "K C h w")),
    "final": (np.float32, "C h w"),
    "to_rgb": (np.float32, "3 C+1"),
    "guesses": (np.uint8, "K H W 3"),
    "picture": (np.uint8, "H W 3"),
    "attention": (np.float32, "K T gh gw"),
    "padding": (np.float32, "K gh gw"),
}
_OPTIONAL = ("uncond", "guesses", "attention", "padding")


class _Refused(ValueError):
    """Says why."""


_TEXTS = ("model", "model_hash", "family", "device")
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError, OSError, EOFError, WebuiError),
    *(KeyError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError, ValueError),
)


def _unpacked(data: bytes) -> dict[str, Any]:
    """The arrays of an archive. What it says of its sizes is looked at before anything is unpacked.

    Raises:
        One of _DAMAGED: it is no archive of plain arrays, or too large.
    """
    arrays: dict[str, Any] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > MAX_BYTES:
            raise _Refused("a flight record too large to open")
        for entry in entries:
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _Refused("a flight record packed in another way")
            with archive.open(entry) as file:  # a size to read bounds what is unpacked at once
                arrays[entry.filename.removesuffix(".npy")] = _array(file.read(entry.file_size + 1))
    return arrays


def _array(data: bytes) -> NDArray[Any]:
    """Of an ``.npy`` file; nothing is allocated for what its header claims."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise _Refused("a flight record with an array of another version")
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
    if by_column or dtype not in (np.float32, np.int32, np.uint8):
        raise _Refused("a flight record with an array of another kind")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


def _plain(value: Any) -> Any:
    """For JSON."""
    if isinstance(value, GenerationRequest):
        return value.model_dump(mode="json")
    if isinstance(value, tuple) and value and isinstance(value[0], ArrayNote):
        return [vars(note) for note in value]
    return dict(value) if isinstance(value, Mapping) else value
