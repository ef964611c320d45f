"""Families that run as diffusers has them: their pictures are the plain pipelines', seen and stopped."""

import functools
import inspect
import io
import json
import shutil
from contextlib import contextmanager

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines import auto_pipeline
from PIL import Image

from tests import tiny_auto
from tests.conftest import ROOT, pixels, request_for
from tests.test_img2img import a_mask, a_picture, made, over
from tests.test_memory_errors import TWO
from webui.catalogue.auto import AUTO, refusal
from webui.catalogue.found import FAMILY_TITLES
from webui.catalogue.shelves import Catalogue
from webui.diffusion import devices, families
from webui.errors import InvalidField, NotANumber

ALL = tuple(AUTO)
WITH_SOURCES = [name for name, auto in AUTO.items() if "img2img" in auto.tasks]
MASKED = [name for name, auto in AUTO.items() if "inpaint" in auto.tasks]
MASK = a_mask((64, 64), (16, 16, 47, 47))
STEPS = 4
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
# Written by hand from diffusers' documentation, on purpose not read from our own table.
PLAIN = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow DPM++ 2M": ("DPMSolverMultistepScheduler", FLOW),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("models")
    for name in ALL:
        tiny_auto.folder(name, at / name)
    tiny_auto.folder("flux2-klein", at / "distilled", is_distilled=True)
    return at


@pytest.fixture(scope="module")
def engine(make_engine, folder):
    engine = make_engine(models_dir=[folder], model="sana")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def bare(engine, folder):
    """diffusers' own pipeline of a model for a task, found by its AutoPipelines."""
    made(engine, wanted("sana"))  # else two threads would import diffusers

    @functools.cache
    def loaded(model):
        return diffusers.DiffusionPipeline.from_pretrained(
            folder / model, dtype=torch.float32, local_files_only=True
        )

    def pipeline(model, task="Text2Image"):
        pipe = getattr(diffusers, f"AutoPipelineFor{task}").from_pipe(loaded(model))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return pipeline


def called(pipe, model, scale=4.0, seed=3, **inputs):
    """The picture of a plain call, by the scheduler that the model comes with."""
    known = inspect.signature(type(pipe).__call__).parameters
    told = "true_cfg_scale" if "true_cfg_scale" in known else "guidance_scale"
    inputs |= {told: scale - 1 if model == "z-image" else scale}  # whose formula begins with 0
    plain = {"negative_prompt": "red", "clean_caption": False, "use_resolution_binning": False}
    inputs |= {name: value for name, value in plain.items() if name in known}
    return pipe(
        prompt="a fox",
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(seed),
        **{"width": 64, "height": 64, **inputs},
    ).images[0]


def wanted(model, **changes):
    own = {"model": model, "negative_prompt": "red", "num_inference_steps": STEPS, "seed": 3}
    return request_for(**{**own, "scheduler": shipped(model), **changes})


def shipped(model):
    own = {"pixart-alpha": "DPM++ 2M", "pixart-sigma": "DPM++ 2M", "sana": "DPM++ 2M"}
    return {**own, "hunyuan-dit": "DDPM", "cogview3": "DDIM"}.get(model, "Euler")


# As diffusers


@pytest.mark.parametrize("model", ALL)
def test_text_to_image_equals_bare_diffusers(engine, bare, model):
    scales = (1.0, 4.0)
    ours = made(engine, *(wanted(model, guidance_scale=scale, height=128) for scale in scales))
    for scale, one in zip(scales, ours, strict=True):
        assert np.array_equal(one, pixels(called(bare(model), model, scale, height=128))), scale
    assert not np.array_equal(*ours)


@pytest.mark.parametrize("model", WITH_SOURCES)
def test_image_to_image_equals_bare_diffusers(engine, bare, model):
    picture, strengths = a_picture(), (0.6, 1.0)
    options = {"model": model, "num_inference_steps": STEPS, "scheduler": shipped(model)}
    ours = made(engine, *(over(engine, picture, strength=strength, **options) for strength in strengths))
    for strength, one in zip(strengths, ours, strict=True):
        plain = called(bare(model, "Image2Image"), model, image=picture, strength=strength)
        assert np.array_equal(one, pixels(plain)), strength


@pytest.mark.parametrize("model", MASKED)
def test_inpainting_equals_bare_diffusers_inside_and_the_source_outside(engine, bare, model):
    picture = a_picture()
    options = {"model": model, "num_inference_steps": STEPS, "scheduler": shipped(model)}
    (ours,) = made(engine, over(engine, picture, MASK, strength=0.6, **options))
    plain = called(bare(model, "Inpainting"), model, image=picture, mask_image=MASK, strength=0.6)
    assert np.array_equal(ours, pixels(Image.composite(plain, picture, MASK)))


@pytest.mark.parametrize(
    ("model", "scheduler"), [("pixart-sigma", "Euler"), ("lumina2", "DPM++ 2M"), ("aura-flow", "Heun")]
)
def test_other_schedulers_equal_bare_diffusers_with_them(engine, bare, model, scheduler):
    (ours,) = made(engine, wanted(model, scheduler=scheduler))
    pipe = bare(model)
    flows = "flow " if "FlowMatch" in type(pipe.scheduler).__name__ else ""
    class_name, options = PLAIN[flows + scheduler]
    options |= {"flow_shift": pipe.scheduler.config.shift} if "use_flow_sigmas" in options else {}
    pipe.scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config, **options)
    if flows:  # these know no other call
        pipe.scheduler.set_timesteps = functools.partial(_steps, pipe.scheduler.set_timesteps)
    assert np.array_equal(ours, pixels(called(pipe, model)))


def _steps(own, num_inference_steps=None, device=None, sigmas=None, mu=None):
    own(len(sigmas) if sigmas is not None else num_inference_steps, device=device)


# What is ours


def test_the_families_are_those_that_diffusers_knows():
    text, image, mask = (
        getattr(auto_pipeline, f"AUTO_{task}_PIPELINES_MAPPING")
        for task in ("TEXT2IMAGE", "IMAGE2IMAGE", "INPAINT")
    )
    ours = {families.of(name).kind("txt2img"): name for name in ALL}
    for key, kind in text.items():
        title = kind.__name__
        if kind in ours:
            auto, known = AUTO[ours[kind]], _call(kind)
            others = {"img2img": image, "inpaint": mask}  # without a strength, pictures are only told
            tasks = ("txt2img", *(t for t in others if "strength" in _call(others[t].get(key))))
            assert auto.tasks == tasks, title
            assert all(families.of(ours[kind]).kind(task) is others[task][key] for task in tasks[1:])
            assert auto.guided == ("negative_prompt" in known)
            assert auto.steps == known["num_inference_steps"].default
            scale = known.get("true_cfg_scale", known["guidance_scale"]).default
            assert auto.scale == scale + auto.from_zero
        else:
            assert refusal(title) or title in OWN, title
    assert ours.keys() <= set(text.values())


def _call(kind):
    return inspect.signature(kind.__call__).parameters if kind else {}


OWN = {  # modules of our own
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline",
    "LatentConsistencyModelPipeline",
}  # fmt: skip


@pytest.mark.parametrize("model", ALL)
def test_a_model_is_listed_as_what_it_is_and_what_it_can(engine, model):
    info = next(info for info in engine.models() if info.name == model)
    found = engine.catalogue.of("checkpoint")[model]
    assert FAMILY_TITLES[found.family] == AUTO[model].title
    assert (info.width, info.multiple) == (1024, AUTO[model].multiple)
    assert info.defaults["scheduler"] == shipped(model)
    assert info.plain
    misfits = engine.misfits(model)
    assert ("Euler a" in misfits) == (found.prediction == "flow_prediction" or model == "cogview3")
    assert shipped(model) not in misfits


def test_a_distilled_model_is_run_as_such(engine, bare):
    info = next(info for info in engine.models() if info.name == "distilled")
    assert not info.guided
    assert info.defaults["num_inference_steps"] == 4
    ours = made(engine, *(wanted(model, guidance_scale=3.0) for model in ("distilled", "flux2-klein")))
    assert np.array_equal(ours[0], pixels(called(bare("distilled"), "distilled")))
    assert not np.array_equal(*ours)  # the same weights, but guided


@pytest.mark.parametrize("model", ALL)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest_that_do(engine, model):
    step = AUTO[model].multiple
    for field in ("width", "height"):
        with pytest.raises(InvalidField, match=rf"multiple of {step} .* such as {4 * step} or {5 * step}"):
            engine.submit([wanted(model, **{field: 4 * step + 8})], "test")


@pytest.mark.parametrize("model", ALL)
def test_calls_are_counted_and_shown(engine, model):
    request = wanted(model, num_images_per_prompt=2, height=128)
    views = list(engine.submit([request], "test").watch())
    assert {view.net_calls_total for view in views} == {2 * STEPS}
    assert views[-1].net_calls == 2 * STEPS
    stages = {view.stage for view in views if view.stage.startswith("Step")}
    assert stages
    assert stages <= {f"Step {n + 1} of {STEPS}" for n in range(STEPS)}
    previews = [Image.open(io.BytesIO(view.preview)).size for view in views if view.preview]
    assert all(size == previews[0] and size[1] == 2 * size[0] for size in previews)
    assert bool(previews) == (
        model not in ("sana", "qwen-image", "flux2-klein")
    )  # whose VAEs are of other kinds


@pytest.mark.parametrize("model", ["lumina2", "z-image", "cogview3"])
def test_a_preview_shows_what_the_picture_will_be(engine, bare, model):
    """The last one: the scheduler's last step makes of it the latents themselves."""
    views = list(engine.submit([wanted(model)], "test").watch())
    last = [view.preview for view in views if view.preview][-1]
    latents = called(bare(model), model, output_type="latent")
    model = engine.manager.resident
    shown = model.preview.jpeg(latents[None] if latents.ndim == 3 else latents)
    assert (
        np.abs(pixels(Image.open(io.BytesIO(last))).astype(int) - pixels(Image.open(io.BytesIO(shown)))).max()
        <= 2
    )


@pytest.mark.parametrize("model", ["sana", "qwen-image"])
def test_each_picture_of_a_batch_equals_its_single_run(engine, model):
    batch = made(engine, wanted(model, num_images_per_prompt=2))
    alone = made(engine, *(wanted(model, seed=seed) for seed in (3, 4)))
    assert np.array_equal(batch, alone)
    assert not np.array_equal(*alone)


@pytest.mark.parametrize("model", ALL)
def test_a_job_is_cancelled_within_a_step(engine, model):
    job = engine.submit([wanted(model, num_inference_steps=300)], "test")
    for view in job.watch():
        if view.net_calls:
            engine.cancel(job.id, "test")
            break
    view = job.wait()
    assert view.state == "cancelled"
    assert view.net_calls < 150
    modules = [part for part in engine.manager.resident.encoder.parts.values() if hasattr(part, "modules")]
    assert not any(each._forward_pre_hooks for part in modules for each in part.modules())


@pytest.mark.parametrize(
    ("model", "changes", "field"),
    [
        ("pixart-sigma", {"variation_strength": 0.5}, "variation_strength"),
        ("pixart-sigma", {"hires_scale": 2.0}, "hires_scale"),
        ("pixart-sigma", {"refiner": "pixart-alpha"}, "refiner"),
        ("pixart-sigma", {"clip_skip": 2}, "clip_skip"),
        ("pixart-sigma", {"vae": "another"}, "vae"),
        ("lumina2", {"scheduler": "Euler a"}, "scheduler"),
        ("cogview3", {"scheduler": "Euler"}, "scheduler"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(engine, model, changes, field):
    with pytest.raises(InvalidField) as refusal:
        engine.submit([wanted(model, **changes)], "test")
    assert refusal.value.field == field


def test_loras_are_refused_before_they_are_looked_for(engine):
    with pytest.raises(InvalidField, match=r"^Prompt: LoRAs cannot be used with PixArt-Σ$"):
        engine.submit([wanted("pixart-sigma", prompt="a fox <lora:ink:1>")], "test")


@pytest.mark.parametrize("model", ALL)
def test_a_task_that_there_is_no_pipeline_for_is_refused_in_words(engine, model):
    tasks = {
        "img2img": over(engine, a_picture(), model=model),
        "inpaint": over(engine, a_picture(), MASK, model=model),
    }
    for task, request in tasks.items():
        if task not in AUTO[model].tasks:
            with pytest.raises(InvalidField, match="is made for text to image only"):
                engine.submit([request.replace(scheduler=shipped(model))], "test")


def test_a_prompt_is_read_as_it_is_written(engine, bare):
    words = "(a fox:1.3) [on] the AND blue"
    (ours,) = made(engine, wanted("lumina2", prompt=words))
    pipe = bare("lumina2")
    generator = torch.Generator().manual_seed(3)
    size = {"width": 64, "height": 64, "num_inference_steps": STEPS, "guidance_scale": 4.0}
    plain = pipe(words, negative_prompt="red", generator=generator, **size).images[0]
    assert np.array_equal(ours, pixels(plain))


def test_a_prompt_longer_than_the_model_reads_is_refused(engine):
    view = engine.submit([wanted("pixart-sigma", prompt="fox " * 400)], "test").wait()
    assert isinstance(view.error, InvalidField)
    assert view.error.field == "prompt"
    assert "300" in str(view.error)
    tokens, room = engine.count_tokens("a fox", "pixart-sigma")
    assert (tokens, room) == (3, 300)


@pytest.mark.parametrize(
    ("title", "reason"),
    [
        ("KandinskyV22Pipeline", "second model"),
        ("StableCascadeDecoderPipeline", "second model"),
        ("WuerstchenDecoderPipeline", "second model"),
        ("IFPipeline", "64 pixels"),
        ("KolorsPipeline", "sentencepiece"),
        ("FluxControlNetPipeline", "ControlNet"),
        ("NobodysPipeline", "not supported"),
    ],
)
def test_what_does_not_run_is_listed_with_the_reason(tmp_path, title, reason):
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "model_index.json").write_text(json.dumps({"_class_name": title}))
    (tmp_path / "thing" / "weights.safetensors").write_bytes(b"")
    (found,) = Catalogue([tmp_path]).all()
    assert title in found.problem
    assert reason in found.problem


def test_a_part_of_foreign_code_is_not_run(folder, tmp_path):
    thing = shutil.copytree(folder / "lumina2", tmp_path / "thing")
    index = json.loads((thing / "model_index.json").read_text())
    index["text_encoder"] = ["surprise", "Encoder"]
    (thing / "model_index.json").write_text(json.dumps(index))
    (found,) = Catalogue([tmp_path]).all()
    assert found.problem == "Its text_encoder is a class of surprise, whose code is not run here."


@pytest.fixture(scope="module")
def plugged(make_engine, folder):
    engine = make_engine(models_dir=[folder], model="lumina2", plugins=[ROOT / "extensions"])
    yield engine
    engine.close()


def test_a_plugin_that_works_inside_a_pipeline_is_refused_by_its_setting(plugged):
    view = plugged.submit([wanted("lumina2", plugins={"guidance.rescale": 0.5})], "test").wait()
    assert isinstance(view.error, InvalidField)
    assert view.error.field == "guidance.rescale"


def test_a_plugin_that_works_on_prompts_takes_part(plugged):
    plain, chosen = made(plugged, *(wanted("lumina2", prompt=prompt) for prompt in ("owl", "{owl|owl}")))
    assert np.array_equal(plain, chosen)


@pytest.mark.parametrize("mode", ["model", "group"])
@pytest.mark.parametrize("model", ["z-image", "sana"])
def test_what_is_offloaded_makes_the_same_pictures_bit_for_bit(
    engine, make_engine, folder, monkeypatch, model, mode
):
    """Each part comes to the device before it computes; of a group its layers do, one by one."""
    monkeypatch.setattr(devices, "allowed", lambda *_: TWO)
    offloading = make_engine(models_dir=[folder], model=model, offload=mode)
    request = wanted(model, seed=5)
    if model == "z-image":  # whose VAE computes before its net too
        for each in (engine, offloading):
            request = request.replace(image=each.sources.keep(a_picture(), "test"))
    assert np.array_equal(made(engine, request), made(offloading, request))
    assert offloading.residency().offload == mode
    moves = [event.what for event in offloading.residency().events]
    assert moves.count("moved to the device") == {"model": 3, "group": 1}[mode]
    offloading.close()


@contextmanager
def resident_of(engine, model):
    """The model in memory; the hooks that were put on it are taken off."""
    made(engine, wanted(model))
    hooks = []
    yield engine.manager.resident, hooks
    for hook in hooks:
        hook.remove()


def test_a_net_is_left_between_any_two_of_its_blocks(engine):
    with resident_of(engine, "pixart-sigma") as (model, hooks):
        reached = []
        block = model.net.transformer_blocks[0]
        hooks.append(block.register_forward_pre_hook(lambda *_: engine.cancel(job.id, "test")))
        hooks.append(block.register_forward_hook(lambda *_: reached.append("its end")))
        job = engine.submit([wanted("pixart-sigma", seed=8)], "test")
        assert job.wait().state == "cancelled"
        assert reached == []


@pytest.mark.parametrize(("place", "where"), [("net", "The net"), ("vae", "The VAE")])
def test_what_is_not_a_number_is_no_picture(engine, place, where):
    with resident_of(engine, "lumina2") as (model, hooks):
        part = model.net if place == "net" else model.vae.decoder
        hooks.append(part.register_forward_hook(_spoilt))
        view = engine.submit([wanted("lumina2", seed=8)], "test").wait()
        assert isinstance(view.error, NotANumber)
        assert str(view.error).startswith(where)


def _spoilt(_, inputs, output):
    return output * float("nan") if torch.is_tensor(output) else (output[0] * float("nan"),)


def test_a_vae_that_runs_out_of_memory_is_tried_once_more_in_tiles(engine):
    request = over(engine, a_picture(), model="z-image", num_inference_steps=2, scheduler="Euler")
    (right,) = made(engine, request)
    with resident_of(engine, "z-image") as (model, hooks):
        tiled = []

        def computing(module, _):
            tiled.append((module is model.vae.encoder, model.vae.use_tiling))
            if len(tiled) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")

        hooks += [
            part.register_forward_pre_hook(computing) for part in (model.vae.encoder, model.vae.decoder)
        ]
        (ours,) = made(engine, request)
    assert tiled == [(True, False), (False, False), (True, True), (False, True)]
    assert np.array_equal(ours, right)


def test_a_prompt_is_read_once(engine):
    with resident_of(engine, "lumina2") as (model, hooks):
        calls = []
        hooks.append(model.encoder.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1)))
        made(engine, *(wanted("lumina2", prompt="an owl", seed=seed) for seed in (1, 2)))
        assert len(calls) == 2  # prompt and negative prompt
        made(engine, wanted("lumina2", prompt="an owl", negative_prompt="blue"))
        assert len(calls) == 4


@pytest.fixture(scope="module")
def halved(make_engine, folder):
    engine = make_engine(models_dir=[folder], model="lumina2", dtype="bfloat16")
    yield engine
    engine.close()


@pytest.mark.parametrize("model", ALL)
def test_in_half_precision_a_picture_is_nearly_the_same(engine, halved, model):
    width = 64 + (32 if model == "sana" else 16)  # the least more that the model can make
    assert AUTO[model].multiple == width - 64
    request = wanted(model, num_inference_steps=2, width=width)
    ours, half = (made(each, request)[0] for each in (engine, halved))
    assert ours.shape == half.shape == (64, width, 3)
    assert np.abs(ours.astype(int) - half).mean() < 16
    assert {part.dtype for part in halved.manager.resident.net.parameters()} == {torch.bfloat16}


def test_a_vae_that_overflows_in_half_precision_decodes_in_full(halved):
    with resident_of(halved, "lumina2") as (model, hooks):
        (right,) = made(halved, wanted("lumina2"))
        precisions = []

        def overflow(_, __, pixels):
            precisions.append(pixels.dtype)
            return pixels * float("inf") if pixels.dtype == torch.bfloat16 else pixels

        hooks.append(model.vae.decoder.register_forward_hook(overflow))
        (rescued,) = made(halved, wanted("lumina2"))
    assert precisions == [torch.bfloat16, torch.float32]
    assert np.abs(rescued.astype(int) - right).max() < 16
    assert {part.dtype for part in model.vae.parameters()} == {torch.bfloat16}
