"""Reading a checkpoint's parts into memory: from a folder part by part, from a single file with its config.

Weights come straight from the mapped file into the device's precision and layout; no second copy is made. On
a CPU they are taken out of the mapping as they come, so that a file that is overwritten or cut short while
its model is resident changes no weight and ends no process. Safetensors only, unless pickles were allowed,
and then without anything but tensors in them. No code of a checkpoint is run: its parts are classes of
diffusers and transformers.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from webui import units
from webui.catalogue.found import Signature
from webui.diffusion import devices, single_parts, tiers
from webui.diffusion.checkpoints import Checkpoint, tokenizers
from webui.diffusion.devices import Device
from webui.diffusion.landing import Landing, is_sound
from webui.diffusion.tiers import Stage
from webui.errors import ModelError

log = logging.getLogger(__name__)

# Loading swaps torch's own functions for a moment (weights are made empty first): one at a time per process.
LOADING = threading.Lock()
LIBRARIES = ("diffusers", "transformers")
TITLES = {
    "unet": "UNet",
    "transformer": "transformer",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "text_encoder_3": "third text encoder",
}
GUESTS = {  # what a request adds to a model for a job
    "vae": "VAE",
    **dict.fromkeys(units.STEMS, "ControlNet"),
    "reference": "IP-Adapter",
    "picture_encoder": "encoder of pictures",
    "preview": "preview decoder",
}
STAGES: Mapping[str, Stage] = {"vae": "vae", "preview": "vae", "picture_encoder": "picture"}
LEFT_OUT = ("scheduler", "safety_checker", "feature_extractor", "image_encoder")
# What the names of a single file begin with, by component; the first that fits.
PREFIXES = (
    ("first_stage_model.", "vae"),
    ("vae.", "vae"),
    ("conditioner.embedders.1.", "text_encoder_2"),
    ("conditioner.embedders.0.model.", "text_encoder_2"),  # of the refiner, which has no other
    ("conditioner.", "text_encoder"),
    ("cond_stage_model.", "text_encoder"),
    ("text_encoders.clip_l.", "text_encoder"),
    ("text_encoders.clip_g.", "text_encoder_2"),
    ("text_encoders.", "text_encoder_3"),
)
DTYPES = {  # safetensors' names of them
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
}
SAMPLES = 8  # numbers of each tensor that tell two parts apart at a glance
UNREADABLE = OSError, ValueError, KeyError, TypeError, AttributeError, struct.error
MAX_HEADER = 100_000_000  # bytes, as safetensors itself has it


@dataclass(frozen=True)
class Weights:
    """A checkpoint in memory by component: diffusers' and transformers' own objects, in evaluation mode."""

    parts: Mapping[str, nn.Module]
    others: Mapping[str, Any]  # tokenizers, and what else a folder says of its pipeline


def stage_of(component: str) -> Stage:
    """When a component computes."""
    return "text" if component.startswith("text_encoder") else STAGES.get(component, "net")


def sizes(checkpoint: Checkpoint, device: Device) -> dict[str, int]:
    """Bytes that each component's weights will take in memory, from the files' headers alone.

    Raises:
        ModelError: a file is damaged.
    """
    found: dict[str, int] = {}
    base = checkpoint.path.parent if checkpoint.file else checkpoint.path
    for name, size, _ in checkpoint.signature:
        for component, numbers, floating in _tensors(checkpoint, base / name, name, size):
            if component in TITLES:
                fp8 = device.fp8 and stage_of(component) == "net"
                own = 1 if fp8 else device.torch_dtype.itemsize if floating else 8
                found[component] = found.get(component, 0) + numbers * own
    return found


def size_of(path: Path, signature: Signature, device: Device) -> int:
    """Bytes that the weights of a file, or of a folder's files, will take, from their headers alone."""
    base = path if path.is_dir() else path.parent
    try:
        entries = [entry for name, *_ in signature for entry in _header(base / name).values()]
        return sum(int(prod(entry["shape"])) for entry in entries) * device.torch_dtype.itemsize
    except UNREADABLE:  # what is wrong with it is said when it is loaded
        return sum(size for _, size, _ in signature)


def _tensors(checkpoint: Checkpoint, path: Path, name: str, size: int) -> Iterator[tuple[str, int, bool]]:
    """(component, how many numbers, whether they have a point) of each tensor of a file."""
    folder = name.partition("/")[0]
    if path.suffix != ".safetensors":
        yield "unet" if checkpoint.file else folder, size // 2, True  # a pickle is not opened to be weighed
        return
    try:
        for tensor, entry in _header(path).items():
            component = checkpoint.parts.get(name) or (_component(tensor) if checkpoint.file else folder)
            yield component, prod(entry["shape"]), not entry["dtype"].startswith(("I", "U", "BOOL"))
    except UNREADABLE as error:
        raise _damaged(checkpoint, error) from error


def _dtypes(checkpoint: Checkpoint) -> set[torch.dtype]:
    """Of the tensors in the files; all there are where a file is not opened to be looked at."""
    base = checkpoint.path.parent if checkpoint.file else checkpoint.path
    files = [base / name for name, _, _ in checkpoint.signature]
    if not all(file.suffix == ".safetensors" for file in files):
        return set(DTYPES.values())
    try:
        kinds = {entry["dtype"] for file in files for entry in _header(file).values()}
    except UNREADABLE as error:
        raise _damaged(checkpoint, error) from error
    return {DTYPES[kind] for kind in kinds if kind in DTYPES}


def _header(path: Path) -> dict[str, dict[str, Any]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEADER:
            raise ValueError("its header is too long")
        header = json.loads(file.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def measures(checkpoint: Checkpoint) -> dict[str, Any]:
    """What :func:`webui.diffusion.tiers.working` needs to know of a model, from its configs."""
    base = checkpoint.config if checkpoint.file and checkpoint.config else checkpoint.path
    net = _config_of(base / "unet") or _config_of(base / "transformer")
    vae = _config_of(base / "vae")
    found: dict[str, Any] = {}
    if channels := net.get("block_out_channels"):
        found["net_numbers"] = tiers.UNET_MAPS * channels[0]
    elif heads := net.get("num_attention_heads"):
        found["net_numbers"] = tiers.TRANSFORMER_MAPS * heads * net.get("attention_head_dim", 64)
    if channels := vae.get("block_out_channels"):
        found["vae_channels"] = channels[min(1, len(channels) - 1)]
        found["scale"] = 2 ** (len(channels) - 1)
    return found


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # what is wrong with it is said when it is loaded
        return {}


def _component(tensor: str) -> str:
    return next((part for prefix, part in PREFIXES if tensor.startswith(prefix)), "unet")


def load(
    checkpoint: Checkpoint,
    device: Device,
    have: Mapping[str, nn.Module] | None = None,
    allow_pickle: bool = False,
    settle: Callable[[str, nn.Module], nn.Module] = lambda _, part: part,
) -> Weights:
    """Read a checkpoint's parts, in the device's precision.

    Args:
        have: components that are in memory already, by name; they are used as they are.
        allow_pickle: open .ckpt, .pt and .bin files too; only tensors are taken from them.
        settle: is given each part as it comes, in RAM, and returns what to use in its place.

    Raises:
        ModelError: a file is damaged, of another kind, or holds values that are not numbers; names the
            model and the part, not the path.
    """
    have = have or {}
    if not (allow_pickle or all(name.endswith(".safetensors") for name, _, _ in checkpoint.signature)):
        raise ModelError(
            f"The model {checkpoint.name} is a pickle, which could run a program when it is opened. "
            "If you trust where it came from, start with --allow-pickle; better is a .safetensors file."
        )

    mapped, landing = _dtypes(checkpoint), Landing(device)

    def arrived(name: str, part: nn.Module) -> nn.Module:
        _prepare(checkpoint, name, part, landing, mapped)
        return settle(name, part)

    try:
        read = _of_parts if checkpoint.parts else _of_file if checkpoint.file else _of_folder
        with LOADING, devices.plain_memory_errors(), landing.instead():
            return read(checkpoint, device, have, arrived)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise _damaged(checkpoint, error) from error


def _damaged(checkpoint: Checkpoint, error: Exception) -> ModelError:
    log.error("model %s cannot be loaded", checkpoint.name, exc_info=error)
    return ModelError(
        f"The model {checkpoint.name} cannot be loaded: a file of it is damaged or missing. "
        "The server's log has the details."
    )


def _of_folder(
    checkpoint: Checkpoint,
    device: Device,
    have: Mapping[str, nn.Module],
    arrived: Callable[[str, nn.Module], nn.Module],
) -> Weights:
    """Each component by its own class."""
    index = json.loads((checkpoint.path / "model_index.json").read_text(encoding="utf-8"))
    parts, others = dict(have), {name: value for name, value in index.items() if isinstance(value, bool)}
    for name, kind in _kinds(index).items():
        if name.startswith("tokenizer"):
            others[name] = kind.from_pretrained(checkpoint.path / name, local_files_only=True)
        elif name not in parts:
            part = kind.from_pretrained(
                checkpoint.path / name,
                dtype=device.torch_dtype,
                local_files_only=True,
                low_cpu_mem_usage=True,
                **_files(checkpoint, name),
            )
            parts[name] = arrived(name, part)
    return Weights(parts, others)


def _files(checkpoint: Checkpoint, part: str) -> dict[str, Any]:
    """Which files of a part's folder to read: those without a variant in their names, where there are any."""
    names = [Path(name).name for name, _, _ in checkpoint.signature if name.startswith(f"{part}/")]
    variants = {name.split(".")[1] if name.count(".") > 1 else "" for name in names}
    variant = "" if "" in variants or not variants else min(variants)
    return {
        "variant": variant.partition("-")[0] or None,
        "use_safetensors": all(name.endswith(".safetensors") for name in names),
    }


def _kinds(index: Mapping[str, Any]) -> dict[str, Any]:
    """The class of each component that a ``model_index.json`` names."""
    kinds = {}
    for name, value in index.items():
        if name.startswith("_") or name in LEFT_OUT or not isinstance(value, list) or not all(value):
            continue
        library, kind = value
        if library not in LIBRARIES:
            raise ValueError(f"{name} is a class of {library}, whose code is not run here")
        kinds[name] = getattr(importlib.import_module(library), kind)
    return kinds


def _of_file(
    checkpoint: Checkpoint,
    device: Device,
    have: Mapping[str, nn.Module],
    arrived: Callable[[str, nn.Module], nn.Module],
) -> Weights:
    """The whole pipeline's components, as its class takes them from the one file."""
    import diffusers
    from transformers.initialization import no_init_weights

    assert checkpoint.config is not None
    index = json.loads((checkpoint.config / "model_index.json").read_text(encoding="utf-8"))
    absent = [name for name in (*LEFT_OUT, *_absent(checkpoint)) if name in index]
    with no_init_weights():  # of encoders: numbers that the file's then take the place of
        pipe = getattr(diffusers, index["_class_name"]).from_single_file(
            str(checkpoint.path),
            config=str(checkpoint.config),
            dtype=device.torch_dtype,
            local_files_only=True,
            **{**tokenizers(checkpoint), **dict.fromkeys(absent)},
            **have,
        )
    components = pipe.components
    del pipe  # which would keep what settles elsewhere
    others = {name: each for name, each in components.items() if name.startswith("tokenizer") and each}
    parts: dict[str, Any] = {n: each for n, each in components.items() if isinstance(each, nn.Module)}
    components.clear()
    for each in parts.values():
        if hasattr(each, "tie_weights"):  # files hold T5's embedding under one of its two names, or both
            each.tie_weights()
    return Weights(
        {name: each if name in have else arrived(name, each) for name, each in parts.items()}, others
    )


def _of_parts(
    checkpoint: Checkpoint,
    device: Device,
    have: Mapping[str, nn.Module],
    arrived: Callable[[str, nn.Module], nn.Module],
) -> Weights:
    """Each component from a file of its own; what has none comes with the net."""
    assert checkpoint.config is not None
    index = json.loads((checkpoint.config / "model_index.json").read_text(encoding="utf-8"))
    kinds, parts = _kinds(index), dict(have)
    files = {component: Path(file) for file, component in checkpoint.parts.items()}
    for name in TITLES.keys() & kinds.keys() - have.keys():
        if name in files or not name.startswith("text_encoder"):
            path, config = files.get(name, checkpoint.path), checkpoint.config / name
            parts[name] = arrived(name, single_parts.read(kinds[name], path, config, device.torch_dtype))
    others = tokenizers(checkpoint)
    for name in kinds.keys() - others.keys():
        if name.startswith("tokenizer"):
            others[name] = kinds[name].from_pretrained(checkpoint.config / name, local_files_only=True)
    return Weights(parts, others)


def _absent(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Components a file does not hold and its pipeline can do without: the third encoder of SD3."""
    if checkpoint.path.suffix != ".safetensors" or checkpoint.family != "sd3":
        return ()
    held = {_component(tensor) for tensor in _header(checkpoint.path)}
    return () if "text_encoder_3" in held else ("text_encoder_3", "tokenizer_3")


def _prepare(
    checkpoint: Checkpoint, name: str, part: nn.Module, landing: Landing, mapped: Set[torch.dtype]
) -> None:
    """Out of the mapped file, without gradients, laid out as the device likes it; checked for numbers.

    ``mapped``: of which weights may still be the file itself, where they did not land; the others were
    converted, and so copied.
    """
    part.eval().requires_grad_(False)
    landed, device = landing.filled(part), landing.device
    if absent := sum(tensor.is_meta for tensor in _all(part)):
        raise KeyError(f"its {name} lacks {absent} tensors")
    if device.kind == "cpu" and not landed:
        for tensor in _all(part):
            if tensor.dtype in mapped:
                tensor.data = tensor.data.clone()
    if not (landing.sound(part) if landed else finite(part)):
        raise ModelError(
            f"The model {checkpoint.name} cannot be used: its {TITLES.get(name, name)} holds values that are "
            "not numbers (NaN or infinity). The file is damaged, or was merged or saved wrongly."
        )
    if stage_of(name) == "net":
        _tune(part, device)


def _tune(net: Any, device: Device) -> None:
    """Attention, storage and compiling, as the device was told."""
    if device.attention == "xformers":
        net.enable_xformers_memory_efficient_attention()
    if device.attention == "sliced":
        net.set_attention_slice("auto")
    if device.fp8:
        net.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=device.torch_dtype)
    if device.compiled:
        net.compile_repeated_blocks(fullgraph=False)


def owned(part: nn.Module) -> nn.Module:
    """A part whose weights are its own: out of the mapped file, which may be overwritten."""
    for tensor in _all(part):
        tensor.data = tensor.data.clone()
    return part


def _all(part: nn.Module) -> Iterator[torch.Tensor]:
    yield from part.parameters()
    yield from part.buffers()


def weight(part: nn.Module) -> int:
    """Bytes of a part."""
    return sum(tensor.nbytes for tensor in _all(part))


def finite(part: nn.Module) -> bool:
    """Whether all weights are numbers."""
    return all(map(is_sound, part.parameters()))


def fingerprint(part: nn.Module) -> str:
    """SHA-256 of what a part is, its tensors' shapes, and a few numbers of each: tells most parts apart."""
    digest = hashlib.sha256(type(part).__name__.encode())
    for name, tensor in part.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        rows = tensor[(..., *[0] * (tensor.ndim - 1))] if tensor.ndim else tensor.reshape(1)
        some = rows[:: max(1, len(rows) // SAMPLES)][:SAMPLES]
        own = some.cpu().clone(memory_format=torch.contiguous_format)  # also of one number, with any stride
        digest.update(own.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two parts hold the same numbers and are made of the same config."""
    own, other = a.state_dict(), b.state_dict()
    if type(a) is not type(b) or own.keys() != other.keys() or _config(a) != _config(b):
        return False
    return all(torch.equal(tensor.to(other[name].device), other[name]) for name, tensor in own.items())


def _config(part: Any) -> dict[str, Any]:
    config = getattr(part, "config", {})
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: value for name, value in config.items() if name not in ("_name_or_path", "torch_dtype")}
