"""Stable Diffusion XL: a UNet that reads two CLIPs side by side, and is told what size it makes.

Podell et al. 2023, arXiv:2307.01952. The refiner reads the second CLIP alone, and is told an aesthetic
score in the place of the size (section 2.5; the scores are diffusers' defaults).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from webui.diffusion.denoiser import Arguments, Denoiser
from webui.diffusion.families.family import Assembled, Family
from webui.diffusion.families.stable_diffusion import UNetCalls
from webui.diffusion.pipelines import FromLatents, Ours, Repainting
from webui.diffusion.prompts import Encoder, Text
from webui.diffusion.towers import Towers
from webui.request import Task

PENULTIMATE = 2  # the layer that both encoders are read at, counted from the end
PIXELS = 8  # of a latent pixel's side
SCORE, SCORE_AGAINST = 6.0, 2.5  # of ten, for the prompt and for the negative prompt


class Text2Img(Ours, StableDiffusionXLPipeline):  # type: ignore[misc]
    pass


class Img2Img(FromLatents, StableDiffusionXLImg2ImgPipeline):  # type: ignore[misc]
    pass


class Inpaint(Repainting, StableDiffusionXLInpaintPipeline):  # type: ignore[misc]
    pass


class XLCalls(UNetCalls):
    """Tells the size or the score itself: a pipeline that does not guide knows only those of the prompt."""

    def __init__(self, scored: bool) -> None:
        self.scored = scored

    def arguments(
        self,
        net: Any,
        x: torch.Tensor,
        timestep: torch.Tensor,
        text: Text,
        against: int,
        scales: torch.Tensor,
        kwargs: Mapping[str, Any],
    ) -> Arguments:
        placed, named = super().arguments(net, x, timestep, text, against, scales, kwargs)
        rows = [self._numbers(x, k < against) for k in range(len(x))]
        added = {
            "text_embeds": text.pooled,
            "time_ids": torch.tensor(rows, dtype=torch.float32, device=x.device),
        }
        return placed, named | {"added_cond_kwargs": added}

    def _numbers(self, x: torch.Tensor, against: bool) -> list[float]:
        """Original size, crop and either score or target size: a picture as large as it is, and not cut."""
        size = [side * PIXELS for side in x.shape[-2:]]
        score = SCORE_AGAINST if against else SCORE
        return [*size, 0, 0, *([score] if self.scored else size)]


class StableDiffusionXL(Family):
    components = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "unet", "vae")
    readers: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    pipelines = {"txt2img": Text2Img, "img2img": Img2Img, "inpaint": Inpaint}
    constructed = {"add_watermarker": False}
    calls = XLCalls(scored=False)

    def assemble(self, parts: Mapping[str, Any]) -> Assembled:
        towers = [
            Encoder(parts["tokenizer"], parts["text_encoder"], PENULTIMATE),
            Encoder(parts["tokenizer_2"], parts["text_encoder_2"], PENULTIMATE),
        ]
        return parts["unet"], parts["vae"], Towers(towers, side_by_side, zeroes=True)


class Refiner(StableDiffusionXL):
    optional = ("tokenizer", "text_encoder")
    calls = XLCalls(scored=True)
    readers = ("text_encoder_2",)

    def pipeline(self, task: Task, denoiser: Denoiser, vae: Any, scheduler: Any) -> Any:
        pipe = super().pipeline(task, denoiser, vae, scheduler)
        pipe.register_to_config(requires_aesthetics_score=True)
        return pipe

    def assemble(self, parts: Mapping[str, Any]) -> Assembled:
        tower = Encoder(parts["tokenizer_2"], parts["text_encoder_2"], PENULTIMATE)
        return parts["unet"], parts["vae"], Towers([tower], side_by_side)


def side_by_side(texts: Sequence[Text]) -> Text:
    """(1, L, D1 + D2), and the summary of the last."""
    return Text(torch.cat([text.tokens for text in texts], dim=-1), texts[-1].pooled)


FAMILIES = {"sdxl": StableDiffusionXL("sdxl"), "sdxl-refiner": Refiner("sdxl-refiner")}
