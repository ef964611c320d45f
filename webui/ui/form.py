"""What a person filled in, by field name <-> requests. Pure functions; the page's words are in ``layout``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from webui.infotext import Reading
from webui.request import (
    MAX_SEED,
    RANDOM_SEED,
    Delivery,
    GenerationRequest,
    ModelInfo,
    SchedulerInfo,
    drawn,
    invalid,
)

MAX_BATCH_COUNT = 100

Values = Mapping[str, Any]  # field name -> value: of a request, a delivery, and "batch_count"

REQUEST_FIELDS = tuple(GenerationRequest.model_fields)
DELIVERY_FIELDS = tuple(Delivery.model_fields)
FIELDS = (*REQUEST_FIELDS, "batch_count", *DELIVERY_FIELDS)


def requests(values: Values) -> list[GenerationRequest]:
    """One request per batch. Picture seeds are consecutive over all of them.

    A random seed is drawn here only if there are several batches; else the engine draws it.

    Raises:
        InvalidField: naming the first field that is wrong.
    """
    first = GenerationRequest(**{name: values[name] for name in REQUEST_FIELDS if name in values})
    count = _batch_count(values)
    if count == 1:
        return [first]
    first = first.replace(seed=drawn(first.seed), variation_seed=drawn(first.variation_seed))
    moving = "variation_seed" if first.variation_strength > 0 else "seed"
    start, size = getattr(first, moving), first.num_images_per_prompt
    return [first.replace(**{moving: (start + i * size) % (MAX_SEED + 1)}) for i in range(count)]


def delivery(values: Values) -> Delivery:
    """How the pictures are reported and kept.

    Raises:
        InvalidField: naming the first field that is wrong.
    """
    return Delivery(**{name: values[name] for name in DELIVERY_FIELDS if name in values})


def of_request(request: GenerationRequest) -> dict[str, Any]:
    """The fields that make exactly this request again, once."""
    return {**dict(request), "batch_count": 1}


def of_reading(reading: Reading) -> dict[str, Any]:
    """The fields that a picture's text stands for.

    One with parameters sets every field, what it does not mention to its default; the model only if it
    names one. A text of prompts alone sets the prompts alone.

    Raises:
        InvalidField: a value in the text is out of range.
    """
    if reading.fields.keys() <= {"prompt", "negative_prompt"}:
        return reading.fields
    request = reading.request()
    if RANDOM_SEED not in (request.seed, request.variation_seed if request.variation_strength else None):
        request = request.picture(reading.index)
    return {name: value for name, value in of_request(request).items() if name != "model" or value}


def of_model(info: ModelInfo) -> dict[str, Any]:
    """The fields that choosing a model sets: its native size and what it works best with."""
    return {"width": info.width, "height": info.height, **info.defaults}


def at_start(models: list[ModelInfo]) -> dict[str, Any]:
    """Every field's value on a fresh page."""
    values = {**dict(GenerationRequest()), "batch_count": 1, **dict(Delivery())}
    if models:
        values |= {**of_model(models[0]), "model": models[0].name}
    return values


def schedules(name: str, infos: list[SchedulerInfo]) -> tuple[str, ...]:
    """The sigma schedules that scheduler ``name`` can follow; "Automatic" always."""
    return next((info.sigma_schedules for info in infos if info.name == name), ("Automatic",))


def uses_eta(name: str, infos: list[SchedulerInfo]) -> bool:
    return any(info.uses_eta for info in infos if info.name == name)


def _batch_count(values: Values) -> int:
    count = values.get("batch_count", 1)
    if not isinstance(count, int | float) or isinstance(count, bool) or count % 1 != 0:
        raise invalid("batch_count", "must be a whole number")
    if not 1 <= count <= MAX_BATCH_COUNT:
        raise invalid("batch_count", f"must be at least 1 and at most {MAX_BATCH_COUNT}")
    return int(count)
