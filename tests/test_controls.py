"""ControlNet: equal to diffusers' own pipelines, in every family; what it is shown; what is refused."""

import base64
import inspect
import io
import re

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from tests import single_file, tiny
from tests.conftest import pixels, request_for
from webui import images, infotext, masks
from webui.diffusion import additions
from webui.errors import InvalidField
from webui.preprocess import preprocessed
from webui.units import STEMS

OPTIONS = {"num_inference_steps": 4, "guidance_scale": 4.0}
PIPELINES = {  # of each family, up to what their names say of the task
    "sd1": "StableDiffusionControlNet",
    "sd2": "StableDiffusionControlNet",
    "sdxl": "StableDiffusionXLControlNet",
    "sd3": "StableDiffusion3ControlNet",
    "flux": "FluxControlNet",
}
UNETS = ("sd1", "sd2", "sdxl")
REDRAWN = (*UNETS, "flux")  # families of which diffusers has ControlNets for pictures of pictures


def picture(seed=0, size=(64, 64)):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise).resize((8, 8)).resize(size, Image.Resampling.BICUBIC)
    ImageDraw.Draw(image).rectangle((16, 20, 44, 50), "white", "black")
    return image


def control_net(net, at, seed=5, **changes):
    """For this net, with random weights where a new one has zeros."""
    torch.manual_seed(seed)
    if isinstance(net, diffusers.UNet2DConditionModel):
        made = diffusers.ControlNetModel.from_unet(net)
        for block in (*made.controlnet_down_blocks, made.controlnet_mid_block):
            torch.nn.init.normal_(block.weight, std=0.2)
        torch.nn.init.normal_(made.controlnet_cond_embedding.conv_out.weight, std=2.0)  # what it sees counts
    else:
        flux = isinstance(net, diffusers.FluxTransformer2DModel)
        kind = diffusers.FluxControlNetModel if flux else diffusers.SD3ControlNetModel
        layers = {"num_layers": 1, **({"num_single_layers": 1} if flux else {})}
        made = tiny._random(kind.from_config({**net.config, **layers, **changes}))
    made.save_pretrained(at)
    return type(made).from_pretrained(at, local_files_only=True)


@pytest.fixture(scope="module")
def parts(engine, tmp_path_factory):
    """(folder, pipelines and ControlNets by family)"""
    at = tmp_path_factory.mktemp("models")
    pipes, nets = {}, {}
    for family in PIPELINES:
        deep = {"num_layers": 3} if family == "flux" else {}  # deeper than its ControlNets
        tiny.folder(family, at / family, **deep)
        pipes[family] = diffusers.DiffusionPipeline.from_pretrained(
            at / family, dtype=torch.float32, local_files_only=True
        )
        net = getattr(pipes[family], "unet", None) or pipes[family].transformer
        nets[family] = control_net(net, at / f"ControlNet/{family}-edges")
        nets[f"{family}-lines"] = control_net(net, at / f"ControlNet/{family}-lines", seed=6)
    tiny.folder("sdxl-refiner", at / "refiner")
    return at, pipes, nets


@pytest.fixture(scope="module")
def studio(make_engine, parts):
    engine = make_engine(models_dir=[parts[0]])
    assert engine.submit([request_for(model="sd1")], "fixture").wait().state == "done"
    return engine


@pytest.fixture
def drawn(studio):
    def drawn(model="sd1", **changes):
        pictures = {
            name: studio.sources.keep(each, "test")
            for name, each in changes.items()
            if isinstance(each, Image.Image)
        }
        own = {"model": model, "scheduler": "Euler", "control_model": f"{model}-edges", **changes, **pictures}
        view = studio.submit([request_for(**own)], "test").wait()
        assert view.error is None
        return view.saved[0]

    return drawn


@pytest.fixture
def plainly(parts, monkeypatch):
    """The picture of diffusers' own pipeline, told as its mean what it would draw of a control picture."""
    _, pipes, nets = parts

    def plainly(family="sd1", task="", seen=None, net=None, **options):
        kind, pipe = getattr(diffusers, f"{PIPELINES[family]}{task}Pipeline"), pipes[family]
        taken = inspect.signature(kind.__init__).parameters
        components = {name: part for name, part in pipe.components.items() if name in taken}
        more = {"add_watermarker": False} if family == "sdxl" else {}
        own = kind(**components, controlnet=net or nets[family], **more)
        flows = family in ("sd3", "flux")
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler if flows else diffusers.EulerDiscreteScheduler
        own.scheduler = scheduler.from_config(pipe.scheduler.config)
        own.set_progress_bar_config(disable=True)
        if family not in UNETS:
            told = len(seen) if isinstance(seen, list) else 1
            monkeypatch.setattr(DiagonalGaussianDistribution, "sample", first_as_mean(told))
        field = "image" if family in UNETS and not task else "control_image"
        generator = torch.Generator().manual_seed(1)
        size = {} if task == "Img2Img" and family in UNETS else {"width": 64, "height": 64}
        made = own("a fox", generator=generator, **{field: seen}, **{**OPTIONS, **size, **options})
        monkeypatch.undo()
        return pixels(made.images[0])

    return plainly


def first_as_mean(count=1):
    sample, calls = DiagonalGaussianDistribution.sample, []

    def drawn(self, generator=None):
        calls.append(self)
        return self.mode() if len(calls) <= count else sample(self, generator)

    return drawn


def last_bits(family, guidance_scale):
    """By how many levels a picture may differ: SD3's pipeline encodes a control picture twice, in one batch,
    where there is guidance, and float32 adds up in another order in a batch."""
    return int(family == "sd3" and guidance_scale > 1)


def a_mask():
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((16, 16, 47, 47), 255)
    return mask


# As diffusers


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("family", PIPELINES)
def test_text_to_image_equals_plain_diffusers(drawn, plainly, family, guidance_scale):
    own = {"control_image": picture(), "guidance_scale": guidance_scale}
    made = pixels(drawn(family, **own, control_scale=0.7).path)
    expected = plainly(
        family, seen=picture(), controlnet_conditioning_scale=0.7, guidance_scale=guidance_scale
    )
    assert np.abs(made.astype(int) - expected).max() <= last_bits(family, guidance_scale)
    without = pixels(drawn(family, **own, control_scale=0.0).path)
    assert np.abs(made.astype(int) - without).max() > 8


@pytest.mark.parametrize(
    ("start", "end"), [(0.25, 0.75), (0.1, 0.9), (0.26, 1.0), (0.0, 0.24), (0.75, 1.0), (0.0, 0.05)]
)
@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_it_counts_in_the_steps_in_which_it_does_for_diffusers(drawn, plainly, family, start, end):
    saved = drawn(family, control_image=picture(), control_start=start, control_end=end)
    options = {"control_guidance_start": start, "control_guidance_end": end}
    expected = plainly(family, seen=picture(), controlnet_conditioning_scale=1.0, **options)
    assert (pixels(saved.path) == expected).all()


@pytest.mark.parametrize("family", REDRAWN)
def test_image_to_image_equals_plain_diffusers_and_looks_at_the_source_else(drawn, plainly, family):
    source, other = picture(1), picture(2)
    for given, seen in (({}, source), ({"control_image": other}, other)):
        saved = drawn(family, image=source, strength=0.75, **given)
        expected = plainly(
            family, "Img2Img", seen, image=source, strength=0.75, controlnet_conditioning_scale=1.0
        )
        assert (pixels(saved.path) == expected).all()


@pytest.mark.parametrize("strength", [1.0, 0.75])
@pytest.mark.parametrize("family", REDRAWN)
def test_inpainting_equals_plain_diffusers(drawn, plainly, family, strength):
    source, other, mask = picture(3), picture(4), a_mask()
    saved = drawn(
        family, image=source, mask_image=mask, control_image=other, mask_blur=0.0, strength=strength
    )
    expected = plainly(
        family, "Inpaint", other, image=source, mask_image=mask, strength=strength,
        controlnet_conditioning_scale=1.0,
    )  # fmt: skip
    inside = np.asarray(mask) > 0
    assert (pixels(saved.path)[inside] == expected[inside]).all()


@pytest.mark.parametrize("family", PIPELINES)
def test_several_together_equal_plain_diffusers(drawn, parts, plainly, family):
    seen, nets = [picture(), picture(2)], parts[2]
    saved = drawn(
        family, control_image=seen[0], control_scale=0.7, control_end=0.5, guidance_scale=1.0,
        control3_model=f"{family}-lines", control3_image=seen[1], control3_scale=1.2, control3_start=0.25,
    )  # fmt: skip
    expected = plainly(
        family, "", seen, [nets[family], nets[f"{family}-lines"]], guidance_scale=1.0,
        controlnet_conditioning_scale=[0.7, 1.2], control_guidance_start=[0.0, 0.25],
        control_guidance_end=[0.5, 1.0],
    )  # fmt: skip
    assert (pixels(saved.path) == expected).all()
    reading = infotext.read(saved.infotext)
    assert reading.request() == saved.request
    assert not reading.unknown
    assert re.search('ControlNet hash: "[0-9a-f]{10}, [0-9a-f]{10}"', saved.infotext)


def test_several_over_a_source_equal_plain_diffusers(drawn, parts, plainly):
    source, other = picture(1), picture(2)
    saved = drawn(
        "sdxl", image=source, strength=0.75, control2_model="sdxl-lines", control2_image=other,
        control2_preprocessor="Canny",
    )  # fmt: skip
    expected = plainly(
        "sdxl", "Img2Img", [source, preprocessed(other, "Canny")],
        [parts[2]["sdxl"], parts[2]["sdxl-lines"]], image=source, strength=0.75,
        controlnet_conditioning_scale=[1.0, 1.0],
    )  # fmt: skip
    assert (pixels(saved.path) == expected).all()


def test_one_file_in_two_units_is_in_memory_once(studio):
    kept = studio.sources.keep(picture(), "test")
    own = {
        f"{stem}_{name}": value
        for stem in STEMS
        for name, value in {"model": "sd1-edges", "image": kept}.items()
    }
    finder, info = studio._executor.found, next(info for info in studio.models() if info.name == "sd1")
    for third, places in (("sd1-edges", ["control"]), ("sd1-lines", ["control", "control3"])):
        request = request_for(model="sd1", **{**own, "control3_model": third})
        assert list(additions.find(request, finder, info).guests) == places


def test_those_that_correct_other_places_are_refused_together(studio, others):
    kept = studio.sources.keep(picture(), "test")
    own = {"control_model": "flux-edges", "control_image": kept}
    more = {"control2_model": "xlabs", "control2_image": kept}
    error = studio.submit([request_for(model="flux", **own, **more)], "test").wait().error
    assert isinstance(error, InvalidField)
    assert str(error).startswith("ControlNet 2: corrects the model in other places")


def test_what_is_to_be_repainted_is_hidden_from_one_made_for_inpainting(drawn, plainly):
    source, mask = picture(3), a_mask()
    seen = torch.from_numpy(np.asarray(source, np.float32) / 255).permute(2, 0, 1)[None].clone()
    seen[:, :, 16:48, 16:48] = -1
    saved = drawn(image=source, mask_image=mask, mask_blur=0.0, strength=1.0, control_preprocessor="Inpaint")
    expected = plainly(
        "sd1", "Inpaint", seen, image=source, mask_image=mask, strength=1.0,
        controlnet_conditioning_scale=1.0,
    )  # fmt: skip
    inside = np.asarray(mask) > 0
    assert (pixels(saved.path)[inside] == expected[inside]).all()


KINDS_OF_ONE = {  # what else there is of a family's
    "sd35-edges": ("sd3", {
        "joint_attention_dim": None, "use_pos_embed": False, "force_zeros_for_pooled_projection": False,
    }),
    "union": ("flux", {"num_mode": 4}),
    "unguided": ("flux", {"guidance_embeds": False}),
    "xlabs": ("flux", {"conditioning_embedding_channels": 16, "patch_size": 2, "num_layers": 2}),
}  # fmt: skip


@pytest.fixture(scope="module")
def others(studio, parts):
    """ControlNets of other kinds."""
    at, pipes, _ = parts
    return {
        name: control_net(pipes[family].transformer, at / "ControlNet" / name, **changes)
        for name, (family, changes) in KINDS_OF_ONE.items()
    }


@pytest.mark.parametrize("name", KINDS_OF_ONE)
def test_another_kind_of_controlnet_equals_plain_diffusers(drawn, plainly, others, name):
    family = KINDS_OF_ONE[name][0]
    seen = preprocessed(picture(), "Tile")
    own = {"control_image": picture(), "control_preprocessor": "Tile", "guidance_scale": 1.0}
    saved = drawn(family, control_model=name, **own)
    options = {"guidance_scale": 1.0, **({"control_mode": 1} if name == "union" else {})}
    expected = plainly(family, "", seen, others[name], controlnet_conditioning_scale=1.0, **options)
    assert (pixels(saved.path) == expected).all()


def test_one_of_stable_diffusion_3_made_for_inpainting_is_told_as_diffusers_tells_it(
    studio, parts, monkeypatch, drawn
):
    at, pipes, _ = parts
    pipe, source, mask = pipes["sd3"], picture(3), a_mask()
    net = control_net(pipe.transformer, at / "ControlNet" / "holes", extra_conditioning_channels=1)
    kind = diffusers.StableDiffusion3ControlNetInpaintingPipeline
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", first_as_mean())
    own = kind(**pipe.components, controlnet=net)
    expected = own.prepare_image_with_mask(source, mask, 64, 64, 1, 1, torch.device("cpu"), torch.float32)
    seen = []
    monkeypatch.setattr(
        diffusers.SD3ControlNetModel, "forward",
        lambda self, controlnet_cond, forward=diffusers.SD3ControlNetModel.forward, **named: seen.append(
            controlnet_cond
        ) or forward(self, controlnet_cond=controlnet_cond, **named),
    )  # fmt: skip
    drawn("sd3", control_model="holes", image=source, mask_image=mask, mask_blur=0.0)
    assert torch.equal(seen[0], expected.expand(2, -1, -1, -1))
    request = request_for(
        model="sd3", control_model="holes", control_image=studio.sources.keep(source, "test")
    )
    error = studio.submit([request], "test").wait().error
    assert str(error) == "ControlNet: is made for inpainting; it needs a mask"


def test_each_picture_of_a_batch_is_as_it_is_alone(studio, parts):
    kept = studio.sources.keep(picture(), "test")
    request = request_for(model="flux", control_model="flux-edges", control_image=kept, seed=1)
    both = studio.submit([request.replace(num_images_per_prompt=2)], "test").wait().saved
    alone = studio.submit([request, request.replace(seed=2)], "test").wait().saved
    for one, other in zip(both, alone, strict=True):
        assert np.abs(pixels(one.path).astype(int) - pixels(other.path)).max() <= 1


# Single files


def as_file(folder, at, layout):
    """Of a ControlNet's folder."""
    plain = load_file(folder / "diffusion_pytorch_model.safetensors")
    prefix = {"ldm": "", "prefixed ldm": "control_model."}.get(layout)
    state = plain if prefix is None else single_file.controlnet(folder, prefix)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, at)


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        *((family, layout) for family in UNETS for layout in ("ldm", "prefixed ldm", "diffusers")),
        *((name, "diffusers") for name in ("sd3", "flux", *KINDS_OF_ONE)),
    ],
)
def test_a_single_file_makes_what_its_folder_makes(drawn, parts, others, family, layout):
    folder = parts[0] / "ControlNet" / (f"{family}-edges" if family in PIPELINES else family)
    file = f"{family} {layout}"
    as_file(folder, folder.parent / f"{file}.safetensors", layout)
    model = KINDS_OF_ONE[family][0] if family in KINDS_OF_ONE else family
    own = {"model": model, "control_image": picture(), "control_preprocessor": "Tile"}
    pictures = [pixels(drawn(**own, control_model=name).path) for name in (folder.name, file)]
    assert (pictures[0] == pictures[1]).all()


def test_one_in_a_file_goes_with_a_model_made_for_inpainting(drawn, parts):
    """Whose net takes nine channels, of which a ControlNet takes the latents'."""
    at = parts[0]
    tiny.folder("sd1", at / "nine", in_channels=9)
    as_file(at / "ControlNet" / "sd1-edges", at / "ControlNet" / "for-nine.safetensors", "ldm")
    own = {"image": picture(3), "mask_image": a_mask(), "strength": 1.0, "control_image": picture()}
    made = [
        pixels(drawn("nine", **own, control_model="for-nine", control_scale=scale).path)
        for scale in (0.0, 1.0)
    ]
    assert np.abs(made[0].astype(int) - made[1]).max() > 8


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


def test_what_it_will_be_shown_can_be_looked_at_before(studio):
    kept = studio.sources.keep(picture(size=(96, 64)), "test")
    request = request_for(model="sd1", control_image=kept, control_preprocessor="Canny")
    shown = studio.shown_to_control(request, "test")
    assert shown.size == (64, 64)
    assert set(np.unique(pixels(shown))) == {0, 255}
    with pytest.raises(InvalidField, match="Control picture"):
        studio.shown_to_control(request, "another")


ODD = {
    "grey": Image.new("L", (33, 17), 90),
    "transparent": Image.new("RGBA", (20, 30), (0, 0, 0, 0)),
    "one pixel": Image.new("RGB", (1, 1), "red"),
    "a column": Image.new("RGB", (1, 90)),
    "black and white": Image.new("1", (9, 9), 1),
    "palette": Image.new("P", (10, 10)),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_picture_is_shown_as_any_other(studio, drawn, name):
    file = io.BytesIO()
    ODD[name].save(file, "PNG")
    kept = studio.sources.keep(images.open_picture(file), "test")
    for preprocessor in ("None", "Canny", "Scribble", "Tile"):
        request = request_for(model="sd1", control_image=kept, control_preprocessor=preprocessor)
        shown = studio.shown_to_control(request, "test")
        assert (shown.mode, shown.size) == ("RGB", (64, 64))
        if name == "transparent" and preprocessor == "None":
            assert shown.getextrema() == ((255, 255),) * 3  # on white
    saved = drawn(control_image=kept, num_inference_steps=1)
    assert pixels(saved.path).shape == (64, 64, 3)


def test_a_turned_photograph_is_shown_upright(studio):
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x112] = 6
    halves = Image.new("RGB", (64, 64), "black")
    halves.paste("white", (0, 0, 32, 64))
    halves.save(file, "PNG", exif=exif)
    kept = studio.sources.keep(images.open_picture(file), "test")
    shown = pixels(studio.shown_to_control(request_for(model="sd1", control_image=kept), "test"))
    assert shown[:32].min() == 255
    assert shown[32:].max() == 0


def test_a_mask_that_is_looked_at_is_a_grey_picture(studio, drawn):
    """Which is kept with one channel."""
    mask = a_mask()
    kept = [studio.sources.keep(each, "test") for each in (mask, mask.convert("RGB"))]
    made = [pixels(drawn(control_image=each).path) for each in kept]
    assert (made[0] == made[1]).all()


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
        return studio._executor.key(saved.request, studio._executor.checkpoints()["sd1"])

    before, file = key(), at / "ControlNet/sd1-edges/diffusion_pytorch_model.safetensors"
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
        ({"control2_model": "sd1-lines"}, "Control picture 2: a ControlNet needs a picture"),
        ({"control3_model": "nothing", "control3_image": "kept"}, "ControlNet 3: there is no ControlNet"),
        ({"control2_start": 2.0}, "Control start 2: must be at most 1"),
        ({"model": "sdxl", "control_model": "flux-edges"}, "ControlNet: flux-edges is made for Flux"),
        ({"model": "refiner", "image": "kept"}, "ControlNet: there are none for"),
    ],
)
def test_what_cannot_be_is_refused_by_name(studio, changes, said):
    kept = studio.sources.keep(picture(), "test")
    own = {"model": "sd1", "control_model": "sd1-edges", "control_image": kept}
    changes = {name: kept if value == "kept" else value for name, value in changes.items()}
    with pytest.raises(InvalidField, match=f"^{said}"):
        studio.submit([request_for(**{**own, **changes})], "test")


@pytest.mark.parametrize(("model", "other"), [("sd1", "sdxl-edges"), ("flux", "sd1-edges")])
def test_a_control_net_of_another_family_is_refused_by_name(studio, model, other):
    """Tiny ones do not say their families by their widths: it is seen when they are read."""
    kept = studio.sources.keep(picture(), "test")
    request = request_for(model=model, control_model=other, control_image=kept)
    try:
        error = studio.submit([request], "test").wait().error
    except InvalidField as refused:
        error = refused
    assert str(error).startswith(f"ControlNet: {other} ")


def test_the_page_offers_what_fits_the_model_and_shows_what_the_net_will_be_shown(studio, tmp_path):
    import gradio as gr
    from starlette.requests import Request

    from webui.ui import layout
    from webui.ui.picturing import Controlling

    with gr.Blocks():
        parts = layout.build(studio.models(), studio.schedulers())
    do, fields = Controlling(studio, parts, parts.controls), parts.fields
    offered = do.follow("flux", "gone", "", "")
    names = [value for _, value in offered[fields["control_model"]]["choices"]]
    assert {"", "flux-edges", "sd1-edges"} < set(names)  # nothing in so small a UNet's says its family
    assert "sd3-edges" not in names
    assert offered[fields["control_model"]]["value"] == ""
    assert offered[parts.controls[0].section]["visible"]
    person = gr.Request(Request({"type": "http", "headers": [], "state": {"owner": "test"}}))
    picture().save(tmp_path / "drawn.png")
    digest, _ = do.take(parts.controls[0])(person, str(tmp_path / "drawn.png"))
    shown = do.show(person, digest, "", "", "Canny", "None", "None", "txt2img", 64, 96, "Stretch")
    assert fields["control_image"] not in shown  # a person may have taken it away meanwhile
    jpeg = base64.b64decode(re.search('base64,([^"]+)', shown[parts.controls[0].shown]["value"])[1])
    expected = preprocessed(masks.resized(picture(), (64, 96), "Crop"), "Canny")
    seen = np.abs(pixels(Image.open(io.BytesIO(jpeg))).astype(int) - pixels(expected))
    assert seen.mean() < 4
    wrong = do.show(person, digest, "", "", "Canny", "None", "None", "txt2img", 65, 96, "Stretch")[
        parts.controls[0].shown
    ]
    assert "Width" in wrong["value"]
    assert (
        do.show(person, "ab" * 32, "", "", "Canny", "None", "None", "txt2img", 64, 96, "Crop")[
            fields["control_image"]
        ]
        == ""
    )
