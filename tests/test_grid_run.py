"""A planned grid through the engine: as many calls as the plan says, and no failure touches another cell."""

import threading

import numpy as np
import pytest

from tests.conftest import pixels, request_for
from webui.diffusion import schedulers
from webui.errors import StorageError
from webui.grid.axes import Known
from webui.grid.plan import AxisSpec, Grid, Plan, plan

SCHEDULERS, SCALES = ("DPM++ 2M", "Euler", "DDIM"), (1.0, 4.0, 9.0)


def planned(engine, **changes: object) -> Plan:
    """3 schedulers x 3 CFG scales of a new prompt."""
    known = Known(tuple(engine.models()), tuple(engine.schedulers()))
    axes = AxisSpec("scheduler", ", ".join(SCHEDULERS)), AxisSpec("guidance_scale", "1, 4, 9")
    grid = Grid(request_for(**{"num_inference_steps": 5, **changes}), *axes)
    return plan(grid, known, lambda request: engine.check(request, "grid"))


def run(engine, plan: Plan, **options: object):
    requests = [cell.request for cell in plan.cells]
    return engine.submit(requests, "grid", persevere=True, reuse=True, **options)


@pytest.fixture
def calls(engine):
    """Calls of the resident nets, by name."""
    counts = {"unet": 0, "text_encoder": 0}
    model = engine.manager.resident
    nets = {"unet": model.net, "text_encoder": model.encoder.text_encoder}

    def count(name):
        counts[name] += 1

    hooks = [net.register_forward_pre_hook(lambda *_, name=name: count(name)) for name, net in nets.items()]
    yield counts
    for hook in hooks:
        hook.remove()


def test_the_nets_are_called_exactly_as_often_as_the_plan_says(engine, calls):
    grid = planned(engine, prompt="a pineapple", negative_prompt="a pear")
    view = run(engine, grid).wait()
    first_calls_shared = 3  # each scheduler's CFG 4 and 9 begin with the same call
    assert grid.net_calls == 9 * 5 - first_calls_shared
    assert calls == {"unet": grid.net_calls, "text_encoder": 2}  # the prompt, and the negative prompt
    assert view.net_calls == view.net_calls_total == grid.net_calls
    again = run(engine, grid).wait()
    assert (again.reused, calls["unet"]) == (9, grid.net_calls)


def test_each_cell_is_the_bare_pipelines_picture(engine, bare, monkeypatch):
    import diffusers

    kinds = {"DPM++ 2M": "DPMSolverMultistepScheduler", "Euler": "EulerDiscreteScheduler"}
    grid = planned(engine, prompt="a tulip")
    results = dict(run(engine, grid).wait().results)
    config = bare.scheduler.config
    for turn, cell in enumerate(grid.cells):
        request = cell.request
        kind = getattr(diffusers, kinds.get(request.scheduler, "DDIMScheduler"))
        monkeypatch.setattr(bare, "scheduler", kind.from_config(config))
        plain = bare(
            "a tulip",
            num_inference_steps=5,
            guidance_scale=request.guidance_scale,
            width=64,
            height=64,
            generator=_generator(request.seed),
        ).images[0]
        assert np.array_equal(pixels(results[turn].path), pixels(plain)), request


def _generator(seed):
    import torch

    return torch.Generator("cpu").manual_seed(seed)


def test_a_scheduler_that_raises_in_the_middle_costs_its_own_cells_only(engine, monkeypatch):
    grid = planned(engine, prompt="a cello")
    build = schedulers.build

    def breaking(request, *rest):
        scheduler = build(request, *rest)
        if request.scheduler == "Euler" and request.guidance_scale == 4:
            step, count = scheduler.step, iter(range(99))

            def step_or_raise(*arguments, **options):
                if next(count) == 2:
                    raise ZeroDivisionError("in the third step")
                return step(*arguments, **options)

            scheduler.step = step_or_raise
        return scheduler

    with monkeypatch.context() as patch:
        patch.setattr(schedulers, "build", breaking)
        view = run(engine, grid).wait()
    (failure,) = view.failures
    request = grid.cells[failure.turn].request
    assert (request.scheduler, request.guidance_scale) == ("Euler", 4)
    assert "ZeroDivisionError" in str(failure.error)
    assert (view.state, len(view.saved)) == ("done", 8)
    assert engine.known([request], "grid") == [False]
    again = run(engine, grid).wait()
    assert (again.reused, len(again.saved), again.failures) == (8, 9, ())


def test_a_cell_is_saved_while_the_next_one_is_made(engine, monkeypatch):
    grid = planned(engine, prompt="a drum")
    save, net_called, overlaps = engine.library.save, threading.Event(), []
    hook = engine.manager.resident.net.register_forward_pre_hook(lambda *_: net_called.set())

    def save_during_a_call(*arguments):
        if len(overlaps) < 2:  # nothing is made beside the third and last
            net_called.clear()
            overlaps.append(net_called.wait(20))
        return save(*arguments)

    monkeypatch.setattr(engine.library, "save", save_during_a_call)
    requests = [cell.request for cell in grid.cells[:3]]
    engine.submit(requests, "grid", persevere=True, reuse=True).wait()
    hook.remove()
    assert overlaps == [True, True]


def test_a_cell_asked_for_again_while_it_is_saved_is_computed_once(engine, calls, monkeypatch):
    request = request_for(prompt="a harp", seed=77)
    save, known, looked = engine.library.save, engine.library.known, threading.Event()

    def look(*arguments):
        found = known(*arguments)
        looked.set()
        return found

    def save_late(*arguments):
        looked.clear()
        looked.wait(0.5)  # nobody may look before it is saved
        return save(*arguments)

    monkeypatch.setattr(engine.library, "known", look)
    monkeypatch.setattr(engine.library, "save", save_late)
    view = engine.submit([request, request], "grid", persevere=True, reuse=True).wait()
    assert (view.reused, calls["unet"], len(view.saved)) == (1, 4, 2)


@pytest.mark.parametrize("broken", [0, 4, 8])
def test_a_picture_that_cannot_be_saved_fails_its_own_cell_only(engine, monkeypatch, broken):
    grid = planned(engine, prompt=f"a flute number {broken}")
    save, lost = engine.library.save, grid.cells[broken].request
    lost = lost.replace(model=engine.models()[0].name)

    def save_or_raise(picture, *rest):
        if picture.request == lost:
            raise StorageError("The disk is full.")
        return save(picture, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(engine.library, "save", save_or_raise)
        view = run(engine, grid).wait()
    assert [(failure.turn, str(failure.error)) for failure in view.failures] == [
        (broken, "The disk is full.")
    ]
    assert (view.state, len(view.saved)) == ("done", 8)
    assert run(engine, grid).wait().reused == 8


def test_what_is_being_saved_when_a_grid_is_stopped_is_kept_and_shown(engine, monkeypatch):
    grid = planned(engine, prompt="a banjo")
    save, stopped = engine.library.save, threading.Event()

    def save_once_stopped(*arguments):
        assert stopped.wait(20)
        return save(*arguments)

    monkeypatch.setattr(engine.library, "save", save_once_stopped)
    job = run(engine, grid)
    for view in job.watch():
        if view.turn == 1 and view.net_calls:
            engine.cancel(job.id, "grid")
            stopped.set()
    view = job.view
    assert view.state == "cancelled"
    assert len(view.saved) == 1
    assert engine.known([grid.cells[0].request], "grid") == [True]


def test_so_it_is_when_the_grid_waits_for_its_next_turn(engine, monkeypatch):
    grid = planned(engine, prompt="a saxophone")
    save, released = engine.library.save, threading.Event()

    def save_once_released(*arguments):
        assert released.wait(20)
        return save(*arguments)

    monkeypatch.setattr(engine.library, "save", save_once_released)
    job = run(engine, grid)
    other = engine.submit([request_for(num_inference_steps=300)], "another")
    for view in job.watch():
        if view.state == "queued" and view.turn == 1:
            break
    cancelling = threading.Thread(target=engine.cancel, args=(job.id, "grid"))
    cancelling.start()
    cancelling.join(0.2)
    assert not job.view.ended  # its picture is on the way
    released.set()
    view = job.wait()
    engine.cancel(other.id, "another")
    other.wait()
    assert (view.state, len(view.saved)) == ("cancelled", 1)


def test_a_cell_that_is_not_a_number_is_not_kept(engine):
    grid = planned(engine, prompt="a trombone")
    spoiled = engine.manager.resident.net.conv_out.register_forward_hook(
        lambda *both: both[-1] * float("nan")
    )
    try:
        view = run(engine, grid).wait()
    finally:
        spoiled.remove()
    assert (view.state, len(view.failures), view.saved) == ("failed", 9, ())
    assert "not numbers" in str(view.failures[0].error)
    assert not any(engine.known([cell.request for cell in grid.cells], "grid"))
    again = run(engine, grid).wait()
    assert (again.reused, len(again.saved)) == (0, 9)
