"""A picture as a prompt: as diffusers has it, leaving no trace, refused by name where it cannot be."""

import functools
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from tests import tiny
from tests.conftest import pixels, request_for
from tests.test_plugins import write
from webui import hookspecs, infotext
from webui.catalogue.shelves import Catalogue
from webui.diffusion import additions, checkpoints, plugged, references
from webui.errors import InvalidField
from webui.request import GenerationRequest, ModelInfo

PLACE = "ipadapter"
TITLES = {"sd1": "StableDiffusion", "sdxl": "StableDiffusionXL"}
WIDTH, SUMMARY, SECOND = 32, 24, 20  # of an encoder's states, of its summary, of another one's
HEADS = 16
STEPS = 4


def encoder(at, summary=SUMMARY, width=WIDTH):
    torch.manual_seed(3)
    config = transformers.CLIPVisionConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=HEADS,
        image_size=32, patch_size=8, projection_dim=summary, hidden_act="gelu",
    )  # fmt: skip
    tiny._random(transformers.CLIPVisionModelWithProjection(config)).save_pretrained(at)
    return at


def adapter(path, net, image_proj, seed=5):
    """One for this net, with what makes tokens of a picture, of the shapes ``image_proj``."""
    generator = torch.Generator().manual_seed(seed)
    attending = [
        net.get_submodule(name[: -len(".processor")]) for name in net.attn_processors if "attn2" in name
    ]
    shapes = {f"image_proj.{name}": shape for name, shape in image_proj.items()}
    for place, attention in enumerate(attending):
        for letter in "kv":
            shapes[f"ip_adapter.{2 * place + 1}.to_{letter}_ip.weight"] = attention.to_k.weight.shape
    state = {}
    for name, shape in shapes.items():
        scale = 1 / shape[-1] ** 0.5 if len(shape) > 1 else 0.3
        state[name] = torch.randn(*shape, generator=generator) * scale
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


def plain(width, summary):
    """The first kind's image_proj: four tokens of the encoder's summary."""
    return {"proj.weight": (4 * width, summary), "proj.bias": (4 * width,), "norm.weight": (width,),
            "norm.bias": (width,)}  # fmt: skip


def plus(width, inner=64):
    """That of the kind 'plus', which reads the encoder's states."""
    shapes = {
        "latents": (1, 4, inner), "proj_in.weight": (inner, WIDTH), "proj_in.bias": (inner,),
        "proj_out.weight": (width, inner), "proj_out.bias": (width,), "norm_out.weight": (width,),
        "norm_out.bias": (width,),
    }  # fmt: skip
    for layer in range(4):
        shapes |= {
            f"layers.{layer}.0.norm1.weight": (inner,), f"layers.{layer}.0.norm1.bias": (inner,),
            f"layers.{layer}.0.norm2.weight": (inner,), f"layers.{layer}.0.norm2.bias": (inner,),
            f"layers.{layer}.0.to_q.weight": (64, inner), f"layers.{layer}.0.to_kv.weight": (128, inner),
            f"layers.{layer}.0.to_out.weight": (inner, 64), f"layers.{layer}.1.0.weight": (inner,),
            f"layers.{layer}.1.0.bias": (inner,), f"layers.{layer}.1.1.weight": (4 * inner, inner),
            f"layers.{layer}.1.3.weight": (inner, 4 * inner),
        }  # fmt: skip
    return shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return stock(tmp_path_factory.mktemp("models"))


def stock(at):
    """Models, and adapters as https://huggingface.co/h94/IP-Adapter lays them out, with two encoders."""
    nets = {}
    for family in (*TITLES, "flux"):
        tiny.folder(family, at / family)
        if family in TITLES:
            nets[family] = diffusers.UNet2DConditionModel.from_pretrained(at / family / "unet")
    encoder(at / PLACE / "models" / "image_encoder")
    encoder(at / PLACE / "sdxl_models" / "image_encoder", summary=SECOND, width=48)
    for family, place, summary in (("sd1", "models", SUMMARY), ("sdxl", "sdxl_models", SECOND)):
        width = nets[family].config.cross_attention_dim
        adapter(at / PLACE / place / f"ip-{family}.safetensors", nets[family], plain(width, summary))
    adapter(at / PLACE / "models" / "plus-sd1.safetensors", nets["sd1"], plus(tiny.WIDTH))
    adapter(at / PLACE / "models" / "alone.safetensors", nets["sd1"], plain(tiny.WIDTH, 99))
    face = {"proj.0.weight": (32, 16), "proj.2.weight": (64, 32), "norm.weight": (tiny.WIDTH,)}
    adapter(at / PLACE / "models" / "face.safetensors", nets["sd1"], face)
    return at


@pytest.fixture(scope="module")
def engine(make_engine, folder):
    engine = make_engine(models_dir=[folder], model="sd1")
    assert engine.submit([request_for(model="sd1")], "test").wait().error is None
    yield engine
    engine.close()


def picture(seed=0, size=(48, 40)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def mask(size) -> Image.Image:
    painted = Image.new("L", size)
    painted.paste(255, (16, 16, 48, 64))
    return painted


@pytest.fixture(scope="module")
def wanted(engine):
    """A request with a reference, its pictures kept."""

    def request(model="sd1", name=None, reference=0, **changes) -> GenerationRequest:
        kept = {
            field: engine.sources.keep(changes.pop(field), "test")
            for field in ("image", "mask_image")
            if field in changes
        }
        return request_for(**{
            "model": model, "reference_model": name or f"ip-{model}", "negative_prompt": "red",
            "reference_image": engine.sources.keep(picture(reference), "test"), "reference_scale": 0.7,
            "num_inference_steps": STEPS, "seed": 3, "scheduler": "Euler", **kept, **changes,
        })  # fmt: skip

    return request


@pytest.fixture(scope="module")
def draw(engine, wanted):
    def draw(**changes):
        view = engine.submit([wanted(**changes)], "test").wait()
        assert view.error is None, view.error
        return pixels(view.saved[0].path)

    return draw


@pytest.fixture(scope="module")
def bare(engine, folder):
    """diffusers' own pipeline with the adapter in it."""

    @functools.cache
    def loaded(model, name):
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder / model, local_files_only=True)
        place = "sdxl_models" if model == "sdxl" else "models"
        pipe.load_ip_adapter(str(folder / PLACE), subfolder=place, weight_name=f"{name}.safetensors")
        return pipe

    def call(model="sd1", task="", name=None, scale=0.7, guidance_scale=4.0, generator=None, **inputs):
        base = loaded(model, name or f"ip-{model}")
        pipe = getattr(diffusers, f"{TITLES[model]}{task}Pipeline").from_pipe(base)
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(base.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        pipe.set_ip_adapter_scale(scale)
        if not task:
            inputs |= {"width": 64, "height": 64}
        images = pipe(
            "a fox",
            negative_prompt="red",
            ip_adapter_image=picture(),
            num_inference_steps=STEPS,
            guidance_scale=guidance_scale,
            generator=generator or torch.Generator("cpu").manual_seed(3),
            **inputs,
        ).images
        return [pixels(image) for image in images]

    return call


# As diffusers


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize(("model", "name"), [("sd1", "ip-sd1"), ("sd1", "plus-sd1"), ("sdxl", "ip-sdxl")])
def test_text_to_image_equals_bare_diffusers(draw, bare, model, name, guidance_scale):
    ours = draw(model=model, name=name, guidance_scale=guidance_scale)
    assert np.array_equal(ours, bare(model, name=name, guidance_scale=guidance_scale)[0])


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("model", TITLES)
def test_image_to_image_equals_bare_diffusers(draw, bare, model, guidance_scale):
    source = picture(1, (64, 64))
    (plain,) = bare(model, "Img2Img", guidance_scale=guidance_scale, image=source, strength=0.5)
    assert np.array_equal(draw(model=model, image=source, strength=0.5, guidance_scale=guidance_scale), plain)


@pytest.mark.parametrize("model", TITLES)
def test_inpainting_equals_bare_diffusers(draw, bare, model):
    source, painted = picture(1, (64, 64)), mask((64, 64))
    inputs = {"image": source, "mask_image": painted, "strength": 0.5, "width": 64, "height": 64}
    (plain,) = bare(model, "Inpaint", **inputs)
    ours = draw(model=model, image=source, mask_image=painted, mask_blur=0, strength=0.5)
    inside = np.asarray(painted) > 0
    assert np.array_equal(ours[inside], plain[inside])


def test_each_picture_of_a_batch_equals_bare_diffusers(engine, wanted, bare):
    saved = engine.submit([wanted(num_images_per_prompt=2)], "test").wait().saved
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (3, 4)]
    theirs = bare(num_images_per_prompt=2, generator=generators)
    for ours, plain in zip(saved, theirs, strict=True):
        assert np.array_equal(pixels(ours.path), plain)


def test_beside_a_controlnet_it_equals_bare_diffusers(make_engine, wanted, folder, tmp_path):
    """One in a single file, which is shaped as the net is while the adapter is on it."""
    (tmp_path / "ControlNet").mkdir()
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "sd1" / "unet")
    torch.manual_seed(4)
    control = tiny._random(diffusers.ControlNetModel.from_unet(unet))
    save_file(control.state_dict(), tmp_path / "ControlNet" / "edges.safetensors")
    engine = make_engine(models_dir=[folder, tmp_path], model="sd1")
    seen = picture(5, (64, 64))
    own = {"control_model": "edges", "control_image": engine.sources.keep(seen, "test")}
    engine.sources.keep(picture(), "test")
    view = engine.submit([wanted(**own, control_preprocessor="None")], "test").wait()
    assert view.error is None, view.error

    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        folder / "sd1", controlnet=control, local_files_only=True
    )
    pipe.load_ip_adapter(
        str(folder / PLACE), subfolder="models", weight_name="ip-sd1.safetensors", local_files_only=True
    )
    pipe.set_ip_adapter_scale(0.7)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    plain = pipe(
        "a fox", negative_prompt="red", image=seen, ip_adapter_image=picture(), num_inference_steps=STEPS,
        guidance_scale=4.0, generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]  # fmt: skip
    assert np.array_equal(pixels(view.saved[0].path), pixels(plain))
    engine.close()


def test_the_reference_and_its_scale_change_the_picture_and_0_is_none_at_all(draw):
    without = draw(reference_model="", reference_image="")
    pictures = [draw(), draw(reference=1), draw(reference_scale=1.5), without]
    for k, one in enumerate(pictures):
        assert not any(np.array_equal(one, other) for other in pictures[:k])
    assert np.array_equal(draw(reference_scale=0), without)


def test_an_encoder_in_a_single_file_says_the_same_as_its_folder(make_engine, folder, wanted, draw, tmp_path):
    """As ComfyUI has them, in its folder clip_vision."""
    shutil.copytree(folder / "sd1", tmp_path / "sd1")
    (tmp_path / "clip_vision").mkdir()
    image_encoder = folder / PLACE / "models" / "image_encoder"
    shutil.copy(image_encoder / "model.safetensors", tmp_path / "clip_vision" / "vit.safetensors")
    shutil.copy(folder / PLACE / "models" / "ip-sd1.safetensors", tmp_path)
    engine = make_engine(models_dir=[tmp_path], model="sd1")
    engine.sources.keep(picture(), "test")
    view = engine.submit([wanted()], "test").wait()
    assert view.error is None
    assert np.array_equal(pixels(view.saved[0].path), draw())
    engine.close()


# Without a trace


def test_the_net_is_the_very_same_afterwards(engine, draw):
    before = draw(reference_model="", reference_image="")
    net = engine.manager.resident.net
    marks = plugged.marks(hookspecs.Parts(net, torch.nn.Module(), torch.nn.Module()))
    draw()
    assert engine.manager.resident.net is net
    after = plugged.marks(hookspecs.Parts(net, torch.nn.Module(), torch.nn.Module()))
    assert plugged.difference(marks, after) == ""
    assert np.array_equal(draw(reference_model="", reference_image=""), before)


def test_a_cancelled_job_leaves_no_trace_either(engine, wanted, draw):
    before = draw(reference_model="", reference_image="")
    job = engine.submit([wanted(num_inference_steps=500)], "test")
    next(view for view in job.watch() if view.net_calls > 2)
    engine.cancel(job.id, "test")
    assert job.wait().state == "cancelled"
    assert np.array_equal(draw(reference_model="", reference_image=""), before)


def test_one_reference_is_described_once(engine, wanted, monkeypatch):
    calls = []
    describe = references.describe
    monkeypatch.setattr(references, "describe", lambda *given: calls.append(1) or describe(*given))
    for reference, seed in ((7, 1), (7, 2), (8, 1), (7, 3)):
        assert engine.submit([wanted(reference=reference, seed=seed)], "test").wait().error is None
    assert len(calls) == 2


def test_plugins_attend_round_it_and_are_not_blamed_for_it(make_engine, folder, wanted, draw, tmp_path):
    attending = """
    import contextlib

    @hookimpl
    def attention(name, original):
        return lambda attn, *given, **named: original(attn, *given, **named)

    @hookimpl
    def patch(parts):
        return contextlib.nullcontext()
    """
    write(tmp_path / "plugins" / "attending", attending)
    engine = make_engine(plugins=[tmp_path / "plugins"], models_dir=[folder], model="sd1")
    engine.sources.keep(picture(), "test")
    for _ in range(2):
        view = engine.submit([wanted()], "test").wait()
        assert view.error is None
        assert np.array_equal(pixels(view.saved[0].path), draw())
    (plugin,) = engine.plugins.plugins
    assert plugin.on
    engine.close()


# Known by its content, and told


def test_a_picture_is_known_by_the_content_of_adapter_and_reference(engine, wanted, folder):
    def key(request):
        return engine._executor.key(request.replace(scheduler="Euler"), engine._checkpoints()["sd1"])

    one = key(wanted())
    assert (
        len({one, key(wanted(reference=1)), key(wanted(reference_scale=0.5)), key(wanted(name="plus-sd1"))})
        == 4
    )
    copy = shutil.copy(
        folder / PLACE / "models" / "ip-sd1.safetensors", folder / PLACE / "models" / "other.safetensors"
    )
    assert key(wanted(name="other")) == one
    Path(copy).unlink()
    plain = wanted(reference_model="", reference_image="")
    assert key(plain) == key(plain.replace(reference_scale=2.0))


def test_the_text_of_a_picture_says_what_it_refers_to(engine, wanted):
    request = wanted(reference_scale=0.35)
    (saved,) = engine.submit([request], "test").wait().saved
    told = infotext.read(saved.infotext)
    assert told.request() == request.replace(model="sd1")
    assert "Reference model: ip-sd1" in saved.infotext
    assert told.unknown["Reference model hash"]


# Refused by name


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"reference_image": ""}, "reference_image", "needs a picture"),
        ({"reference_image": "0" * 64}, "reference_image", "no longer here"),
        ({"reference_model": ""}, "reference_model", "choose the model"),
        ({"name": "ip-sd2"}, "reference_model", "there is ip-sd1"),
        ({"name": "alone"}, "reference_model", "summary is 99 numbers wide"),
        ({"name": "face"}, "reference_model", "Face ID"),
        ({"name": "large"}, "reference_model", "made for Stable Diffusion XL"),
        ({"name": "broken"}, "reference_model", "cut short"),
        ({"model": "flux", "name": "ip-sd1"}, "reference_model", "Stable Diffusion"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_its_field(engine, wanted, folder, changes, field, message):
    whole = folder / PLACE / "models" / "ip-sd1.safetensors"
    (whole.parent / "broken.safetensors").write_bytes(whole.read_bytes()[:-64])
    save_file({"ip_adapter.1.to_k_ip.weight": torch.zeros(32, 2048)}, whole.parent / "large.safetensors")
    with pytest.raises(InvalidField, match=message) as refused:
        engine.submit([wanted(**changes)], "test")
    assert refused.value.field == field


def test_one_for_another_net_is_refused_and_the_net_unharmed(engine, wanted, draw):
    """Tiny ones do not say their families by their widths: it is seen when they are read."""
    before = draw(reference_model="", reference_image="")
    view = engine.submit([wanted(name="ip-sdxl")], "test").wait()
    assert isinstance(view.error, InvalidField)
    assert view.error.field == "reference_model"
    assert "does not fit" in str(view.error)
    assert np.array_equal(draw(reference_model="", reference_image=""), before)


@pytest.mark.parametrize("place", ["a", "b"])
def test_the_nearest_of_two_encoders_that_fit_is_taken(tmp_path, place):
    paths = {each: encoder(tmp_path / each / "image_encoder") for each in ("a", "b")}
    net = diffusers.UNet2DConditionModel.from_pretrained(tiny.folder("sd1", tmp_path / "c" / "sd1") / "unet")
    adapter(tmp_path / place / "deep" / "ip.safetensors", net, plain(tiny.WIDTH, SUMMARY))
    finder = checkpoints.Finder(Catalogue([tmp_path]))
    finder.all()
    info = ModelInfo("sd1", "sd1", "", 64, 64, (), {}, 0)
    request = request_for(reference_model="ip", reference_image="0" * 64)
    found = additions.find(request, finder, info).reference
    assert found.encoder.path == paths[place]


def test_a_refiner_without_the_reference_goes_on_from_a_model_with_it(engine, wanted, draw):
    """With itself as refiner, a model makes what it makes alone: it is told of the reference all along."""
    assert np.array_equal(draw(refiner="sd1", refiner_switch=0.5), draw())
