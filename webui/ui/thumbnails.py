"""The last picture that somebody made with each model, LoRA and the like, small: his own, nobody else's."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

from PIL import Image

from webui import units
from webui.library import Library
from webui.request import SavedPicture
from webui.ui import tags

LOOKED_AT = 300  # pictures, the newest
SIDE = 112  # pixels
KEPT = 1000
USES = {
    "model": "checkpoint",
    "refiner": "checkpoint",
    "vae": "vae",
    **{f"{stem}_model": "controlnet" for stem in units.STEMS},
    "reference_model": "ip-adapter",
}


class Thumbnails:
    """Of one library."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._made: dict[int, str] = {}  # by the picture's row: a data URI, "" of one that cannot be read

    def of(self, owner: str) -> dict[str, dict[str, Any]]:
        """By kind/name: ``picture``, and ``used``, which is the larger the later that was."""
        found: dict[str, dict[str, Any]] = {}
        for picture in self.library.recent(owner, LOOKED_AT):
            for key in _used(picture):
                if key not in found:
                    found[key] = {"picture": self._small(picture), "used": picture.id}
        return found

    def _small(self, picture: SavedPicture) -> str:
        if picture.id not in self._made:
            if len(self._made) >= KEPT:
                self._made.clear()
            self._made[picture.id] = _data_uri(picture)
        return self._made[picture.id]


def _used(picture: SavedPicture) -> Iterator[str]:
    request = dict(picture.request)
    yield from (f"{kind}/{request[field]}" for field, kind in USES.items() if request.get(field))
    yield from (f"lora/{name}" for name in tags.loras(picture.request.prompt))


def _data_uri(picture: SavedPicture) -> str:
    try:
        with Image.open(picture.path) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            small = image.convert("RGB")
    except OSError:
        return ""
    small.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
