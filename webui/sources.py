"""Pictures that people give: kept by the hash of their content, so that a request can name them.

``sources/OWNER/HASH.png`` in the data folder, lossless. Each person has a folder of their own: a hash is
written into every picture made from a source, and whoever is shown such a picture must not get the source.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from pathlib import Path

from PIL import Image

from webui.errors import StorageError
from webui.request import invalid

LEFTOVER_AGE = 600  # seconds after which a temporary file belongs to nobody any more

_DIGEST = re.compile(r"[0-9a-f]{64}")


class SourceStore:
    """The source pictures and masks of one data folder. Safe to use from several threads and processes."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir.resolve() / "sources"
        for left in self._folder.glob("*/.*.part"):  # by a process that was killed
            with contextlib.suppress(OSError):  # another process sweeps too
                if time.time() - left.stat().st_mtime > LEFTOVER_AGE:
                    left.unlink()

    def keep(self, image: Image.Image, owner: str) -> str:
        """Store a picture (mode RGB) or a mask (mode L), unless it is there already.

        Returns: the SHA-256 of its mode, size and pixels, hexadecimal; the file format plays no part in it.

        Raises:
            StorageError: the disk is full or read-only.
        """
        digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode() + image.tobytes())
        path = self._path(digest.hexdigest(), owner)
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(image, path)
            except OSError as error:
                raise StorageError("The source picture could not be stored: is the disk full?") from error
        return digest.hexdigest()

    def has(self, digest: str, owner: str) -> bool:
        return bool(_DIGEST.fullmatch(digest)) and self._path(digest, owner).is_file()

    def open(self, digest: str, owner: str, field: str = "image") -> Image.Image:
        """The owner's picture, decoded, in the mode in which it was kept.

        Raises:
            InvalidField: this person has no such picture, or it is damaged; names ``field``.
            StorageError: the disk does not let it be read.
        """
        if not self.has(digest, owner):
            raise invalid(field, "is no longer here; choose it again")
        path = self._path(digest, owner)
        try:
            with Image.open(path, formats=("PNG",)) as image:
                image.load()
                return image
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the system, not of Pillow
                raise StorageError("The source picture could not be read.") from error
            path.unlink(missing_ok=True)  # so that the same picture can be kept again
            raise invalid(field, "is damaged on the disk; choose it again") from error

    def _path(self, digest: str, owner: str) -> Path:
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:16] / f"{digest}.png"


def _write(image: Image.Image, path: Path) -> None:
    """The pixels alone, without the profile and the notes that Pillow would copy; the whole file or none."""
    pixels = image.copy()
    pixels.info.clear()
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        pixels.save(temporary, "PNG", compress_level=1)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
