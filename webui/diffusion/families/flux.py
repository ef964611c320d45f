"""Flux: a transformer that reads a T5 and the summary of a CLIP, distilled so that it needs no guidance.

Flux.1 dev is told the guidance scale; schnell takes none at all. Its latents are packed, 2 x 2 of them in a
row of a sequence; everything outside this module sees them unpacked, (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline, FluxPipeline

from webui.diffusion.denoiser import Arguments
from webui.diffusion.families.family import Assembled, Family, shift
from webui.diffusion.pipelines import FromLatents, Ours, Repainting, packed, unpacked
from webui.diffusion.preview import TRAIN_TIMESTEPS
from webui.diffusion.prompts import Encoder, Text
from webui.diffusion.towers import T5, Towers

T5_LENGTH = 512  # tokens


class Text2Img(Ours, FluxPipeline):  # type: ignore[misc]
    pass


class Img2Img(FromLatents, FluxImg2ImgPipeline):  # type: ignore[misc]
    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        start = super().prepare_latents(*args, **kwargs)
        return packed(start), _places(self, start)


class Inpaint(Repainting, FluxInpaintPipeline):  # type: ignore[misc]
    def prepare_latents(self, *args: Any, **_: Any) -> Any:
        start = self._start(timestep=args[1], from_noise=self.content is None)
        assert self.source is not None
        return packed(start), packed(self.noise), packed(self.source), _places(self, start)

    def prepare_mask_latents(self, *args: Any, **kwargs: Any) -> Any:
        mask, masked = super().prepare_mask_latents(*args, **kwargs)
        self._mask = packed(mask.expand(-1, self.noise.shape[1], -1, -1))
        return self._mask, packed(masked)

    def soften(self, step: int) -> None:
        self._mask.copy_(packed(self._of_step(step + 1).expand(self.noise.shape)))


def _places(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Where each row of the packed latents is."""
    batch, _, height, width = latents.shape
    places: torch.Tensor = pipe._prepare_latent_image_ids(
        batch, height // 2, width // 2, latents.device, latents.dtype
    )
    return places


class FluxCalls:
    def latents(self, sample: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor:
        _, row, column = kwargs["img_ids"][-1].tolist()
        return unpacked(sample, 2 * (int(row) + 1), 2 * (int(column) + 1))

    def packed(self, output: torch.Tensor) -> torch.Tensor:
        return packed(output)

    def timestep(self, timestep: torch.Tensor) -> torch.Tensor:
        return timestep[0] * TRAIN_TIMESTEPS

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
        told = {"encoder_hidden_states": text.tokens, "pooled_projections": text.pooled}
        guidance = scales.flatten() if net.config.guidance_embeds else None
        timestep = timestep[:1].expand(len(x))
        own = {"hidden_states": packed(x), "timestep": timestep, "guidance": guidance}
        return (), {**kwargs, **own, **told}


class Flux(Family):
    components = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "transformer", "vae")
    readers = ("text_encoder", "text_encoder_2")
    pipelines = {"txt2img": Text2Img, "img2img": Img2Img, "inpaint": Inpaint}
    calls = FluxCalls()
    per_cell = 4

    def assemble(self, parts: Mapping[str, Any]) -> Assembled:
        towers = [
            Encoder(parts["tokenizer"], parts["text_encoder"]),
            T5(parts["tokenizer_2"], parts["text_encoder_2"], T5_LENGTH),
        ]
        return parts["transformer"], parts["vae"], Towers(towers, long_and_summary, counted=1, guided=False)

    def packed(self, latents: torch.Tensor) -> torch.Tensor:
        return packed(latents)

    def unpacked(self, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return unpacked(latents, height, width)

    def set_timesteps(self, scheduler: Any, steps: int, width: int, height: int) -> None:
        side = self.facts.multiple
        mu = shift(scheduler.config, (width // side) * (height // side))
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)


def long_and_summary(texts: Sequence[Text]) -> Text:
    """What T5 makes of the text, and CLIP's summary."""
    clip, t5 = texts
    return Text(t5.tokens, clip.pooled)


FAMILIES = {"flux": Flux("flux")}
