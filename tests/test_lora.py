"""LoRAs by a tag in the prompt: pictures equal to plain diffusers', and models as they were before."""

import gc
import hashlib
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from tests import parts, tiny
from tests.conftest import POCKET, pixels, request_for
from webui import infotext
from webui.diffusion import adapters
from webui.diffusion.additions import Adapter, Additions
from webui.errors import InvalidField
from webui.prompt_syntax import Segment

LAYOUTS = ("diffusers", "peft", "kohya", "dora")


@pytest.fixture(scope="module")
def plain(engine):
    """diffusers' own pipeline on the same files; loaded after an engine is ready, for this module alone."""
    pipe = StableDiffusionPipeline.from_pretrained(
        POCKET, dtype=torch.float32, local_files_only=True, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def files(plain, tmp_path_factory):
    """Name -> file: each layout, one for the net alone, one of a wider net, damaged and strange ones."""
    at = tmp_path_factory.mktemp("models") / "Lora"
    at.mkdir()
    files = {
        name: parts.lora(plain, at / f"{name}.safetensors", seed, name) for seed, name in enumerate(LAYOUTS)
    }
    files["net"] = parts.lora(plain, at / "net.safetensors", 7, "kohya", text=False)
    wide = {key: torch.cat([value] * 2, 1) for key, value in load_file(files["peft"]).items() if "_A" in key}
    save_file(
        wide | {k: v for k, v in load_file(files["peft"]).items() if "_B" in k}, at / "wide.safetensors"
    )
    (at / "cut.safetensors").write_bytes(files["peft"].read_bytes()[:1000])
    parts.changed(files["peft"], at / "oft.safetensors", lora_A="oft_R")
    parts.changed(files["peft"], at / "alien.safetensors", unet="thing", text_encoder="stuff")
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    save_file(
        {f"{name}.lora_down.weight": torch.zeros(4, 2048), f"{name}.lora_up.weight": torch.zeros(640, 4)},
        at / "big.safetensors",
    )
    tensors = load_file(files["kohya"])
    last = next(key for key in reversed(tensors) if "lora_up" in key)
    save_file(tensors | {last: tensors[last] * float("inf")}, at / "inf.safetensors")
    return files | {name: at / f"{name}.safetensors" for name in ("wide", "cut", "alien")}


@pytest.fixture(scope="module")
def studio(make_engine, files):
    engine = make_engine(models_dir=[POCKET.parent, files["net"].parent.parent])
    assert engine.submit([request_for()], "fixture").wait().state == "done"  # else two threads load at once
    return engine


@pytest.fixture
def draw(studio):
    def draw(prompt, **changes):
        view = studio.submit([request_for(prompt=prompt, **changes)], "test").wait()
        assert view.error is None
        return pixels(view.saved[0].path)

    return draw


@pytest.fixture
def plainly(plain, files):
    """diffusers' picture, with these LoRAs: (name, weight) each."""

    def plainly(prompt, *loras):
        for name, _ in loras:
            plain.load_lora_weights(str(files[name]), adapter_name=name)
        if loras:
            plain.set_adapters([name for name, _ in loras], [weight for _, weight in loras])
        picture = plain(
            prompt, num_inference_steps=4, guidance_scale=4.0, width=64, height=64,
            generator=torch.Generator().manual_seed(1),
        ).images[0]  # fmt: skip
        plain.unload_lora_weights()
        return pixels(picture)

    plain.scheduler = scheduler(plain)
    return plainly


def scheduler(pipe):
    from diffusers import DPMSolverMultistepScheduler

    config = DPMSolverMultistepScheduler.load_config(POCKET / "scheduler")
    return DPMSolverMultistepScheduler.from_config(config)


def weights(engine):
    """SHA-256 of the resident model's net and text encoder, and the types of their modules."""
    model = engine.manager.resident
    digest = hashlib.sha256()
    for part in (model.net, model.encoder.text_encoder):
        for name, module in part.named_modules():
            digest.update(f"{name} {type(module).__name__}".encode())
        for name, tensor in part.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


# The picture


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weight", [1.0, 0.4, -0.5])
def test_a_picture_with_a_lora_equals_plain_diffusers(draw, plainly, layout, weight):
    expected = plainly("a fox", (layout, weight))
    assert (draw(f"a fox<lora:{layout}:{weight}>") == expected).all()
    assert (expected != plainly("a fox")).any()


def test_several_loras_equal_plain_diffusers(draw, plainly):
    expected = plainly("a fox", ("net", 0.7), ("kohya", 0.5), ("peft", -0.25))
    assert (draw("<lora:net:0.7><lora:kohya:0.5>a fox<lora:peft:-0.25>") == expected).all()


def test_text_encoder_and_net_have_weights_of_their_own(draw, plain, files):
    plain.scheduler = scheduler(plain)
    plain.load_lora_weights(str(files["kohya"]), adapter_name="x")
    plain.set_adapters(["x"], [{"unet": 0.2, "text_encoder": 0.9}])
    options = {"num_inference_steps": 4, "guidance_scale": 4.0, "width": 64, "height": 64}
    expected = pixels(plain("a fox", generator=torch.Generator().manual_seed(1), **options).images[0])
    plain.unload_lora_weights()
    assert (draw("a fox<lora:kohya:0.9:0.2>") == expected).all()


def test_a_lora_named_twice_has_the_sum_of_its_weights(draw):
    assert (draw("a fox<lora:kohya:0.25><lora:kohya:0.5>") == draw("a fox<lora:kohya:0.75>")).all()


def test_a_weight_of_nothing_is_the_model_itself(draw, plainly):
    assert (draw("a fox<lora:kohya:0>") == plainly("a fox")).all()
    assert (draw("a fox<lora:kohya:0.5><lora:kohya:-0.5>") == plainly("a fox")).all()


def test_the_next_picture_has_nothing_of_the_lora_before(draw, plainly):
    expected = plainly("a fox")
    draw("a fox<lora:kohya:1>")
    assert (draw("a fox") == expected).all()
    draw("a fox<lora:kohya:1><lora:net:1>")
    assert (draw("a fox<lora:net:1>") == plainly("a fox", ("net", 1.0))).all()


# The model


def test_a_hundred_changes_leave_the_model_as_it_was(studio, draw):
    draw("a fox")
    loras, sha256 = studio.catalogue.of("lora"), studio.catalogue.sha256
    model, before = studio.manager.resident, weights(studio)
    living = []
    for k in range(100):
        names = (("kohya",), ("peft", "net"), ("net",), ())[k % 4]
        wanted = [Adapter(loras[name], 1.0, 0.1 + k % 7 / 10) for name in names]
        with adapters.applied(model, Additions(sha256, sha256, tuple(wanted))):
            pass
        if k in (11, 99):
            gc.collect()
            tensors = (each for each in gc.get_objects() if type(each) is torch.nn.Parameter)
            living.append(sum(tensor.nbytes for tensor in tensors))
    assert weights(studio) == before
    assert living[1] <= living[0], "weights pile up"


def test_a_set_of_loras_is_loaded_once_for_many_pictures(studio, draw, monkeypatch):
    loaded = []
    load = adapters._load
    monkeypatch.setattr(adapters, "_load", lambda pipe, found: loaded.append(found.name) or load(pipe, found))
    draw("a fox")
    for seed, weight in ((1, 0.5), (2, 0.5), (3, 1.0)):
        draw(f"a fox<lora:kohya:{weight}><lora:net:1>", seed=seed)
    assert loaded == ["kohya", "net"]


def test_a_run_that_fails_or_is_cancelled_leaves_nothing_behind(studio, draw, plainly):
    job = studio.submit([request_for(prompt="a fox<lora:kohya:1>", num_inference_steps=200)], "test")
    for view in job.watch():
        if view.net_calls:
            studio.cancel(job.id, "test")
            break
    assert job.wait().state == "cancelled"
    assert (draw("a fox") == plainly("a fox")).all()
    view = studio.submit([request_for(prompt="a fox<lora:kohya:1><lora:wide:1>")], "test").wait()
    assert view.state == "failed"
    assert (draw("a fox") == plainly("a fox")).all()


# What is refused


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<lora:nothing:1>", "there is no LoRA named 'nothing'"),
        ("<lora:big:1>", "big is made for Stable Diffusion XL, and the model .* is Stable Diffusion 1.x"),
        ("<lora:../kohya:1>", "without a folder"),
        ("<lora:kohya:nan>", "nan"),
        ("<lora:cut:1>", "'cut' cannot be used"),
        ("<lora:oft:1>", "'oft' cannot be used. It is an OFT as peft saves it"),
    ],
)
def test_a_lora_that_cannot_be_is_refused_before_it_waits(studio, prompt, said):
    with pytest.raises(InvalidField, match=f"^Prompt: .*{said}"):
        studio.submit([request_for(prompt=prompt)], "test")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wide", "the LoRA wide does not fit"),
        ("alien", "the LoRA alien does not fit"),
        ("inf", "the LoRA inf holds values that are not numbers"),
    ],
)
def test_a_file_that_turns_out_wrong_fails_its_job_by_name(studio, draw, name, said):
    view = studio.submit([request_for(prompt=f"a fox<lora:{name}:1>")], "test").wait()
    assert view.state == "failed"
    assert str(view.error).startswith(f"Prompt: {said}")
    assert draw("a fox").any()


# What is written and remembered


def hash_of_weights(file: Path) -> str:
    """As the notes of A1111 and Civitai have it ("AutoV3"): of what follows the header."""
    content = file.read_bytes()
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


def test_the_picture_says_which_loras_it_has(studio, files):
    prompt = "a  fox <lora:kohya:0.50>,<lora:net:1>"
    saved = studio.submit([request_for(prompt=prompt)], "test").wait().saved[0]
    hashes = [f"{name}: {hash_of_weights(files[name])[:12]}" for name in ("kohya", "net")]
    assert f'Lora hashes: "{", ".join(hashes)}"' in saved.infotext
    assert infotext.read(saved.infotext).request().prompt == prompt


def test_the_key_of_a_picture_follows_the_content_of_its_loras(studio, files):
    file = files["net"].with_name("other.safetensors")
    request = request_for(prompt="a fox<lora:other:0.5>")

    def key(content):
        file.write_bytes(content)
        return studio._executor.key(request, studio._executor.checkpoints()["pocket-model"])

    kohya, net = files["kohya"].read_bytes(), files["net"].read_bytes()
    before = key(kohya)
    assert key(net) != before
    assert key(kohya) == before


def test_cells_of_a_grid_share_first_predictions_only_with_the_same_loras(studio, draw):
    """The memory of the net's first calls is one of each set of LoRAs."""
    prompts = ["a fox<lora:kohya:1>", "a fox<lora:kohya:-1>", "a fox<lora:peft:1>", "a fox"]
    requests = [request_for(prompt=p, guidance_scale=s) for p in prompts for s in (3.0, 5.0)]
    view = studio.submit(requests, "test", reuse=True).wait()
    assert view.error is None
    for request, saved in zip(requests, view.saved, strict=True):
        alone = draw(request.prompt, guidance_scale=request.guidance_scale)
        assert (pixels(saved.path) == alone).all(), request.prompt


# Other families


@pytest.fixture(scope="module")
def large(engine, tmp_path_factory):
    """A tiny SDXL beside a refiner with which it shares its second encoder, and a LoRA of kohya's for it."""
    at = tmp_path_factory.mktemp("xl")
    tiny.folder("sdxl", at / "xl")
    pipe = StableDiffusionXLPipeline.from_pretrained(at / "xl", dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    (at / "Lora").mkdir()
    parts.lora(pipe, at / "Lora/ink.safetensors", 3, "kohya")
    return at, pipe


def test_a_lora_of_two_text_encoders_equals_plain_diffusers(make_engine, large):
    at, pipe = large
    studio = make_engine(models_dir=[at])
    request = request_for(prompt="a fox<lora:ink:0.7>", model="xl", scheduler="Euler")
    view = studio.submit([request], "test").wait()
    assert view.error is None
    pipe.load_lora_weights(str(at / "Lora/ink.safetensors"), adapter_name="ink")
    pipe.set_adapters(["ink"], [0.7])
    options = {"num_inference_steps": 4, "guidance_scale": 4.0, "width": 64, "height": 64}
    expected = pixels(pipe("a fox", generator=torch.Generator().manual_seed(1), **options).images[0])
    pipe.unload_lora_weights()
    without = pixels(pipe("a fox", generator=torch.Generator().manual_seed(1), **options).images[0])
    assert (pixels(view.saved[0].path) == expected).all()
    assert (expected != without).any()


def test_parts_that_are_shared_are_silent_for_another_model(studio, draw, plainly):
    """As for a refiner, which reads with the encoder of a model that has been given a LoRA."""
    expected = plainly("a fox", ("kohya", 1.0))
    assert (draw("a fox<lora:kohya:1>") == expected).all()
    model = studio.manager.resident
    encoder = model.apart().encoder
    chunks = encoder.chunks(((Segment("a fox", 1.0),),))
    with adapters.silent(model):
        plain = encoder.encode(chunks).tokens
    loud = model.apart().encoder.encode(chunks).tokens
    draw("a fox")
    assert torch.equal(plain, model.apart().encoder.encode(chunks).tokens)
    assert not torch.equal(plain, loud)
