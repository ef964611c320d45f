"""Cold diffusion: what a model makes of a start that is not Gaussian noise.

After Bansal et al. 2022, 'Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise'
(arXiv:2208.09392), who train models to undo blurring, masking or blending with another picture. Here the
model is one that has only ever seen Gaussian noise, and is given something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image

from webui.errors import InvalidField
from webui.hookspecs import Setting, StepEnd, Values, hookimpl
from webui.request import GenerationRequest

from . import patterns

if TYPE_CHECKING:
    import torch

NOISE, SOURCE = "Noise", "Source picture"


@hookimpl
def settings() -> list[Setting]:
    return [
        Setting(
            "pattern",
            NOISE,
            "Start from",
            "Models know Gaussian noise only, and take a pattern for a picture hidden in it: at CFG scale 1 "
            "wholly, guided the embedded one hardly at all.",
            choices=(NOISE, *patterns.PATTERNS, SOURCE),
        ),
        Setting(
            "amount",
            1.0,
            "Share of the pattern",
            "The rest stays noise.",
            minimum=0,
            maximum=1,
            step=0.05,
        ),
        Setting(
            "transform",
            "Blend",
            "Put in by",
            "Blend: everywhere a little. Circle wipe: in the middle. Blur: what is coarse.",
            choices=("Blend", "Circle wipe", "Blur"),
        ),
        Setting(
            "hold",
            False,
            "Hold it",
            "In every step, what is not yet picture becomes the start again. Also with schedulers that add "
            "noise, which otherwise forget the start.",
        ),
    ]


@hookimpl
def prepare_request(request: GenerationRequest, settings: Values) -> None:
    """Refuse at once what could not be done later."""
    if settings.pattern == SOURCE and not request.image:
        raise InvalidField(
            "cold-diffusion.pattern", "needs image to image for its source picture", "Start from"
        )


@hookimpl
def start(
    noise: torch.Tensor,
    request: GenerationRequest,
    encode: Callable[[Image.Image], torch.Tensor],
    source: Image.Image | None,
    settings: Values,
) -> torch.Tensor | None:
    if settings.pattern == NOISE or not settings.amount:
        return None
    from . import mixing  # needs torch, which is not there yet when the page is laid out

    size = request.width, request.height
    picture = source.resize(size) if source and settings.pattern == SOURCE else None
    pattern = encode(picture or patterns.drawn(settings.pattern, size)).to(noise).expand_as(noise)
    return mixing.mixed(noise, pattern, settings.transform, settings.amount)


@hookimpl
def step_end(step: StepEnd, settings: Values) -> torch.Tensor | None:
    """The paper's algorithm 1: what is predicted, degraded anew, with the start as what degrades it."""
    if not settings.hold or not step.noise:
        return None
    return step.signal * step.x0 + step.noise * step.start
