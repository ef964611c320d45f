"""Another VAE than the model's own, for a run: from a file in LDM's or diffusers' names, or a folder."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors import SafetensorError
from safetensors.torch import load_file

from webui.catalogue.found import Found
from webui.diffusion.additions import Guests
from webui.diffusion.devices import Device, plain_memory_errors
from webui.diffusion.loading import LOADING, finite, owned
from webui.diffusion.model import Model
from webui.request import invalid

log = logging.getLogger(__name__)

START = "first_stage_model."  # of names in files that were cut out of a whole checkpoint


def with_vae(model: Model, found: Found | None, device: Device, guests: Guests) -> Model:
    """The model with this VAE in the place of its own; with None, itself.

    The model has memories of its own for each VAE, but for what its text encoders made, which no VAE
    changes. They do not hold the VAE, which may be given back between two jobs.

    Raises:
        InvalidField: the file is damaged, or for other latents than the model's.
    """
    if found is None:
        return model
    vae = guests("vae", found, lambda: _load(model, found, device))
    _check(model, found, vae.config.latent_channels)
    key = "vae", found.path, found.signature
    return replace(model.variants(key, lambda: model.apart(encoder=model.encoder)), vae=vae)


def _check(model: Model, found: Found, channels: int) -> None:
    own = model.vae.config.latent_channels
    if channels != own:
        raise invalid("vae", f"{found.name} is for latents of {channels} channels; the model's have {own}")


def _load(model: Model, found: Found, device: Device) -> Any:
    """In RAM, in the device's precision. A file has no config: it is taken to be as the model's own."""
    try:
        with LOADING, plain_memory_errors():
            vae = AutoencoderKL.from_pretrained(found.path, local_files_only=True) if found.folder else None
            vae = vae or _of_file(model, found)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        log.error("the VAE %s cannot be loaded", found.name, exc_info=error)
        raise invalid("vae", f"{found.name} cannot be loaded: it is damaged, or of another kind") from error
    if not finite(vae):
        raise invalid("vae", f"{found.name} holds values that are not numbers (NaN or infinity)")
    owned(vae)
    vae = vae.to(device.torch_dtype).eval().requires_grad_(False)
    return vae.to(memory_format=torch.channels_last) if device.channels_last else vae


def _of_file(model: Model, found: Found) -> Any:
    tensors = {name.removeprefix(START): tensor for name, tensor in load_file(found.path).items()}
    _check(model, found, tensors["decoder.conv_in.weight"].shape[1])
    with init_empty_weights():
        vae = AutoencoderKL.from_config(model.vae.config)
    if "decoder.mid.block_1.conv1.weight" in tensors:
        tensors = convert_ldm_vae_checkpoint(tensors, vae.config)
    vae.load_state_dict(tensors, assign=True)
    return vae
