"""LoRA's relatives on tiny models: made, saved and computed by LyCORIS itself, as in training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lycoris.kohya import LycorisNetworkKohya

logging.getLogger("LyCORIS").setLevel(logging.ERROR)
LycorisNetworkKohya.apply_preset(  # 4.1.3 names the time embedding twice
    {"unet_target_module": ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]}
)

#: By kind: how far it strays, and what LyCORIS' trainer is told.
KINDS: Mapping[str, tuple[float, dict[str, Any]]] = {
    "LoHa": (0.15, {"network_module": "loha", "use_tucker": True}),
    "LoKr": (0.15, {"network_module": "lokr", "use_tucker": True, "factor": 2}),
    "LoCon": (0.1, {"network_module": "locon", "use_tucker": True, "train_norm": True}),
    "DoRA": (0.1, {"network_module": "locon", "weight_decompose": True}),
    "full": (0.01, {"network_module": "full"}),
    "OFT": (0.01, {"network_module": "diag-oft", "lora_dim": 8, "conv_lora_dim": 8}),
    "BOFT": (0.01, {"network_module": "boft", "lora_dim": 8, "conv_lora_dim": 8}),
    "GLoRA": (0.05, {"network_module": "glora"}),
    "IA3": (0.1, {"network_module": "ia3"}),
}


def network(pipe: Any, kind: str, seed: int, weight: float = 1.0) -> Any:
    """LyCORIS' network for a pipeline, trained at random, on every layer that it takes.

    Args:
        weight: with which it is applied.
    """
    encoders = [each for each in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if each]
    strays, options = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = LycorisNetworkKohya(
            encoders if len(encoders) > 1 else encoders[0],
            pipe.unet,
            multiplier=weight,
            warn_on_unmatched=False,
            **{
                "lora_dim": 4,
                "conv_lora_dim": 4,
                "alpha": 3.0,
                "conv_alpha": 2.0,
                "constraint": 0,
                **options,
            },
        )
        for module in modules(made):
            for weights in module.parameters():
                weights.data += strays * torch.randn_like(weights)
    return made


def modules(made: Any) -> list[Any]:
    return [*made.text_encoder_loras, *made.unet_loras]


@contextmanager
def applied(made: Any, pipe: Any) -> Iterator[None]:
    """While the pipeline computes with it."""
    made.apply_to(pipe.text_encoder, pipe.unet, True, True)
    try:
        yield
    finally:
        for module in reversed(modules(made)):
            module.restore()


def save(made: Any, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    made.save_weights(str(path), dtype, {})
    return path
