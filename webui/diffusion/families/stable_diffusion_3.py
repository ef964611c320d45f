"""Stable Diffusion 3 and 3.5: a transformer that reads two CLIPs and, where it is there, a T5.

Esser et al. 2024, arXiv:2403.03206. Without its T5 (4.7 billion parameters) it reads zeros in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import (
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from torch.nn import functional

from webui.diffusion.denoiser import Arguments
from webui.diffusion.families.family import Assembled, Family, Plain, shift
from webui.diffusion.pipelines import FromLatents, Ours, Repainting
from webui.diffusion.prompts import Encoder, Text
from webui.diffusion.towers import T5, Towers

PENULTIMATE = 2
T5_LENGTH = 256  # tokens


class Text2Img(Ours, StableDiffusion3Pipeline):  # type: ignore[misc]
    pass


class Img2Img(FromLatents, StableDiffusion3Img2ImgPipeline):  # type: ignore[misc]
    pass


class Inpaint(Repainting, StableDiffusion3InpaintPipeline):  # type: ignore[misc]
    """(Its own decoding in diffusers 0.42.1 forgets the VAE's shift; ours does not.)"""


class TransformerCalls(Plain):
    def timestep(self, timestep: torch.Tensor) -> torch.Tensor:
        return timestep[0]

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
        return (), {**kwargs, "hidden_states": x, "timestep": timestep[:1].expand(len(x)), **told}


class StableDiffusion3(Family):
    components = (
        *("tokenizer", "tokenizer_2", "tokenizer_3"),
        *("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"),
    )
    optional = ("tokenizer_3", "text_encoder_3")
    readers = ("text_encoder", "text_encoder_2", "text_encoder_3")
    pipelines = {"txt2img": Text2Img, "img2img": Img2Img, "inpaint": Inpaint}
    calls = TransformerCalls()

    def assemble(self, parts: Mapping[str, Any]) -> Assembled:
        clips = [
            Encoder(parts["tokenizer"], parts["text_encoder"], PENULTIMATE),
            Encoder(parts["tokenizer_2"], parts["text_encoder_2"], PENULTIMATE),
        ]
        t5 = parts.get("text_encoder_3")
        long = [] if t5 is None else [T5(parts["tokenizer_3"], t5, T5_LENGTH)]
        width = parts["transformer"].config.joint_attention_dim
        return parts["transformer"], parts["vae"], Towers([*clips, *long], partial(joined, width=width))

    def set_timesteps(self, scheduler: Any, steps: int, width: int, height: int) -> None:
        side = self.facts.multiple
        scheduler.set_timesteps(steps, mu=shift(scheduler.config, (width // side) * (height // side)))


def joined(texts: Sequence[Text], width: int) -> Text:
    """Both CLIPs side by side, widened with zeros, before T5: (1, L, width); both summaries."""
    one, two, *long = texts
    clips = torch.cat([one.tokens, two.tokens], dim=-1)
    clips = functional.pad(clips, (0, width - clips.shape[-1]))
    t5 = long[0].tokens.to(clips.dtype) if long else clips.new_zeros(1, T5_LENGTH, width)
    pooled = [text.pooled for text in (one, two) if text.pooled is not None]
    return Text(torch.cat([clips, t5], dim=-2), torch.cat(pooled, dim=-1))


FAMILIES = {"sd3": StableDiffusion3("sd3")}
