"""A picture as a prompt: IP-Adapter (Ye et al. 2023, arXiv:2308.06721).

An encoder of pictures says what is in the reference; the adapter makes a few tokens of that, and beside each
cross-attention of the net to the words it puts one to these tokens. Nothing of the net itself is changed: for
the time of a run its attention modules are handed other processors, as plugins may do too, and get their own
back. diffusers' loaders read the files; the processors do not become parts of the net, so that whatever
moves, counts or watches its modules sees the same net as ever.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from diffusers.loaders.unet import UNet2DConditionLoadersMixin
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterXFormersAttnProcessor
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0 as Attending
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from webui.catalogue.found import Found
from webui.diffusion.additions import Guests, unkept
from webui.diffusion.denoiser import Arguments, Calls
from webui.diffusion.devices import Device, plain_memory_errors
from webui.diffusion.ip_adapters import FIELD, Reference, weights
from webui.diffusion.loading import LOADING, owned
from webui.diffusion.model import Model
from webui.diffusion.prompts import Text
from webui.request import invalid

log = logging.getLogger(__name__)

HEADS = 16  # of the attention of every encoder of pictures that adapters were made for; no file says it
ACTIVATIONS = {1024: "quick_gelu"}  # by their width; of OpenCLIP's, which are wider, "gelu"
DAMAGED = (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, SafetensorError)

State: TypeAlias = dict[str, dict[str, torch.Tensor]]
Described: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # a picture and none: (1, 1, D) or (1, 1, L, D) each


@contextmanager
def applied(
    model: Model,
    wanted: Reference | None,
    picture: Image.Image | None,
    device: Device,
    guests: Guests = unkept,
) -> Iterator[Model]:
    """The model as it heeds the picture (RGB); without one, as it is.

    It has memories of its own for each adapter, encoder and picture.

    Raises:
        InvalidField: a file is damaged, or does not fit the model.
    """
    if wanted is None or picture is None:
        yield model
        return
    try:
        with plain_memory_errors():
            adapter = guests("reference", wanted.adapter, lambda: _read(model.net, wanted.adapter))
            _check(model.net, adapter)
            variant = model.variants(
                _key(wanted),
                lambda: model.apart(
                    described=describe(model, wanted.encoder, picture, adapter.plain, device, guests)
                ),
            )
    except DAMAGED as error:
        log.error("the IP-Adapter %s cannot be used", wanted.adapter.name, exc_info=error)
        raise invalid(FIELD, f"{wanted.adapter.name} is damaged, or does not fit this model") from error
    with _attending(model.net, adapter, wanted.scale):
        yield variant


def _key(wanted: Reference) -> Hashable:
    return "reference", wanted.picture, *((found.path, found.signature) for found in wanted.files)


def calls(model: Model, told: Model) -> Calls:
    """How a model's net is called while the picture's adapter is in the net of ``told``, which may be it."""
    described = told.described if told.net is model.net else None
    return Referring(model.family.calls, described) if described else model.family.calls


class Referring:
    """Calls of a family's nets that are told of a picture beside the text."""

    def __init__(self, calls: Calls, described: Described) -> None:
        self.calls = calls
        self.described = described
        self.latents, self.packed, self.timestep = calls.latents, calls.packed, calls.timestep

    def arguments(
        self,
        net: Any,
        x: torch.Tensor,
        timestep: torch.Tensor,
        text: Text,
        against: int,
        scales: torch.Tensor,
        kwargs: Mapping[str, Any],
    ) -> Arguments:
        placed, named = self.calls.arguments(net, x, timestep, text, against, scales, kwargs)
        picture, none = (each.to(x) for each in self.described)
        rows = [none] * against + [picture] * (len(x) - against)
        more = {**(named.get("added_cond_kwargs") or {}), "image_embeds": [torch.cat(rows)]}
        return placed, {**named, "added_cond_kwargs": more}


# The picture


@torch.no_grad()
def describe(
    model: Model, found: Found, picture: Image.Image, plain: bool, device: Device, guests: Guests
) -> Described:
    """What an encoder says of the picture and of none.

    Args:
        plain: its projected summary (1, 1, D), with zeros for no picture; else what its last layer but one
            says of each patch (1, 1, L, D), with a black picture for none.
    """
    encoder = guests("picture_encoder", found, lambda: _encoder(found, device.torch_dtype))
    with model.stage("picture"):
        return _described(encoder, picture, plain)


def _described(encoder: Any, picture: Image.Image, plain: bool) -> Described:
    size = encoder.config.image_size
    prepare = CLIPImageProcessor(size=size, crop_size=size)
    pixels = prepare(picture, return_tensors="pt").pixel_values.to(encoder.device, encoder.dtype)
    if plain:
        summary = encoder(pixels).image_embeds
        return summary[None], torch.zeros_like(summary)[None]
    states = (encoder(each, output_hidden_states=True) for each in (pixels, torch.zeros_like(pixels)))
    picture_states, none_states = (output.hidden_states[-2] for output in states)
    return picture_states[None], none_states[None]


def _encoder(found: Found, dtype: torch.dtype) -> Any:
    with LOADING:
        if found.folder:
            encoder = CLIPVisionModelWithProjection.from_pretrained(
                found.path, dtype=dtype, local_files_only=True, use_safetensors=True
            )
        else:
            state = load_file(weights(found)[0])
            encoder = CLIPVisionModelWithProjection.from_pretrained(
                None, config=_config(state), state_dict=state, dtype=dtype
            )
    return owned(encoder).eval().requires_grad_(False)


def _config(state: Mapping[str, torch.Tensor]) -> CLIPVisionConfig:
    """Of an encoder in a single file, by its shapes."""
    body = "vision_model."
    width, _, patch, _ = state[f"{body}embeddings.patch_embedding.weight"].shape
    patches = len(state[f"{body}embeddings.position_embedding.weight"]) - 1
    layers = {name.split(".")[3] for name in state if name.startswith(f"{body}encoder.layers.")}
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=len(state[f"{body}encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=len(layers),
        num_attention_heads=HEADS,
        patch_size=patch,
        image_size=patch * math.isqrt(patches),
        projection_dim=len(state["visual_projection.weight"]),
        hidden_act=ACTIVATIONS.get(width, "gelu"),
    )


# The adapter


class Adapter(nn.Module):
    """Processors for the cross-attentions of a net, and what makes tokens of a description.

    ``plain``: of an encoder's summary of a picture, see :func:`describe`.
    """

    def __init__(self, processors: Mapping[str, nn.Module], projection: nn.Module) -> None:
        super().__init__()
        self.plain = isinstance(projection, ImageProjection)
        self.projection = MultiIPAdapterImageProjection([projection])
        self.names = tuple(processors)
        self.processors = nn.ModuleList(processors.values())

    def by_name(self) -> dict[str, Any]:
        """The net's names of its attentions -> their processors."""
        return dict(zip(self.names, self.processors, strict=True))


def _check(net: Any, adapter: Adapter) -> None:
    """
    Raises:
        ValueError: it was made for another net.
    """
    for name, processor in adapter.by_name().items():
        own, other = _attention(net, name).to_k, processor.to_k_ip[0]
        if (own.in_features, own.out_features) != (other.in_features, other.out_features):
            raise ValueError(f"{name} is of another size")


def _attention(net: Any, name: str) -> Any:
    return net.get_submodule(name.removesuffix(".processor"))


def _read(net: Any, found: Found) -> Adapter:
    """In RAM, in the net's precision."""
    state: State = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(found.path).items():
        part, _, rest = name.partition(".")
        state[part][rest] = tensor
    names = {name: _stand_in(processor) for name, processor in net.attn_processors.items()}
    stand_in = SimpleNamespace(
        config=net.config, attn_processors=names, device=torch.device("cpu"), dtype=net.dtype
    )
    loaders = UNet2DConditionLoadersMixin
    with LOADING:
        processors = loaders._convert_ip_adapter_attn_to_diffusers(stand_in, [state])
        projection = loaders._convert_ip_adapter_image_proj_to_diffusers(stand_in, state["image_proj"])
    own = (Attending, IPAdapterXFormersAttnProcessor)
    fitting = {name: each for name, each in processors.items() if isinstance(each, own)}
    adapter = Adapter(fitting, projection).to(net.dtype).eval().requires_grad_(False)
    owned(adapter)
    return adapter


def _stand_in(processor: Any) -> Any:
    """What tells diffusers' loader the kind of attention. It knows xFormers' and the plain one."""
    return processor if "XFormers" in type(processor).__name__ else AttnProcessor2_0()


@contextmanager
def _attending(net: Any, adapter: Adapter, scale: float) -> Iterator[None]:
    """What is put in place are the modules' calls: modules themselves would become parts of the net."""
    processors = adapter.by_name()
    modules = {name: _attention(net, name) for name in processors}
    before = {name: module.processor for name, module in modules.items()}
    plain = net.process_encoder_hidden_states

    def with_picture(encoder_hidden_states: torch.Tensor, added_cond_kwargs: Mapping[str, Any]) -> Any:
        """What the attention modules are told: of the text, and of the picture."""
        text = plain(encoder_hidden_states, added_cond_kwargs)
        return text, adapter.projection(added_cond_kwargs["image_embeds"])

    try:
        for name, module in modules.items():
            processors[name].scale = [scale]
            module.processor = processors[name].__call__
        net.process_encoder_hidden_states = with_picture
        yield
    finally:
        for name, module in modules.items():
            module.processor = before[name]
        vars(net).pop("process_encoder_hidden_states", None)
