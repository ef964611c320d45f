"""Families that run as diffusers has them: its AutoPipelines know the pipelines, called here as they are.

What is said of them needs no torch, so that a page can adapt to them; a test compares it with diffusers.
:mod:`webui.diffusion.auto` makes their pictures. The other families have modules of their own in
:mod:`webui.diffusion.families`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from webui.request import TASKS, Task


@dataclass(frozen=True)
class Auto:
    """A family.

    ``pipeline``: diffusers' class for text to image, without "Pipeline". ``steps`` and ``scale``: its
    defaults; of a model made for few steps, ``quick`` are enough. ``from_zero``: its pipeline calls a scale
    of 1 (nothing is guided) 0, and so on. ``room``: for tokens of a prompt, where its call does not say.
    ``rounds_up``: see :class:`webui.diffusion.lineage.Facts`.
    """

    title: str
    pipeline: str
    steps: int
    scale: float
    multiple: int = 16  # of a picture's sides, in pixels: the VAE's scale times the net's patch
    tasks: tuple[Task, ...] = ("txt2img",)
    net: str = "transformer"
    guided: bool = True
    rounds_up: bool = False
    from_zero: bool = False
    quick: int = 4
    room: int = 0


AUTO: Mapping[str, Auto] = {
    "pixart-alpha": Auto("PixArt-α", "PixArtAlpha", 20, 4.5),
    "pixart-sigma": Auto("PixArt-Σ", "PixArtSigma", 20, 4.5),
    "sana": Auto("Sana", "Sana", 20, 4.5, multiple=32),
    "hunyuan-dit": Auto("Hunyuan-DiT", "HunyuanDiT", 50, 5.0, room=256),
    "aura-flow": Auto("AuraFlow", "AuraFlow", 50, 3.5),
    "lumina": Auto("Lumina-Next", "Lumina", 30, 4.0),
    "lumina2": Auto("Lumina-Image 2", "Lumina2", 30, 4.0),
    "chroma": Auto("Chroma", "Chroma", 35, 5.0),
    "cogview3": Auto("CogView 3 Plus", "CogView3Plus", 50, 5.0),
    "cogview4": Auto("CogView 4", "CogView4", 50, 5.0),
    "ovis-image": Auto("Ovis-Image", "OvisImage", 50, 5.0),
    "flux2-klein": Auto("Flux.2 klein", "Flux2Klein", 50, 4.0, guided=False),
    "qwen-image": Auto("Qwen-Image", "QwenImage", 50, 4.0, tasks=TASKS, rounds_up=True),
    "z-image": Auto("Z-Image", "ZImage", 50, 6.0, tasks=TASKS, rounds_up=True, from_zero=True, quick=8),
}

#: Pipelines that diffusers knows and that do not run here, by what their names begin with or hold.
_REFUSED: tuple[tuple[str, str], ...] = (
    (r"\w*Control", "holds a ControlNet, which belongs into a folder of its own"),
    (r"\w*PAG", "always guides by perturbed attention; its model_index.json could name the plain pipeline"),
    (r"Kandinsky(?!3)|Wuerstchen|StableCascade", "needs a second model, which reads the prompt for this one"),
    (r"IF", "makes 64 pixels, and needs two more models to enlarge them"),
    (r"Kolors", "needs the package sentencepiece to read prompts, which does not come along"),
    (r"QwenImage(Edit|Layered)|FluxKontext", "changes pictures as it is told to, which is not done here yet"),
    (r"Helios", "makes films"),
    (
        r"Kandinsky3|GlmImage|Flux2|Krea2|Ideogram4|NucleusMoE|QwenImage21|PRX|ZImageOmni",
        "has not been tried here yet",
    ),
)


def refusal(pipeline: str) -> str:
    """Why a pipeline of diffusers does not run here, to be read after "It"; "" if nothing is known of it."""
    return next((why for pattern, why in _REFUSED if re.match(pattern, pipeline)), "")
