"""AUTOMATIC1111's spellings of our settings: what turns the values of its flags into ours."""

from __future__ import annotations

import argparse
from pathlib import Path

FOLDERS = (
    "--ckpt-dir",
    "--lora-dir",
    "--lyco-dir",
    "--vae-dir",
    "--embeddings-dir",
    "--controlnet-dir",
    "--esrgan-models-path",
)  # each of one kind of models; here, files say themselves what they are


def cpu(parts: str) -> str:
    if parts not in ("all", "sd"):
        raise argparse.ArgumentTypeError("only 'all' is understood here; --device cpu says the same")
    return "cpu"


def precision(name: str) -> str:
    if name not in ("full", "autocast"):
        raise argparse.ArgumentTypeError("use --dtype instead: auto, float32, bfloat16 or float16")
    return "float32" if name == "full" else "auto"


def model_name(path: str) -> str:
    """A file goes by its name without the ending, a folder by all of its name."""
    return Path(path).stem if Path(path).suffix in (".safetensors", ".ckpt") else Path(path).name
