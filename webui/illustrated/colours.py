"""Latents as colours: the affine map of the VAE's previews, no net needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from webui.flight import FlightRecord, Floats, Pixels


def linear(record: FlightRecord, latents: NDArray[Any]) -> Floats:
    """Latents (..., C, h, w) -> red, green and blue (..., h, w, 3), as fitted to -1..1 and not clipped."""
    mixed = np.einsum("rc,...chw->...hwr", record.to_rgb[:, :-1].astype(float), latents)
    return np.asarray(mixed + record.to_rgb[:, -1], np.float32)


def pixels(rgb: NDArray[Any]) -> Pixels:
    """Colours in -1..1 -> 0..255, the same shape; what lies beyond is clipped."""
    return np.clip((np.asarray(rgb, float) + 1) * 127.5, 0, 255).round().astype(np.uint8)
