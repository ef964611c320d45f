"""Image to image and inpainting through the engine over bare diffusers, alternating; and their memory.

python benchmarks/tasks.py [RUNS] [SIDE]

Both repaint the same source at strength 0.75 of 20 steps, CFG 4, SIDE (128) pixels square. The memory is that
of a process which has made one picture from text, before and after it makes one of each other task: shared
weights add nothing, a second copy would add theirs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ENVIRONMENT, ROOT, alternating, table
from memory import resident

sys.path.insert(0, str(ROOT))

PROMPT = "a fox on a blue background"
STEPS, SCALE, STRENGTH = 20, 4.0, 0.75


def source(side: int) -> Any:
    """A gradient (RGB) and a mask (L) over its middle quarter."""
    from PIL import Image

    grey = Image.linear_gradient("L").resize((side, side))
    mask = Image.new("L", (side, side))
    mask.paste(255, (side // 4, side // 4, side * 3 // 4, side * 3 // 4))
    return Image.merge("RGB", (grey, grey.rotate(90), grey.rotate(180))), mask


def bare(side: int) -> dict[str, Callable[[int], None]]:
    import torch
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline

    image, mask = source(side)
    folder = ROOT / "models/pocket-model"
    img2img = StableDiffusionImg2ImgPipeline.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    inpaint = StableDiffusionInpaintPipeline(**{**img2img.components, "image_encoder": None})
    for pipe in (img2img, inpaint):
        pipe.set_progress_bar_config(disable=True)

    def call(pipe: Any, seed: int, **inputs: Any) -> None:
        pipe(
            PROMPT,
            image=image,
            strength=STRENGTH,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            generator=torch.Generator("cpu").manual_seed(seed),
            **inputs,
        )

    return {
        "img2img": lambda seed: call(img2img, seed),
        "inpaint": lambda seed: call(inpaint, seed, mask_image=mask, width=side, height=side),
    }


def through_engine(side: int, folder: Path) -> dict[str, Callable[[int], None]]:
    from webui.engine import Engine
    from webui.library import Library
    from webui.request import Delivery, GenerationRequest
    from webui.settings import Settings

    settings = Settings(data_dir=folder, models_dir=[ROOT / "models"], device="cpu", dtype="float32")
    engine = Engine(settings, Library(settings.data_dir, settings.filename_pattern))
    engine.start()
    image, mask = (engine.sources.keep(picture, "benchmark") for picture in source(side))

    def make(seed: int, **pictures: str) -> None:
        request = GenerationRequest(
            prompt=PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            strength=STRENGTH,
            width=side,
            height=side,
            seed=seed,
            **pictures,
        )
        view = engine.submit([request], "benchmark", Delivery(preview_every=0)).wait()
        assert view.state == "done", view.error

    return {
        "txt2img": make,
        "img2img": lambda seed: make(seed, image=image),
        "inpaint": lambda seed: make(seed, image=image, mask_image=mask),
    }


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    side = int(sys.argv[2]) if len(sys.argv) > 2 else 128
    with tempfile.TemporaryDirectory() as folder:
        ours = through_engine(side, Path(folder))
        print("| after a picture | MiB resident |\n|---|---|")
        for name, make in ours.items():
            make(0)
            print(f"| {name} | {resident():.1f} |", flush=True)
        theirs = bare(side)
        for task in theirs:
            makers = {"bare diffusers": theirs[task], "engine": ours[task]}
            seconds = alternating(makers, runs)
            table(f"{task}, {side} px, {runs} alternating runs", "bare diffusers", seconds)


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    main()
