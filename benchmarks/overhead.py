"""A picture through the engine, and through the page's endpoint, over bare diffusers. Alternating runs.

python benchmarks/overhead.py [RUNS] [DTYPE] [SIDE]

All make the same picture with the embedded model: 20 steps, CFG 4, SIDE (128) pixels square. The engine
runs in this process beside the bare pipeline; the page in its own, as a person's does, a preview each step.
"""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from common import ENVIRONMENT, ROOT, alternating, free_port, serving, table

sys.path.insert(0, str(ROOT))

PROMPT = "a fox on a blue background"
STEPS, SCALE = 20, 4.0
SIDE = int(sys.argv[3]) if len(sys.argv) > 3 else 128


def bare(dtype: str) -> Callable[[int], None]:
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        ROOT / "models/pocket-model", dtype=getattr(torch, dtype), local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    if dtype == "bfloat16":  # as the engine does
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)

    def picture(seed: int) -> None:
        pipe(
            PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            width=SIDE,
            height=SIDE,
            generator=torch.Generator("cpu").manual_seed(seed),
        )

    return picture


def through_engine(dtype: str, folder: Path, preview_every: int) -> Callable[[int], None]:
    from webui.engine import Engine
    from webui.library import Library
    from webui.request import Delivery, GenerationRequest
    from webui.settings import Settings

    settings = Settings(data_dir=folder, models_dir=[ROOT / "models"], device="cpu", dtype=dtype)
    engine = Engine(settings, Library(settings.data_dir, settings.filename_pattern))
    engine.start()

    def picture(seed: int) -> None:
        request = GenerationRequest(
            prompt=PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            width=SIDE,
            height=SIDE,
            seed=seed,
        )
        view = engine.submit([request], "benchmark", Delivery(preview_every=preview_every)).wait()
        assert view.state == "done", view.error

    return picture


def through_page(port: int) -> Callable[[int], None]:
    """The page's own endpoint over HTTP, its stream of previews read to the end."""
    endpoint = f"http://127.0.0.1:{port}/gradio_api/call/v2/generate"

    def picture(seed: int) -> None:
        fields = {
            "prompt": PROMPT,
            "num_inference_steps": STEPS,
            "guidance_scale": SCALE,
            "width": SIDE,
            "height": SIDE,
            "seed": seed,
        }
        body, kind = json.dumps(fields).encode(), {"content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(endpoint, body, kind)) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{endpoint}/{event}") as stream:
            assert b"event: complete" in stream.read()

    return picture


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    dtype = sys.argv[2] if len(sys.argv) > 2 else "float32"
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        page = ["app.py", "--port", str(port), "--data-dir", folder, "--dtype", dtype, "--device", "cpu"]
        with serving(page, port):
            makers = {
                "bare diffusers": bare(dtype),
                "engine, no previews": through_engine(dtype, Path(folder) / "a", 0),
                "engine, preview each step": through_engine(dtype, Path(folder) / "b", 1),
                "page, preview each step": through_page(port),
            }
            seconds = alternating(makers, runs)
    table(
        f"One picture, {SIDE} px, {STEPS} steps, {dtype}, {runs} alternating runs", "bare diffusers", seconds
    )


if __name__ == "__main__":
    import os

    os.environ.update(ENVIRONMENT)
    main()
