"""The art: npm packages of one exact version each, downloaded once and checked against their digests.

All are openly licensed and none is share-alike; `LICENCES` goes into the model card.
"""

import base64
import hashlib
import io
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

REGISTRY = "https://registry.npmjs.org"


@dataclass(frozen=True)
class Package:
    """One tarball of the registry; `sha512` is npm's integrity value, base64."""

    name: str
    version: str
    licence: str
    owner: str
    sha512: str

    @property
    def url(self) -> str:
        return f"{REGISTRY}/{self.name}/-/{self.name.split('/')[-1]}-{self.version}.tgz"

    @property
    def folder(self) -> str:
        return self.name.replace("@", "").replace("/", "-")


NOTO = Package(
    "@iconify-json/noto",
    "1.2.9",
    "Apache-2.0",
    "Noto Emoji, Google",
    "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
)
FLAT = Package(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "MIT",
    "Fluent Emoji, Microsoft",
    "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
)
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "MIT",
    "Fluent Emoji, Microsoft",
    "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
)
TWEMOJI = Package(
    "@iconify-json/twemoji",
    "1.2.5",
    "CC-BY-4.0",
    "Twemoji, Twitter and other contributors",
    "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
)
STYLE_PACKAGES = {"noto": NOTO, "flat": FLAT, "3d": FLUENT_3D, "twemoji": TWEMOJI}


class WrongDigest(Exception):
    """What the registry sent is not the file this recipe was written for."""


def fetch(package: Package, folder: Path) -> Path:
    """Unpack a package into folder/<package>, unless it is there. Raises WrongDigest, OSError."""
    target = folder / package.folder
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(package.url, timeout=60) as response:
            unpack(verified(response.read(), package), target)
    return target


def verified(data: bytes, package: Package) -> bytes:
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if digest != package.sha512:
        raise WrongDigest(f"{package.url}: sha512 {digest}, expected {package.sha512}")
    return data


def unpack(data: bytes, target: Path) -> None:
    """Unpack an npm tarball, whose files all lie in `package/`, so that target appears only when complete."""
    partial = target.with_name(target.name + ".partial")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(partial, filter="data")
    (partial / "package").rename(target)
    partial.rmdir()
