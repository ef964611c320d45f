"""What a net call predicts, and how it looks as a small picture."""

import io

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import request_for
from webui.diffusion import schedulers
from webui.diffusion.preview import LatentPreview, predict_x0

CONFIG = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": True,
}


def steps_of(scheduler, kind):
    """Run a scheduler on a made-up net: (its own x0, ours) at every step that it reports one."""
    torch.manual_seed(0)
    scheduler.set_timesteps(8)
    x = torch.randn(1, 4, 8, 8) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, t)
        output = torch.tanh(model_input * 1.3) + 0.1
        ours = predict_x0(model_input, output, t, scheduler.alphas_cumprod, kind)
        step = scheduler.step(output, t, x)
        yield getattr(step, "pred_original_sample", None), ours
        x = step.prev_sample


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("DDIM", "Automatic"),
        ("DDPM", "Automatic"),
        ("Euler", "Automatic"),
        ("Euler", "Karras"),
        ("Euler a", "Automatic"),
        ("Heun", "Automatic"),
    ],
)
def test_our_prediction_is_the_one_that_schedulers_report(name, schedule, kind):
    config = {**CONFIG, "prediction_type": kind}
    scheduler = schedulers.build(request_for(scheduler=name, sigma_schedule=schedule), config)
    compared = [(theirs, ours) for theirs, ours in steps_of(scheduler, kind) if theirs is not None]
    assert len(compared) >= 8
    for theirs, ours in compared:
        # float32 sigmas of up to 14.6 against alphas read back at (fractional) timesteps
        assert torch.allclose(theirs, ours, rtol=2e-3, atol=2e-3 * float(theirs.abs().max()))


def test_the_prediction_of_a_flow_follows_its_definition():
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 1, 4, 8, 8)
    sigma = 0.7
    x = (1 - sigma) * x0 + sigma * noise
    velocity = noise - x0
    assert torch.allclose(
        predict_x0(x, velocity, torch.tensor(700.0), None, "flow_prediction"), x0, atol=1e-6
    )


def test_previews_have_the_colours_of_the_decoded_picture(bare):
    bare.scheduler = diffusers.EulerDiscreteScheduler.from_config(bare.scheduler.config)
    preview = LatentPreview.fit(bare.vae)
    for prompt in ("a fox on a blue background", "a red apple, 3d"):
        latents = bare(
            prompt,
            num_inference_steps=8,
            guidance_scale=4.0,
            width=128,
            height=128,
            output_type="latent",
            generator=torch.Generator().manual_seed(1),
        ).images
        with torch.no_grad():
            pixels = bare.vae.decode(latents / bare.vae.config.scaling_factor).sample
        true = bare.image_processor.postprocess(pixels, output_type="pil")[0]
        shown = Image.open(io.BytesIO(preview.jpeg(latents)))
        assert shown.size == (128, 128)
        small = [np.asarray(p.resize((16, 16), Image.Resampling.BOX), float) for p in (true, shown)]
        error = np.mean((small[0] - small[1]) ** 2)
        assert 10 * np.log10(255**2 / error) > 17  # dB
        assert error < np.mean((small[0] - small[0].mean()) ** 2) / 4


def test_a_batch_is_shown_as_one_row_of_bounded_length(bare):
    preview = LatentPreview.fit(bare.vae)
    assert Image.open(io.BytesIO(preview.jpeg(torch.zeros(2, 4, 16, 16)))).size == (256, 128)
    wide = Image.open(io.BytesIO(preview.jpeg(torch.zeros(8, 4, 64, 128))))
    assert max(wide.size) <= 512


def test_values_that_are_no_numbers_do_not_stop_a_preview(bare):
    preview = LatentPreview.fit(bare.vae)
    assert preview.jpeg(torch.full((1, 4, 8, 8), float("nan"))).startswith(b"\xff\xd8")
