"""Single files, and nets apart from their VAE and text encoders: found, made whole, run by the engine."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import layouts, single_file, tiny
from tests.conftest import pixels, request_for
from tests.test_single_file import identity_projection
from webui.catalogue.shelves import Catalogue
from webui.errors import InvalidField

FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")
PRECISIONS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
}
ENCODERS = ("cond_stage_model.", "conditioner.", "text_encoders.")
VAES = {"sd1": "vae", "sd2": "vae", "sdxl": "sdxl_vae", "sd3": "sd3_vae", "flux": "ae"}


def stored(file: Path, dtype: torch.dtype) -> Path:
    """The file with its weights in this precision."""
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    return file


def rounded(folder: Path, at: Path, dtype: torch.dtype) -> Path:
    """A copy in float32 of the numbers that this precision keeps."""
    shutil.copytree(folder, at)
    for file in at.rglob("*.safetensors"):
        state = {name: tensor.to(dtype).float() for name, tensor in load_file(file).items()}
        save_file(state, file, {"format": "pt"})
    return at


def parts(folder: Path, encoders: Path, vaes: Path, vae: str) -> list[Path]:
    """The text encoders and the VAE of a folder, each as a file of its own, as ComfyUI has them."""
    written = []
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if (folder / name).exists():
            clip = single_file.clip(folder / name)
            state = {
                key if key.startswith("text_projection") else f"text_model.{key}": each
                for key, each in clip.items()
            }
            written.append(encoders / f"{name}.safetensors")
            encoders.mkdir(parents=True, exist_ok=True)
            save_file(state or load_file(folder / name / "model.safetensors"), written[-1])
    levels = len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"])
    state = single_file.vae(load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"), levels)
    vaes.mkdir(parents=True, exist_ok=True)
    written.append(vaes / f"{vae}.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, written[-1])
    return written


@pytest.fixture(scope="module", autouse=True)
def _small():
    with pytest.MonkeyPatch.context() as patch:
        single_file.small_flux_loads(patch)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """FAMILY/PRECISION has a folder, the same in one file, and the same in several."""
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        made = tiny.folder(family, tmp_path_factory.mktemp("made") / family)
        if family == "sd3":
            identity_projection(made)
        for title, dtype in PRECISIONS.items():
            name, shelf = f"{family}-{title}", root / family / title
            folder = rounded(made, shelf / f"{name}-folder", dtype)
            stored(single_file.write(folder, shelf / f"{name}-one.safetensors"), dtype)
            for layout in ("net", "prefixed net", "diffusers net")[: 3 if title == "float32" else 1]:
                net = single_file.write(folder, shelf / f"{name}-{layout}.safetensors", layout)
                stored(net, dtype)
            for file in parts(folder, shelf, shelf, VAES[family]):
                stored(file, dtype)
            if title == "float32":
                one = load_file(shelf / f"{name}-one.safetensors")
                state = {key: each for key, each in one.items() if not key.startswith(ENCODERS)}
                save_file(state, shelf / f"{name}-with VAE.safetensors")
                shutil.copytree(shelf / f"{name}-one.config", shelf / f"{name}-with VAE.config")
    return root


@pytest.fixture(scope="module")
def engine(make_engine, models):
    return make_engine(models_dir=[models], model="sd1-float32-folder")


def picture(engine, model: str):
    view = engine.submit([request_for(model=model, seed=5, num_inference_steps=2)], "me").wait()
    assert view.state == "done", view.error
    return pixels(view.saved[0].path)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_folder_file_and_parts_make_equal_pictures(engine, family, precision):
    name = f"{family}-{precision}"
    plain = picture(engine, f"{name}-folder")
    assert plain.std() > 5
    layouts = ("one", "net", "prefixed net", "diffusers net", "with VAE")
    for layout in layouts[: None if precision == "float32" else 2]:
        assert (picture(engine, f"{name}-{layout}") == plain).all(), layout


# What is there, and what is missing


def write(path: Path, state, dtype: str = "F16") -> Path:
    """A file with the header of published weights."""
    return layouts.write(path, layouts.header(state, dtype))


def comfy(root: Path) -> Path:
    """Flux as most people own it: ComfyUI's folders, nothing in one file."""
    write(root / "diffusion_models" / "flux1-dev-fp8.safetensors", layouts.net("flux-dev"), "F8_E4M3")
    clip = {f"text_model.{name}": each for name, each in layouts.part("flux-dev", "text_encoder").items()}
    write(root / "text_encoders" / "clip_l.safetensors", clip)
    write(root / "clip" / "t5xxl_fp16.safetensors", layouts.part("flux-dev", "text_encoder_2"))
    vae = single_file.vae(layouts.part("flux-dev", "vae"), 4)
    write(root / "vae" / "ae.safetensors", vae, "F32")
    return root


def only(catalogue: Catalogue, name: str):
    (found,) = [each for each in catalogue.all() if each.name == name]
    return found


def test_flux_in_comfyuis_folders_is_a_checkpoint_of_its_family(tmp_path):
    catalogue = Catalogue([comfy(tmp_path)])
    found = only(catalogue, "flux1-dev-fp8")
    assert (found.kind, found.family, found.problem, found.config) == ("checkpoint", "flux", "", "flux-dev")
    assert found.note == "It is read with clip_l, t5xxl_fp16, ae."
    assert sorted(found.parts.values()) == ["text_encoder", "text_encoder_2", "vae"]
    assert found.bytes > 20e9
    assert only(catalogue, "flux1-dev-fp8") is found
    assert {each.problem for each in catalogue.all()} == {""}


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("text_encoders/clip_l.safetensors", "clip_l.safetensors into text_encoders/."),
        ("clip/t5xxl_fp16.safetensors", "t5xxl_fp16.safetensors into text_encoders/."),
        ("vae/ae.safetensors", "ae.safetensors into vae/."),
    ],
)
def test_what_a_net_lacks_is_named_with_its_folder_until_it_is_there(tmp_path, gone, words):
    catalogue = Catalogue([comfy(tmp_path)])
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    found = only(catalogue, "flux1-dev-fp8")
    assert (found.kind, found.parts) == ("net", {})
    assert found.problem.startswith(
        "It is a denoising net alone (Flux). To use it, put these into your models"
    )
    assert found.problem.endswith(f": {words}")
    (tmp_path / "elsewhere").rename(tmp_path / gone)
    assert only(catalogue, "flux1-dev-fp8").kind == "checkpoint"


def test_of_several_that_fit_that_beside_the_net_goes_first_then_the_more_precise(tmp_path):
    catalogue = Catalogue([comfy(tmp_path)])
    t5 = layouts.part("flux-dev", "text_encoder_2")
    write(tmp_path / "clip" / "a_t5xxl_fp8.safetensors", t5, "F8_E4M3")
    assert "t5xxl_fp16" in only(catalogue, "flux1-dev-fp8").note
    write(tmp_path / "diffusion_models" / "t5-own.safetensors", t5, "F8_E4M3")
    assert only(catalogue, "flux1-dev-fp8").note == "It is read with clip_l, t5-own, ae."


def test_parts_of_another_family_or_width_are_not_taken(tmp_path):
    comfy(tmp_path)
    (tmp_path / "vae" / "ae.safetensors").rename(tmp_path / "vae" / "sd3_vae.safetensors")
    clip = tmp_path / "text_encoders" / "clip_l.safetensors"
    write(clip, {f"text_model.{name}": each for name, each in layouts.part("sdxl", "text_encoder_2").items()})
    problem = only(Catalogue([tmp_path]), "flux1-dev-fp8").problem
    assert problem.endswith(": clip_l.safetensors into text_encoders/; ae.safetensors into vae/.")


def test_sd3_does_without_its_third_encoder(tmp_path):
    write(tmp_path / "unet" / "sd3.safetensors", layouts.net("sd3"))
    for name, part in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
        state = {f"text_model.{key}": each for key, each in layouts.part("sd3", part).items()}
        write(tmp_path / "clip" / f"{name}.safetensors", state)
    write(tmp_path / "vae" / "sd3_vae.safetensors", single_file.vae(layouts.part("sd3", "vae"), 4))
    catalogue = Catalogue([tmp_path])
    found = only(catalogue, "sd3")
    assert (found.kind, found.problem, len(found.parts)) == ("checkpoint", "", 3)
    vae = single_file._prefixed(single_file.vae(layouts.part("sd3", "vae"), 4), "first_stage_model.")
    net = single_file._prefixed(layouts.net("sd3"), single_file.PREFIX)
    write(tmp_path / "unet" / "sd3.safetensors", net | vae)  # as Stability publishes it
    found = only(catalogue, "sd3")
    assert (found.kind, sorted(found.parts.values())) == ("checkpoint", ["text_encoder", "text_encoder_2"])
    shutil.rmtree(tmp_path / "clip")
    assert only(catalogue, "sd3").problem.startswith(
        "It has no text encoders (Stable Diffusion 3). To use it,"
    )


def test_the_hash_of_a_model_of_several_files_is_of_all_and_each_is_reckoned_once(models, monkeypatch):
    from webui.catalogue import hashes

    catalogue = Catalogue([models / "sd1"])
    one, other = (only(catalogue, f"sd1-float32-{layout}") for layout in ("net", "prefixed net"))
    read = []
    plain = hashes.digest
    monkeypatch.setattr(hashes, "digest", lambda path, *more: read.append(path.name) or plain(path, *more))
    assert len({catalogue.sha256(one), catalogue.sha256(other)}) == 2
    assert sorted(read) == sorted({*read})
    vae = dataclasses.replace(one, signature=one.signature[:-1])
    assert catalogue.sha256(vae) != catalogue.sha256(one)


def test_an_encoder_that_is_damaged_fails_its_job_by_the_models_name(engine, models, tmp_path):
    shelf = models / "damaged"
    shutil.copytree(models / "flux" / "float32", shelf)
    for file in shelf.glob("flux*"):
        shutil.move(file, shelf / file.name.replace("flux-float32", "broken"))
    encoder = shelf / "text_encoder_2.safetensors"
    state = load_file(encoder)
    save_file({name: each for name, each in state.items() if "block.1." not in name}, encoder)
    view = engine.submit([request_for(model="broken-net")], "me").wait()
    assert view.state == "failed"
    assert "The model broken-net cannot be loaded" in str(view.error)
    shutil.rmtree(shelf)
    with pytest.raises(InvalidField, match="there is no model named 'broken-net'"):
        engine.submit([request_for(model="broken-net")], "me")


def test_clip_l_without_a_projection_is_read_as_if_it_had_none(tmp_path):
    import transformers

    from webui.diffusion import single_parts

    folder = tiny.folder("sd3", tmp_path / "sd3") / "text_encoder"
    state = load_file(folder / "model.safetensors")
    kind = transformers.CLIPTextModelWithProjection
    with_one = {f"text_model.{name}": each for name, each in state.items() if "projection" not in name}
    save_file(with_one, tmp_path / "clip_l.safetensors")
    read = single_parts.read(kind, tmp_path / "clip_l.safetensors", folder, torch.float32)
    assert torch.equal(read.text_projection.weight, torch.eye(tiny.WIDTH))
    save_file(
        {name: each for name, each in with_one.items() if "layers.0" not in name}, tmp_path / "x.safetensors"
    )
    with pytest.raises(KeyError, match="it lacks"):
        single_parts.read(kind, tmp_path / "x.safetensors", folder, torch.float32)
