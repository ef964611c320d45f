"""Image to image and inpainting: equal to diffusers' pipelines, and exact outside the mask."""

import itertools
import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from tests.conftest import POCKET, pixels, request_for
from tests.test_equality import PLAIN
from webui.errors import InvalidField, Unsupported

SCHEDULERS = ("DDIM", "Euler", "Euler a", "DPM++ 2M", "Heun", "UniPC")
STRENGTHS = (0.3, 0.6, 1.0)


def a_picture(size=(64, 64), seed=0) -> Image.Image:
    """Smooth and colourful, so that a VAE and a difference of one level both have something to see."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def a_mask(size, *boxes) -> Image.Image:
    mask = Image.new("L", size)
    for box in boxes:
        ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


def plain_pipeline(bare, kind, name, unet=None):
    """diffusers' own pipeline of another kind over the same weights."""
    class_name, fixed = PLAIN[name]
    pristine = type(bare.scheduler).load_config(POCKET / "scheduler")
    scheduler = getattr(diffusers, class_name).from_config(pristine, **fixed)
    parts = {**bare.components, "scheduler": scheduler, "image_encoder": None}
    pipe = getattr(diffusers, f"StableDiffusion{kind}Pipeline")(**parts | ({"unet": unet} if unet else {}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plain_call(pipe, strength, **inputs):
    return pipe(
        "a fox",
        negative_prompt="red",
        num_inference_steps=10,
        guidance_scale=4.0,
        strength=strength,
        generator=torch.Generator("cpu").manual_seed(3),
        **inputs,
    ).images[0]


def over(engine, picture, mask=None, **changes):
    """A request that starts from ``picture``, kept for the owner 'test'."""
    named = {"image": engine.sources.keep(picture, "test")}
    if mask is not None:
        named |= {"mask_image": engine.sources.keep(mask, "test"), "mask_blur": 0}
    return request_for(
        **{
            **named,
            "negative_prompt": "red",
            "num_inference_steps": 10,
            "seed": 3,
            "strength": 0.6,
            **changes,
        }
    )


def made(engine, *requests, **options):
    view = engine.submit(requests, "test", **options).wait()
    assert view.error is None, view.error
    return [pixels(saved.path) for saved in view.saved]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_image_to_image_equals_bare_diffusers(engine, bare, name):
    picture = a_picture()
    ours = made(engine, *(over(engine, picture, scheduler=name, strength=s) for s in STRENGTHS))
    for strength, one in zip(STRENGTHS, ours, strict=True):
        plain = plain_call(plain_pipeline(bare, "Img2Img", name), strength, image=picture)
        assert np.array_equal(one, pixels(plain)), strength


@pytest.mark.parametrize("name", SCHEDULERS)
def test_inpainting_equals_bare_diffusers(engine, bare, name):
    picture, mask = a_picture(), a_mask((64, 64), (16, 8, 47, 39))  # whole latent pixels: one way to read it
    ours = made(engine, *(over(engine, picture, mask, scheduler=name, strength=s) for s in STRENGTHS))
    for strength, one in zip(STRENGTHS, ours, strict=True):
        pipe = plain_pipeline(bare, "Inpaint", name)
        plain = plain_call(pipe, strength, image=picture, mask_image=mask, width=64, height=64)
        laid_in = Image.composite(plain, picture, mask)
        assert np.array_equal(one, pixels(laid_in)), strength


@pytest.fixture(scope="module")
def inpainting_engine(make_engine, tmp_path_factory):
    """The embedded model with a UNet that takes nine channels, as inpainting checkpoints do."""
    folder = tmp_path_factory.mktemp("models") / "painter"
    shutil.copytree(POCKET, folder)
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | {"in_channels": 9}))
    (file,) = (folder / "unet").glob("*.safetensors")
    weights = load_file(file)
    extra = torch.randn(len(weights["conv_in.weight"]), 5, 3, 3, generator=torch.Generator().manual_seed(0))
    weights["conv_in.weight"] = torch.cat([weights["conv_in.weight"], 0.05 * extra.half()], dim=1)
    save_file(weights, file)
    return make_engine(models_dir=[folder.parent])


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("name", ["Euler a", "DPM++ 2M"])
def test_a_nine_channel_model_equals_bare_diffusers(inpainting_engine, bare, name, strength):
    picture, mask = a_picture(), a_mask((64, 64), (16, 8, 47, 39))
    engine = inpainting_engine
    (one,) = made(engine, over(engine, picture, mask, scheduler=name, strength=strength, model="painter"))
    folder = engine.settings.models_dir[0] / "painter"
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet", dtype=torch.float32)
    pipe = plain_pipeline(bare, "Inpaint", name, unet)
    plain = plain_call(pipe, strength, image=picture, mask_image=mask, width=64, height=64)
    assert np.array_equal(one, pixels(Image.composite(plain, picture, mask)))


def test_a_nine_channel_model_says_what_it_is_for(inpainting_engine):
    with pytest.raises(Unsupported, match="inpainting only") as refusal:
        inpainting_engine.submit([request_for(model="painter")], "test")
    assert refusal.value.field == "model"
    with pytest.raises(Unsupported, match="image to image"):
        inpainting_engine.submit([over(inpainting_engine, a_picture(), model="painter")], "test")


def test_soft_inpainting_with_a_hard_mask_is_inpainting(engine):
    picture, mask = a_picture(), a_mask((64, 64), (16, 8, 47, 39))
    hard = over(engine, picture, mask, scheduler="Heun")
    one, other = made(engine, hard, hard.replace(soft_inpainting=True))
    assert np.array_equal(one, other)


def test_soft_inpainting_changes_a_grey_place_less_the_darker_its_mask(engine):
    picture = a_picture()
    distances = []
    for level in (60, 130, 200, 255):
        mask = Image.new("L", (64, 64), level)
        (one,) = made(engine, over(engine, picture, mask, strength=1.0, soft_inpainting=True))
        distances.append(np.abs(one.astype(int) - pixels(picture)).mean())
    assert distances == sorted(distances)
    assert distances[-1] > 1.5 * distances[0]


@pytest.mark.parametrize("content", ["Fill", "Latent noise", "Latent nothing"])
def test_each_masked_content_starts_from_something_else(engine, content):
    picture, mask = a_picture(), a_mask((64, 64), (16, 8, 47, 39))
    original, other = made(
        engine,
        over(engine, picture, mask, strength=0.5),
        over(engine, picture, mask, strength=0.5, masked_content=content),
    )
    assert np.array_equal(original[:8], other[:8])
    assert not np.array_equal(original, other)


@pytest.mark.parametrize("area", ["Whole picture", "Only masked"])
def test_a_pixel_outside_the_mask_never_changes(engine, area):
    picture, mask = a_picture((120, 88)), a_mask((120, 88), (30, 20, 61, 45))
    request = over(engine, picture, mask, width=120, height=88, inpaint_area=area, mask_blur=3)
    (one,) = made(engine, request)
    changed = np.abs(one.astype(int) - pixels(picture)).max(axis=2) > 0
    assert one.shape == (88, 120, 3)
    assert changed[20:46, 30:62].mean() > 0.9
    assert not changed[:, :15].any()
    assert not changed[60:].any()


def test_only_masked_repaints_at_the_full_size_of_the_request(engine):
    """The crop is enlarged to 64x64 before the net sees it, and comes back at its own place and size."""
    picture, mask = a_picture((400, 300)), a_mask((400, 300), (200, 100, 219, 119))
    job = engine.submit([over(engine, picture, mask, inpaint_area="Only masked", masked_padding=8)], "test")
    (saved,) = job.wait().saved
    assert (saved.width, saved.height) == (400, 300)
    changed = np.argwhere((pixels(saved.path) != pixels(picture)).any(axis=2))
    assert changed.min(axis=0).tolist() == [100, 200]
    assert changed.max(axis=0).tolist() == [119, 219]


def test_an_extended_picture_keeps_every_old_pixel(engine):
    picture = a_picture((64, 64))
    request = over(engine, picture, width=128, height=96, extend_left=64, extend_bottom=32, mask_blur=0)
    (one,) = made(engine, request)
    assert np.array_equal(one[:64, 64:], pixels(picture))
    assert one[:, :64].std() > 0
    assert one[64:].std() > 0


def test_an_empty_mask_is_refused_by_name(engine):
    view = engine.submit([over(engine, a_picture(), Image.new("L", (64, 64)))], "test").wait()
    assert view.state == "failed"
    assert view.error.field == "mask_image"


def test_a_source_of_someone_else_does_not_exist(engine):
    digest = engine.sources.keep(a_picture(seed=9), "somebody")
    with pytest.raises(InvalidField, match="no longer here") as refusal:
        engine.submit([request_for(image=digest)], "test")
    assert refusal.value.field == "image"


def test_latent_resize_gives_another_picture_of_the_right_size(engine):
    picture = a_picture((100, 52))
    one, other = made(
        engine,
        over(engine, picture, width=128, height=64, resize_mode="Latent"),
        over(engine, picture, width=128, height=64, resize_mode="Stretch"),
    )
    assert one.shape == other.shape == (64, 128, 3)
    assert not np.array_equal(one, other)


def test_colour_correction_brings_the_colours_nearer_to_the_source(engine):
    picture = Image.new("RGB", (64, 64), (40, 90, 200))
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill=(90, 140, 240))
    plain, corrected = made(
        engine,
        over(engine, picture, strength=1.0),
        over(engine, picture, strength=1.0, color_correction=True),
    )
    target = pixels(picture).mean(axis=(0, 1))
    assert np.abs(corrected.mean(axis=(0, 1)) - target).max() < 8
    assert np.abs(plain.mean(axis=(0, 1)) - target).max() > 20


def test_a_loopback_is_a_chain_of_ordinary_requests(engine):
    rounds = [over(engine, a_picture(), strength=s) for s in (0.6, 0.5, 0.4)]
    job = engine.submit(rounds, "test", chained=True)
    saved = job.wait().saved
    assert len({picture.request.image for picture in saved}) == 3
    for before, after in itertools.pairwise(saved):
        assert np.array_equal(pixels(engine.sources.open(after.request.image, "test")), pixels(before.path))
    (again,) = made(engine, saved[2].request)
    assert np.array_equal(again, pixels(saved[2].path))


def test_a_loopback_takes_one_picture_at_a_time_and_no_mask(engine):
    picture = a_picture()
    with pytest.raises(Unsupported) as refusal:
        engine.submit([over(engine, picture, num_images_per_prompt=2)] * 2, "test", chained=True)
    assert refusal.value.field == "num_images_per_prompt"
    with pytest.raises(Unsupported):
        engine.submit([over(engine, picture, a_mask((64, 64), (0, 0, 9, 9)))] * 2, "test", chained=True)


def test_a_job_that_perseveres_goes_on_after_a_failure(engine):
    empty = Image.new("L", (64, 64))
    good = over(engine, a_picture())
    view = engine.submit([good, over(engine, a_picture(), empty), good], "test", persevere=True).wait()
    assert view.state == "done"
    assert len(view.saved) == 2
    assert [(failure.turn, failure.error.field) for failure in view.failures] == [(1, "mask_image")]


def test_a_job_of_failures_alone_has_failed(engine):
    bad = over(engine, a_picture(), Image.new("L", (64, 64)))
    view = engine.submit([bad, bad], "test", persevere=True).wait()
    assert view.state == "failed"
    assert len(view.failures) == 2
    assert view.error is not None


def test_what_survives_is_the_noised_latents_of_the_formula(engine, bare):
    """sqrt(a) x + sqrt(1 - a) noise at the first timestep, through the VAE."""
    picture = a_picture()
    request = over(engine, picture, scheduler="DDIM", strength=0.5, seed=3)
    shown = engine.survival(request, "test")
    scheduler = diffusers.DDIMScheduler.from_pretrained(POCKET, subfolder="scheduler")
    scheduler.set_timesteps(10)
    with torch.no_grad():
        x = bare.image_processor.preprocess(picture)
        latents = bare.vae.encode(x).latent_dist.mode() * bare.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
        noised = scheduler.add_noise(latents, noise, scheduler.timesteps[5:6])
        decoded = bare.vae.decode(noised / bare.vae.config.scaling_factor).sample
    plain = bare.image_processor.postprocess(decoded, output_type="pil")[0]
    assert np.abs(pixels(shown).astype(int) - pixels(plain)).max() <= 1


@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M", "Heun", "PLMS", "LCM"])
def test_less_survives_the_higher_the_strength(engine, name):
    picture = a_picture()
    distances = [
        np.abs(
            pixels(engine.survival(over(engine, picture, scheduler=name, strength=s), "test")).astype(int)
            - pixels(picture)
        ).mean()
        for s in (0.1, 0.4, 0.7, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[-1] > 2 * distances[0]


def test_the_three_tasks_share_the_resident_weights(engine):
    resident = engine.manager.resident
    before = sum(p.numel() for p in resident.net.parameters())
    picture, mask = a_picture(), a_mask((64, 64), (16, 8, 47, 39))
    made(engine, request_for(), over(engine, picture), over(engine, picture, mask))
    assert engine.manager.resident is resident
    assert sum(p.numel() for p in resident.net.parameters()) == before
    assert not [m for m in resident.net.modules() if m._forward_pre_hooks]
