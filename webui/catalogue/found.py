"""The nouns: one thing found on the disk, and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from webui.catalogue.auto import AUTO
from webui.request import Task

Kind = Literal[
    "checkpoint", "net", "vae", "text encoder", "lora", "embedding", "controlnet", "ip-adapter", "preview",
    "upscaler", "other",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(Kind)
Family: TypeAlias = str  # a name of FAMILY_TITLES, "other", or "": the header does not say
FAMILY_TITLES: Mapping[str, str] = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "sdxl-refiner": "Stable Diffusion XL refiner",
    "sd3": "Stable Diffusion 3",
    "flux": "Flux",
    **{name: auto.title for name, auto in AUTO.items()},
}

CONTROLLED: tuple[Family, ...] = ("sd1", "sd2", "sdxl", "sd3", "flux")  # families that take a ControlNet
REFERRING: tuple[Family, ...] = ("sd1", "sd2", "sdxl")  # families that heed a reference picture
PICTURE_ENCODER = "CLIP vision"  # the layout of an encoder of pictures, of the kind "other"

Signature = tuple[tuple[str, int, int], ...]  # (file, bytes, nanoseconds of its last change)


@dataclass(frozen=True)
class Identity:
    """What a header says. Fields as in :class:`Found`."""

    kind: Kind
    family: Family = ""
    layout: str = ""
    problem: str = ""
    prediction: str = ""
    precision: str = ""
    tasks: tuple[Task, ...] = ()
    note: str = ""
    config: str = ""
    zero_snr: bool = False
    width: int = 0
    own_vae: bool = False


@dataclass(frozen=True)
class Found:
    """One usable or unusable thing. ``name`` is unique among those of its ``kind``."""

    kind: Kind
    name: str  # what a request, a tag or a list holds: the file's name without its ending, or the folder's
    path: Path  # a file, or a folder in diffusers' layout
    family: Family
    bytes: int
    signature: Signature  # of its weights; changes when one of the files does
    prediction: str = ""  # "epsilon", "v_prediction", "flow_prediction"; "": nothing says so
    precision: str = ""  # of most weights: "float32", "float16", "bfloat16", "float8_e4m3fn", ...
    tasks: tuple[Task, ...] = ()  # of a checkpoint
    problem: str = ""  # why it cannot be used, as a sentence; "": it can
    words: tuple[str, ...] = ()  # trigger words from its metadata
    metadata: Mapping[str, str] = field(default_factory=dict)  # the header's own, of a file; cut where long
    layout: str = ""  # how its tensors are named: "ldm", "comfy", "diffusers", "kohya", "peft", "LoHa", ...
    config: str = ""  # of webui/configs, the folder that a single file is loaded by
    note: str = ""  # what is assumed, for want of better, as a sentence
    zero_snr: bool = False  # trained with a schedule that ends in pure noise
    width: int = 0  # of a text encoder's embeddings; of a VAE, the channels of its latents
    own_vae: bool = False  # of a net without text encoders: whether its VAE is in its file
    parts: Mapping[str, str] = field(default_factory=dict)  # of a model of several files: components, by file

    @property
    def folder(self) -> bool:
        """Whether it is in diffusers' layout."""
        return self.path.is_dir()
