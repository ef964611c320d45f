"""Guidance: each method against its formula, or against diffusers' own implementation of it."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPAGPipeline
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from tests.conftest import pixels, request_for
from tests.grids import KNOWN, anything
from webui.diffusion.preview import Reading
from webui.errors import InvalidField
from webui.grid.axes import kinds
from webui.grid.plan import AxisSpec, Grid, plan
from webui.hookspecs import Parts, Prediction, Values
from webui.plugins import axes

EFFECTS = {  # each method alone, strong enough to be seen
    "rescale": {"rescale": 0.7},
    "interval": {"interval_start": 0.25, "interval_end": 0.75},
    "threshold": {"threshold_scale": 1.5},
    "pag": {"pag": 10.0},
    "freeu": {"freeu_b1": 1.3, "freeu_b2": 1.4, "freeu_s1": 0.9, "freeu_s2": 0.2},
}


@pytest.fixture(scope="module")
def plugin(plugged_engine):
    return plugged_engine.plugins["guidance"]


@pytest.fixture(scope="module")
def draw(plugged_engine):
    """One picture's pixels, (64, 64, 3) int; keywords are settings of the plugin or fields of the request."""

    def made(**changes) -> np.ndarray:
        names = {setting.name for setting in plugged_engine.plugins["guidance"].settings}
        plugins = {f"guidance.{name}": changes.pop(name) for name in names & changes.keys()}
        view = plugged_engine.submit([request_for(**changes, plugins=plugins)], "test").wait()
        assert view.state == "done", view.error
        return np.stack([pixels(saved.path).astype(int) for saved in view.saved]).squeeze()

    return made


@pytest.fixture(scope="module")
def plainly(bare):
    """The same by diffusers' pipeline, with its own options."""

    def made(pipe=bare, **options) -> np.ndarray:
        noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        options = {"num_inference_steps": 4, "guidance_scale": 4.0, **options}
        return pixels(pipe("a fox", width=64, height=64, latents=noise, **options).images[0]).astype(int)

    return made


def tensors(count: int, seed: int = 0) -> torch.Tensor:
    """``count`` predictions of a batch of two, each with a middle of its own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 4, 8, 8, generator=generator) + torch.randn(4, 1, 1, generator=generator)


def prediction_of(kind: str = "v_prediction", scale: float = 8.0, **changes) -> Prediction:
    """Of a net of this kind, that means the same three pictures whatever the kind."""
    latents, cond, uncond = tensors(3)
    level = (0.4, 0.6) if kind == "flow_prediction" else (0.6, 0.8)
    reading = Reading(kind, *level)
    cond, uncond = (reading.output(latents, x0) for x0 in (cond, uncond))
    prediction = Prediction(
        request=request_for(),
        call=0,
        calls=10,
        step=0,
        steps=10,
        timestep=torch.tensor(600),
        latents=latents,
        cond=cond,
        uncond=uncond,
        scale=torch.full((2, 1, 1, 1), scale),
        guided=uncond + scale * (cond - uncond),
        predict=lambda: cond,
        prediction_type=kind,
        signal=level[0],
        noise=level[1],
        x0=lambda output: reading.x0(latents, output),
        output=lambda x0: reading.output(latents, x0),
    )
    return dataclasses.replace(prediction, **changes)


def guided(plugin, prediction: Prediction, unet: object = None, **chosen) -> torch.Tensor:
    values = {setting.name: setting.default for setting in plugin.settings}
    return plugin.module.guide(prediction, Parts(unet, None, None), Values({**values, **chosen}))


@pytest.fixture
def telling(plugged_engine, bare):
    """The self-attention in the middle of both nets says more: in so small a net it says next to nothing."""
    nets = plugged_engine.manager.resident.net, bare.unet
    weights = [net.mid_block.attentions[0].transformer_blocks[0].attn1.to_out[0].weight.data for net in nets]
    before = [weight.clone() for weight in weights]
    for weight in weights:
        weight.mul_(20)
    yield
    for weight, kept in zip(weights, before, strict=True):
        weight.copy_(kept)


# The picture


def test_settings_that_are_all_neutral_are_no_settings(draw, plugin):
    neutral = {setting.name: setting.default for setting in plugin.settings}
    assert np.array_equal(draw(**neutral), draw())


@pytest.mark.parametrize("chosen", EFFECTS.values(), ids=EFFECTS)
def test_each_method_changes_the_picture_and_none_after_it(draw, telling, chosen):
    plain = draw()
    assert np.abs(draw(**chosen) - plain).max() > 3
    assert np.array_equal(draw(), plain)


def test_every_setting_is_an_axis_of_a_grid(plugged_engine, plugin):
    available = kinds(axes.offered(plugged_engine.plugins))
    assert {f"guidance.{setting.name}" for setting in plugin.settings} <= set(available)
    grid = Grid(request_for(), AxisSpec("guidance.rescale", "0, 0.7"), AxisSpec("guidance.pag", "3, 0"))
    planned = plan(grid, KNOWN, anything, available)
    assert {cell.request.plugins for cell in planned.cells} == {
        (),
        (("guidance.rescale", 0.7),),
        (("guidance.pag", 3.0),),
        (("guidance.pag", 3.0), ("guidance.rescale", 0.7)),
    }


@pytest.mark.parametrize("chosen", EFFECTS.values(), ids=EFFECTS)
def test_a_picture_of_a_batch_is_guided_as_it_is_alone(draw, chosen):
    first, second = draw(num_images_per_prompt=2, seed=7, **chosen)
    assert np.abs(first - draw(seed=7, **chosen)).max() <= 1
    assert np.abs(second - draw(seed=8, **chosen)).max() <= 1


# CFG rescale


def test_rescale_is_diffusers_own(plugin, draw, plainly):
    cond, over = tensors(2)
    ours = plugin.module.formulas.rescaled(over * 3, cond, 0.7)
    torch.testing.assert_close(ours, rescale_noise_cfg(over * 3, cond, 0.7))
    assert np.abs(draw(rescale=0.7) - plainly(guidance_rescale=0.7)).max() <= 1


def test_a_wholly_rescaled_prediction_spreads_like_the_unguided(plugin):
    prediction = prediction_of()
    for ours, net in zip(guided(plugin, prediction, rescale=1.0), prediction.cond, strict=True):
        assert float(ours.std()) == pytest.approx(float(net.std()), rel=1e-5)


# The interval


def test_there_is_guidance_from_the_start_of_the_interval_until_its_end(plugin):
    for step in range(10):
        prediction = prediction_of(step=step)
        ours = guided(plugin, prediction, interval_start=0.3, interval_end=0.7)
        inside = step in (3, 4, 5, 6)
        assert torch.equal(ours, prediction.guided if inside else prediction.cond), step


def test_guidance_that_ends_halfway_is_diffusers_pipeline_told_to_stop_there(draw, plainly):
    def stop(pipe, step, timestep, tensors):
        if step == 1 and pipe.do_classifier_free_guidance:
            pipe._guidance_scale = 1.0
            return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]}
        return tensors

    theirs = plainly(callback_on_step_end=stop, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert np.abs(draw(interval_end=0.5) - theirs).max() <= 1


def test_outside_the_interval_no_call_is_spent_on_perturbed_attention(plugged_engine):
    chosen = {"guidance.pag": 3.0, "guidance.interval_end": 0.5}
    view = plugged_engine.submit([request_for(plugins=chosen)], "test").wait()
    assert view.net_calls == 4 + 2


# Dynamic thresholding


def test_the_threshold_is_its_formula_in_each_channel(plugin):
    x0, reference = tensors(2)
    x0 = x0 * 5
    ours = plugin.module.formulas.thresholded(x0, reference, 0.9).numpy()
    for picture in range(2):
        for channel in range(4):
            values = x0[picture, channel].numpy().astype(np.float64)
            other = reference[picture, channel].numpy().astype(np.float64)
            limit = np.abs(other - other.mean()).max()
            spread = max(np.quantile(np.abs(values - values.mean()), 0.9), limit)
            expected = values.mean() + np.clip(values - values.mean(), -spread, spread) / spread * limit
            np.testing.assert_allclose(ours[picture, channel], expected, rtol=0, atol=1e-4)
            assert np.abs(ours[picture, channel] - values.mean()).max() <= limit * 1.0001


def test_a_lower_percentile_presses_more_values_into_the_range(plugin):
    prediction = prediction_of(scale=8.0)
    reference = prediction.x0(prediction.uncond + 2.0 * (prediction.cond - prediction.uncond))
    for percentile in (60.0, 99.5):
        ours = guided(plugin, prediction, threshold_scale=2.0, threshold_percentile=percentile)
        x0 = plugin.module.formulas.thresholded(prediction.x0(prediction.guided), reference, percentile / 100)
        torch.testing.assert_close(prediction.x0(ours), x0, rtol=0, atol=1e-4)


def test_the_threshold_of_the_scale_itself_changes_nothing(plugin):
    prediction = prediction_of(scale=8.0)
    for percentile in (50.0, 99.5):
        ours = guided(plugin, prediction, threshold_scale=8.0, threshold_percentile=percentile)
        torch.testing.assert_close(ours, prediction.guided, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "flow_prediction", "sample"])
def test_the_threshold_means_the_same_whatever_the_net_predicts(plugin, kind):
    velocity, other = prediction_of("v_prediction"), prediction_of(kind)
    ours, same = (
        each.x0(guided(plugin, each, threshold_scale=2.0, threshold_percentile=90.0))
        for each in (velocity, other)
    )
    torch.testing.assert_close(ours, same, rtol=0, atol=1e-4)
    assert float((ours - velocity.x0(velocity.guided)).abs().max()) > 1


def test_without_guidance_the_threshold_takes_the_nets_own_range(plugin):
    cond = prediction_of().cond
    prediction = prediction_of(uncond=None, guided=cond)
    ours = guided(plugin, prediction, threshold_scale=3.0)
    torch.testing.assert_close(ours, prediction.cond, rtol=0, atol=1e-5)


# FreeU


def test_freeu_is_diffusers_own(draw, plainly, bare):
    bare.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    try:
        theirs = plainly()
    finally:
        bare.disable_freeu()
    assert np.abs(draw(**EFFECTS["freeu"]) - theirs).max() <= 1


def test_freeu_leaves_no_attribute_that_was_not_there(plugin, bare):
    """Two blocks as they come, and one that has been through diffusers' disable_freeu before."""
    blocks = bare.unet.up_blocks
    for block in blocks:
        for name in ("b1", "b2", "s1", "s2"):
            vars(block).pop(name, None)
    blocks[0].b1 = None
    before = [dict(vars(block)) for block in blocks]
    scales = {"b1": 1.3, "b2": 1.0, "s1": 1.0, "s2": 1.0}
    with plugin.module.freeu.enabled(bare.unet, scales):
        assert [block.b1 for block in blocks] == [1.3] * 3
    assert [dict(vars(block)) for block in blocks] == before
    del blocks[0].b1


# Perturbed-attention guidance


def test_a_perturbed_layer_is_diffusers_own(plugin, bare):
    layer = bare.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(2, 16, 256, generator=torch.Generator().manual_seed(0))
    perturbable = plugin.module.perturbed.Perturbable(layer.processor)
    with torch.no_grad():
        plain, perturbed = PAGIdentitySelfAttnProcessor2_0()(layer, torch.cat([hidden, hidden])).chunk(2)
        torch.testing.assert_close(perturbable(layer, hidden), plain)
        perturbable.perturbs = True
        torch.testing.assert_close(perturbable(layer, hidden), perturbed)
    assert float((plain - perturbed).abs().max()) > 0.01


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_perturbed_attention_guidance_is_diffusers_own(draw, plainly, bare, telling, scale):
    theirs = StableDiffusionPAGPipeline(
        **{**bare.components, "safety_checker": None},
        requires_safety_checker=False,
        pag_applied_layers=["mid"],
    )
    theirs.set_progress_bar_config(disable=True)
    ours = draw(pag=5.0, guidance_scale=scale)
    assert np.abs(ours - plainly(theirs, pag_scale=5.0, guidance_scale=scale)).max() <= 1
    assert np.abs(ours - draw(guidance_scale=scale)).max() > 3


def test_only_the_self_attention_in_the_middle_is_perturbed(plugin, bare):
    names = [name.removesuffix(".processor") for name in bare.unet.attn_processors]
    chosen = [name for name in names if plugin.module.perturbed.is_perturbed(name)]
    assert chosen == ["mid_block.attentions.0.transformer_blocks.0.attn1"]


def test_a_net_without_attention_in_its_middle_says_so(plugin):
    class Net:
        attn_processors = {}

    with pytest.raises(InvalidField, match="no self-attention"):
        guided(plugin, prediction_of(), Net(), pag=3.0)


def test_the_layers_are_as_before_also_after_an_error(plugin, bare):
    perturbable = plugin.module.perturbed.Perturbable(None)

    class Net:
        attn_processors = {"mid_block.attn1.processor": perturbable}

    def fails():
        assert perturbable.perturbs
        raise KeyError

    with pytest.raises(KeyError):
        guided(plugin, prediction_of(predict=fails), Net(), pag=3.0)
    assert not perturbable.perturbs
