"""Every family of models: its pictures equal the bare pipeline of diffusers, and what is ours works on it."""

import functools
import io
import itertools

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny, tiny_auto
from tests.conftest import ROOT, pixels, request_for
from tests.test_img2img import a_mask, a_picture, made, over
from tests.test_plugins import write
from webui.diffusion import families
from webui.diffusion.denoiser import interruptible
from webui.errors import InvalidField

MODELS = {
    "sd1": {},
    "sd2": {},
    "sdxl": {},
    "sdxl-refiner": {"seed": 7},
    "sd3": {},
    "sd3 without T5": {"t5": False},
    "flux": {},
    "schnell": {"guidance_embeds": False},
    "lcm": {},
}
ALL = ("sd1", "sd2", "sdxl", "sd3", "flux")
GUIDED = ("sd1", "sd2", "sdxl", "sd3")
PIPELINES = {
    "sd1": "StableDiffusion{}Pipeline",
    "sd2": "StableDiffusion{}Pipeline",
    "sdxl": "StableDiffusionXL{}Pipeline",
    "sdxl-refiner": "StableDiffusionXL{}Pipeline",
    "sd3": "StableDiffusion3{}Pipeline",
    "flux": "Flux{}Pipeline",
}
# Written by hand from diffusers' documentation, on purpose not read from our own table.
PLAIN = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow DPM++ 2M": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ),
}
UNETS = ("Euler", "Euler a", "DPM++ 2M")
STEPS = 5
MASK = a_mask((64, 64), (16, 8, 47, 39))  # whole latent pixels, and whole pairs of them


def family_of(model):
    return {"schnell": "flux"}.get(model, model.partition(" ")[0])


def flows(model):
    return family_of(model) in ("sd3", "flux")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One of each, beside each other."""
    at = tmp_path_factory.mktemp("models")
    for name, changes in MODELS.items():
        (tiny_auto if name == "lcm" else tiny).folder(family_of(name), at / name, **changes)
    return at


@pytest.fixture(scope="module")
def engine(make_engine, folder):
    engine = make_engine(models_dir=[folder], model="sd1")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def bare(engine, folder):
    """diffusers' own pipeline of a model, for a task, with a scheduler."""
    engine.submit([request_for(model="sd1")], "test").wait()  # else two threads would import diffusers

    @functools.cache
    def loaded(model):
        absent = {"text_encoder_3": None, "tokenizer_3": None} if model == "sd3 without T5" else {}
        return diffusers.DiffusionPipeline.from_pretrained(
            folder / model, dtype=torch.float32, local_files_only=True, **absent
        )

    def pipeline(model, task, scheduler):
        base = loaded(model)
        pipe = getattr(diffusers, PIPELINES[family_of(model)].format(task)).from_pipe(base)
        class_name, options = PLAIN[f"flow {scheduler}" if flows(model) else scheduler]
        pipe.scheduler = getattr(diffusers, class_name).from_config(base.scheduler.config, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return pipeline


def called(pipe, model, scale=4.0, negative="red", seeds=(3,), **inputs):
    """The pictures of a plain call."""
    negative = {"negative_prompt": negative} if family_of(model) != "flux" and negative else {}
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return pipe(
        "a fox",
        num_inference_steps=STEPS,
        guidance_scale=scale,
        num_images_per_prompt=len(seeds),
        generator=generators if len(seeds) > 1 else generators[0],
        **negative,
        **inputs,
    ).images


def wanted(model, **changes):
    own = {"model": model, "negative_prompt": "red", "num_inference_steps": STEPS, "seed": 3}
    return request_for(**{**own, "scheduler": "Euler", **changes})


def schedulers_of(*models, flow=("Euler",)):
    return [(model, name) for model in models for name in (flow if flows(model) else UNETS)]


# As diffusers


@pytest.mark.parametrize(
    ("model", "scheduler"),
    [
        *schedulers_of(*ALL, "sd3 without T5", "schnell"),
        ("sd3", "Heun"),
        ("sd3", "DPM++ 2M"),
        ("flux", "DPM++ 2M"),
    ],
)
def test_text_to_image_equals_bare_diffusers(engine, bare, model, scheduler):
    scales = (1.0, 4.0)
    ours = made(engine, *(wanted(model, scheduler=scheduler, guidance_scale=scale) for scale in scales))
    for scale, one in zip(scales, ours, strict=True):
        (plain,) = called(bare(model, "", scheduler), model, scale, width=64, height=64)
        assert np.array_equal(one, pixels(plain)), scale
    assert np.array_equal(*ours) == (model == "schnell")  # which is told no scale


@pytest.mark.parametrize(("model", "scheduler"), [*schedulers_of(*ALL, "sdxl-refiner"), ("sd3", "Heun")])
def test_image_to_image_equals_bare_diffusers(engine, bare, model, scheduler):
    picture, strengths = a_picture(), (0.5, 1.0)
    changes = {"num_inference_steps": STEPS, "scheduler": scheduler, "model": model}
    ours = made(engine, *(over(engine, picture, strength=strength, **changes) for strength in strengths))
    for strength, one in zip(strengths, ours, strict=True):
        size = {"width": 64, "height": 64} if flows(model) else {}
        pipe = bare(model, "Img2Img", scheduler)
        (plain,) = called(pipe, model, image=picture, strength=strength, **size)
        assert np.array_equal(one, pixels(plain)), strength


@pytest.mark.parametrize(("model", "scheduler"), schedulers_of(*ALL, "sdxl-refiner"))
def test_inpainting_equals_bare_diffusers(engine, bare, model, scheduler):
    picture, strengths = a_picture(), (0.5, 1.0)
    changes = {"num_inference_steps": STEPS, "scheduler": scheduler, "model": model}
    sources = [over(engine, picture, MASK, strength=strength, **changes) for strength in strengths]
    ours = made(engine, *sources)
    for strength, one in zip(strengths, ours, strict=True):
        pipe = bare(model, "Inpaint", scheduler)
        inputs = {"image": picture, "mask_image": MASK, "strength": strength, "width": 64, "height": 64}
        if model == "sd3":  # whose pipeline forgets the VAE's shift when it decodes
            latents = called(pipe, model, output_type="latent", **inputs)
            plain = decoded(pipe, latents)
        else:
            (plain,) = called(pipe, model, **inputs)
        assert np.array_equal(one, pixels(Image.composite(plain, picture, MASK))), strength


@torch.no_grad()
def decoded(pipe, latents):
    scaling, shift = pipe.vae.config.scaling_factor, pipe.vae.config.shift_factor
    return pipe.image_processor.postprocess(pipe.vae.decode(latents / scaling + shift).sample)[0]


@pytest.mark.parametrize("model", ALL)
def test_a_batch_equals_diffusers_with_a_generator_for_each_picture(engine, bare, model):
    ours = made(engine, wanted(model, num_images_per_prompt=2))
    theirs = called(bare(model, "", "Euler"), model, seeds=(3, 4), width=64, height=64)
    assert len(ours) == 2
    for one, plain in zip(ours, theirs, strict=True):
        assert np.array_equal(one, pixels(plain))


def test_an_empty_negative_prompt_is_zeros_to_sdxl_as_diffusers_has_it(engine, bare):
    (ours,) = made(engine, wanted("sdxl", negative_prompt=""))
    (plain,) = called(bare("sdxl", "", "Euler"), "sdxl", negative=None, width=64, height=64)
    assert np.array_equal(ours, pixels(plain))
    (encoded,) = called(bare("sdxl", "", "Euler"), "sdxl", negative=" ", width=64, height=64)
    assert not np.array_equal(ours, pixels(encoded))


@pytest.mark.parametrize("model", ALL)
def test_the_hires_pass_equals_diffusers_img2img(engine, bare, model):
    request = wanted(model, hires_scale=2.0, hires_strength=0.5)
    (ours,) = made(engine, request)
    generator = torch.Generator("cpu").manual_seed(3)
    negative = {} if model == "flux" else {"negative_prompt": "red"}
    common = {"prompt": "a fox", "guidance_scale": 4.0, "generator": generator, **negative}
    first = bare(model, "", "Euler")
    small = first(num_inference_steps=STEPS, width=64, height=64, output_type="latent", **common).images
    if model == "flux":
        small = first._unpack_latents(small, 64, 64, 8)
    larger = torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear")
    size = {"width": 128, "height": 128} if flows(model) else {}
    second = bare(model, "Img2Img", "Euler")
    (plain,) = second(image=larger, strength=0.5, num_inference_steps=STEPS, **size, **common).images
    assert plain.size == (128, 128)
    assert np.array_equal(ours, pixels(plain))


@pytest.mark.parametrize("switch", [0.4, 0.8])
def test_a_refiner_takes_over_as_in_diffusers_ensemble_of_experts(engine, bare, switch):
    (ours,) = made(engine, wanted("sdxl", refiner="sdxl-refiner", refiner_switch=switch))
    begun = {"denoising_end": switch, "width": 64, "height": 64, "output_type": "latent"}
    latents = called(bare("sdxl", "", "Euler"), "sdxl", **begun)
    expert = bare("sdxl-refiner", "Img2Img", "Euler")
    (plain,) = called(expert, "sdxl-refiner", image=latents, denoising_start=switch)
    assert np.array_equal(ours, pixels(plain))


def test_a_latent_consistency_model_equals_its_own_pipeline(engine, folder):
    (info,) = (info for info in engine.models() if info.name == "lcm")
    assert (
        info.defaults.items() >= {"scheduler": "LCM", "num_inference_steps": 4, "guidance_scale": 8.5}.items()
    )
    assert (info.family, info.tasks) == ("sd1", ("txt2img", "img2img", "inpaint"))
    ours = made(
        engine,
        *(wanted("lcm", scheduler="LCM", guidance_scale=scale, negative_prompt="") for scale in (2.0, 8.5)),
    )
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder / "lcm", local_files_only=True)
    assert type(pipe) is diffusers.LatentConsistencyModelPipeline
    for scale, one in zip((2.0, 8.5), ours, strict=True):
        (plain,) = called(pipe, "lcm", scale, negative=None, width=64, height=64)
        assert np.array_equal(one, pixels(plain))
    assert not np.array_equal(*ours)


# What is ours


@pytest.mark.parametrize("model", [*ALL, "sdxl-refiner"])
def test_a_family_is_known_by_its_pipeline_and_its_parts(engine, model):
    info = next(info for info in engine.models() if info.name == model)
    assert info.family == model


@pytest.mark.parametrize("model", [*ALL, "sd3 without T5"])
def test_a_prompt_of_several_chunks_is_read_to_its_end(engine, model):
    long = " ".join(["a red fox on a blue background"] * 80)  # T5 has chunks of 255 and 511 tokens
    ours = made(engine, *(wanted(model, prompt=f"{long} {last}") for last in ("fox", "owl")))
    assert not np.array_equal(*ours)


@pytest.mark.parametrize("model", ALL)
def test_weights_and_schedules_of_a_prompt_count(engine, model):
    prompts = ("a fox", "(a fox:1.0)", "[a fox:an owl:1.0]", "(a:0.5) fox", "[a fox:an owl:0.4]", "an owl")
    ours = made(engine, *(wanted(model, prompt=prompt) for prompt in prompts))
    same = {(0, 1), (0, 2), (1, 2)}
    for (i, one), (j, other) in itertools.combinations(enumerate(ours), 2):
        assert np.array_equal(one, other) == ((i, j) in same), (prompts[i], prompts[j])


@pytest.mark.parametrize("model", GUIDED)
def test_composed_prompts_are_a_sum_of_their_parts(engine, model):
    ours = made(
        engine, *(wanted(model, prompt=p) for p in ("a fox AND an owl :0", "a fox", "a fox AND an owl"))
    )
    assert np.abs(ours[0].astype(int) - ours[1]).max() <= 1
    assert not np.array_equal(ours[1], ours[2])


@pytest.mark.parametrize("model", ["flux", "lcm"])
def test_a_net_is_told_a_scale_for_each_picture_of_a_batch(engine, folder, make_engine, model):
    together = make_engine(models_dir=[folder], model=model, cells="together")
    requests = [wanted(model, guidance_scale=scale) for scale in (2.0, 3.0, 4.0)]
    made(together, requests[0])  # so that the time of one is known
    view = together.submit(requests, "test", persevere=True, reuse=True).wait()
    alone = made(engine, *requests)
    for saved, one in zip(sorted(view.saved, key=lambda s: s.request.guidance_scale), alone, strict=True):
        assert np.abs(pixels(saved.path).astype(int) - one).max() <= 2
    assert len({one.tobytes() for one in alone}) == 3
    together.close()


@pytest.mark.parametrize("model", ["sdxl", "sd3", "flux"])
def test_clip_skip_counts_as_a1111_or_is_refused(engine, model):
    if model == "flux":
        with pytest.raises(InvalidField, match=r"^Clip skip"):
            engine.submit([wanted(model, clip_skip=2)], "test")
        return
    usual, same, other = made(engine, *(wanted(model, clip_skip=skip) for skip in (1, 2, 3)))
    assert np.array_equal(usual, same)  # the net was trained on the last layer but one
    assert not np.array_equal(usual, other)


@pytest.mark.parametrize("model", ["sdxl", "sd3", "flux"])
def test_previews_show_unpacked_latents(engine, model):
    views = list(engine.submit([wanted(model, height=128)], "test").watch())
    previews = [view.preview for view in views if view.preview]
    assert previews
    with Image.open(io.BytesIO(previews[-1])) as preview:
        assert preview.height == 2 * preview.width


@pytest.mark.parametrize("model", ["sdxl", "sd3", "flux"])
def test_what_survives_of_a_source_is_what_the_first_step_begins_with(engine, bare, model):
    picture = a_picture()
    request = over(engine, picture, model=model, num_inference_steps=STEPS, scheduler="Euler", strength=0.5)
    made(engine, request)  # so that this model is the resident one
    shown = pixels(engine.survival(request, "test"))
    seen = {}

    def first(pipe, step, timestep, tensors):
        seen.setdefault("timestep", timestep)
        return {}

    size = {"width": 64, "height": 64} if flows(model) else {}
    pipe = bare(model, "Img2Img", "Euler")
    called(pipe, model, image=picture, strength=0.5, callback_on_step_end=first, **size)
    with torch.no_grad():
        vae, generator = pipe.vae, torch.Generator().manual_seed(3)
        shift = vae.config.shift_factor or 0
        latents = vae.encode(pipe.image_processor.preprocess(picture)).latent_dist.mode()
        latents = (latents - shift) * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        if flows(model):
            sigma = seen["timestep"] / 1000
            noised = sigma * noise + (1 - sigma) * latents
        else:
            alpha = pipe.scheduler.alphas_cumprod[int(seen["timestep"])]
            noised = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        decoded = vae.decode(noised / vae.config.scaling_factor + shift).sample
    plain = pipe.image_processor.postprocess(decoded)[0]
    assert np.abs(shown.astype(int) - pixels(plain)).max() <= 1


@pytest.mark.parametrize("model", ["sdxl", "sd3", "flux"])
def test_soft_inpainting_with_a_hard_mask_is_inpainting(engine, model):
    picture = a_picture()
    options = {"model": model, "scheduler": "Euler", "num_inference_steps": STEPS}
    soft, hard = (over(engine, picture, MASK, soft_inpainting=soft, **options) for soft in (True, False))
    assert np.array_equal(*made(engine, soft, hard))
    grey = MASK.point(lambda value: value // 2)  # of three steps only the last two change anything there
    options |= {"soft_inpainting": True}
    one, other = made(
        engine, *(over(engine, picture, grey, prompt=p, **options) for p in ("a fox", "an owl"))
    )
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("model", ALL)
def test_steps_over_a_picture_are_counted_as_they_are_made(engine, model):
    steps = 3 if flows(model) else 2  # half of five, rounded as the family's pipeline does
    options = {"model": model, "scheduler": "Euler", "num_inference_steps": STEPS, "strength": 0.5}
    views = list(engine.submit([over(engine, a_picture(), **options)], "test").watch())
    assert {view.net_calls_total for view in views} == {steps}
    assert views[-1].net_calls == steps
    assert {view.stage for view in views if view.stage.startswith("Step")} <= {
        f"Step {n + 1} of {steps}" for n in range(steps)
    }


@pytest.mark.parametrize("model", ALL)
def test_a_net_is_interrupted_between_any_two_of_its_blocks(engine, folder, model):
    family = families.of(model)
    net = diffusers.DiffusionPipeline.from_pretrained(folder / model).components[family.facts.net]
    before = {name: len(part._forward_pre_hooks) for name, part in net.named_modules()}
    with interruptible(net, lambda: None):
        hooked = [name for name, part in net.named_modules() if len(part._forward_pre_hooks) > before[name]]
    assert all(
        any(name.startswith(f"{blocks}.{k}") for name in hooked)
        for blocks in ("down_blocks", "up_blocks", "transformer_blocks", "single_transformer_blocks")
        for k in range(len(getattr(net, blocks, ())))
    )
    assert {name: len(part._forward_pre_hooks) for name, part in net.named_modules()} == before


@pytest.mark.parametrize("model", ALL)
def test_a_job_of_any_family_is_cancelled_within_a_step(engine, model):
    request = wanted(model, num_inference_steps=200)
    job = engine.submit([request], "test")
    for view in job.watch():
        if view.net_calls:
            engine.cancel(job.id, "test")
            break
    view = job.wait()
    assert view.state == "cancelled"
    assert view.net_calls < 100
    assert len(made(engine, wanted(model))) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "sd3", "width": 72}, "width"),
        ({"model": "flux", "height": 72}, "height"),
        ({"model": "flux", "hires_scale": 1.2}, "hires_scale"),
        ({"model": "flux", "prompt": "a fox AND an owl"}, "prompt"),
        ({"model": "flux", "scheduler": "Euler a"}, "scheduler"),
        ({"model": "flux", "scheduler": "Heun"}, "scheduler"),
        ({"model": "sdxl-refiner"}, "model"),
        ({"model": "sdxl", "refiner": "sd1"}, "refiner"),
        ({"model": "sd1", "refiner": "sd2"}, "refiner"),  # of the same latents, but predicting velocity
        ({"model": "sdxl", "refiner": "nobody"}, "refiner"),
    ],
)
def test_what_a_family_cannot_do_is_refused_by_name(engine, changes, field):
    with pytest.raises(InvalidField) as refusal:
        engine.submit([wanted(**changes)], "test")
    assert refusal.value.field == field


def test_any_model_of_the_same_latents_may_refine(engine, make_engine, folder):
    tiny.folder("sd1", folder / "another", seed=7)
    first, both, second = made(
        engine,
        wanted("sd1"),
        wanted("sd1", refiner="another", refiner_switch=0.6),
        wanted("another"),
    )
    ends = made(
        engine,
        wanted("sd1", refiner="another", refiner_switch=1.0),
        wanted("sd1", refiner="another", refiner_switch=0.01),
    )
    assert np.array_equal(ends[0], first)
    assert np.array_equal(ends[1], second)
    assert len({picture.tobytes() for picture in (first, both, second)}) == 3


# Plugins


@pytest.fixture(scope="module")
def plugged(make_engine, folder, tmp_path_factory):
    """With the plugins that come along, and one that looks at what it is given."""
    looking = write(
        tmp_path_factory.mktemp("plugins") / "looking",
        """
        def right(tensor, request):
            return tensor.shape == (1, settings_of[request.model], request.height // 8, request.width // 8)

        settings_of = {"sdxl": 4, "sd3": 16, "flux": 16}

        @hookimpl
        def settings():
            return [Setting("on", False, "On")]

        @hookimpl
        def patch(parts, request):
            assert (parts.unet is None) == (request.model != "sdxl")
            assert (parts.transformer is None) == (request.model == "sdxl")
            assert len(parts.text_encoders) == {"sdxl": 2, "sd3": 3, "flux": 2}[request.model]
            return None

        @hookimpl
        def start(noise, request):
            assert right(noise, request)
            return noise.flip(2)

        @hookimpl
        def guide(prediction):
            request = prediction.request
            assert right(prediction.latents, request) and right(prediction.cond, request)
            assert (prediction.uncond is None) == (request.model == "flux")
            return prediction.guided * 0.9

        @hookimpl
        def step_end(step):
            assert right(step.latents, step.request) and right(step.x0, step.request)
            return step.latents.flip(3)
        """,
    )
    plugins = [ROOT / "extensions", looking.parent]
    engine = make_engine(models_dir=[folder], model="sd1", plugins=plugins)
    yield engine
    engine.close()


@pytest.mark.parametrize("model", ["sdxl", "sd3", "flux"])
def test_plugins_see_unpacked_latents_and_change_them(plugged, model):
    plain, changed = made(plugged, *(wanted(model, plugins=own) for own in ({}, {"looking.on": True})))
    assert not np.array_equal(plain, changed)
    (again,) = made(plugged, wanted(model))
    assert np.array_equal(plain, again)


@pytest.mark.parametrize("setting", ["guidance.freeu_b1", "guidance.pag", "seamless.tile_x"])
def test_a_plugin_made_for_unets_refuses_a_transformer_by_its_setting(plugged, setting):
    value = True if setting == "seamless.tile_x" else 1.5
    made(plugged, wanted("sdxl", plugins={setting: value}))
    view = plugged.submit([wanted("sd3", plugins={setting: value})], "test").wait()
    assert isinstance(view.error, InvalidField)
    assert view.error.field == setting
