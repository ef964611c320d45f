"""Models that are damaged, dangerous, missing or something else are refused by a sentence; none is run."""

import io
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest

from tests import layouts, single_file, tiny
from tests.conftest import POCKET, pixels, request_for
from webui.engine import Engine
from webui.errors import InvalidField

SD1_KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def engine(make_engine, models) -> Engine:
    """One that looks into ``models`` too, and is ready."""
    engine = make_engine(models_dir=[models])
    assert engine.submit([request_for()], "me").wait().state == "done"
    return engine


@pytest.fixture(autouse=True)
def empty(models):
    yield
    for path in models.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def refusal(engine: Engine, model: str) -> str:
    """What a person is told who asks for a picture of this model."""
    with pytest.raises(InvalidField) as caught:
        engine.submit([request_for(model=model)], "me")
    assert caught.value.field == "model"
    assert str(engine.settings.models_dir[0]) not in str(caught.value)
    return str(caught.value)


class Bomb:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def zipped(content: bytes) -> bytes:
    """As torch.save packs it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("archive/data.pkl", content)
    return packed.getvalue()


@pytest.mark.parametrize("pack", [bytes, zipped])
@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".bin", ".safetensors"])
def test_a_malicious_pickle_is_listed_refused_and_never_run(engine, models, tmp_path, ending, protocol, pack):
    content = pack(pickle.dumps(Bomb(tmp_path / "exploded"), protocol))
    (models / "Stable-diffusion").mkdir()
    (models / "Stable-diffusion" / f"evil{ending}").write_bytes(content)
    (found,) = [each for each in engine.catalogue.all() if each.name == "evil"]
    assert found.kind == "checkpoint"
    told = refusal(engine, "evil")
    assert told.startswith("Model: 'evil' cannot be used. It is ")
    if ending != ".safetensors" or protocol or pack is zipped:
        assert "a pickle, which can run programs" in told
    engine.catalogue.sha256(found)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded"), protocol))
    assert (tmp_path / "exploded").exists()  # so it would have been


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "It is empty."),
        (b"<!DOCTYPE html><title>Sign in</title>", "It is a web page"),
        ((2**60).to_bytes(8, "little") + b"{}", "It is damaged: its header claims to be"),
        (struct.pack("<Q", 300) + b'{"a": {"dtype"', "It is cut short"),
    ],
)
def test_a_damaged_file_is_refused_by_what_is_wrong_with_it(engine, models, content, sentence):
    (models / "bad.safetensors").write_bytes(content)
    assert f"'bad' cannot be used. {sentence}" in refusal(engine, "bad")


def test_a_checkpoint_cut_short_by_a_byte_is_refused(engine, models):
    file = single_file.write(POCKET, models / "short.safetensors")
    assert "short" in [info.name for info in engine.models()]
    file.write_bytes(file.read_bytes()[:-1])
    assert "short" not in [info.name for info in engine.models()]
    assert "weights at its end are missing" in refusal(engine, "short")


@pytest.mark.parametrize(
    ("shapes", "what"),
    [
        ({SD1_KEY: (8, 768)}, "it is a LoRA"),
        (lambda: layouts.part("sd1", "vae"), "it is a VAE"),
        ({"controlnet_down_blocks.0.weight": (320, 320, 1, 1)}, "it is a ControlNet"),
        ({"emb_params": (4, 768)}, "it is an embedding"),
        ({"a.b": (3, 4, 5)}, "it is a file of no known kind"),
    ],
)
def test_what_is_no_checkpoint_is_refused_as_what_it_is(engine, models, shapes, what):
    shapes = shapes() if callable(shapes) else shapes
    layouts.write(models / "Stable-diffusion" / "given.safetensors", layouts.header(shapes))
    assert refusal(engine, "given") == f"Model: 'given' is not a model: {what}"


def test_a_refiner_is_refused_for_what_it_cannot_do(engine, models):
    tiny.folder("sdxl-refiner", models / "refiner")
    with pytest.raises(InvalidField, match="text to image"):
        engine.submit([request_for(model="refiner")], "me")


def test_a_text_encoder_that_is_missing_is_named(engine, models):
    state = layouts.whole("sd1")
    lone = {name: each for name, each in state.items() if not name.startswith("cond_stage")}
    layouts.write(models / "file.safetensors", layouts.header(lone))
    assert "It has no text encoders (Stable Diffusion 1.x). To use it, put" in refusal(engine, "file")
    layouts.write(models / "net.safetensors", layouts.header(layouts.net("flux-dev")))
    assert "It is a denoising net alone (Flux). To use it, put" in refusal(engine, "net")
    shutil.copytree(POCKET, models / "folder", ignore=shutil.ignore_patterns("text_encoder"))
    assert "lacks .safetensors weights of text_encoder" in refusal(engine, "folder")


def test_two_files_of_one_name_are_both_there_and_each_makes_its_own_picture(engine, models):
    tiny.folder("sd1", models / "one" / "same")
    tiny.folder("sd1", models / "two" / "same", seed=5)
    names = [info.name for info in engine.models() if info.name.startswith("same")]
    assert names == ["same", "same (two)"]
    made = [engine.submit([request_for(model=name)], "me").wait().saved[0] for name in names]
    assert (pixels(made[0].path) != pixels(made[1].path)).any()


def test_a_model_deleted_while_it_is_chosen_is_said_to_be_gone(engine, models):
    tiny.folder("sd1", models / "here")
    assert engine.submit([request_for(model="here")], "me").wait().state == "done"
    shutil.rmtree(models / "here")
    assert "there is no model named 'here'" in refusal(engine, "here")
    assert engine.submit([request_for(model="pocket-model")], "me").wait().state == "done"


def test_a_model_deleted_while_its_job_waits_fails_that_job_alone(engine, models):
    from tests.conftest import request_for

    tiny.folder("sd1", models / "here")
    with engine._executor.busy:
        before = engine.submit([request_for(num_inference_steps=2, seed=7)], "me")
        job = engine.submit([request_for(model="here", seed=7)], "me")
        shutil.rmtree(models / "here")
    view = job.wait()
    assert view.state == "failed"
    assert "no longer there" in str(view.error)
    assert before.wait().state == "done"


def test_a_single_file_and_its_folder_make_the_same_picture(engine, models):
    single_file.write(POCKET, models / "file.safetensors")
    made = [
        engine.submit([request_for(model=name, seed=11)], "me").wait().saved[0]
        for name in ("file", "pocket-model")
    ]
    assert (pixels(made[0].path) == pixels(made[1].path)).all()


def test_a_name_never_becomes_a_path(engine, models):
    tiny.folder("sd1", models.parent / "outside")
    for name in ("../outside", str(models.parent / "outside"), "x/../../outside", "pocket-model/../x"):
        assert "there is no model named" in refusal(engine, name)


def test_allowed_pickles_make_the_picture_of_their_weights_and_run_nothing(make_engine, tmp_path):
    import torch
    from safetensors.torch import load_file

    models = tmp_path / "models"
    file = single_file.write(POCKET, models / "good.safetensors")
    state = load_file(file)
    torch.save({"state_dict": state}, models / "good.ckpt")
    torch.save({**state, "extra": Bomb(tmp_path / "exploded")}, models / "evil.ckpt")
    shutil.copytree(models / "good.config", models / "evil.config")
    file.unlink()
    engine = make_engine(models_dir=[models], allow_pickle=True)
    made = [engine.submit([request_for(model=name)], "me").wait() for name in ("good", "pocket-model")]
    assert (pixels(made[0].saved[0].path) == pixels(made[1].saved[0].path)).all()
    view = engine.submit([request_for(model="evil")], "me").wait()
    assert view.state == "failed"
    assert "evil cannot be loaded" in str(view.error)
    assert not (tmp_path / "exploded").exists()
