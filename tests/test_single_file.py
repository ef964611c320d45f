"""The writer of single files against diffusers' reader: what is written is read back, bit for bit."""

from pathlib import Path

import pytest
import torch

from tests import single_file, tiny
from tests.conftest import POCKET

PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


def pipelines(folder: Path, file: Path):
    """The pipeline of a folder, and that of a file written of it, both loaded by diffusers."""
    import diffusers

    kind = getattr(diffusers, single_file._settings_of_pipeline(folder))
    options = {"local_files_only": True, "dtype": torch.float32}
    return (
        kind.from_pretrained(folder, **options),
        kind.from_single_file(str(file), config=str(file.with_suffix(".config")), **options),
    )


def weights(pipe, part: str) -> dict[str, torch.Tensor]:
    module = getattr(pipe, part, None)
    return {} if module is None else dict(module.state_dict())


def identity_projection(folder: Path) -> None:
    """diffusers puts the identity into CLIP L of SD3, whatever the file says."""
    from safetensors.torch import load_file, save_file

    file = folder / "text_encoder" / "model.safetensors"
    state = load_file(file)
    state["text_projection.weight"] = torch.eye(len(state["text_projection.weight"]))
    save_file(state, file, {"format": "pt"})


@pytest.mark.parametrize("family", ["pocket", *tiny.MAKERS])
def test_a_file_of_a_folder_has_its_weights_bit_for_bit(family, tmp_path, monkeypatch):
    folder = POCKET if family == "pocket" else tiny.folder(family, tmp_path / "folder")
    if family == "sd3":
        identity_projection(folder)
    if family == "flux":
        single_file.small_flux_loads(monkeypatch)
    plain, single = pipelines(folder, single_file.write(folder, tmp_path / "one.safetensors"))
    compared = 0
    for part in PARTS:
        ours, theirs = weights(single, part), weights(plain, part)
        assert ours.keys() == theirs.keys()
        for name, weight in theirs.items():
            assert torch.equal(ours[name], weight), (part, name)
            compared += 1
    assert compared > 150


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_t5s_embedding_is_found_under_either_of_its_names(family, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    from webui.diffusion import checkpoints, loading
    from webui.diffusion.devices import Device

    single_file.small_flux_loads(monkeypatch)
    folder = tiny.folder(family, tmp_path / "folder")
    file = single_file.write(folder, tmp_path / "models" / "one.safetensors")
    state = {name: each for name, each in load_file(file).items() if "embed_tokens" not in name}
    save_file(state, file)
    checkpoint = checkpoints.find([tmp_path / "models"])["one"]
    parts = loading.load(checkpoint, Device("cpu", "float32", "sdpa")).parts
    t5 = parts["text_encoder_2" if family == "flux" else "text_encoder_3"]
    assert torch.equal(t5.encoder.embed_tokens.weight, t5.shared.weight)
    assert t5.shared.weight.device.type == "cpu"
