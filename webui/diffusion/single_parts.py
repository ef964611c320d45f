"""One part of a model from a file of its own, under its publisher's names or diffusers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

PREFIX = "model.diffusion_model."  # of a net's names in a file with more in it
VAE = ("first_stage_model.", "vae.")  # of a VAE's
UNET = "input_blocks.0.0.weight"


def read(kind: Any, file: Path, config: Path, dtype: torch.dtype) -> nn.Module:
    """A net, a VAE or a text encoder in this precision.

    Args:
        kind: its class, of diffusers or transformers.
        config: the folder with its config.json, within that of its pipeline.

    Raises:
        OSError, ValueError, RuntimeError, KeyError: the file is damaged, or of another kind.
    """
    state = _named(file, VAE if kind.__name__.startswith("Autoencoder") else (PREFIX,))
    if issubclass(kind, PreTrainedModel):
        return _encoder(kind, state, kind.config_class.from_pretrained(config, local_files_only=True), dtype)
    if UNET in state:  # diffusers looks for it under the prefix alone
        state = {PREFIX + name: tensor for name, tensor in state.items()}
    part: nn.Module = kind.from_single_file(
        state, config=str(config.parent), subfolder=config.name, dtype=dtype, local_files_only=True
    )
    return part


def _named(file: Path, starts: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin so; all, where none does."""
    with safe_open(file, "pt") as tensors:
        names = list(tensors.keys())
        own = [name for name in names if name.startswith(starts)] or names
        return {name: tensors.get_tensor(name) for name in own}


def _encoder(kind: Any, state: dict[str, torch.Tensor], config: Any, dtype: torch.dtype) -> nn.Module:
    """A text encoder. Where CLIP L has no projection, as ComfyUI's has none, it is the identity."""
    state = {name: tensor.to(dtype) for name, tensor in state.items() if tensor.is_floating_point()}
    encoder, told = kind.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    missing = set(told["missing_keys"])
    if "text_projection.weight" in missing and config.projection_dim == config.hidden_size:
        nn.init.eye_(encoder.text_projection.weight)
        missing.remove("text_projection.weight")
    if missing:
        raise KeyError(f"it lacks {len(missing)} tensors, {min(missing)} among them")
    loaded: nn.Module = encoder
    return loaded
