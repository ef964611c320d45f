"""The usable checkpoints of a catalogue, with what a page and a pipeline must know of each.

A checkpoint is a folder in diffusers' layout, or a single file as CompVis, Stability, Black Forest Labs and
trainers publish them; that is loaded by a configuration that comes along (``webui/configs``), or by one
beside it in a folder NAME.config. A file ``webui.json``, in the folder or in that configuration, may say
more: ``title``, ``note`` (one line: what it is good for), ``examples`` (prompts that work) and ``defaults``
(request fields it works best with).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from webui.catalogue.auto import AUTO
from webui.catalogue.found import Found, Kind, Signature
from webui.catalogue.hashes import Hashes
from webui.catalogue.shelves import Catalogue
from webui.catalogue.wholes import CONFIGS
from webui.diffusion import schedulers
from webui.diffusion.lineage import FACTS
from webui.errors import InvalidField
from webui.request import GenerationRequest, ModelInfo

log = logging.getLogger(__name__)

EMBEDDED = "pocket-model"
CLIP_WORDS = CONFIGS / "clip-vocabulary"
T5_WORDS = CONFIGS / "t5-vocabulary"
#: Request fields that a family works best with, where they are not the program's own defaults.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "sdxl": {"num_inference_steps": 25, "guidance_scale": 6.0},
    "sdxl-refiner": {"num_inference_steps": 25, "guidance_scale": 6.0, "strength": 0.3},
    "sd3": {"num_inference_steps": 28, "guidance_scale": 5.0},
    "flux": {"num_inference_steps": 28, "guidance_scale": 3.5},
}
#: Of models that come with the scheduler of that name, as diffusers' pipeline has them.
LATENT_CONSISTENCY: dict[str, Any] = {"scheduler": "LCM", "num_inference_steps": 4, "guidance_scale": 8.5}
#: Models made for few steps, by their names, with the scale they are published with.
QUICK = (
    (r"lightning|hyper|turbo|schnell|flash|dmd2?", 1.0),
    (r"lcm", 1.5),
)
QUICK_STEPS = 4
PURE_NOISE = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
NATIVE = 1024  # pixels, of families whose configuration does not say


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. ``signature`` changes when any of its weights does (size or time of a file)."""

    name: str
    path: Path  # a folder in diffusers' layout, or a file
    info: ModelInfo
    scheduler_config: Mapping[str, Any]
    signature: Signature
    family: str = "sd1"
    file: bool = False  # whether ``path`` is a single file
    config: Path | None = None  # the folder that a single file is loaded by: model_index.json and the rest
    parts: Mapping[str, str] = field(
        default_factory=dict
    )  # of several files: components, by file but the first
    vocabulary: Path = T5_WORDS  # of T5, where a single file's configuration lacks it
    hashes: Hashes | None = field(default=None, compare=False, repr=False)  # where its hash is remembered


class Finder:
    """The usable checkpoints of a catalogue; what has not changed is not read again.

    ``latest``: everything of the catalogue by kind and name, as it was at the last look.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.latest: Mapping[tuple[Kind, str], Found] = {}
        self._known: dict[Path, tuple[Found, Path, Checkpoint | None]] = {}

    def all(self, listed: Sequence[Found] | None = None) -> dict[str, Checkpoint]:
        """By name, in the catalogue's order. What cannot be used is left out, and named once in the log.

        ``listed`` is what the catalogue has just found, if it was asked already.
        """
        known, listed = {}, self.catalogue.all() if listed is None else listed
        words = self.catalogue.t5_vocabulary() or T5_WORDS
        self.latest = {(found.kind, found.name): found for found in listed}
        for found in listed:
            if found.kind == "checkpoint":
                before = self._known.get(found.path)
                if before is None or before[0] is not found or before[1] != words:
                    before = (found, words, self._usable(found, words))
                known[found.path] = before
        self._known = known
        return {checkpoint.name: checkpoint for *_, checkpoint in known.values() if checkpoint}

    def _usable(self, found: Found, words: Path) -> Checkpoint | None:
        try:
            if found.problem:
                raise ValueError(found.problem[0].lower() + found.problem[1:])
            return _read(found, words, self.catalogue.hashes)
        except (OSError, ValueError, KeyError, TypeError, InvalidField) as error:
            log.warning("models: %s is left out: %s", found.name, error)
            return None


def find(folders: Iterable[Path]) -> dict[str, Checkpoint]:
    """The usable checkpoints of some folders by name, in their order, then alphabetically.

    A name met a second time is told apart by its parent folder's name.
    """
    return Finder(Catalogue(list(folders))).all()


def default(found: Collection[str], wanted: str | None) -> str:
    """The name of the model to use where none is named: the wanted one, the embedded one, any; else ""."""
    return next((name for name in (wanted or EMBEDDED, EMBEDDED, *found) if name in found), "")


def _read(found: Found, vocabulary: Path, hashes: Hashes) -> Checkpoint:
    config = found.path if found.folder else _config(found)
    card = _json(config / "webui.json") if (config / "webui.json").exists() else {}
    scheduler = _json(config / "scheduler/scheduler_config.json")
    side = _side(found, config)
    distilled = bool(_json(config / "model_index.json").get("is_distilled"))
    defaults = {
        **_defaults(found.family, scheduler, distilled),
        "width": side,
        "height": side,
        **_quick(found, scheduler),
    }
    defaults |= card.get("defaults", {})
    GenerationRequest(**defaults)  # so that a wrong default is named here, not at the first click
    info = ModelInfo(
        name=found.name,
        title=str(card.get("title", found.name)),
        note=str(card.get("note", found.note)),
        width=side,
        height=side,
        examples=tuple(map(str, card.get("examples", ()))),
        defaults=defaults,
        bytes=found.bytes,
        tasks=found.tasks,
        family=found.family,
        guided=FACTS[found.family].guided,
        multiple=FACTS[found.family].multiple,
        plain=FACTS[found.family].auto,
    )
    return Checkpoint(
        name=found.name,
        path=found.path,
        info=info,
        scheduler_config=scheduler if found.folder else scheduler | _predicting(found, scheduler),
        signature=found.signature,
        family=found.family,
        file=not found.folder,
        config=None if found.folder else config,
        parts=found.parts,
        vocabulary=vocabulary,
        hashes=hashes,
    )


def _config(found: Found) -> Path:
    """The folder beside the file, else the one that comes along."""
    return CONFIGS / found.config if found.config else found.path.with_suffix(".config")


def _predicting(found: Found, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of its predictions, for the scheduler: the published configuration may differ.

    A schedule that ends in pure noise needs its last timestep (Lin et al. 2023, arXiv:2305.08891).
    """
    own: dict[str, Any] = {}
    if found.prediction in ("epsilon", "v_prediction"):
        own["prediction_type"] = found.prediction
    if own.get("prediction_type") == scheduler.get("prediction_type", "epsilon"):
        own = {}
    return own | (PURE_NOISE if found.zero_snr else {})


def _defaults(family: str, scheduler: Mapping[str, Any], distilled: bool) -> dict[str, Any]:
    """What its pipeline has, of a family that runs as diffusers has it; ``distilled``: as its index says."""
    if family not in AUTO:
        return dict(DEFAULTS.get(family, {}))
    own = {"scheduler": name} if (name := schedulers.own(scheduler)) else {}
    auto = AUTO[family]
    steps, scale = (auto.quick, 1.0) if distilled else (auto.steps, auto.scale)
    return {"num_inference_steps": steps, "guidance_scale": scale, **own}


def _side(found: Found, config: Path) -> int:
    """The native width and height in pixels."""
    if found.family in AUTO:
        return NATIVE
    net, vae = _json(config / FACTS[found.family].net / "config.json"), _json(config / "vae/config.json")
    cells = net.get("sample_size")
    if "sdxl" in found.family and re.search(r"turbo", found.name.lower()):
        return NATIVE // 2
    if not isinstance(cells, int):
        return NATIVE
    return int(cells * 2 ** (len(vae["block_out_channels"]) - 1))


def _quick(found: Found, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What suits a model made for few steps, as its scheduler or its name ("lightning-8step") says."""
    if scheduler.get("_class_name") == "LCMScheduler":
        return LATENT_CONSISTENCY
    name, usual = found.name, AUTO[found.family].quick if found.family in AUTO else QUICK_STEPS
    for pattern, scale in QUICK:
        if re.search(rf"(?<![a-z])({pattern})(?![a-z])", name.lower()):
            steps = re.search(r"(\d+)[-_ ]?steps?(?![a-z])", name.lower())
            return {"num_inference_steps": int(steps[1]) if steps else usual, "guidance_scale": scale}
    return {}


def tokenizers(checkpoint: Checkpoint) -> dict[str, Any]:
    """A single file's tokenizers whose vocabulary is not in its configuration, by component."""
    assert checkpoint.config is not None
    import transformers

    found: dict[str, Any] = {}
    for name, value in _json(checkpoint.config / "model_index.json").items():
        folder = checkpoint.config / name
        if not name.startswith("tokenizer") or not value[0] or len(list(folder.glob("*.*"))) > 1:
            continue
        words = CLIP_WORDS if value[1].startswith("CLIP") else checkpoint.vocabulary
        settings = _json(folder / "tokenizer_config.json")
        del settings["tokenizer_class"]
        kind = getattr(transformers, value[1])
        found[name] = kind.from_pretrained(words, local_files_only=True, **settings)
    return found


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} does not hold an object")
    return content


def sha256(checkpoint: Checkpoint) -> str:
    """SHA-256 of all weights, in the order of their names: the same for a copy under another name.

    Raises:
        OSError: a file cannot be read.
    """
    return (checkpoint.hashes or Hashes(None)).of(checkpoint)
