"""The recipe of the embedded model: a short run ends in a model that works; its parts do what they say."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.conftest import ROOT
from training import concepts, figures, tokenizer, vae
from training.budget import Budget
from training.diffusion import Trainer, timesteps
from training.evaluate import composer as composer_of
from training.evaluate import load
from training.judge import Judge
from training.latents import Latents, as_tensor
from training.muon import orthogonal
from training.packages import NOTO, WrongDigest, verified
from training.precision import quick
from training.recipe import TINY, Recipe
from training.scenes import BACKGROUNDS, PLACES, STYLE_WORDS, Composer, article, held_out

THINGS = concepts.load(TINY.concepts)

# A minute and a half on a quiet core, which CI may not have.
pytestmark = pytest.mark.timeout(900)


def training(*arguments: str | Path) -> None:
    """As anyone would run it; one thread, which is what the recipe's times are for."""
    command = [sys.executable, "-m", "training", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, cwd=arguments[-1])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the shortened recipe makes of an empty folder."""
    folder = tmp_path_factory.mktemp("work")
    training("all", "--preset", "tiny", "--work", folder)
    training("evaluate", "--prompts", "12", "--no-sheets", "--work", folder)
    return folder


@pytest.fixture
def composer() -> Composer:
    """Scenes of discs, each thing in its own grey."""
    rows, columns = np.mgrid[-1:1:56j, -1:1:56j]
    disc = (255 * (rows**2 + columns**2 < 1)).astype(np.uint8)
    sprites = {
        (thing.name, style): np.dstack([np.full_like(disc, 40 + 20 * i)] * 3 + [disc])
        for i, thing in enumerate(THINGS)
        for style in TINY.styles
    }
    return Composer(THINGS, sprites, TINY.image_size, seed=1)


@pytest.fixture
def trainer(tmp_path: Path):
    """Makes trainers of a very small model on noise, kept in one folder each."""
    words = tokenizer.train(TINY, THINGS)
    noise = torch.Generator().manual_seed(0)
    latents = Latents(
        torch.randn(32, 4, 8, 8, generator=noise).half(),
        torch.randint(0, len(words), (32, 77), generator=noise),
        torch.zeros(77, dtype=torch.int64),
    )
    recipe = Recipe(**(vars(TINY) | {"batch": 4, "ema_decay": 0.5}))

    def make(name: str) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        return Trainer(tmp_path / name, recipe, latents, words)

    return make


def test_a_short_run_from_an_empty_folder_ends_in_a_model_that_knows_its_things(work):
    found = json.loads((work / "report" / "report.json").read_text())["figures"]
    assert found["vae"]["art_psnr"] > 14
    assert found["retrieval"]["latent_top1"] >= 0.5  # one in six by chance
    assert found["retrieval"]["judge_top1"] >= 0.5
    assert found["guidance"]["cfg4_thing"] >= 0.5
    assert 0 <= found["examples"]["worst"] <= found["examples"]["thing"] <= 1


def test_what_it_exports_loads_plainly_in_diffusers_and_is_small(work):
    pipeline = StableDiffusionPipeline.from_pretrained(work / "model", local_files_only=True)
    picture = pipeline("a fox", num_inference_steps=2).images[0]
    assert picture.size == (64, 64)
    assert pipeline.tokenizer.model_max_length == 77
    assert sum(file.stat().st_size for file in (work / "model").rglob("*")) < 3_000_000
    assert json.loads((work / "model" / "recipe.json").read_text())["versions"]["torch"] == torch.__version__


def test_the_small_model_in_this_folder_draws_what_it_is_asked(work):
    folder = ROOT / "tests" / "tiny-model"
    studio = figures.Studio(load(folder), composer_of(work, TINY), Judge(["nobody"], ["asked"]))
    keys = studio.keys(12, seed=1)
    pictures = studio.paint([f"{article(name)}, {STYLE_WORDS[style][0]}" for name, style in keys])
    right = [rank == 0 for rank in figures.latent_ranks(studio, pictures, keys)]
    assert sum(right) >= 8  # two by chance
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 3_000_000


def test_runs_add_up(work):
    before = torch.load(work / "checkpoint.pt", weights_only=True)["run"]["step"]
    training("train", "--steps", "3", "--work", work)
    assert torch.load(work / "checkpoint.pt", weights_only=True)["run"]["step"] == before + 3


def test_a_run_cut_short_goes_on_to_the_same_weights(trainer):
    whole, cut = trainer("whole"), trainer("cut")
    budget = Budget(6)
    whole.train(budget)
    cut.run.started = 1.0
    for step in range(3):
        cut.set_learning_rates(budget.progress(step, cut.run.started))
        cut.step(cut.unet, budget.progress(step, cut.run.started))
    cut.save()
    for part in ("unet", "text_encoder"):  # as when it is killed before these are written
        shutil.rmtree(cut.folder / part)
    resumed = trainer("cut")
    resumed.train(budget)
    assert resumed.run.step == whole.run.step == 6
    for ours, theirs in zip(resumed.average, whole.average, strict=True):
        assert torch.equal(ours, theirs)


def test_a_decoder_goes_on_learning_and_latents_stay_as_they_are(composer):
    learnt = vae.new_vae(TINY).eval().to(memory_format=torch.channels_last)
    pictures = as_tensor([composer.plain(*key).pixels for key in sorted(composer.sprites)])
    before = {name: tensor.clone() for name, tensor in learnt.state_dict().items()}
    meant = learnt.encode(pictures).latent_dist.mean
    error = (learnt.decode(meant).sample - pictures).square().mean()
    refined = vae.refine(learnt, TINY, composer, Budget(12))
    changed = {name for name, tensor in refined.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder", "post_quant_conv"}
    assert torch.equal(refined.encode(pictures).latent_dist.mean, meant)
    assert (refined.decode(meant).sample - pictures).square().mean() < error


def test_training_waits_while_the_pause_file_exists(trainer, tmp_path, monkeypatch):
    pause = tmp_path / "PAUSE"
    pause.touch()
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(runner.run.step)
        pause.unlink()

    monkeypatch.setattr("training.budget.time.sleep", sleep)
    runner = trainer("paused")
    runner.train(Budget(2, pause_file=pause))
    assert slept == [0]
    assert runner.run.step == 2


def test_the_rate_of_learning_ends_at_nothing(trainer):
    runner = trainer("rates")
    rates = []
    for progress in (0.2, 0.6, 1.0):
        runner.run.step = 500
        runner.set_learning_rates(progress)
        rates.append(runner.optimizers[0][0].param_groups[0]["lr"])
    assert rates[0] > rates[1] > rates[2] == 0


def test_a_run_until_a_moment_is_half_done_half_way_there():
    now = datetime.now(UTC)
    budget = Budget(10, until=now + timedelta(hours=1))
    assert budget.progress(9999, (now - timedelta(hours=1)).timestamp()) == pytest.approx(0.5, abs=0.01)
    assert Budget(10).progress(5, 0.0) == 0.5


def test_high_noise_comes_first():
    draw = torch.Generator().manual_seed(0)
    early, late = (torch.cat([timesteps(64, p, draw) for _ in range(20)]) for p in (0.1, 0.9))
    assert (early >= 400).float().mean() == pytest.approx(0.7 + 0.3 * 0.6, abs=0.03)
    assert (late >= 400).float().mean() == pytest.approx(0.6, abs=0.03)
    assert late.min() < 20
    assert late.max() <= 999


@pytest.mark.parametrize("shape", [(48, 200), (200, 48)])
def test_muons_updates_are_nearly_orthogonal(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonal(matrix))
    assert singular.min() > 0.6
    assert singular.max() < 1.3


@pytest.mark.parametrize(
    ("can", "expected"),
    [({}, torch.float32), ({"avx512": True}, torch.float32), ({"amx_bf16": True}, torch.bfloat16)],
)
def test_half_precision_is_for_processors_that_multiply_it(monkeypatch, can, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert quick.__wrapped__() is expected


def test_art_that_is_not_what_the_recipe_was_written_for_is_refused():
    with pytest.raises(WrongDigest, match="noto"):
        verified(b"another tarball", NOTO)


def test_scenes_of_one_seed_are_the_same(composer):
    again = Composer(THINGS, composer.sprites, TINY.image_size, seed=1)
    for _ in range(20):
        ours, theirs = composer.scene("fox", "flat"), again.scene("fox", "flat")
        assert ours.caption == theirs.caption
        assert np.array_equal(ours.pixels, theirs.pixels)


def test_combinations_held_out_are_never_drawn(composer):
    drawn = [composer.scene(*key) for key in composer.sprites for _ in range(100)]
    assert any(held_out(name, style, c) for name, style in composer.sprites for c in BACKGROUNDS)
    assert {scene.background for scene in drawn} == set(BACKGROUNDS)
    assert not [scene for scene in drawn if held_out(scene.names[0], scene.style, scene.background)]


def test_captions_say_what_is_drawn(composer):
    for _ in range(200):
        scene = composer.scene("rocket", "noto")
        if scene.background != "white":
            assert f"{scene.background} " in scene.caption
        if scene.kind == "one":
            assert "rocket" in scene.caption
        if scene.kind == "two":
            other = composer.concepts[scene.names[1]]
            assert any(name in scene.caption for name in (other.name, *other.aliases))


@pytest.mark.parametrize("place", PLACES)
def test_a_place_is_found_where_a_thing_was_put(composer, place):
    canvas = composer.canvas(BACKGROUNDS["blue"])
    composer.paste(canvas, composer.sprites["fox", "noto"], 0.45, *PLACES[place])
    picture = canvas.astype(np.uint8)
    assert figures.place_of(picture) == place
    assert figures.corner_colour(picture) == "blue"


@pytest.mark.parametrize(
    ("prompt", "thing"),
    [
        ("a fox on a blue background", "fox"),
        ("a burger, 3d", "hamburger"),
        ("smiling face with sunglasses",) * 2,
    ],
)
def test_the_thing_that_a_prompt_names_is_the_longest_in_it(prompt, thing):
    every = Composer(concepts.load(140), {}, 64, seed=1)
    assert figures.thing_of(every, prompt) == thing


def test_a_prompt_without_a_known_thing_is_no_example(composer):
    with pytest.raises(ValueError, match="foxglove"):
        figures.thing_of(composer, "a foxglove")


def test_the_words_of_every_concept_survive_the_tokenizer():
    words = tokenizer.train(Recipe(), concepts.load())
    assert len(words) <= Recipe().vocabulary + 2
    for thing in concepts.load():
        assert words.decode(words(thing.name).input_ids, skip_special_tokens=True).strip()
    assert len(words("a fox on a blue background").input_ids) == 8


def test_figures_are_those_of_the_books():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(500, 8, generator=draw)
    assert figures.frechet(features, features) == pytest.approx(0, abs=1e-6)
    assert figures.frechet(features, features + 3) == pytest.approx(8 * 9, rel=1e-6)
    picture = torch.rand(2, 3, 32, 32, generator=draw) * 2 - 1
    assert figures.ssim(picture, picture) == pytest.approx(1)
    assert figures.ssim(picture, -picture) < 0
