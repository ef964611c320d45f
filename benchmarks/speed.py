"""What --speed decides by: one call of a UNet in each memory layout, and with its repeated blocks compiled.

python benchmarks/speed.py [--net pocket | sd15] [--dtypes bfloat16,float32] [--device cpu] [--size 512]
                           [--runs 5] [--compile]

Two samples, as CFG needs them, in turns. sd15 has random weights of Stable Diffusion 1.5's real sizes. Prints
the largest difference to the first way too: a layout may change last bits, and nothing more.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from typing import Any

from common import ENVIRONMENT, ROOT, alternating, table

sys.path.insert(0, str(ROOT))


def net(name: str, dtype: Any) -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    from models import WIDE

    if name == "pocket":
        made = UNet2DConditionModel.from_pretrained(ROOT / "models/pocket-model/unet", local_files_only=True)
    else:
        torch.manual_seed(0)
        made = UNet2DConditionModel(sample_size=64, **WIDE)
    return made.eval().requires_grad_(False).to(dtype)


def ways(made: Any, compiled: bool) -> dict[str, Any]:
    """The same net as --speed plain, auto and, if wished, max have it."""
    import torch

    nets = {"plain": made, "channels-last": copy.deepcopy(made).to(memory_format=torch.channels_last)}
    if compiled:
        nets["channels-last, compiled"] = copy.deepcopy(nets["channels-last"])
        nets["channels-last, compiled"].compile_repeated_blocks(fullgraph=False)
    return nets


def caller(unet: Any, size: int, answers: dict[str, Any], name: str) -> Callable[[int], None]:
    import torch

    generator = torch.Generator().manual_seed(1)
    where = {"device": unet.device, "dtype": unet.dtype}
    latents = torch.randn((2, 4, size // 8, size // 8), generator=generator).to(**where)
    prompts = torch.randn((2, 77, unet.config.cross_attention_dim), generator=generator).to(**where)

    @torch.inference_mode()
    def call(_: int) -> None:
        answers[name] = unet(latents, 500, encoder_hidden_states=prompts).sample.float().cpu()

    return call


def measure(dtype: str, args: argparse.Namespace) -> None:
    import torch

    torch_dtype = getattr(torch, dtype)
    answers: dict[str, Any] = {}
    nets = ways(net(args.net, torch_dtype).to(args.device), args.compile)
    calls = {name: caller(each, args.size, answers, name) for name, each in nets.items()}
    for name, call in calls.items():
        start = time.perf_counter()
        call(0)
        print(f"{dtype}, {name}: the first call {time.perf_counter() - start:.1f} s")
    table(f"{args.net}, {args.size} px, {dtype}", "plain", alternating(calls, args.runs))
    for name, answer in answers.items():
        apart = (answer - answers["plain"]).abs().max() / answers["plain"].abs().max()
        print(f"{name}: differs by {apart:.1e} of the largest value")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", choices=("pocket", "sd15"), default="pocket")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=0, help="pixels; 0: 128 of pocket, 512 of sd15")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    args.size = args.size or (128 if args.net == "pocket" else 512)
    for dtype in args.dtypes.split(","):
        measure(dtype, args)


if __name__ == "__main__":
    import os

    os.environ.update(ENVIRONMENT)  # before torch is imported
    main()
