"""ControlNets of each family: what one is shown, how it is called, how one without a config is shaped.

All of it as diffusers' pipelines have it, but that a picture which is told as latents is told as their mean:
the pipelines draw from the VAE's narrow distribution, and the start noise after that, so that a seed would
stand for another noise with a ControlNet than without.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from diffusers import ControlNetModel, FluxControlNetModel, SD3ControlNetModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from PIL import Image
from torch.nn import functional

from webui.diffusion.codec import Codec
from webui.diffusion.pipelines import packed
from webui.errors import InvalidField
from webui.request import Task, invalid
from webui.units import Unit

HIDDEN = -1.0  # what a ControlNet made for inpainting sees where it shall invent
START = "control_model."  # of names in a file in LDM's layout
XL = {  # what diffusers' converter leaves out, in LDM's layout and diffusers'
    f"{start}label_emb.0.{2 * k}.{each}": f"add_embedding.linear_{k + 1}.{each}"
    for start in (START, "")
    for k in (0, 1)
    for each in ("weight", "bias")
}
PATCH = 2  # latent pixels of a side, that XLabs' ControlNets of Flux take as one
MODES: Mapping[str, int] = {"Canny": 0, "Tile": 1}  # of Flux' union ControlNets, as InstantX counts

State: TypeAlias = dict[str, torch.Tensor]
Named: TypeAlias = dict[str, Any]  # arguments by name


@dataclass(frozen=True)
class Call:
    """Of the net, as it would be without a ControlNet."""

    unit: Unit
    scales: torch.Tensor  # (B, 1, 1, 1), the CFG scales
    placed: tuple[Any, ...]
    named: Named


class Kind(ABC):
    """``model``: diffusers' class; ``alike``: the entries of its config that are the net's."""

    model: ClassVar[type[Any]]
    alike: ClassVar[tuple[str, ...]]

    def fits(self, control: Any, net: Any) -> bool:
        """Whether both are of one shape, where the ControlNet has that at all."""
        names = [name for name in self.alike if control.config.get(name) is not None]
        return all(_plain(control.config[name]) == _plain(net.config.get(name)) for name in names)

    def lacking(self, control: Any, unit: Unit, task: Task) -> InvalidField | None:
        """What this ControlNet needs of the request and does not get."""
        return None

    def hides(self, control: Any, unit: Unit) -> bool:
        """Whether what is to be repainted is hidden from it."""
        return unit.preprocessor == "Inpaint"

    def shaped(self, net: Any, tensors: State) -> tuple[Named, State]:
        """(config, weights under diffusers' names) of a ControlNet in a file, for this net.

        Raises:
            KeyError: it is of another kind.
        """
        known = inspect.signature(self.model.__init__).parameters
        config = {name: value for name, value in net.config.items() if name in known}
        return {**config, **self._own(tensors)}, tensors

    @abstractmethod
    def _own(self, tensors: State) -> Named:
        """What of its config differs from the net's."""

    @abstractmethod
    def seen(self, control: Any, shown: Image.Image, hole: Image.Image | None, codec: Codec) -> torch.Tensor:
        """What it is told of a picture (RGB): one row. ``hole`` (L) is white where that is hidden."""

    @abstractmethod
    def adds(self, control: Any, net: Any, seen: torch.Tensor, call: Call) -> Named:
        """What the net is told beside. ``seen`` has a row for each of the net's."""


class OfUNets(Kind):
    model = ControlNetModel
    alike = ("cross_attention_dim", "block_out_channels", "addition_embed_type")

    def shaped(self, net: Any, tensors: State) -> tuple[Named, State]:
        config, _ = super().shaped(net, {})
        if any(name.startswith(("input_hint_block.", f"{START}input_hint_block.")) for name in tensors):
            sizes = {XL[name]: tensor for name, tensor in tensors.items() if name in XL}
            tensors = convert_controlnet_checkpoint(tensors, config) | sizes
        return {**config, "in_channels": tensors["conv_in.weight"].shape[1]}, tensors

    def _own(self, tensors: State) -> Named:
        return {}

    def seen(self, control: Any, shown: Image.Image, hole: Image.Image | None, codec: Codec) -> torch.Tensor:
        """(1, 3, H, W) of 0..1, and -1 where hidden."""
        pixels: torch.Tensor = VaeImageProcessor(do_normalize=False).preprocess(shown)
        return pixels if hole is None else pixels.masked_fill(_inside(hole), HIDDEN)

    def adds(self, control: Any, net: Any, seen: torch.Tensor, call: Call) -> Named:
        (x, timestep), named = call.placed, call.named
        down, middle = control(
            x[:, : control.config.in_channels],
            timestep,
            encoder_hidden_states=named["encoder_hidden_states"],
            controlnet_cond=seen,
            conditioning_scale=call.unit.scale,
            added_cond_kwargs=named.get("added_cond_kwargs"),
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


class OfStableDiffusion3(Kind):
    """One made for inpainting has a channel more, which says what is not hidden.

    Stability's own, of 3.5 large, reads neither the text nor the places: the net's own places are its input.
    """

    model = SD3ControlNetModel
    alike = ("num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim")

    def lacking(self, control: Any, unit: Unit, task: Task) -> InvalidField | None:
        if _masked(control) and task != "inpaint":
            return invalid(unit.field("model"), "is made for inpainting; it needs a mask")
        return None

    def hides(self, control: Any, unit: Unit) -> bool:
        return _masked(control) or super().hides(control, unit)

    def _own(self, tensors: State) -> Named:
        reads = "context_embedder.weight" in tensors
        layers = _count(tensors, "transformer_blocks.")
        seen = tensors["pos_embed_input.proj.weight"]
        return {
            "num_layers": layers,
            "dual_attention_layers": [
                k for k in range(layers) if f"transformer_blocks.{k}.attn2.to_q.weight" in tensors
            ],
            "qk_norm": "rms_norm" if "transformer_blocks.0.attn.norm_q.weight" in tensors else None,
            "extra_conditioning_channels": seen.shape[1]
            - tensors.get("pos_embed.proj.weight", seen).shape[1],
            "use_pos_embed": "pos_embed.proj.weight" in tensors,
            "force_zeros_for_pooled_projection": reads,
            **({} if reads else {"joint_attention_dim": None}),
        }

    def seen(self, control: Any, shown: Image.Image, hole: Image.Image | None, codec: Codec) -> torch.Tensor:
        """(1, C, h, w): latents, unshifted for InstantX' ControlNets, and what is not hidden (0 or 1)."""
        masked = _masked(control)
        shifts = masked or not control.config.force_zeros_for_pooled_projection
        latents = _latents(shown, hole, codec, shifts)
        if not masked or hole is None:
            return latents
        inside = _inside(hole)[None, None].to(latents)
        return torch.cat([latents, 1 - functional.interpolate(inside, size=latents.shape[-2:])], dim=1)

    def adds(self, control: Any, net: Any, seen: torch.Tensor, call: Call) -> Named:
        config, named = control.config, call.named
        x, text, pooled = (
            named[name] for name in ("hidden_states", "encoder_hidden_states", "pooled_projections")
        )
        (blocks,) = control(
            hidden_states=x if config.use_pos_embed else net.pos_embed(x),
            timestep=named["timestep"],
            encoder_hidden_states=text if config.joint_attention_dim else None,
            pooled_projections=pooled * (not config.force_zeros_for_pooled_projection),
            controlnet_cond=seen,
            conditioning_scale=call.unit.scale,
            return_dict=False,
        )
        return {"block_controlnet_hidden_states": blocks}


class OfFlux(Kind):
    """A union ControlNet is told by a number what it is shown; XLabs' read pixels instead of latents."""

    model = FluxControlNetModel
    alike = ("num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim")

    def lacking(self, control: Any, unit: Unit, task: Task) -> InvalidField | None:
        if control.union and unit.preprocessor not in MODES:
            return invalid(unit.field("preprocessor"), f"must be {' or '.join(MODES)} for a union ControlNet")
        return None

    def _own(self, tensors: State) -> Named:
        modes, hint = (
            tensors.get(name)
            for name in ("controlnet_mode_embedder.weight", "input_hint_block.conv_out.weight")
        )
        return {
            "num_layers": _count(tensors, "transformer_blocks."),
            "num_single_layers": _count(tensors, "single_transformer_blocks."),
            "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in tensors,
            "num_mode": None if modes is None else len(modes),
            "conditioning_embedding_channels": None if hint is None else len(hint),
            "patch_size": 1 if hint is None else PATCH,
        }

    def seen(self, control: Any, shown: Image.Image, hole: Image.Image | None, codec: Codec) -> torch.Tensor:
        """(1, h/2 * w/2, 4 C): packed latents; XLabs' ControlNets: (1, 3, H, W) of -1..1."""
        if control.input_hint_block is None:
            return packed(_latents(shown, hole, codec))
        pixels: torch.Tensor = codec.processor.preprocess(_hidden(shown, hole))
        return pixels

    def adds(self, control: Any, net: Any, seen: torch.Tensor, call: Call) -> Named:
        mode = MODES[call.unit.preprocessor] if control.union else 0
        blocks, singles = control(
            **{
                **call.named,
                "guidance": call.scales.flatten() if control.config.guidance_embeds else None,
                "controlnet_cond": seen,
                "controlnet_mode": torch.full((len(seen), 1), mode, device=seen.device),
                "conditioning_scale": call.unit.scale,
            }
        )
        return {
            "controlnet_block_samples": blocks,
            "controlnet_single_block_samples": singles,
            "controlnet_blocks_repeat": control.input_hint_block is not None,
        }


KINDS: Mapping[str, Kind] = {  # by family
    **dict.fromkeys(("sd1", "sd2", "sdxl"), OfUNets()),
    "sd3": OfStableDiffusion3(),
    "flux": OfFlux(),
}


def _masked(control: Any) -> bool:
    """Whether it is told where to invent, beside the picture."""
    return bool(control.config.extra_conditioning_channels)


def _latents(
    shown: Image.Image, hole: Image.Image | None, codec: Codec, shifted: bool = True
) -> torch.Tensor:
    """(1, C, h, w) of a picture that is black where it is hidden."""
    return codec.shown(_hidden(shown, hole), shifted)


def _hidden(shown: Image.Image, hole: Image.Image | None) -> Image.Image:
    if hole is None:
        return shown
    return Image.composite(Image.new("RGB", shown.size), shown, hole.point(lambda level: 255 * (level > 127)))


def _inside(hole: Image.Image) -> torch.Tensor:
    """(H, W) bool."""
    return torch.from_numpy(np.array(hole) > 127)


def _count(tensors: State, prefix: str) -> int:
    """How many blocks there are whose names begin so."""
    return len({name.split(".")[1] for name in tensors if name.startswith(prefix)})


def _plain(value: Any) -> Any:
    """Of a config, which writes tuples as lists."""
    return list(value) if isinstance(value, tuple) else value
