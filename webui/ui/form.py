"""What a person filled in, by field name <-> requests. Pure functions; the page's words are in ``layout``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_args

from webui import request as words
from webui import units
from webui.errors import InvalidField
from webui.infotext import Reading
from webui.plugins.host import Host
from webui.plugins.loading import Plugin
from webui.request import (
    MAX_SEED,
    RANDOM_SEED,
    Delivery,
    GenerationRequest,
    ModelInfo,
    Scalar,
    SchedulerInfo,
    Task,
    drawn,
)

MAX_BATCH_COUNT = 100
MAX_ROUNDS = 32

Values = Mapping[str, Any]  # field name -> value

# How a loopback's strength gets from the first round's to the last's: share of rounds -> share of the way.
CURVES: Mapping[str, Callable[[float], float]] = {
    "Linear": lambda p: p,
    "Aggressive": lambda p: math.sin(p * math.pi / 2),
    "Lazy": lambda p: 1 - math.cos(p * math.pi / 2),
}

OF_SOURCE = ("image", "strength", "resize_mode", "color_correction")
OF_EXTENSION = ("extend_left", "extend_top", "extend_right", "extend_bottom")
OF_MASK = (
    *OF_EXTENSION,
    "mask_image",
    "mask_inverted",
    "mask_grow",
    "mask_blur",
    "masked_content",
    "inpaint_area",
    "masked_padding",
    "soft_inpainting",
)
OF_HIRES = ("hires_scale", "hires_upscaler", "hires_steps", "hires_strength")
TASKS: tuple[Task, ...] = get_args(Task)
UNUSED: Mapping[Task, tuple[str, ...]] = {
    "txt2img": (*OF_SOURCE, *OF_MASK),
    "img2img": (*OF_MASK, *OF_HIRES),
    "inpaint": OF_HIRES,
}

REQUEST_FIELDS = tuple(GenerationRequest.model_fields)
DELIVERY_FIELDS = tuple(Delivery.model_fields)
# Request fields that have no control of their own.
ON_THE_CANVAS = ("image", "mask_image")
OF_PLUGINS = ("plugins", "template", "negative_template", "prepared")
AT_START: Values = {  # fields that no request has
    "task": "txt2img",
    "canvas": None,
    "batch_count": 1,
    "loopback_rounds": 1,
    "loopback_strength": 0.5,
    "loopback_curve": "Linear",
}
WITHOUT_CONTROL = {*ON_THE_CANVAS, *OF_PLUGINS}
FIELDS = (
    *(name for name in REQUEST_FIELDS if name not in WITHOUT_CONTROL),
    *AT_START,
    *(name for name in DELIVERY_FIELDS if name not in ("cells", "record")),  # which are chosen elsewhere
)
LABELS = words.LABELS | {
    "task": "Task",
    "canvas": "Picture",
    "loopback_rounds": "Rounds",
    "loopback_strength": "Final strength",
    "loopback_curve": "Curve",
}


def requests(values: Values) -> list[GenerationRequest]:
    """One request per batch or round of a loopback, with what the chosen task uses and nothing else.

    Picture seeds are consecutive over all of them. A random seed is drawn here only if there are several
    requests; else the engine draws it.

    Raises:
        InvalidField: naming the first field that is wrong.
    """
    first = GenerationRequest(**used(values))
    count, rounds = _whole(values, "batch_count", MAX_BATCH_COUNT), _rounds(values)
    if rounds > 1:
        return list(_loopback(first, rounds, count, values))
    if count == 1:
        return [first]
    first = with_seeds(first)
    moving = "variation_seed" if first.variation_strength > 0 else "seed"
    start, size = getattr(first, moving), first.num_images_per_prompt
    return [first.replace(**{moving: (start + i * size) % (MAX_SEED + 1)}) for i in range(count)]


def used(values: Values) -> dict[str, Any]:
    """The request fields that the chosen task uses; without a task, all that are there."""
    unused = set(UNUSED[task] if (task := task_of(values)) else ())
    if values.get("inpaint_area") != "Only masked":
        unused.add("masked_padding")
    if not values.get("reference_model"):
        unused |= {"reference_image", "reference_scale"}
    unused.update(units.idle(values))
    return {name: values[name] for name in REQUEST_FIELDS if name in values and name not in unused}


def with_plugins(values: Values, host: Host) -> dict[str, Any]:
    """With the settings of plugins, which are fields named "ID.setting", as a request has them.

    Raises:
        InvalidField: one is wrong, or its plugin is not on.
    """
    return {**values, "plugins": host.chosen({name: values[name] for name in values if "." in name})}


def task_of(values: Values) -> Task | None:
    """Which tab is open; None if the values do not say, as a script's need not."""
    task = values.get("task")
    if task not in (None, *TASKS):
        raise invalid("task", f"must be one of {', '.join(TASKS)}")
    return task


def with_seeds(request: GenerationRequest) -> GenerationRequest:
    """With seeds drawn where the request leaves them open."""
    return request.replace(seed=drawn(request.seed), variation_seed=drawn(request.variation_seed))


def is_loopback(values: Values) -> bool:
    return _rounds(values) > 1


def delivery(values: Values) -> Delivery:
    """How the pictures are reported and kept.

    Raises:
        InvalidField: naming the first field that is wrong.
    """
    return Delivery(**{name: values[name] for name in DELIVERY_FIELDS if name in values})


def of_request(request: GenerationRequest) -> dict[str, Any]:
    """The fields that make exactly this request again, once."""
    return {**dict(request), "task": request.task, "batch_count": 1, "loopback_rounds": 1}


def of_reading(reading: Reading) -> dict[str, Any]:
    """The fields that a picture's text stands for.

    One with parameters sets every field, what it does not mention to its default; the model only if it
    names one, and source, mask and task only if it names a source. A text of prompts alone sets those alone.

    Raises:
        InvalidField: a value in the text is out of range.
    """
    if reading.fields.keys() <= {"prompt", "negative_prompt"}:
        return reading.fields
    request = reading.request()
    if RANDOM_SEED not in (request.seed, request.variation_seed if request.variation_strength else None):
        request = request.picture(reading.index)
    left = () if request.image else (*OF_SOURCE, *OF_MASK, "task")
    return {
        name: value
        for name, value in of_request(request).items()
        if name not in left and (name != "model" or value)
    }


def of_model(info: ModelInfo) -> dict[str, Any]:
    """The fields that choosing a model sets: its native size and what it works best with."""
    return {"width": info.width, "height": info.height, **info.defaults}


def neutral(plugins: Iterable[Plugin]) -> dict[str, Scalar]:
    """The fields of plugins, at values with which they take no part."""
    return {f"{plugin.id}.{each.name}": each.default for plugin in plugins for each in plugin.settings}


def at_start(models: list[ModelInfo], plugins: Iterable[Plugin] = ()) -> dict[str, Any]:
    """Every field's value on a fresh page."""
    values = {**dict(GenerationRequest()), **dict(Delivery()), **AT_START, **neutral(plugins)}
    if models:
        values |= {**of_model(models[0]), "model": models[0].name}
    return values


def schedules(name: str, infos: list[SchedulerInfo]) -> tuple[str, ...]:
    """The sigma schedules that scheduler ``name`` can follow; "Automatic" always."""
    return next((info.sigma_schedules for info in infos if info.name == name), ("Automatic",))


def uses_eta(name: str, infos: list[SchedulerInfo]) -> bool:
    return any(info.uses_eta for info in infos if info.name == name)


def invalid(field: str, message: str) -> InvalidField:
    """An error that names ``field`` as the page does."""
    return InvalidField(field, message, LABELS.get(field))


def _loopback(
    first: GenerationRequest, rounds: int, count: int, values: Values
) -> Iterator[GenerationRequest]:
    """A request per round, each to start from the picture before it, with its own seed and strength."""
    if first.num_images_per_prompt > 1:
        raise invalid("num_images_per_prompt", "must be 1 for a loopback, which goes on with one picture")
    if count > 1:
        raise invalid("batch_count", "must be 1 for a loopback; its rounds are set under Loopback")
    last, curve = values.get("loopback_strength"), values.get("loopback_curve")
    if not isinstance(last, int | float) or isinstance(last, bool) or not 0 < last <= 1:
        raise invalid("loopback_strength", "must be more than 0 and at most 1")
    if curve not in tuple(CURVES):
        raise invalid("loopback_curve", f"must be one of {', '.join(CURVES)}")
    first = with_seeds(first)
    for i in range(rounds):
        way = CURVES[curve](i / (rounds - 1))
        strength = first.strength + (last - first.strength) * way
        yield first.replace(seed=(first.seed + i) % (MAX_SEED + 1), strength=round(strength, 4))


def _rounds(values: Values) -> int:
    return _whole(values, "loopback_rounds", MAX_ROUNDS) if task_of(values) == "img2img" else 1


def _whole(values: Values, field: str, most: int) -> int:
    """A number of things, 1 to ``most``."""
    count = values.get(field, 1)
    if not isinstance(count, int | float) or isinstance(count, bool) or count % 1 != 0:
        raise invalid(field, "must be a whole number")
    if not 1 <= count <= most:
        raise invalid(field, f"must be at least 1 and at most {most}")
    return int(count)
