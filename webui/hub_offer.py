"""What is asked of the Hugging Face Hub, and what of it can be fetched. Pure: nothing here asks anyone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from webui.errors import HubError, InvalidField

HUB = "https://huggingface.co"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".msgpack", ".h5")
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")  # of a pipeline
LARGEST_TEXT = 64 * 2**20  # bytes, of a JSON or text file
_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_REPO = re.compile(rf"({_NAME}/{_NAME})(?:@([\w./-]{{1,100}}))?", re.ASCII)
_SHARD = re.compile(r"-\d+-of-\d+")
_LABEL = "Model on the hub"


@dataclass(frozen=True)
class Wanted:
    """What a person typed. ``file``: a path in the repository, "" for all of it."""

    repo: str
    revision: str = "main"
    file: str = ""


@dataclass(frozen=True)
class HubFile:
    path: str  # in the repository
    bytes: int
    sha256: str = ""  # of a large file; "": the hub does not say
    saved_as: str = ""  # below the choice's folder


@dataclass(frozen=True)
class Choice:
    """What can be fetched at once. ``target``: the file or folder that comes of it, in the models folder."""

    title: str
    target: str
    folder: bool
    files: tuple[HubFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Offer:
    """What the hub has. ``revision`` is a commit, so that a listing and its download are of the same."""

    repo: str
    revision: str
    choices: tuple[Choice, ...]
    left_out: tuple[tuple[str, str], ...]  # (path, why)


def parse(text: str, endpoint: str = HUB) -> Wanted:
    """``org/name``, ``org/name@version``, or the address of a model or of a file of it.

    Raises:
        InvalidField: it is none of these.
    """
    text = text.strip()
    if match := _REPO.fullmatch(text):
        return Wanted(match[1], match[2] or "main")
    address = urlsplit(text)
    if address.netloc not in (urlsplit(endpoint).netloc, urlsplit(HUB).netloc, "hf.co"):
        raise _invalid(
            "must be like org/name, or the address of a model or of a file on huggingface.co", text
        )
    repo, *rest = re.split(r"/(?=tree/|blob/|resolve/)", unquote(address.path).strip("/"), maxsplit=1)
    if not (match := _REPO.fullmatch(repo)) or match[2]:
        raise _invalid("is not the address of a model: those look like huggingface.co/org/name", text)
    _, _, place = (rest or [""])[0].partition("/")
    revision, _, file = place.partition("/")
    return Wanted(repo, revision or "main", file if place and not rest[0].startswith("tree/") else "")


def offer(wanted: Wanted, listed: Mapping[str, Any]) -> Offer:
    """What can be fetched of what the hub listed.

    Raises:
        HubError: nothing.
    """
    files = [
        HubFile(str(f["path"]), int(f["bytes"]), str(f["sha256"])) for f in listed["files"] if _is_safe(f)
    ]
    if wanted.file:
        files = [file for file in files if file.path == wanted.file]
        if not files:
            raise HubError(f"The hub has no file {wanted.file} in {wanted.repo}.")
        found = [_single(file) for file in files if file.path.endswith(".safetensors")]
    else:
        parts = _parts(listed)
        found = [*_pipelines(wanted.repo, files, parts), *_models(wanted.repo, files)]
        taken = {file.path for choice in found for file in choice.files}
        alone = (file for file in files if file.path not in taken and not _is_part(file.path, parts))
        found += [_single(file) for file in alone if file.path.endswith(".safetensors")]
    taken = {file.path for choice in found for file in choice.files}
    left_out = tuple((file.path, _why_not(file)) for file in files if file.path not in taken)
    if not found:
        pickled = any(PurePosixPath(file.path).suffix in PICKLES for file in files)
        raise HubError(
            f"{wanted.file or wanted.repo} has its weights as pickles only, which may hold programs and are "
            "not fetched. Look for a version in safetensors."
            if pickled
            else f"{wanted.file or wanted.repo} holds no weights in safetensors."
        )
    return Offer(wanted.repo, str(listed["revision"]), tuple(found), left_out)


def _pipelines(repo: str, files: Sequence[HubFile], parts: Sequence[str]) -> Iterator[Choice]:
    """A folder in diffusers' layout: as it is, and in half precision where that is offered apart."""
    for variant, words in (("", ""), ("fp16", ", half precision")):
        chosen = [_chosen([f for f in files if f.path.startswith(f"{part}/")], variant) for part in parts]
        if not parts or any(part is None for part in chosen):
            continue
        took = [file for part in chosen for file in part or ()]
        if variant and not any(_variant(file.path) for file in took):
            continue
        index = [replace(file, saved_as=file.path) for file in files if file.path == "model_index.json"]
        yield Choice(f"The whole model{words}", _folder_name(repo, variant), True, (*index, *took))


def _models(repo: str, files: Sequence[HubFile]) -> Iterator[Choice]:
    """A part that is a repository of its own, such as a VAE or a ControlNet."""
    top = [file for file in files if "/" not in file.path and file.path == "config.json"]
    for variant, words in (("", ""), ("fp16", ", half precision")):
        weights = [f for f in files if _plain_name(f.path, variant) == "diffusion_pytorch_model.safetensors"]
        if top and weights and bool(_variant(weights[0].path)) == bool(variant):
            kept = tuple(replace(f, saved_as=_plain_name(f.path, variant)) for f in (*top, *weights))
            yield Choice(f"The whole model{words}", _folder_name(repo, variant), True, kept)


def _single(file: HubFile) -> Choice:
    name = PurePosixPath(file.path).name
    return Choice(f"The file {file.path}", name, False, (replace(file, saved_as=name),))


def _chosen(files: Sequence[HubFile], variant: str) -> list[HubFile] | None:
    """The files of one part; None if it has weights, but none that may be fetched."""
    weights = [file for file in files if file.path.endswith(".safetensors")]
    if not weights and any(PurePosixPath(file.path).suffix in PICKLES for file in files):
        return None
    halved = [
        file
        for file in weights
        if variant and _variant(file.path) == variant and not _SHARD.search(file.path)
    ]
    chosen = halved or [file for file in weights if not _variant(file.path)]
    if weights and not chosen:
        return None
    kept = [*(file for file in files if _is_text(file, sharded=not halved)), *chosen]
    return [replace(file, saved_as=_plain_name(file.path, variant)) for file in kept]


def _is_text(file: HubFile, sharded: bool) -> bool:
    """Whether a file of words belongs to a part; an index of shards only if those are what is fetched."""
    if ".index." in file.path:
        return sharded and file.path.endswith(".safetensors.index.json")
    return file.path.endswith((".json", ".txt")) and file.bytes <= LARGEST_TEXT


def _is_part(path: str, parts: Sequence[str]) -> bool:
    """Whether a file is of no use without others."""
    return bool(_variant(path) or _SHARD.search(path)) or path.partition("/")[0] in (*parts, *UNUSED_PARTS)


def _variant(path: str) -> str:
    """ "fp16" of ``unet/diffusion_pytorch_model.fp16.safetensors``; "" where a name has no such part."""
    match = re.fullmatch(r"(?:.*/)?(?:diffusion_pytorch_model|model|pytorch_model)\.(\w+)(?:-\d+-of-\d+)?"
                         r"\.safetensors(?:\.index\.json)?", path)  # fmt: skip
    return match[1] if match else ""


def _plain_name(path: str, variant: str) -> str:
    """Without the variant: diffusers looks for the plain name."""
    return path.replace(f".{variant}.", ".") if variant and _variant(path) == variant else path


def _parts(listed: Mapping[str, Any]) -> list[str]:
    """The parts of a pipeline that its index names."""
    try:
        index = json.loads(listed["index"])
        return [
            part
            for part, kind in index.items()
            if isinstance(kind, list) and kind[:1] != [None] and part not in UNUSED_PARTS
        ]
    except (ValueError, AttributeError):
        return []


def _folder_name(repo: str, variant: str) -> str:
    name = repo.partition("/")[2]
    return f"{name}-{variant}" if variant and variant not in name else name


def _is_safe(file: Mapping[str, Any]) -> bool:
    """A path that stays below its folder, everywhere."""
    path = str(file["path"])
    steps = path.split("/")
    return not re.search(r'[\\:*?"<>|\x00-\x1f]', path) and all(
        step and not step.startswith(".") and len(step) < 200 for step in steps
    )


def _why_not(file: HubFile) -> str:
    ending = PurePosixPath(file.path).suffix.lower()
    if ending in PICKLES:
        return "a pickle, which may hold a program"
    if ending in (".py", ".sh", ".js", ".so", ".dll", ".exe"):
        return "a program"
    return "not needed"


def _invalid(message: str, text: str) -> InvalidField:
    return InvalidField("hub", f"“{text[:100]}” {message}" if text else "is empty: type org/name", _LABEL)
