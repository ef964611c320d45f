"""Finding and loading checkpoints: what is usable is found, the rest is named and harms nothing."""

import json
import logging
import pickle
import shutil
from pathlib import Path

import pytest

from tests.conftest import POCKET, ROOT
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
