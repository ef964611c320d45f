"""ControlNet: equal to diffusers' own pipelines; what it is shown; what is refused."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.conftest import pixels, request_for
from webui import infotext, masks
from webui.errors import InvalidField
from webui.preprocess import preprocessed

OPTIONS = {"num_inference_steps": 4, "guidance_scale": 4.0}


def picture(seed=0, size=(64, 64)):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise).resize((8, 8)).resize(size, Image.Resampling.BICUBIC)
    ImageDraw.Draw(image).rectangle((16, 20, 44, 50), "white", "black")
    return image


def control_net(unet, at):
    """Of the UNet's shape, with random weights where a new one has zeros."""
    torch.manual_seed(5)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 16))
    for block in (
        *net.controlnet_down_blocks,
        net.controlnet_mid_block,
        net.controlnet_cond_embedding.conv_out,
    ):
        torch.nn.init.normal_(block.weight, std=0.2)
    net.save_pretrained(at)
    return ControlNetModel.from_pretrained(at, local_files_only=True)


@pytest.fixture(scope="module")
def parts(engine, tmp_path_factory):
    at = tmp_path_factory.mktemp("models")
    (at / "ControlNet").mkdir()
    tiny.folder("sd1", at / "small")
    tiny.folder("sdxl", at / "large")
    options = {"dtype": torch.float32, "local_files_only": True}
    small = StableDiffusionPipeline.from_pretrained(at / "small", safety_checker=None, **options)
    large = StableDiffusionXLPipeline.from_pretrained(at / "large", **options)
    nets = {
        "edges": control_net(small.unet, at / "ControlNet/edges"),
        "edges-xl": control_net(large.unet, at / "ControlNet/edges-xl"),
    }
    return at, small, large, nets


@pytest.fixture(scope="module")
def studio(make_engine, parts):
    engine = make_engine(models_dir=[parts[0]])
    assert engine.submit([request_for(model="small")], "fixture").wait().state == "done"
    return engine


@pytest.fixture
def drawn(studio):
    def drawn(**changes):
        own = {"model": "small", "scheduler": "Euler", "control_model": "edges", **changes}
        view = studio.submit([request_for(**own)], "test").wait()
        assert view.error is None
        return view.saved[0]

    return drawn


def plainly(kind, pipe, net, *args, **options):
    more = {"add_watermarker": False} if "XL" in kind.__name__ else {}
    from_pipe = kind(**pipe.components, controlnet=net, **more)
    from_pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    from_pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    return pixels(from_pipe("a fox", generator=generator, **{**OPTIONS, **options}).images[0])


@pytest.mark.parametrize(
    ("scale", "start", "end"), [(1.0, 0.0, 1.0), (0.6, 0.0, 1.0), (1.0, 0.25, 0.75), (0.0, 0.0, 1.0)]
)
def test_text_to_image_equals_plain_diffusers(studio, parts, drawn, scale, start, end):
    _, small, _, nets = parts
    image = picture()
    chosen = {"control_scale": scale, "control_start": start, "control_end": end}
    saved = drawn(control_image=studio.sources.keep(image, "test"), **chosen)
    expected = plainly(
        StableDiffusionControlNetPipeline, small, nets["edges"], image=image,
        controlnet_conditioning_scale=scale, control_guidance_start=start, control_guidance_end=end,
    )  # fmt: skip
    assert (pixels(saved.path) == expected).all()


def test_it_changes_the_picture(studio, drawn):
    image = studio.sources.keep(picture(), "test")
    with_it, without = (pixels(drawn(control_image=image, control_scale=scale).path) for scale in (1.0, 0.0))
    assert np.abs(with_it.astype(int) - without).max() > 8


def test_image_to_image_equals_plain_diffusers_and_looks_at_the_source_else(studio, parts, drawn):
    _, small, _, nets = parts
    source, other = picture(1), picture(2)
    for given, image in (("", source), (studio.sources.keep(other, "test"), other)):
        saved = drawn(image=studio.sources.keep(source, "test"), strength=0.75, control_image=given)
        expected = plainly(
            StableDiffusionControlNetImg2ImgPipeline, small, nets["edges"],
            image=source, control_image=image, strength=0.75, controlnet_conditioning_scale=1.0,
        )  # fmt: skip
        got = pixels(saved.path)
        assert (got == expected).all(), (given, np.abs(got.astype(int) - expected).max())


def test_a_large_model_equals_plain_diffusers(studio, parts, drawn):
    _, _, large, nets = parts
    image = picture()
    kept = studio.sources.keep(image, "test")
    saved = drawn(model="large", control_model="edges-xl", control_image=kept, control_scale=0.7)
    expected = plainly(
        StableDiffusionXLControlNetPipeline, large, nets["edges-xl"],
        image=image, controlnet_conditioning_scale=0.7,
    )  # fmt: skip
    assert (pixels(saved.path) == expected).all()


# What it is shown


def test_canny_finds_the_outline_and_nothing_in_a_plain_picture():
    image = Image.new("RGB", (64, 64), "black")
    ImageDraw.Draw(image).rectangle((16, 16, 47, 47), "white")
    edges = np.asarray(preprocessed(image, "Canny").convert("L")) > 0
    rows, columns = np.nonzero(edges)
    assert {*rows, *columns} <= {*range(14, 50)}
    assert edges.any(0)[15:48].all()
    assert edges.any(1)[15:48].all()
    assert not edges[20:44, 20:44].any()
    assert edges.sum() < 4 * 32 * 2
    assert not np.asarray(preprocessed(Image.new("RGB", (40, 30), "grey"), "Canny")).any()


def test_scribble_finds_dark_lines_and_tile_gives_up_detail():
    drawing = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(drawing).line((8, 32, 56, 32), "black", 2)
    lines = np.asarray(preprocessed(drawing, "Scribble").convert("L")) > 0
    assert lines[32:34, 10:54].all()
    assert not lines[:20].any()
    board = Image.fromarray((np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert np.ptp(np.asarray(preprocessed(board, "Tile"))) < 8
    assert preprocessed(board, "None") is board


def test_inpainting_equals_plain_diffusers_and_hides_what_is_to_be_repainted(studio, parts, drawn):
    _, small, _, nets = parts
    source = picture(3)
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((16, 16, 47, 47), 255)
    condition = torch.from_numpy(np.asarray(source, np.float32) / 255).permute(2, 0, 1)[None].clone()
    condition[:, :, 16:48, 16:48] = -1
    kept = {"image": studio.sources.keep(source, "test"), "mask_image": studio.sources.keep(mask, "test")}
    saved = drawn(**kept, mask_blur=0.0, strength=1.0, control_preprocessor="Inpaint")
    expected = plainly(
        StableDiffusionControlNetInpaintPipeline, small, nets["edges"],
        image=source, mask_image=mask, control_image=condition, strength=1.0,
        controlnet_conditioning_scale=1.0, width=64, height=64,
    )  # fmt: skip
    inside = (slice(20, 44), slice(20, 44))
    assert (pixels(saved.path)[inside] == expected[inside]).all()


def test_what_it_will_be_shown_can_be_looked_at_before(studio):
    kept = studio.sources.keep(picture(size=(96, 64)), "test")
    request = request_for(model="small", control_image=kept, control_preprocessor="Canny")
    shown = studio.shown_to_control(request, "test")
    assert shown.size == (64, 64)
    assert set(np.unique(pixels(shown))) == {0, 255}
    with pytest.raises(InvalidField, match="Control picture"):
        studio.shown_to_control(request, "another")


# What is written, and what is refused


def test_the_picture_says_which_control_it_has_and_its_key_follows_the_content(studio, parts, drawn):
    at = parts[0]
    kept = studio.sources.keep(picture(), "test")
    saved = drawn(control_image=kept, control_preprocessor="Canny", control_end=0.5)
    reading = infotext.read(saved.infotext)
    assert reading.request() == saved.request
    assert not reading.unknown
    assert "ControlNet hash: " in saved.infotext

    def key():
        return studio._worker.key(saved.request, studio._worker.checkpoints()["small"])

    before, file = key(), at / "ControlNet/edges/diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    save_file({name: each + 1 for name, each in load_file(file).items()}, file)
    changed = key()
    file.write_bytes(content)
    assert changed != before == key()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"control_model": "nothing"}, "ControlNet: there is no ControlNet named"),
        ({"control_image": ""}, "Control picture: a ControlNet needs a picture"),
        ({"control_image": "ab" * 32}, "Control picture: is no longer here"),
        ({"control_start": 0.5, "control_end": 0.5}, "Control end: must be more"),
        ({"control_preprocessor": "Inpaint"}, "Preprocessor: Inpaint needs a mask"),
    ],
)
def test_what_cannot_be_is_refused_by_name(studio, changes, said):
    kept = studio.sources.keep(picture(), "test")
    own = {"model": "small", "control_model": "edges", "control_image": kept}
    with pytest.raises(InvalidField, match=f"^{said}"):
        studio.submit([request_for(**{**own, **changes})], "test")


def test_a_control_net_of_another_family_is_refused_by_name(studio):
    kept = studio.sources.keep(picture(), "test")
    request = request_for(model="small", control_model="edges-xl", control_image=kept)
    try:
        error = studio.submit([request], "test").wait().error
    except InvalidField as refused:
        error = refused
    assert str(error).startswith("ControlNet: edges-xl ")


def test_the_page_offers_what_fits_the_model_and_shows_what_the_net_will_be_shown(studio, tmp_path):
    import gradio as gr
    from starlette.requests import Request

    from webui.ui import layout
    from webui.ui.picturing import Controlling

    with gr.Blocks():
        parts = layout.build(studio.models(), studio.schedulers())
    do, fields = Controlling(studio, parts, parts.control), parts.fields
    offered = do.follow("small", "gone")  # nothing in so small a file says its family
    assert [value for _, value in offered[fields["control_model"]]["choices"]] == ["", "edges", "edges-xl"]
    assert offered[fields["control_model"]]["value"] == ""
    assert offered[parts.control.section]["visible"]
    person = gr.Request(Request({"type": "http", "headers": [], "state": {"owner": "test"}}))
    picture().save(tmp_path / "drawn.png")
    digest, _ = do.take(person, str(tmp_path / "drawn.png"))
    shown = do.show(person, digest, "Canny", "txt2img", 64, 96, "Stretch")
    assert shown[fields["control_image"]] == digest
    jpeg = base64.b64decode(re.search('base64,([^"]+)', shown[parts.control.shown]["value"])[1])
    expected = preprocessed(masks.resized(picture(), (64, 96), "Crop"), "Canny")
    seen = np.abs(pixels(Image.open(io.BytesIO(jpeg))).astype(int) - pixels(expected))
    assert seen.mean() < 4
    wrong = do.show(person, digest, "Canny", "txt2img", 65, 96, "Stretch")[parts.control.shown]
    assert "Width" in wrong["value"]
    assert do.show(person, "ab" * 32, "Canny", "txt2img", 64, 96, "Crop")[fields["control_image"]] == ""
