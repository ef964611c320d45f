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
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from webui.catalogue.found import Found, Signature
from webui.diffusion.additions import Guests, unkept
from webui.diffusion.devices import plain_memory_errors
from webui.diffusion.loading import owned
from webui.diffusion.model import Model
from webui.diffusion.preview import LONG_SIDE, Preview, jpeg, probes, row
from webui.errors import OutOfMemory
from webui.request import PreviewDecoder

log = logging.getLogger(__name__)

SAME_LATENTS = {"sd2": "sd1", "sdxl-refiner": "sdxl"}
Key: TypeAlias = tuple[Path, Signature]

SCALE = 8  # pixels per latent pixel
MISSED = 0.5  # share of the pictures' variance that a decoder of the right latents stays well below


class TinyPreview:
    """Decodes scaled latents. Where that fails, ``otherwise`` shows this and all that follow."""

    def __init__(self, tiny: Any, otherwise: Preview) -> None:
        """``tiny``: see :func:`load`."""
        self.tiny = tiny
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
        config = self.tiny.config  # its scaling and shift are 1 and 0 of all that are published
        latents = x0 / config.scaling_factor + config.shift_factor
        pixels: torch.Tensor = self.tiny.decoder(latents.to(self.tiny.dtype))
        return pixels.float().cpu()


class Previews:
    """Says how a model's predictions are shown, and remembers which decoders understand its latents."""

    def __init__(self, files: Callable[[], Iterable[Found]], guests: Guests = unkept) -> None:
        """``files``: those of the kind "preview" that there are now."""
        self._files = files
        self._guests = guests
        # By VAE: what a decoder makes of its latents is what it made them of; None: it cannot be used.
        self._understands: WeakKeyDictionary[Any, dict[Key, bool | None]] = WeakKeyDictionary()

    def of(self, model: Model, wanted: PreviewDecoder) -> Preview:
        """
        Args:
            wanted: "Automatic" is the family's decoder, if there is one and it understands the latents of
                this model's VAE; "TAESD" takes its word for that; "Fast" needs none.
        """
        for found in self._files() if wanted != "Fast" else ():
            if _latents(found.family) == _latents(model.family.name) and not found.problem:
                preview = self._tiny(model, found, trusted=wanted == "TAESD")
                if preview:
                    return preview
        return model.preview

    def _tiny(self, model: Model, found: Found, trusted: bool) -> Preview | None:
        """A decoder is tried once for each VAE. What goes wrong with it costs no picture."""
        understands, key = self._understands.setdefault(model.vae, {}), (found.path, found.signature)
        try:
            if not understands.get(key, True) and not (trusted and understands[key] is False):
                return None
            with plain_memory_errors():
                tiny = self._guests("preview", found, lambda: load(found, model.vae.dtype))
                preview = TinyPreview(tiny, model.preview)
                if key not in understands:
                    understands[key] = _understands(model, preview)
        except OutOfMemory as error:  # at present
            log.warning("previews go on without %s: %s", found.name, error)
            return None
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            log.warning("previews go on without %s, which cannot be used: %s", found.name, error)
            understands[key] = None
            return None
        return preview if understands[key] or trusted else None


def _understands(model: Model, preview: TinyPreview) -> bool:
    """Whether it makes of the VAE's latents what the VAE made them of."""
    with model.stage("vae"):
        pictures, latents = probes(model.vae)
        decoded = preview.decode(latents.to(model.vae.device))
    missed = functional.mse_loss(decoded, pictures) / pictures.var()
    return not missed > MISSED  # a VAE in half precision may know no better: then trust


def _latents(family: str) -> str:
    """Families of one space of latents under one name."""
    return SAME_LATENTS.get(family, family)


def load(found: Found, dtype: torch.dtype = torch.float32) -> Any:
    """An ``AutoencoderTiny`` in RAM that only decodes, from (C, h, w) to (3, 8h, 8w).

    Raises:
        OSError, ValueError, KeyError, RuntimeError, SafetensorError: it is damaged, or something else.
    """
    if found.folder:
        whole = AutoencoderTiny.from_pretrained(found.path, local_files_only=True, use_safetensors=True)
        return _decoding_alone(whole, dtype)
    weights = dict(_decoding(load_file(found.path)))
    first = weights["layers.0.weight"]
    sides = (len(first),) * 4
    whole = AutoencoderTiny(
        latent_channels=first.shape[1], encoder_block_out_channels=sides, decoder_block_out_channels=sides
    )
    whole.decoder.load_state_dict(weights)
    return _decoding_alone(whole, dtype)


def _decoding_alone(whole: AutoencoderTiny, dtype: torch.dtype) -> Any:
    whole.encoder = nn.Identity()
    whole.decoder.to(dtype)
    return owned(whole).eval().requires_grad_(False)


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
