"""Previews by a tiny decoder: right where it fits the model, and harmless where it does not."""

import gc
import io
import logging
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import POCKET, ROOT, request_for
from webui.catalogue.found import Family, Found
from webui.diffusion import families
from webui.diffusion.model import Model
from webui.diffusion.preview import LatentPreview
from webui.diffusion.taesd import Previews, TinyPreview, load
from webui.request import Delivery

WIDTH = 8  # channels; the real ones have 64


@pytest.fixture(scope="module")
def tiny() -> AutoencoderTiny:
    torch.manual_seed(1)
    sides = (WIDTH,) * 4
    return AutoencoderTiny(encoder_block_out_channels=sides, decoder_block_out_channels=sides).eval()


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("previews") / "taesd"
    tiny.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory):
    """As https://github.com/madebyollin/taesd has it: layers numbered from 1, after a clamp."""
    path = tmp_path_factory.mktemp("previews") / "taesd_decoder.safetensors"
    save_file(original(tiny), path)
    return path


def original(tiny: AutoencoderTiny) -> dict[str, torch.Tensor]:
    names = ((name.split(".", 2)[1:], weight) for name, weight in tiny.decoder.state_dict().items())
    return {f"{int(layer) + 1}.{rest}": weight for (layer, rest), weight in names}


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(POCKET, subfolder="vae", local_files_only=True).eval()


@pytest.fixture
def model(vae) -> Model:
    """The embedded one, as far as previews see it."""
    return Model("pocket-model", "", (), {}, None, vae, None, LatentPreview.fit(vae), families.of("sd1"))


def found(path: Path, family: Family = "sd1") -> Found:
    file = path / "diffusion_pytorch_model.safetensors" if path.is_dir() else path
    stat = file.stat()
    return Found(
        "preview", path.stem, path, family, stat.st_size, ((file.name, stat.st_size, stat.st_mtime_ns),)
    )


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def chosen(model, *files, wanted="TAESD"):
    return Previews(lambda: files).of(model, wanted)


@pytest.mark.parametrize("layout", ["folder", "file"])
def test_a_preview_is_what_the_tiny_autoencoder_decodes(layout, model, tiny, request):
    preview = chosen(model, found(request.getfixturevalue(layout)))
    x0 = latents(2, 4, 16, 24)
    with torch.no_grad():
        decoded = tiny.decode(x0).sample  # it takes latents as the net sees them: its scaling factor is 1
    pixels = ((decoded + 1) * 127.5).clamp(0, 255).round().byte().movedim(1, -1).numpy()
    shown = np.asarray(preview.picture(x0))
    assert shown.shape == (128, 384, 3)
    assert (shown == np.concatenate(list(pixels), axis=1)).all()
    sent = np.asarray(Image.open(io.BytesIO(preview.jpeg(x0))), dtype=float)
    assert np.abs(sent - shown).mean() < 12  # noise is what JPEG keeps worst


def test_latents_are_brought_to_the_scale_of_a_decoder_that_has_one(model, folder, tiny, tmp_path):
    scaled = AutoencoderTiny.from_config(tiny.config, scaling_factor=0.5, shift_factor=0.25)
    scaled.load_state_dict(tiny.state_dict())
    scaled.save_pretrained(tmp_path / "taesd")
    x0 = latents(1, 4, 8, 8)
    own = chosen(model, found(tmp_path / "taesd")).picture(x0)
    plain = chosen(model, found(folder)).picture(x0 / 0.5 + 0.25)
    assert own.tobytes() == plain.tobytes()


def test_nothing_changes_without_a_file_or_when_colours_are_enough(model, folder):
    assert chosen(model) is model.preview
    assert chosen(model, found(folder), wanted="Fast") is model.preview


@pytest.mark.parametrize(
    ("family", "of_model", "fits"),
    [("sd1", "sd1", True), ("sd1", "sd2", True), ("sdxl", "sd1", False), ("sdxl", "sdxl-refiner", True)],
)
def test_a_decoder_serves_the_families_that_share_its_latents(model, folder, family, of_model, fits):
    model = replace(model, family=families.of(of_model))
    preview = chosen(model, found(folder, family))
    assert isinstance(preview, TinyPreview) == fits


def test_a_decoder_that_does_not_understand_the_latents_is_used_only_when_asked_for(model, folder):
    assert chosen(model, found(folder), wanted="Automatic") is model.preview


def test_one_that_does_is_used_by_itself(model, tiny, tmp_path):
    understanding(model.preview, tiny.config).save_pretrained(tmp_path / "taesd")
    preview = chosen(model, found(tmp_path / "taesd"), wanted="Automatic")
    assert isinstance(preview, TinyPreview)


@torch.no_grad()
def understanding(preview: LatentPreview, config: object) -> AutoencoderTiny:
    """A decoder that does what the affine map does: every layer hands on three colours."""
    tiny = AutoencoderTiny.from_config(config)
    for weight in tiny.decoder.parameters():
        weight.zero_()
    convolutions = [layer for layer in tiny.decoder.layers if isinstance(layer, torch.nn.Conv2d)]
    first, *others = convolutions
    first.weight[:3, :, 1, 1] = preview.weight / 2  # its colours are in 0..1
    first.bias[:3] = preview.bias / 2 + 0.5 + 1  # and 1 keeps them above zero
    for convolution in others:
        for colour in range(3):
            convolution.weight[colour, colour, 1, 1] = 1
    others[-1].bias[:] = -1
    return tiny


@pytest.mark.parametrize("harm", ["cut", "other", "gone", "channels"])
def test_a_broken_file_leaves_the_affine_map_and_says_so(harm, model, file, tmp_path, caplog):
    path = tmp_path / "taesd_decoder.safetensors"
    shutil.copy(file, path)
    thing = found(path)
    if harm == "cut":
        path.write_bytes(file.read_bytes()[:-100])
    elif harm == "other":
        save_file({"1.weight": torch.zeros(WIDTH, 4, 3, 3)}, path)
    elif harm == "channels":
        sides = (WIDTH,) * 4
        three = AutoencoderTiny(
            latent_channels=16, encoder_block_out_channels=sides, decoder_block_out_channels=sides
        )
        save_file(original(three), path)
    else:
        path.unlink()
    previews = Previews(lambda: [thing])
    with caplog.at_level(logging.WARNING):
        assert previews.of(model, "TAESD") is model.preview
        assert previews.of(model, "TAESD") is model.preview
    assert [record.message for record in caplog.records if "taesd_decoder" in record.message] != []
    assert len(caplog.records) == 1  # it is not tried for every picture


def test_what_is_remembered_keeps_no_model_in_memory(vae, folder):
    own = AutoencoderKL.from_config(vae.config)
    model = Model("own", "", (), {}, None, own, None, Coloured(own), families.of("sd1"))
    previews = Previews(lambda: [found(folder)])
    assert isinstance(previews.of(model, "TAESD"), TinyPreview)
    there = weakref.ref(own)
    del own, model
    gc.collect()
    assert there() is None


class Coloured:
    """A preview that holds on to its VAE."""

    def __init__(self, vae):
        self.vae = vae


def test_a_decoder_that_fails_at_work_is_given_up_and_the_preview_is_there(model, folder, caplog):
    tiny = load(found(folder))
    preview = TinyPreview(tiny, model.preview)
    calls = []

    def fail(*_):
        calls.append(1)
        raise torch.OutOfMemoryError("no memory")

    tiny.decoder.layers[3].register_forward_pre_hook(fail)
    x0 = latents(1, 4, 8, 8)
    with caplog.at_level(logging.WARNING):
        assert preview.jpeg(x0) == preview.jpeg(x0) == model.preview.jpeg(x0)
    assert len(calls) == 1
    assert "no memory" in caplog.text


def test_a_cpu_decodes_no_more_than_is_shown(model, folder):
    preview = chosen(model, found(folder))
    assert preview.picture(latents(4, 4, 32, 32)).size == (512, 128)
    seen = []
    preview.tiny.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    preview.picture(latents(4, 4, 32, 32))
    assert seen == [(4, 4, 16, 16)]


@pytest.fixture(scope="module")
def previewing(make_engine, folder):
    """An engine that has the tiny decoder among its models."""
    return make_engine(models_dir=[ROOT / "models", folder.parent])


def watched(engine, decoder: str) -> tuple[bytes, bytes]:
    """The preview of a job's first step, and the pixels of its picture."""
    delivery = Delivery(preview_decoder=decoder, preview_every=100)
    views = list(engine.submit([request_for(seed=9)], "test", delivery).watch())
    assert views[-1].state == "done", views[-1].error
    (preview,) = {view.preview for view in views if view.preview}
    with Image.open(views[-1].saved[0].path) as picture:
        return preview, picture.tobytes()


def test_a_job_is_watched_through_the_tiny_decoder_and_its_picture_is_the_same(previewing):
    fast, picture = watched(previewing, "Fast")
    tiny, same = watched(previewing, "TAESD")
    automatic, _ = watched(previewing, "Automatic")  # the decoder does not understand the embedded model
    assert same == picture
    assert tiny != fast
    assert automatic == fast


def test_a_job_without_previews_reads_no_decoder(previewing, monkeypatch):
    monkeypatch.setattr(Previews, "of", lambda *_, **__: pytest.fail("asked for a decoder"))
    job = previewing.submit([request_for()], "test", Delivery(preview_every=0))
    assert job.wait().state == "done"
