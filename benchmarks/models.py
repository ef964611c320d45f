"""Loading and switching models of Stable Diffusion 1.5's real size, with random weights made for it.

python benchmarks/models.py [--dtype float32] [--speed auto] [--runs 5] [--switches 100] [--tiny] [--in DIR]

Prints a first load over diffusers' own, each in a process of its own and in turns, from a folder and from a
single file; what both have read is in the page cache. diffusers leaves weights of the right precision in the
mapped file, where the first picture reads them, so each is loaded and then read through once; the load alone
is printed too, and the processor time of both, which busy neighbours disturb less. Then a switch back to a
model in RAM over the first load, and the curve of memory over switches among five models, of which two fit.
Needs 20 GB of disk and 12 GB of RAM (--tiny: nothing).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import ENVIRONMENT, ROOT, table
from memory import resident

sys.path.insert(0, str(ROOT))

WIDE = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
Seconds = tuple[float, float, float]  # of a load, of reading its weights, and of the processors for both
NARROW = {"block_out_channels": (32, 64), "cross_attention_dim": 32, "attention_head_dim": 4}


def make(folder: Path, tiny: bool, seed: int) -> Path:
    """A pipeline of SD 1.5's shape with random weights, in float16 as most are published."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    levels = 2 if tiny else 4
    down = ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",)
    up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1)
    widths = (32, 64) if tiny else (128, 256, 512, 512)
    text = (
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        if tiny
        else {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        }
    )
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "models/pocket-model/tokenizer", local_files_only=True)
    StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            sample_size=64, down_block_types=down, up_block_types=up, **(NARROW if tiny else WIDE)
        ),
        vae=AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=2,
            latent_channels=4,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                max_position_embeddings=77,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=tokenizer.bos_token_id,
                **text,
            )
        ),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(folder)
    return folder


def device(dtype: str, speed: str = "auto"):
    from webui.diffusion import devices

    chosen = devices.choose(devices.look(), "cpu", dtype, speed=speed)
    devices.import_diffusers(chosen)
    return chosen


def read_through(*modules: object) -> None:
    for module in modules:
        for weight in module.parameters():
            weight.sum()


def ours(path: Path, dtype: str, speed: str) -> Seconds:
    """A first load."""
    from webui.diffusion import checkpoints, families
    from webui.diffusion.manager import ModelManager

    manager = ModelManager(device(dtype, speed))
    families.of("sd1")
    checkpoint = checkpoints.find([path.parent])[path.stem]
    return timed(lambda: modules_of(manager.get(checkpoint)))


def modules_of(model: object) -> list[object]:
    return [model.net, model.vae, *(tower.text_encoder for tower in model.encoder.towers)]


def plain(path: Path, dtype: str, _: str) -> Seconds:
    """The same of diffusers' own way."""
    import torch
    from diffusers import StableDiffusionPipeline

    device(dtype)
    options = {"dtype": getattr(torch, dtype), "local_files_only": True, "safety_checker": None}

    def load() -> list[object]:
        if path.is_dir():
            pipe = StableDiffusionPipeline.from_pretrained(path, **options)
        else:
            config = str(path.parent.parent / "models" / "m0")
            pipe = StableDiffusionPipeline.from_single_file(str(path), config=config, **options)
        return [pipe.unet, pipe.vae, pipe.text_encoder]

    return timed(load)


def timed(load) -> Seconds:
    start, used = time.perf_counter(), time.process_time()
    modules = load()
    loaded = time.perf_counter()
    read_through(*modules)
    return loaded - start, time.perf_counter() - loaded, time.process_time() - used


def in_own_process(what: str, path: Path, dtype: str, speed: str) -> Seconds:
    command = [sys.executable, __file__, "--measure", what, "--path", str(path), "--dtype", dtype]
    command += ["--speed", speed]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT, cwd=ROOT)
    load, read, used = map(float, output.stdout.split()[-3:])
    return load, read, used


def first_loads(name: str, path: Path, dtype: str, speed: str, runs: int) -> None:
    whole: dict[str, list[float]] = {"diffusers": [], "manager": []}
    alone: dict[str, list[float]] = {"diffusers": [], "manager": []}
    worked: dict[str, list[float]] = {"diffusers": [], "manager": []}
    for run in range(-1, runs):  # the first fills the page cache
        turn = list(whole) if run % 2 else list(whole)[::-1]  # who begins changes
        for what in turn:
            load, read, used = in_own_process("plain" if what == "diffusers" else "ours", path, dtype, speed)
            if run >= 0:
                whole[what].append(load + read)
                alone[what].append(load)
                worked[what].append(used)
    table(f"First load from {name}, weights read through", "diffusers", whole)
    table(f"First load from {name}, before they are read", "diffusers", alone)
    table(f"First load from {name}, processor time", "diffusers", worked)


def switches(folder: Path, dtype: str, count: int) -> None:
    from webui.diffusion import checkpoints
    from webui.diffusion.manager import ModelManager
    from webui.diffusion.tiers import Budgets

    chosen = device(dtype)
    found = checkpoints.find([folder])
    models = [found[f"m{n}"] for n in range(5)]
    from webui.diffusion import loading

    each = sum(loading.sizes(models[0], chosen).values())
    manager = ModelManager(chosen, Budgets(int(2.6 * each) + 20_000_000))
    firsts, backs = [], []
    for model in models[:2]:
        firsts.append(timed(lambda model=model: modules_of(manager.get(model)))[0])
    for n in range(20):
        backs.append(timed(lambda n=n: modules_of(manager.get(models[n % 2])))[0])
    ratio = median(backs) / median(firsts)
    print(f"\nSwitch back to a model in RAM: {median(backs):.5f} s, {ratio:.5f} of a first load\n")
    print("| switches among five | MiB resident | MB of weights |\n|---|---|---|")
    for n in range(count):
        manager.get(models[n * 3 % 5])
        if n % max(1, count // 20) == 0 or n == count - 1:
            held = manager.residency().device_used / 1e6
            print(f"| {n + 1} | {resident():.1f} | {held:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--speed", default="auto", choices=("auto", "plain"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--switches", type=int, default=100)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--in", dest="folder", type=Path)
    parser.add_argument("--measure", choices=("ours", "plain"))
    parser.add_argument("--path", type=Path)
    given = parser.parse_args()
    if given.measure:
        print(*{"ours": ours, "plain": plain}[given.measure](given.path, given.dtype, given.speed))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as at:
        models, files = Path(at) / "models", Path(at) / "files"
        for n in range(5):
            make(models / f"m{n}", given.tiny, seed=n)
        from tests import single_file

        files.mkdir()
        single_file.write(models / "m0", files / "single.safetensors")
        first_loads("a folder", models / "m0", given.dtype, given.speed, given.runs)
        first_loads("a single file", files / "single.safetensors", given.dtype, given.speed, given.runs)
        switches(models, given.dtype, given.switches)


if __name__ == "__main__":
    main()
