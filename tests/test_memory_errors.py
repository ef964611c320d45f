"""Out of memory at every place: the job ends in a cheaper way or with advice, and the next one is right."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny
from tests.conftest import pixels, request_for
from webui.diffusion import devices
from webui.diffusion.tiers import Budgets, Relief, relief
from webui.engine import Engine
from webui.errors import OutOfMemory

MB = 1_000_000
ONE = Budgets(500 * MB)
TWO = Budgets(500 * MB, 500 * MB)  # the device and RAM, both of them this machine's RAM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for n, name in enumerate(("mine", "other")):
        tiny.folder("sd1", folder / name, seed=n)
    return folder


@pytest.fixture
def with_tiers(make_engine, folder, monkeypatch) -> Callable[..., Engine]:
    """An engine with these budgets, on the tiny model, which has made a picture."""

    def make(budgets: Budgets, **settings: object) -> Engine:
        monkeypatch.setattr(devices, "allowed", lambda *_: budgets)
        engine = make_engine(models_dir=[folder], model="mine", **settings)
        assert engine.submit([request_for(model="mine")], "start").wait().state == "done"
        return engine

    return make


def draw(engine: Engine, **changes: object) -> np.ndarray:
    view = engine.submit([request_for(model="mine", **changes)], "test").wait()
    assert view.state == "done", view.error
    return pixels(view.saved[0].path)


def part(engine: Engine, place: str) -> torch.nn.Module:
    model = engine.manager.resident
    return {"text": model.encoder.towers[0].text_encoder, "net": model.net, "vae": model.vae.decoder}[place]


@contextmanager
def failing(module: torch.nn.Module, times: float, after: int = 0) -> Iterator[list[str]]:
    """It runs out of memory so many times, after some calls that did not; gives the calls."""
    calls: list[str] = []

    def call(*_: object) -> None:
        failed = calls.count("failed")
        calls.append("failed" if len(calls) >= after and failed < times else "done")
        if calls[-1] == "failed":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = module.register_forward_pre_hook(call)
    try:
        yield calls
    finally:
        hook.remove()


@pytest.mark.parametrize("budgets", [ONE, TWO], ids=["one tier", "two tiers"])
@pytest.mark.parametrize(("place", "after"), [("text", 0), ("net", 0), ("net", 2), ("vae", 0)])
def test_out_of_memory_once_the_job_ends_in_a_cheaper_way(with_tiers, budgets, place, after):
    engine = with_tiers(budgets)
    before = draw(engine, prompt="an owl")
    draw(engine, prompt="something else")
    engine.submit([request_for(model="other")], "other").wait()
    with failing(part_of_mine(engine, place), 1, after) as calls:
        again = draw(engine, prompt="an owl on blue")
        plan = engine.manager.plan
    assert calls.count("failed") == 1
    assert plan.tiled == (place == "vae")
    assert plan.mode == ("model" if budgets.ram else "none")
    assert np.array_equal(again, draw(engine, prompt="an owl on blue"))  # pictures smaller than a tile
    assert np.array_equal(before, draw(engine, prompt="an owl"))
    assert engine.manager.plan.mode == "none"
    assert not engine.manager.plan.tiled


def part_of_mine(engine: Engine, place: str) -> torch.nn.Module:
    draw(engine)
    return part(engine, place)


def test_everything_else_leaves_the_device_for_the_second_try(with_tiers):
    engine = with_tiers(ONE)
    engine.submit([request_for(model="other")], "other").wait()
    net = part_of_mine(engine, "net")
    assert {part.models for part in engine.residency().parts} >= {("other",)}
    with failing(net, 1):
        draw(engine, prompt="a fox in the forest")
    assert {model for part in engine.residency().parts for model in part.models} == {"mine"}


@pytest.mark.parametrize("place", ["text", "net", "vae"])
def test_out_of_memory_always_the_job_fails_with_what_would_fit(with_tiers, place):
    engine = with_tiers(TWO)
    before = draw(engine, width=128, height=128)
    request = request_for(model="mine", prompt="a red owl", width=128, height=128)
    with failing(part(engine, place), float("inf")) as calls:
        view = engine.submit([request], "test").wait()
    assert view.state == "failed"
    assert isinstance(view.error, OutOfMemory)
    assert str(view.error).endswith("even with everything else taken from it. 64x64 should fit.")
    assert calls.count("failed") == 2
    assert np.array_equal(before, draw(engine, width=128, height=128))


def test_a_batch_is_advised_to_be_smaller(with_tiers):
    engine = with_tiers(ONE)
    with failing(part(engine, "net"), float("inf")):
        request = request_for(model="mine", num_images_per_prompt=4)
        view = engine.submit([request], "test").wait()
    assert "A batch size of 2 should fit." in str(view.error)


def test_out_of_memory_while_a_model_is_brought_to_the_device(with_tiers, monkeypatch):
    engine = with_tiers(TWO)
    before = draw(engine)
    engine.manager.release("mine")
    from diffusers import UNet2DConditionModel

    moves, to = [], UNet2DConditionModel.to

    def full_once(self, *arguments, **more):
        if arguments == ("cpu",):
            moves.append("")
            if len(moves) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return to(self, *arguments, **more)

    monkeypatch.setattr(UNet2DConditionModel, "to", full_once)
    assert np.array_equal(before, draw(engine))
    assert len(moves) > 1
    assert engine.manager.plan.mode == "model"


def test_what_the_failed_try_computed_is_freed_before_the_second(with_tiers):
    engine = with_tiers(ONE)
    net = part(engine, "net")
    seen: list[weakref.ref] = []
    alive: list[bool] = []

    def watch(_, inputs):
        alive.append(bool(seen) and seen[0]() is not None)
        if not seen:
            seen.append(weakref.ref(inputs[0]))
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = net.conv_out.register_forward_pre_hook(watch)
    try:
        draw(engine, prompt="a blue fox")
    finally:
        hook.remove()
    assert len(alive) == 5
    assert not any(alive)


def test_a_picture_decoded_in_tiles_is_not_taken_for_the_other(with_tiers):
    engine = with_tiers(ONE)
    request = request_for(model="mine", prompt="in the forest")
    with failing(part(engine, "vae"), 1):
        assert engine.submit([request], "test", reuse=True).wait().state == "done"
    assert engine.known([request], "test") == [False]
    engine.submit([request], "test", reuse=True).wait()
    assert engine.known([request], "test") == [True]


@pytest.mark.parametrize("mode", ["model", "group"])
def test_what_is_offloaded_makes_the_same_pictures_bit_for_bit(with_tiers, mode):
    expected = draw(with_tiers(ONE), width=128, height=96, seed=7)
    engine = with_tiers(TWO, offload=mode)
    assert engine.residency().offload == mode
    assert np.array_equal(draw(engine, width=128, height=96, seed=7), expected)


def test_the_ladder_of_relief():
    assert relief("net", "none", TWO) == Relief("model", True)
    assert relief("net", "model", TWO) == Relief("group", True)
    assert relief("text", "group", TWO) == Relief("group", True)
    assert relief(None, "none", TWO) == Relief("model", True)
    assert relief("vae", "none", TWO) == Relief("model", True, tiled=True)
    assert relief("vae", "none", ONE) == Relief("none", True, tiled=True)


def test_a_vae_that_overflows_in_half_precision_decodes_in_full_and_is_left_as_it_was(make_engine, folder):
    engine = make_engine(models_dir=[folder], model="mine", dtype="bfloat16")
    right = draw(engine)
    vae = engine.manager.resident.vae
    before = {name: weight.clone() for name, weight in vae.state_dict().items()}
    precisions: list[torch.dtype] = []

    def overflow(_, __, pixels):
        precisions.append(pixels.dtype)
        return pixels * float("inf") if pixels.dtype == torch.bfloat16 else pixels

    hook = vae.decoder.register_forward_hook(overflow)
    try:
        rescued = draw(engine, prompt="a fox")
    finally:
        hook.remove()
    assert precisions == [torch.bfloat16, torch.float32]
    assert np.abs(rescued.astype(int) - right).max() < 10
    assert all(torch.equal(before[name], weight) for name, weight in vae.state_dict().items())
    assert all(weight.dtype == torch.bfloat16 for weight in vae.parameters())
