"""Resident memory and seconds over many changes of LoRAs and their relatives, on a model of real size.

python benchmarks/loras.py [--changes 100] [--dtype bfloat16] [--tiny] [--in FOLDER]

A model of Stable Diffusion 1.5's size with random weights is given a LoRA, a LoHa upon the LoRA, a LoKr and
nothing, in turn, each with another weight than the time before. LyCORIS itself makes the files. Prints the
curve, how long a change takes, and whether the weights are in the end what they were.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from common import ENVIRONMENT, ROOT
from memory import resident

from models import device, make, modules_of

sys.path.insert(0, str(ROOT))

SETS = (("LoRA",), ("LoRA", "LoHa"), ("LoKr",), ())


def train(folder: Path, at: Path) -> None:
    """A file of each kind for the pipeline in ``folder``, with random numbers."""
    import torch
    from diffusers import StableDiffusionPipeline

    from tests import parts, relatives

    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    parts.lora(pipe, at / "LoRA.safetensors", seed=1, rank=16)
    for kind in ("LoHa", "LoKr"):
        made = relatives.network(pipe, kind, seed=1)
        with relatives.applied(made, pipe):
            relatives.save(made, at / f"{kind}.safetensors", torch.float16)


def digest(model: object) -> str:
    import torch

    whole = hashlib.sha256()
    for module in modules_of(model):
        for weight in module.state_dict().values():
            whole.update(weight.flatten().clone().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--in", dest="folder", type=Path)
    parser.add_argument("--train", type=Path)
    given = parser.parse_args()
    if given.train:
        train(make(given.train / "models/m0", given.tiny, seed=0), given.train / "Lora")
        return
    chosen = device(given.dtype)

    from webui.catalogue.shelves import Catalogue
    from webui.diffusion import adapters, checkpoints
    from webui.diffusion.additions import NOTHING, Adapter
    from webui.diffusion.manager import ModelManager

    with tempfile.TemporaryDirectory(dir=given.folder) as at:
        models, files = Path(at) / "models", Path(at) / "Lora"
        files.mkdir()
        command = [sys.executable, __file__, "--train", at, *["--tiny"] * given.tiny]
        subprocess.run(command, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        model = ModelManager(chosen).get(checkpoints.find([models])["m0"])
        catalogue = Catalogue([files])
        loras = catalogue.of("lora")
        before = digest(model)
        seconds: dict[tuple[str, ...], list[float]] = {names: [] for names in SETS}
        print("| changes | MiB resident, with what was just laid |\n|---|---|")
        for n in range(given.changes):
            names, weight = SETS[n % len(SETS)], 0.5 + n / 2 / given.changes
            wanted = tuple(Adapter(loras[name], weight, weight) for name in names)
            start = time.perf_counter()
            with adapters.applied(model, replace(NOTHING, loras=wanted)):
                seconds[names].append(time.perf_counter() - start)
            if n % 10 < len(SETS) or n == given.changes - 1:
                print(f"| {n + 1}, {' and '.join(names) or 'none'} | {resident():.1f} |", flush=True)
        with adapters.applied(model, NOTHING):
            print(f"\nThe weights are {'what they were' if digest(model) == before else 'OTHERS'}.\n")
        for names, taken in seconds.items():
            print(f"{' and '.join(names) or 'none'}: {median(taken):.3f} s")


if __name__ == "__main__":
    main()
