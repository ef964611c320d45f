"""Families of models: which there are, and what can be said of each without torch.

Their own objects, which know their pipelines, parts and latents, are in :mod:`webui.diffusion.families`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from webui import prompt_syntax
from webui.errors import Unsupported
from webui.request import TASKS, GenerationRequest, ModelInfo, Task, invalid


@dataclass(frozen=True)
class Facts:
    """What a request must know of a family."""

    module: str
    latents: str  # those of one name can be gone on with by each other
    net: str = "unet"  # the part that denoises: the name of its folder
    multiple: int = 8  # of a picture's sides, in pixels
    tasks: tuple[Task, ...] = TASKS
    clip_skip: bool = True  # False: what it would skip plays no part
    rounds_up: bool = False  # the steps of a pass over a picture; else they are rounded down
    guided: bool = True  # False: distilled; the CFG scale is told to the net, and there is no negative prompt


FACTS: Mapping[str, Facts] = {
    "sd1": Facts("stable_diffusion", "sd"),
    "sd2": Facts("stable_diffusion", "sd"),
    "sdxl": Facts("stable_diffusion_xl", "sdxl"),
    "sdxl-refiner": Facts("stable_diffusion_xl", "sdxl", tasks=("img2img", "inpaint")),
    "sd3": Facts("stable_diffusion_3", "sd3", "transformer", multiple=16, rounds_up=True),
    "flux": Facts("flux", "flux", "transformer", multiple=16, clip_skip=False, rounds_up=True, guided=False),
}
# Pipelines of diffusers, up to what their name says of the task.
_PIPELINES = {
    "StableDiffusion": "sd1",
    "StableDiffusionXL": "sdxl",
    "StableDiffusion3": "sd3",
    "Flux": "flux",
}


def named(pipeline: str, net: Mapping[str, Any]) -> str:
    """The family of a diffusers folder.

    Args:
        pipeline: ``_class_name`` of its model_index.json.
        net: config of its UNet or transformer.

    Returns:
        A name of :data:`FACTS`; "" if it is of no family that is known here.
    """
    stem = pipeline.removesuffix("Pipeline").removesuffix("Img2Img").removesuffix("Inpaint")
    family = _PIPELINES.get(stem, "")
    if family == "sd1" and net.get("use_linear_projection"):
        return "sd2"
    if family == "sdxl" and _is_refiner(net):
        return "sdxl-refiner"
    return family


def check_refiner(model: ModelInfo, refiner: ModelInfo) -> None:
    """Refuse a refiner that cannot go on with what the model has begun.

    Raises:
        Unsupported: names the field.
    """
    one, other = FACTS[model.family], FACTS[refiner.family]
    if one.latents != other.latents:
        raise invalid("refiner", f"{refiner.title} has other latents than {model.title}", Unsupported)
    for each in (model, refiner):
        if "img2img" not in each.tasks:
            raise invalid("refiner", f"{each.title} is made for inpainting; it cannot share", Unsupported)


def _is_refiner(net: Mapping[str, Any]) -> bool:
    """It is told five numbers, the last a score, and the summary of the one encoder it reads."""
    numbers = 5 * (net.get("addition_time_embed_dim") or 0)
    told = net.get("projection_class_embeddings_input_dim") or 0
    return bool(told - numbers == net.get("cross_attention_dim"))


def check(request: GenerationRequest, name: str) -> None:
    """Refuse what a model of this family cannot do. (Its tasks are in its ``ModelInfo``.)

    Raises:
        InvalidField, Unsupported: names the field.
    """
    facts = FACTS[name]
    for field in ("width", "height"):
        if getattr(request, field) % facts.multiple:
            raise invalid(field, f"must be a multiple of {facts.multiple} for this model")
    if any(side % facts.multiple for side in request.final_size):
        width, height = request.final_size
        wanted = f"both must be multiples of {facts.multiple} for this model"
        raise invalid("hires_scale", f"makes {width}x{height}; {wanted}")
    if request.clip_skip > 1 and not facts.clip_skip:
        raise invalid("clip_skip", "has no effect on this model; set it to 1", Unsupported)
    if not facts.guided and len(prompt_syntax.parse(request.prompt)) > 1:
        raise invalid("prompt", "AND needs a model with a negative prompt, which this is not", Unsupported)
