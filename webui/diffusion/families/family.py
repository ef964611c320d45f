"""What the families have in common: the pipelines of diffusers, dressed, and how they are called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from webui.diffusion.denoiser import Calls, Denoiser
from webui.diffusion.lineage import FACTS
from webui.diffusion.prompts import Step, TextEncoder
from webui.request import Task

Assembled = tuple[Any, Any, TextEncoder]  # (net, VAE, encoder)


class Family(ABC):
    """Has no state: what belongs to a model is in :class:`webui.diffusion.model.Model`.

    ``components``: the parts of a model_index.json that are loaded, but for the scheduler, in the order in
    which they are needed; ``optional`` ones may be missing. ``pipelines``: a class for each task, which also
    takes the attributes of :mod:`webui.diffusion.pipelines`.
    """

    components: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    readers: ClassVar[tuple[str, ...]]  # the text encoders among them, in the order of an encoder's towers
    pipelines: ClassVar[Mapping[Task, type[Any]]]
    calls: ClassVar[Calls]
    constructed: ClassVar[Mapping[str, Any]] = {}  # what else a pipeline is made with
    per_cell: ClassVar[int] = 1  # channels of the net's input for each of the latents'

    def __init__(self, name: str) -> None:
        self.name = name
        self.facts = FACTS[name]

    @property
    def guided(self) -> bool:
        return self.facts.guided

    @abstractmethod
    def assemble(self, parts: Mapping[str, Any]) -> Assembled:
        """Of the loaded ``components``; an optional one that is missing is None or left out."""

    def pipeline(self, task: Task, denoiser: Denoiser, vae: Any, scheduler: Any) -> Any:
        """diffusers' own, round a denoiser; it has no text encoder, as the embeddings are ours."""
        others = [name for name in self.components if name not in (self.facts.net, "vae")]
        parts = {self.facts.net: denoiser, "vae": vae, "scheduler": scheduler}
        return self.pipelines[task](**dict.fromkeys(others), **parts, **self.constructed)

    def told(self, step: Step) -> dict[str, Any]:
        """A pipeline's arguments for the texts of a pass's first step."""
        texts = {"": step.positives[0][0], **({"negative_": step.negative} if self.guided else {})}
        told = {f"{which}prompt_embeds": text.tokens.float() for which, text in texts.items()}
        pooled = {
            f"{which}pooled_prompt_embeds": text.pooled.float()
            for which, text in texts.items()
            if text.pooled is not None
        }
        return told | pooled

    def packed(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) as a pipeline of the family holds them."""
        return latents

    def unpacked(self, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The inverse of :meth:`packed`, to (B, C, height, width)."""
        return latents

    def set_timesteps(self, scheduler: Any, steps: int, width: int, height: int) -> None:
        """As the family's pipelines do, for a picture of this size in pixels."""
        scheduler.set_timesteps(steps)

    def takes_mask(self, net: Any, vae: Any) -> bool:
        """Whether the net, made for inpainting, is given mask and masked picture beside the latents."""
        return bool(net.config.in_channels > self.per_cell * vae.config.latent_channels)


def shift(config: Mapping[str, Any], places: int) -> float:
    """How far flow is shifted (mu) for a picture that a transformer sees as so many places."""
    names = {"base_seq_len": "base_image_seq_len", "max_seq_len": "max_image_seq_len"}
    names |= {"base_shift": "base_shift", "max_shift": "max_shift"}
    mu: float = calculate_shift(places, **{name: config[key] for name, key in names.items() if key in config})
    return mu


class Plain:
    """What :class:`webui.diffusion.denoiser.Calls` are where nothing is packed or scaled."""

    def latents(self, sample: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor:
        return sample

    def packed(self, output: torch.Tensor) -> torch.Tensor:
        return output

    def timestep(self, timestep: torch.Tensor) -> torch.Tensor:
        return timestep
