"""Stable Diffusion 1.x and 2.x: a UNet that reads one CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)

from webui.diffusion.denoiser import Arguments
from webui.diffusion.families.family import Assembled, Family, Plain
from webui.diffusion.pipelines import FromLatents, Ours, Repainting
from webui.diffusion.prompts import Encoder, Text


class Text2Img(Ours, StableDiffusionPipeline):  # type: ignore[misc]
    pass


class Img2Img(FromLatents, StableDiffusionImg2ImgPipeline):  # type: ignore[misc]
    pass


class Inpaint(Repainting, StableDiffusionInpaintPipeline):  # type: ignore[misc]
    pass


class UNetCalls(Plain):
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
        told = dict(kwargs)
        if (scale := told.get("timestep_cond")) is not None:  # of distilled nets, one row per picture
            if len(set(scales.flatten().tolist())) > 1:  # which the pipeline does not know of
                embedded = StableDiffusionPipeline.get_guidance_scale_embedding
                scale = embedded(None, scales.flatten() - 1, embedding_dim=scale.shape[-1])
            told["timestep_cond"] = scale.repeat(len(x) // len(scale), 1).to(x.dtype)
        return (x, timestep), {"encoder_hidden_states": text.tokens, **told}


class StableDiffusion(Family):
    components = ("tokenizer", "text_encoder", "unet", "vae")
    readers = ("text_encoder",)
    pipelines = {"txt2img": Text2Img, "img2img": Img2Img, "inpaint": Inpaint}
    calls = UNetCalls()
    constructed = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def assemble(self, parts: Mapping[str, Any]) -> Assembled:
        return parts["unet"], parts["vae"], Encoder(parts["tokenizer"], parts["text_encoder"])


FAMILIES = {name: StableDiffusion(name) for name in ("sd1", "sd2")}
