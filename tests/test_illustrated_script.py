"""The script of a run, run by itself: it makes the saved picture bit for bit, or there is none."""

import ast
import contextlib
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace

import diffusers
import numpy as np
import pytest

from tests import tiny
from tests.conftest import POCKET, ROOT, pixels, request_for
from tests.flights import record
from webui.diffusion import schedulers
from webui.errors import Unsupported
from webui.flight import ArrayNote
from webui.illustrated.script import script
from webui.request import Delivery, GenerationRequest

WORDS = {"prompt": "a fox on a blue background", "negative_prompt": "red"}


def recorded(engine, **changes):
    """(where the picture was saved, the record of its run)"""
    view = engine.submit([request_for(**WORDS | changes)], "test", Delivery(record=True)).wait()
    assert view.error is None
    (saved,) = view.saved
    return saved.path, engine.flight(saved.id, "test")


def run(text, model, folder):
    """The picture that a script makes, with the path filled in as a person does it."""
    lines = [f"MODEL = {str(model)!r}" if line.startswith("MODEL =") else line for line in text.splitlines()]
    path = folder / "script.py"
    path.write_text("\n".join(lines))
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, path], cwd=folder, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return pixels(folder / "picture.png")


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler": "Euler a"},
        {"scheduler": "DPM++ 2M", "sigma_schedule": "Karras", "seed": 2**32 - 1},
        {"scheduler": "DPM++ SDE", "width": 96},
        {"scheduler": "PLMS", "guidance_scale": 1.0},
        {"scheduler": "TCD", "negative_prompt": ""},
        {"scheduler": "DDIM", "eta": 0.5, "prompt": 'it\'s a "fox"\n\\ 100 %, é🦊'},
    ],
    ids=lambda changes: changes["scheduler"],
)
def test_the_script_makes_the_saved_picture_without_us(engine, tmp_path, changes):
    path, record = recorded(engine, **changes)
    written = script(record)
    assert (written.exact, written.why) == (True, "")
    assert "webui" not in written.text
    assert np.array_equal(run(written.text, POCKET, tmp_path), pixels(path))


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_the_script_of_other_families_does_too(make_engine, tmp_path, family):
    model = tiny.folder(family, tmp_path / "models" / family)
    engine = make_engine(models_dir=[tmp_path / "models"], model=family)
    path, record = recorded(engine, scheduler="Euler", num_inference_steps=3)
    written = script(record)
    assert written.exact
    assert np.array_equal(run(written.text, model, tmp_path), pixels(path))


CONFIGS = sorted((ROOT / "webui" / "configs").glob("*/scheduler/scheduler_config.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parts[-3])
def test_every_scheduler_is_made_again_of_what_is_recorded_of_it(path):
    """From the scheduler of the checkpoint's own pipeline, as the script has it, and as JSON."""
    config = json.loads(path.read_text())
    own = getattr(diffusers, config["_class_name"]).from_config(config).config
    for name, curve in itertools.product(schedulers.names(), ("Automatic", "Karras", "SGM uniform")):
        request = GenerationRequest(scheduler=name, sigma_schedule=curve, seed=3)
        if not schedulers.fits(name, config):
            continue
        with contextlib.suppress(Unsupported):
            built = schedulers.build(request, config)
            told = json.loads(json.dumps(schedulers.changes(built, config)))
            again = getattr(diffusers, told.pop("_class_name")).from_config(own, **told)
            assert options(again) == options(built), (name, curve)


def options(scheduler):
    return {name: value for name, value in scheduler.config.items() if name[0] != "_"}


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("syntax", {"prompt": "a (red:1.2) fox"}),
        ("syntax", {"prompt": "a [red|blue] fox"}),
        ("syntax", {"prompt": "a fox AND a bowl"}),
        ("syntax", {"prompt": r"a fox \(animal\)"}),
        ("syntax", {"negative_prompt": "a BREAK b"}),
        ("LoRA", {"prompt": "a fox <lora:style:0.5>"}),
        ("plugins", {"plugins": {"a.b": 1}}),
        ("second pass", {"hires_scale": 2.0}),
        ("clip skip", {"clip_skip": 2}),
        ("two seeds", {"variation_strength": 0.1}),
        ("source", {"image": "0" * 64}),
        ("refiner", {"refiner": "other"}),
        ("VAE", {"vae": "other"}),
        ("reference", {"reference_model": "a", "reference_image": "0" * 64}),
        ("ControlNet", {"control_model": "a", "control_image": "0" * 64}),
    ],
)
def test_what_diffusers_would_make_otherwise_has_no_script(words, changes):
    written = script(record(request=request_for(**changes)))
    assert (written.text, written.exact) == ("", False)
    assert words in written.why


def test_a_prompt_of_several_chunks_has_no_script():
    whole = record()
    several = replace(whole, arrays=(ArrayNote("prompt embeddings", (2, 154, 128), "float32", 157_696),))
    assert script(whole).text
    assert "cut it off" in script(several).why


def test_brackets_that_are_only_characters_are_words():
    assert script(record(request=request_for(prompt="a fox :( or 16:9"))).exact


def test_and_is_a_word_of_a_negative_prompt():
    assert script(record(request=request_for(negative_prompt="red AND blue"))).exact


def test_a_word_that_a_file_explains_has_no_script():
    found = script(record(additions={"TI hashes": "zorb: 0123456789"}))
    assert not found.text
    assert "a word is explained by a file" in found.why


def test_half_precision_has_a_script_that_says_it_is_not_exact():
    written = script(record(device="cuda, bfloat16, sdpa"))
    assert "torch.bfloat16" in written.text
    assert "pipe.to('cuda')" in written.text
    assert not written.exact
    assert "last bits" in written.why


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler_config": {}},
        {"scheduler_config": {"_class_name": "x\nimport os"}},
        {"scheduler_config": {"_class_name": "DDIMScheduler", "a=1); import os; f(b": 1}},
        {"scheduler_config": {"_class_name": "DDIMScheduler", "a": {"b": 1}}},
        {"device": "cpu'); import os, float32, sdpa"},
        {"versions": {"torch": "2\nimport os"}},
        {"family": "flux"},
    ],
)
def test_what_is_not_known_or_no_plain_name_is_never_written(changes):
    assert script(record(**changes)).text == ""


def test_whatever_a_record_says_is_a_literal_in_the_script():
    evil = "'''\"\"\"\nimport os # \\"
    request = GenerationRequest(prompt="a", negative_prompt='"""\nb', seed=1)
    written = script(record(request=request, model=evil))
    tree = ast.parse(written.text)
    imported = [node.names[0].name for node in ast.walk(tree) if isinstance(node, ast.Import)]
    assert imported == ["torch"]
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {"path/to/" + evil, '"""\nb'} <= texts
