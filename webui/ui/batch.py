"""Many files for image to image: uploaded, or from a folder of the server's inputs. No page in sight.

Each is opened before anything is computed, so that a bad one is known, named and left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from webui import images
from webui.errors import InvalidField
from webui.request import GenerationRequest
from webui.ui import form, sizes
from webui.ui.desk import Desk
from webui.ui.form import Values

MAX_FILES = 1000
MAX_FOLDERS = 500
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif")
TOP = "inputs"  # what the folder itself is called in the list

Named = tuple[str, Path]  # a file, and what a person calls it


@dataclass(frozen=True)
class Piece:
    """A picture of a batch."""

    name: str
    digest: str
    size: sizes.Size


@dataclass(frozen=True)
class Batch:
    """Pictures to change, and files that are none: their names, and why."""

    pieces: tuple[Piece, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


def folders(inputs: Path) -> list[str]:
    """The folders with pictures in and below ``inputs``, by what they are called in the list.

    Links are not followed: none of them leads out.
    """
    found = []
    for folder, below, names in os.walk(inputs.resolve(), followlinks=False):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if any(name.lower().endswith(ENDINGS) for name in names):
            found.append(Path(TOP, Path(folder).relative_to(inputs.resolve())).as_posix())
        if len(found) >= MAX_FOLDERS:
            break
    return found


def files(inputs: Path, folder: str | None) -> list[Named]:
    """The pictures of a folder of the list, by name. A link that leads out of ``inputs`` is left out.

    Raises:
        InvalidField: the folder is not in the list.
    """
    if folder not in folders(inputs):
        raise form.invalid("image", "choose a folder from the list")
    root = inputs.resolve()
    here = root / Path(folder).relative_to(TOP)
    return [
        (path.name, path)
        for path in sorted(here.iterdir())
        if path.name.lower().endswith(ENDINGS) and path.resolve().is_relative_to(root) and path.is_file()
    ]


def read(named: Sequence[Named], desk: Desk) -> Iterator[Batch]:
    """Open and store each file; what there is so far after every one of them.

    Raises:
        InvalidField: there are too many.
    """
    if len(named) > MAX_FILES:
        raise form.invalid("image", f"{len(named)} files are too many; at most {MAX_FILES} at once")
    batch = Batch()
    for name, path in named:
        try:
            image = images.open_picture(path)
        except InvalidField as error:
            batch = replace(batch, refused=(*batch.refused, (name, error.message)))
        else:
            piece = Piece(name, desk.keep(image), image.size)
            batch = replace(batch, pieces=(*batch.pieces, piece))
        yield batch


def requests(batch: Batch, values: Values, native: sizes.Native | None) -> list[GenerationRequest]:
    """One request per picture, all with the same settings and seed.

    Args:
        native: the model's own size, from which each picture's size follows; None: the form's for all.

    Raises:
        InvalidField: naming the first field that is wrong.
    """
    if not batch.pieces:
        raise form.invalid("image", "choose some pictures first")
    values = {**values, "task": "img2img", "batch_count": 1}
    if form.is_loopback(values):
        raise form.invalid("loopback_rounds", "must be 1 for a batch of files")
    (first,) = form.requests({**values, "image": batch.pieces[0].digest})
    first = form.with_seeds(first)
    return [first.replace(image=piece.digest, **_size(piece, native)) for piece in batch.pieces]


def _size(piece: Piece, native: sizes.Native | None) -> dict[str, int]:
    if native is None:
        return {}
    width, height = sizes.scaled(piece.size, sizes.factor(piece.size, native), native.step)
    return {"width": width, "height": height}
