"""Families of models: which there are, and what can be said of each without torch.

Their own objects, which know their pipelines, parts and latents, are in :mod:`webui.diffusion.families`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from webui import prompt_syntax, units
from webui.catalogue.auto import AUTO
from webui.catalogue.found import FAMILY_TITLES
from webui.diffusion import schedulers
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
    auto: bool = False  # diffusers' pipeline is called as it is, picture by picture


FACTS: Mapping[str, Facts] = {
    "sd1": Facts("stable_diffusion", "sd"),
    "sd2": Facts("stable_diffusion", "sd"),
    "sdxl": Facts("stable_diffusion_xl", "sdxl"),
    "sdxl-refiner": Facts("stable_diffusion_xl", "sdxl", tasks=("img2img", "inpaint")),
    "sd3": Facts("stable_diffusion_3", "sd3", "transformer", multiple=16, rounds_up=True),
    "flux": Facts("flux", "flux", "transformer", multiple=16, clip_skip=False, rounds_up=True, guided=False),
    **{
        name: Facts(
            "auto", name, own.net, own.multiple, own.tasks, False, own.rounds_up, own.guided, auto=True
        )
        for name, own in AUTO.items()
    },
}
#: What works inside a pipeline, and so is not there where one is called as it is: field -> neutral value.
BETWEEN = {
    "variation_strength": 0.0,
    "hires_scale": 1.0,
    "refiner": "",
    "soft_inpainting": False,
    "vae": "",
    **{f"{stem}_model": "" for stem in units.STEMS},
    "reference_model": "",
}


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


def check(request: GenerationRequest, name: str) -> None:
    """Refuse what a model of this family cannot do. (Its tasks are in its ``ModelInfo``.)

    Raises:
        InvalidField, Unsupported: names the field.
    """
    facts = FACTS[name]
    for field in ("width", "height"):
        _check_side(field, getattr(request, field), facts.multiple)
    if any(side % facts.multiple for side in request.final_size):
        width, height = request.final_size
        wanted = f"both must be multiples of {facts.multiple} for this model"
        raise invalid("hires_scale", f"makes {width}x{height}; {wanted}")
    if request.clip_skip > 1 and not facts.clip_skip:
        raise invalid("clip_skip", "has no effect on this model; set it to 1", Unsupported)
    if facts.auto:
        _check_auto(request, name)
    elif not facts.guided and len(prompt_syntax.parse(request.prompt)) > 1:
        raise invalid("prompt", "AND needs a model with a negative prompt, which this is not", Unsupported)


def check_recorded(name: str, reuse: bool) -> None:
    """Refuse to record what a model of this family makes, where that cannot be watched.

    Args:
        reuse: a picture that is there already would be taken, and several might be made at once.

    Raises:
        Unsupported: names the field.
    """
    if FACTS[name].auto:
        what = f"{FAMILY_TITLES[name]} cannot be recorded: its pipeline is called as it is, and not watched"
        raise invalid("model", what, Unsupported)
    if reuse:
        raise invalid(
            "record", "the cells of a comparison are not recorded; make the picture by itself", Unsupported
        )


def _check_side(field: str, side: int, multiple: int) -> None:
    if over := side % multiple:
        nearest = " or ".join(str(fit) for fit in (side - over, side - over + multiple) if fit)
        raise invalid(field, f"must be a multiple of {multiple} for this model, such as {nearest}")


def _check_auto(request: GenerationRequest, name: str) -> None:
    """
    Raises:
        Unsupported: it asks for what is done between the steps of a pipeline, or to its parts.
    """
    title = FAMILY_TITLES[name]
    for field, neutral in BETWEEN.items():
        if getattr(request, field) != neutral:
            raise invalid(field, f"cannot be used with {title}; {_leave(neutral)}", Unsupported)
    if prompt_syntax.loras(request.prompt):
        raise invalid("prompt", f"LoRAs cannot be used with {title}", Unsupported)
    for field in ("resize_mode", "masked_content"):
        if request.image and getattr(request, field).startswith("Latent"):
            raise invalid(field, f"{getattr(request, field)} cannot be used with {title}", Unsupported)


def _leave(neutral: object) -> str:
    return (
        "leave it empty"
        if neutral == ""
        else "switch it off"
        if neutral is False
        else f"set it to {neutral:g}"
    )


def calls(request: GenerationRequest, name: str) -> int:
    """How often a request calls the net of a model of this family, all passes together."""
    facts = FACTS[name]
    pictures = request.num_images_per_prompt if facts.auto else 1
    return pictures * schedulers.calls(request, facts.rounds_up)
