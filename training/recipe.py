"""What is trained, and how: one frozen record that every stage reads and the model card repeats."""

import json
import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

STYLES = ("noto", "flat", "3d", "twemoji")


@dataclass(frozen=True)
class Recipe:
    """Sizes are in pixels or channels; learning rates are the peaks of their schedules."""

    seed: int = 0
    # Data. Twemoji stays out of the training set: it is the art on which the VAE is judged.
    concepts: int = 140
    styles: tuple[str, ...] = ("noto", "flat", "3d")
    image_size: int = 128
    scenes_per_sprite: int = 40
    vocabulary: int = 3700
    # AutoencoderKL, 8x. Two groups: a group of two channels would normalise flat colour away.
    vae_channels: tuple[int, ...] = (16, 32, 64, 96)
    vae_norm_groups: int = 2
    vae_batch: int = 8
    vae_steps: int = 8000
    # CLIP text encoder.
    text_width: int = 192
    text_layers: int = 3
    text_heads: int = 6
    # UNet2DConditionModel; attention from the second level down.
    unet_channels: tuple[int, ...] = (64, 128, 256)
    unet_norm_groups: int = 16
    batch: int = 64
    steps: int = 16000
    muon_lr: float = 0.01
    adam_lr: float = 1e-3
    ema_decay: float = 0.9985
    caption_dropout: float = 0.1
    # The classifier that `evaluate` asks.
    judge_steps: int = 1500

    @property
    def latent_size(self) -> int:
        return self.image_size // 8

    def save(self, folder: Path) -> None:
        """Write recipe.json: this record, and the versions of what it ran with."""
        folder.mkdir(parents=True, exist_ok=True)
        record = {"recipe": asdict(self), "versions": versions()}
        (folder / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Recipe":
        """The recipe a folder was begun with. Raises FileNotFoundError."""
        fields: dict[str, Any] = json.loads((folder / "recipe.json").read_text())["recipe"]
        frozen: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        return cls(**frozen)


POCKET = Recipe()
# The same classes and stages, small enough for a test: six things at 64x64 pixels, a minute and a half.
TINY = replace(
    POCKET,
    concepts=6,
    styles=("noto", "flat"),
    image_size=64,
    scenes_per_sprite=8,
    vocabulary=700,
    vae_channels=(8, 16, 32, 32),
    vae_steps=400,
    text_width=48,
    text_layers=2,
    text_heads=2,
    unet_channels=(32, 64),
    batch=32,
    steps=250,
    ema_decay=0.99,
    judge_steps=150,
)
PRESETS = {"pocket": POCKET, "tiny": TINY}


def versions() -> dict[str, str]:
    packages = ("torch", "diffusers", "transformers", "tokenizers", "numpy", "pillow", "resvg-py")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
