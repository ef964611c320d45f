"""Encode scenes once with the finished VAE: the diffusion stage then reads latents, not pictures."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from training.recipe import Recipe
from training.scenes import Composer, Scene


@dataclass(frozen=True)
class Latents:
    """N latents (N, 4, h, w) float16 of variance 1, their tokens (N, 77), and those of no caption (77,)."""

    pictures: torch.Tensor
    tokens: torch.Tensor
    empty: torch.Tensor

    def save(self, path: Path) -> None:
        np.savez(path, pictures=self.pictures, tokens=self.tokens.to(torch.int32), empty=self.empty)

    @classmethod
    def load(cls, path: Path) -> "Latents":
        with np.load(path) as file:
            return cls(*(torch.from_numpy(file[name]) for name in ("pictures", "tokens", "empty")))


def encode(recipe: Recipe, composer: Composer, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> Latents:
    """Draw `scenes_per_sprite` scenes of every sprite, the first of them plain, and encode them."""
    chosen = scenes(recipe, composer)
    return Latents(
        torch.cat([encode_pixels(vae, [s.pixels for s in batch]).half() for batch in batches(chosen, 64)]),
        tokens(tokenizer, [scene.caption for scene in chosen]),
        tokens(tokenizer, [""])[0],
    )


def scenes(recipe: Recipe, composer: Composer) -> list[Scene]:
    keys = sorted(composer.sprites)
    drawn = [composer.plain(*key) for key in keys]
    drawn += [composer.scene(*key) for key in keys for _ in range(recipe.scenes_per_sprite - 1)]
    random.Random(recipe.seed).shuffle(drawn)
    return drawn


def batches(items: list[Scene], size: int) -> list[list[Scene]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


@torch.no_grad()
def encode_pixels(vae: AutoencoderKL, pictures: list[np.ndarray]) -> torch.Tensor:
    """(H, W, 3) uint8 each -> (N, 4, H/8, W/8) float32: the posterior's mean times the scaling factor."""
    latents: torch.Tensor = vae.encode(as_tensor(pictures)).latent_dist.mean * vae.config.scaling_factor
    return latents


def as_tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """(H, W, 3) uint8 each -> (N, 3, H, W) float32 in -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """(N, 77) int64, padded as the pipelines pad."""
    rows = tokenizer(captions, padding="max_length", max_length=77, truncation=True).input_ids
    return torch.tensor(rows)
