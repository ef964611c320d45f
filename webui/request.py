"""The nouns: what a person asks for, how it is delivered, and what comes back.

A :class:`GenerationRequest` holds everything that decides the pixels and nothing else, in diffusers'
words. It validates itself, so that every door (page, script, API) refuses the same things in the same
words. A :class:`Delivery` holds what does not touch the pixels: previews and the file format.
"""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import ItemsView, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from webui import units
from webui.errors import InvalidField

if TYPE_CHECKING:
    from PIL.Image import Image

RANDOM_SEED = -1
MAX_SEED = 2**32 - 1
MAX_PROMPT = 20_000  # characters
MAX_PIXELS = 4096 * 4096  # of one picture, second pass included
MAX_BATCH_PIXELS = 8 * 2048 * 2048  # of all pictures of one pipeline call

SigmaSchedule = Literal[
    "Automatic", "Karras", "Exponential", "Beta", "Lambda", "SGM uniform", "Linspace", "Leading"
]
SIGMA_SCHEDULES: tuple[str, ...] = get_args(SigmaSchedule)

Task = Literal["txt2img", "img2img", "inpaint"]
TASKS: tuple[Task, ...] = get_args(Task)
ResizeMode = Literal["Stretch", "Crop", "Fill", "Latent"]
RESIZE_MODES: tuple[str, ...] = get_args(ResizeMode)
MaskedContent = Literal["Original", "Fill", "Latent noise", "Latent nothing"]
MASKED_CONTENTS: tuple[str, ...] = get_args(MaskedContent)
InpaintArea = Literal["Whole picture", "Only masked"]
INPAINT_AREAS: tuple[str, ...] = get_args(InpaintArea)
PreviewDecoder = Literal["Automatic", "Fast", "TAESD"]
PREVIEW_DECODERS: tuple[str, ...] = get_args(PreviewDecoder)

Preprocessor = Literal["None", "Canny", "Scribble", "Tile", "Inpaint"]
PREPROCESSORS: tuple[str, ...] = get_args(Preprocessor)

#: Those of the program; plugins may add others.
HIRES_UPSCALERS = ("Latent", "Latent (nearest)", "Latent (bicubic)", "Lanczos", "Bicubic", "Nearest")

# What a person calls each field: the page's labels and the error messages both read this.
LABELS: dict[str, str] = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "model": "Model",
    "scheduler": "Scheduler",
    "sigma_schedule": "Sigma schedule",
    "num_inference_steps": "Steps",
    "guidance_scale": "CFG scale",
    "eta": "Eta",
    "seed": "Seed",
    "variation_seed": "Variation seed",
    "variation_strength": "Variation strength",
    "width": "Width",
    "height": "Height",
    "num_images_per_prompt": "Batch size",
    "batch_count": "Batch count",
    "clip_skip": "Clip skip",
    "hires_scale": "Hires scale",
    "hires_upscaler": "Hires upscaler",
    "hires_steps": "Hires steps",
    "hires_strength": "Hires denoising strength",
    "refiner": "Refiner",
    "refiner_switch": "Switch at",
    "image": "Image",
    "strength": "Denoising strength",
    "resize_mode": "Resize mode",
    "color_correction": "Colours of the source",
    "extend_left": "Extend left",
    "extend_top": "Extend top",
    "extend_right": "Extend right",
    "extend_bottom": "Extend bottom",
    "mask_image": "Mask",
    "mask_inverted": "Repaint what is not painted",
    "mask_grow": "Grow mask",
    "mask_blur": "Mask blur",
    "masked_content": "Masked content",
    "inpaint_area": "Inpaint area",
    "masked_padding": "Padding",
    "soft_inpainting": "Soft inpainting",
    "vae": "VAE",
    **units.LABELS,
    "reference_model": "Reference model",
    "reference_image": "Reference picture",
    "reference_scale": "Reference scale",
    "plugins": "Plugins",
    "template": "Template",
    "negative_template": "Negative template",
    "prepared": "Prepared by",
    "preview_every": "Preview every",
    "preview_decoder": "Previews by",
    "image_format": "File format",
    "image_quality": "Quality",
    "record": "Record",
}


def _whole(value: Any) -> Any:
    """20.0 is a whole number to a person (and to JSON); 1.5 and True are not."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _text(value: Any) -> Any:
    """Refuse what no file or terminal can carry unharmed; leave everything else byte for byte."""
    if isinstance(value, str):
        for character in value:
            if character in "\n\t\r":
                continue
            if unicodedata.category(character) in ("Cc", "Cs"):
                raise ValueError(f"contains a character that cannot be stored (U+{ord(character):04X})")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Prompt = Annotated[str, BeforeValidator(_text), Field(max_length=MAX_PROMPT)]
Name = Annotated[str, BeforeValidator(_text), Field(max_length=300)]
Seed = Annotated[Whole, Field(ge=RANDOM_SEED, le=MAX_SEED)]
Side = Annotated[Whole, Field(ge=64, le=8192, multiple_of=8)]
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]  # of webui.sources; "" is none
Margin = Annotated[Whole, Field(ge=0, le=2048)]  # pixels
Share = Annotated[float, Field(ge=0, le=1)]
Twice = Annotated[float, Field(ge=0, le=2)]  # up to twice as much as in training
Scalar = bool | int | float | str


def _pairs(value: Any) -> Any:
    """A mapping, or JSON's lists of pairs, as sorted pairs: one spelling for one meaning."""
    pairs = value.items() if isinstance(value, Mapping) else value
    if isinstance(pairs, list | tuple | ItemsView) and all(len(pair) == 2 for pair in pairs):
        return tuple(sorted((str(name), value) for name, value in pairs))
    return value


PluginSettings = Annotated[tuple[tuple[str, Scalar], ...], BeforeValidator(_pairs)]


class _Validated(BaseModel):
    """Frozen, strict, and refusing unknown names; errors come out as :class:`InvalidField`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _plain(error) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated like a new one."""
        return type(self)(**{**dict(self), **changes})


class GenerationRequest(_Validated):
    """Everything that decides the pixels of one pipeline call. Same request, same pixels.

    Sizes are in pixels, of the first pass; with ``inpaint_area`` "Only masked" they are of the part that is
    repainted, and the finished picture has the size of its source. Source and mask are named by the hash
    of their content (:mod:`webui.sources`). Lengths of the mask (grow, blur, padding) are pixels of the
    finished picture. ``seed`` -1 means "draw one" and exists only outside
    :meth:`webui.engine.Engine.submit`. Picture k of a batch uses ``seed + k``; when ``variation_strength``
    > 0 it uses ``variation_seed + k`` instead and the seed stays.

    Raises:
        InvalidField: a value is of the wrong kind or out of range; the message names the field.
    """

    prompt: Prompt = ""
    negative_prompt: Prompt = ""
    model: Name = ""  # a name from Engine.models(); "" is the default model
    scheduler: Name = "DPM++ 2M"  # a name from Engine.schedulers()
    sigma_schedule: SigmaSchedule = "Automatic"  # Automatic: as the checkpoint's own config says
    num_inference_steps: Annotated[Whole, Field(ge=1, le=1000)] = 20
    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 7.0  # <= 1: no unconditional pass
    eta: Annotated[float, Field(ge=0, le=1)] | None = None  # None: the scheduler's own default
    seed: Seed = RANDOM_SEED
    variation_seed: Seed = RANDOM_SEED
    variation_strength: Annotated[float, Field(ge=0, le=1)] = 0.0
    width: Side = 512
    height: Side = 512
    num_images_per_prompt: Annotated[Whole, Field(ge=1, le=16)] = 1
    clip_skip: Annotated[Whole, Field(ge=1, le=12)] = 1  # A1111's counting: 1 is the last layer
    hires_scale: Annotated[float, Field(ge=1, le=4)] = 1.0  # 1: no second pass
    hires_upscaler: Name = "Latent"  # a name from Engine.upscalers()
    hires_steps: Annotated[Whole, Field(ge=0, le=1000)] = 0  # 0: as the first pass
    hires_strength: Annotated[float, Field(gt=0, le=1)] = 0.7
    refiner: Name = ""  # the model that makes the last steps; "": none
    refiner_switch: Annotated[float, Field(ge=0.01, le=1)] = 0.8  # share of the timesteps that are before it
    image: Digest = ""  # the source picture; "": text to image
    strength: Annotated[float, Field(gt=0, le=1)] = 0.75  # share of the steps that are run over the source
    resize_mode: ResizeMode = "Crop"  # how the source comes to width x height
    color_correction: bool = False  # give the result the source's colours
    extend_left: Margin = 0  # outpainting: pixels of the source added at each side, and repainted
    extend_top: Margin = 0
    extend_right: Margin = 0
    extend_bottom: Margin = 0
    mask_image: Digest = ""  # white is repainted; of the source's size
    mask_inverted: bool = False
    mask_grow: Annotated[Whole, Field(ge=-256, le=256)] = 0  # negative shrinks
    mask_blur: Annotated[float, Field(ge=0, le=64)] = 4.0  # standard deviation of the Gaussian
    masked_content: MaskedContent = "Original"  # what the repainted part starts from
    inpaint_area: InpaintArea = "Whole picture"
    masked_padding: Annotated[Whole, Field(ge=0, le=256)] = 32  # around the mask, for "Only masked"
    soft_inpainting: bool = False  # the greyer the mask, the fewer of the steps change a place
    vae: Name = ""  # another than the model's own
    control_model: Name = ""  # a ControlNet
    control_image: Digest = ""  # what it looks at; "": the source
    control_preprocessor: Preprocessor = "None"  # what it is shown of that
    control_scale: Twice = 1.0
    control_start: Share = 0.0  # shares of the steps between which it counts
    control_end: Share = 1.0
    control2_model: Name = ""  # a second one, and a third: see webui.units
    control2_image: Digest = ""
    control2_preprocessor: Preprocessor = "None"
    control2_scale: Twice = 1.0
    control2_start: Share = 0.0
    control2_end: Share = 1.0
    control3_model: Name = ""
    control3_image: Digest = ""
    control3_preprocessor: Preprocessor = "None"
    control3_scale: Twice = 1.0
    control3_start: Share = 0.0
    control3_end: Share = 1.0
    reference_model: Name = ""  # an IP-Adapter, which takes a picture as a prompt; "": none
    reference_image: Digest = ""  # that picture
    reference_scale: Twice = 0.6  # how much it counts beside the words
    plugins: PluginSettings = ()  # ("ID.setting", value) of each setting that is not neutral
    template: Prompt = ""  # the prompt as typed, where plugins made the prompt of it; no pixel hangs on it
    negative_template: Prompt = ""
    prepared: PluginSettings = ()  # the plugins that did: ("ID", version), and their settings; for a person

    @model_validator(mode="after")
    def _fits(self) -> GenerationRequest:
        width, height = self.final_size
        if width * height > MAX_PIXELS:
            raise ValueError(f"width: {width}x{height} is more than {MAX_PIXELS // 2**20} megapixels")
        if width * height * self.num_images_per_prompt > MAX_BATCH_PIXELS:
            raise ValueError(
                f"num_images_per_prompt: {self.num_images_per_prompt} pictures of {width}x{height} at once "
                f"is more than {MAX_BATCH_PIXELS // 2**20} megapixels; raise the batch count instead"
            )
        steps = self.hires_steps or self.num_inference_steps
        if self.hires and int(steps * self.hires_strength) < 1:
            raise ValueError(f"hires_strength: {self.hires_strength} of {steps} steps is less than one step")
        if (self.mask_image or self.extends) and not self.image:
            raise ValueError("image: a mask needs a picture to repaint")
        if self.image and self.hires:
            raise ValueError("hires_scale: the second pass belongs to text to image; set it to 1")
        for problem in units.problems(self):
            raise ValueError(problem)
        if self.reference_model and not self.reference_image:
            raise ValueError("reference_image: a reference model needs a picture")
        if self.reference_image and not self.reference_model:
            raise ValueError("reference_model: choose the model that is to look at the reference picture")
        if self.image and int(self.num_inference_steps * self.strength) < 1:
            raise ValueError(
                f"strength: {self.strength} of {self.num_inference_steps} steps is less than one step"
            )
        return self

    @property
    def task(self) -> Task:
        if self.mask_image or self.extends:
            return "inpaint"
        return "img2img" if self.image else "txt2img"

    @property
    def controls(self) -> tuple[units.Unit, ...]:
        """The ControlNets it asks for."""
        return units.of(self)

    @property
    def extends(self) -> bool:
        """Whether the picture grows beyond its source (outpainting)."""
        return bool(self.extend_left or self.extend_top or self.extend_right or self.extend_bottom)

    @property
    def hires(self) -> bool:
        return self.hires_scale > 1

    @property
    def final_size(self) -> tuple[int, int]:
        """(width, height) of what the last pass makes, in pixels, multiples of 8."""
        if not self.hires:
            return self.width, self.height
        return (
            int(self.width * self.hires_scale) // 8 * 8,
            int(self.height * self.hires_scale) // 8 * 8,
        )

    @property
    def beginning(self) -> GenerationRequest:
        """What the net's first call depends on: all but how strongly it is guided, if it is."""
        return self.replace(guidance_scale=2.0 if self.guidance_scale > 1 else 1.0)

    def picture(self, index: int) -> GenerationRequest:
        """The request that makes only picture ``index`` of this batch."""
        if self.variation_strength > 0:
            seeds = {"variation_seed": (self.variation_seed + index) % (MAX_SEED + 1)}
        else:
            seeds = {"seed": (self.seed + index) % (MAX_SEED + 1)}
        return self.replace(num_images_per_prompt=1, **seeds)


#: Whether alike cells of a grid share a batch where that is faster, or each is made alone.
Cells = Literal["auto", "exact", "together"]


class Delivery(_Validated):
    """How a job reports, shares and keeps its pictures; none of it changes more than last bits of a pixel."""

    preview_every: Annotated[Whole, Field(ge=0, le=1000)] = 1  # in steps; 0: no previews
    preview_decoder: PreviewDecoder = "Automatic"  # TAESD where there is a file that fits
    image_format: Literal["png", "jpeg", "webp"] = "png"
    image_quality: Annotated[Whole, Field(ge=1, le=100)] = 92  # jpeg and webp
    cells: Cells = "auto"  # of a grid: "auto" is what the settings say
    record: bool = False  # keep a record of the run: see webui.flight


@dataclass(frozen=True)
class Picture:
    """One finished picture: 8-bit RGB, and the request that makes exactly this one of its batch."""

    image: Image
    request: GenerationRequest
    index: int
    beside: bool = False  # kept beside the picture by a plugin, such as a view of it


@dataclass(frozen=True)
class GenerationResult:
    """What :func:`webui.diffusion.generate.generate` returns for one request."""

    request: GenerationRequest
    pictures: tuple[Picture, ...]
    model: str  # name of the checkpoint used
    model_hash: str  # SHA-256 of its weights, hexadecimal
    net_calls: int
    seconds: float
    peak_memory: int | None  # bytes; on the device where it can count, else of the process
    device: str  # such as "cpu, bfloat16, sdpa"
    plugins: Mapping[str, str] = field(default_factory=dict)  # id -> version, of those that touched it
    additions: Mapping[str, str] = field(default_factory=dict)  # what the text says of LoRAs and the like
    flight: Any = None  # the webui.flight.FlightRecord of the first picture, where one was asked for


@dataclass(frozen=True)
class SavedPicture:
    """A picture kept under ``outputs/`` and in the index."""

    id: int  # row of the index
    name: str  # path below the outputs folder, with forward slashes: what a person is shown
    path: Path  # absolute; never shown
    infotext: str
    request: GenerationRequest  # makes exactly this picture
    width: int
    height: int
    seconds: float | None = None  # of computing it; None where that is not known any more


@dataclass(frozen=True)
class ModelInfo:
    """A checkpoint a person can choose. ``defaults`` are request fields it works best with."""

    name: str  # its folder's name: what a request's ``model`` holds
    title: str
    note: str  # one line: what it is good for
    width: int  # its native size in pixels
    height: int
    examples: tuple[str, ...]  # prompts that work
    defaults: Mapping[str, Any]
    bytes: int  # on disk
    tasks: tuple[Task, ...] = TASKS  # what its net can do
    family: str = "sd1"  # one of webui.catalogue.found.Family
    guided: bool = True  # False: a guidance-distilled net; the CFG scale is told to it, no negative prompt
    multiple: int = 8  # of width and height, in pixels
    plain: bool = False  # prompts are read as they are written: weights and schedules mean nothing


@dataclass(frozen=True)
class SchedulerInfo:
    """A scheduler a person can choose, and the sigma schedules it can follow."""

    name: str
    sigma_schedules: tuple[str, ...]
    uses_eta: bool


def drawn(seed: int) -> int:
    """``seed``, or one drawn at random, 0 to :data:`MAX_SEED`, if it is :data:`RANDOM_SEED`."""
    return secrets.randbelow(MAX_SEED + 1) if seed == RANDOM_SEED else seed


def invalid(field: str, message: str, kind: type[InvalidField] = InvalidField) -> InvalidField:
    """An error that names ``field`` as the page does."""
    return kind(field, message, LABELS.get(field))


def _plain(error: ValidationError) -> InvalidField:
    """The first problem of a pydantic error, in a person's words."""
    first: Mapping[str, Any] = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx") or {}
    if not first["loc"]:  # raised by a validator of the whole request, as "field: what is wrong"
        field, _, message = str(context["error"]).partition(": ")
        return invalid(field, message)
    field = str(first["loc"][0])
    if kind == "extra_forbidden":
        return invalid(field, "there is no such setting")
    return invalid(field, _message(kind, context, str(first["msg"])))


def _message(kind: str, context: Mapping[str, Any], fallback: str) -> str:
    match kind:
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "greater_than":
            return f"must be more than {context['gt']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "multiple_of":
            return f"must be a multiple of {context['multiple_of']}"
        case "finite_number":
            return "must be a finite number"
        case "int_type" | "int_from_float" | "int_parsing" | "int_parsing_size":
            return "must be a whole number"
        case "float_type" | "float_parsing":
            return "must be a number"
        case "bool_type":
            return "must be on or off"
        case "string_pattern_mismatch":
            return "is not the hash of a picture (64 hexadecimal digits)"
        case "string_type":
            return "must be text"
        case "string_too_long" | "too_long":
            return f"must be at most {context['max_length']} characters"
        case "literal_error":
            return f"must be one of {context['expected']}"
        case "value_error":
            return str(context["error"])
    return fallback
