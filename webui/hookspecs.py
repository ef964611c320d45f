"""What a plugin can do: the hooks, and the nouns they are given.

A plugin is a folder with a ``plugin.toml`` and a ``plugin.py`` (``docs/plugins.md`` is its author's guide).
Its hooks are functions of the names below, each marked with :data:`hookimpl`. A hook names only the
arguments it wants: arguments may be added here and old plugins go on working.

Order: plugins run sorted by id; ``@hookimpl(tryfirst=True)`` and ``trylast=True`` move one hook to an end.
Where plugins change the same thing, each gets what the one before it left. Patches are undone in reverse.

Neutral: a plugin with settings takes part in a picture only if one of them is not at its default. At
defaults none of its hooks about pictures is called, so the picture is the one without the plugin, bit for
bit. A plugin without settings takes part in every picture.

Errors: whatever a hook raises ends that job with the plugin's name; nothing is delivered without it.
Raise :class:`webui.errors.InvalidField` where a person's value is wrong.

Threads: *start* is the main thread, before the server answers; *request* is whichever thread a request
came in, several at once; *worker* is the one thread that owns the device.
"""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from webui.request import GenerationRequest, SavedPicture, Scalar

if TYPE_CHECKING:
    import torch
    from fastapi import APIRouter
    from PIL.Image import Image

    from webui.grid.axes import AxisKind

API = "1"  # what plugin.toml's ``api`` may be
PROJECT = "webui"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Values(Mapping[str, Any]):
    """A plugin's settings, for reading: ``settings.strength`` or ``settings["strength"]``."""

    def __init__(self, values: Mapping[str, Scalar]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(f"there is no setting {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True)
class Setting:
    """One setting of a plugin. The host makes of it a control, a value of the API, a pair of the infotext
    and an axis of the grid. Its type is that of ``default``: bool, int, float or str.
    """

    name: str  # lower-case letters, digits and underscores
    default: Scalar  # neutral: with all settings there, the plugin takes no part
    label: str
    info: str = ""  # a short line under the control
    minimum: float | None = None  # of a number, both ends included; with both ends it is a slider
    maximum: float | None = None
    step: float | None = None  # of the slider
    choices: tuple[str, ...] = ()  # of a text: one of these
    lines: int = 1  # of a text that is typed


@dataclass(frozen=True)
class Scheduler:
    """A way to get from noise to picture, by a name of its own."""

    name: str
    build: Callable[[Mapping[str, Any]], Any]  # checkpoint's scheduler config -> fresh diffusers scheduler
    calls: Callable[[int], int] = lambda steps: steps  # of the net for so many steps


@dataclass(frozen=True)
class Upscaler:
    """Enlarges pictures: between the two passes of hires, and wherever a person asks for it.

    One that takes long has a third argument, named ``check``: a function to call now and then, which raises
    :class:`webui.errors.Cancelled` once the job is to stop.
    """

    name: str
    enlarge: Callable[..., Image]  # (RGB, (width, height) in pixels) -> RGB of that size


@dataclass(frozen=True)
class Tab:
    """A tab of the page. ``build`` lays out Gradio components; it is called inside a ``gr.Blocks``."""

    label: str
    build: Callable[[], None]


@dataclass(frozen=True)
class Prediction:
    """One call of the net, for B pictures of C latent channels of h x w latent pixels; all float32."""

    request: GenerationRequest  # of the first picture of the batch
    call: int  # 0-based, in this pass
    calls: int  # of this pass
    step: int  # 0-based, as a person counts steps; Heun calls the net twice a step
    steps: int  # of this pass
    timestep: torch.Tensor  # 0-dimensional, in training steps; may be fractional
    latents: torch.Tensor  # (B, C, h, w), scaled as the net takes them
    cond: torch.Tensor  # (B, C, h, w), what the net predicts with the prompt
    uncond: torch.Tensor | None  # (B, C, h, w), with the negative prompt; None at a CFG scale of 1 or less
    scale: torch.Tensor  # (B, 1, 1, 1), the CFG scale
    guided: torch.Tensor  # (B, C, h, w), uncond + scale (cond - uncond), or what a plugin before made of it
    predict: Callable[[], torch.Tensor]  # calls the net once more as for ``cond``, and returns (B, C, h, w)
    prediction_type: str  # what the net predicts: "epsilon", "v_prediction", "flow_prediction" or "sample"
    signal: float  # latents = signal * x0 + noise * epsilon, of the clean latents x0 and standard noise
    noise: float
    x0: Callable[[torch.Tensor], torch.Tensor]  # clean latents that a prediction, such as ``guided``, means
    output: Callable[[torch.Tensor], torch.Tensor]  # the prediction that means such clean latents


@dataclass(frozen=True)
class StepEnd:
    """After a step of the scheduler. B pictures of C latent channels of h x w latent pixels; all float32."""

    request: GenerationRequest  # of the first picture of the batch
    step: int  # 0-based: the step that was made
    steps: int  # of this pass
    timestep: torch.Tensor  # 0-dimensional: where the step began
    latents: torch.Tensor  # (B, C, h, w), what the next step begins with
    cond: torch.Tensor  # (B, C, h, w), the step's last prediction with the prompt
    uncond: torch.Tensor | None  # likewise with the negative prompt; None without guidance
    x0: torch.Tensor  # (B, C, h, w), the clean latents that the step's last guided prediction means
    signal: float  # latents = signal * x0 + noise * epsilon, for the next step; after the last, 1 and 0
    noise: float
    start: torch.Tensor  # (B, C, h, w), what the pass began with: noise, or what plugins made of it


@dataclass(frozen=True)
class Parts:
    """The resident model's modules, to patch and to use, never to keep."""

    unet: Any  # None where the net is a transformer, as in Stable Diffusion 3 and Flux
    vae: Any
    text_encoder: Any  # the first
    transformer: Any = None  # None where the net is a UNet
    text_encoders: tuple[Any, ...] = ()  # all there are, in the order of the checkpoint


# At the start. Each is asked once.


@hookspec
def settings(data_dir: Path) -> Sequence[Setting]:
    """The plugin's settings.

    When: at the start. Thread: start. Gets: the person's data folder, where choices may come from.
    Returns: the settings, in the order to show them.
    """


@hookspec
def schedulers() -> Sequence[Scheduler]:
    """Schedulers to offer beside the program's own.

    When: at the start; their ``build`` before each pass, on the worker. Thread: start.
    Gets: nothing. Returns: schedulers, of names that nobody else has.
    """


@hookspec
def upscalers(data_dir: Path) -> Sequence[Upscaler]:
    """Ways to enlarge a picture, offered as hires upscalers.

    When: at the start; their ``enlarge`` between two passes, on the worker. Thread: start.
    Gets: the person's data folder. Returns: upscalers, of names that nobody else has.
    """


@hookspec
def axes(data_dir: Path) -> Sequence[AxisKind]:
    """What may vary in a grid, besides the settings, which are axes by themselves.

    When: at the start; their functions whenever a grid is planned, on request threads. Thread: start.
    Gets: the person's data folder. Returns: axes, of names that nobody else has.
    """


@hookspec
def tab(data_dir: Path) -> Tab:
    """A tab of the page.

    When: at the start. Thread: start; the handlers it wires run on request threads.
    Gets: the person's data folder. Returns: the tab.
    """


@hookspec
def router(data_dir: Path) -> APIRouter:
    """Routes of an API, behind the same login as the page.

    When: at the start. Thread: start; routes that are plain functions run in a pool, where they may block.
    Those that are ``async`` run on the server's own thread: while one of them computes, nobody is answered.
    Gets: the person's data folder. Returns: a router, which is mounted at ``/ext/ID``; it is told neither of
    the server's start nor of its end. Who asks is ``request.state.owner``.
    """


@hookspec
def model_folders(data_dir: Path) -> Sequence[Path]:
    """Where checkpoints come from, besides the program's folders.

    When: at the start. Thread: start. Gets: the person's data folder.
    Returns: folders that hold checkpoints, as ``models/`` does. Their files are only read.
    """


# When a request comes in. These are asked whatever the settings are.


@hookspec
def prepare_prompt(prompt: str, field: str, seed: int, settings: Values, data_dir: Path) -> str | None:
    """Make the prompt that the model gets of the one that a person typed, which is kept as its template.

    When: as a request comes in, once for each of its pictures. Thread: request.
    Gets: the text; ``field``, "prompt" or "negative_prompt"; the picture's seed; the plugin's settings.
    Returns: the new text; None leaves it.
    """


@hookspec
def prepare_request(
    request: GenerationRequest, settings: Values, data_dir: Path
) -> GenerationRequest | Sequence[GenerationRequest] | None:
    """Change a request, or make several of one.

    When: as a request comes in, before its prompts are prepared. Thread: request.
    Gets: the complete request, its seed drawn. Returns: a request, or several to run one after the other
    (refused where one picture is wanted, as in the cells of a grid); None leaves it.
    """


# While a picture is made. Asked of plugins that take part.


@hookspec
def cell_key(request: GenerationRequest, settings: Values, data_dir: Path) -> Any:
    """What else the pixels hang on, so that a picture is known again: a file's hash, a table's content.

    The plugin's id, version and settings are part of the key in any case. A plugin whose pixels hang on
    something that cannot be told says ``deterministic = false`` in its plugin.toml instead.

    When: before a picture is made or looked for. Thread: request or worker.
    Gets: the request of one picture. Returns: anything that ``json`` takes.
    """


@hookspec
def patch(parts: Parts, request: GenerationRequest, settings: Values) -> AbstractContextManager[Any] | None:
    """Change the model's modules while the pictures of a request are made: all passes, encode and decode.

    When: around the whole request. Thread: worker. Gets: the resident model's parts.
    Returns: a context manager that undoes on exit whatever it did, which is checked; None to do nothing.
    """


@hookspec
def attention(
    name: str, original: Any, parts: Parts, request: GenerationRequest, settings: Values
) -> Any | None:
    """Another attention processor for one attention layer of the net; the host puts the old one back.

    When: before the pictures of a request are made, for each layer. Thread: worker.
    Gets: the layer's name, such as ``mid_block.attentions.0.transformer_blocks.0.attn1`` (``attn1`` is
    self-attention, ``attn2`` looks at the prompt), and the processor it has.
    Returns: a callable as diffusers' attention processors are; None leaves it.
    """


@hookspec
def start(
    noise: torch.Tensor,
    request: GenerationRequest,
    encode: Callable[[Image], torch.Tensor],
    source: Image | None,
    settings: Values,
) -> torch.Tensor | None:
    """Change what the pictures begin with.

    When: before the first step of the first pass. Thread: worker.
    Gets: the noise (B, C, h, w), float32 of variance 1; ``encode``, which makes latents (1, C, h', w') of
    variance about 1 of a picture; and the source of image to image, or None.
    Returns: what to begin with instead, of the same shape; None leaves it.
    """


@hookspec
def guide(prediction: Prediction, parts: Parts, settings: Values) -> torch.Tensor | None:
    """Change the guided prediction, with the net's own predictions and the latents in hand.

    When: after each call of the net. Thread: worker. Gets: a :class:`Prediction`; the model's parts, where
    the plugin finds what its ``patch`` and ``attention`` have put there.
    Returns: another guided prediction (B, C, h, w), float32; None leaves it.
    """


@hookspec
def step_end(step: StepEnd, settings: Values) -> torch.Tensor | None:
    """Look at each step, or change the latents that the next one begins with.

    When: after each step of the scheduler. Thread: worker. Gets: a :class:`StepEnd`.
    Returns: other latents (B, C, h, w), float32; None leaves them.
    """


@hookspec
def postprocess(
    image: Image, request: GenerationRequest, settings: Values, data_dir: Path, check: Callable[[], None]
) -> Image | list[Image] | None:
    """Change a finished picture before it is saved.

    When: once for each picture, after the model. Thread: worker. Gets: the picture, RGB, and the request
    that makes exactly this one; the person's data folder; ``check``, to call now and then in what takes
    long: it raises :class:`webui.errors.Cancelled` once the job is to stop.
    Returns: the picture to keep; or a list of it and of pictures to keep beside it; None leaves it.
    """


# Notices. What they raise is shown, and harms no picture.


@hookspec
def model_loaded(name: str, seconds: float, device: str) -> None:
    """A model became resident.

    When: after a load. Thread: worker. Gets: the model's name, how long it took, and the device that all
    computing is done on, as torch names it ("cpu", "cuda:0"). Returns: nothing.
    """


@hookspec
def picture_saved(picture: SavedPicture) -> None:
    """A picture is in the library.

    When: after each save. Thread: the one that saves. Gets: the saved picture. Returns: nothing.
    """
