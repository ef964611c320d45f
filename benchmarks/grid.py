"""A grid through the engine over the naive loop of bare diffusers; and memory over 500 cells.

python benchmarks/grid.py [RUNS] [SIDE]

The naive loop makes a scheduler and calls the pipeline for each cell, and saves the picture. Schedulers x CFG
scales, 20 steps; SIDE (128) pixels square. 'Exact' gives the bits of single runs, as the CPU does by default;
'together' is ``--cells together``, which batches cells; 'warm' is the exact grid asked for again.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import ENVIRONMENT, ROOT, table
from memory import resident

sys.path.insert(0, str(ROOT))

PROMPT, NEGATIVE, STEPS = "a fox on a blue background", "red", 20
SCHEDULERS = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "DDIM": ("DDIMScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "DDPM": ("DDPMScheduler", {}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "LCM": ("LCMScheduler", {}),
}
Cells = Sequence[tuple[str, float]]


def cells(side: int) -> Cells:
    """``side`` schedulers x ``side`` CFG scales from 2 on."""
    return [(name, 2.0 + scale) for name in list(SCHEDULERS)[:side] for scale in range(side)]


def naive(side: int, folder: Path) -> Callable[[Cells, int], None]:
    import diffusers
    import torch

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        ROOT / "models/pocket-model", dtype=torch.float32, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config

    def run(grid: Cells, seed: int) -> None:
        for k, (name, scale) in enumerate(grid):
            kind, options = SCHEDULERS[name]
            pipe.scheduler = getattr(diffusers, kind).from_config(config, **options)
            picture = pipe(
                PROMPT,
                negative_prompt=NEGATIVE,
                num_inference_steps=STEPS,
                guidance_scale=scale,
                width=side,
                height=side,
                generator=torch.Generator("cpu").manual_seed(seed),
            ).images[0]
            picture.save(folder / f"{seed}-{k}.png")

    return run


def through_engine(side: int, folder: Path, cells: str) -> Any:
    from webui.engine import Engine
    from webui.library import Library
    from webui.request import Delivery, GenerationRequest
    from webui.settings import Settings

    settings = Settings(
        data_dir=folder, models_dir=[ROOT / "models"], device="cpu", dtype="float32", cells=cells
    )
    engine = Engine(settings, Library(settings.data_dir, settings.filename_pattern))
    engine.start()

    def run(grid: Cells, seed: int, steps: int = STEPS) -> int:
        """Calls of the net that it took."""
        requests = [
            GenerationRequest(
                prompt=PROMPT,
                negative_prompt=NEGATIVE,
                scheduler=name,
                guidance_scale=scale,
                num_inference_steps=steps,
                width=side,
                height=side,
                seed=seed,
            )
            for name, scale in grid
        ]
        delivery = Delivery(preview_every=0)
        view = engine.submit(requests, "benchmark", delivery, persevere=True, reuse=True).wait()
        assert view.state == "done", view.error
        assert len(view.saved) == len(grid)
        return view.net_calls

    return run


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    side = int(sys.argv[2]) if len(sys.argv) > 2 else 128
    with tempfile.TemporaryDirectory() as folder:
        exact = through_engine(side, Path(folder, "exact"), "exact")
        exact(cells(1), 999)  # ready: diffusers cannot be imported in two threads at once
        together = through_engine(side, Path(folder, "together"), "together")
        together(cells(1), 999)
        theirs = naive(side, Path(folder))
        theirs(cells(1), 999)
        for width, repeats in ((3, runs), (10, max(1, runs // 6))):
            seconds: dict[str, list[float]] = {"naive loop": [], "exact": [], "together": [], "warm": []}
            for run in range(repeats):
                grid, seed = cells(width), width * 1000 + run
                turns = [("naive loop", theirs), ("exact", exact), ("together", together)]
                for name, make in [
                    *turns[:: 1 if run % 2 else -1],
                    ("warm", exact),
                ]:  # who begins takes turns
                    start = time.perf_counter()
                    calls = make(grid, seed)
                    seconds[name].append(time.perf_counter() - start)
                    assert name != "warm" or calls == 0
            table(f"{width}x{width} cells, {side} px, {repeats} alternating runs", "naive loop", seconds)
        print("\n| cells of one grid | MiB resident |\n|---|---|")
        for block in range(5):
            exact([("Euler", 2 + k / 100) for k in range(block * 100, block * 100 + 100)], 7, steps=2)
            print(f"| {100 * block + 100} | {resident():.1f} |", flush=True)


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    main()
