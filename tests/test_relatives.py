"""LoRA's relatives: weights and pictures as LyCORIS computes them, and models as they were before."""

import gc
import hashlib

import numpy as np
import psutil
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from lycoris.functional.general import apply_dora_scale
from lycoris.modules import DiagOFTModule, GLoRAModule, IA3Module, LoConModule, LohaModule, LokrModule
from lycoris.modules.boft import ButterflyOFTModule
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from tests import parts, relatives, single_file, tiny
from tests.conftest import POCKET, pixels, request_for
from webui.catalogue.notes import Note
from webui.diffusion import adapters, devices, layers, laying, loading, lycoris
from webui.diffusion.additions import Adapter, Additions
from webui.diffusion.tiers import Budgets
from webui.errors import OutOfMemory
from webui.prompt_syntax import Segment
from webui.ui import show_models

NEAR = {"rtol": 1e-4, "atol": 1e-5}  # of float32, added up in another order


# A layer's weight

LAYERS = {"linear": nn.Linear(48, 32), "conv": nn.Conv2d(24, 32, 3, padding=1), "small": nn.Conv2d(24, 32, 1)}
MODULES = {
    "LoRA": (LoConModule, {}),
    "LoRA of a root's rank": (LoConModule, {"rs_lora": True}),
    "LoCon in Tucker's form": (LoConModule, {"use_tucker": True}),
    "LoHa": (LohaModule, {}),
    "LoHa in Tucker's form": (LohaModule, {"use_tucker": True}),
    "LoKr": (LokrModule, {"factor": 2, "lora_dim": 2}),
    "LoKr in Tucker's form": (LokrModule, {"factor": 2, "lora_dim": 2, "use_tucker": True}),
    "LoKr of four": (LokrModule, {"decompose_both": True, "lora_dim": 1}),
    "LoKr of two": (LokrModule, {"full_matrix": True}),
    "OFT": (DiagOFTModule, {"constraint": 0}),
    "OFT with a bound": (DiagOFTModule, {"constraint": 0.05}),
    "BOFT": (ButterflyOFTModule, {"lora_dim": 8, "constraint": 0}),
    "BOFT rescaled": (ButterflyOFTModule, {"lora_dim": 8, "constraint": 0, "rescaled": True}),
    "GLoRA": (GLoRAModule, {}),
    "IA3": (IA3Module, {}),
    "IA3 of what goes in": (IA3Module, {"train_on_input": True}),
}
WHOLE = {  # compared with a weight of 1 alone
    "DoRA": (LoConModule, {"weight_decompose": True}),
    "DoRA by columns": (LoConModule, {"weight_decompose": True, "wd_on_out": False}),
    "LoHa with DoRA": (LohaModule, {"weight_decompose": True}),
    "LoKr with DoRA": (LokrModule, {"weight_decompose": True, "factor": 2}),
    "OFT rescaled": (DiagOFTModule, {"constraint": 0, "rescaled": True}),
}


def trained(layer, kind, options):
    """LyCORIS' module for a layer, and its tensors by the ends of their names."""
    module = kind("layer", layer, 1.0, **{"lora_dim": 4, "alpha": 3.0, **options})
    generator = torch.Generator().manual_seed(3)
    for weights in module.parameters():
        weights.data += 0.2 * torch.randn(weights.shape, generator=generator)
    return module, {name: each.detach().clone().float() for name, each in module.state_dict().items()}


def compared(shape, kind, options, factor):
    """(what LyCORIS' module makes of some numbers, what the layer with our weight makes of them)."""
    layer = LAYERS[shape]
    module, tensors = trained(layer, kind, options)
    module.multiplier = factor
    given = torch.randn(2, *((48,) if shape == "linear" else (24, 5, 5)))
    new = lycoris.weight(layer.weight.data, tensors, factor)
    ours = (
        F.linear(given, new, layer.bias)
        if shape == "linear"
        else F.conv2d(given, new, layer.bias, padding=layer.padding)
    )
    return module(given), ours


@pytest.mark.parametrize("factor", [1.0, 0.5, -0.5, 1.5])
@pytest.mark.parametrize("shape", LAYERS)
@pytest.mark.parametrize("name", MODULES)
def test_a_layer_computes_as_in_lycoris(name, shape, factor):
    expected, ours = compared(shape, *MODULES[name], factor)
    torch.testing.assert_close(ours, expected, **NEAR)


@pytest.mark.parametrize("shape", LAYERS)
@pytest.mark.parametrize("name", WHOLE)
def test_a_layer_whose_weight_is_not_linear_computes_as_in_lycoris(name, shape):
    expected, ours = compared(shape, *WHOLE[name], 1.0)
    torch.testing.assert_close(ours, expected, **NEAR)


@pytest.mark.parametrize("factor", [0.0, 0.5, -0.5])
@pytest.mark.parametrize("name", WHOLE)
def test_a_weight_goes_from_the_model_to_what_was_trained(name, factor):
    old = LAYERS["conv"].weight.data
    _, tensors = trained(LAYERS["conv"], *WHOLE[name])
    whole = lycoris.weight(old, tensors, 1.0)
    torch.testing.assert_close(lycoris.weight(old, tensors, factor), old + factor * (whole - old), **NEAR)


def test_dora_with_a_weight_is_as_lycoris_first_had_it():
    old = LAYERS["linear"].weight.data
    module, tensors = trained(LAYERS["linear"], LoConModule, WHOLE["DoRA by columns"][1])
    expected = apply_dora_scale(old, module.get_diff_weight()[0], tensors["dora_scale"], 0.3)
    torch.testing.assert_close(lycoris.weight(old, tensors, 0.3), expected, **NEAR)


def test_a_file_without_alpha_or_with_none_is_not_scaled():
    _, tensors = trained(LAYERS["linear"], LoConModule, {"alpha": 4.0})  # of rank 4
    expected = lycoris.weight(LAYERS["linear"].weight.data, tensors, 1.0)
    for alpha in ({}, {"alpha": torch.tensor(0.0)}):
        own = {name: each for name, each in tensors.items() if name != "alpha"} | alpha
        assert torch.equal(lycoris.weight(LAYERS["linear"].weight.data, own, 1.0), expected)


def test_old_files_are_read_as_they_were_written():
    """GLoRA's pairs were the other way round, and OFT's rotation was saved itself."""
    old = LAYERS["linear"].weight.data
    _, tensors = trained(LAYERS["linear"], GLoRAModule, {})
    swapped = {"alpha": tensors["alpha"]} | {
        f"{side}{3 - k}.weight": tensors[f"{side}{k}.weight"] for side in "ab" for k in (1, 2)
    }
    assert torch.equal(lycoris.weight(old, swapped, 1.0), lycoris.weight(old, tensors, 1.0))
    module, tensors = trained(LAYERS["linear"], *MODULES["OFT"])
    rotation = {"oft_diag": module.get_r().detach()}
    torch.testing.assert_close(lycoris.weight(old, rotation, 0.7), lycoris.weight(old, tensors, 0.7), **NEAR)


@pytest.mark.parametrize("name", [*MODULES, *WHOLE])
def test_tensors_of_another_layer_are_refused(name):
    _, tensors = trained(nn.Linear(96, 64), *{**MODULES, **WHOLE}[name])
    with pytest.raises((KeyError, RuntimeError, ValueError)):
        lycoris.weight(LAYERS["linear"].weight.data, tensors, 1.0)


# Names


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_layers_are_known_by_compvis_names_too(tmp_path, family):
    pipe = tiny.MAKERS[family]({"layers_per_block": 2})
    known = layers.named({"unet": pipe.unet})
    named = {path: layer for path, layer in pipe.unet.named_modules() if hasattr(layer, "weight")}
    for path, layer in named.items():
        original = single_file.unet_name(f"{path}.weight", pipe.unet.config).removesuffix(".weight")
        for name in (
            f"lora_unet.{original}",
            f"diffusion_model.{original}",
            f"unet.{path}",
            f"lycoris.{path}",
        ):
            assert known[name.replace(".", "_")] == ("unet", (layer,)), name


# Pictures and models


@pytest.fixture(scope="module")
def plain(engine):
    """diffusers' own pipeline on the same files; loaded after an engine is ready, for this module alone."""
    pipe = StableDiffusionPipeline.from_pretrained(
        POCKET, dtype=torch.float32, local_files_only=True, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    config = DPMSolverMultistepScheduler.load_config(POCKET / "scheduler")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)
    return pipe


def picture(pipe):
    options = {"num_inference_steps": 4, "guidance_scale": 4.0, "width": 64, "height": 64}
    return pixels(pipe("a fox", generator=torch.Generator().manual_seed(1), **options).images[0])


@pytest.fixture(scope="module")
def files(plain, tmp_path_factory):
    """Kind -> its file; "plain" is a LoRA, and some do not fit."""
    at = tmp_path_factory.mktemp("models") / "Lora"
    at.mkdir()
    files = {}
    for seed, kind in enumerate(relatives.KINDS):
        made = relatives.network(plain, kind, seed)
        with relatives.applied(made, plain):
            files[kind] = relatives.save(made, at / f"{kind}.safetensors")
    files["plain"] = parts.lora(plain, at / "plain.safetensors", 9, "kohya")
    tensors = load_file(files["LoHa"])
    wide = {name: torch.cat([tensors[name]] * 2, -1) for name in tensors if name.endswith("_b")}
    save_file(tensors | wide, at / "wide.safetensors")
    last = list(tensors)[-1]
    save_file({**tensors, "lora_unet_mystery.hada_w1_a": torch.ones(2, 2)}, at / "stray.safetensors")
    save_file({**tensors, last: tensors[last] * float("nan")}, at / "nan.safetensors")
    return files


@pytest.fixture(scope="module")
def studio(make_engine, files):
    engine = make_engine(models_dir=[POCKET.parent, files["LoHa"].parent.parent])
    assert engine.submit([request_for()], "fixture").wait().state == "done"  # else two threads load at once
    return engine


@pytest.fixture
def draw(studio):
    def draw(prompt):
        view = studio.submit([request_for(prompt=prompt)], "test").wait()
        assert view.error is None
        return pixels(view.saved[0].path)

    return draw


def weights(model):
    """SHA-256 of its net and text encoder, and the types of their modules."""
    digest = hashlib.sha256()
    for part in (model.net, *(tower.text_encoder for tower in model.encoder.towers)):
        for name, module in part.named_modules():
            digest.update(f"{name} {type(module).__name__}".encode())
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tensor.dtype}".encode() + tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def alike(a, b):
    """Whether two pictures are of one computation: float32 added up in another order."""
    difference = np.abs(a.astype(int) - b)
    return difference.max() <= 2 and difference.mean() < 0.05


def test_a_file_is_named_by_its_header(studio, files):
    known = studio.catalogue.of("lora")
    assert {kind: known[kind].layout for kind in relatives.KINDS} == {kind: kind for kind in relatives.KINDS}
    assert not any(known[kind].problem for kind in files)
    shown = {
        name: show_models.file(known[name], "", Note(), True, True)["form"] for name in ("LoKr", "plain")
    }
    assert shown == {"LoKr": "LoKr", "plain": ""}


@pytest.mark.parametrize(("kind", "weight"), [(kind, 1.0) for kind in relatives.KINDS] + [
    ("LoHa", 0.5), ("LoHa", -0.5), ("LoKr", 1.5), ("full", -0.5), ("OFT", 0.5), ("GLoRA", 1.5),
])  # fmt: skip
def test_a_picture_is_as_with_lycoris_itself(draw, plain, kind, weight):
    made = relatives.network(plain, kind, list(relatives.KINDS).index(kind), weight)
    before = picture(plain)
    with relatives.applied(made, plain):
        expected = picture(plain)
    drawn = draw(f"a fox<lora:{kind}:{weight}>")
    assert alike(drawn, expected), np.abs(drawn.astype(int) - expected).max()
    assert not alike(expected, before)


def test_a_picture_equals_plain_diffusers_with_these_weights(studio, draw, plain):
    """Bit for bit, upon weights that LyCORIS' own module changed: of a text encoder, and of the net."""
    found = studio.catalogue.of("lora")["full"]
    before = picture(plain)
    old = {
        name: each.clone()
        for part in (plain.unet, plain.text_encoder)
        for name, each in part.state_dict().items()
    }
    tensors = load_file(found.path)
    for part, prefix, share in ((plain.unet, "lora_unet", 0.5), (plain.text_encoder, "lora_te", -0.25)):
        for path, layer in part.named_modules():
            for end, own in (("diff", "weight"), ("diff_b", "bias")):
                if (name := f"{prefix}_{path.replace('.', '_')}.{end}") in tensors:
                    getattr(layer, own).data += tensors[name] * share
    expected = picture(plain)
    for part in (plain.unet, plain.text_encoder):
        part.load_state_dict({name: old[name] for name in part.state_dict()})
    assert (draw("a fox<lora:full:-0.25:0.5>") == expected).all()
    assert (picture(plain) == before).all()


def test_several_are_laid_one_upon_another_and_loras_beside_them(draw, plain, files):
    first = relatives.network(plain, "LoKr", 1, 0.5)
    second = relatives.network(plain, "LoHa", 0, 0.7)
    with relatives.applied(first, plain), relatives.applied(second, plain):
        expected = picture(plain)
    assert alike(draw("<lora:LoKr:0.5>a fox<lora:LoHa:0.7>"), expected)
    plain.load_lora_weights(str(files["plain"]), adapter_name="x")
    plain.set_adapters(["x"], [0.6])
    lora = picture(plain)
    plain.unload_lora_weights()
    both = draw("a fox<lora:plain:0.6><lora:LoHa:0.7>")
    assert not alike(both, lora)
    assert (draw("a fox<lora:LoHa:0.7><lora:plain:0.6>") == both).all()
    assert (draw("a fox<lora:plain:0.6>") == lora).all()


def test_a_weight_of_nothing_is_the_model_itself(draw, plain):
    assert (draw("a fox<lora:OFT:0>") == picture(plain)).all()
    assert (draw("a fox<lora:OFT:0.5><lora:OFT:-0.5>") == picture(plain)).all()


def test_an_encoder_that_is_shared_reads_for_another_model_without_what_was_laid(studio, draw):
    draw("a fox<lora:LoHa:1>")
    model = studio.manager.resident
    chunks = model.encoder.chunks(((Segment("a fox", 1.0),),))
    with adapters.silent(model):
        silent = model.apart().encoder.encode(chunks).tokens
    loud = model.apart().encoder.encode(chunks).tokens
    draw("a fox")
    assert torch.equal(silent, model.apart().encoder.encode(chunks).tokens)
    assert not torch.equal(silent, loud)


def test_the_model_is_as_it_was_after_every_end_of_a_job(studio, draw, plain):
    """After a picture, a cancel, and files that fail when some of their layers are laid."""
    draw("a fox")
    before = weights(studio.manager.resident)
    draw("a fox<lora:LoHa:1><lora:plain:1>")
    assert weights(studio.manager.resident) != before
    draw("a fox")
    assert weights(studio.manager.resident) == before
    job = studio.submit([request_for(prompt="a fox<lora:DoRA:1>", num_inference_steps=200)], "test")
    for view in job.watch():
        if view.net_calls:
            studio.cancel(job.id, "test")
            break
    assert job.wait().state == "cancelled"
    assert (draw("a fox") == picture(plain)).all()
    said = {"wide": "does not fit this model", "stray": "does not fit this model", "nan": "holds values that"}
    for name, why in said.items():
        view = studio.submit([request_for(prompt=f"a fox<lora:LoKr:1><lora:{name}:1>")], "test").wait()
        assert str(view.error).startswith(f"Prompt: the LoRA {name} {why}")
        assert weights(studio.manager.resident) == before, name
    assert (draw("a fox") == picture(plain)).all()


def test_the_memory_of_the_weights_as_they_were_is_told_while_it_is_held(studio, draw):
    def told():
        return [part.why for part in studio.residency().parts if "before the LoRAs" in part.why]

    draw("a fox")
    assert told() == []
    draw("a fox<lora:LoKr:1>")
    net = studio.manager.resident.net
    changed = sum(before.nbytes for before in vars(net)[laying.KEPT].values())
    assert changed > 1_000_000
    assert any(f" {changed / 1e6:,.1f} MB beside it are its weights" in why for why in told())
    draw("a fox")
    assert told() == []


def test_where_there_is_no_room_for_the_weights_as_they_were_the_job_is_tried_again_with_more(
    studio, draw, plain, monkeypatch
):
    expected, before = draw("a fox<lora:OFT:0.5>"), draw("a fox")
    answers = iter([(10**10, 10**5), (10**10, 10**10)])
    monkeypatch.setattr(laying, "system_memory", lambda: next(answers))
    assert (draw("a fox<lora:OFT:0.5>") == expected).all()
    assert next(answers, None) is None
    monkeypatch.setattr(laying, "system_memory", lambda: (10**10, 10**5))
    view = studio.submit([request_for(prompt="a fox<lora:OFT:1>")], "test").wait()
    assert isinstance(view.error, OutOfMemory)
    assert (draw("a fox") == before).all()


@pytest.mark.parametrize("mode", ["model", "group", "fp8"])
def test_offloaded_weights_are_changed_and_come_back_too(make_engine, files, draw, monkeypatch, mode):
    prompt = "a fox<lora:LoKr:0.7><lora:plain:0.5>"
    expected = draw(prompt)
    monkeypatch.setattr(devices, "allowed", lambda *_: Budgets(500_000_000, 500_000_000))
    engine = make_engine(models_dir=[POCKET.parent, files["LoKr"].parent.parent], offload=mode)

    def drawn(prompt):
        view = engine.submit([request_for(prompt=prompt)], "test").wait()
        assert view.error is None
        return pixels(view.saved[0].path)

    without, before = drawn("a fox"), weights(engine.manager.resident)
    changed = drawn(prompt)
    assert (changed == expected).all() or mode == "fp8"
    assert not alike(changed, without)
    assert (drawn("a fox") == without).all()
    assert weights(engine.manager.resident) == before


def test_a_lora_beside_weights_in_8_bits_computes_with_its_own_numbers(make_engine, files, plain):
    engine = make_engine(models_dir=[POCKET.parent, files["plain"].parent.parent], offload="fp8")
    view = engine.submit([request_for(prompt="a fox<lora:plain:0.6>")], "test").wait()
    assert view.error is None
    drawn = pixels(view.saved[0].path)
    engine.submit([request_for()], "test").wait()
    own = {name: each.float() for name, each in plain.unet.state_dict().items()}
    plain.unet.load_state_dict(
        {n: each.float() for n, each in engine.manager.resident.net.state_dict().items()}
    )
    plain.load_lora_weights(str(files["plain"]), adapter_name="x")
    plain.set_adapters(["x"], [0.6])
    expected = picture(plain)
    plain.unload_lora_weights()
    plain.unet.load_state_dict(own)
    assert (drawn == expected).all()
    assert (picture(plain) != expected).any()


def test_a_hundred_changes_leave_the_model_as_it_was(studio, draw):
    draw("a fox")
    found, sha256 = studio.catalogue.of("lora"), studio.catalogue.sha256
    model, before = studio.manager.resident, weights(studio.manager.resident)
    sets = (("LoHa",), ("IA3",), ("LoKr", "IA3"), ())
    living, resident = [], []
    for k in range(100):
        wanted = [Adapter(found[name], 1.0, 0.1 + k % 7 / 10) for name in sets[k % 4]]
        with adapters.applied(model, Additions(sha256, sha256, tuple(wanted))):
            pass
        if k in (11, 99):
            gc.collect()
            tensors = (each for each in gc.get_objects() if isinstance(each, torch.Tensor))
            living.append(sum(tensor.nbytes for tensor in tensors))
            resident.append(psutil.Process().memory_info().rss)
    assert weights(model) == before
    assert living[1] <= living[0] * 1.001, "weights pile up"
    assert resident[1] <= resident[0] + loading.weight(model.net), "memory piles up"  # laid 66 times since


def test_the_same_file_is_laid_once_for_many_pictures(draw, monkeypatch):
    laid = []
    lay = laying.lay
    monkeypatch.setattr(laying, "lay", lambda parts, each: laid.append(each.net) or lay(parts, each))
    draw("a fox")
    for weight in (0.5, 0.5, 0.75):
        draw(f"a fox<lora:IA3:{weight}><lora:plain:{weight}>")
    draw("a fox<lora:IA3:0.75><lora:plain:0.1>")
    assert laid == [0.5, 0.75]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_come_back_too(dtype, files):
    """They are computed in float32, and rounded once."""
    pipe = StableDiffusionPipeline.from_pretrained(
        POCKET, dtype=dtype, local_files_only=True, safety_checker=None
    )
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k."
    before = {key: each.clone() for key, each in pipe.unet.state_dict().items()}
    tensors = {
        key.removeprefix(name): each for key, each in load_file(files["LoKr"]).items() if key.startswith(name)
    }
    expected = lycoris.weight(layer.weight.data.float(), tensors, 0.8).to(dtype)
    laying.lay({"unet": pipe.unet, "text_encoder": pipe.text_encoder}, adapter(files["LoKr"]))
    assert torch.equal(layer.weight, expected)
    with laying.without(pipe.unet):
        assert torch.equal(layer.weight, before[f"{dict_name(pipe.unet, layer)}.weight"])
    assert torch.equal(layer.weight, expected)
    laying.restore(pipe.unet)
    for key, each in pipe.unet.state_dict().items():
        assert each.dtype == dtype
        assert torch.equal(each, before[key]), key


def dict_name(part, layer):
    return next(path for path, each in part.named_modules() if each is layer)


def adapter(path):
    from webui.catalogue.found import Found

    return Adapter(Found("lora", path.stem, path, "sd1", 0, ()), 0.8, 0.8)
