"""What may vary in a grid.

Every number, choice and switch of a :class:`~webui.request.GenerationRequest` is an axis by itself; prompts,
the size and the model have their own ways. How values are written: :mod:`webui.grid.values`. Of a pick
list, ``all`` is everything on it.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, Literal, get_args, get_origin

from annotated_types import MultipleOf
from pydantic.fields import FieldInfo

from webui import prompt_syntax, units
from webui.errors import InvalidField
from webui.grid.values import MAX_VALUES, lines, numbers, short, split, written
from webui.request import (
    HIRES_UPSCALERS,
    LABELS,
    RANDOM_SEED,
    GenerationRequest,
    ModelInfo,
    SchedulerInfo,
    drawn,
)

ALL = "all"
NONE = "None"  # in a list of names
AUTOMATIC = "Automatic"  # the model's own VAE
DEFAULT = "default"  # of a number that may be left to the program

MODEL_COST, VAE_COST, LORA_COST, SIZE_COST, PROMPT_COST, COST = (
    100,
    50,
    20,
    10,
    2,
    1,
)  # of a change, for the run order

#: What each axis is called. Most are fields of a request, with the page's label.
TITLES = LABELS | {
    "prompt": "Prompt (whole list)",
    "negative_prompt": "Negative prompt (whole list)",
    "prompt_replace": "Prompt search/replace",
    "prompt_order": "Prompt order",
    "negative_prompt_replace": "Negative prompt search/replace",
    "negative_prompt_order": "Negative prompt order",
    "size": "Size",
    "lora": "LoRA",
    "lora_weight": "LoRA weight",
}

_NOT_AXES = {
    "image",
    "mask_image",
    "control_image",
    *units.FURTHER,
    "reference_image",
    "num_images_per_prompt",
    "plugins",
    "prepared",
}  # named by hash; Grid.per_cell
_RESIZING = {"width", "height", "hires_scale", "extend_left", "extend_top", "extend_right", "extend_bottom"}
_SIZE = re.compile(r"([0-9]{1,6})\s*[x×*]\s*([0-9]{1,6})", re.IGNORECASE)
_ON = {
    "on": True,
    "off": False,
    "true": True,
    "false": False,
    "yes": True,
    "no": False,
    "1": True,
    "0": False,
}


@dataclass(frozen=True)
class Known:
    """What can be chosen on this machine."""

    models: tuple[ModelInfo, ...]
    schedulers: tuple[SchedulerInfo, ...]
    upscalers: tuple[str, ...] = HIRES_UPSCALERS
    loras: tuple[str, ...] = ()
    vaes: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()


Parse = Callable[[str, GenerationRequest, Known], tuple[Any, ...]]


@dataclass(frozen=True)
class AxisKind:
    """One thing that may vary.

    ``parse`` makes values of a text; equal ones are left in, for the plan to collapse and to say so. It
    raises :class:`InvalidField`, which names the axis and the value. ``apply`` need not validate what it
    returns, the plan does that once every axis is applied; it raises :class:`InvalidField` where a value
    has no place in this request. Values are hashable.
    """

    name: str  # stable: "guidance_scale", "prompt_replace", "size"
    label: str
    cost: int  # of a change: sorts the run order, the dearest slowest
    choices: Callable[[Known], tuple[str, ...]] | None  # of a pick list; None: typed
    parse: Parse
    apply: Callable[[GenerationRequest, Any], GenerationRequest]
    show: Callable[[Any], str]
    overwrites: tuple[str, ...] = ()  # fields; two axes of a grid may not overwrite the same
    settle: Callable[[str, Known], str] = lambda text, known: text  # with nothing left open: seeds, "all"
    idle: Callable[[GenerationRequest], str] = lambda request: ""  # why it changes nothing here, if so
    offered: Callable[[], bool] = lambda: True  # whether it is on the lists now
    start: str = ""  # values to begin with, of one that is typed
    hint: str = ""  # how they are typed, where they are no numbers


def kinds(extra: Iterable[AxisKind] = ()) -> dict[str, AxisKind]:
    """All axes by name, in the order to show and to apply them; plugins' after ours.

    Raises:
        ValueError: two have one name.
    """
    fields = GenerationRequest.model_fields
    own = [
        _prompts("prompt"),
        _order("prompt_order", "prompt"),
        _replace("prompt_replace", ("prompt", "negative_prompt")),
        _prompts("negative_prompt"),
        _order("negative_prompt_order", "negative_prompt"),
        _replace("negative_prompt_replace", ("negative_prompt",)),
        pick("model", lambda known: tuple(model.name for model in known.models), MODEL_COST),
        _named("refiner", NONE, lambda known: tuple(model.name for model in known.models), MODEL_COST),
        _named("vae", AUTOMATIC, lambda known: known.vaes, VAE_COST),
        _named("control_model", NONE, lambda known: known.controls, VAE_COST),
        _lora(),
        _lora_weight(),
        pick("scheduler", lambda known: tuple(scheduler.name for scheduler in known.schedulers)),
        pick("hires_upscaler", lambda known: known.upscalers),
        *(kind for name, info in fields.items() if (kind := _of_field(name, info))),
        _size(),
    ]
    found: dict[str, AxisKind] = {}
    for kind in (*own, *extra):
        if kind.name in found:
            raise ValueError(f"there are two axes named {kind.name!r}")
        found[kind.name] = kind
    return found


# The kinds


def _of_field(name: str, info: FieldInfo) -> AxisKind | None:
    """The axis that a field makes by its type; None for texts and for what is no axis."""
    type_ = info.annotation
    if name in _NOT_AXES or type_ is str:
        return None
    cost = SIZE_COST if name in _RESIZING else COST
    if get_origin(type_) is Literal:
        return pick(name, lambda known: get_args(type_), cost)
    if type_ is bool:
        return switch(name)
    if type_ is int:
        grain = next((int(m.multiple_of) for m in info.metadata if isinstance(m, MultipleOf)), 1)  # type: ignore[call-overload]
        return _number(name, int, grain, cost)
    if type_ is float:
        return _number(name, float, None, cost)
    if type(None) in get_args(type_):  # of a number: left to the program
        return _number(name, float, None, cost, optional=True)
    raise TypeError(f"no axis is known for the type of {name}")


def setter(name: str, cost: int, parse: Parse, **rest: Any) -> AxisKind:
    """An axis that sets one field, or what ``rest`` says of it."""
    given = {
        "label": TITLES.get(name, name),
        "choices": None,
        "apply": partial(_set, name),
        "show": str,
        "overwrites": (name,),
        "idle": partial(_idle, name),
    }
    return AxisKind(name, cost=cost, parse=parse, **(given | rest))


def _number(
    name: str, type_: type[int | float], grain: int | None, cost: int, optional: bool = False
) -> AxisKind:
    def parse(text: str, base: GenerationRequest, known: Known) -> tuple[Any, ...]:
        return tuple(_valid(name, value) for value in _plain_words(name, read, text))

    def read(text: str) -> list[Any]:
        found: list[Any] = []
        for piece in split(text):
            if optional and piece.casefold() == DEFAULT:
                found.append(None)
            else:
                found += [_whole(value) if type_ is int else float(value) for value in numbers(piece, grain)]
        return found

    seeds = {"settle": partial(_drawn, name)} if name in ("seed", "variation_seed") else {}
    return setter(name, cost, parse, show=figure, **seeds)


def _drawn(name: str, text: str, known: Known) -> str:
    """Seeds with each -1 drawn, so that the grid is the same when it is planned again."""
    values = _plain_words(name, numbers, text, 1)
    if RANDOM_SEED not in values:
        return text
    return ", ".join(str(drawn(RANDOM_SEED) if value == RANDOM_SEED else value) for value in values)


def switch(name: str, **rest: Any) -> AxisKind:
    """An axis of on and off."""

    def parse(text: str, base: GenerationRequest, known: Known) -> tuple[Any, ...]:
        return tuple(_ON[word] for word in _chosen(name, text, tuple(_ON), ("on", "off")))

    return setter(name, COST, parse, choices=lambda known: ("on", "off"), show=figure, **rest)


def pick(name: str, choices: Callable[[Known], tuple[str, ...]], cost: int = COST, **rest: Any) -> AxisKind:
    """An axis of choices."""

    def parse(text: str, base: GenerationRequest, known: Known) -> tuple[Any, ...]:
        return tuple(_chosen(name, text, choices(known), choices(known)))

    def settle(text: str, known: Known) -> str:
        everything = ALL in text.casefold()
        return written(_chosen(name, text, choices(known), choices(known))) if everything else text

    return setter(name, cost, parse, choices=choices, settle=settle, **rest)


def _chosen(name: str, text: str, words: tuple[str, ...], everything: tuple[str, ...]) -> list[str]:
    """The choices of a text: exactly as spelt, else in any case of letters; "all" stands for everything."""
    spelt = {word.casefold(): word for word in reversed(words)} | {word: word for word in words}
    chosen: list[str] = []
    for value in _plain_words(name, split, text):
        found = spelt.get(value) or spelt.get(value.casefold())
        if found:
            chosen.append(found)
        elif value.casefold() == ALL:
            chosen += everything
        else:
            near = difflib.get_close_matches(value.casefold()[:100], spelt, n=1)
            meant = f"; did you mean {spelt[near[0]]}?" if near else ""
            raise _wrong(name, f"there is no {short(value)}{meant}")
    return chosen


def _size() -> AxisKind:
    def parse(text: str, base: GenerationRequest, known: Known) -> tuple[Any, ...]:
        return tuple(map(read, _plain_words("size", split, text)))

    def read(piece: str) -> tuple[int, int]:
        match = _SIZE.fullmatch(piece)
        if not match:
            raise _wrong("size", f"{short(piece)} is not a size such as 512x768")
        size = int(match[1]), int(match[2])
        try:
            GenerationRequest(width=size[0], height=size[1])
        except InvalidField as error:
            raise _wrong("size", f"{short(piece)}: {error}") from None
        return size

    def apply(request: GenerationRequest, size: tuple[int, int]) -> GenerationRequest:
        return request.model_copy(update={"width": size[0], "height": size[1]})

    return setter(
        "size", SIZE_COST, parse, apply=apply, show=lambda size: f"{size[0]}x{size[1]}",
        overwrites=("width", "height"),
    )  # fmt: skip


def _prompts(field: str) -> AxisKind:
    def parse(text: str, base: GenerationRequest, known: Known) -> tuple[Any, ...]:
        return tuple(_valid(field, prompt) for prompt in _plain_words(field, lines, text))

    return setter(field, PROMPT_COST, parse)


def _named(name: str, nothing: str, choices: Callable[[Known], tuple[str, ...]], cost: int) -> AxisKind:
    """An axis of what a field may name; ``nothing`` stands for the empty name."""

    def apply(request: GenerationRequest, value: str) -> GenerationRequest:
        return request.model_copy(update={name: "" if value == nothing else value})

    return pick(name, lambda known: (nothing, *choices(known)), cost, apply=apply)


def _lora() -> AxisKind:
    """One LoRA or none, in the place of those that the prompt has."""

    def apply(request: GenerationRequest, name: str) -> GenerationRequest:
        prompt = prompt_syntax.with_lora(request.prompt, "" if name == NONE else name)
        return request.model_copy(update={"prompt": prompt})

    return pick("lora", lambda known: (NONE, *known.loras), LORA_COST, apply=apply, overwrites=())


def _lora_weight() -> AxisKind:
    """The weight of every LoRA in the prompt."""

    def read(text: str) -> list[float]:
        return [float(value) for value in numbers(text)]

    def parse(text: str, base: GenerationRequest, known: Known) -> tuple[Any, ...]:
        return tuple(_plain_words("lora_weight", read, text))

    def apply(request: GenerationRequest, weight: float) -> GenerationRequest:
        return request.model_copy(update={"prompt": prompt_syntax.with_lora_weight(request.prompt, weight)})

    def idle(request: GenerationRequest) -> str:
        return "" if prompt_syntax.loras(request.prompt) else "changes nothing without a LoRA in the prompt"

    return setter("lora_weight", PROMPT_COST, parse, apply=apply, show=figure, overwrites=(), idle=idle)


def _replace(name: str, fields: tuple[str, ...]) -> AxisKind:
    """The first value is what is searched for; each value, the first too, takes its place in turn."""

    def parse(text: str, base: GenerationRequest, known: Known) -> tuple[Any, ...]:
        found = _plain_words(name, lines, text)
        if found and not found[0]:
            raise _wrong(name, "the first value is what is searched for; it cannot be empty")
        return tuple((found[0], value) for value in found)

    def apply(request: GenerationRequest, value: tuple[str, str]) -> GenerationRequest:
        search, replacement = value
        changed = {
            field: getattr(request, field).replace(search, replacement)
            for field in fields
            if search in getattr(request, field)
        }
        if not changed:
            raise _wrong(name, f"{short(search)} is not in the {' or the '.join(_lower(f) for f in fields)}")
        return request.model_copy(update=changed)

    return setter(
        name, PROMPT_COST, parse, apply=apply, show=lambda value: value[1] or "(nothing)",
        overwrites=(), idle=partial(_idle, fields[0]),
    )  # fmt: skip


def _order(name: str, field: str) -> AxisKind:
    """Every order of the words, in the places where the prompt has them."""

    def parse(text: str, base: GenerationRequest, known: Known) -> tuple[Any, ...]:
        words = list(dict.fromkeys(filter(None, _plain_words(name, lines, text))))
        if words and math.factorial(min(len(words), 100)) > MAX_VALUES:
            most = max(n for n in range(10) if math.factorial(n) <= MAX_VALUES)
            raise _wrong(name, f"{len(words)} words have too many orders; give at most {most}")
        return tuple(itertools.permutations(words)) if words else ()

    def apply(request: GenerationRequest, order: tuple[str, ...]) -> GenerationRequest:
        return request.model_copy(update={field: _reordered(name, getattr(request, field), order)})

    return setter(
        name, PROMPT_COST, parse, apply=apply, show=", ".join, overwrites=(), idle=partial(_idle, field)
    )


def _reordered(name: str, prompt: str, order: tuple[str, ...]) -> str:
    """The prompt with the first place of each word taken, from left to right, by the words in this order.

    Raises:
        InvalidField: a word is not in the prompt (outside a longer one of them).
    """
    longest_first = "|".join(re.escape(word) for word in sorted(order, key=len, reverse=True))
    places: dict[str, re.Match[str]] = {}
    for match in re.finditer(longest_first, prompt):
        places.setdefault(match[0], match)
    if missing := [word for word in order if word not in places]:
        raise _wrong(name, f"{short(missing[0])} is not in the {_lower(name.removesuffix('_order'))}")
    parts, at = [], 0
    for match, word in zip(places.values(), order, strict=True):
        parts += [prompt[at : match.start()], word]
        at = match.end()
    return "".join(parts) + prompt[at:]


# Their parts


def _set(name: str, request: GenerationRequest, value: Any) -> GenerationRequest:
    return request.model_copy(update={name: value})


def _valid(name: str, value: Any) -> Any:
    """The value, if the field takes it; whether the whole request does is seen in each cell.

    Raises:
        InvalidField: names the axis and the value.
    """
    try:
        GenerationRequest(**{name: value})
    except InvalidField as error:
        if error.field == name:
            raise _wrong(name, f"{short(figure(value))} {error.message}") from None
    return value


def _whole(value: Decimal) -> int:
    if value != int(value):
        raise ValueError(f"{value} is not a whole number")
    return int(value)


def figure(value: Any) -> str:
    """A value as a person writes it: 7, not 7.0, and never with an exponent; on, not True."""
    if value is None:
        return DEFAULT
    if isinstance(value, bool):
        return "on" if value else "off"
    text = format(Decimal(str(value)), "f") if isinstance(value, float) else str(value)
    return text.rstrip("0").rstrip(".") if "." in text and isinstance(value, float) else text


def _plain_words(name: str, read: Callable[..., list[Any]], *args: Any) -> list[Any]:
    """What ``read`` makes of a text; its ValueError names the axis."""
    try:
        return read(*args)
    except ValueError as error:
        raise _wrong(name, str(error)) from None


def _wrong(name: str, message: str) -> InvalidField:
    return InvalidField(name, message, TITLES.get(name))


def _lower(field: str) -> str:
    return LABELS[field].lower()


def _idle(name: str, request: GenerationRequest) -> str:
    """Why a setting changes nothing in this request; "" if it may."""
    if name.startswith("hires_") and name != "hires_scale" and not request.hires:
        return "changes nothing while Hires scale is 1"
    if name in ("strength", "resize_mode", "color_correction") and not request.image:
        return "changes nothing without an image to start from"
    if name.startswith("mask") or name in ("inpaint_area", "soft_inpainting"):
        if request.task != "inpaint":
            return "changes nothing without a mask"
        if name == "masked_padding" and request.inpaint_area != "Only masked":
            return "changes nothing unless Inpaint area is Only masked"
    if name == "refiner_switch" and not request.refiner:
        return "changes nothing without a refiner"
    if name.startswith("control_") and name != "control_model" and not request.control_model:
        return "changes nothing without a ControlNet"
    if name == "reference_scale" and not request.reference_model:
        return "changes nothing without a reference picture"
    if name == "variation_seed" and not request.variation_strength:
        return "changes nothing while Variation strength is 0"
    if name == "negative_prompt" and request.guidance_scale <= 1:
        return "changes nothing while CFG scale is at most 1"
    return ""
