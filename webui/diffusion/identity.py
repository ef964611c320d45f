"""What a picture is known by: the same key, the same pixels; anything that changes a pixel changes the key.

The key is the SHA-256 of canonical JSON (keys sorted, no blanks) of the weights' hash, the request without
what has no effect on it, what the scheduler is told, the device, and the versions of what computes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from webui import units
from webui.diffusion import schedulers
from webui.diffusion.devices import Device
from webui.request import GenerationRequest

COMPUTING = ("torch", "diffusers", "transformers", "pillow", "numpy")  # packages whose versions count
SCHEME = 2  # raised when this program itself makes other pixels of the same request

_IMAGE = {"strength", "image", "resize_mode", "color_correction"}
_MASK = {name for name in GenerationRequest.model_fields if name.startswith(("extend_", "mask"))}
_MASK |= {"inpaint_area", "soft_inpainting"}
_HIRES = {name for name in GenerationRequest.model_fields if name.startswith("hires_")}
_PADDING = {"masked_padding"}
_REFERENCE = {"reference_image", "reference_scale"}  # the model is in the additions, by its content


def key(
    request: GenerationRequest,
    model_hash: str,
    config: Mapping[str, Any],
    device: Device,
    alone: bool = True,
    plugins: Sequence[Any] = (),
    additions: Sequence[Any] = (),
) -> str:
    """Of the one picture that a complete request makes, hexadecimal.

    Args:
        model_hash: SHA-256 of the checkpoint's weights. Its name plays no part.
        config: the checkpoint's scheduler config.
        alone: False for a picture that was made in a batch with others, whose last bits may differ.
        plugins: what of those that take part decides the pixels (:meth:`webui.plugins.host.Host.identity`).
        additions: the same of LoRAs and the like (:meth:`webui.diffusion.additions.Additions.identity`).

    Raises:
        InvalidField, Unsupported: the scheduler cannot do what the request asks of it.
        ValueError: the request makes several pictures; a batch is not known to give the same last bits.
    """
    if request.num_images_per_prompt > 1:
        raise ValueError("a key belongs to one picture")
    whole = {
        "scheme": SCHEME,
        "model": model_hash,
        "request": {name: value for name, value in dict(request).items() if name not in _idle(request)},
        "scheduler": schedulers.identity(request, config),
        "noise": "torch, CPU",
        "device": str(device),
        "alone": alone,
        "plugins": plugins,
        "additions": additions,
        "versions": _versions(),
    }
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))  # schedulers' configs hold -inf
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _versions() -> dict[str, str]:
    """Of the packages that compute. Reading them takes a hundredth of a second."""
    return {package: version(package) for package in COMPUTING}


def _idle(request: GenerationRequest) -> set[str]:
    """Fields that say nothing here: part of the key in another form, or without effect on this request."""
    idle = {
        "model",
        "reference_model",
        "vae",
        *(f"{stem}_model" for stem in units.STEMS),
        "scheduler",
        "sigma_schedule",
        "eta",
        "template",
        "negative_template",
        "prepared",
    }
    idle |= {"refiner"} if request.refiner else {"refiner", "refiner_switch"}  # its hash is with the model's
    if not request.variation_strength:
        idle |= {"variation_seed", "variation_strength"}
    if not request.hires:
        idle |= _HIRES
    if request.task == "txt2img":
        idle |= _IMAGE - ({"resize_mode"} if request.controls else set())
    if request.task != "inpaint":
        idle |= _MASK
    idle.update(units.idle(dict(request)))
    if not request.reference_model:
        idle |= _REFERENCE
    if request.inpaint_area == "Whole picture":
        idle |= _PADDING
    return idle
