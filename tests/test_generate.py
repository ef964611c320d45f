"""What a request's words and numbers do to the picture, against identities that must hold."""

import itertools
import json
import shutil

import diffusers
import numpy as np
import pytest
import torch

from tests.conftest import POCKET, pixels, request_for
from webui.diffusion.noise import slerp
from webui.request import HIRES_UPSCALERS


@pytest.fixture
def draw(engine):
    """Pixels of the first picture of a request."""

    def draw(**changes):
        view = engine.submit([request_for(**changes)], "test").wait()
        assert view.error is None
        return pixels(view.saved[0].path)

    return draw


def far(a, b):
    """Largest difference of two pictures, in 8-bit levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# Prompts


@pytest.mark.parametrize(
    ("prompt", "same"),
    [
        ("[a fox:a lemon:0]", "a lemon"),
        ("[a fox:a lemon:4]", "a fox"),
        ("[a fox:a lemon:1.0]", "a fox"),
        ("[a fox|a fox]", "a fox"),
        ("(a fox:1.0)", "a fox"),
        (r"a \(fox\)", r"a \(fox\)"),
        ("# remark\na fox", "a fox"),
    ],
)
def test_syntax_that_changes_nothing_gives_the_same_picture(draw, prompt, same):
    assert np.array_equal(draw(prompt=prompt), draw(prompt=same))


@pytest.mark.parametrize(
    "prompt", ["[a fox:a lemon:2]", "[a fox|a lemon]", "(a fox:1.5)", "a fox BREAK a lemon"]
)
def test_syntax_that_changes_something_gives_another_picture(draw, prompt):
    assert far(draw(prompt=prompt), draw(prompt="a fox")) > 8


def test_an_edited_prompt_is_the_first_one_until_its_step(engine):
    """The net is given the second prompt from step 2 of 4 on, and not before."""
    encoder = engine.manager.resident.encoder
    from webui.diffusion import prompts

    edited = prompts.encode(encoder, "[a fox:a lemon:2]", "", 1, 4)
    fox, lemon = (
        prompts.encode(encoder, text, "", 1, 4).at(0).positives[0][0].tokens for text in ("a fox", "a lemon")
    )
    given = [edited.at(step).positives[0][0].tokens for step in range(4)]
    assert [torch.equal(g, fox) for g in given] == [True, True, False, False]
    assert [torch.equal(g, lemon) for g in given] == [False, False, True, True]


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_and_composes_as_the_paper_says(draw, guidance_scale):
    """Parts of equal words add up: weights 0.25 and 0.75 of one prompt are that prompt (arXiv 2206.01714)."""
    whole = draw(prompt="a fox", guidance_scale=guidance_scale)
    parts = draw(prompt="a fox :0.25 AND a fox :0.75", guidance_scale=guidance_scale)
    other = draw(prompt="a fox AND a lemon", guidance_scale=guidance_scale)
    assert far(whole, parts) <= 1  # float32 sums in another order
    assert far(whole, other) > 8


def test_a_part_of_weight_nothing_changes_nothing(draw):
    assert far(draw(prompt="a fox AND a lemon :0"), draw(prompt="a fox")) <= 1


def test_without_guidance_the_negative_prompt_is_not_computed(draw, engine):
    batches = []
    hook = engine.manager.resident.net.register_forward_pre_hook(
        lambda _, arguments: batches.append(len(arguments[0]))
    )
    try:
        plain = draw(guidance_scale=1.0)
        negative = draw(guidance_scale=1.0, negative_prompt="red")
        draw(guidance_scale=1.1)
    finally:
        hook.remove()
    assert np.array_equal(plain, negative)
    assert batches == [1] * 8 + [2] * 4


def test_clip_skip_counts_layers_from_the_end(draw):
    pictures = [draw(clip_skip=k) for k in (1, 2, 3)]
    assert far(pictures[0], pictures[1]) > 0
    assert far(pictures[1], pictures[2]) > 0


# Seeds


def test_variation_strength_goes_from_one_seed_to_the_other(draw):
    one, other = draw(seed=1), draw(seed=2)
    assert np.array_equal(draw(seed=1, variation_seed=2, variation_strength=0.0), one)
    assert np.array_equal(draw(seed=1, variation_seed=2, variation_strength=1.0), other)
    near = draw(seed=1, variation_seed=2, variation_strength=0.1)
    assert 0 < np.abs(near.astype(int) - one).mean() < np.abs(near.astype(int) - other).mean()


def test_between_two_noises_the_noise_stays_as_large():
    a, b = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for strength in (0.0, 0.25, 0.5, 1.0):
        mixed = slerp(a, b, strength)
        expected = (1 - strength) * a.flatten(1).norm(dim=1) + strength * b.flatten(1).norm(dim=1)
        assert torch.allclose(mixed.flatten(1).norm(dim=1), expected, rtol=0.03)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    assert torch.equal(slerp(a, a, 0.5), a)


@pytest.mark.parametrize("variation_strength", [0.0, 0.4])
def test_each_picture_of_a_batch_can_be_made_alone(engine, variation_strength):
    request = request_for(
        num_images_per_prompt=3,
        variation_seed=2**32 - 1,
        variation_strength=variation_strength,
        scheduler="Euler a",
    )
    batch = engine.submit([request], "test").wait().saved
    alone = engine.submit([saved.request for saved in batch], "test").wait().saved
    assert len({saved.path.read_bytes() for saved in batch}) == 3
    for together, single in zip(batch, alone, strict=True):
        assert far(pixels(together.path), pixels(single.path)) <= 1  # batched products round differently


# The second pass


@pytest.mark.parametrize("upscaler", HIRES_UPSCALERS)
def test_every_upscaler_makes_the_larger_picture_in_its_own_way(draw, upscaler):
    picture = draw(hires_scale=1.5, hires_upscaler=upscaler, hires_strength=0.5)
    assert picture.shape == (96, 96, 3)
    plain = draw(hires_scale=1.5, hires_upscaler="Latent", hires_strength=0.5)
    assert (far(picture, plain) > 0) == (upscaler != "Latent")


def test_both_passes_are_counted_and_named(engine):
    request = request_for(hires_scale=2.0, hires_steps=6, hires_strength=0.5, scheduler="Heun")
    job = engine.submit([request], "test")
    views = list(job.watch())
    assert views[-1].net_calls == views[-1].net_calls_total == (2 * 4 - 1) + (2 * 3 - 1)
    assert any("Second pass" in view.stage for view in views)


def test_a_prompt_can_be_edited_in_the_second_pass_alone(draw):
    hires = {"hires_scale": 1.5, "hires_strength": 0.9}
    assert np.array_equal(draw(prompt="[a fox:a lemon:1.0]"), draw(prompt="a fox"))
    edited = draw(prompt="[a fox:a lemon:1.0]", **hires)
    assert far(edited, draw(prompt="a fox", **hires)) > 8


# Other kinds of model


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0},
        {
            "_class_name": "DPMSolverMultistepScheduler",
            "use_flow_sigmas": True,
            "prediction_type": "flow_prediction",
        },
        {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "skip_prk_steps": True},
    ],
    ids=["flow match", "flow sigmas", "epsilon"],
)
def test_models_of_every_prediction_type_run_in_both_passes(make_engine, tmp_path, config):
    model = shutil.copytree(POCKET, tmp_path / "other")
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    engine = make_engine(models_dir=[tmp_path], model="other")
    names = ["Euler", "Heun", "LCM", "DPM++ 2M", "UniPC"]
    requests = [request_for(scheduler=name, hires_scale=1.5) for name in names]
    view = engine.submit(requests, "test").wait()
    assert view.error is None
    assert {saved.request.model for saved in view.saved} == {"other"}
    assert len({pixels(saved.path).tobytes() for saved in view.saved}) == len(names)
    engine.close()


def test_a_flow_model_takes_diffusers_own_steps(make_engine, tmp_path, bare):
    """From x1 = noise along dx = v d(sigma): the engine's picture is the integral done by hand."""
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    model = shutil.copytree(POCKET, tmp_path / "flow")
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    engine = make_engine(models_dir=[tmp_path], model="flow")
    (saved,) = engine.submit([request_for(scheduler="Euler")], "test").wait().saved

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(4)
    embeds = torch.cat(bare.encode_prompt("a fox", "cpu", 1, True, "")[::-1])
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    sigmas = [*scheduler.sigmas.tolist(), 0.0][:5]
    with torch.no_grad():
        for sigma, after in itertools.pairwise(sigmas):
            out = bare.unet(torch.cat([x] * 2), sigma * 1000, encoder_hidden_states=embeds).sample
            negative, positive = out.chunk(2)
            x = x + (after - sigma) * (negative + 4.0 * (positive - negative))
        decoded = bare.vae.decode(x / bare.vae.config.scaling_factor).sample
    plain = bare.image_processor.postprocess(decoded, output_type="pil")[0]
    assert far(pixels(saved.path), pixels(plain)) <= 1
    engine.close()
