"""Text <-> request: the "parameters" text kept inside pictures, in the format AUTOMATIC1111 made common.

::

    a watercolor fox
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, ...

The prompt comes first, then the negative prompt, then one line of ``Key: value`` pairs; a value that the
commas and colons of that line would tear apart is written as a JSON string. What a person typed comes
back unharmed: :func:`write` reads its own text, and where the prompt would come back changed (it has a
``Negative prompt:`` line, or blanks at its end) it adds the exact words as a quoted value of their own.

:func:`read` takes time linear in the length of the text, and never raises: what is out of range is
refused by the request itself, in :meth:`Reading.request`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from webui import __version__, units
from webui.request import (
    HIRES_UPSCALERS,
    INPAINT_AREAS,
    MASKED_CONTENTS,
    MAX_SEED,
    PREPROCESSORS,
    RESIZE_MODES,
    SIGMA_SCHEDULES,
    GenerationRequest,
    Scalar,
)

PROGRAM = "Diffusion Studio"

# A1111's keys in A1111's order, and our fields. "size", "model_hash" and "index" are no fields of a request.
# A1111 knows no key for a mask's hash and growth, for resizing, extending and correcting colours.
_FIELDS = {
    "Steps": "num_inference_steps",
    "Sampler": "scheduler",
    "Schedule type": "sigma_schedule",
    "CFG scale": "guidance_scale",
    "Seed": "seed",
    "Size": "size",
    "Model hash": "model_hash",
    "Model": "model",
    "Variation seed": "variation_seed",
    "Variation seed strength": "variation_strength",
    "Denoising strength": "strength",  # of the second pass, where there is one
    "Clip skip": "clip_skip",
    "Eta": "eta",
    "Init image hash": "image",
    "Mask hash": "mask_image",
    "VAE": "vae",
    **{label: name for name, label in units.LABELS.items()},
    "Reference model": "reference_model",
    "Reference picture": "reference_image",
    "Reference scale": "reference_scale",
    "Mask blur": "mask_blur",
    "Mask mode": "mask_inverted",
    "Inpaint area": "inpaint_area",
    "Masked area padding": "masked_padding",
    "Masked content": "masked_content",
    "Mask grow": "mask_grow",
    "Soft inpainting": "soft_inpainting",
    "Resize mode": "resize_mode",
    "Color correction": "color_correction",
    "Extend left": "extend_left",
    "Extend top": "extend_top",
    "Extend right": "extend_right",
    "Extend bottom": "extend_bottom",
    "Refiner": "refiner",
    "Refiner switch at": "refiner_switch",
    "Hires upscale": "hires_scale",
    "Hires steps": "hires_steps",
    "Hires upscaler": "hires_upscaler",
    "Unused denoising strength": "hires_strength",
    "Batch size": "num_images_per_prompt",
    "Batch pos": "index",
    "Template": "template",
    "Negative Template": "negative_template",
    "Prepared by": "prepared",
    "Plugins": "plugins",
}
_ALWAYS = {"Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size"}  # others unless at their default
_WITH_HIRES = {"Denoising strength", "Hires upscale", "Hires upscaler"}
_WITH_IMAGE = {"Denoising strength", "Resize mode"}
_WITH_MASK = {"Mask blur", "Mask mode", "Inpaint area", "Masked content"}
_HIRES = {"Hires upscale", "Hires resize"}  # either tells of a second pass
_SECOND_PASS = {"Denoising strength": "hires_strength", "Unused denoising strength": "strength"}
_EXACT = {"Exact prompt": "prompt", "Exact negative prompt": "negative_prompt"}
_DEFAULTS = {name: info.default for name, info in GenerationRequest.model_fields.items()}
_DEFAULTS |= {"model_hash": "", "index": None}
_NAMES = {"scheduler", "model", "refiner", "vae", "reference_model"}
_NAMES |= {f"{stem}_model" for stem in units.STEMS}
_WORDS = {*_NAMES, "model_hash", "template", "negative_template"}  # never read as numbers
_DIGESTS = {"image", "mask_image", "reference_image", *(f"{stem}_image" for stem in units.STEMS)}
_OF_PLUGINS = {"plugins", "prepared"}
_HASHES = {
    "Lora hashes",
    "TI hashes",
    "VAE hash",
    "ControlNet hash",
}  # of files that the prompts or fields name: "name: hash, name: hash"

# A1111's other schedules that give the same timesteps as one of ours. Its "Uniform" and "Normal" are
# linspace(999, 0, n); "Simple" is 999 - floor(1000 k / n), our trailing; "DDIM" is 1 + k floor(1000 / n);
# "Polyexponential" with its default rho 1 is exponential.
_SCHEDULES = {name.casefold(): name for name in SIGMA_SCHEDULES} | {
    "uniform": "Linspace",
    "normal": "Linspace",
    "simple": "SGM uniform",
    "ddim": "Leading",
    "polyexponential": "Exponential",
}
_ON_OFF: dict[str, Any] = {"true": True, "false": False}
_CHOICES: dict[str, dict[str, Any]] = {
    "sigma_schedule": _SCHEDULES,
    "hires_upscaler": {name.casefold(): name for name in HIRES_UPSCALERS},
    "resize_mode": {name.casefold(): name for name in RESIZE_MODES},
    "masked_content": {name.casefold(): name for name in MASKED_CONTENTS},
    "inpaint_area": {name.casefold(): name for name in INPAINT_AREAS},
    "mask_inverted": {"inpaint masked": False, "inpaint not masked": True},
    **{f"{stem}_preprocessor": {name.casefold(): name for name in PREPROCESSORS} for stem in units.STEMS},
    "color_correction": _ON_OFF,
    "soft_inpainting": _ON_OFF,
}
_SPELT: dict[str, dict[Any, str]] = {  # as A1111 writes them
    "sigma_schedule": {"SGM uniform": "SGM Uniform"},
    "masked_content": {name: name.lower() for name in MASKED_CONTENTS},
    "mask_inverted": {False: "Inpaint masked", True: "Inpaint not masked"},
}

_SYNONYMS = {"Eta DDIM": "Eta", "Soft inpainting enabled": "Soft inpainting"}

# What A1111 does for "Automatic" with samplers that prefer a schedule; with the others, as the model says.
_A1111_AUTOMATIC = {
    "DPM++ 2M": "Karras",
    "DPM++ SDE": "Karras",
    "DPM++ 2S a": "Karras",
    "DPM2": "Karras",
    "DPM2 a": "Karras",
    "DPM++ 2M SDE": "Exponential",
    "DPM++ 2M SDE Heun": "Exponential",
    "DPM++ 3M SDE": "Exponential",
}

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHORT_HASH = re.compile(r" \[[0-9a-f]{8,10}\]$")
_KEY = re.compile(r"\s*(\w[\w \-/]+):\s*")
_QUOTED = re.compile(r'("(?:\\.|[^\\"])*")\s*(?:,|$)')
_BARE = re.compile(r"([^,]*),?")
_NEGATIVE = re.compile(r"^[ \t]*Negative prompt:", re.MULTILINE)
_LEAST = 3  # keys we know that make a line one of parameters, and not of a prompt


@dataclass(frozen=True)
class Reading:
    """What a text says.

    ``fields`` are values for :class:`~webui.request.GenerationRequest`, not yet validated, of the whole
    batch; ``index`` is the picture's place in it. ``unknown`` holds what was not understood, by its key:
    other programs' keys, and choices that are not offered here. Whether the source and the mask that the
    text names are still there, and the reader's own, is not known here. ``hashes`` are those of LoRAs and
    the like, as written by key.
    """

    fields: dict[str, Any]
    unknown: dict[str, str] = field(default_factory=dict)
    model_hash: str = ""  # as written: usually the first 10 hexadecimal digits of the SHA-256
    version: str = ""  # the program that wrote the text
    index: int = 0
    hashes: dict[str, str] = field(default_factory=dict)

    def request(self) -> GenerationRequest:
        """The whole batch's request; what the text does not mention has its default.

        Raises:
            InvalidField: a value is of the wrong kind or out of range.
        """
        return GenerationRequest(**self.fields)

    def picture(self) -> GenerationRequest:
        """The request that makes only the picture that holds the text.

        Raises:
            InvalidField: a value is of the wrong kind or out of range.
        """
        self.request()
        return GenerationRequest(**_moved(self.fields, self.index) | {"num_images_per_prompt": 1})


def write(
    request: GenerationRequest,
    model: str,
    model_hash: str,
    index: int = 0,
    extra: Mapping[str, str] = {},
    plugins: Mapping[str, str] = {},
) -> str:
    """The text of picture ``index`` of the request's batch.

    Reading it gives the request again, with ``model`` as its model: a request that leaves the model
    open ("") comes back with the one that was used.

    Args:
        model: the name of the checkpoint used.
        model_hash: SHA-256 of its weights, hexadecimal; its first 10 digits are written.
        plugins: ids and versions of those that touched the picture; their settings are the request's.
        extra: further pairs, read into :attr:`Reading.hashes` or :attr:`Reading.unknown`. Keys are words of
            two characters or more.
    """
    pairs = {**_settings(request, model, model_hash, index, plugins), **extra}
    version = {"Version": f"{PROGRAM} {__version__}"}
    head = _head(request.prompt, request.negative_prompt)
    seen = read(_text(head, pairs | version)).fields
    exact = {
        key: getattr(request, name) for key, name in _EXACT.items() if seen[name] != getattr(request, name)
    }
    return _text(head, pairs | exact | version)


def read(text: str) -> Reading:
    """What the text of a picture says: one of ours, A1111's, or of a program that writes the same.

    A text without parameters is just a prompt, with its negative prompt if it has such a line.
    """
    lines = _lines(text)
    head, _, last = lines.rstrip().rpartition("\n")
    pairs = dict(_pairs(last))
    if len(pairs.keys() & _FIELDS.keys()) < _LEAST:
        return Reading(_visible(lines) if _NEGATIVE.search(lines) else {"prompt": text})
    version = pairs.pop("Version", "")
    fields: dict[str, Any] = _prompts(head, pairs)
    ours = version.startswith(PROGRAM)
    if not ours:
        pairs = _translated(pairs)
    hashes = {key: pairs.pop(key) for key in _HASHES & pairs.keys()}
    unknown, names = {}, _names("Init image hash" not in pairs and not pairs.keys().isdisjoint(_HIRES))
    for key, text in pairs.items():
        name = names.get(key)
        value = _value(name, text, ours) if name else None
        if name is None or value is None:
            unknown[key] = text
        else:
            fields[name] = value
    _unfold_size(fields)
    model_hash, index = fields.pop("model_hash", ""), fields.pop("index", 0)
    if not _is_place(index, fields):
        unknown["Batch pos"], index = str(index), 0
    return Reading(_moved(fields, -index), unknown, model_hash, version, index, hashes)


def _settings(
    request: GenerationRequest, model: str, model_hash: str, index: int, plugins: Mapping[str, str]
) -> dict[str, str]:
    """The pairs that say everything but the prompts."""
    values = _moved(dict(request), index) | {
        "size": f"{request.width}x{request.height}",
        "model": model,
        "model_hash": model_hash[:10],
        "index": index if request.num_images_per_prompt > 1 else None,
        "plugins": _nested({**dict(request.plugins), **plugins}) or (),
        "prepared": _nested(dict(request.prepared)) or (),
    }
    always = _always(request)
    return {
        key: _SPELT.get(name, {}).get(values[name]) or _plain(values[name])
        for key, name in _names(request.hires).items()
        if key in always or values[name] != _DEFAULTS[name]
    }


def _always(request: GenerationRequest) -> set[str]:
    """The keys that are written even where their values are the default."""
    return (
        _ALWAYS
        | (_WITH_HIRES if request.hires else set())
        | (_WITH_IMAGE if request.image else set())
        | (_WITH_MASK if request.task == "inpaint" else set())
        | ({"Masked area padding"} if request.inpaint_area == "Only masked" else set())
    )


def _names(hires: bool) -> dict[str, str]:
    """Which field each key means; a second pass has its own denoising strength under A1111's key."""
    return _FIELDS | (_SECOND_PASS if hires else {})


def _value(name: str, text: str, ours: bool) -> Any:
    """A field's value as written; None if that is no choice here."""
    if name == "hires_upscaler" and ours:  # a plugin's, perhaps
        return _CHOICES[name].get(text.casefold(), text)
    if name in _CHOICES:
        return _CHOICES[name].get(text.casefold())
    if name in _DIGESTS:  # A1111's are shorter, and of the file
        return text if _DIGEST.fullmatch(text) else None
    if name in _OF_PLUGINS:
        return _flat(name, text)
    return text if name in _WORDS else _number(text)


def _nested(values: Mapping[str, Scalar]) -> str:
    """{"ID": version, "ID.setting": value} -> JSON of {"ID version": {"setting": value}}; "" of nothing."""
    plugins: dict[str, dict[str, Scalar]] = {}
    for name, value in values.items():
        id, dot, setting = name.partition(".")
        told = plugins.setdefault(f"{id} {values.get(id, '')}".strip(), {})
        if dot:
            told[setting] = value
    return json.dumps(plugins, ensure_ascii=False) if plugins else ""


def _flat(name: str, text: str) -> dict[str, Scalar] | None:
    """What :func:`_nested` made a text of, versions only of ``prepared``; None if it is something else."""
    try:
        plugins = [(*key.partition(" ")[::2], told) for key, told in json.loads(text).items()]
        settings = {f"{id}.{setting}": value for id, _, told in plugins for setting, value in told.items()}
    except (ValueError, AttributeError, RecursionError):
        return None
    if not all(isinstance(value, Scalar) for value in settings.values()):
        return None
    return {
        **settings,
        **({id: version for id, version, _ in plugins if version} if name == "prepared" else {}),
    }


def _moved(fields: dict[str, Any], by: int) -> dict[str, Any]:
    """Move the seed that tells a batch's pictures apart by ``by`` places; -1 (not yet drawn) stays."""
    strength = fields.get("variation_strength", 0)
    name = "variation_seed" if isinstance(strength, (int, float)) and strength > 0 else "seed"
    seed = fields.get(name)
    if not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        return fields
    return {**fields, name: (seed + by) % (MAX_SEED + 1)}


def _is_place(index: object, fields: dict[str, Any]) -> bool:
    """Whether a batch of this size has a picture ``index``."""
    size = fields.get("num_images_per_prompt", 1)
    return isinstance(index, int) and isinstance(size, int) and 0 <= index < max(size, 1)


def _unfold_size(fields: dict[str, Any]) -> None:
    """512x768 -> width and height."""
    if "size" in fields:
        width, _, height = str(fields.pop("size")).lower().partition("x")
        fields |= {"width": _number(width), "height": _number(height)}


def _translated(pairs: dict[str, str]) -> dict[str, str]:
    """A1111's dialect in our words: "DPM++ 2M Karras" holds two values, "Automatic" may mean Karras.

    A refiner is written with its short hash.
    """
    if "Refiner" in pairs:
        pairs = {**pairs, "Refiner": _SHORT_HASH.sub("", pairs["Refiner"])}
    sampler, schedule = pairs.get("Sampler", ""), pairs.get("Schedule type", "")
    name, _, last = sampler.rpartition(" ")
    if last in ("Karras", "Exponential") and schedule in ("", "Automatic"):
        pairs = {**pairs, "Sampler": name, "Schedule type": last}
    elif schedule == "Automatic":
        pairs = {**pairs, "Schedule type": _A1111_AUTOMATIC.get(sampler, schedule)}
    return {_SYNONYMS.get(key, key): value for key, value in pairs.items()}


def _head(prompt: str, negative_prompt: str) -> str:
    return "\n".join(filter(None, [prompt, negative_prompt and f"Negative prompt: {negative_prompt}"]))


def _visible(head: str) -> dict[str, str]:
    """The prompts as anyone would read them off the text, without blanks round them."""
    mark = _NEGATIVE.search(head)
    prompt, negative_prompt = (head[: mark.start()], head[mark.end() :]) if mark else (head, "")
    return {"prompt": prompt.strip(), "negative_prompt": negative_prompt.strip()}


def _prompts(head: str, pairs: dict[str, str]) -> dict[str, str]:
    """The prompts, exact where the text says so and nobody has changed the visible ones since.

    Takes the exact words out of ``pairs``.
    """
    visible = _visible(head)
    exact = visible | {name: pairs.pop(key) for key, name in _EXACT.items() if key in pairs}
    unchanged = _lines(_head(**exact)).strip() == head.strip()
    return exact if unchanged else visible


def _text(head: str, pairs: Mapping[str, str]) -> str:
    line = ", ".join(f"{key}: {_quoted(value, key in _HASHES)}" for key, value in pairs.items())
    return "\n".join(filter(None, [head, line]))


def _lines(text: str) -> str:
    """With \\n for every line end, as a text box in a browser has it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """The ``Key: value`` pairs of one line; what lies between them is skipped.

    Linear: a key is looked for only behind a comma and holds none, and the scan of a quoted value ends at
    the next bare quotation mark, where the scan of another may begin.
    """
    at = 0
    while at < len(line):
        key = _KEY.match(line, at)
        value = key and (_QUOTED.match(line, key.end()) or _BARE.match(line, key.end()))
        if key and value:
            yield key[1].strip(), _unquoted(value[1])
            at = value.end()
        else:
            comma = line.find(",", at)
            at = comma + 1 if comma >= 0 else len(line)


def _plain(value: object) -> str:
    """A value as text from which :func:`_number` makes exactly the same one; 7.0 is 7."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _number(text: str) -> int | float | str:
    """A number if it is one; else the text, for the request to refuse."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _quoted(value: str, openly: bool = False) -> str:
    """As it is if it can be read back so, else JSON.

    Commas and colons inside are escaped, so that readers that only split at them stay in step; not if
    ``openly``, as there are readers that look for A1111's very letters.
    """
    if value == value.strip() and not value.startswith('"') and not re.search(r"[,:\n\r]", value):
        return value
    text = json.dumps(value, ensure_ascii=False)
    return text if openly else text.replace(",", r"\u002c").replace(":", r"\u003a")


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value.strip()
    try:
        text = json.loads(value)
        text.encode()  # JSON can hold half a surrogate pair, which no file can
    except ValueError:
        return value
    return str(text)
