"""The model card that goes with exported weights: data, licences, recipe, limits."""

from dataclasses import asdict

from training.packages import STYLE_PACKAGES, Package
from training.recipe import Recipe, versions
from training.scenes import BACKGROUNDS, STYLE_WORDS

CARD = """\
# {title}

A small latent diffusion model in diffusers' Stable Diffusion layout, trained on a CPU by this project's
`training/`: `StableDiffusionPipeline.from_pretrained(folder)` works offline, and so do the img2img and
inpaint pipelines. Made for {size}x{size} pixels.

## What it was taught
{concepts} things in {styles} styles, alone, in a colour, small and in a place, twice, or beside another,
on white, on a named colour or on a gradient of two.
Style words: {words}. Backgrounds: {backgrounds}.

## Data
{packages}
Names and keywords: emojibase-data (MIT). No Apple, Facebook or OpenMoji art, nothing share-alike. The
packages' own notices are in `licences/`.

## Limits
It knows these things and no others; it draws emoji, not photographs; it has no safety checker and, by its
data, little need of one.

## Recipe
{recipe}

Versions: {versions}.
"""


def card(title: str, recipe: Recipe) -> str:
    """The README.md of an export; figures are `evaluate`'s to add."""
    packages = dict.fromkeys(STYLE_PACKAGES[style] for style in recipe.styles)
    return CARD.format(
        title=title,
        size=recipe.image_size,
        concepts=recipe.concepts,
        styles=len(recipe.styles),
        words="; ".join(", ".join(STYLE_WORDS[style]) for style in recipe.styles),
        backgrounds=", ".join(BACKGROUNDS),
        packages="\n".join(line(package) for package in packages),
        recipe=", ".join(f"{name} {value}" for name, value in asdict(recipe).items()),
        versions=", ".join(f"{name} {value}" for name, value in versions().items()),
    )


def line(package: Package) -> str:
    return f"- {package.owner}: npm `{package.name}` {package.version}, {package.licence}"
