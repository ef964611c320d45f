"""Previews by a tiny decoder (TAESD, https://github.com/madebyollin/taesd, and its kin), where there is one.

A family's tiny decoder makes in milliseconds, from the latents as the net sees them, nearly what the VAE
would. It knows one space of latents only, and its file does not say which: so a decoder is tried on a few
pictures of the model's own VAE before it is trusted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from webui.catalogue.found import Found, Signature
from webui.diffusion.model import Model
from webui.diffusion.preview import LONG_SIDE, Preview, jpeg, probes, row
from webui.request import PreviewDecoder

log = logging.getLogger(__name__)

SAME_LATENTS = {"sd2": "sd1", "sdxl-refiner": "sdxl"}
Key: TypeAlias = tuple[Path, Signature]

SCALE = 8  # pixels per latent pixel
MISSED = 0.5  # share of the pictures' variance that a decoder of the right latents stays well below


class TinyPreview:
    """Decodes scaled latents. Where that fails, ``otherwise`` shows this and all that follow."""

    def __init__(self, decoder: nn.Module, scaling: float, shift: float, otherwise: Preview) -> None:
        """``scaling`` and ``shift``: of the decoder's own config; 1 and 0 of all that are published."""
        self.decoder = decoder
        self.scaling = scaling
        self.shift = shift
        self.otherwise = otherwise
        self.failed = False

    def jpeg(self, x0: torch.Tensor) -> bytes:
        """Scaled latents (B, C, h, w) of a batch as a JPEG: one row of pictures, at most 512 px long."""
        return jpeg(self.picture(x0))

    def picture(self, x0: torch.Tensor) -> Image.Image:
        """The same, RGB."""
        try:
            if not self.failed:
                return row(self.decode(_bounded(x0)).movedim(1, -1), 1)
        except RuntimeError as error:  # out of memory, or a device without some operation
            log.warning("previews go on without TAESD, which failed: %s", error)
            self.failed = True
        return self.otherwise.picture(x0)

    @torch.no_grad()
    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """(B, 3, 8h, 8w) in -1..1, float32 on the CPU; computed where ``x0`` is."""
        decoder = self.decoder.to(x0.device)
        x0 = x0.to(next(decoder.parameters()).dtype)
        pixels: torch.Tensor = decoder(x0 / self.scaling + self.shift)
        return pixels.float().cpu()


class Known(NamedTuple):
    """A decoder that was read, and whether it makes of a VAE's latents what the VAE made them of.

    It holds nothing of the model: what is remembered must not keep that in memory.
    """

    decoder: nn.Module
    scaling: float
    shift: float
    understands: bool


class Previews:
    """Says how a model's predictions are shown, and remembers the decoders that it has read."""

    def __init__(self, files: Callable[[], Iterable[Found]]) -> None:
        """``files``: those of the kind "preview" that there are now."""
        self._files = files
        self._known: WeakKeyDictionary[Any, dict[Key, Known | None]] = WeakKeyDictionary()  # by VAE

    def of(self, model: Model, wanted: PreviewDecoder) -> Preview:
        """
        Args:
            wanted: "Automatic" is the family's decoder, if there is one and it understands the latents of
                this model's VAE; "TAESD" takes its word for that; "Fast" needs none.
        """
        for found in self._files() if wanted != "Fast" else ():
            if _latents(found.family) == _latents(model.family.name) and not found.problem:
                known = self._read(model, found)
                if known and (known.understands or wanted == "TAESD"):
                    return TinyPreview(known.decoder, known.scaling, known.shift, model.preview)
        return model.preview

    def _read(self, model: Model, found: Found) -> Known | None:
        """Read and tried once for each VAE; None if it cannot be used."""
        known, key = self._known.setdefault(model.vae, {}), (found.path, found.signature)
        if key not in known:
            known[key] = _tried(model, found)
        return known[key]


def _tried(model: Model, found: Found) -> Known | None:
    vae = model.vae
    try:
        decoder, scaling, shift = load(found)
        preview = TinyPreview(decoder.to(vae.dtype), scaling, shift, model.preview)
        with model.stage("vae"):
            pictures, latents = probes(vae)
            decoded = preview.decode(latents.to(vae.device))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        log.warning("previews go on without %s, which cannot be used: %s", found.name, error)
        return None
    missed = functional.mse_loss(decoded, pictures) / pictures.var()
    return Known(
        preview.decoder, scaling, shift, not missed > MISSED
    )  # a VAE in half precision may know no better: then trust


def _latents(family: str) -> str:
    """Families of one space of latents under one name."""
    return SAME_LATENTS.get(family, family)


def load(found: Found) -> tuple[nn.Module, float, float]:
    """A decoder from (C, h, w) to (3, 8h, 8w) on the CPU, and the scaling and shift of its latents.

    Raises:
        OSError, ValueError, KeyError, RuntimeError, SafetensorError: it is damaged, or something else.
    """
    if found.folder:
        whole = AutoencoderTiny.from_pretrained(found.path, local_files_only=True, use_safetensors=True)
        config = whole.config
        return whole.decoder.eval().requires_grad_(False), config.scaling_factor, config.shift_factor
    weights = dict(_decoding(load_file(found.path)))
    first = weights["layers.0.weight"]
    sides = (len(first),) * 4
    whole = AutoencoderTiny(
        latent_channels=first.shape[1], encoder_block_out_channels=sides, decoder_block_out_channels=sides
    )
    whole.decoder.load_state_dict(weights)
    return whole.decoder.eval().requires_grad_(False), 1.0, 0.0


def _decoding(weights: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """A decoder's weights under diffusers' names, of a file in its layout or in the original one.

    The original counts its clamp, which has no weights, as a layer of its own before the others.
    """
    for name, weight in weights.items():
        whole, own = (re.fullmatch(pattern, name) for pattern in (r"decoder\.(layers\..+)", r"(\d+)(\..+)"))
        if whole:
            yield whole[1], weight
        elif own:
            yield f"layers.{int(own[1]) - 1}{own[2]}", weight


def _bounded(x0: torch.Tensor) -> torch.Tensor:
    """On a CPU, no more latents than a preview shows: of larger pictures, the mean of neighbours."""
    batch, _, height, width = x0.shape
    most = LONG_SIDE // SCALE
    if x0.device.type != "cpu" or max(height, batch * width) <= most:
        return x0
    share = most / max(height, batch * width)
    size = max(1, round(height * share)), max(1, round(width * share))
    return functional.interpolate(x0, size=size, mode="area")
