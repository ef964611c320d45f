"""A run, watched: what a :class:`webui.flight.FlightRecord` holds, taken while the picture is made.

Watching changes no bit of the picture. The net's predictions are copied as they pass by; attention is
reckoned anew beside the net, from the queries and keys that its own layers make, by hooks that are there
during a call of the net and at no other time; what each call guesses is decoded after the picture itself.

K calls of the net, C channels of latents, h x w latent pixels, H x W pixels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from types import MappingProxyType
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from webui import prompt_syntax
from webui.diffusion import schedulers
from webui.diffusion.attention import PLACES, Attention, Words, copied
from webui.diffusion.denoiser import NetCall, Prediction
from webui.diffusion.devices import Device, synchronise
from webui.diffusion.model import Model
from webui.diffusion.plugged import Plugged
from webui.diffusion.preview import Reading
from webui.errors import NotANumber, Unsupported
from webui.flight import MAX_BYTES, ArrayNote, FlightRecord
from webui.request import GenerationRequest, invalid

STAGES = ("prompt", "net", "scheduler", "vae", "watching", "other")
GUESSED_PIXELS = 64 * 256 * 256  # of all guesses of a run together, at most: each is decoded
OF_PLUGINS = {  # hook -> what a plugin that has it does to what is recorded
    "patch": "changes the net or the text encoder for this run",
    "attention": "changes how the net attends",
    "start": "chooses the latents that the run begins with",
    "guide": "changes the guided prediction, which need not be uncond + scale * (cond - uncond)",
    "step_end": "changes the latents after a step, which need not be what the scheduler made of them",
}


NOTHING: Mapping[str, str] = MappingProxyType({})


class Clock:
    """Seconds by stage since it was made. The innermost stage counts; all within "watching" is its own."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._within = ["other"]
        self.began = self._since = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.lap()
        self._within.append("watching" if self._within[-1] == "watching" else name)
        try:
            yield
        finally:
            self.lap()
            self._within.pop()

    def lap(self) -> None:
        """Count the time until now, what the device still had to do among it."""
        synchronise(self.device)
        now = time.perf_counter()
        self.seconds[self._within[-1]] += now - self._since
        self._since = now


class Recorder:
    """Watches the first pass of one run, and the clock of all of it. Made for it and thrown away.

    Args:
        pictures: the requests of the batch; the first is recorded.
        steps: of the first pass.
        scale: pixels of a latent pixel's side.
        refiner: takes over in the last pass.
        additions: what is added to the model, as a picture's text names it.

    Raises:
        Unsupported: the record would be too large.
    """

    def __init__(
        self,
        pictures: Sequence[GenerationRequest],
        model: Model,
        device: Device,
        plugged: Plugged,
        steps: int,
        scale: int,
        refiner: Model | None = None,
        additions: Mapping[str, str] = NOTHING,
    ) -> None:
        self.clock = Clock(device)
        self.pictures = pictures
        self.request = pictures[0]
        self.model = model
        self.device = device
        self.plugged = plugged
        self.steps = steps
        self.scale = scale
        self.additions = additions
        self.refiner = refiner if refiner is not None and not self.request.hires else None
        self.cells = self.request.height // scale, self.request.width // scale
        self.words = Words.of(model.encoder.towers[0], self.request.prompt, steps)
        self.calls = schedulers.net_calls(self.request.scheduler, steps)
        self.notes = list(self._told())
        self.arrays: dict[str, ArrayNote] = {}
        self.scheduler_config: Mapping[str, Any] = {}
        self.final: torch.Tensor | None = None  # (B, C, h, w), once the pass has ended
        self.picture: NDArray[np.uint8] | None = None
        self._kept: dict[str, list[Any]] = {}
        self._readings: list[Reading] = []
        self._layers = self._looking()
        self._attention: Attention | None = None  # of this call of the net
        self._shares: list[NDArray[np.float32]] | None = [] if self._layers else None
        self._check_size()

    @property
    def seconds(self) -> float:
        """What watching has taken so far."""
        return self.clock.seconds["watching"]

    def timed(self, model: Model) -> Model:
        """The same, whose VAE is timed."""

        @contextmanager
        def stage(part: Any) -> Iterator[None]:
            with ExitStack() as stack:
                if part == "vae":
                    stack.enter_context(self.clock.stage("vae"))
                stack.enter_context(model.stage(part))
                yield

        return replace(model, stage=stage)

    # During the run

    def begin(self, scheduler: Any) -> None:
        """The first pass begins, by this scheduler."""
        if self.final is None:
            self.scheduler_config = schedulers.changes(scheduler, self.model.scheduler_config)

    def calling(self, call: NetCall, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Let a net be called, and return what it says."""
        with ExitStack() as stack:
            with self.clock.stage("watching"):
                first = self.final is None and self._attention is None  # plugins may ask more than once
                if first and self._shares is not None:
                    self._attention = Attention(
                        self.cells, self.words, call, lambda: self.clock.stage("watching")
                    )
                    stack.enter_context(self._attention.watching(self._layers))
            with self.clock.stage("net"):
                output = make()
        if first and not self._kept:
            self._note("token ids", (self.words.rows, self.words.length), torch.int64)
            self._note("prompt embeddings", call.text.tokens.shape, call.text.tokens.dtype)
            if call.text.pooled is not None:
                self._note("summary of the prompt", call.text.pooled.shape, call.text.pooled.dtype)
            self._note("input of the net", call.given.shape, call.given.dtype)
            self._note("output of the net", output.shape, output.dtype)
        return output

    def watch(self, seen: Prediction, reading: Reading) -> None:
        """After each call of the first pass."""
        with self.clock.stage("watching"):
            if not self._kept:
                self._note("latents", seen.model_input.shape, seen.model_input.dtype)
            tensors = {
                "latents": seen.model_input,
                "cond": seen.cond,
                "uncond": seen.uncond,
                "guided": seen.guided,
            }
            numbers = {"steps": seen.step, "timesteps": float(seen.timestep)}
            for name, tensor in tensors.items():
                if tensor is not None:
                    self._kept.setdefault(name, []).append(copied(tensor[0]))
            for name, number in numbers.items():
                self._kept.setdefault(name, []).append(number)
            self._readings.append(reading)
            self._heed()

    def _heed(self) -> None:
        """Keep the attention of the call that has ended."""
        if self._shares is not None and self._attention is not None:
            shares = self._attention.shares
            if shares is None:
                self._shares = None
                self.notes.append(
                    "There is no attention: the layers of this net do not look at the prompt as they usually "
                    "do, or have too many places."
                )
            else:
                self._shares.append(shares)
        self._attention = None

    def end(self, latents: torch.Tensor) -> None:
        """After a pass, of which only the first counts: what it ended with, (B, C, h, w)."""
        if self.final is None:
            self.final = latents

    def saw(self, latents: torch.Tensor, images: Sequence[Image.Image]) -> None:
        """Latents were decoded: the pictures are those of the first pass, if the latents are."""
        if latents is self.final:
            self.picture = np.asarray(images[0])

    # After the run

    def finish(self, decode: Callable[[torch.Tensor], list[Image.Image]]) -> FlightRecord:
        """The record. ``decode``: the first pass's latents (B, C, h, w) to pictures, as the run does it."""
        assert self.final is not None
        with self.clock.stage("watching"):
            if self.picture is None:  # a second pass went on with the latents
                self.picture = np.asarray(decode(self.final[:1])[0])
            guesses = self._guesses(decode)
            preview, vae = self.model.preview, self.model.vae
            height, width = self.picture.shape[:2]
            self._note("input of the VAE", self.final.shape, vae.dtype)
            self._note("output of the VAE", (len(self.final), 3, height, width), vae.dtype)
            self._note("pixels", self.picture.shape, torch.uint8)
            shares = np.stack(self._shares) if self._shares else None
            kept = {name: np.stack(values) for name, values in self._kept.items()}
            fields: dict[str, Any] = {
                **{name: kept[name] for name in ("latents", "cond", "guided")},
                "uncond": kept.get("uncond"),
                "steps": kept["steps"].astype(np.int32),
                "timesteps": kept["timesteps"].astype(np.float32),
                "signal": np.array([reading.signal for reading in self._readings], np.float32),
                "noise": np.array([reading.noise for reading in self._readings], np.float32),
                "final": copied(self.final[0]),
                "to_rgb": copied(preview.affine()),
                "attention": None if shares is None else shares[:, :-1],
                "padding": None if shares is None else shares[:, -1],
                "model_hash": self.model.sha256,
            }
        self.clock.lap()
        return FlightRecord(
            request=self.request,
            model=self.model.name,
            family=self.model.family.name,
            device=str(self.device),
            versions={
                module.__name__: str(module.__version__) for module in (torch, diffusers, transformers)
            },
            prediction_type=schedulers.prediction_type(self.model.scheduler_config),
            scale=self.scale,
            guesses=guesses,
            picture=self.picture,
            tokens=self.words.texts,
            seconds=dict(self.clock.seconds),
            wall=time.perf_counter() - self.clock.began,
            arrays=tuple(self.arrays.values()),
            notes=tuple(self.notes),
            scheduler_config=self.scheduler_config,
            additions=dict(self.additions),
            **fields,
        )

    def _guesses(self, decode: Callable[[torch.Tensor], list[Image.Image]]) -> NDArray[np.uint8] | None:
        """(K, H, W, 3): the clean latents that each guided prediction means, decoded."""
        if not self._affordable:
            width, height = self.request.width, self.request.height
            self.notes.append(
                f"The guesses are not decoded: {self.calls} pictures of {width}x{height} are too many."
            )
            return None
        device = torch.device(self.device.name)
        rows = zip(self._readings, self._kept["latents"], self._kept["guided"], strict=True)
        try:
            pictures = [
                np.asarray(decode(reading.x0(*(torch.from_numpy(each)[None] for each in pair)).to(device))[0])
                for reading, *pair in rows
            ]
        except NotANumber:
            self.notes.append("The guesses are not decoded: the VAE has no picture for one of them.")
            return None
        return np.stack(pictures)

    # What is known before

    @property
    def _affordable(self) -> bool:
        return self.calls * self.request.width * self.request.height <= GUESSED_PIXELS

    def _check_size(self) -> None:
        channels, places = self.model.vae.config.latent_channels, math.prod(self.cells)
        shares = (len(self.words.texts) + 1) * min(places, PLACES) if self._layers else 0
        size = 4 * self.calls * (4 * channels * places + shares)
        size += 3 * self.request.width * self.request.height * (1 + self.calls * self._affordable)
        if size > MAX_BYTES:
            message = (
                f"a record of {self.calls} calls of the net for {self.request.width}x{self.request.height}"
            )
            message += (
                f" would be larger than {MAX_BYTES // 2**20} MiB; take fewer steps or a smaller picture"
            )
            raise invalid("num_inference_steps", message, Unsupported)

    def _looking(self) -> list[nn.Module]:
        """The layers of the net that look at the prompt, where they can be watched."""
        if self.refiner is not None:
            self.notes.append("There is no attention: the refiner reads the prompt with layers of its own.")
            return []
        if self.device.compiled:
            self.notes.append("There is no attention: the net is compiled, and cannot be watched inside.")
            return []
        return [module for name, module in self.model.net.named_modules() if name.endswith(".attn2")]

    def _told(self) -> Iterator[str]:
        """What of this run is not recorded, or means something else than in a plain one."""
        request = self.request
        parts = prompt_syntax.parse(request.prompt)
        if len(self.pictures) > 1:
            yield f"The batch has {len(self.pictures)} pictures, and this is the first of them."
        if request.hires:
            yield "The second pass is not in it: the picture is that of the first pass."
        if request.image:
            yield "The run begins with a picture that noise was added to."
        if request.task == "inpaint":
            yield "The picture is as it was decoded, before it was laid into its source."
            if not self.model.family.takes_mask(self.model.net, self.model.vae):
                yield "After each step the latents outside the mask are put back: no scheduler made them."
        if request.color_correction:
            yield "The picture is as it was decoded, before it was given the colours of its source."
        if self.refiner is not None:
            yield f"The last steps are {self.refiner.name}'s."
        if len(parts) > 1:
            yield (
                f"The prompt has {len(parts)} parts, joined by AND: a prediction with the prompt is composed "
                "of all of them, words and attention are those of the first."
            )
        if any(len(set(islice(part.over(self.steps), self.steps))) > 1 for part in parts):
            yield "The prompt changes during the run: the words are those of the first step."
        if request.reference_model:
            yield "A reference picture takes part: the attention is that to the words alone."
        for hook, does in OF_PLUGINS.items():
            yield from (f"The plugin {plugin.id} {does}." for plugin in self.plugged.having(hook))

    def _note(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        size = math.prod(shape) * dtype.itemsize
        self.arrays[name] = ArrayNote(name, tuple(shape), str(dtype).removeprefix("torch."), size)
