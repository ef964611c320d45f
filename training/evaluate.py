"""Measure a model, and look at it: figures as JSON and as a table, contact sheets as pictures."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from training import concepts, figures, sheets, sprites
from training.figures import Figures, Studio
from training.judge import Judge, learn
from training.recipe import Recipe, versions
from training.scenes import Composer

log = logging.getLogger(__name__)

SCENE_SEED = 12345  # not the training's: these scenes are new


def evaluate(
    model: Path, work: Path, recipe: Recipe, target: Path, prompts: int, sheets_too: bool, bf16: bool
) -> None:
    """Write report.json, report.md and contact sheets about a model into a folder.

    `prompts` is how many retrieval asks; the other figures take a share of that. The judge is trained once
    for a work folder, so that all models evaluated there have the same.
    """
    target.mkdir(parents=True, exist_ok=True)
    studio = Studio(load(model), composer(work, recipe), judge_of(work, recipe), bf16=bf16)
    report = measure(studio, prompts, unseen(work, recipe), offered(model))
    record = {
        "model": model.name,
        "prompts": prompts,
        "bf16": bf16,
        "figures": report,
        "versions": versions(),
    }
    (target / "report.json").write_text(json.dumps(record, indent=2) + "\n")
    (target / "report.md").write_text(table({"this model": report}))
    if sheets_too:
        for name in ("contact", "scales", "image_to_image", "inpainting"):
            log.info("Sheet: %s", name)
            getattr(sheets, name)(studio).save(target / f"{name}.jpg", quality=85)


def measure(
    studio: Studio, prompts: int, art_unseen: Composer, offered: Sequence[str] = ()
) -> dict[str, Figures]:
    some, few = max(8, prompts // 2), max(2, prompts // 50)
    report = {"vae": figures.vae(studio, some, art_unseen)}
    for name, count in (
        ("retrieval", prompts),
        ("combinations", some),
        ("two_things", some),
        ("tints", some),
        ("places", some),
        ("diversity", few),
        ("guidance", 2 * few),
    ):
        report[name] = getattr(figures, name)(studio, count)
        log.info("%s: %s", name, {key: round(value, 3) for key, value in report[name].items()})
    if offered:
        report["examples"] = figures.examples(studio, offered, few)
        log.info("examples: %s", report["examples"])
    return report | {"speed": figures.speed(studio)}


def offered(model: Path) -> list[str]:
    """The example prompts that come with a model."""
    beside = model / "webui.json"
    return json.loads(beside.read_text()).get("examples", []) if beside.exists() else []


def load(model: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(
        model, dtype=torch.float32, local_files_only=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def composer(work: Path, recipe: Recipe, seed: int = SCENE_SEED) -> Composer:
    drawn = sprites.load(work / "sprites.npz")
    return Composer(concepts.load(recipe.concepts), drawn, recipe.image_size, seed)


def unseen(work: Path, recipe: Recipe) -> Composer:
    """Art in a style that is not in the recipe: Twemoji's."""
    names = concepts.load(recipe.concepts)
    drawn = sprites.render(names, ("twemoji",), recipe.image_size, work / "packages")
    return Composer(names, drawn, recipe.image_size, SCENE_SEED)


def judge_of(work: Path, recipe: Recipe) -> Judge:
    """The work folder's judge, trained now if it has none."""
    path = work / "judge.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        judge = Judge(saved["names"], saved["styles"])
        judge.load_state_dict(saved["weights"])
        return judge.eval()
    judge = learn(composer(work, recipe, SCENE_SEED + 1), recipe.judge_steps)
    torch.save({"names": judge.names, "styles": judge.styles, "weights": judge.state_dict()}, path)
    return judge


def table(reports: dict[str, dict[str, Figures]]) -> str:
    """Markdown: a row for each figure, a column for each model."""
    lines = ["| figure | " + " | ".join(reports) + " |", "|---|" + "---|" * len(reports)]
    first = next(iter(reports.values()))
    for group, named in first.items():
        for name in named:
            values = [shown(report.get(group, {}).get(name)) for report in reports.values()]
            lines.append(f"| {group}: {name} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"


def compare(reports: Sequence[Path]) -> str:
    """The figures of several reports side by side."""
    records = [json.loads(path.read_text()) for path in reports]
    return table({path.parent.name: record["figures"] for path, record in zip(reports, records, strict=True)})
