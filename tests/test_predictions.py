"""What plugins are told of the net's predictions and of the steps, for every kind of model."""

import json
import shutil
from itertools import pairwise

import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, request_for

TINY = ROOT / "tests" / "tiny-model"
KINDS = {  # prediction type -> scheduler config of the model
    "v_prediction": {},
    "epsilon": {"prediction_type": "epsilon"},
    "flow_prediction": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0},
}
PROBE = """
from webui.hookspecs import Setting, hookimpl

calls, ends = [], []

@hookimpl
def settings():
    return [Setting("on", False, "On")]

@hookimpl
def guide(prediction):
    calls.append(prediction)

@hookimpl
def step_end(step):
    ends.append(step)
"""


@pytest.fixture(scope="module")
def probed(make_engine, tmp_path_factory):
    """Make a picture; returns the predictions and the step ends that a plugin was shown."""
    folder = tmp_path_factory.mktemp("probed")
    for kind, changes in KINDS.items():
        path = shutil.copytree(TINY, folder / "models" / kind) / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    plugin = folder / "probe"
    plugin.mkdir()
    (plugin / "plugin.toml").write_text('id = "probe"\nversion = "1"\napi = "1"\ndescription = "Looks."\n')
    (plugin / "plugin.py").write_text(PROBE)
    engine = make_engine(plugins=[plugin], models_dir=[folder / "models"], model="epsilon")
    module = engine.plugins["probe"].module

    def make(**changes):
        if "image" in changes:
            source = Image.new("RGB", changes["image"], "teal")
            changes["image"] = engine.sources.keep(source, "test")
        module.calls.clear()
        module.ends.clear()
        view = engine.submit([request_for(**changes, plugins={"probe.on": True})], "test").wait()
        assert view.state == "done", view.error
        return list(module.calls), list(module.ends)

    return make


def assert_first_order(seen, end):
    """The step kept the noise that the net saw, and took its x0 for the picture."""
    noise = (seen.latents - seen.signal * end.x0) / seen.noise
    expected = end.signal * end.x0 + end.noise * noise
    torch.testing.assert_close(end.latents, expected, rtol=0, atol=5e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_says_what_it_means_in_clean_latents_and_back(probed, kind):
    calls, _ = probed(model=kind)
    for prediction in calls:
        assert prediction.prediction_type == kind
        x0 = prediction.x0(prediction.guided)
        noise = (prediction.latents - prediction.signal * x0) / prediction.noise
        meant = {
            "epsilon": noise,
            "v_prediction": prediction.signal * noise - prediction.noise * x0,
            "flow_prediction": noise - x0,
        }[kind]
        torch.testing.assert_close(prediction.guided, meant, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(prediction.output(x0), prediction.guided, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [
        *((kind, name) for kind in ("v_prediction", "epsilon") for name in ("DDIM", "Euler", "LMS", "DEIS")),
        ("flow_prediction", "Euler"),
    ],
)
def test_a_step_ends_with_the_clean_latents_and_the_noise_in_the_shares_that_it_says(probed, kind, scheduler):
    """By a first-order step the noise that the net saw stays; in whatever scale a scheduler keeps latents."""
    calls, ends = probed(model=kind, scheduler=scheduler, num_inference_steps=5)
    assert len(ends) == len(calls) == 5
    first_order = len(calls) if scheduler in ("DDIM", "Euler") else 1
    for seen, end in list(zip(calls, ends, strict=True))[:first_order]:
        assert_first_order(seen, end)
    assert (ends[-1].signal, ends[-1].noise) == (1, 0)
    assert all(a.noise / a.signal > b.noise / b.signal for a, b in pairwise(ends))


def test_a_step_knows_what_its_pass_began_with(probed):
    calls, ends = probed(model="v_prediction", scheduler="DDIM", hires_scale=1.5, hires_strength=0.5)
    starts = {end.start.shape[-1]: end.start for end in ends}
    assert set(starts) == {8, 12}  # latent pixels of the two passes
    assert torch.equal(calls[0].latents, starts[8])
    assert all(end.start is starts[end.latents.shape[-1]] for end in ends)


def test_a_pass_over_a_picture_has_the_levels_of_its_own_steps(probed):
    """With a strength it begins in the middle of its scheduler's timesteps."""
    calls, ends = probed(
        model="v_prediction", scheduler="Euler", num_inference_steps=8, image=(64, 64), strength=0.5
    )
    assert len(ends) == 4
    for seen, end in zip(calls, ends, strict=True):
        assert_first_order(seen, end)
