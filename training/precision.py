"""In which precision matrices are multiplied while training."""

from functools import cache

import torch

NATIVE = ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16")  # as torch names what a processor can do


@cache
def quick() -> torch.dtype:
    """bfloat16 where the processor multiplies it itself; elsewhere that takes far longer than float32."""
    can = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(can.get(name, False) for name in NATIVE) else torch.float32
