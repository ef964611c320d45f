"""What is resident: tiny models of real classes, switched, shared, moved and given back."""

import gc
import hashlib
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pytest
import torch
from diffusers import hooks
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.conftest import pixels, request_for
from webui.diffusion import checkpoints, devices, loading, tiers
from webui.diffusion.ahead import ReadAhead
from webui.diffusion.checkpoints import Checkpoint
from webui.diffusion.devices import Device, Memory
from webui.diffusion.manager import ModelManager
from webui.diffusion.tiers import Budgets, Refused
from webui.errors import ModelError, NotAllowed, NotFound, OutOfMemory

CPU = Device("cpu", "float32", "sdpa")
MB = 1_000_000
ROOMY = Budgets(500 * MB)


@pytest.fixture(autouse=True)
def quick_collections() -> Iterator[None]:
    """Collecting garbage does not look through all of torch, as in a server that has just started."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """Five tiny checkpoints, "m0" to "m4", each with weights of its own."""
    folder = tmp_path_factory.mktemp("models")
    devices.import_diffusers(CPU)
    for n in range(5):
        tiny.folder("sd1", folder / f"m{n}", seed=n)
    return found(folder)


def found(folder: Path) -> dict[str, Checkpoint]:
    every = checkpoints.find([folder])
    return {name: each for name, each in every.items() if each.path.parent == folder.resolve()}


def room(models: float, checkpoint: Checkpoint) -> int:
    """Bytes of so many such models, and of the work of a small job."""
    work = tiers.working(64, 64, samples=2, **loading.measures(checkpoint))
    return int(models * sum(loading.sizes(checkpoint, CPU).values())) + work.most


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts that are read from now on."""
    read: list[str] = []
    prepare = loading._prepare

    def noted(checkpoint, name, *more):
        read.append(f"{checkpoint.name} {name}")
        prepare(checkpoint, name, *more)

    monkeypatch.setattr(loading, "_prepare", noted)
    return read


def weights_hash(model) -> str:
    digest = hashlib.sha256()
    for module in (model.net, model.vae, *(tower.text_encoder for tower in model.encoder.towers)):
        for tensor in module.state_dict().values():
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def change(folder: Path, part: str = "unet") -> None:
    """Other weights, at another time."""
    (file,) = (folder / part).glob("*.safetensors")
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    weights["conv_out.bias"] += 0.1
    save_file(weights, file, {"format": "pt"})


def test_a_switch_back_reads_nothing(family, monkeypatch):
    manager = ModelManager(CPU, ROOMY)
    first = manager.get(family["m0"])
    manager.get(family["m1"])
    read = counted(monkeypatch)
    assert manager.get(family["m0"]) is first
    assert manager.get(family["m1"]) is not first
    assert read == []


def test_where_two_fit_the_third_takes_the_place_of_the_longest_unused(family, monkeypatch):
    manager = ModelManager(CPU, Budgets(room(2.5, family["m0"])))
    read = counted(monkeypatch)
    gone = weakref.ref(manager.get(family["m0"]).net)
    for name in ("m1", "m2", "m1", "m2"):
        manager.get(family[name])
    assert gone() is None
    assert len(read) == 9
    assert {part.models for part in manager.residency().parts} >= {("m1",), ("m2",)}
    evicted = {event.label.split()[-1] for event in manager.residency().events if event.what == "evicted"}
    assert evicted == {"m0"}


def test_a_hundred_switches_among_five_leave_memory_and_weights_as_they_were(family):
    """The budget holds two, so that nearly each switch reads a model and drops another."""
    manager = ModelManager(CPU, Budgets(room(2.5, family["m0"])))
    nets: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
    curve: list[int] = []
    before = {}
    for name, checkpoint in family.items():
        before[name] = weights_hash(manager.get(checkpoint))
        nets.add(manager.get(checkpoint).net)
    for n in range(100):
        nets.add(manager.get(family[f"m{n * 3 % 5}"]).net)
        view = manager.residency()
        assert view.device_used <= view.device_budget
        assert len(nets) == sum("UNet" in part.label for part in view.parts)  # none lives on unseen
        curve.append(psutil.Process().memory_info().rss)
    growth = median(curve[-20:]) - median(curve[10:30])
    assert growth < 6 * MB  # 300 MB were read; diffusers itself keeps some 10 kB of each part that it loads
    assert {name: weights_hash(manager.get(checkpoint)) for name, checkpoint in family.items()} == before


def test_a_model_is_not_released_between_being_given_out_and_being_held(family, monkeypatch):
    manager = ModelManager(CPU, ROOMY)
    manager.get(family["m0"])
    get, refused = manager.get, []
    other = threading.Thread(target=lambda: released(manager, refused))

    def given_out(*given):
        model = get(*given)
        other.start()
        other.join(0.05)  # it waits for the lock
        return model

    monkeypatch.setattr(manager, "get", given_out)
    with manager.using(family["m0"]):
        other.join(10)
        assert refused
        assert len(manager.residency().parts) == 3
    manager.release("m0")


def released(manager: ModelManager, refused: list[Exception]) -> None:
    try:
        manager.release("m0")
    except NotAllowed as error:
        refused.append(error)


def test_a_part_that_a_full_tier_does_not_take_stays_where_it_was(two_tiers, family, monkeypatch):
    manager = two_tiers(1.5)
    model = manager.get(family["m0"], request_for())
    part = next(part for part in manager._store.parts.values() if part.component == "unet")
    asked = []

    def full(self, place):
        asked.append(place)
        if len(asked) == 1:
            raise MemoryError
        return self

    monkeypatch.setattr(type(model.net), "to", full)
    with pytest.raises(OutOfMemory):
        manager._store.settle(part, "RAM", "")
    assert part.tier == "device"
    assert len(asked) == 2


def test_layers_leave_no_hook_where_offloading_them_ran_out_of_memory(two_tiers, family, monkeypatch):
    manager = two_tiers(0.4)
    model = manager.get(family["m0"], request_for())
    hook, hooked = hooks.HookRegistry.register_hook, []

    def short(self, *given):
        hooked.append(1)
        if len(hooked) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hook(self, *given)

    monkeypatch.setattr(hooks.HookRegistry, "register_hook", short)
    with pytest.raises(torch.OutOfMemoryError), model.stage("net"):
        pass
    left = [each._diffusers_hook.hooks for each in model.net.modules() if hasattr(each, "_diffusers_hook")]
    assert left
    assert not any(left)


def test_models_share_the_parts_that_hold_the_same(family, tmp_path, monkeypatch):
    for name in ("a", "b"):
        shutil.copytree(family["m0"].path, tmp_path / name)
    change(tmp_path / "b")
    models = found(tmp_path)
    manager = ModelManager(CPU, ROOMY)
    a, b = manager.get(models["a"]), manager.get(models["b"])
    assert a.vae is b.vae
    assert a.net is not b.net
    shared = [part for part in manager.residency().parts if len(part.models) == 2]
    assert {part.label for part in shared} == {"VAE of a", "text encoder of a"}
    manager.release("a")
    assert "a" not in {model for part in manager.residency().parts for model in part.models if part.models}


def test_parts_that_only_look_alike_are_kept_apart(family, tmp_path):
    shutil.copytree(family["m0"].path, tmp_path / "a")
    shutil.copytree(family["m0"].path, tmp_path / "b")
    (file,) = (tmp_path / "b" / "vae").glob("*.safetensors")
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(-1)[1] += 0.5  # none of the numbers that are looked at
    save_file(weights, file, {"format": "pt"})
    manager = ModelManager(CPU, ROOMY)
    models = [manager.get(checkpoint) for checkpoint in found(tmp_path).values()]
    assert loading.fingerprint(models[0].vae) == loading.fingerprint(models[1].vae)
    assert models[0].vae is not models[1].vae


def test_a_changed_file_is_read_anew_also_where_only_a_part_was_left(family, tmp_path):
    shutil.copytree(family["m0"].path, tmp_path / "mine")
    manager = ModelManager(CPU, ROOMY)
    old = manager.get(found(tmp_path)["mine"])
    before, gone = weights_hash(old), weakref.ref(old.vae)
    del old
    (unet,) = (part.key for part in manager.residency().parts if part.label.startswith("UNet"))
    manager.release(unet)
    change(tmp_path / "mine", "unet")
    assert weights_hash(manager.get(found(tmp_path)["mine"])) != before
    assert gone() is None


def test_a_file_that_is_cut_short_while_its_model_is_resident_harms_nothing(family, tmp_path):
    shutil.copytree(family["m0"].path, tmp_path / "mine")
    model = ModelManager(CPU, ROOMY).get(found(tmp_path)["mine"])
    before = weights_hash(model)
    for file in (tmp_path / "mine").glob("*/*.safetensors"):
        with file.open("r+b") as opened:
            opened.truncate(10)
    assert weights_hash(model) == before


def test_a_model_that_does_not_fit_is_refused_with_the_numbers_and_the_rest_stays(family):
    manager = ModelManager(CPU, Budgets(room(1.5, family["m0"])))
    model = manager.get(family["m0"])
    with pytest.raises(
        Refused,
        match=r"The model m1 needs \d.* of memory, .* MB can be freed.* 1408x1408 should fit.*ram-budget",
    ):
        manager.get(family["m1"], request_for(width=2048, height=2048))
    assert manager.resident is model
    assert manager.residency().events[-1].what == "refused"


def test_pinned_models_stay_and_the_refusal_says_so(family):
    manager = ModelManager(CPU, Budgets(room(1.5, family["m0"])))
    manager.get(family["m0"])
    manager.pin("m0", True)
    with pytest.raises(Refused, match="Pinned models are not taken away"):
        manager.get(family["m1"])
    manager.pin("m0", False)
    assert manager.get(family["m1"]).name == "m1"


def test_what_a_running_job_needs_is_not_released_and_the_refusal_names_it(family):
    manager = ModelManager(CPU, ROOMY)
    model, other = manager.get(family["m0"]), weakref.ref(manager.get(family["m1"]).net)
    with manager.busy(model):
        with pytest.raises(NotAllowed, match=r"The .* of m0 is in use"):
            manager.release("m0")
        manager.release()
        assert other() is None
        assert manager.holds(family["m0"])
    manager.release("m0")
    with pytest.raises(NotFound):
        manager.release("m0")
    assert manager.residency().parts == ()


def test_idle_models_are_given_back(family):
    now = [1000.0]
    manager = ModelManager(CPU, ROOMY, clock=lambda: now[0])
    manager.get(family["m0"])
    now[0] += 50
    manager.get(family["m1"])
    manager.release_idle(60)
    assert manager.holds(family["m0"])
    now[0] += 10
    manager.release_idle(60)
    assert not manager.holds(family["m0"])
    assert manager.holds(family["m1"])
    assert manager.residency().events[-1].why == "Nothing used it for 1 minutes."


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_sum_too_large_for_its_precision_is_not_taken_for_damage(dtype):
    layer = torch.nn.Linear(300, 300).to(dtype).requires_grad_(False)
    layer.weight.fill_(torch.finfo(dtype).max / 2)
    assert not layer.weight.sum().isfinite()
    assert loading.finite(layer)
    layer.weight[7, 7] = float("nan")
    assert not loading.finite(layer)
    layer.weight[7, 7] = float("-inf")
    assert not loading.finite(layer)


def test_a_part_looks_the_same_however_its_weights_lie_in_memory():
    part = torch.nn.Sequential(torch.nn.Conv2d(6, 4, 3), torch.nn.BatchNorm2d(4))
    before = loading.fingerprint(part)
    assert loading.fingerprint(part.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        part[0].weight[0, 0, 0, 0] += 1
    assert loading.fingerprint(part) != before


def test_weights_that_are_not_numbers_are_named_at_load_and_nothing_of_them_stays(family, tmp_path):
    shutil.copytree(family["m0"].path, tmp_path / "mine")
    (file,) = (tmp_path / "mine" / "vae").glob("*.safetensors")
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    weights["decoder.conv_in.weight"].view(-1)[7] = float("nan")
    save_file(weights, file, {"format": "pt"})
    manager = ModelManager(CPU, ROOMY)
    with pytest.raises(ModelError, match=r"model mine cannot be used: its VAE holds values that are not num"):
        manager.get(found(tmp_path)["mine"])
    assert manager.residency().parts == ()


def test_a_config_that_names_other_libraries_is_not_followed(family, tmp_path):
    shutil.copytree(family["m0"].path, tmp_path / "mine")
    (checkpoint,) = found(tmp_path).values()
    index = tmp_path / "mine" / "model_index.json"
    index.write_text(index.read_text().replace('"transformers"', '"os"'))
    with pytest.raises(ModelError) as caught:
        loading.load(checkpoint, CPU)
    assert "a class of os, whose code is not run here" in str(caught.value.__cause__)


def test_only_half_precision_files_are_read_where_there_are_no_others(family, tmp_path):
    shutil.copytree(family["m0"].path, tmp_path / "mine")
    for file in (tmp_path / "mine").glob("*/*.safetensors"):
        halves = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halves, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
        file.unlink()
    (checkpoint,) = found(tmp_path).values()
    model = ModelManager(CPU, ROOMY).get(checkpoint)
    assert {weight.dtype for weight in model.net.parameters()} == {torch.float32}


# Two tiers: what a GPU and RAM would be, both of them this machine's RAM


@pytest.fixture
def two_tiers(family, monkeypatch) -> Callable[..., ModelManager]:
    """A manager whose device holds ``models`` of the tiny ones beside the work, and RAM the rest."""

    def make(models: float, offload: str = "auto") -> ModelManager:
        device = Device("cpu", "float32", "sdpa", offload=offload)
        return ModelManager(device, Budgets(room(models, family["m0"]), 100 * MB))

    return make


def test_two_people_alternating_models_swap_them_through_ram(two_tiers, family, monkeypatch):
    manager = two_tiers(1.5)
    read = counted(monkeypatch)
    for name in ("m0", "m1", "m0", "m1"):
        manager.get(family[name], request_for())
        where = {part.models[0]: part.tier for part in manager.residency().parts if "UNet" in part.label}
        assert where[name] == "device"
    assert len(read) == 6
    assert [event.what for event in manager.residency().events].count("moved to RAM") >= 3


@pytest.mark.parametrize(("models", "mode"), [(1.0, "none"), (0.8, "model"), (0.4, "group")])
def test_the_mode_follows_from_the_budget(two_tiers, family, models, mode):
    manager = two_tiers(models)
    manager.get(family["m0"], request_for())
    assert manager.residency().offload == mode


@pytest.mark.parametrize("mode", ["model", "group", "fp8"])
def test_a_persons_mode_goes_before_the_budget(two_tiers, family, mode):
    manager = two_tiers(5, mode)
    model = manager.get(family["m0"], request_for())
    assert manager.residency().offload == ("none" if mode == "fp8" else mode)
    half = {str(weight.dtype) for weight in model.net.parameters()}
    assert ("torch.float8_e4m3fn" in half) == (mode == "fp8")


def test_only_the_part_that_computes_is_on_the_device(two_tiers, family):
    manager = two_tiers(0.6)
    model = manager.get(family["m0"], request_for())

    def there() -> set[str]:
        return {p.label.split(" of")[0] for p in manager.residency().parts if p.tier == "device"}

    with manager.busy(model):
        with model.stage("text"):
            assert there() == {"text encoder"}
        with model.stage("net"):
            assert there() == {"UNet", "VAE"}
            with model.stage("vae"):
                pass
            assert all(part.in_use for part in manager.residency().parts if part.tier == "device")
        assert manager.residency().device_used <= manager.residency().device_budget


def test_layers_in_ram_leave_no_hook_and_no_changed_weight(two_tiers, family):
    manager = two_tiers(0.4)
    model = manager.get(family["m0"], request_for())
    before, modules = weights_hash(model), [type(each) for each in model.net.modules()]
    with model.stage("net"):
        assert any(hasattr(each, "_diffusers_hook") for each in model.net.modules())
    hooks = [each._diffusers_hook.hooks for each in model.net.modules() if hasattr(each, "_diffusers_hook")]
    assert not any(hooks)
    assert weights_hash(model) == before
    assert [type(each) for each in model.net.modules()] == modules


# Decisions about memory, on machines described rather than owned

GPU = Device("cuda:0", "float16", "sdpa")


def test_the_budgets_follow_from_what_is_free():
    memory = Memory(device=24_000, device_free=20_000, ram=64_000, ram_free=50_000)
    assert devices.budgets(GPU, memory) == Budgets(20_000 - 1920, 43_600 // 2)
    assert devices.budgets(CPU, memory) == Budgets(43_600)
    full = Memory(device=0, device_free=0, ram=16_000, ram_free=1_000)
    assert devices.budgets(CPU, full) == Budgets(8_000)
    assert devices.budgets(GPU, memory, vram_budget=6, ram_budget=10) == Budgets(6_000 * MB, 10_000 * MB)


def test_what_a_gpu_shares_with_the_system_is_not_counted_twice():
    shared = Device("mps", "float16", "sdpa")
    memory = Memory(device=48_000, device_free=40_000, ram=64_000, ram_free=60_000)
    assert devices.budgets(shared, memory) == Budgets(40_000 - 3840, 48_000 - (40_000 - 3840))
    small = Memory(device=12_000, device_free=12_000, ram=16_000, ram_free=10_000)
    assert devices.budgets(shared, small) == Budgets(12_000 - 960, 1)


def test_this_machine_s_memory_is_found():
    memory = devices.memory(CPU)
    assert 0 < memory.ram_free <= memory.ram
    assert devices.budgets(CPU, memory).device >= memory.ram // 2


# What comes next


def test_the_next_model_s_files_are_read_once_and_those_of_a_resident_one_are_not(family):
    manager = ModelManager(CPU, ROOMY)
    size = sum(size for _, size, _ in family["m1"].signature)
    manager.get(family["m0"])
    manager.read_ahead(family["m0"])
    manager.ahead.wait()
    assert manager.ahead.bytes == 0
    for _ in range(2):
        manager.read_ahead(family["m1"])
        manager.ahead.wait()
        assert manager.ahead.bytes == size


def test_nothing_is_read_ahead_where_memory_is_short(family, monkeypatch):
    manager = ModelManager(CPU, ROOMY)
    monkeypatch.setattr(devices, "memory", lambda _: Memory(0, 0, ram=16_000 * MB, ram_free=1_600 * MB))
    manager.read_ahead(family["m1"])
    manager.ahead.wait()
    assert manager.ahead.bytes == 0


def test_reading_ahead_that_runs_out_of_memory_is_given_up(family, monkeypatch, tmp_path):
    ahead = ReadAhead()
    monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    ahead._run([tmp_path / "weights"], threading.Event())
    assert ahead.bytes == 0


def test_while_a_job_runs_the_next_one_s_model_is_read(make_engine, family):
    engine = make_engine(models_dir=[family["m0"].path.parent])
    first, second, third = (
        request_for(model=name, num_inference_steps=500, width=128, height=128) for name in ("m0", "m0", "m4")
    )
    blocking = engine.submit([first], "a")
    next(view for view in blocking.watch() if view.net_calls >= 2)
    running = engine.submit([second], "a")
    waiting = engine.submit([third], "b")
    blocking.cancel()
    next(view for view in running.watch() if view.net_calls >= 2)
    engine.manager.ahead.wait()
    assert engine.manager.ahead.bytes == sum(size for _, size, _ in family["m4"].signature)
    for job in (waiting, running):
        engine.cancel(job.id, job.owner)
        job.wait()


# Through the engine


def test_the_engine_tells_loads_pins_and_releases(make_engine, family):
    engine = make_engine(models_dir=[family["m0"].path.parent])
    engine.submit([request_for()], "test").wait()
    assert {part.models for part in engine.residency().parts} == {("pocket-model",)}
    engine.load("m3")
    (saved,) = engine.submit([request_for(model="m3")], "test").wait().saved
    loads = [event.label for event in engine.residency().events if event.what == "loaded"]
    assert [label for label in loads if label.endswith("m3")] == loads[-3:]
    engine.pin("m3", True)
    assert all(part.pinned for part in engine.residency().parts if part.models == ("m3",))
    engine.release("m3")
    assert {part.models for part in engine.residency().parts} == {("pocket-model",)}
    with pytest.raises(NotFound):
        engine.load("nowhere")
    (again,) = engine.submit([request_for(model="m3")], "test").wait().saved
    assert np.array_equal(pixels(saved.path), pixels(again.path))


def test_a_model_is_not_released_while_its_job_runs(make_engine):
    engine = make_engine()
    engine.submit([request_for()], "test").wait()
    job = engine.submit([request_for(num_inference_steps=500, width=128, height=128)], "test")
    next(view for view in job.watch() if view.net_calls >= 2)
    with pytest.raises(NotAllowed, match="in use"):
        engine.release("pocket-model")
    engine.release()  # all that no job needs
    assert len(engine.residency().parts) == 3
    job.cancel()
    job.wait()
