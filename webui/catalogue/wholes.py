"""Nets that lie apart from their VAE and text encoders, as ComfyUI keeps them, made whole with what is there.

Which parts a net needs, its configuration says. A file in the net's own folder goes before others, so that a
person can choose; then the more precise one, then the first by name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from webui.catalogue import folders
from webui.catalogue.found import FAMILY_TITLES, Family, Found, Kind

CONFIGS = Path(__file__).resolve().parents[1] / "configs"  # those that come along
READERS = {"CLIPTextModel": "CLIP", "CLIPTextModelWithProjection": "CLIP", "T5EncoderModel": "T5"}
OPTIONAL = {("sd3", "text_encoder_3")}  # what a family can do without
PRECISE = ("bfloat16", "float16", "float32")  # the best first; 8 bits come last
#: What the published parts are called, by layout or family, and width.
NAMES = {
    ("CLIP", 768): "clip_l",
    ("CLIP", 1280): "clip_g",
    ("T5", 4096): "t5xxl_fp16",
    ("sd1", 4): "vae-ft-mse-840000-ema-pruned",
    ("sd2", 4): "vae-ft-mse-840000-ema-pruned",
    ("sdxl", 4): "sdxl_vae",
    ("sd3", 16): "sd3_vae",
    ("flux", 16): "ae",
}


@dataclass(frozen=True)
class Need:
    """A part that a net lacks."""

    component: str
    kind: Kind
    family: str
    layout: str  # of a text encoder: "CLIP" or "T5"
    width: int

    def fits(self, found: Found) -> bool:
        """Whether a file is such a part. What no name tells apart from another family's is not taken."""
        if (found.kind, found.width) != (self.kind, self.width) or found.problem:
            return False
        families = (self.family, "") if self.family in ("sd1", "sd2") else (self.family,)
        own = found.layout == self.layout if self.kind == "text encoder" else found.family in families
        return own and not found.folder

    @property
    def words(self) -> str:
        """The file that is usually taken, and where it goes."""
        reader = self.kind == "text encoder"
        name = NAMES.get((self.layout or self.family, self.width), "")
        what = f"a text encoder ({self.layout} of width {self.width})" if reader else "its VAE"
        title = f"{name}.safetensors" if name else what
        return f"{title} into {'text_encoders' if reader else 'vae'}/"


def whole(net: Found, listed: Sequence[Found]) -> Found:
    """The net as a checkpoint with the parts it needs; as it is, with a problem, where some are missing."""
    try:
        net = net if net.family else replace(net, family=_family(_config(net)))
        needs = _needs(net)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        problem = f"The configuration beside it, {net.path.stem}.config, is not that of a pipeline."
        return replace(net, problem=problem, tasks=())
    chosen = {need: _best(need, net, listed) for need in needs}
    lacking = [need for need in needs if not chosen[need] and (net.family, need.component) not in OPTIONAL]
    if lacking:
        return replace(net, problem=_missing(net, lacking), tasks=())
    taken = {need.component: found for need, found in chosen.items() if found}
    names = ", ".join(found.name for found in taken.values())
    return replace(
        net,
        kind="checkpoint",
        bytes=net.bytes + sum(found.bytes for found in taken.values()),
        signature=(*net.signature, *(_apart(found) for found in taken.values())),
        parts={str(found.path): component for component, found in taken.items()},
        note=f"{net.note} It is read with {names}.".strip(),
    )


def _config(net: Found) -> Path:
    return CONFIGS / net.config if net.config else net.path.with_suffix(".config")


def _family(config: Path) -> Family:
    """
    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError: the configuration is missing or wrong.
    """
    family = folders.PIPELINES[_json(config / "model_index.json")["_class_name"]]
    if family == "sd1" and _json(config / "unet" / "config.json").get("use_linear_projection"):
        return "sd2"
    return family


def _needs(net: Found) -> list[Need]:
    """
    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError: the configuration is missing or wrong.
    """
    config = _config(net)
    index, needs = _json(config / "model_index.json"), []
    for component, entry in index.items():
        layout = READERS.get(entry[1], "") if isinstance(entry, list) else ""
        if component.startswith("text_encoder") and layout:
            settings = _json(config / component / "config.json")
            width = settings["d_model" if layout == "T5" else "hidden_size"]
            needs.append(Need(component, "text encoder", net.family, layout, width))
    if net.own_vae:
        return needs
    channels = _json(config / "vae" / "config.json")["latent_channels"]
    return [*needs, Need("vae", "vae", net.family.removesuffix("-refiner"), "", channels)]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _best(need: Need, net: Found, listed: Sequence[Found]) -> Found | None:
    fitting = [found for found in listed if need.fits(found)]
    rank = {found: i for i, found in enumerate(PRECISE)}
    return min(
        fitting,
        key=lambda found: (
            found.path.parent != net.path.parent,
            rank.get(found.precision, len(rank)),
            found.name,
        ),
        default=None,
    )


def _apart(found: Found) -> tuple[str, int, int]:
    """Its file, as one that does not lie beside the net's."""
    ((_, size, changed),) = found.signature
    return os.fspath(found.path), size, changed


def _missing(net: Found, lacking: Sequence[Need]) -> str:
    """What to put where."""
    title = FAMILY_TITLES.get(net.family, "of a family that is not known here")
    what = "It has no text encoders" if net.own_vae else "It is a denoising net alone"
    places = "; ".join(dict.fromkeys(need.words for need in lacking))
    return f"{what} ({title}). To use it, put these into your models folder, or beside the file: {places}."
