"""Never twice: a picture is known by what made it, and taken from the library when it is asked for again."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import POCKET, pixels, request_for
from webui.diffusion import checkpoints, identity
from webui.diffusion.devices import Machine, choose
from webui.engine import Engine
from webui.library import Library
from webui.request import Delivery, GenerationRequest
from webui.units import STEMS

DIGEST, OTHER = "a" * 64, "b" * 64
# Another value of every field, and a request on which it has an effect.
CHANGES = {
    "prompt": "an owl",
    "negative_prompt": "red",
    "scheduler": "Euler",
    "sigma_schedule": "Karras",
    "num_inference_steps": 5,
    "guidance_scale": 4.5,
    "eta": 0.5,
    "seed": 2,
    "variation_seed": 7,
    "variation_strength": 0.3,
    "width": 72,
    "height": 72,
    "clip_skip": 2,
    "hires_scale": 1.5,
    "hires_upscaler": "Lanczos",
    "hires_steps": 9,
    "hires_strength": 0.6,
    "image": OTHER,
    "strength": 0.5,
    "resize_mode": "Stretch",
    "color_correction": True,
    "extend_left": 8,
    "extend_top": 8,
    "extend_right": 8,
    "extend_bottom": 8,
    "mask_image": OTHER,
    "mask_inverted": True,
    "mask_grow": 3,
    "mask_blur": 1.0,
    "masked_content": "Fill",
    "inpaint_area": "Only masked",
    "masked_padding": 8,
    "soft_inpainting": True,
    "reference_image": OTHER,
    "reference_scale": 1.5,
    **{
        f"{stem}_{name}": value
        for stem in STEMS
        for name, value in {
            "image": OTHER,
            "preprocessor": "Canny",
            "scale": 0.5,
            "start": 0.25,
            "end": 0.75,
        }.items()
    },
    "plugins": {"guidance.rescale": 0.7},
    "refiner": "another",
    "refiner_switch": 0.5,
}
IDLE = {
    "model",
    "reference_model",
    "vae",
    *(f"{stem}_model" for stem in STEMS),
    "num_images_per_prompt",
    "template",
    "negative_template",
    "prepared",
}


def base_for(field: str) -> GenerationRequest:
    if field.startswith("hires_"):
        return request_for(hires_scale=2.0)
    if field == "eta":
        return request_for(scheduler="DDIM")
    if field == "refiner_switch":
        return request_for(refiner="another")
    if field.startswith("control"):
        stem = field.partition("_")[0]
        return request_for(**{f"{stem}_model": "edges", f"{stem}_image": DIGEST})
    if field.startswith("reference"):
        return request_for(reference_model="ip-adapter", reference_image=DIGEST)
    if field == "variation_seed":
        return request_for(variation_seed=3, variation_strength=0.5)
    if field == "masked_padding":
        return request_for(image=DIGEST, mask_image=DIGEST, inpaint_area="Only masked")
    if field in ("image", "strength", "resize_mode", "color_correction"):
        return request_for(image=DIGEST)
    if field.startswith(("mask", "extend", "inpaint", "soft")):
        return request_for(image=DIGEST, mask_image=DIGEST)
    return request_for()


@pytest.fixture(scope="module")
def key():
    """The key of a request on the embedded model."""
    checkpoint = checkpoints.find([POCKET.parent])["pocket-model"]
    device = choose(Machine(), "cpu", "float32", "sdpa")

    def key(request, model_hash="0" * 64, device=device):
        return identity.key(request, model_hash, checkpoint.scheduler_config, device)

    return key


@pytest.mark.parametrize("field", sorted(set(GenerationRequest.model_fields) - IDLE))
def test_every_field_that_changes_pixels_changes_the_key(key, field):
    base = base_for(field)
    assert key(base) != key(base.replace(**{field: CHANGES[field]}))
    assert key(base) == key(base.replace())


def test_how_a_controls_picture_is_placed_is_part_of_the_key(key):
    base = base_for("control_image")
    assert key(base) != key(base.replace(resize_mode="Stretch"))


def test_what_has_no_effect_is_no_part_of_the_key(key):
    base = request_for()
    for idle in (
        "hires_steps",
        "hires_upscaler",
        "strength",
        "mask_blur",
        "soft_inpainting",
        "variation_seed",
        "refiner_switch",
        "reference_scale",
        "control_scale",
    ):
        assert key(base) == key(base.replace(**{idle: CHANGES[idle]})), idle
    assert key(base) == key(base.replace(model="the same weights under another name"))


def test_weights_and_precision_are_part_of_the_key(key):
    base = request_for()
    assert key(base) != key(base, model_hash="1" * 64)
    assert key(base) != key(base, device=choose(Machine(), "cpu", "bfloat16", "sdpa"))


def test_a_batch_has_no_key(key):
    with pytest.raises(ValueError, match="one picture"):
        key(request_for(num_images_per_prompt=2))


@pytest.fixture
def counted(engine):
    """Calls of the resident nets, by name."""
    calls = {"unet": 0, "text_encoder": 0, "vae": 0}
    model = engine.manager.resident

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    hooks = [
        model.net.register_forward_pre_hook(count("unet")),
        model.encoder.text_encoder.register_forward_pre_hook(count("text_encoder")),
        model.vae.encoder.register_forward_pre_hook(count("vae")),
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def reused(engine, requests, owner="cells", **options):
    view = engine.submit(requests, owner, persevere=True, reuse=True, **options).wait()
    assert view.state == "done", view.error
    return view


def grid(**changes):
    return [
        request_for(prompt="a grid", scheduler=scheduler, guidance_scale=scale, seed=11, **changes)
        for scheduler in ("Euler", "Heun", "DPM++ 2M")
        for scale in (1.0, 4.0, 9.0)
    ]


def test_a_grid_is_computed_once(engine, counted):
    first = reused(engine, grid())
    shared = 3  # of each scheduler, the first call of the two guided cells
    assert counted["unet"] == 3 * (4 + 7 + 4) - shared
    assert counted["text_encoder"] <= 2  # the prompt, and the empty one unless it was known
    assert (first.reused, first.net_calls, first.net_calls_total) == (0, 42, 42)
    second = reused(engine, grid())
    assert counted["unet"] == 42
    assert (second.reused, second.net_calls, second.net_calls_total) == (9, 0, 0)
    assert [picture.path for picture in second.saved] == [picture.path for picture in first.saved]
    assert [turn for turn, _ in second.results] == list(range(9))


def test_one_more_value_computes_only_its_line(engine, counted):
    reused(engine, grid())
    before = counted["unet"]
    more = [request.replace(guidance_scale=6.0) for request in grid()[::3]]
    view = reused(engine, [*grid(), *more])
    assert (view.reused, counted["unet"] - before) == (9, 3 + 6 + 3)  # their first call is known too


def test_a_cell_equals_its_single_run_bit_for_bit(engine):
    cells = reused(engine, grid()).saved
    for cell, request in zip(cells, grid(), strict=True):
        (single,) = engine.submit([request], "someone").wait().saved
        assert np.array_equal(pixels(cell.path), pixels(single.path))


def test_a_picture_made_singly_is_known_to_a_grid(engine, counted):
    request = request_for(seed=808)
    engine.submit([request], "cells").wait()
    before = counted["unet"]
    assert engine.known([request, request.replace(seed=809)], "cells") == [True, False]
    assert reused(engine, [request]).reused == 1
    assert counted["unet"] == before


def test_two_people_who_ask_for_the_same_compute_it_once(engine, counted):
    request = request_for(seed=810)
    (mine,) = reused(engine, [request], "Ada").saved
    before = counted["unet"]
    (theirs,) = reused(engine, [request], "Bob").saved
    assert counted["unet"] == before
    assert theirs.path != mine.path
    assert theirs.path.read_bytes() == mine.path.read_bytes()
    assert theirs.id in [picture.id for picture in engine.library.recent("Bob", 5)]


def test_a_picture_that_was_deleted_or_changed_is_computed_again(engine):
    request = request_for(seed=811)
    (saved,) = reused(engine, [request]).saved
    right = pixels(saved.path)
    Image.new("RGB", (64, 64)).save(saved.path)
    (again,) = reused(engine, [request]).saved
    assert again.path != saved.path
    assert np.array_equal(pixels(again.path), right)
    again.path.unlink()
    assert engine.known([request], "cells") == [True]  # the changed file still has its name
    saved.path.unlink()
    assert engine.known([request], "cells") == [False]
    assert reused(engine, [request]).reused == 0


def test_a_lossy_picture_is_no_cell(engine):
    request = request_for(seed=812)
    engine.submit([request], "cells", Delivery(image_format="jpeg")).wait()
    assert engine.known([request], "cells") == [False]
    (saved,) = reused(engine, [request], delivery=Delivery(image_format="jpeg")).saved
    assert saved.path.suffix == ".png"


def test_what_failed_or_was_cancelled_is_not_kept(engine):
    request = request_for(seed=813, num_inference_steps=30)
    job = engine.submit([request], "cells", reuse=True)
    for view in job.watch():
        if view.net_calls > 3:
            job.cancel()
    assert job.view.state == "cancelled"
    assert engine.known([request], "cells") == [False]


def test_source_latents_are_computed_once_for_many_cells(engine, counted):
    noise = np.random.default_rng(4).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    digest = engine.sources.keep(Image.fromarray(noise), "cells")
    cells = [request_for(image=digest, strength=s, seed=k) for s in (0.5, 0.75, 1.0) for k in (1, 2)]
    drawn = engine.manager.resident.noises.computed
    reused(engine, cells)
    assert counted["vae"] == 1
    noises = engine.manager.resident.noises.computed - drawn
    assert noises == 2  # one for each seed
    other = engine.sources.keep(Image.fromarray(noise[::-1].copy()), "cells")
    turned = reused(engine, [cells[0].replace(image=other)]).saved[0]
    assert counted["vae"] == 2
    assert not np.array_equal(pixels(turned.path), pixels(reused(engine, cells[:1]).saved[0].path))


def test_a_restarted_server_still_knows(make_engine):
    first = make_engine()
    saved = reused(first, grid()).saved
    first.close()
    settings = first.settings
    second = Engine(settings, Library(settings.data_dir, settings.filename_pattern))
    second.start()
    try:
        view = reused(second, grid())
        assert (view.reused, view.net_calls) == (9, 0)
        assert [picture.path for picture in view.saved] == [picture.path for picture in saved]
    finally:
        second.close()


def test_a_replaced_model_file_makes_everything_anew(make_engine, tmp_path):
    shutil.copytree(POCKET, tmp_path / "mine")
    engine = make_engine(models_dir=[tmp_path])
    cells = grid(model="mine")[:2]
    before = reused(engine, cells).saved
    (file,) = (tmp_path / "mine/unet").glob("*.safetensors")
    weights = load_file(file)
    weights["conv_out.bias"] = weights["conv_out.bias"] + torch.tensor(0.05, dtype=torch.float16)
    save_file(weights, file)
    assert engine.known(cells, "cells") == [False, False]
    view = reused(engine, cells)
    assert view.reused == 0
    assert not np.array_equal(pixels(view.saved[0].path), pixels(before[0].path))


def prompts_and_scales(**changes):
    """Cells that may share a batch: they differ in prompt, seed and guidance scale."""
    cells = [("a fox", 4.0, 1), ("an owl", 4.0, 1), ("an owl", 9.0, 2), ("a red house", 2.5, 3)]
    return [
        request_for(prompt=prompt, guidance_scale=scale, seed=900 + seed, **changes)
        for prompt, scale, seed in cells
    ]


@pytest.fixture(scope="module")
def together(make_engine):
    """An engine whose grids share batches, on a CPU, where the default would be exact."""
    engine = make_engine(cells="together")
    engine.submit([request_for()], "cells").wait()  # so that a single picture has been timed
    return engine


@pytest.mark.parametrize("scheduler", ["Euler a", "DPM++ SDE", "Heun", "DPM++ 2M"])
def test_cells_in_one_batch_equal_single_runs_to_the_last_bits(together, engine, scheduler):
    calls, latents = [0], []
    model = together.manager.resident
    hooks = [
        model.net.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1)),
        model.vae.decoder.register_forward_pre_hook(lambda _, inputs: latents.extend(inputs[0])),
        engine.manager.resident.vae.decoder.register_forward_pre_hook(
            lambda _, inputs: latents.extend(inputs[0])
        ),
    ]
    try:
        requests = prompts_and_scales(scheduler=scheduler)
        together._executor.speeds._alone.clear()
        batch = reused(together, requests)
        single = engine.submit(requests, "single").wait()
    finally:
        for hook in hooks:
            hook.remove()
    assert calls[0] == (7 if scheduler in ("Heun", "DPM++ SDE") else 4)
    for ours, alone in zip(latents[:4], latents[4:], strict=True):
        assert torch.linalg.vector_norm(ours - alone) < 1e-5 * torch.linalg.vector_norm(alone)
    for ours, alone in zip(batch.saved, single.saved, strict=True):
        assert ours.request == alone.request
        assert np.abs(pixels(ours.path).astype(int) - pixels(alone.path)).max() <= 1


def test_what_a_batch_made_is_known_but_never_taken_for_exact(together, make_engine):
    requests = prompts_and_scales(width=72)
    together.submit([request_for(width=72)], "cells").wait()
    reused(together, requests)
    assert together.known(requests, "cells") == [True] * 4
    exact = make_engine(cells="exact", data_dir=together.settings.data_dir)
    exact.submit([request_for()], "cells").wait()
    assert exact.known(requests, "cells") == [False] * 4


def test_a_grid_may_choose_to_be_made_together_where_the_server_is_exact(make_engine):
    exact = make_engine(cells="exact")
    exact.submit([request_for(width=72)], "cells").wait()
    calls, requests = [0], prompts_and_scales(width=72)
    hook = exact.manager.resident.net.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    reused(exact, requests, delivery=Delivery(cells="together"))
    assert calls[0] == 4
    known = {cells: exact.known(requests, "cells", cells) for cells in ("auto", "exact", "together")}
    assert known == {"auto": [False] * 4, "exact": [False] * 4, "together": [True] * 4}
    assert reused(exact, requests, delivery=Delivery(cells="together")).reused == 4
    assert reused(exact, requests).reused == 0
    assert calls[0] > 4
    hook.remove()


def test_cells_that_are_not_alike_stay_alone(together):
    requests = [
        *prompts_and_scales(height=72)[:1],
        request_for(height=72, guidance_scale=1.0, seed=5),
        request_for(height=72, scheduler="Euler", seed=5),
        request_for(height=72, prompt="a cat AND a dog", seed=5),
    ]
    together.submit([request_for(height=72)], "cells").wait()
    calls = [0]
    hook = together.manager.resident.net.register_forward_pre_hook(
        lambda *_: calls.__setitem__(0, calls[0] + 1)
    )
    try:
        reused(together, requests)
    finally:
        hook.remove()
    assert calls[0] == 16


def test_a_batch_that_is_not_faster_is_not_tried_again(together):
    shape = ("pocket-model", 80, 64, True)
    together.submit([request_for(width=80)], "cells").wait()
    together._executor.speeds._known["pocket-model", 80 * 64] = 1e-9  # nothing is faster than that
    reused(together, prompts_and_scales(width=80))
    assert shape in together._executor.speeds._alone


def test_a_batch_that_fails_is_made_one_by_one(together, monkeypatch):
    from webui.diffusion import generate
    from webui.errors import OutOfMemory

    def no_room(*_):
        raise OutOfMemory("The device ran out of memory.")

    monkeypatch.setattr(generate, "together", no_room)
    together.submit([request_for(width=88)], "cells").wait()
    view = reused(together, prompts_and_scales(width=88))
    assert len(view.saved) == 4
    assert not view.failures


def test_a_cell_of_one_step_whose_only_call_was_made_for_another_is_no_failure(engine):
    cells = [request_for(num_inference_steps=1, guidance_scale=scale, seed=820) for scale in (2.0, 5.0, 7.0)]
    view = reused(engine, cells)
    assert (len(view.saved), view.failures) == (3, ())
