"""Train the embedded model, stage by stage or all at once; README.md beside this file tells the story."""

import argparse
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

from training import stages
from training.budget import Budget
from training.recipe import PRESETS, Recipe

STAGES = {
    "render": "fetch the art and draw it",
    "tokenizer": "learn the vocabulary",
    "vae": "train the autoencoder",
    "decoder": "go on with the VAE's decoder alone; latents and UNet stay valid",
    "latents": "encode scenes for the next stage",
    "train": "train the UNet and the text encoder; run it again to go on",
    "export": "write WORK/model in diffusers' layout",
    "all": "what is missing of the above, in order",
    "start-from": "begin with a finished model's weights instead of the tokenizer and vae stages",
    "evaluate": "measure a model and make contact sheets",
    "compare": "set reports of evaluations side by side",
}


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.stage == "compare":
        from training.evaluate import compare

        logging.info("\n%s", compare(args.reports))
        return
    recipe = recipe_of(args.work, args.preset)
    if args.stage == "train":
        stages.train(args.work, recipe, budget(recipe.steps, args), args.compile)
    elif args.stage == "decoder":
        stages.refine_decoder(args.work, recipe, budget(recipe.vae_steps, args))
    elif args.stage == "start-from":
        stages.start_from(args.model, args.work)
    elif args.stage == "evaluate":
        from training.evaluate import evaluate

        model = args.model or args.work / "model"
        target = args.report or args.work / "report"
        evaluate(model, args.work, recipe, target, args.prompts, not args.no_sheets, args.bf16)
    elif args.stage == "all":
        stages.run_all(args.work, recipe)
    else:
        stages.STAGES[args.stage](args.work, recipe)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = top.add_subparsers(dest="stage", required=True, metavar="STAGE")
    stage = {name: commands.add_parser(name, help=text, description=text) for name, text in STAGES.items()}
    for name, command in stage.items():
        if name == "compare":
            command.add_argument("reports", type=Path, nargs="+", help="report.json files")
            continue
        command.add_argument("--work", type=Path, required=True, help="the folder all stages share")
        command.add_argument("--preset", choices=PRESETS, help="for a new folder: default pocket")
    stage["start-from"].add_argument("model", type=Path, help="a folder in diffusers' layout")
    for name in ("train", "decoder"):
        add_budget(stage[name])
    stage["train"].add_argument(
        "--compile", action="store_true", help="torch.compile: a quarter faster, needs a C++ compiler"
    )
    evaluate = stage["evaluate"]
    evaluate.add_argument("--model", type=Path, help="default: WORK/model")
    evaluate.add_argument("--report", type=Path, help="where to write (default: WORK/report)")
    evaluate.add_argument("--prompts", type=int, default=300, help="how many retrieval asks (default: 300)")
    evaluate.add_argument(
        "--bf16", action="store_true", help="paint in bfloat16, as the studio does where it is quick"
    )
    evaluate.add_argument("--no-sheets", action="store_true", help="figures only")
    return top


def add_budget(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=int, help="how many this time (default: the recipe's)")
    command.add_argument("--minutes", type=float, help="end after this time instead, however many steps")
    command.add_argument(
        "--until", type=datetime.fromisoformat, help="end at this time, such as 2026-01-31T18:30Z"
    )
    command.add_argument("--pause-file", type=Path, help="wait while this file exists")


def recipe_of(work: Path, preset: str | None) -> Recipe:
    """The recipe the folder was begun with; a new folder begins with the preset."""
    if (work / "recipe.json").exists():
        return Recipe.load(work)
    recipe = PRESETS[preset or "pocket"]
    recipe.save(work)
    return recipe


def budget(steps: int, args: argparse.Namespace) -> Budget:
    until = args.until
    if args.minutes is not None:
        until = datetime.now(UTC) + timedelta(minutes=args.minutes)
    return Budget(args.steps or steps, until, args.pause_file)


if __name__ == "__main__":
    main()
