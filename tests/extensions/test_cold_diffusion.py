"""Cold diffusion: other starts than noise, as large as noise is."""

import importlib

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import pixels, request_for
from webui.errors import InvalidField

pytestmark = pytest.mark.filterwarnings("ignore:Should have t")  # torchsde's rounding; harmless

TRANSFORMS = ("Blend", "Circle wipe", "Blur")
AMOUNTS = (0.1, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def plugin(plugged_engine):
    return plugged_engine.plugins["cold-diffusion"]


@pytest.fixture(scope="module")
def names(plugin):
    return list(plugin.module.patterns.PATTERNS)


@pytest.fixture(scope="module")
def mixing(plugin):
    return importlib.import_module(f"{plugin.module.__name__}.mixing")


@pytest.fixture(scope="module")
def draw(plugged_engine):
    """Pictures' pixels, int; keywords are settings of the plugin or fields of the request."""

    def made(**changes) -> np.ndarray:
        settings = {"pattern", "amount", "transform", "hold"} & changes.keys()
        plugins = {f"cold-diffusion.{name}": changes.pop(name) for name in settings}
        view = plugged_engine.submit([request_for(**changes, plugins=plugins)], "test").wait()
        assert view.state == "done", view.error
        return np.stack([pixels(saved.path).astype(int) for saved in view.saved]).squeeze()

    return made


@pytest.fixture(scope="module")
def noise():
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def latents(bare, plugin, names):
    """Of each pattern, (1, 4, 16, 16)."""

    def encoded(name: str) -> torch.Tensor:
        picture = np.asarray(plugin.module.patterns.drawn(name, (128, 128)))
        tensor = torch.from_numpy(picture / 127.5 - 1).float().movedim(2, 0)[None]
        with torch.no_grad():
            return bare.vae.encode(tensor).latent_dist.mean * bare.vae.config.scaling_factor

    return {name: encoded(name) for name in names}


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


# The start


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("amount", AMOUNTS)
def test_every_start_is_as_large_as_noise_is(mixing, noise, latents, transform, amount):
    for name, pattern in latents.items():
        start = mixing.mixed(noise, pattern.expand_as(noise), transform, amount)
        assert start.std(dim=(1, 2, 3)).numpy() == pytest.approx([1, 1], abs=1e-4), name
        if transform == "Blend":  # before what is left over is evened out
            unit = mixing.of_variance_1(pattern - pattern.mean(dim=(2, 3), keepdim=True))
            assert float(mixing.blended(noise, unit, amount).std()) == pytest.approx(1, abs=0.1), name


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_an_amount_of_one_is_the_pattern_and_nothing_of_the_noise(mixing, noise, latents, transform):
    pattern = latents["Rings"]
    centred = pattern - pattern.mean(dim=(2, 3), keepdim=True)
    expected = (centred / centred.std()).expand_as(noise)
    torch.testing.assert_close(mixing.mixed(noise, expected, transform, 1.0), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_how_bright_and_how_strong_a_pattern_is_plays_no_part(mixing, noise, latents, transform):
    plain, other = (
        mixing.mixed(noise, pattern.expand_as(noise), transform, 0.4)
        for pattern in (latents["Rings"], 3 * latents["Rings"] + torch.arange(4.0)[:, None, None])
    )
    torch.testing.assert_close(plain, other, rtol=0, atol=1e-4)


def test_a_blend_has_the_share_of_the_variance_that_it_was_asked_for(mixing, noise):
    other = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    for amount in AMOUNTS:
        start = mixing.mixed(noise, other, "Blend", amount)
        assert correlation(start, other) ** 2 == pytest.approx(amount, abs=0.07)
        assert correlation(start, noise) ** 2 == pytest.approx(1 - amount, abs=0.07)


def test_a_circle_wipe_shows_the_pattern_in_a_disc_and_noise_round_it(mixing, noise):
    pattern = torch.full_like(noise, 9.0)
    wiped = mixing.wiped(noise, pattern, 0.5)
    inside = wiped == 9
    assert float(inside.float().mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(wiped[~inside], noise[~inside])
    y, x = np.mgrid[:16, :16] - 7.5
    disc = inside[0, 0].numpy()
    assert np.hypot(x, y)[disc].max() < np.hypot(x, y)[~disc].min()
    assert float((mixing.wiped(noise, pattern, 0.1) == 9).float().mean()) == pytest.approx(0.1, abs=0.04)


def test_a_blur_has_the_patterns_coarse_waves_and_the_noises_fine_ones(mixing, noise):
    """numpy's transform as judge: the pattern's spectrum up to one factor, then the noise's."""
    other = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    spectrum = np.fft.fft2(mixing.blurred(noise, other, 0.4).numpy())
    radius = np.hypot(np.fft.fftfreq(16)[:, None], np.fft.fftfreq(16))
    coarse = radius <= np.quantile(radius, 0.4)
    ratio = spectrum[0][:, coarse] / np.fft.fft2(other.numpy())[0][:, coarse]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=0, atol=1e-3)
    np.testing.assert_allclose(
        spectrum[:, :, ~coarse], np.fft.fft2(noise.numpy())[:, :, ~coarse], rtol=0, atol=1e-3
    )


def test_a_pattern_has_two_colours_and_its_own_shape_at_every_size(plugin, names):
    drawn = plugin.module.patterns.drawn
    for size in ((64, 64), (96, 64), (40, 136)):
        pictures = [drawn(name, size) for name in names]
        assert {picture.size for picture in pictures} == {size}
        assert len({picture.tobytes() for picture in pictures}) == len(names)
        for picture in pictures:
            colours = {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3)}
            assert {(32, 40, 120), (250, 200, 90)} <= colours
    board = np.asarray(drawn("Checkerboard", (64, 64)))[..., 0].astype(int)
    assert np.array_equal(board[:16, :16], 282 - board[:16, 16:32])
    assert np.array_equal(board, np.roll(board, (16, 16), (0, 1)))


# The picture


def test_settings_that_are_all_neutral_are_no_settings(draw, plugin, engine):
    neutral = {setting.name: setting.default for setting in plugin.settings}
    (plain,) = engine.submit([request_for()], "test").wait().saved
    assert np.array_equal(draw(**neutral), pixels(plain.path))
    assert np.array_equal(draw(pattern="Rings", amount=0.0), pixels(plain.path))


def test_each_pattern_and_transform_makes_another_picture_and_none_after_it_differs(draw, names):
    plain = draw()
    made = [plain, *(draw(pattern=name) for name in names)]
    made += [draw(pattern="Rings", amount=0.5, transform=transform) for transform in TRANSFORMS]
    for k, one in enumerate(made):
        for other in made[:k]:
            assert np.abs(one - other).max() > 3
    assert np.array_equal(draw(), plain)


def test_a_pattern_alone_leaves_the_seed_no_say(draw):
    whole = {"pattern": "Clouds", "scheduler": "DDIM"}
    assert np.array_equal(draw(seed=1, **whole), draw(seed=2, **whole))
    assert not np.array_equal(draw(seed=1, amount=0.9, **whole), draw(seed=2, amount=0.9, **whole))


def test_a_picture_of_a_batch_starts_as_it_does_alone(draw):
    mixture = {"pattern": "Stripes", "amount": 0.4, "transform": "Blur", "hold": True}
    first, second = draw(num_images_per_prompt=2, seed=7, **mixture)
    assert np.abs(first - draw(seed=7, **mixture)).max() <= 1
    assert np.abs(second - draw(seed=8, **mixture)).max() <= 1


def test_a_start_is_what_diffusers_pipeline_makes_of_the_same_latents(draw, bare, mixing, plugin):
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    picture = np.asarray(plugin.module.patterns.drawn("Rings", (64, 64)))
    tensor = torch.from_numpy(picture / 127.5 - 1).float().movedim(2, 0)[None]
    with torch.no_grad():
        pattern = bare.vae.encode(tensor).latent_dist.mean * bare.vae.config.scaling_factor
    start = mixing.mixed(noise, pattern, "Circle wipe", 0.6)
    options = {"num_inference_steps": 4, "guidance_scale": 4.0, "width": 64, "height": 64}
    theirs = pixels(bare("a fox", latents=start, **options).images[0]).astype(int)
    assert np.abs(draw(pattern="Rings", amount=0.6, transform="Circle wipe") - theirs).max() <= 1


def test_the_source_picture_is_a_pattern_too(draw, plugged_engine):
    source = Image.fromarray(np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8))
    image = plugged_engine.sources.keep(source, "test")
    given = {"image": image, "strength": 1.0, "scheduler": "DDIM", "pattern": "Source picture"}
    first = draw(seed=1, **given)
    assert np.abs(first - draw(seed=2, **given)).max() <= 3  # the VAE draws a little too
    assert np.abs(first - draw(seed=1, **{**given, "pattern": "Rings"})).max() > 10


def test_without_a_source_its_pattern_is_refused_at_once(plugged_engine):
    with pytest.raises(InvalidField, match="image to image"):
        plugged_engine.submit([request_for(plugins={"cold-diffusion.pattern": "Source picture"})], "test")


# Holding it


def test_a_held_start_is_the_papers_first_algorithm(draw, bare):
    """x0 is predicted, and degraded anew with the same noise: written out, on diffusers' own net."""
    scheduler = type(bare.scheduler).from_config(bare.scheduler.config)
    scheduler.set_timesteps(4)
    embeds = torch.cat(bare.encode_prompt("a fox", "cpu", 1, True, "")[::-1])
    z = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    alphas = [float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps] + [1.0]
    x = z
    with torch.no_grad():
        for t, a, after in zip(scheduler.timesteps, alphas, alphas[1:], strict=False):
            negative, positive = bare.unet(torch.cat([x] * 2), t, encoder_hidden_states=embeds).sample.chunk(
                2
            )
            v = negative + 4.0 * (positive - negative)
            x0 = a**0.5 * x - (1 - a) ** 0.5 * v
            x = after**0.5 * x0 + (1 - after) ** 0.5 * z
        decoded = bare.vae.decode(x / bare.vae.config.scaling_factor).sample
    theirs = pixels(bare.image_processor.postprocess(decoded, output_type="pil")[0]).astype(int)
    ours = draw(hold=True, scheduler="DDIM")
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(ours - draw(scheduler="DDIM")).max() > 3


def test_a_scheduler_that_adds_noise_forgets_the_start_unless_it_is_held(draw):
    """The noise of Euler a is the seed's, so the pattern alone does not decide; held, it does."""
    given = {"scheduler": "Euler a", "pattern": "Rings"}
    assert np.abs(draw(seed=1, **given) - draw(seed=2, **given)).max() > 3
    held = draw(seed=1, hold=True, **given)
    assert np.abs(held - draw(seed=2, hold=True, **given)).max() <= 1
    assert np.abs(held - draw(hold=True, **{**given, "scheduler": "Euler"})).max() <= 3


@pytest.mark.parametrize("scheduler", ["Heun", "DPM2 a", "DPM++ SDE", "PLMS", "SA-Solver", "UniPC"])
def test_a_start_is_held_with_schedulers_of_every_kind(draw, scheduler):
    assert draw(scheduler=scheduler, pattern="Checkerboard", hold=True, num_inference_steps=6).std() > 20
