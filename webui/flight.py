"""The flight record: everything that happened while one picture was made, to be looked at again at leisure.

It is written once, by watching (:mod:`webui.diffusion.recorder`), and read by the pure functions of
:mod:`webui.illustrated`, with no model and no device. Numbers are as the run had them, float32, so that what
is shown can be checked against what was computed.

K calls of the net, C channels of latents, h x w latent pixels, T tokens, H x W pixels of a picture.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from webui.request import GenerationRequest

VERSION = 1
MAX_BYTES = 512 * 2**20  # of a record, unpacked
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
    guesses: Pixels | None  # (K, H', W', 3): each x0 through the VAE; None where that costs too much
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

    def to_bytes(self) -> bytes:
        """As a NumPy archive (``.npz``) without pickles: arrays by name, all else as JSON in ``about``."""
        arrays: dict[str, Any] = {}
        about: dict[str, Any] = {"version": VERSION}
        for name in (each.name for each in fields(self)):
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                arrays[name] = value
            else:
                about[name] = _plain(value)
        buffer = io.BytesIO()
        text = json.dumps(about).encode()
        np.savez_compressed(buffer, about=np.frombuffer(text, np.uint8), **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> FlightRecord:
        """The inverse of :meth:`to_bytes`.

        Raises:
            ValueError: this is no such file, it is damaged, of another version, or too large.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                    raise ValueError("a flight record too large to open")
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                held = {name: archive[name] for name in archive.files}
            about = json.loads(held.pop("about").tobytes())
            if about.pop("version") != VERSION:
                raise ValueError("a flight record of another version")
            about["request"] = GenerationRequest(**about["request"])
            about["arrays"] = tuple(
                ArrayNote(**{**note, "shape": tuple(note["shape"])}) for note in about["arrays"]
            )
            about |= {name: tuple(about[name]) for name in ("tokens", "notes")}
            record = cls(**about, **held)
        except (zipfile.BadZipFile, KeyError, TypeError, AttributeError, OSError, EOFError) as error:
            raise ValueError("no flight record, or a damaged one") from error
        record._check()
        return record

    def _check(self) -> None:
        """
        Raises:
            ValueError: the arrays do not belong together.
        """
        calls = len(self.timesteps)
        of_calls = (
            *(self.steps, self.signal, self.noise, self.latents, self.cond, self.uncond, self.guided),
            *(self.guesses, self.attention, self.padding),
        )
        alike = (self.cond, self.uncond, self.guided)
        if (
            calls < 1
            or any(each is not None and len(each) != calls for each in of_calls)
            or any(each is not None and each.shape != self.latents.shape for each in alike)
            or self.final.shape != self.latents.shape[1:]
            or self.to_rgb.shape != (3, self.latents.shape[1] + 1)
            or (self.attention is not None and self.attention.shape[1] != len(self.tokens))
        ):
            raise ValueError("a flight record whose arrays do not belong together")


def _plain(value: Any) -> Any:
    """For JSON."""
    if isinstance(value, GenerationRequest):
        return value.model_dump(mode="json")
    if isinstance(value, tuple) and value and isinstance(value[0], ArrayNote):
        return [vars(note) for note in value]
    return dict(value) if isinstance(value, Mapping) else value
