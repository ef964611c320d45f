"""Seamless: what goes off one edge comes in at the other, in every part of the model."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import pixels, request_for
from webui.diffusion.plugged import difference, marks
from webui.hookspecs import Parts

AXES = {"x": (True, False), "y": (False, True), "both": (True, True)}
SHIFT = {"x": (0, 1), "y": (1, 0)}  # down, across


@pytest.fixture(scope="module")
def wrapped(plugged_engine):
    name = plugged_engine.plugins["seamless"].module.__name__
    return importlib.import_module(f"{name}.wrapping").wrapped


@pytest.fixture(scope="module")
def draw(plugged_engine):
    """The pictures kept of one request, each (h, w, 3) float; keywords are fields or settings."""

    def made(tile_x=False, tile_y=False, show_tile=False, **changes) -> list[np.ndarray]:
        plugins = {"tile_x": tile_x, "tile_y": tile_y, "show_tile": show_tile}
        plugins = {f"seamless.{name}": value for name, value in plugins.items()}
        view = plugged_engine.submit([request_for(**changes, plugins=plugins)], "test").wait()
        assert view.state == "done", view.error
        return [pixels(saved.path).astype(float) for saved in view.saved]

    return made


def seams(pictures: list[np.ndarray]) -> tuple[float, float]:
    """The jump over the edge, x and y, in grey levels of 255."""
    jumps = [np.abs(a.take(0, axis) - a.take(-1, axis)).mean() for axis in (1, 0) for a in pictures]
    return float(np.mean(jumps[: len(pictures)])), float(np.mean(jumps[len(pictures) :]))


def rolls(call, input: torch.Tensor, down: int, across: int, scale: float = 1) -> float:
    """How far rolled input is from giving rolled output, relative to the output; 0: it does."""
    with torch.no_grad():
        plain = call(input)
        rolled = call(input.roll((down, across), (2, 3)))
    expected = plain.roll((int(down * scale), int(across * scale)), (2, 3))
    return float((rolled - expected).abs().max() / plain.abs().max())


@pytest.fixture(scope="module")
def calls(bare):
    """The parts of a model, each as (function, input, pixels to roll by, output pixels per input pixel)."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    words = torch.randn(1, 77, 192, generator=generator)
    picture = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    return {
        "net": (lambda x: bare.unet(x, 500, encoder_hidden_states=words).sample, latents, 4, 1),
        "decoder": (lambda x: bare.vae.decode(x).sample, latents, 1, 8),
        "encoder": (lambda x: bare.vae.encode(x).latent_dist.mean, picture, 8, 1 / 8),
    }


@pytest.mark.parametrize("part", ["net", "decoder", "encoder"])
@pytest.mark.parametrize("axes", AXES)
def test_along_a_wrapped_axis_rolled_input_gives_rolled_output(wrapped, bare, calls, part, axes):
    """Exactly, but for float; and along no other axis."""
    call, input, by, scale = calls[part]
    x, y = AXES[axes]
    with wrapped((bare.unet, bare.vae), x, y):
        for axis, is_wrapped in (("x", x), ("y", y)):
            down, across = SHIFT[axis]
            off = rolls(call, input, by * down, by * across, scale)
            assert off < 1e-4 if is_wrapped else off > 0.01, f"{axis}: {off}"


def test_a_convolution_wrapped_both_ways_is_torchs_circular_one(wrapped):
    torch.manual_seed(0)
    ours = nn.Conv2d(3, 5, 5, padding=2)
    theirs = nn.Conv2d(3, 5, 5, padding=2, padding_mode="circular")
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(2, 3, 8, 6)
    with wrapped([ours], x=True, y=True):
        torch.testing.assert_close(ours(input), theirs(input))
    assert not torch.allclose(ours(input), theirs(input))


@pytest.mark.parametrize("error", [None, KeyError])
def test_the_model_is_left_as_it_was(wrapped, bare, error):
    parts = Parts(bare.unet, bare.vae, bare.text_encoder)
    before = marks(parts)
    try:
        with wrapped((bare.unet, bare.vae), x=True, y=True):
            assert difference(before, marks(parts))
            if error:
                raise error
    except KeyError:
        pass
    assert not difference(before, marks(parts))


def test_settings_that_are_all_neutral_are_no_settings(draw, engine):
    (ours,) = draw()
    (plain,) = engine.submit([request_for()], "test").wait().saved
    assert np.array_equal(ours, pixels(plain.path))


def test_opposite_edges_meet_where_they_are_told_to_and_nowhere_else(draw):
    apples = {"prompt": "a red apple on a blue and yellow gradient background", "num_images_per_prompt": 2}
    plain = draw(**apples)
    x, y = seams(plain)
    assert x > 10
    assert y > 50
    across, down = seams(draw(**apples, tile_x=True))
    assert across < x / 5
    assert down > y / 2
    across, down = seams(draw(**apples, tile_y=True))
    assert across > x / 2
    assert down < y / 20
    across, down = seams(draw(**apples, tile_x=True, tile_y=True))
    assert across < x / 5
    assert down < y / 20
    assert np.array_equal(draw(**apples), plain), "it changed the pictures after it"


def test_the_view_beside_is_four_of_the_picture(draw, plugged_engine):
    picture, view = draw(tile_x=True, show_tile=True)
    assert np.array_equal(view, np.tile(picture, (2, 2, 1)))
    assert np.array_equal(picture, draw(tile_x=True)[0])
    alone, _ = draw(show_tile=True)
    assert np.array_equal(alone, draw()[0])
