"""A small classifier of real scenes, for judging pictures: which thing, which style, and features of its own.

It never sees a generated picture while it learns. `evaluate` reports what it says of real scenes that went
through the VAE and back, which is the best a model can reach, beside what it says of the model's.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.latents import as_tensor
from training.scenes import Composer

SIDE = 64
FEATURES = 64


class Judge(nn.Module):
    """(N, 3, 64, 64) in -1..1 -> logits of concepts (N, C) and styles (N, S), features (N, 64)."""

    def __init__(self, names: Sequence[str], styles: Sequence[str]) -> None:
        super().__init__()
        self.names, self.styles = list(names), list(styles)
        widths = (3, 32, 64, 128, 192)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(192 * (SIDE // 16) ** 2, FEATURES))
        self.concept = nn.Linear(FEATURES, len(self.names))
        self.style = nn.Linear(FEATURES, len(self.styles))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.body(pictures)
        return self.concept(F.silu(features)), self.style(F.silu(features)), features

    @torch.no_grad()
    def look(self, pictures: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, of (H, W, 3) uint8 pictures of one size."""
        parts = [self(shrunk(as_tensor(list(pictures[i : i + 64])))) for i in range(0, len(pictures), 64)]
        concepts, styles, features = (torch.cat(column) for column in zip(*parts, strict=True))
        return concepts, styles, features


def shrunk(pictures: Tensor) -> Tensor:
    return F.interpolate(pictures, (SIDE, SIDE), mode="area")


def learn(composer: Composer, steps: int, batch: int = 64) -> Judge:
    """Train on random scenes of one thing, shifted, blurred and made noisy."""
    torch.manual_seed(composer.random.getrandbits(32))
    keys = sorted(composer.sprites)
    judge = Judge(sorted({name for name, _ in keys}), sorted({style for _, style in keys}))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        chosen = composer.random.choices(keys, k=batch)
        pictures = damaged(torch.cat([shrunk(as_tensor([single(composer, *key)])) for key in chosen]))
        concepts, styles, _ = judge(pictures)
        loss = F.cross_entropy(concepts, torch.tensor([judge.names.index(name) for name, _ in chosen]))
        loss = loss + F.cross_entropy(
            styles, torch.tensor([judge.styles.index(style) for _, style in chosen])
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return judge.eval()


def single(composer: Composer, name: str, style: str) -> np.ndarray:
    """A scene with that thing alone; or, of a scene of two, the half in which it is, as `halves` cuts."""
    scene = composer.scene(name, style)
    return halves(scene.pixels)[0] if scene.kind in ("two", "pair") else scene.pixels


def halves(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The left and the right half of a square picture, each the square in its middle."""
    side = len(picture) // 2
    band = picture[side // 2 : side // 2 + side]
    return band[:, :side], band[:, side:]


def damaged(pictures: Tensor) -> Tensor:
    """Shift each by up to 3 px, blur half of them, add a little noise."""
    pictures = torch.stack([p.roll(torch.randint(-3, 4, (2,)).tolist(), (1, 2)) for p in pictures])
    blurred = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    pictures = torch.where(torch.rand(len(pictures), 1, 1, 1) < 0.5, pictures, blurred)
    return pictures + 0.1 * torch.rand(len(pictures), 1, 1, 1) * torch.randn_like(pictures)
