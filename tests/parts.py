"""Tiny random LoRAs and the like, saved as their makers save them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

NET = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.2", "conv1"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]
ENCODERS = ("text_encoder", "text_encoder_2")


def lora(
    pipe: Any, path: Path, seed: int, layout: str = "diffusers", text: bool = True, rank: int = 4
) -> Path:
    """A LoRA for every attention of the pipeline's net, some convolutions, and its text encoders.

    ``layout``: "diffusers" and "peft" as diffusers saves it, with and without its notes of the alphas;
    "dora" with peft's magnitudes too; "kohya" as sd-scripts saves it.
    """
    layers, notes = _layers(pipe, seed, text, rank, layout == "dora")
    if layout == "kohya":
        save_file(_kohya(layers, alpha=rank / 2), path)
        return path
    extra = (
        {f"{name}_lora_adapter_metadata": note for name, note in notes.items()}
        if layout in ("diffusers", "dora")
        else {}
    )
    parts = {f"{name}_lora_layers": tensors for name, tensors in layers.items()}
    type(pipe).save_lora_weights(path.parent, weight_name=path.name, **parts, **extra)
    return path


def _layers(
    pipe: Any, seed: int, text: bool, rank: int, dora: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Random tensors by part, in peft's names, and each part's config."""
    net = "unet" if hasattr(pipe, "unet") else "transformer"
    able = [name for name in ENCODERS if name in pipe._lora_loadable_modules]
    names = [net, *(name for name in able if text and getattr(pipe, name, None) is not None)]
    layers, notes = {}, {}
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        part = getattr(pipe, name)
        layers_of = NET if name == net else TEXT
        config = LoraConfig(r=rank, lora_alpha=rank / 2, target_modules=layers_of, use_dora=dora)
        part.add_adapter(config, "made") if name == net else part.add_adapter(config, adapter_name="made")
        tensors = get_peft_model_state_dict(part, adapter_name="made")
        layers[name] = {
            key: torch.randn(value.shape, generator=generator) * 0.3 for key, value in tensors.items()
        }
        notes[name] = part.peft_config["made"].to_dict()
    pipe.unload_lora_weights()
    return layers, notes


def _kohya(layers: dict[str, Any], alpha: float) -> dict[str, torch.Tensor]:
    """sd-scripts' names: the path of a module with underscores, then lora_down, lora_up and alpha."""
    two = "text_encoder_2" in layers
    prefixes = {
        "unet": "lora_unet",
        "text_encoder": "lora_te1" if two else "lora_te",
        "text_encoder_2": "lora_te2",
    }
    written: dict[str, torch.Tensor] = {}
    for part, tensors in layers.items():
        for key, value in tensors.items():
            module, which = re.fullmatch(r"(.*)\.lora_([AB])\.weight", key).groups()
            if part != "unet" and not module.startswith("text_model."):
                module = f"text_model.{module}"  # as transformers named them when kohya's names were made
            name = f"{prefixes[part]}_{module.replace('.', '_')}"
            written[f"{name}.lora_{'down' if which == 'A' else 'up'}.weight"] = value.contiguous()
            written[f"{name}.alpha"] = torch.tensor(alpha)
    return written


def changed(path: Path, at: Path, **names: str) -> Path:
    """The same file with parts of its keys renamed."""
    tensors = load_file(path)
    for old, new in names.items():
        tensors = {key.replace(old, new): value for key, value in tensors.items()}
    save_file(tensors, at)
    return at
