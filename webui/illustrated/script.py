"""The run as a plain script of diffusers, with no line of this program in it.

A script is written only where it makes this picture, or one that differs by rounding alone; of everything
else it is said what stands in the way. A record may come from anywhere, so all that is taken from it is
written as Python literals, or must be a plain name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from webui import prompt_syntax
from webui.flight import FlightRecord

PIPELINES = {  # of a family: diffusers' class, and what its loading is told besides
    "sd1": ("StableDiffusionPipeline", "safety_checker=None"),
    "sd2": ("StableDiffusionPipeline", "safety_checker=None"),
    "sdxl": ("StableDiffusionXLPipeline", "add_watermarker=False"),
}
ETA = {"TCDScheduler": 0.3}  # where none was asked for; else 0, which is diffusers' own
PRECISIONS = ("float32", "bfloat16", "float16")
PLACES = 77  # of a chunk of tokens, start and end among them
EXACT_ON = "cpu, float32, sdpa"


@dataclass(frozen=True)
class Script:
    """``why``: why there is no ``text``, or what it makes is not ``exact``; else empty."""

    text: str
    exact: bool  # makes the same picture bit for bit, on the same machine with the same versions
    why: str


def script(record: FlightRecord) -> Script:
    """The record's first pass as a script, or why there is none."""
    for problem in _problems(record):
        return Script("", False, f"There is no script: {problem}.")
    why = next(_differences(record), "")
    return Script(_text(record), not why, why)


def _text(record: FlightRecord) -> str:
    request = record.request
    pipeline, loading = PIPELINES[record.family]
    device, precision, *_ = record.device.split(", ")
    kind = record.scheduler_config["_class_name"]
    told = {name: value for name, value in record.scheduler_config.items() if name != "_class_name"}
    options = "".join(f", {name}={value!r}" for name, value in told.items())
    inputs: dict[str, Any] = {"prompt": request.prompt}
    if request.negative_prompt:
        inputs["negative_prompt"] = request.negative_prompt
    inputs |= {
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
    }
    if eta := _eta(record):
        inputs["eta"] = eta
    return "\n".join(
        [
            *(f"# {name} {version}" for name, version in record.versions.items()),
            "import torch",
            f"from diffusers import {kind}, {pipeline}",
            "",
            f"MODEL = {'path/to/' + record.model!r}  # a folder of diffusers', or one .safetensors file",
            "",
            "one_file = MODEL.endswith('.safetensors')",
            f"load = {pipeline}.from_single_file if one_file else {pipeline}.from_pretrained",
            f"pipe = load(MODEL, dtype=torch.{precision}, {loading})",
            f"pipe.scheduler = {kind}.from_config(pipe.scheduler.config{options})",
            f"pipe.to({device!r})",
            "image = pipe(",
            *(f"    {name}={value!r}," for name, value in inputs.items()),
            f"    generator=torch.Generator('cpu').manual_seed({request.seed}),",
            ").images[0]",
            "image.save('picture.png')",
            "",
        ]
    )


def _eta(record: FlightRecord) -> float:
    if record.request.eta is not None:
        return record.request.eta
    return ETA.get(record.scheduler_config["_class_name"], 0.0)


def _problems(record: FlightRecord) -> Iterator[str]:
    """What of the run a plain pipeline cannot do, or what is not known well enough to write it down."""
    request = record.request
    if record.family not in PIPELINES:
        yield "none is written of models of this family"
    kind, *options = record.scheduler_config.get("_class_name", ""), *record.scheduler_config
    if not all(isinstance(name, str) and name.isidentifier() for name in (kind, *options)):
        yield "the scheduler is a plugin's, or is not known"
    if not all(map(_literal, record.scheduler_config.values())):
        yield "the scheduler's options cannot be written down"
    if not re.fullmatch(rf"[a-z]+(:\d+)?, ({'|'.join(PRECISIONS)}), .*", record.device):
        yield "the device is not known"
    if not all(re.fullmatch(r"[\w.]+ [\w.+-]+", " ".join(pair)) for pair in record.versions.items()):
        yield "the versions are not known"
    yield from _additions(record)
    if not _plain(request.prompt) or not _plain(request.negative_prompt, compose=False):
        yield "the prompt has weights, or other syntax that diffusers takes for words"
    if any(note.name == "prompt embeddings" and note.shape[-2:-1] != (PLACES,) for note in record.arrays):
        yield "the prompt is longer than one chunk of tokens, and diffusers would cut it off"


def _additions(record: FlightRecord) -> Iterator[str]:
    """What takes part besides a model, its words and a seed."""
    request = record.request
    parts = {
        "a source picture is prepared by this program": request.image,
        "the second pass is this program's": request.hires,
        "a refiner takes part": request.refiner,
        "another VAE takes part": request.vae,
        "a ControlNet takes part": request.controls,
        "a reference picture takes part": request.reference_model,
        "plugins take part": request.plugins,
        "a LoRA takes part": prompt_syntax.without_loras(request.prompt) != request.prompt,
        "a word is explained by a file": "TI hashes" in record.additions,
        "clip skip is this program's": request.clip_skip > 1,
        "the noise is mixed from two seeds": request.variation_strength > 0,
    }
    yield from (words for words, there in parts.items() if there)


def _differences(record: FlightRecord) -> Iterator[str]:
    """What makes the script's picture differ by rounding."""
    if record.device != EXACT_ON:
        yield (
            f"The run computed on {record.device}, with latents in float32 between the steps; what the "
            "script makes may differ in its last bits, and in detail."
        )
    if record.request.sigma_schedule == "Beta":
        yield "Beta sigmas may have two equal timesteps, at which diffusers alone may lose a step."


def _plain(text: str, compose: bool = True) -> bool:
    """Whether its words are all that it says."""
    parts = prompt_syntax.parse(text, compose)
    nodes = parts[0].nodes if len(parts) == 1 else ()
    return "".join(node for node in nodes if isinstance(node, str)) == text


def _literal(value: Any) -> bool:
    """Whether it is one of JSON's that Python writes as it reads it."""
    if isinstance(value, list | tuple):
        return all(map(_literal, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str)
