"""Textual inversion: words with vectors of their own, equal to diffusers', and no weight touched."""

import hashlib

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

from tests import tiny
from tests.conftest import POCKET, pixels, request_for
from webui.errors import InvalidField

OPTIONS = {"num_inference_steps": 4, "guidance_scale": 4.0, "width": 64, "height": 64}


def vectors(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 0.3


@pytest.fixture(scope="module")
def plain(engine):
    """diffusers' own pipeline that knows the same words; loaded after an engine is ready."""
    pipe = StableDiffusionPipeline.from_pretrained(
        POCKET, dtype=torch.float32, local_files_only=True, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    config = DPMSolverMultistepScheduler.load_config(POCKET / "scheduler")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)
    return pipe


@pytest.fixture(scope="module")
def folder(plain, tmp_path_factory):
    width = plain.text_encoder.config.hidden_size
    at = tmp_path_factory.mktemp("models") / "embeddings"
    at.mkdir()
    save_file({"emb_params": vectors(1, width)}, at / "zorb.safetensors")
    save_file({"emb_params": vectors(3, width, 1)}, at / "Bad-Quality v2.safetensors")
    save_file({"emb_params": vectors(2, width + 8, 2)}, at / "widest.safetensors")
    plain.load_textual_inversion(str(at / "zorb.safetensors"), token="zorb")
    plain.load_textual_inversion(str(at / "Bad-Quality v2.safetensors"), token="badquality")
    return at


@pytest.fixture(scope="module")
def studio(make_engine, folder):
    engine = make_engine(models_dir=[POCKET.parent, folder.parent])
    assert engine.submit([request_for()], "fixture").wait().state == "done"
    return engine


@pytest.fixture
def draw(studio):
    def draw(prompt, negative_prompt="", **changes):
        request = request_for(prompt=prompt, negative_prompt=negative_prompt, **changes)
        view = studio.submit([request], "test").wait()
        assert view.error is None
        return pixels(view.saved[0].path)

    return draw


def plainly(pipe, prompt, negative_prompt=""):
    generator = torch.Generator().manual_seed(1)
    return pixels(
        pipe(prompt, negative_prompt=negative_prompt or None, generator=generator, **OPTIONS).images[0]
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (("a ZORB fox", ""), ("a zorb fox", "")),
        (("zorb, a fox", "red, bad-quality v2"), ("zorb, a fox", "red, badquality")),
        (("Bad-Quality v2 zorb", "zorb"), ("badquality zorb", "zorb")),
    ],
)
def test_a_picture_with_an_embedding_equals_plain_diffusers(draw, plain, ours, theirs):
    expected = plainly(plain, *theirs)
    assert (draw(*ours) == expected).all()
    assert (expected != plainly(plain, "a fox")).any()


def test_a_name_is_a_whole_word(draw, studio):
    assert studio.count_tokens("a zorb fox", "")[0] == 3
    known = studio.manager.resident.encoder  # which has not learned it
    for prompt in ("a zorbs fox", "azorb fox"):
        assert studio.count_tokens(prompt, "") == known.count_tokens(prompt)
    assert (draw("a (zorb:1.0) fox") == draw("a zorb fox")).all()


def test_the_model_does_not_keep_the_word(studio, draw, plain):
    encoder = studio.manager.resident.encoder.text_encoder
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    draw("a zorb fox")
    after = encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(
        module._forward_hooks for module in encoder.modules() if "Embedding" in type(module).__name__
    )


def test_tokens_are_counted_as_the_vectors(studio):
    assert studio.count_tokens("a fox", "") == (2, 75)
    assert studio.count_tokens("a fox, bad-quality v2", "") == (6, 75)
    assert studio.count_tokens("zorb " * 74 + "bad-quality v2", "") == (77, 150)


def test_an_embedding_of_another_width_is_refused_by_name(studio):
    view = studio.submit([request_for(prompt="the widest fox")], "test").wait()
    assert str(view.error).startswith("Prompt: the embedding widest does not fit this model: its vectors are")


def test_the_picture_says_which_embeddings_it_has_and_its_key_follows_their_content(studio, folder):
    request = request_for(prompt="a zorb fox", negative_prompt="bad-quality v2")
    saved = studio.submit([request], "test").wait().saved[0]

    def short(name):
        return hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()[:12]

    hashes = f"zorb: {short('zorb')}, Bad-Quality v2: {short('Bad-Quality v2')}"
    assert f'TI hashes: "{hashes}"' in saved.infotext

    def key():
        return studio._executor.key(request, studio._executor.checkpoints()["pocket-model"])

    before, file = key(), folder / "zorb.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    changed = key()
    file.write_bytes(content)
    assert changed != before == key()


def test_an_embedding_for_another_family_is_refused_before_it_waits(studio, folder):
    file = folder / "largest.safetensors"
    save_file({"clip_l": vectors(2, 768), "clip_g": vectors(2, 1280)}, file)
    try:
        with pytest.raises(InvalidField, match="Negative prompt: largest is made for Stable Diffusion XL"):
            studio.submit([request_for(negative_prompt="largest")], "test")
    finally:
        file.unlink()


def test_each_encoder_of_a_large_model_takes_the_vectors_of_its_width(make_engine, engine, tmp_path):
    tiny.folder("sdxl", tmp_path / "xl")
    pipe = StableDiffusionXLPipeline.from_pretrained(
        tmp_path / "xl", dtype=torch.float32, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    widths = [each.config.hidden_size for each in (pipe.text_encoder, pipe.text_encoder_2)]
    learned = {"clip_l": vectors(2, widths[0]), "clip_g": vectors(2, widths[1])}
    (tmp_path / "embeddings").mkdir()
    save_file(learned, tmp_path / "embeddings/zorb.safetensors")
    pipe.load_textual_inversion(
        learned["clip_l"], token="zorb", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer
    )
    pipe.load_textual_inversion(
        learned["clip_g"], token="zorb", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
    )
    studio = make_engine(models_dir=[tmp_path])
    request = request_for(prompt="a zorb fox", model="xl", scheduler="Euler")
    view = studio.submit([request], "test").wait()
    assert view.error is None
    assert (pixels(view.saved[0].path) == plainly(pipe, "a zorb fox")).all()
