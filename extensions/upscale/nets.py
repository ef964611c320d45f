"""ESRGAN and its relatives, from ``.safetensors`` files, through spandrel (https://github.com/chaiNNer-org/spandrel).

Other files are never opened: what torch calls ``.pth`` can run a stranger's program as it is read.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import threading
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from webui.errors import ModelError, NotANumber, OutOfMemory

from . import limits, tiles

if TYPE_CHECKING:
    import torch

FOLDER = Path("models") / "ESRGAN"  # below the data folder, and below the program's own
INSTALL = (
    "pip install spandrel==0.4.2 torchvision==0.28.0"  # alone, spandrel would replace the program's torch
)
OTHERWISE = (LookupError, ValueError, TypeError, RuntimeError, AssertionError, AttributeError)  # of odd files


def find(data_dir: Path) -> dict[str, Path]:
    """Name -> file, sorted, of what may be networks; a name is given once. No file is opened."""
    found: dict[str, Path] = {}
    for folder in (data_dir / FOLDER, Path(__file__).parents[2] / FOLDER):
        for path in sorted(folder.glob("*.safetensors")):
            if path.is_file() and path.stem.isprintable():
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def installed() -> bool:
    return importlib.util.find_spec("spandrel") is not None


@dataclass(frozen=True)
class Loaded:
    path: Path
    device: str
    descriptor: Any  # spandrel's
    scale: int


class Nets:
    """Loads networks when they are needed, and keeps the last one. Safe to use from several threads."""

    def __init__(self) -> None:
        self.device = "cpu"  # as torch names it
        self._last: Loaded | None = None
        self._lock = threading.Lock()  # one tile at a time, whoever asks

    def work(self, path: Path, image: Image.Image, size: tuple[int, int]) -> tiles.Work:
        """Enlarge an RGB picture to (width, height): by the network as often as it takes, then by Lanczos.

        Raises:
            InvalidField: it would become too large on the way.
            ModelError: the file is no such network.
        """
        net = self._loaded(path)
        limits.check(image.size, (image.width * net.scale, image.height * net.scale))
        passes = _passes(image.size, size, net.scale)
        for done in range(passes):
            if done:  # so that the last pass makes what is wanted, and not more
                image = _at_most(image, math.ceil(size[0] / net.scale), math.ceil(size[1] / net.scale))
            work = tiles.enlarged(image, net.scale, lambda tile: self._run(net, tile))
            image = yield from tiles.told(work, partial(_share, done, passes))
        return image.resize(size, Image.Resampling.LANCZOS)

    def _loaded(self, path: Path) -> Loaded:
        with self._lock:
            if self._last is None or (self._last.path, self._last.device) != (path, self.device):
                self._last = None  # one at a time in memory
                self._last = load(path, self.device)
            return self._last

    def _run(self, net: Loaded, tile: Image.Image) -> Image.Image:
        import torch

        try:
            with self._lock, torch.inference_mode():
                return picture(net.descriptor(tensor(tile, net.device)))
        except torch.OutOfMemoryError:
            raise OutOfMemory(
                f"{net.path.stem} has no room for a tile of {tile.width}x{tile.height}."
            ) from None


def load(path: Path, device: str) -> Loaded:
    """
    Raises:
        ModelError: the file is no network that enlarges pictures in tiles, or spandrel does not work.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        spandrel = importlib.import_module("spandrel")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that belongs to another torch
        raise ModelError(f"{path.stem} needs spandrel, which cannot be imported: {INSTALL}") from error
    try:
        state = load_file(path)
        descriptor = spandrel.ModelLoader().load_from_state_dict(state)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path.stem} is damaged, or no .safetensors file.") from error
    except (spandrel.UnsupportedModelError, *OTHERWISE) as error:
        raise ModelError(f"{path.stem} is no network that spandrel knows.") from error
    if (
        not isinstance(descriptor, spandrel.ImageModelDescriptor)
        or (descriptor.input_channels, descriptor.output_channels) != (3, 3)
        or descriptor.tiling != spandrel.ModelTiling.SUPPORTED
    ):
        raise ModelError(f"{path.stem} is no network that enlarges RGB pictures in tiles.")
    return Loaded(path, device, descriptor.to(device).eval(), descriptor.scale)


def tensor(image: Image.Image, device: str) -> torch.Tensor:
    """(1, 3, h, w) float32, 0 to 1."""
    import torch

    return torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)[None].float() / 255


def picture(output: torch.Tensor) -> Image.Image:
    """
    Raises:
        NotANumber: the network computed some.
    """
    if not output.isfinite().all():
        raise NotANumber("The upscaler computed something that is no number; its file may be damaged.")
    pixels = (output[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _sha256(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _passes(size: tuple[int, int], wanted: tuple[int, int], scale: int) -> int:
    """How often the network must be run; one that does not enlarge, once."""
    passes = 1
    while scale > 1 and any(scale**passes * now < then for now, then in zip(size, wanted, strict=True)):
        passes += 1
    return passes


def _at_most(image: Image.Image, width: int, height: int) -> Image.Image:
    size = min(image.width, width), min(image.height, height)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _share(done: int, passes: int, of_this: float) -> float:
    return (done + of_this) / passes
