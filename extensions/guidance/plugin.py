"""Guidance: what is made of the net's predictions with and without the prompt, after five papers.

The formulas are in ``formulas.py``, one function each; what they need inside the net is in ``freeu.py``
and ``perturbed.py``. Nothing here needs torch: tensors bring their arithmetic along.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from webui.errors import InvalidField
from webui.hookspecs import Parts, Prediction, Setting, Values, hookimpl

from . import formulas, freeu, perturbed

if TYPE_CHECKING:
    import torch


share = functools.partial(Setting, minimum=0, maximum=1, step=0.05)
weight = functools.partial(Setting, minimum=0.1, maximum=2, step=0.05)


@hookimpl
def settings() -> list[Setting]:
    backbone = "Weight of the decoder's own features, {} stage; 1 leaves it. FreeU, Si et al. 2023."
    skips = "Weight of coarse skip features, {} stage; 1 leaves it. FreeU, Si et al. 2023."
    return [
        share(
            "rescale",
            0.0,
            "CFG rescale",
            "How far to go back to the contrast of no guidance; 0.7 is usual. Against burnt colours. "
            "Lin et al. 2023.",
        ),
        share(
            "interval_start",
            0.0,
            "Guidance from",
            "A share of the steps. Without guidance at first, seeds vary more. Kynkäänniemi et al. 2024.",
        ),
        share(
            "interval_end",
            1.0,
            "Guidance until",
            "A share of the steps. The last ones hardly need guidance. Kynkäänniemi et al. 2024.",
        ),
        Setting(
            "threshold_scale",
            0.0,
            "Threshold as at CFG scale",
            "Dynamic thresholding: the range of values that this lower CFG scale would give; 0 is off. "
            "Saharia et al. 2022, for latents.",
            minimum=0,
            maximum=30,
            step=0.5,
        ),
        Setting(
            "threshold_percentile",
            99.5,
            "Threshold percentile",
            "So many of 100 values are pressed into that range; those beyond are cut off.",
            minimum=50,
            maximum=100,
            step=0.5,
        ),
        Setting(
            "pag",
            0.0,
            "Perturbed-attention guidance",
            "Away from a picture without structure, also at CFG scale 1; 3 is usual. One more call of the "
            "net a step. Ahn et al. 2024.",
            minimum=0,
            maximum=10,
            step=0.1,
        ),
        weight("freeu_b1", 1.0, "FreeU b1", backbone.format("first")),
        weight("freeu_b2", 1.0, "FreeU b2", backbone.format("second")),
        weight("freeu_s1", 1.0, "FreeU s1", skips.format("first")),
        weight("freeu_s2", 1.0, "FreeU s2", skips.format("second")),
    ]


@hookimpl
def patch(parts: Parts, settings: Values) -> AbstractContextManager[None] | None:
    scales = {name: settings[f"freeu_{name}"] for name in freeu.NAMES}
    changed = [name for name, scale in scales.items() if scale != 1.0]
    if not changed:
        return None
    if parts.unet is None:
        raise InvalidField(f"guidance.freeu_{changed[0]}", "this model has no UNet, which FreeU is made for")
    return freeu.enabled(parts.unet, scales)


@hookimpl
def attention(name: str, original: Any, settings: Values) -> Any | None:
    return perturbed.Perturbable(original) if settings.pag and perturbed.is_perturbed(name) else None


@hookimpl
def guide(prediction: Prediction, parts: Parts, settings: Values) -> torch.Tensor:
    """In this order: the interval, perturbed attention, the threshold, the rescale."""
    if not settings.interval_start <= prediction.step / prediction.steps < settings.interval_end:
        return prediction.cond
    guided = prediction.guided
    if settings.pag:
        without = perturbed.predict(prediction, parts.unet or parts.transformer)
        guided = guided + settings.pag * (prediction.cond - without)
    if settings.threshold_scale:
        reference = formulas.guided(prediction.cond, prediction.uncond, settings.threshold_scale)
        x0 = formulas.thresholded(
            prediction.x0(guided), prediction.x0(reference), settings.threshold_percentile / 100
        )
        guided = prediction.output(x0)
    if settings.rescale:
        guided = formulas.rescaled(guided, prediction.cond, settings.rescale)
    return guided
