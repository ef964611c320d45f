"""Which files a reference picture needs: an adapter, and the encoder of pictures that it was trained with.

Told by headers alone; :mod:`webui.diffusion.references` reads the weights. An adapter reads either the
encoder's projected summary of a picture or its last hidden states but one, so the width of its first layer
says which encoder it takes: https://huggingface.co/h94/IP-Adapter has two, with adapters of both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from webui.catalogue import headers
from webui.catalogue.found import FAMILY_TITLES, PICTURE_ENCODER, REFERRING, Found
from webui.catalogue.headers import Header, Unreadable
from webui.errors import InvalidField, Unsupported
from webui.request import GenerationRequest, ModelInfo, invalid

FIELD = "reference_model"
SUMMARY, STATES = "visual_projection.weight", "vision_model.embeddings.class_embedding"


@dataclass(frozen=True, eq=False)
class Reference:
    """A picture as a prompt. ``scale``: how much it counts beside the words; 1 is as much as in training."""

    adapter: Found
    encoder: Found
    picture: str  # by the hash of its content, see webui.sources
    scale: float

    @property
    def files(self) -> tuple[Found, Found]:
        """Whose content decides the pixels."""
        return self.adapter, self.encoder


def find(request: GenerationRequest, adapter: Found, model: ModelInfo, others: Iterable[Found]) -> Reference:
    """
    Args:
        others: among them, the encoders of pictures that there are.

    Raises:
        InvalidField: the adapter is damaged or of a kind that is not supported, or its encoder is not there.
        Unsupported: nets of the model's family take none.
    """
    if model.family not in REFERRING:
        raise invalid(FIELD, f"does not go with {model.title}: only {_families()} take one", Unsupported)
    try:
        reads, width = _reads(headers.read(adapter.path))
    except (Unreadable, OSError) as error:
        raise invalid(FIELD, f"{adapter.name} cannot be read. {error}") from error
    if not width:
        raise invalid(FIELD, f"{adapter.name} is a kind of IP-Adapter that is not supported ({reads})")
    fitting = [found for found in others if _gives(found, reads) == width]
    if not fitting:
        raise _missing(adapter, reads, width)
    nearest = max(fitting, key=lambda found: (_shared(found.path, adapter.path), found.path.as_posix()))
    return Reference(adapter, nearest, request.reference_image, request.reference_scale)


def _reads(header: Header) -> tuple[str, int]:
    """What of an encoder the adapter reads, and how wide that is; (what it is, 0) if it is another kind."""
    if shape := header.shape("image_proj.proj.weight"):
        return SUMMARY, shape[-1]
    if "image_proj.perceiver_resampler.proj_in.weight" in header.tensors:
        return "Face ID", 0
    if header.shape("image_proj.norm.weight") and "image_proj.latents" not in header.tensors:
        return "Face ID", 0
    first = header.shape("image_proj.proj.0.weight") or header.shape("image_proj.proj_in.weight")
    return (STATES, first[-1]) if len(first) == 2 else ("its first layer is unknown", 0)


def _gives(found: Found, name: str) -> int:
    """How wide this tensor's output is in an encoder of pictures; 0 if it is something else, or damaged."""
    if found.layout != PICTURE_ENCODER:
        return 0
    try:
        return next((s[0] for path in weights(found) if (s := headers.read(path).shape(name))), 0)
    except (Unreadable, OSError):
        return 0


def _families() -> str:
    return " and ".join(FAMILY_TITLES[family] for family in REFERRING)


def weights(found: Found) -> list[Path]:
    """The files of an encoder."""
    return [found.path / name for name, _, _ in found.signature] if found.folder else [found.path]


def _shared(a: Path, b: Path) -> int:
    """How many folders two paths have in common."""
    return len(Path(os.path.commonpath((a.parent, b.parent))).parts)


def _missing(adapter: Found, reads: str, width: int) -> InvalidField:
    what = "summary is" if reads == SUMMARY else "states are"
    return invalid(
        FIELD,
        f"{adapter.name} needs an encoder of pictures (CLIP vision) whose {what} {width} numbers wide, and "
        "there is none: put the folder image_encoder that comes with it beside it",
    )
