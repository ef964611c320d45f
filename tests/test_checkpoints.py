"""Finding and loading checkpoints: what is usable is found, the rest is named and harms nothing."""

import dataclasses
import json
import logging
import pickle
import shutil
from pathlib import Path

import pytest

from tests import layouts, single_file, tiny
from tests.conftest import POCKET, ROOT
from webui.catalogue import hashes
from webui.catalogue.shelves import Catalogue
from webui.diffusion import checkpoints, loading
from webui.diffusion.devices import Device
from webui.errors import ModelError

CPU = Device("cpu", "float32", "sdpa")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may spoil."""
    return Path(shutil.copytree(POCKET, tmp_path / "models" / "mine"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_embedded_model_is_found_with_its_card():
    found = checkpoints.find([ROOT / "models"])
    info = found["pocket-model"].info
    assert (info.width, info.height) == (128, 128)
    assert "128x128" in info.note
    assert len(info.examples) >= 5
    assert info.defaults["guidance_scale"] == 4.0
    assert found["pocket-model"].scheduler_config["prediction_type"] == "v_prediction"


def test_a_name_met_twice_is_told_apart_and_the_first_keeps_it(copy):
    shutil.copytree(POCKET, copy.parent.parent / "more" / "mine")
    found = checkpoints.find([copy.parent, copy.parent.parent / "more"])
    assert list(found) == ["mine", "mine (more)"]


def test_a_folder_named_twice_or_missing_is_no_trouble(copy):
    assert list(checkpoints.find([copy.parent, copy.parent, copy.parent / "nowhere"])) == ["mine"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda m: (m / "model_index.json").write_text("{"), "Expecting property name"),
        (lambda m: (m / "model_index.json").write_text("[]"), "does not hold an object"),
        (lambda m: edit(m / "model_index.json", _class_name="FluxPipeline"), "it is a FluxPipeline"),
        (lambda m: edit(m / "unet/config.json", in_channels=8), "no task that is known"),
        (lambda m: shutil.rmtree(m / "text_encoder"), "text_encoder"),
        (lambda m: (m / "webui.json").write_text('{"defaults": {"width": 7}}'), "Width: must be at least 64"),
        (lambda m: (m / "webui.json").write_text('{"defaults": {"path": "/"}}'), "no such setting"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_named_in_the_log(copy, caplog, spoil, reason):
    spoil(copy)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.find([copy.parent]) == {}
    assert "mine is left out" in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"\xff" * 64, (2**60).to_bytes(8, "little") + b"{}"]
)
def test_damaged_weights_are_refused_without_a_path(copy, content):
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    checkpoint = checkpoints.find([copy.parent])["mine"]
    with pytest.raises(ModelError, match="mine cannot be loaded") as caught:
        loading.load(checkpoint, CPU)
    assert str(copy) not in str(caught.value)


def test_truncated_weights_are_refused(copy):
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError):
        loading.load(checkpoints.find([copy.parent])["mine"], CPU)


class Bomb:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"])
def test_a_pickle_is_never_opened_whatever_its_name(copy, name):
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (copy / "unet" / name).write_bytes(pickle.dumps(Bomb(copy / "exploded")))
    found = checkpoints.find([copy.parent])
    if found:
        with pytest.raises(ModelError):
            loading.load(found["mine"], CPU)
    assert not (copy / "exploded").exists()


def test_the_hash_is_of_the_weights_whatever_the_folder_is_called(copy):
    (mine,) = checkpoints.find([copy.parent]).values()
    embedded = checkpoints.find([ROOT / "models"])["pocket-model"]
    assert checkpoints.sha256(mine) == checkpoints.sha256(embedded)
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert checkpoints.sha256(checkpoints.find([copy.parent])["mine"]) != checkpoints.sha256(embedded)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "sliced"])
def test_weights_are_loaded_as_the_device_says(dtype, attention):
    import torch

    device = Device("cpu", dtype, attention)
    weights = loading.load(checkpoints.find([ROOT / "models"])["pocket-model"], device)
    for part in weights.parts.values():
        assert {p.dtype for p in part.parameters()} == {device.torch_dtype}
        assert not part.training
    net = weights.parts["unet"]
    convolution = net.conv_in.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last) == (dtype == "bfloat16")
    processors = {type(p).__name__ for p in net.attn_processors.values()}
    assert processors == ({"SlicedAttnProcessor"} if attention == "sliced" else {"AttnProcessor2_0"})


# All families, and single files


@pytest.mark.parametrize(
    ("config", "side", "defaults"),
    [
        ("sd1", 512, {}),
        ("sd1-inpainting", 512, {}),
        ("sd2", 768, {}),
        ("sd2-base", 512, {}),
        ("sdxl", 1024, {"num_inference_steps": 25, "guidance_scale": 6.0}),
        ("sdxl-refiner", 1024, {"num_inference_steps": 25, "guidance_scale": 6.0, "strength": 0.3}),
        ("sd3", 1024, {"num_inference_steps": 28, "guidance_scale": 5.0}),
        ("sd35-large", 1024, {"num_inference_steps": 28, "guidance_scale": 5.0}),
    ],
)
def test_a_single_file_is_a_checkpoint_with_what_its_family_works_best_with(config, side, defaults, tmp_path):
    source = "sd2" if config == "sd2-base" else config
    layouts.write(tmp_path / f"{config}.safetensors", layouts.header(layouts.whole(source)))
    checkpoint = checkpoints.find([tmp_path])[config]
    assert checkpoint.file
    assert checkpoint.config == checkpoints.CONFIGS / config
    assert (checkpoint.info.width, checkpoint.info.height) == (side, side)
    assert checkpoint.info.defaults == {"width": side, "height": side, **defaults}
    assert checkpoint.info.bytes == (tmp_path / f"{config}.safetensors").stat().st_size


@pytest.mark.parametrize("family", tiny.MAKERS)
def test_a_folder_and_a_file_of_any_family_are_the_same_to_a_person(family, tmp_path):
    folder = tiny.folder(family, tmp_path / "folder")
    single_file.write(folder, tmp_path / "file.safetensors")
    found = checkpoints.find([tmp_path])
    ours, theirs = found["file"], found["folder"]
    same = ("family", "tasks", "guided", "width", "height", "defaults")
    assert [getattr(ours.info, name) for name in same] == [getattr(theirs.info, name) for name in same]
    assert ours.scheduler_config == theirs.scheduler_config
    assert ours.config == tmp_path / "file.config"
    assert ours.info.guided == (family != "flux")


def test_what_a_file_says_of_its_predictions_is_told_to_the_scheduler(tmp_path):
    state = layouts.whole("sdxl")
    for name, keys in (("plain", ()), ("v", ("v_pred",)), ("both", ("v_pred", "ztsnr"))):
        header = layouts.header({**state, **dict.fromkeys(keys, ())})
        layouts.write(tmp_path / f"{name}.safetensors", header)
    found = {name: each.scheduler_config for name, each in checkpoints.find([tmp_path]).items()}
    published = json.loads((checkpoints.CONFIGS / "sdxl/scheduler/scheduler_config.json").read_text())
    assert found["plain"] == published
    assert found["v"] == {**published, "prediction_type": "v_prediction"}
    assert found["both"] == found["v"] | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("name", "steps", "scale", "side"),
    [
        ("sdxl-turbo", 4, 1.0, 512),
        ("juggernautXL_lightning_8step", 8, 1.0, 1024),
        ("dreamshaper-lcm", 4, 1.5, 1024),
        ("Hyper-SDXL-1step", 1, 1.0, 1024),
        ("turbulence", 25, 6.0, 1024),
        ("hyperrealism_v2", 25, 6.0, 1024),
    ],
)
def test_a_model_made_for_few_steps_is_known_by_its_name(name, steps, scale, side, tmp_path):
    layouts.write(tmp_path / f"{name}.safetensors", layouts.header(layouts.whole("sdxl")))
    info = checkpoints.find([tmp_path])[name].info
    assert (info.defaults["num_inference_steps"], info.defaults["guidance_scale"]) == (steps, scale)
    assert info.width == side


def test_a_card_of_a_single_file_is_in_its_configuration(tmp_path):
    single_file.write(POCKET, tmp_path / "mine.safetensors")
    info = checkpoints.find([tmp_path])["mine"].info
    assert info.title == "Pocket (embedded)"
    assert info.defaults["guidance_scale"] == 4.0


def test_what_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    shutil.copytree(POCKET, tmp_path / "models" / "mine")
    finder = checkpoints.Finder(Catalogue([tmp_path / "models"]))
    (before,) = finder.all().values()
    monkeypatch.setattr(checkpoints, "_read", None)
    assert finder.all() == {"mine": before}
    monkeypatch.undo()
    edit(tmp_path / "models" / "mine" / "webui.json", title="Other")
    assert finder.all()["mine"].info.title == "Other"


def test_what_cannot_be_used_is_named_in_the_log_once(tmp_path, caplog):
    (tmp_path / "Stable-diffusion").mkdir()
    (tmp_path / "Stable-diffusion" / "bad.safetensors").write_bytes(b"<html>")
    finder = checkpoints.Finder(Catalogue([tmp_path]))
    with caplog.at_level(logging.WARNING):
        assert finder.all() == finder.all() == {}
    (record,) = caplog.records
    assert record.getMessage().startswith("models: bad is left out: it is a web page, not a model")


def test_the_hash_of_a_file_is_that_of_its_content_and_reckoned_once(tmp_path, monkeypatch):
    import hashlib

    file = single_file.write(POCKET, tmp_path / "models" / "mine.safetensors")
    found = checkpoints.Finder(Catalogue([tmp_path / "models"], tmp_path)).all()["mine"]
    assert checkpoints.sha256(found) == hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(hashes, "digest", None)
    again = checkpoints.Finder(Catalogue([tmp_path / "models"], tmp_path)).all()["mine"]
    assert checkpoints.sha256(again) == checkpoints.sha256(found)


def test_shipped_configurations_are_small_and_read_prompts_as_clip_does():
    files = [path for path in checkpoints.CONFIGS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    for folder in {path.parent for path in checkpoints.CONFIGS.glob("*/model_index.json")}:
        shipped = dataclasses.replace(checkpoints.find([ROOT / "models"])["pocket-model"], config=folder)
        index = json.loads((folder / "model_index.json").read_text())
        readers = {name: value[1] for name, value in index.items() if isinstance(value, list) and value[1]}
        found = checkpoints.tokenizers(shipped)
        assert sorted(found) == sorted(name for name in readers if name.startswith("tokenizer")) != []
        for name in [name for name in found if readers[name] == "CLIPTokenizer"]:
            tokenizer = found[name]
            # as published in the documents of CLIP: "a photo of a cat", and the pads of OpenCLIP
            assert tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
            pads = (tokenizer.pad_token_id, tokenizer.model_max_length)
            second = name == "tokenizer_2" or folder.name.startswith("sd2")
            assert pads == (0 if second else 49407, 77)


@pytest.mark.parametrize(
    ("text", "ids"),
    [  # as transformers' tests and documents of T5 have them
        ("A long paragraph for summarization.", [71, 307, 8986, 21, 4505, 1635, 1707, 5, 1]),
        ("Summary of the text.", [20698, 13, 8, 1499, 5, 1]),
        ("The house is wonderful.", [37, 629, 19, 1627, 5, 1]),
        ("<pad> Today is <unk> nice day", [0, 1960, 19, 2, 1245, 239, 1]),
        ("\ufb01ne\u3000\uff46ull <extra_id_0>", [1399, 423, 32099, 1]),  # NFKC: a ligature, wide letters
    ],
)
def test_the_shipped_t5_reads_prompts_as_googles(text, ids, t5):
    assert t5(text)["input_ids"] == ids


def test_the_shipped_t5_has_all_its_words_and_a_notice(t5):
    assert (len(t5), t5.pad_token_id, t5.eos_token_id, t5.model_max_length) == (32_100, 0, 1, 512)
    assert {"NOTICE", "LICENSE"} < {path.name for path in checkpoints.T5_WORDS.iterdir()}


@pytest.fixture(scope="module")
def t5():
    config = checkpoints.CONFIGS / "flux-dev"
    pocket = checkpoints.find([ROOT / "models"])["pocket-model"]
    return checkpoints.tokenizers(dataclasses.replace(pocket, config=config))["tokenizer_2"]


def test_a_persons_own_t5_vocabulary_goes_before_the_shipped_one_as_soon_as_it_is_there(tmp_path):
    flux = tiny.folder("flux", tmp_path / "flux")
    file = layouts.write(
        tmp_path / "models" / "dev.safetensors", layouts.header(layouts.whole("flux-dev", t5=True))
    )
    finder = checkpoints.Finder(Catalogue([file.parent]))
    assert finder.all()["dev"].vocabulary == checkpoints.T5_WORDS
    shutil.copytree(flux / "tokenizer_2", tmp_path / "models" / "t5-vocabulary")
    (checkpoint,) = finder.all().values()
    assert (checkpoint.family, checkpoint.info.guided, checkpoint.info.width) == ("flux", False, 1024)
    assert checkpoint.info.defaults["guidance_scale"] == 3.5
    found = checkpoints.tokenizers(checkpoint)
    assert found["tokenizer"]("a cat")["input_ids"] == [49406, 320, 2368, 49407]
    import transformers

    own = transformers.T5TokenizerFast.from_pretrained(flux / "tokenizer_2")
    assert found["tokenizer_2"]("a fox")["input_ids"] == own("a fox")["input_ids"]
    assert found["tokenizer_2"].model_max_length == 512
