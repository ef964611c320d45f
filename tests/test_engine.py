"""Jobs through the engine, on the embedded model: fairness, cancelling, errors, memory."""

import shutil
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import POCKET, ROOT, pixels, request_for
from webui.errors import InvalidField, NotFound, QueueFull, Unsupported
from webui.request import Delivery

LONG = {"num_inference_steps": 500, "width": 128, "height": 128}


def running(job):
    """Wait until the net has been called for this job."""
    return next(view for view in job.watch() if view.net_calls >= 2)


def test_the_same_request_gives_the_same_pixels_and_another_seed_does_not(engine):
    requests = [request_for(seed=5), request_for(seed=5), request_for(seed=6)]
    first, again, other = (pixels(s.path) for s in engine.submit(requests, "test").wait().saved)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_random_seed_is_drawn_when_the_job_is_submitted(engine):
    job = engine.submit([request_for(seed=-1), request_for(seed=-1)], "test")
    seeds = [request.seed for request in job.requests]
    assert min(seeds) >= 0
    assert seeds[0] != seeds[1]
    assert [saved.request.seed for saved in job.wait().saved] == seeds


@pytest.mark.parametrize("at", ["first call", "late call", "decode"])
def test_after_a_cancelled_job_the_next_picture_is_bit_identical(engine, at):
    (before,) = engine.submit([request_for(seed=9, scheduler="Euler a")], "test").wait().saved
    request = request_for(num_inference_steps=30) if at == "decode" else request_for(**LONG)
    job = engine.submit([request], "test")
    for view in job.watch():
        if {
            "first call": view.net_calls >= 1,
            "late call": view.net_calls >= 20,
            "decode": view.stage.startswith("Decoding"),
        }[at]:
            job.cancel()
            break
    assert job.wait().state == "cancelled"
    assert job.view.saved == ()
    (after,) = engine.submit([request_for(seed=9, scheduler="Euler a")], "test").wait().saved
    assert np.array_equal(pixels(before.path), pixels(after.path))


def test_cancelling_leaves_no_hook_on_the_resident_weights(engine):
    def hooks():
        model = engine.manager.resident
        parts = (model.net, model.vae, model.encoder.text_encoder)
        modules = [module for part in parts for module in part.modules()]
        return [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules]

    before = hooks()
    job = engine.submit([request_for(**LONG)], "test")
    running(job)
    assert hooks() != before
    engine.cancel(job.id, "test")
    job.wait()
    assert hooks() == before


def test_a_waiting_job_is_cancelled_at_once(engine):
    busy = engine.submit([request_for(**LONG)], "a")
    running(busy)
    waiting = engine.submit([request_for()], "b")
    engine.cancel(waiting.id, "b")
    assert waiting.view.state == "cancelled"
    assert not busy.view.ended
    engine.cancel(busy.id, "a")
    busy.wait()


def test_nobody_can_see_or_stop_another_persons_job(engine):
    job = engine.submit([request_for(**LONG)], "a")
    with pytest.raises(NotFound):
        engine.job(job.id, "b")
    with pytest.raises(NotFound):
        engine.cancel(job.id, "b")
    assert engine.latest("b") is None or engine.latest("b").owner == "b"
    engine.cancel(job.id, "a")
    job.wait()


def test_twenty_jobs_of_five_owners_interleave_fairly(engine):
    busy = engine.submit([request_for(**LONG)], "busy")
    running(busy)
    ended: list[str] = []
    lock = threading.Lock()

    def note(job):
        job.wait()
        with lock:
            ended.append(job.owner)

    owners = [owner for owner in "abcde" for _ in range(4)]  # each comes with all four at once
    jobs = [engine.submit([request_for(num_inference_steps=2)], owner) for owner in owners]
    assert sorted(job.view.place for job in jobs) == list(range(1, 21))
    threads = [threading.Thread(target=note, args=[job]) for job in jobs]
    for thread in threads:
        thread.start()
    engine.cancel(busy.id, "busy")
    for thread in threads:
        thread.join(60)
    started = sorted(jobs, key=lambda job: job.view.saved[0].id)
    rounds = [[job.owner for job in started[i : i + 5]] for i in range(0, 20, 5)]
    assert rounds == [list("abcde")] * 4
    assert len(ended) == 20


def test_a_reloaded_page_finds_its_own_newest_job(engine):
    done = engine.submit([request_for()], "reader")
    done.wait()
    assert engine.latest("reader") is done
    long = engine.submit([request_for(**LONG)], "reader")
    assert engine.latest("reader") is long
    assert engine.job(long.id, "reader") is long
    engine.cancel(long.id, "reader")
    long.wait()


def test_previews_change_as_the_picture_emerges(engine):
    request = request_for(num_inference_steps=12, width=128, height=128)
    job = engine.submit([request], "test", Delivery(preview_every=3))
    previews = {view.preview for view in job.watch() if view.preview}
    assert 2 <= len(previews) <= 4
    assert all(preview.startswith(b"\xff\xd8") for preview in previews)  # JPEG
    assert job.view.preview is None  # the finished picture takes its place


def test_watching_never_changes_the_picture(engine):
    seen = engine.submit([request_for()], "test", Delivery(preview_every=1)).wait().saved[0]
    unseen = engine.submit([request_for()], "test", Delivery(preview_every=0)).wait().saved[0]
    assert np.array_equal(pixels(seen.path), pixels(unseen.path))


def test_progress_counts_real_calls_of_the_net(engine):
    job = engine.submit([request_for(scheduler="Heun", num_inference_steps=5)] * 2, "test")
    calls = [(view.net_calls, view.net_calls_total) for view in job.watch()]
    assert calls[-1] == (18, 18)  # 2n - 1 each
    assert [c for c, _ in calls] == sorted(c for c, _ in calls)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": "Nonsense"}, "Scheduler"),
        ({"model": "nowhere"}, "Model: there is no model named 'nowhere'"),
        ({"model": "../pocket-model"}, "Model: there is no model named"),
        ({"scheduler": "DDIM", "sigma_schedule": "Karras"}, "Karras"),
        ({"scheduler": "LCM", "num_inference_steps": 60}, "Steps"),
        ({"prompt": "<lora:thing:1> a fox"}, "Prompt: there is no LoRA named 'thing'"),
        ({"negative_prompt": "(red:1000)"}, "Negative prompt: a weight of 1000"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name_before_it_waits(engine, changes, message):
    with pytest.raises(InvalidField, match=message):
        engine.submit([request_for(**changes)], "test")


def test_an_impossible_combination_is_its_own_kind_of_error(engine):
    with pytest.raises(Unsupported):
        engine.submit([request_for(scheduler="DDIM", sigma_schedule="Karras")], "test")


def test_a_clip_skip_beyond_the_encoder_fails_the_job_with_the_fields_name(engine):
    view = engine.submit([request_for(clip_skip=12)], "test").wait()
    assert view.state == "failed"
    assert "Clip skip: must be 1 to 3" in str(view.error)
    assert engine.submit([request_for()], "test").wait().state == "done"


def test_an_error_inside_a_run_fails_that_job_and_names_no_path(engine, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("/home/someone/secret is broken")

    with monkeypatch.context() as patch:
        patch.setattr(engine.manager.resident.vae.decoder, "forward", broken)
        view = engine.submit([request_for()], "test").wait()
    assert view.state == "failed"
    assert "RuntimeError" in str(view.error)
    assert "/home" not in str(view.error)
    assert engine.submit([request_for()], "test").wait().state == "done"


def test_a_model_that_yields_nan_is_named_not_saved(engine):
    weight = engine.manager.resident.net.conv_out.weight
    kept = weight.clone()
    weight.fill_(float("nan"))
    try:
        view = engine.submit([request_for()], "test").wait()
    finally:
        weight.copy_(kept)
    assert view.state == "failed"
    assert "not numbers" in str(view.error)
    assert view.saved == ()
    assert engine.submit([request_for()], "test").wait().state == "done"


def test_running_out_of_memory_is_said_plainly(engine, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.manager.resident.vae.decoder, "forward", full)
        view = engine.submit([request_for()], "test").wait()
    assert "ran out of memory" in str(view.error)


def test_a_flood_by_one_person_leaves_room_for_others(make_engine):
    engine = make_engine(queue_size=6, queue_per_owner=3)
    busy = engine.submit([request_for(**LONG)], "busy")
    running(busy)
    for _ in range(3):
        engine.submit([request_for(num_inference_steps=1)], "flood")
    with pytest.raises(QueueFull):
        engine.submit([request_for()], "flood")
    calm = engine.submit([request_for()], "calm")
    assert calm.view.place == 2
    engine.cancel(busy.id, "busy")
    assert calm.wait().state == "done"


def test_jobs_wait_for_an_engine_that_is_still_starting(make_engine):
    engine = make_engine()
    job = engine.submit([request_for()], "early")
    assert job.wait().state == "done"
    assert engine.status.ready


def test_closing_ends_what_runs_and_what_waits(make_engine):
    engine = make_engine()
    jobs = [engine.submit([request_for(**LONG)], owner) for owner in "ab"]
    running(jobs[0])
    engine.close()
    assert [job.view.state for job in jobs] == ["cancelled", "cancelled"]


def test_a_changed_checkpoint_is_loaded_again_and_the_old_weights_are_freed(make_engine, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(POCKET, models / "mine")
    engine = make_engine(models_dir=[models], model="mine")
    (before,) = engine.submit([request_for()], "test").wait().saved
    assert before.request.model == "mine"
    old = weakref.ref(engine.manager.resident.net)
    _nudge(models / "mine" / "unet" / "diffusion_pytorch_model.safetensors")
    (after,) = engine.submit([request_for()], "test").wait().saved
    assert old() is None
    assert not np.array_equal(pixels(before.path), pixels(after.path))


def test_switching_to_another_model_frees_the_one_before_where_there_is_no_room_for_both(
    make_engine, tmp_path
):
    shutil.copytree(POCKET, tmp_path / "other")
    _nudge(tmp_path / "other" / "unet" / "diffusion_pytorch_model.safetensors")
    engine = make_engine(models_dir=[ROOT / "models", tmp_path], ram_budget=0.1)
    (first,) = engine.submit([request_for()], "test").wait().saved
    old = weakref.ref(engine.manager.resident.net)
    (second,) = engine.submit([request_for(model="other")], "test").wait().saved
    assert old() is None
    assert engine.manager.resident.name == "other"
    assert not np.array_equal(pixels(first.path), pixels(second.path))
    (again,) = engine.submit([request_for()], "test").wait().saved
    assert np.array_equal(pixels(first.path), pixels(again.path))


def test_release_frees_the_weights_and_the_next_job_loads_them_again(make_engine):
    engine = make_engine()
    engine.submit([request_for()], "test").wait()
    old = weakref.ref(engine.manager.resident.net)
    engine.manager.release()
    assert old() is None
    assert engine.submit([request_for()], "test").wait().state == "done"


def test_two_engines_of_one_process_may_start_at_once(make_engine):
    engines = [make_engine() for _ in range(3)]
    jobs = [engine.submit([request_for()], "test") for engine in engines]
    first, *others = (pixels(job.wait().saved[0].path) for job in jobs)
    assert all(np.array_equal(first, other) for other in others)


def test_the_token_counter_waits_for_the_model_without_blocking(make_engine):
    engine = make_engine()
    assert engine.count_tokens("a fox", "") in (None, (2, 75))
    engine.submit([request_for()], "test").wait()
    assert engine.count_tokens("a fox", "pocket-model") == (2, 75)
    assert engine.count_tokens("a fox", "another-model") is None


def _nudge(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    weights["conv_out.bias"] += 0.1
    save_file(weights, path)
