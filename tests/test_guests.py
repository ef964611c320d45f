"""What a job adds to its model is kept, moved, counted and given back as the model's own parts are."""

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import parts, test_references, tiny
from tests.conftest import pixels, request_for
from tests.test_controls import control_net, picture
from tests.test_memory_errors import failing
from webui.diffusion import controls, devices, loading, references, taesd, tiers, vaes
from webui.diffusion.tiers import Budgets, Refused
from webui.engine import Engine
from webui.errors import NotAllowed, OutOfMemory
from webui.jobs import JobView
from webui.request import Delivery

MB = 1_000_000
ONE = Budgets(500 * MB)
TWO = Budgets(500 * MB, 500 * MB)  # the device and RAM, both of them this machine's RAM
KINDS = {  # of guests, as they are shown
    "VAE flat",
    "ControlNet edges",
    "IP-Adapter ip-sd1",
    "encoder of pictures image_encoder",
    "preview decoder taesd",
}
NAMES = {name.split()[-1] for name in KINDS}


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """Collecting garbage does not look through all of torch, as in a server that has just started."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one family with a refiner among them, and one of each guest; of VAEs two."""
    at = test_references.stock(tmp_path_factory.mktemp("models"))
    for seed, name in ((2, "flat"), (3, "other")):
        file = tiny.folder("sd1", at.parent / f"made-{seed}", seed=seed) / "vae"
        (at / "VAE").mkdir(exist_ok=True)
        shutil.copy(file / "diffusion_pytorch_model.safetensors", at / "VAE" / f"{name}.safetensors")
    tiny.folder("sd1", at / "second", seed=4)
    tiny.folder("sd1", at / "wide", seed=5, block_out_channels=(48, 96))
    nearly(at / "sd1", at / "nearly")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(at / "sd1", safety_checker=None)
    parts.lora(pipe, at / "ink.safetensors", seed=6)
    control_net(diffusers.UNet2DConditionModel.from_pretrained(at / "sd1/unet"), at / "ControlNet/edges")
    torch.manual_seed(1)
    sides = (8,) * 4
    decoder = diffusers.AutoencoderTiny(encoder_block_out_channels=sides, decoder_block_out_channels=sides)
    decoder.save_pretrained(at / "taesd")
    return at


def nearly(model: Path, at: Path) -> None:
    """A copy whose net is another one, but makes the same pictures."""
    shutil.copytree(model, at)
    (file,) = (at / "unet").glob("*.safetensors")
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    weights["conv_out.bias"] += 1e-6
    save_file(weights, file, {"format": "pt"})


@pytest.fixture(scope="module")
def studio(make_engine, folder) -> Callable[..., Engine]:
    """An engine with these budgets that has nothing but its model in memory, which has made a picture."""
    engines: dict[tuple[object, ...], Engine] = {}

    def make(budgets: Budgets, offload: str = "auto") -> Engine:
        key = budgets, offload
        if key not in engines:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(devices, "allowed", lambda *_: budgets)
                engines[key] = make_engine(models_dir=[folder], model="sd1", offload=offload)
                engines[key].submit([request_for(model="sd1")], "start").wait()
        engine = engines[key]
        engine.release()
        engine.manager._store.budgets = budgets
        view = engine.submit([request_for(model="sd1")], "start", Delivery(preview_every=0)).wait()
        assert view.state == "done"
        return engine

    return make


def job(engine: Engine, **changes: object) -> JobView:
    delivery = Delivery(preview_decoder="TAESD", preview_every=100)
    own = {name: engine.sources.keep(each, "me") for name, each in changes.items() if name.endswith("image")}
    return engine.submit([request_for(**{"model": "sd1", **changes, **own})], "me", delivery).wait()


def draw(engine: Engine, **changes: object) -> np.ndarray:
    view = job(engine, **changes)
    assert view.error is None, view.error
    return pixels(view.saved[0].path)


ALL = {
    "vae": "flat",
    "control_model": "edges",
    "control_image": picture(1),
    "reference_model": "ip-sd1",
    "reference_image": picture(2),
}


def shown(engine: Engine) -> dict[str, str]:
    """Label -> tier of the guests in memory."""
    parts = engine.residency().parts
    return {part.label: part.tier for part in parts if set(part.models) & (NAMES | {"other"})}


def modules(engine: Engine) -> dict[str, torch.nn.Module]:
    """Those of the guests, by label."""
    return {p.label: p.module for p in engine.manager._store.parts.values() if p.files}


@contextmanager
def watched(engine: Engine) -> Iterator[dict[str, set[str]]]:
    """Where the layers of each part are by the books while they compute: by label, tiers."""
    seen: dict[str, set[str]] = {}
    hooks = []
    for part in engine.manager._store.parts.values():
        for layer in part.module.modules():
            if not list(layer.children()):

                def computes(*_: object, part=part) -> None:
                    assert part.in_use
                    seen.setdefault(part.label, set()).add(part.tier)

                hooks.append(layer.register_forward_pre_hook(computes))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def test_all_that_a_job_adds_is_in_memory_as_parts_are(studio, folder):
    engine = studio(ONE)
    assert shown(engine) == {}
    draw(engine, **ALL)
    assert shown(engine) == dict.fromkeys(KINDS, "device")
    for part in engine.residency().parts:
        assert part.bytes == loading.weight(engine.manager._store.parts[part.key].module)
        assert not part.in_use
    view = engine.residency()
    assert view.device_used == sum(part.bytes for part in view.parts)
    assert {event.label for event in view.events if event.what == "loaded"} >= KINDS


def test_the_next_job_reads_none_of_it_again(studio, monkeypatch):
    engine = studio(ONE)
    before = draw(engine, **ALL)
    events = len(engine.residency().events)
    assert np.array_equal(draw(engine, **ALL), before)
    draw(engine, model="second", **ALL)
    labels = [event.label for event in engine.residency().events[events:]]
    assert {label.split()[-1] for label in labels} == {"second"}


def test_what_is_released_is_gone_and_comes_back_the_same(studio):
    engine = studio(ONE)
    before = draw(engine, **ALL)
    gone = {label: weakref.ref(module) for label, module in modules(engine).items()}
    assert set(gone) == KINDS
    for part in engine.residency().parts:
        if set(part.models) & NAMES:
            engine.release(part.key)
    assert not {label for label, each in gone.items() if each()}
    assert shown(engine) == {}
    assert np.array_equal(draw(engine, **ALL), before)


@pytest.mark.parametrize("mode", ["none", "model", "group"])
def test_offloaded_they_compute_on_the_device_wait_in_ram_and_make_the_same_picture(studio, mode):
    expected = draw(studio(ONE), **ALL)
    engine = studio(TWO, offload=mode)
    assert np.array_equal(draw(engine, **ALL), expected)
    assert engine.residency().offload == mode
    with watched(engine) as seen:
        assert np.array_equal(draw(engine, **ALL, seed=1, prompt="a fox"), expected)
    lazily = {"ControlNet edges", "IP-Adapter ip-sd1", "UNet of sd1"} if mode == "group" else set()
    for label in (KINDS | {"UNet of sd1"}) - {"encoder of pictures image_encoder"}:  # which is remembered
        assert seen[label] == {"RAM" if label in lazily else "device"}, label
    assert "VAE of sd1" not in seen


def test_the_encoder_of_pictures_is_on_the_device_only_to_describe(studio):
    engine = studio(TWO)
    draw(engine, **ALL)
    with watched(engine) as seen:
        draw(engine, **{**ALL, "reference_image": picture(3)})
    assert seen["encoder of pictures image_encoder"] == {"device"}


def test_another_vae_takes_the_place_of_the_one_that_is_soonest_back(studio, folder):
    engine = studio(ONE)
    draw(engine, vae="flat")
    manager, flat = engine.manager, weakref.ref(modules(engine)["VAE flat"])
    manager._store.budgets = Budgets(engine.residency().device_used + manager.plan.working.most)
    draw(engine, vae="other")
    assert "VAE other" in shown(engine)
    assert "VAE flat" not in shown(engine)
    assert flat() is None


def test_what_has_no_room_is_refused_with_the_numbers_before_it_is_read(studio, monkeypatch):
    engine = studio(ONE)
    before = draw(engine)
    manager = engine.manager
    manager._store.budgets = Budgets(engine.residency().device_used + manager.plan.working.most)
    monkeypatch.setattr(controls, "_load", lambda *_: pytest.fail("it was read"))
    view = job(engine, control_model="edges", control_image=picture(1))
    assert isinstance(view.error, Refused)
    assert str(view.error).startswith("The model sd1 with the ControlNet edges needs ")
    assert "of memory, " in str(view.error)
    manager._store.budgets = ONE
    assert np.array_equal(draw(engine), before)


def test_it_is_not_released_while_its_job_runs(studio):
    engine = studio(ONE)
    draw(engine, vae="flat")
    (key,) = (part.key for part in engine.residency().parts if part.label == "VAE flat")
    running = engine.submit([request_for(model="sd1", vae="flat", num_inference_steps=500)], "me")
    next(view for view in running.watch() if view.net_calls >= 2)
    with pytest.raises(NotAllowed, match="The VAE flat is in use"):
        engine.release(key)
    running.cancel()
    running.wait()
    engine.release(key)
    assert "VAE flat" not in shown(engine)


def test_a_vae_that_is_a_models_own_is_in_memory_once(studio, folder, tmp_path, make_engine):
    (tmp_path / "VAE").mkdir()
    own = folder / "second/vae/diffusion_pytorch_model.safetensors"
    shutil.copy(own, tmp_path / "VAE/same.safetensors")
    engine = make_engine(models_dir=[folder, tmp_path], model="second")
    draw(engine, model="second")
    draw(engine, model="second", vae="same")
    (shared,) = (part for part in engine.residency().parts if "same" in part.models)
    assert set(shared.models) == {"second", "same"}
    assert shared.label == "VAE of second"


def test_a_changed_file_is_read_anew(studio, folder, tmp_path, make_engine):
    (tmp_path / "VAE").mkdir()
    file = tmp_path / "VAE/mine.safetensors"
    shutil.copy(folder / "VAE/flat.safetensors", file)
    engine = make_engine(models_dir=[folder, tmp_path], model="sd1")
    before = draw(engine, vae="mine")
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    weights["decoder.conv_out.bias"] += 0.5
    save_file(weights, file)
    assert not np.array_equal(draw(engine, vae="mine"), before)


def test_a_vae_that_was_chosen_works_in_tiles_where_it_must(studio):
    engine = studio(ONE)
    whole = draw(engine, vae="flat", width=256, height=192)
    vae = modules(engine)["VAE flat"]
    with failing(vae.decoder, 1):
        tiled = draw(engine, vae="flat", width=256, height=192)
    assert engine.manager.tiled
    assert not np.array_equal(tiled, whole)
    assert np.abs(tiled.astype(int) - whole).mean() < 20
    assert not vae.use_tiling
    assert not vae.use_slicing


def test_a_preview_that_finds_no_room_costs_no_picture(studio, monkeypatch, caplog):
    engine = studio(ONE)
    manager = engine.manager
    manager._store.budgets = Budgets(engine.residency().device_used + manager.plan.working.most)
    monkeypatch.setattr(loading, "size_of", lambda *_: 600 * MB)
    draw(engine)
    assert "previews go on without taesd" in caplog.text


# Beside a refiner, which is a model of its own


@pytest.mark.parametrize("mode", ["none", "model", "group"])
def test_a_refiner_computes_on_the_device_in_every_mode_with_the_vae_that_was_chosen(studio, mode):
    own = {**ALL, "refiner": "second", "refiner_switch": 0.5}
    expected = draw(studio(ONE), **own)
    engine = studio(TWO, offload=mode)
    draw(engine, **own)
    with watched(engine) as seen:
        assert np.array_equal(draw(engine, **own), expected)
    lazily = "RAM" if mode == "group" else "device"
    assert seen["UNet of second"] == seen["UNet of sd1"] == seen["ControlNet edges"] == {lazily}
    assert seen["VAE flat"] == {"device"}
    assert not {"VAE of sd1", "VAE of second"} & seen.keys()


def test_each_of_two_models_runs_in_the_mode_that_it_needs(studio):
    own = {"refiner": "wide", "refiner_switch": 0.5}
    expected = draw(studio(ONE), **own)
    engine = studio(TWO)
    sizes = {
        name: sum(loading.sizes(engine._checkpoints()[name], engine.manager.device).values())
        for name in ("sd1", "wide")
    }
    work = tiers.working(64, 64, 2, **loading.measures(engine._checkpoints()["wide"])).most
    assert sizes["wide"] > 2 * sizes["sd1"]
    engine.manager._store.budgets = Budgets(int(1.5 * sizes["sd1"]) + work, 500 * MB)
    with watched(engine) as seen:
        assert np.array_equal(draw(engine, **own), expected)
    assert {name: engine.manager._plans[name].mode for name in sizes} == {"sd1": "none", "wide": "group"}
    assert seen["UNet of sd1"] == {"device"}
    view = engine.residency()
    assert view.device_used <= view.device_budget


def test_a_lora_is_put_into_a_refiner_of_the_models_own_family(studio):
    engine = studio(ONE)
    inked = draw(engine, prompt="a fox <lora:ink:1>")
    for refiner in ("sd1", "nearly"):
        refined = draw(engine, prompt="a fox <lora:ink:1>", refiner=refiner, refiner_switch=0.5)
        assert np.abs(refined.astype(int) - inked).max() <= (0 if refiner == "sd1" else 1)
    plain = draw(engine)
    assert np.abs(plain.astype(int) - inked).max() > 10
    assert np.array_equal(draw(engine, refiner="sd1", refiner_switch=0.5), plain)


# Out of memory, at the places that a plain picture does not pass

HIRES = {"hires_scale": 2.0, "hires_strength": 0.5}
REFINED = {"refiner": "second", "refiner_switch": 0.5}
PLACES = {  # part, of what of it, after how many calls, in which request
    "encoding a source": ("VAE of sd1", "encoder", 0, {"image": picture(3)}),
    "the second pass": ("UNet of sd1", "", 4, HIRES),
    "encoding for the second pass": ("VAE of sd1", "encoder", 0, {**HIRES, "hires_upscaler": "Lanczos"}),
    "the refiner": ("UNet of second", "", 0, REFINED),
    "the refiner's last call": ("UNet of second", "", 1, REFINED),
    "decoding by another VAE": ("VAE flat", "decoder", 0, {"vae": "flat"}),
    "the ControlNet": ("ControlNet edges", "", 1, {"control_model": "edges", "control_image": picture(1)}),
    "describing a picture": ("encoder of pictures image_encoder", "", 0, {**ALL, "vae": ""}),
}


@pytest.mark.parametrize("place", PLACES)
def test_out_of_memory_once_the_job_ends_in_a_cheaper_way(studio, place):
    label, inner, after, asked = PLACES[place]
    engine = studio(TWO)
    before = draw(engine, **asked)
    asked = {**asked, "seed": 2} | ({"reference_image": picture(7)} if "reference_image" in asked else {})
    if "image" in asked:
        asked["image"] = picture(8)
    part = next(p for p in engine.manager._store.parts.values() if p.label == label)
    with failing(part.module.get_submodule(inner), 1, after) as calls:
        again = draw(engine, **asked)
    assert calls.count("failed") == 1
    assert engine.manager.plan.mode == "model"
    assert np.array_equal(again, draw(engine, **asked))
    assert engine.manager.plan.mode == "none"
    assert np.array_equal(before, draw(engine, **PLACES[place][3]))


@pytest.mark.parametrize("place", ["the refiner", "the ControlNet", "the second pass"])
def test_out_of_memory_always_the_job_fails_with_advice_and_the_next_one_is_right(studio, place):
    label, _, _, asked = PLACES[place]
    engine = studio(TWO)
    before = draw(engine, **asked)
    part = next(p for p in engine.manager._store.parts.values() if p.label == label)
    with failing(part.module, float("inf")) as calls:
        view = job(engine, **{**asked, "width": 128, "height": 128})
    assert isinstance(view.error, OutOfMemory)
    assert "should fit" in str(view.error)
    assert calls.count("failed") == 2
    assert not any(part.in_use for part in engine.residency().parts)
    assert np.array_equal(before, draw(engine, **asked))


@pytest.mark.parametrize(
    ("module", "reader", "asked"),
    [
        (vaes, "_of_file", {"vae": "flat"}),
        (controls, "_of_folder", {"control_model": "edges", "control_image": picture(1)}),
        (references, "_read", {"reference_model": "ip-sd1", "reference_image": picture(2)}),
        (references, "_encoder", {"reference_model": "ip-sd1", "reference_image": picture(2)}),
    ],
)
def test_out_of_memory_while_it_is_read_is_not_taken_for_damage(studio, monkeypatch, module, reader, asked):
    engine, read, tries = studio(TWO), getattr(module, reader), []

    def short_once(*given):
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(*given)

    monkeypatch.setattr(module, reader, short_once)
    drawn = draw(engine, **asked)
    assert len(tries) == 2
    assert np.array_equal(drawn, draw(engine, **asked))


def test_a_preview_decoder_that_runs_out_of_memory_costs_no_picture_and_is_tried_again(studio, monkeypatch):
    engine, load = studio(ONE), taesd.load
    monkeypatch.setattr(taesd, "load", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA")))
    draw(engine)
    assert "preview decoder taesd" not in shown(engine)
    monkeypatch.setattr(taesd, "load", load)
    draw(engine)
    assert "preview decoder taesd" in shown(engine)
