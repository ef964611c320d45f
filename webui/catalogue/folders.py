"""What a folder in diffusers' or transformers' layout is: read from its JSON files and one header."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from webui.catalogue import headers, identify, relatives
from webui.catalogue.auto import AUTO, refusal
from webui.catalogue.found import PICTURE_ENCODER, Family, Identity, Kind, Signature
from webui.catalogue.walking import Spot
from webui.request import TASKS, Task

_TITLES: tuple[tuple[str, Family], ...] = (
    ("StableDiffusion", "sd1"),
    ("StableDiffusionXL", "sdxl"),
    ("StableDiffusion3", "sd3"),
    ("Flux", "flux"),
    ("LatentConsistencyModel", "sd1"),
    *((auto.pipeline, family) for family, auto in AUTO.items()),
)
#: diffusers' pipelines by the family of what they hold; "sd1" and "sdxl" are told further by their parts.
PIPELINES: Mapping[str, Family] = {
    f"{title}{task}Pipeline": family for title, family in _TITLES for task in ("", "Img2Img", "Inpaint")
}
MODELS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
NETS = ("unet", "transformer")
LIBRARIES = ("diffusers", "transformers")  # whose classes a part may be of
#: Folders of one part, by the class in their config.json.
CLASSES: Mapping[str, Kind] = {
    "ControlNetModel": "controlnet",
    "ControlNetUnionModel": "controlnet",
    "FluxControlNetModel": "controlnet",
    "SD3ControlNetModel": "controlnet",
    "AutoencoderKL": "vae",
    "AutoencoderTiny": "preview",
    "UNet2DConditionModel": "net",
    "FluxTransformer2DModel": "net",
    "SD3Transformer2DModel": "net",
    "CLIPTextModel": "text encoder",
    "CLIPTextModelWithProjection": "text encoder",
    "T5EncoderModel": "text encoder",
}


class Unusable(Exception):
    """The message is a sentence for a person."""


def weights(spot: Spot, pickled: bool = False) -> Signature:
    """The files that are loaded, of every part: those without a variant, else "fp16" ones.

    They are .safetensors, or, where a part has none and pickles are allowed (``pickled``), .bin.
    """
    parts = {name.rpartition("/")[0] for name, _, _ in spot.files}
    endings = (".safetensors", ".bin") if pickled else (".safetensors",)
    return tuple(file for part in sorted(parts) for file in _of_part(spot.files, part, endings))


def _of_part(files: Signature, part: str, endings: Sequence[str]) -> list[tuple[str, int, int]]:
    for ending in endings:
        own = [file for file in files if file[0].rpartition("/")[0] == part and file[0].endswith(ending)]
        plain = [file for file in own if not _variant(file[0], ending)]
        if own := plain or [file for file in own if _variant(file[0], ending) == "fp16"]:
            return own
    return []


def _variant(name: str, ending: str) -> str:
    """ "fp16" of ``unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors``."""
    return name.rpartition("/")[2].removesuffix(ending).partition(".")[2].partition("-")[0]


def read(spot: Spot, pickled: bool = False) -> Identity:
    """
    Raises:
        Unusable: it cannot be used, and why.
    """
    names = {name for name, _, _ in spot.files}
    if "model_index.json" in names:
        return _pipeline(spot, weights(spot, pickled))
    config = _json(spot.path / "config.json")
    title = str(config.get("_class_name") or next(iter(config.get("architectures") or ()), ""))
    if title == "CLIPVisionModelWithProjection" and weights(spot):
        return Identity("other", layout=PICTURE_ENCODER, problem=relatives.OF_PICTURES)
    kind = CLASSES.get(title)
    if kind is None:
        raise Unusable(f"It is a folder of {title or 'a kind'} that is not known here.")
    problem = "" if weights(spot) else "It has no .safetensors weights."
    if kind in ("net", "text encoder"):
        problem = "It is one part of a model, not a model by itself."
    if title == "ControlNetUnionModel":
        problem = relatives.UNION
    family = relatives.CONTROLNETS.get(title) or identify.CONTEXTS.get(
        _number(config, "cross_attention_dim"), ""
    )
    if kind == "preview":
        family = relatives.preview_family(spot.name)
    return Identity(kind, family, "diffusers", problem, precision=_precision(spot, NETS))


def _pipeline(spot: Spot, files: Signature) -> Identity:
    index = _json(spot.path / "model_index.json")
    title = str(index.get("_class_name"))
    family = PIPELINES.get(title)
    if family is None:
        reason = refusal(title)
        raise Unusable(f"It is a {title}, {f'and {reason}' if reason else 'which is not supported here'}.")
    parts = [part for part in MODELS if _named(index, part)]
    for part in parts:
        if index[part][0] not in LIBRARIES:
            raise Unusable(f"Its {part} is a class of {index[part][0]}, whose code is not run here.")
    there = {name.partition("/")[0] for name, _, _ in files}
    if lacking := [part for part in [*_needed(family), *parts] if part not in there]:
        missing = ", ".join(dict.fromkeys(lacking))
        raise Unusable(f"It is a {title} and lacks .safetensors weights of {missing}.")
    net = _json(spot.path / next(part for part in NETS if part in parts) / "config.json")
    if family == "sdxl" and "text_encoder" not in parts:
        family = "sdxl-refiner"
    if family == "sd1" and net.get("use_linear_projection"):
        family = "sd2"
    tasks, problem = _tasks(family, net, _json(spot.path / "vae" / "config.json"))
    if problem:
        raise Unusable(problem)
    prediction = _prediction(_json(spot.path / "scheduler" / "scheduler_config.json"))
    precision = _precision(spot, NETS)
    return Identity("checkpoint", family, "diffusers", "", prediction, precision, tasks)


def _prediction(scheduler: Mapping[str, Any]) -> str:
    flows = str(scheduler.get("_class_name")).startswith("FlowMatch") or scheduler.get("use_flow_sigmas")
    return identify.FLOW if flows else str(scheduler.get("prediction_type", "epsilon"))


def _needed(family: Family) -> Sequence[str]:
    """The parts without which no pipeline of a family runs."""
    if family in ("sd3", "flux"):
        return "transformer", "vae", "text_encoder"
    if family in AUTO:
        return AUTO[family].net, "vae", "text_encoder"
    return ("unet", "vae") if family == "sdxl" else ("unet", "vae", "text_encoder")


def _tasks(
    family: Family, net: Mapping[str, Any], vae: Mapping[str, Any]
) -> tuple[tuple[Task, ...], str]:  # fmt: skip
    """A net for inpainting takes mask and masked latents besides its latents."""
    if family in AUTO:
        return AUTO[family].tasks, ""
    channels, latents = _number(net, "in_channels"), _number(vae, "latent_channels")
    packed = 4 * latents if family == "flux" else latents  # Flux takes 2x2 cells at once
    if channels == packed:
        return (("img2img", "inpaint") if family == "sdxl-refiner" else TASKS), ""
    if family not in ("sd3", "flux") and channels == 2 * latents + 1:
        return ("inpaint",), ""
    return (), f"Its net takes {channels} channels, which is no task that is known here."


def _precision(spot: Spot, parts: Iterable[str]) -> str:
    """Of the net's first file, or of the folder's own; "" if its header is damaged (loading will say so)."""
    files = [name for name, _, _ in weights(spot)]
    first = next((name for name in files if name.partition("/")[0] in parts), next(iter(files), ""))
    try:
        return headers.read(spot.path / first).precision if first else ""
    except (OSError, headers.Unreadable):
        return ""


def _named(index: Mapping[str, Any], part: str) -> bool:
    """Whether the pipeline has this part: its entry is [library, class], of nulls if it has not."""
    entry = index.get(part)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else 0


def _json(path: Path) -> Mapping[str, Any]:
    """
    Raises:
        Unusable: it is missing, or does not hold an object.
    """
    place = f"{path.parent.name}/{path.name}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unusable(f"Its {place} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise Unusable(f"Its {place} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise Unusable(f"Its {place} does not hold an object.")
    return content
