"""Another VAE than the model's own: equal to a plain pipeline that has it, and named in the picture."""

import hashlib
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from tests import single_file, tiny
from tests.conftest import pixels, request_for
from webui import infotext
from webui.diffusion import vaes
from webui.errors import InvalidField


@pytest.fixture(scope="module")
def models(engine, tmp_path_factory):
    """Two tiny models of one family and one of another latent space, and VAEs in the three layouts."""
    at = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 1), ("two", 2), ("three", 3)):
        tiny.folder("sd1", at / name, seed=seed)
    tiny.folder("sd3", at / "four", seed=4)
    (at / "VAE").mkdir()
    third = at / "three/vae"
    weights = load_file(third / "diffusion_pytorch_model.safetensors")
    save_file(weights, at / "VAE/flat.safetensors")
    single_file.write(at / "three", at / "whole.safetensors", layout="ldm")
    start = "first_stage_model."
    ldm = {name: each for name, each in load_file(at / "whole.safetensors").items() if name.startswith(start)}
    save_file({name.removeprefix(start): each for name, each in ldm.items()}, at / "VAE/ldm.safetensors")
    (at / "whole.safetensors").unlink()
    AutoencoderKL.from_pretrained(third, local_files_only=True).save_pretrained(at / "VAE/folder")
    wide = load_file(at / "four/vae/diffusion_pytorch_model.safetensors")
    save_file(wide, at / "VAE/wide.safetensors")
    weights["decoder.conv_in.weight"][0, 0] = torch.nan
    save_file(weights, at / "VAE/nan.safetensors")
    return at


@pytest.fixture(scope="module")
def studio(make_engine, models):
    engine = make_engine(models_dir=[models])
    assert engine.submit([request_for(model="one")], "fixture").wait().state == "done"
    return engine


def drawn(studio, **changes):
    view = studio.submit([request_for(**{"model": "one", **changes})], "test").wait()
    assert view.error is None
    return view.saved[0]


def plainly(models, name, vae):
    pipe = StableDiffusionPipeline.from_pretrained(
        models / name, dtype=torch.float32, local_files_only=True, safety_checker=None
    )
    pipe.vae = AutoencoderKL.from_pretrained(models / vae / "vae", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    config = DPMSolverMultistepScheduler.load_config(models / name / "scheduler")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)
    options = {"num_inference_steps": 4, "guidance_scale": 4.0, "width": 64, "height": 64}
    return pixels(pipe("a fox", generator=torch.Generator().manual_seed(1), **options).images[0])


@pytest.mark.parametrize("vae", ["flat", "ldm", "folder"])
@pytest.mark.parametrize("model", ["one", "two"])
def test_a_picture_with_another_vae_equals_plain_diffusers(studio, models, model, vae):
    assert (pixels(drawn(studio, model=model, vae=vae).path) == plainly(models, model, "three")).all()


def test_the_next_picture_is_the_models_own(studio, models):
    drawn(studio, vae="ldm")
    assert (pixels(drawn(studio).path) == plainly(models, "one", "one")).all()


def test_a_source_is_encoded_by_the_vae_that_was_chosen(studio):
    with Image.open(drawn(studio).path) as picture:
        source = studio.sources.keep(picture.convert("RGB"), "test")
    one, other = (pixels(drawn(studio, image=source, vae=vae).path) for vae in ("", "ldm"))
    assert (one != other).any()


def test_a_vae_is_loaded_once_for_all_models(studio, models, monkeypatch):
    shutil.copy(models / "VAE/flat.safetensors", models / "VAE/fresh.safetensors")
    loaded = []
    load = vaes._load
    monkeypatch.setattr(vaes, "_load", lambda *args: loaded.append(args[1].name) or load(*args))
    for model in ("one", "two", "one"):
        drawn(studio, model=model, vae="fresh", seed=5)
    assert loaded == ["fresh"]


def test_the_picture_says_which_vae_it_has(studio, models):
    saved = drawn(studio, vae="flat")
    digest = hashlib.sha256((models / "VAE/flat.safetensors").read_bytes()).hexdigest()
    assert "VAE: flat" in saved.infotext
    assert f"VAE hash: {digest[:10]}" in saved.infotext
    reading = infotext.read(saved.infotext)
    assert reading.request().vae == "flat"
    assert not reading.unknown
    assert "VAE" not in drawn(studio).infotext


def test_the_key_of_a_picture_follows_the_content_of_its_vae(studio, models):
    def key(vae):
        return studio._executor.key(request_for(model="one", vae=vae), studio._executor.checkpoints()["one"])

    copy = models / "VAE/copy.safetensors"
    copy.write_bytes((models / "VAE/flat.safetensors").read_bytes())
    assert key("copy") == key("flat") != key("")
    assert key("ldm") != key("flat")


@pytest.mark.parametrize(
    ("vae", "said"),
    [("nothing", "there is no VAE named 'nothing'"), ("../flat", "there is no VAE"), ("one", "is not a VAE")],
)
def test_a_vae_that_is_not_there_is_refused_before_it_waits(studio, vae, said):
    with pytest.raises(InvalidField, match=f"^VAE: .*{said}"):
        studio.submit([request_for(model="one", vae=vae)], "test")


@pytest.mark.parametrize(("vae", "said"), [("wide", "16 channels"), ("nan", "not numbers")])
def test_a_vae_that_turns_out_wrong_is_refused_by_name(studio, vae, said):
    """By its family at once, where its header says it, else when it is loaded."""
    try:
        error = studio.submit([request_for(model="one", vae=vae)], "test").wait().error
    except InvalidField as refused:
        error, said = refused, "is made for"
    assert str(error).startswith(f"VAE: {vae}")
    assert said in str(error)
