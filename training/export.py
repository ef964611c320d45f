"""Put the parts together in diffusers' Stable Diffusion layout, as the studio and everyone else load it."""

import json
import shutil
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from training.card import card
from training.concepts import load
from training.diffusion import scheduler
from training.packages import STYLE_PACKAGES
from training.recipe import Recipe
from training.scenes import article

TITLE = "Pocket (embedded)"
PHRASES = ("{} on a blue background", "{}, 3d", "{}", "{} on a light blue background", "{}, flat")


def assemble(work: Path) -> StableDiffusionPipeline:
    """The pipeline of a work folder's averaged weights, float32."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae", dtype=torch.float32),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer", model_max_length=77),
        unet=UNet2DConditionModel.from_pretrained(work / "unet", dtype=torch.float32),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(work: Path, recipe: Recipe, target: Path) -> None:
    """Write a new folder: float16, except the text encoder.

    transformers loads an encoder in the precision of its file, diffusers a UNet in float32: were both files
    float16, a plain `from_pretrained` would mix the two and fail at the first step.
    """
    pipeline = assemble(work)
    pipeline.unet.half()
    pipeline.vae.half()
    pipeline.save_pretrained(target)
    for part in ("unet", "vae"):
        forget_origin(target / part / "config.json")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(work / "tokenizer" / name, target / "tokenizer" / name)
    (target / "webui.json").write_text(json.dumps(webui(recipe), indent=2) + "\n")
    (target / "README.md").write_text(card(TITLE, recipe))
    recipe.save(target)
    copy_licences(work / "packages", recipe, target / "licences")


def forget_origin(config: Path) -> None:
    """diffusers writes down the folder that weights were loaded from: a path of this machine."""
    settings = json.loads(config.read_text())
    settings.pop("_name_or_path", None)
    config.write_text(json.dumps(settings, indent=2) + "\n")


def webui(recipe: Recipe) -> dict[str, Any]:
    """What the studio shows of a model: title, note, prompts to begin with, settings that suit it."""
    phrases = [phrase for phrase in PHRASES if "3d" not in phrase or "3d" in recipe.styles]
    names = [article(concept.name) for concept in load(min(10, recipe.concepts))]
    return {
        "title": TITLE,
        "note": (
            "A very small model: everyday things in emoji style, with a style word and a background colour, "
            f"at {recipe.image_size}x{recipe.image_size} pixels."
        ),
        "examples": [phrase.format(name) for phrase, name in zip(cycle(phrases), names, strict=False)],
        "defaults": {"guidance_scale": 4.0, "num_inference_steps": 20},
    }


def copy_licences(packages: Path, recipe: Recipe, target: Path) -> None:
    """Each package's own words about its licence: package.json, and info.json or LICENSE where it has one."""
    target.mkdir(exist_ok=True)
    for style in recipe.styles:
        package = STYLE_PACKAGES[style]
        for path in (packages / package.folder).iterdir():
            if path.name.startswith(("LICEN", "package.json", "info.json")):
                shutil.copy(path, target / f"{package.folder}.{path.name}")
