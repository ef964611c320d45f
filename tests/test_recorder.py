"""A run that is watched: not a bit of its picture changes, and what is recorded is what there was."""

import functools
import time

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.attention_processor import Attention as Layer
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file

from tests import parts, tiny, tiny_auto
from tests.conftest import pixels, request_for
from tests.test_controls import control_net
from tests.test_img2img import a_mask, a_picture, inpainting_engine, over  # noqa: F401
from tests.test_plugins import write
from tests.test_references import PLACE, SUMMARY, adapter, encoder, plain
from webui.diffusion import attention, devices, recorder, schedulers
from webui.diffusion.attention import Attention, attended
from webui.diffusion.codec import Codec
from webui.diffusion.preview import LatentPreview, Reading
from webui.errors import Unsupported
from webui.flight import FlightRecord
from webui.request import Delivery

RECORDED = Delivery(record=True)
LONG = ", ".join(f"a fox number {n} in the snow" for n in range(16))  # more than 77 tokens
FAMILIES = ("sd1", "sdxl", "sd3", "flux")
METHODS = (
    {"scheduler": "Euler a"},
    {"scheduler": "DPM++ 2M", "sigma_schedule": "Karras"},
    {"scheduler": "Heun"},
    {"scheduler": "DDIM"},
    {"scheduler": "UniPC"},
    {"scheduler": "PLMS"},
)
KINDS = {
    "a batch of two": {"num_images_per_prompt": 2},
    "not square": {"width": 128, "height": 64},
    "more than 77 tokens": {"prompt": LONG},
    "a longer negative prompt": {"negative_prompt": LONG},
    "two parts": {"prompt": "a fox AND a blue background :0.5"},
    "a prompt that changes": {"prompt": "a [fox:owl:0.5] in [snow|grass]"},
    "a second pass": {"hires_scale": 1.5, "hires_steps": 3, "hires_strength": 0.7},
    "a second pass over pixels": {"hires_scale": 1.5, "hires_steps": 3, "hires_upscaler": "Lanczos"},
    "a variation": {"variation_strength": 0.3, "variation_seed": 9},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("models")
    for family in (*FAMILIES, "sdxl-refiner"):
        tiny.folder(family, at / family)
    (at / "embeddings").mkdir()
    vectors = torch.randn(2, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": vectors}, at / "embeddings" / "zorb.safetensors")
    pipe = diffusers.DiffusionPipeline.from_pretrained(at / "sd1", local_files_only=True)
    (at / "Lora").mkdir()
    parts.lora(pipe, at / "Lora" / "style.safetensors", 3)
    control_net(pipe.unet, at / "ControlNet" / "edges")
    encoder(at / PLACE / "models" / "image_encoder")
    adapter(at / PLACE / "models" / "ip.safetensors", pipe.unet, plain(tiny.WIDTH, SUMMARY))
    return at


@pytest.fixture(scope="module")
def families(make_engine, folder):
    """An engine with a tiny model of every family."""
    return make_engine(models_dir=[folder], model="sd1")


def finished(engine, request, delivery=RECORDED):
    view = engine.submit([request], "test", delivery).wait()
    assert view.state == "done", view.error
    return view


def recorded(engine, request) -> FlightRecord:
    return engine.flight(finished(engine, request).saved[0].id, "test")


def assert_unchanged(engine, request) -> FlightRecord:
    """Watched and not watched, the VAE is given the same latents, and the pictures are the same."""
    given, pictures = {}, {}
    decode = Codec.decode
    for watched in (True, False):  # first: nothing is remembered of the other run
        latents = given.setdefault(watched, [])

        def noted(codec, x, latents=latents):
            latents.append(x.clone())
            return decode(codec, x)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Codec, "decode", noted)
            view = finished(engine, request, Delivery(record=watched))
        pictures[watched] = view.saved
    assert given[False]
    for one, other in zip(given[True], given[False], strict=False):
        assert torch.equal(one, other)
    for one, other in zip(pictures[True], pictures[False], strict=True):
        assert np.array_equal(pixels(one.path), pixels(other.path))
    assert hooks(engine) == 0
    return engine.flight(pictures[True][0].id, "test")


def hooks(engine) -> int:
    """On the resident net and VAE; transformers leaves its own on text encoders."""
    model = engine.manager.resident
    modules = [module for part in (model.net, model.vae) for module in part.modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def x0(flight: FlightRecord, k: int) -> torch.Tensor:
    """By the formulas of the previews, which have tests of their own."""
    reading = Reading(flight.prediction_type, float(flight.signal[k]), float(flight.noise[k]))
    return reading.x0(torch.tensor(flight.latents[k]), torch.tensor(flight.guided[k]))


def assert_guided(flight: FlightRecord) -> None:
    """Exactly: the same numbers, added and multiplied in the same order."""
    scale = np.float32(flight.request.guidance_scale)
    assert np.array_equal(flight.guided, flight.uncond + scale * (flight.cond - flight.uncond))
    assert not np.array_equal(flight.cond, flight.uncond)


def assert_shared_out(flight: FlightRecord) -> None:
    """All that a place has to give is given."""
    total = flight.attention.sum(axis=1) + flight.padding
    assert np.abs(total - 1).max() < 1e-5
    assert flight.attention.min() >= 0


# Watching changes nothing


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["scheduler"])
def test_watching_changes_no_bit_whatever_the_scheduler(engine, method, scale):
    flight = assert_unchanged(engine, request_for(**method, guidance_scale=scale))
    calls = schedulers.net_calls(method["scheduler"], 4)
    assert len(flight.timesteps) == calls
    assert flight.steps.tolist() == [call * 4 // calls for call in range(calls)]
    if scale == 1:
        assert flight.uncond is None
        assert np.array_equal(flight.guided, flight.cond)
    else:
        assert_guided(flight)


@pytest.mark.parametrize("kind", KINDS)
def test_watching_changes_no_bit_whatever_is_asked(engine, kind):
    changes = {"negative_prompt": "red, blurry", **KINDS[kind]}
    flight = assert_unchanged(engine, request_for(**changes))
    assert_guided(flight)
    assert_shared_out(flight)


@pytest.mark.parametrize("family", FAMILIES)
def test_watching_changes_no_bit_whatever_the_model(families, family):
    flight = assert_unchanged(families, request_for(model=family, scheduler="Euler", height=96))
    assert flight.family == family
    assert flight.latents.shape == (4, 16 if family in ("sd3", "flux") else 4, 12, 8)
    if family == "flux":
        assert flight.uncond is None
    else:
        assert_guided(flight)
    assert (flight.attention is None) == (family in ("sd3", "flux"))


@pytest.mark.parametrize("kind", ["lora", "control", "reference", "all"])
def test_watching_changes_no_bit_of_what_is_added_to_a_model(families, kind):
    kept = families.sources.keep(a_picture(), "test")
    asked = {
        "lora": {"prompt": "a fox<lora:style:0.8>"},
        "control": {"control_model": "edges", "control_image": kept},
        "reference": {"reference_model": "ip", "reference_image": kept, "reference_scale": 0.7},
    }
    asked["all"] = asked["control"] | asked["reference"] | asked["lora"]
    usual = {"model": "sd1", "scheduler": "Euler", "negative_prompt": "red"}
    flight = assert_unchanged(families, request_for(**usual, **asked[kind]))
    without = recorded(families, request_for(**usual))
    assert np.array_equal(flight.latents[0], without.latents[0])
    assert not np.array_equal(flight.cond[0], without.cond[0])
    assert flight.tokens == without.tokens
    assert flight.additions.keys() == {"Lora hashes"} if kind == "lora" else flight.additions
    assert any("reference picture" in note for note in flight.notes) == (kind in ("reference", "all"))
    assert_guided(flight)
    assert_shared_out(flight)


@pytest.mark.parametrize("mask", [None, a_mask((64, 64), (16, 8, 47, 39))])
def test_watching_changes_no_bit_of_what_begins_with_a_picture(engine, mask):
    flight = assert_unchanged(engine, over(engine, a_picture(), mask, guidance_scale=4.0))
    assert len(flight.timesteps) == 6  # 0.6 of ten steps
    assert_guided(flight)
    assert any("noise was added" in note for note in flight.notes)
    assert any("laid into its source" in note for note in flight.notes) == (mask is not None)


def test_watching_changes_no_bit_in_half_precision(make_engine):
    engine = make_engine(dtype="bfloat16")
    flight = assert_unchanged(engine, request_for(negative_prompt="red"))
    assert flight.device == "cpu, bfloat16, sdpa"
    assert next(note.dtype for note in flight.arrays if note.name == "input of the net") == "bfloat16"
    assert_guided(flight)
    assert_shared_out(flight)


def test_watching_changes_no_bit_where_attention_is_sliced(make_engine, engine):
    sliced = assert_unchanged(make_engine(attention="sliced"), request_for(negative_prompt="red"))
    whole = recorded(engine, request_for(negative_prompt="red"))
    np.testing.assert_allclose(sliced.attention, whole.attention, atol=1e-5)


def test_watching_changes_no_bit_of_a_net_made_for_inpainting(inpainting_engine):  # noqa: F811
    request = over(inpainting_engine, a_picture(), a_mask((64, 64), (16, 8, 47, 39)), model="painter")
    flight = assert_unchanged(inpainting_engine, request)
    assert flight.latents.shape == (6, 4, 8, 8)
    assert next(note.shape for note in flight.arrays if note.name == "input of the net") == (2, 9, 8, 8)
    assert not any("put back" in note for note in flight.notes)


def test_watching_changes_no_bit_where_a_refiner_takes_over(families):
    request = request_for(model="sdxl", refiner="sdxl-refiner", refiner_switch=0.5, scheduler="Euler")
    flight = assert_unchanged(families, request)
    assert len(flight.latents) == 4
    assert_guided(flight)
    assert flight.attention is None
    assert [note for note in flight.notes if "refiner" in note] == [
        "The last steps are sdxl-refiner's.",
        "There is no attention: the refiner reads the prompt with layers of its own.",
    ]


def test_no_hook_is_left_by_a_run_that_is_cancelled_within_a_call_of_the_net(engine, monkeypatch):
    add, seen, jobs = Attention._add, [], []

    def cancelling(self, *args):
        seen.append(hooks(engine))
        if len(seen) == 9:
            jobs[0].cancel()
        return add(self, *args)

    monkeypatch.setattr(Attention, "_add", cancelling)
    finished(engine, request_for(), Delivery())  # now it waits for the next
    with engine._executor.busy:
        jobs.append(engine.submit([request_for()], "test", RECORDED))
    assert jobs[0].wait().state == "cancelled"
    assert min(seen) > 0  # they were there
    assert hooks(engine) == 0


def test_no_hook_is_left_by_a_run_that_fails(engine, monkeypatch):
    def failing(*_: object) -> None:
        raise RuntimeError("not today")

    monkeypatch.setattr(Attention, "_add", failing)
    assert engine.submit([request_for()], "test", RECORDED).wait().state == "failed"
    assert hooks(engine) == 0


# What is recorded


@pytest.mark.parametrize("model", ["sd1", "sdxl"])
@pytest.mark.parametrize("scheduler", ["DDIM", "Euler", "Euler a", "Heun", "LMS", "DPM2 a", "DDPM"])
def test_clean_latents_are_what_the_scheduler_says_they_are(families, monkeypatch, model, scheduler):
    build, said = schedulers.build, []

    def telling(*args):
        made = build(*args)
        step = made.step

        @functools.wraps(step)
        def told(*args, return_dict=True, **kwargs):
            result = step(*args, return_dict=True, **kwargs)
            said.append(getattr(result, "pred_original_sample", None))
            return result if return_dict else (result.prev_sample,)

        made.step = told
        return made

    monkeypatch.setattr(schedulers, "build", telling)
    flight = recorded(families, request_for(model=model, scheduler=scheduler, num_inference_steps=5))
    assert len(said) == len(flight.timesteps)
    compared = [(k, own) for k, own in enumerate(said) if own is not None]
    assert compared
    for k, own in compared:
        difference = (x0(flight, k) - own[0]).abs().max() / own.abs().max()
        assert difference < 1e-5, (k, difference)


@pytest.mark.parametrize("model", FAMILIES)
def test_euler_ends_with_the_clean_latents_that_its_last_call_says(families, model):
    flight = recorded(families, request_for(model=model, scheduler="Euler"))
    torch.testing.assert_close(x0(flight, 3), torch.tensor(flight.final), rtol=1e-5, atol=1e-5)


def test_the_picture_is_what_the_vae_makes_of_the_final_latents(engine, bare):
    flight = recorded(engine, request_for(scheduler="Euler", width=96))
    with torch.no_grad():
        decoded = bare.vae.decode(torch.tensor(flight.final)[None] / bare.vae.config.scaling_factor)[0]
    (plain,) = VaeImageProcessor().postprocess(decoded, output_type="pil")
    assert np.array_equal(flight.picture, np.asarray(plain))
    assert flight.guesses.shape == (4, 64, 96, 3)
    assert (
        np.abs(flight.guesses[-1].astype(int) - flight.picture).max() <= 1
    )  # Euler ends with its last guess
    assert np.abs(flight.guesses[0].astype(int) - flight.picture).max() > 20


def test_latents_are_shown_as_previews_show_them(engine, bare):
    fitted = LatentPreview.fit(bare.vae)
    flight = recorded(engine, request_for())
    assert np.array_equal(flight.to_rgb[:, :-1], fitted.weight.numpy())
    assert np.array_equal(flight.to_rgb[:, -1], fitted.bias.numpy())


def test_the_first_picture_of_a_batch_is_recorded(engine):
    view = finished(engine, request_for(num_images_per_prompt=2, seed=5))
    flight = engine.flight(view.saved[0].id, "test")
    assert flight.request == view.saved[0].request
    assert flight.request.seed == 5
    assert np.array_equal(flight.picture, pixels(view.saved[0].path))
    assert "The batch has 2 pictures, and this is the first of them." in flight.notes
    assert not engine._flights.has(view.saved[1].id)


def test_of_two_passes_the_first_is_recorded(engine):
    plain, two = request_for(), request_for(hires_scale=2.0, hires_steps=3)
    first, both = recorded(engine, plain), recorded(engine, two)
    for name in ("latents", "cond", "uncond", "guided", "final", "picture", "guesses", "attention"):
        assert np.array_equal(getattr(first, name), getattr(both, name)), name
    assert both.picture.shape == (64, 64, 3)
    assert any("second pass" in note for note in both.notes)


def test_the_stages_make_up_all_the_time(engine, monkeypatch):
    request = request_for(width=128, height=128, num_inference_steps=8)
    before = time.perf_counter()
    view = finished(engine, request)
    took = time.perf_counter() - before
    flight = engine.flight(view.saved[0].id, "test")
    assert list(flight.seconds) == ["prompt", "net", "scheduler", "vae", "watching", "other"]
    assert flight.wall == pytest.approx(sum(flight.seconds.values()), rel=0.01)
    assert flight.wall < took
    assert max(flight.seconds, key=flight.seconds.get) in ("net", "watching")
    assert min(flight.seconds.values()) > 0
    assert view.seconds == pytest.approx(
        flight.wall - flight.seconds["watching"], abs=0.1
    )  # is not the picture's


def test_what_is_done_while_watching_is_watching(monkeypatch):
    now = iter(range(100))  # seconds
    monkeypatch.setattr(recorder.time, "perf_counter", lambda: float(next(now)))
    clock = recorder.Clock(devices.choose(devices.Machine(), "cpu", "float32", "sdpa"))
    with clock.stage("scheduler"):  # each of these is a second after the one before
        with clock.stage("net"), clock.stage("watching"), clock.stage("vae"):
            pass
        with clock.stage("vae"):
            pass
    clock.lap()
    counted = {"other": 2, "scheduler": 3, "net": 2, "watching": 3, "vae": 1, "prompt": 0}
    assert clock.seconds == counted


def test_what_the_run_had_is_listed(families):
    flight = recorded(families, request_for(model="sdxl"))
    had = {note.name: note for note in flight.arrays}
    assert had["token ids"].shape == (1, 77)
    assert had["prompt embeddings"].shape == (2, 77, 3 * tiny.WIDTH)
    assert had["summary of the prompt"].shape == (2, 2 * tiny.WIDTH)
    assert had["latents"].shape == (1, 4, 8, 8)
    assert had["input of the net"].shape == had["output of the net"].shape == (2, 4, 8, 8)
    assert had["output of the VAE"].shape == (1, 3, 64, 64)
    assert had["pixels"] == recorder.ArrayNote("pixels", (64, 64, 3), "uint8", 64 * 64 * 3)
    assert had["latents"].bytes == 4 * 8 * 8 * 4


def test_guesses_that_cost_too_much_are_left_out(engine, monkeypatch):
    monkeypatch.setattr(recorder, "GUESSED_PIXELS", 4 * 64 * 64 - 1)
    flight = recorded(engine, request_for())
    assert flight.guesses is None
    assert "The guesses are not decoded: 4 pictures of 64x64 are too many." in flight.notes
    monkeypatch.setattr(recorder, "GUESSED_PIXELS", 4 * 64 * 64)
    assert recorded(engine, request_for()).guesses is not None


# Words and attention


def test_the_words_are_those_of_the_tokenizer(engine, bare):
    prompt = "a (photographic:1.3) fox, on blue"
    flight = recorded(engine, request_for(prompt=prompt))
    ids = bare.tokenizer("a photographic fox, on blue").input_ids
    assert list(flight.tokens) == bare.tokenizer.convert_ids_to_tokens(ids)


def test_the_words_of_all_chunks_are_there(engine, bare):
    flight = recorded(engine, request_for(prompt=LONG))
    words = [word for word in flight.tokens if word.startswith("<|")]
    assert words == ["<|startoftext|>", "<|endoftext|>"] * 3
    own = [word for word in flight.tokens if not word.startswith("<|")]
    assert own == bare.tokenizer.tokenize(LONG)
    assert flight.attention.shape[1] == len(flight.tokens)
    assert_shared_out(flight)


def test_a_word_that_a_file_has_taught_is_itself(families):
    flight = recorded(families, request_for(model="sd1", prompt="a zorb on blue"))
    words = ["a</w>", "zorb</w>", "zorb</w>", "on</w>", "blue</w>"]
    assert list(flight.tokens) == ["<|startoftext|>", *words, "<|endoftext|>"]
    assert flight.additions["TI hashes"].startswith("zorb: ")


@pytest.mark.parametrize("model", ["sd1", "sdxl"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_attention_is_what_diffusers_own_processor_has(families, monkeypatch, model, scale):
    """All layers of these nets that look at the prompt are of one size: no resampling comes between."""
    recorded(families, request_for(model=model))
    layers = [
        module for name, module in families.manager.resident.net.named_modules() if name.endswith(".attn2")
    ]
    score, seen = Layer.get_attention_scores, []

    def scored(self, *args):
        result = score(self, *args)
        if any(self is layer for layer in layers):
            seen.append(result.unflatten(0, (-1, self.heads)))  # (N, heads, places, L)
        return result

    monkeypatch.setattr(Layer, "get_attention_scores", scored)
    for layer in layers:
        monkeypatch.setattr(layer, "processor", AttnProcessor())
    request = request_for(
        model=model, prompt="a fox on blue", height=96, num_inference_steps=2, guidance_scale=scale
    )
    flight = recorded(families, request)
    assert flight.attention.shape == (2, 6, 6, 4)
    assert len(seen) == 2 * len(layers)
    for k in range(2):
        of_call = seen[k * len(layers) : (k + 1) * len(layers)]
        assert of_call[0].shape[0] == (2 if scale > 1 else 1)
        shares = torch.stack([scores[-1].mean(dim=0) for scores in of_call]).mean(dim=0)  # (places, L)
        own = torch.tensor(flight.attention[k]).flatten(1).T
        torch.testing.assert_close(own, shares[:, :6], rtol=0, atol=1e-6)
        rest = torch.tensor(flight.padding[k]).flatten()
        torch.testing.assert_close(rest, shares[:, 6:].sum(dim=1), rtol=0, atol=1e-6)


def test_attention_of_one_layer_is_softmax_of_queries_and_keys():
    """By loops, for one place and one head at a time."""
    torch.manual_seed(0)
    query, key = torch.randn(5, 8), torch.randn(7, 8)
    shares = attended(query, key, heads=2)
    for place in range(5):
        of_heads = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = np.array([float(query[place, head] @ key[n, head]) / 2 for n in range(7)])
            of_heads.append(np.exp(scores) / np.exp(scores).sum())
        np.testing.assert_allclose(shares[place].numpy(), np.mean(of_heads, axis=0), atol=1e-6)


@pytest.mark.parametrize(("size", "grid"), [((128, 64), (4, 8)), ((64, 128), (8, 4)), ((72, 136), (9, 5))])
def test_attention_has_the_shape_of_the_picture(engine, size, grid):
    """At half of the latents' size; where that is odd, nets round up."""
    width, height = size
    flight = recorded(engine, request_for(width=width, height=height, num_inference_steps=2))
    assert flight.attention.shape[2:] == flight.padding.shape[1:] == grid
    assert_shared_out(flight)


def test_attention_is_that_of_the_recorded_picture_alone(engine):
    one = recorded(engine, request_for(seed=5))
    of_two = recorded(engine, request_for(seed=5, num_images_per_prompt=2))
    np.testing.assert_allclose(one.attention, of_two.attention, atol=1e-5)
    np.testing.assert_allclose(one.latents, of_two.latents, atol=1e-4)
    np.testing.assert_allclose(one.final, of_two.final, atol=1e-4)
    other = recorded(engine, request_for(seed=6))
    assert np.abs(one.attention - other.attention).max() > 3e-3


def test_a_plugin_that_asks_the_net_again_does_not_count_twice(make_engine, tmp_path, monkeypatch):
    again = """
    @hookimpl
    def settings():
        return [Setting("on", False, "On")]

    @hookimpl
    def guide(prediction):
        prediction.predict()
    """
    engine = make_engine(plugins=[write(tmp_path / "again", again)])
    reckoned = []
    monkeypatch.setattr(
        attention, "attended", lambda *args, **kw: reckoned.append(1) or attended(*args, **kw)
    )
    plain = recorded(engine, request_for())
    times = len(reckoned)
    asked = recorded(engine, request_for(plugins={"again.on": True}))
    assert len(reckoned) == 2 * times
    assert len(asked.attention) == len(asked.timesteps) == 4
    np.testing.assert_allclose(plain.attention, asked.attention, atol=1e-5)
    assert any("plugin again" in note for note in asked.notes)


def test_layers_that_do_something_else_are_not_recorded(engine, monkeypatch):
    finished(engine, request_for())
    layer = next(
        each for name, each in engine.manager.resident.net.named_modules() if name.endswith(".attn2")
    )
    plain = AttnProcessor()

    def twice(attn, hidden, encoder_hidden_states=None, **kwargs):
        attn.to_k(encoder_hidden_states)
        return plain(attn, hidden, encoder_hidden_states=encoder_hidden_states)

    monkeypatch.setattr(layer, "processor", twice)
    flight = recorded(engine, request_for())
    assert flight.attention is None
    assert flight.padding is None
    assert any("no attention" in note for note in flight.notes)


# What is refused


def test_a_record_that_would_be_too_large_is_refused_before_the_run(engine, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_BYTES", 100_000)
    view = engine.submit([request_for(num_inference_steps=40)], "test", RECORDED).wait()
    assert view.state == "failed"
    assert isinstance(view.error, Unsupported)
    assert view.error.field == "num_inference_steps"
    assert view.net_calls == 0


def test_what_was_reckoned_of_the_size_is_not_less_than_it_is(engine, monkeypatch):
    flight = recorded(engine, request_for(width=128, height=128))
    arrays = [value for value in vars(flight).values() if isinstance(value, np.ndarray)]
    monkeypatch.setattr(recorder, "MAX_BYTES", sum(array.nbytes for array in arrays) - 1000)
    assert engine.submit([flight.request], "test", RECORDED).wait().state == "failed"


def test_a_model_whose_pipeline_is_called_as_it_is_cannot_be_recorded(make_engine, tmp_path):
    tiny_auto.folder("pixart-sigma", tmp_path / "pixart-sigma")
    engine = make_engine(models_dir=[tmp_path], model="pixart-sigma")
    with pytest.raises(Unsupported, match="cannot be recorded") as told:
        engine.submit([request_for()], "test", RECORDED)
    assert told.value.field == "model"
