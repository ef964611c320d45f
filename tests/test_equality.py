"""A saved picture equals a plain call of diffusers' pipeline, bit for bit (float32, CPU)."""

import diffusers
import numpy as np
import pytest
import torch

from tests.conftest import pixels, request_for

# Written by hand from diffusers' documentation, on purpose not read from our own table.
PLAIN = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "DDIM": ("DDIMScheduler", {}),
    "DDPM": ("DDPMScheduler", {}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "LCM": ("LCMScheduler", {}),
    "TCD": ("TCDScheduler", {}),
}


def plain_picture(bare, name, seed, guidance_scale, **options):
    class_name, fixed = PLAIN[name]
    pristine = type(bare.scheduler).load_config("models/pocket-model/scheduler")
    bare.scheduler = getattr(diffusers, class_name).from_config(pristine, **fixed, **options)
    return bare(
        "a fox on a blue background",
        negative_prompt="red",
        num_inference_steps=5,
        guidance_scale=guidance_scale,
        width=64,
        height=64,
        generator=torch.Generator("cpu").manual_seed(seed),
        eta=0.3 if name == "TCD" else 0.0,
    ).images[0]


@pytest.mark.parametrize("name", PLAIN)
def test_a_saved_picture_equals_bare_diffusers(engine, bare, name):
    settings = [(seed, scale) for seed in (0, 7, 2**32 - 1) for scale in (1.0, 7.5)]
    requests = [
        request_for(
            prompt="a fox on a blue background",
            negative_prompt="red",
            scheduler=name,
            seed=seed,
            guidance_scale=scale,
            num_inference_steps=5,
            eta=0.3 if name == "TCD" else None,
        )
        for seed, scale in settings
    ]
    view = engine.submit(requests, "test").wait()
    assert view.error is None
    for (seed, scale), saved in zip(settings, view.saved, strict=True):
        plain = plain_picture(bare, name, seed, scale)
        assert np.array_equal(pixels(saved.path), pixels(plain)), (seed, scale)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        ("Karras", {"use_karras_sigmas": True}),
        ("Exponential", {"use_exponential_sigmas": True}),
        ("Beta", {"use_beta_sigmas": True}),
        ("Lambda", {"use_lu_lambdas": True}),
        ("SGM uniform", {"timestep_spacing": "trailing"}),
        ("Linspace", {"timestep_spacing": "linspace"}),
        ("Leading", {"timestep_spacing": "leading"}),
    ],
)
def test_every_sigma_schedule_is_diffusers_own(engine, bare, schedule, options):
    request = request_for(
        prompt="a fox on a blue background",
        negative_prompt="red",
        sigma_schedule=schedule,
        seed=3,
        guidance_scale=4.0,
        num_inference_steps=5,
    )
    (saved,) = engine.submit([request], "test").wait().saved
    plain = plain_picture(bare, "DPM++ 2M", 3, 4.0, **options)
    assert np.array_equal(pixels(saved.path), pixels(plain))


def test_a_batch_equals_diffusers_with_a_generator_for_each_picture(engine, bare):
    request = request_for(num_images_per_prompt=3, seed=2**32 - 2, scheduler="Euler a")
    saved = engine.submit([request], "test").wait().saved
    pristine = type(bare.scheduler).load_config("models/pocket-model/scheduler")
    bare.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pristine)
    seeds = [2**32 - 2, 2**32 - 1, 0]
    images = bare(
        "a fox",
        num_inference_steps=4,
        guidance_scale=4.0,
        width=64,
        height=64,
        num_images_per_prompt=3,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
    ).images
    assert [s.request.seed for s in saved] == seeds
    for ours, theirs in zip(saved, images, strict=True):
        assert np.array_equal(pixels(ours.path), pixels(theirs))


def test_the_latent_hires_pass_equals_diffusers_img2img(engine, bare):
    request = request_for(hires_scale=2.0, hires_strength=0.5, hires_steps=6, scheduler="Euler a", seed=5)
    (saved,) = engine.submit([request], "test").wait().saved
    pristine = type(bare.scheduler).load_config("models/pocket-model/scheduler")
    generator = torch.Generator("cpu").manual_seed(5)
    bare.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pristine)
    common = {"prompt": "a fox", "guidance_scale": 4.0, "generator": generator}
    first = bare(num_inference_steps=4, width=64, height=64, output_type="latent", **common).images
    larger = torch.nn.functional.interpolate(first, size=(16, 16), mode="bilinear")
    img2img = diffusers.StableDiffusionImg2ImgPipeline(**{**bare.components, "image_encoder": None})
    img2img.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pristine)
    img2img.set_progress_bar_config(disable=True)
    plain = img2img(image=larger, strength=0.5, num_inference_steps=6, **common).images[0]
    assert plain.size == (128, 128)
    assert np.array_equal(pixels(saved.path), pixels(plain))
