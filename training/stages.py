"""The stages over a work folder: each reads what earlier ones left there and leaves its own.

recipe.json, packages/, sprites.npz, tokenizer/, vae/, latents.npz, unet/ and text_encoder/ and checkpoint.pt,
judge.pt, model/, report/.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from training import concepts, sprites, tokenizer, vae
from training.budget import Budget
from training.diffusion import Trainer
from training.export import export
from training.latents import Latents, encode
from training.recipe import Recipe
from training.scenes import Composer

log = logging.getLogger(__name__)


def start_from(model: Path, work: Path) -> None:
    """Begin with the weights of a finished model; its tokenizer and VAE stay as they are."""
    for part in ("tokenizer", "vae", "unet", "text_encoder"):
        shutil.copytree(model / part, work / part)


def render(work: Path, recipe: Recipe) -> None:
    drawn = sprites.render(
        concepts.load(recipe.concepts), recipe.styles, recipe.image_size, work / "packages"
    )
    sprites.save(drawn, work / "sprites.npz")


def train_tokenizer(work: Path, recipe: Recipe) -> None:
    """All names of the list, also those the recipe leaves out: the next run may widen."""
    tokenizer.save(tokenizer.train(recipe, concepts.load()), work / "tokenizer")


def train_vae(work: Path, recipe: Recipe) -> None:
    vae.train(recipe, composer(work, recipe)).save_pretrained(work / "vae")


def refine_decoder(work: Path, recipe: Recipe, budget: Budget) -> None:
    """The VAE's decoder goes on learning; its latents, and so the UNet, stay as they are."""
    learnt = AutoencoderKL.from_pretrained(work / "vae", dtype=torch.float32)
    vae.refine(learnt, recipe, composer(work, recipe, seed=recipe.seed + 1), budget).save_pretrained(
        work / "vae"
    )


def cache_latents(work: Path, recipe: Recipe) -> None:
    encoder = AutoencoderKL.from_pretrained(work / "vae", dtype=torch.float32).eval()
    words = CLIPTokenizer.from_pretrained(work / "tokenizer")
    encode(recipe, composer(work, recipe), encoder, words).save(work / "latents.npz")


def train(work: Path, recipe: Recipe, budget: Budget | None = None, compiled: bool = False) -> None:
    words = CLIPTokenizer.from_pretrained(work / "tokenizer")
    trainer = Trainer(work, recipe, Latents.load(work / "latents.npz"), words)
    trainer.train(budget or Budget(recipe.steps), compiled)


def export_model(work: Path, recipe: Recipe) -> None:
    export(work, recipe, work / "model")


def composer(work: Path, recipe: Recipe, seed: int | None = None) -> Composer:
    """Scenes of this recipe, the same ones each time; others with another seed."""
    drawn = sprites.load(work / "sprites.npz")
    seed = recipe.seed if seed is None else seed
    return Composer(concepts.load(recipe.concepts), drawn, recipe.image_size, seed)


STAGES: dict[str, Callable[[Path, Recipe], None]] = {
    "render": render,
    "tokenizer": train_tokenizer,
    "vae": train_vae,
    "latents": cache_latents,
    "train": train,
    "export": export_model,
}
LEAVES = dict(zip(STAGES, ("sprites.npz", "tokenizer", "vae", "latents.npz", "unet", "model"), strict=True))


def run_all(work: Path, recipe: Recipe) -> None:
    """Run the stages whose result is not there yet."""
    for name, stage in STAGES.items():
        if not (work / LEAVES[name]).exists():
            log.info("Stage: %s", name)
            stage(work, recipe)
