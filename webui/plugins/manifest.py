"""What a plugin says of itself in its ``plugin.toml``."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Annotated

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from webui.hookspecs import API

FILE, MODULE = "plugin.toml", "plugin.py"
ID = re.compile(r"[a-z][a-z0-9-]{0,39}")
MAX_BYTES = 100_000


class Refused(Exception):
    """A plugin that is not loaded, and why, for a person."""


def _text(value: object) -> object:
    if isinstance(value, str) and not value.isprintable():
        raise ValueError("holds a character that cannot be shown")
    return value


Line = Annotated[str, BeforeValidator(_text), Field(max_length=500)]


class Manifest(BaseModel):
    """A ``plugin.toml``, checked."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    id: Annotated[str, Field(pattern=rf"^{ID.pattern}$")]
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+!_-]{1,40}$")]
    api: str
    description: Annotated[Line, Field(min_length=1)]  # a sentence: what it does and what it touches
    name: Line = ""  # for people; "": the id
    requires: list[Line] = []  # Python packages, as pip writes them
    deterministic: bool = (
        True  # same request, same picture; else its pictures are never taken from the library
    )

    @property
    def title(self) -> str:
        return self.name or self.id.replace("-", " ").capitalize()


def read(folder: Path) -> Manifest:
    """
    Raises:
        Refused: there is none, it cannot be read, or it asks for what is not here.
    """
    manifest = _parsed(folder / FILE)
    if manifest.api != API:
        raise Refused(f"it is written for api {manifest.api!r}, and this program has {API!r}")
    if missing := [text for text in manifest.requires if not _is_there(text)]:
        command = " ".join(f"'{text}'" for text in missing)
        raise Refused(f"it needs {', '.join(missing)}: pip install {command}")
    return manifest


def _parsed(path: Path) -> Manifest:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Refused(f"its {FILE} is more than {MAX_BYTES:,} bytes")
        return Manifest(**tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise Refused(f"it has no {FILE}") from None
    except UnicodeDecodeError:
        raise Refused(f"its {FILE} is not UTF-8") from None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise Refused(f"its {FILE} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Refused(f"its {FILE} is wrong at {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _is_there(text: str) -> bool:
    """Whether a requirement is met by what is installed.

    Raises:
        Refused: it is no requirement.
    """
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        raise Refused(f"{text!r} is no requirement as pip writes them") from None
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False
