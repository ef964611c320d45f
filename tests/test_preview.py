"""What a net call predicts, and how it looks as a small picture."""

import inspect
import io
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from tests.conftest import POCKET, request_for
from webui.diffusion import schedulers
from webui.diffusion.preview import FittedLater, LatentPreview, Reading

CONFIG = json.loads((POCKET / "scheduler" / "scheduler_config.json").read_text())
FLOW_CONFIG = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}

pytestmark = pytest.mark.filterwarnings("ignore:Should have t")  # torchsde's rounding; harmless


def predict_x0(model_input, output, timestep, alphas_cumprod, kind):
    return Reading.at(timestep, alphas_cumprod, kind).x0(model_input, output)


def calls_of(scheduler, kind, steps=8):
    """Run a scheduler on a made-up net: (sample, output, timestep, what it returns, our x0) of every call."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    takes = inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if "generator" in takes else {}
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = torch.tanh(model_input * 1.3) + 0.1
        ours = predict_x0(model_input, output, t, getattr(scheduler, "alphas_cumprod", None), kind)
        sample, step = x, scheduler.step(output, t, x, **extra)
        yield sample, output, t, step, ours
        x = step.prev_sample


def error(ours, theirs):
    """Largest difference, relative to the largest value (up to 20 for epsilon at sigma 14.6)."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


# The prediction


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        *[(name, "Automatic") for name in ("DDIM", "DDPM", "Euler", "Euler a", "Heun", "DPM2", "DPM2 a")],
        *[(name, "Karras") for name in ("Euler", "Heun", "DPM2", "DPM2 a", "LMS", "DPM++ SDE")],
        *[(name, "Linspace") for name in ("Euler", "Euler a", "LMS")],
    ],
)
def test_our_prediction_is_the_one_that_the_scheduler_reports(name, schedule, kind):
    """To 1e-3: the noise level is read back from the timestep, which is float32, and between two whole
    timesteps a scheduler may place it linearly in sigma where we go by log sigma. DPM2 rounds the timesteps
    of Karras sigmas, and tells the net (and us) a level up to half a timestep off: 5e-3."""
    tolerance = 5e-3 if name.startswith("DPM2") and schedule == "Karras" else 1e-3
    request = request_for(scheduler=name, sigma_schedule=schedule)
    scheduler = schedulers.build(request, {**CONFIG, "prediction_type": kind})
    calls = list(calls_of(scheduler, kind))
    assert len(calls) == schedulers.net_calls(name, 8)
    for _, _, t, step, ours in calls:
        assert error(ours, step.pred_original_sample) < tolerance, t


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DPM++ 2M", "DPM++ 3M SDE", "DPM++ 2S", "UniPC", "SA-Solver"])
def test_our_prediction_is_the_one_that_a_solver_of_x0_works_with(name, kind):
    """These report none, but convert every output to it; asked before the step, for the same step."""
    scheduler = schedulers.build(request_for(scheduler=name), {**CONFIG, "prediction_type": kind})
    place = {"at": 0}
    for sample, output, t, _, ours in calls_of(scheduler, kind):
        after, scheduler._step_index = scheduler._step_index, place["at"]
        theirs = scheduler.convert_model_output(output, sample=sample)
        scheduler._step_index = after
        place["at"] += 1
        assert error(ours, theirs) < 1e-3, t


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("alpha", [0.9991, 0.5, 0.0047])
def test_our_prediction_undoes_the_mixing_of_picture_and_noise(kind, alpha):
    """For every scheduler that reports nothing: by the definition of what the net predicts."""
    x0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    alphas = torch.tensor([0.9999, alpha, 0.0001])
    a, b = alpha**0.5, (1 - alpha) ** 0.5
    output = {"epsilon": noise, "v_prediction": a * noise - b * x0, "sample": x0}[kind]
    torch.testing.assert_close(
        predict_x0(a * x0 + b * noise, output, torch.tensor(1), alphas, kind), x0, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("name", ["Euler", "Heun", "LCM"])
def test_the_prediction_of_a_flow_follows_its_definition(name):
    scheduler = schedulers.build(request_for(scheduler=name), FLOW_CONFIG)
    scheduler.set_timesteps(6)
    x0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sigmas = {round(float(sigma), 6) for sigma in scheduler.sigmas}
    for t in scheduler.timesteps:
        sigma = float(t) / 1000
        assert round(sigma, 6) in sigmas  # timestep and sigma say the same
        x = (1 - sigma) * x0 + sigma * noise
        torch.testing.assert_close(
            predict_x0(x, noise - x0, t, None, "flow_prediction"), x0, rtol=0, atol=1e-5
        )


def test_a_diffusion_solver_on_a_flow_model_is_read_as_a_flow():
    """DPM-Solver has alphas_cumprod even then, and whole timesteps: a thousandth of sigma is lost."""
    scheduler = schedulers.build(request_for(scheduler="DPM++ 2M"), FLOW_CONFIG)
    for index, (sample, output, _, _, ours) in enumerate(calls_of(scheduler, "flow_prediction")):
        assert error(ours, sample - scheduler.sigmas[index] * output) < 2e-3


def test_zero_terminal_snr_gives_a_finite_prediction():
    alphas = torch.linspace(0.99, 0.0, 1000)
    x, v = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert predict_x0(x, x, 999, alphas, "epsilon").isfinite().all()
    torch.testing.assert_close(predict_x0(x, v, 999, alphas, "v_prediction"), -v, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction", "sample"])
@pytest.mark.parametrize("timestep", [1, 500.5, 999])
def test_an_output_is_found_again_from_what_it_predicts(kind, timestep):
    x, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    reading = Reading.at(timestep, torch.linspace(0.9991, 0.0047, 1000), kind)
    torch.testing.assert_close(reading.output(x, reading.x0(x, output)), output, rtol=0, atol=1e-3)


# The picture


@pytest.fixture(scope="module")
def preview(bare) -> LatentPreview:
    return LatentPreview.fit(bare.vae)


@pytest.fixture(scope="module")
def painted(bare) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled latents (2, 4, 16, 16) of two pictures, and their decodings (2, 3, 128, 128) in -1..1."""
    bare.scheduler = type(bare.scheduler).from_config(CONFIG)
    latents = bare(
        ["a fox on a blue background", "a red apple, 3d"],
        num_inference_steps=8,
        guidance_scale=4.0,
        width=128,
        height=128,
        output_type="latent",
        generator=[torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)],
    ).images
    with torch.no_grad():
        return latents, bare.vae.decode(latents / bare.vae.config.scaling_factor).sample.clamp(-1, 1)


def shown(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg))


def colours_of(preview: LatentPreview, latents: torch.Tensor) -> torch.Tensor:
    """(B, 3, h, w), as the map gives them."""
    mapped = torch.einsum("rc,bchw->brhw", preview.weight, latents) + preview.bias[:, None, None]
    return mapped.clamp(-1, 1)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """In dB, of values in -1..1."""
    return float(10 * torch.log10(4 / ((a - b) ** 2).mean()))


def test_previews_have_the_colours_of_the_decoded_picture(preview, painted):
    """Over 16 pictures 21.2 dB; the mean colour alone gives 10, the best affine map there is 21.8."""
    latents, decoded = painted
    assert psnr(colours_of(preview, latents), torch.nn.functional.avg_pool2d(decoded, 8)) > 18
    enlarged = np.asarray(shown(preview.jpeg(latents[:1])), dtype=np.float32)
    true = ((decoded[0] + 1) * 127.5).movedim(0, -1).numpy()
    assert 10 * np.log10(255**2 / np.mean((enlarged - true) ** 2)) > 17


def test_the_map_is_nearly_the_same_from_a_vae_in_half_precision(bare, preview, painted):
    vae = AutoencoderKL.from_config(bare.vae.config)
    vae.load_state_dict(bare.vae.state_dict())
    half = LatentPreview.fit(vae.to(torch.bfloat16))
    assert half.weight.dtype == torch.float32
    assert psnr(colours_of(half, painted[0]), colours_of(preview, painted[0])) > 35


def test_a_vae_of_any_channel_count_is_fitted_on_latents_as_the_net_sees_them():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        latent_channels=16,
        norm_num_groups=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=1.0,
    )
    plain = LatentPreview.fit(vae)
    vae.register_to_config(scaling_factor=0.5, shift_factor=0.3)
    scaled = LatentPreview.fit(vae)
    raw = torch.randn(1, 16, 4, 4)
    assert plain.weight.shape == (3, 16)
    torch.testing.assert_close(
        colours_of(plain, raw), colours_of(scaled, (raw - 0.3) * 0.5), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 4, 16, 16), (128, 128)),
        ((2, 4, 16, 16), (256, 128)),
        ((1, 4, 64, 96), (512, 341)),
        ((16, 4, 128, 128), (512, 32)),
        ((1, 4, 1024, 8), (4, 512)),
    ],
)
def test_a_batch_is_shown_as_one_row_of_bounded_length(preview, shape, size):
    assert shown(preview.jpeg(torch.zeros(shape))).size == size


def test_the_pictures_of_a_batch_stand_in_their_order(preview, painted):
    row = np.asarray(shown(preview.jpeg(painted[0])), dtype=np.float32)
    for k in range(2):
        alone = np.asarray(shown(preview.jpeg(painted[0][k : k + 1])), dtype=np.float32)
        assert np.abs(row[:, 128 * k : 128 * (k + 1)] - alone).mean() < 1


def test_values_that_are_no_numbers_do_not_stop_a_preview(preview):
    assert shown(preview.jpeg(torch.full((1, 4, 8, 8), float("nan")))).size == (64, 64)


def test_a_vae_that_overflows_gives_grey_previews(bare):
    vae = AutoencoderKL.from_config(bare.vae.config)
    vae.load_state_dict({name: torch.full_like(w, torch.nan) for name, w in bare.vae.state_dict().items()})
    grey = np.asarray(shown(LatentPreview.fit(vae).jpeg(torch.randn(1, 4, 8, 8))))
    assert np.abs(grey.astype(int) - 128).max() <= 1


def test_a_preview_is_fitted_once_and_only_when_it_is_asked_for(bare):
    fitted = []

    def fit() -> LatentPreview:
        fitted.append(LatentPreview.fit(bare.vae))
        return fitted[-1]

    later, x0 = FittedLater(fit), torch.randn(1, 4, 8, 8)
    assert fitted == []
    shown = [later.jpeg(x0), later.jpeg(x0)]
    assert later.picture(x0).size == fitted[0].picture(x0).size
    assert shown == [fitted[0].jpeg(x0)] * 2
    assert len(fitted) == 1
