"""What a record shows, against closed forms and second computations; every check holds, and can fail."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from tests import tiny
from tests.conftest import request_for
from tests.flights import CHANNELS, TOKENS, record
from webui.flight import ArrayNote
from webui.illustrated import arrays, bands, colours, guidance, path, reading, times, words
from webui.illustrated.checks import Check, apart, cosine, ratio
from webui.request import Delivery

KINDS = ("epsilon", "v_prediction", "sample", "flow_prediction")
CHECKED = (reading, guidance, bands, words, times, arrays)
MARKED = ("<|startoftext|>", "<|endoftext|>")
ODD = {
    "one call": {"calls": 1},
    "not guided": {"guidance_scale": 1.0},
    "no attention": {"attended": False},
    "no words": {"tokens": MARKED},
    "not square": {"size": (96, 160)},
    "constant": {
        **{
            name: np.zeros((2, CHANNELS, 8, 8), np.float32)
            for name in ("latents", "cond", "uncond", "guided")
        },
        "calls": 2,
        "size": (64, 64),
        "final": np.zeros((CHANNELS, 8, 8), np.float32),
    },
}


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    """Nothing divides by zero, whatever it is given."""
    with np.errstate(all="raise", under="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def checks_of(flight):
    return [check for module in CHECKED for check in module.checks(flight)]


def broken(flight):
    return [check.name for check in checks_of(flight) if not check.held]


# Checks


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_holds_for_a_denoiser_in_closed_form(kind):
    checks = checks_of(record(prediction_type=kind))
    assert len(checks) == 17
    assert [check for check in checks if not check.held] == []


@pytest.mark.parametrize("odd", ODD)
def test_every_check_holds_of_odd_records_too(odd):
    assert broken(record(**ODD[odd])) == []


@pytest.mark.parametrize("odd", ODD)
def test_every_panel_of_an_odd_record_has_its_shape(odd):
    flight = record(**ODD[odd])
    calls, channels, height, width = flight.latents.shape
    assert reading.x0(flight).shape == reading.eps(flight).shape == flight.latents.shape
    assert colours.linear(flight, reading.x0(flight)).shape == (calls, height, width, 3)
    assert path.changes(flight).shape == (calls - 1,)
    assert path.distance_to_end(flight).shape == path.snr(flight).shape == (calls,)
    assert 0 <= path.settled(flight) < calls
    found = bands.bands(flight)
    assert found.coherence.shape == found.power.shape == (calls, len(found.edges) - 1)
    assert np.isfinite(found.coherence).all()
    seen = guidance.guidance(flight)
    assert (seen is None) == (flight.uncond is None)
    if seen is not None:
        assert (len(seen.lengths), len(seen.share), len(seen.cosines)) == (calls,) * 3
        assert seen.where.shape == (calls, height, width)
        assert guidance.at_scale(flight, calls - 1, 2.0).shape == (channels, height, width)
        assert guidance.clipped(flight, 0, [0, 1, 7.5]).shape == (3,)
    said = words.words(flight)
    shown = words.maps(flight), words.shares(flight), words.rest(flight), words.overlap(flight)
    if flight.attention is None:
        assert (*shown, words.at(flight, 0, 0, 0)) == (None,) * 5
    else:
        places = flight.attention.shape[2:]
        sizes = (len(said), calls, *places), (len(said), calls), (calls,), (len(said), len(said))
        assert tuple(each.shape for each in shown) == sizes
        assert words.at(flight, 0, 0, 0).shape == (len(said) + 1,)


def touched(array):
    """With one number off by a thousandth of the largest."""
    other = array.copy()
    other.flat[array.size // 2] += 1e-3 * np.abs(array).max()
    return other


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("final", ["what is decoded"]),
        ("guided", ["guided = negative"]),
        ("cond", ["guided = negative"]),
        ("attention", ["words + start"]),
        ("padding", ["words + start"]),
    ],
)
def test_one_wrong_number_breaks_its_check(field, names):
    flight = record()
    flight = replace(flight, **{field: touched(getattr(flight, field))})
    failed = broken(flight)
    assert len(failed) == len(names)
    assert all(found.startswith(name) for found, name in zip(failed, names, strict=True))


def test_levels_that_are_no_schedules_break_the_reading_of_v():
    flight = record(prediction_type="v_prediction")
    wrong = replace(flight, signal=(flight.signal * np.float32(1.01)))
    assert "signal · x0 + noise · eps = latents" in broken(wrong)


def test_seconds_and_bytes_that_are_missing_break_their_checks():
    flight = record(wall=1.8, arrays=(ArrayNote("latents", (1, 4, 16, 16), "float16", 4096),))
    assert broken(flight) == [
        "seconds of the stages = seconds of the run",
        "latents: product of its shape · bytes of a number = its bytes",
    ]


def test_a_check_with_an_error_that_is_no_number_never_holds():
    assert not Check("a", math.nan, math.inf).held
    assert not Check("a", math.inf, math.inf).held
    assert Check("a", 0.5, 0.5).held
    assert apart(np.array([np.nan]), np.ones(1)) == math.inf
    assert apart(np.array([1.0, -2.5]), np.array([1.0, -2.0])) == 0.25


def test_nothing_of_nothing_is_nothing():
    assert ratio(np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.0, 2.0])).tolist() == [0, math.inf, 1.5]
    assert cosine(np.zeros(2), np.ones(2)) == 0
    assert cosine(np.array([1.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(0.5**0.5)


# Reading


@pytest.mark.parametrize("kind", KINDS)
def test_x0_and_eps_are_those_that_the_latents_were_made_of(kind):
    """The output for known x0 and eps, by the definition of each kind, is read back as those."""
    random = np.random.default_rng(0)
    clean, noisy = random.standard_normal((2, 8, CHANNELS, 16, 16))
    base = record(prediction_type=kind, guidance_scale=1.0)
    signal, noise = (level.astype(float)[:, None, None, None] for level in (base.signal, base.noise))
    output = {
        "epsilon": noisy,
        "v_prediction": signal * noisy - noise * clean,
        "sample": clean,
        "flow_prediction": noisy - clean,
    }[kind]
    said = output.astype(np.float32)
    flight = replace(
        base, latents=(signal * clean + noise * noisy).astype(np.float32), cond=said, guided=said
    )
    assert np.allclose(reading.x0(flight), clean, atol=1e-5)
    assert np.allclose(reading.eps(flight), noisy, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_x0_is_that_of_the_live_previews(kind):
    import torch

    from webui.diffusion.preview import Reading

    flight = record(prediction_type=kind)
    for k in range(len(flight.timesteps)):
        live = Reading(kind, float(flight.signal[k]), float(flight.noise[k]))
        x0 = live.x0(torch.from_numpy(flight.latents[k]), torch.from_numpy(flight.cond[k]))
        assert apart(reading.x0(flight, "cond")[k], x0.numpy()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_is_found_where_a_schedule_stops_at_some_noise(kind):
    stop = (0.9, 0.1) if kind == "flow_prediction" else (0.9995746, 0.0291640)
    flight = record(prediction_type=kind, end=stop)
    assert reading.end(flight) == pytest.approx(stop, abs=1e-6)
    assert broken(flight) == []
    assert apart(reading.x0(flight)[-1], flight.final) > 1e-3  # the last x0 is not what is decoded


def test_the_end_is_the_best_pair_of_a_schedule_whatever_was_decoded():
    """Also where it is on no such line; against trying all angles."""
    flight = record()
    flight = replace(flight, final=(flight.final * 1.3 + np.roll(flight.final, 3)).astype(np.float32))
    clean, noisy = (read(flight)[-1].astype(float).ravel() for read in (reading.x0, reading.eps))
    angles = np.linspace(-math.pi, math.pi, 20001)
    tried = [
        np.linalg.norm(math.cos(angle) * clean + math.sin(angle) * noisy - flight.final.ravel())
        for angle in angles
    ]
    best = angles[np.argmin(tried)]
    assert reading.end(flight) == pytest.approx((math.cos(best), math.sin(best)), abs=4e-4)
    assert any("decoded" in name for name in broken(flight))


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler_config": {"_class_name": "PNDMScheduler"}},
        {"scheduler_config": {}},
        {"request": request_for(eta=0.5)},
        {"request": request_for(plugins={"a.b": 1})},
        {"request": request_for(image="0" * 64, mask_image="1" * 64)},
    ],
)
def test_nothing_is_said_of_an_end_that_need_not_follow_from_the_last_call(changes):
    assert reading.ends_plainly(record())
    assert not any("decoded" in check.name for check in reading.checks(record(**changes)))


def test_what_was_not_guided_has_no_output_without_the_prompt():
    flight = record(guidance_scale=1.0)
    with pytest.raises(ValueError, match="guided"):
        reading.x0(flight, "uncond")
    with pytest.raises(ValueError, match="guided"):
        guidance.at_scale(flight, 0, 2.0)


# Colours and the path


def test_colours_are_the_affine_map_place_by_place():
    flight = record()
    latents = reading.x0(flight)
    rgb = colours.linear(flight, latents)
    for k, row, column, n in ((0, 0, 0, 0), (3, 5, 7, 1), (7, 15, 2, 2)):
        *weights, offset = flight.to_rgb[n]
        expected = offset + sum(w * latents[k, c, row, column] for c, w in enumerate(weights))
        assert rgb[k, row, column, n] == pytest.approx(expected, abs=1e-5)
    assert np.array_equal(colours.linear(flight, latents[2]), rgb[2])


def test_pixels_are_clipped_and_not_wrapped():
    assert colours.pixels(np.array([-9.0, -1.0, 0.0, 0.5, 1.0, 9.0])).tolist() == [0, 0, 128, 191, 255, 255]


def test_the_last_guess_in_colours_is_the_picture_of_the_closed_form():
    flight = record()
    small = colours.pixels(colours.linear(flight, flight.final))
    assert np.array_equal(small.repeat(8, axis=0).repeat(8, axis=1), flight.picture)


def guessing(levels, **changes):
    """A record whose x0 at call k is levels[k] everywhere."""
    guesses = np.stack([np.full((CHANNELS, 16, 16), level, np.float32) for level in levels])
    base = record(prediction_type="sample", calls=len(levels), guidance_scale=1.0)
    return replace(base, cond=guesses, guided=guesses, final=guesses[-1], **changes)


def test_the_path_of_guesses_that_grow_is_known():
    flight = guessing([1, 2, 4, 5])
    assert path.changes(flight) == pytest.approx([0.5, 0.5, 0.2])
    assert path.distance_to_end(flight) == pytest.approx([0.8, 0.6, 0.2, 0])
    assert [path.settled(flight, share) for share in (0.9, 0.6001, 0.2001, 0.1)] == [0, 1, 2, 3]


def test_a_guess_that_leaves_again_has_not_settled():
    assert path.settled(guessing([10, 9.9, 2, 10, 10]), 0.1) == 3


def test_a_path_from_or_to_nothing_has_no_change_or_an_infinite_one():
    assert path.changes(guessing([0, 0, 1, 0])).tolist() == [0, 1, math.inf]


def test_snr_is_infinite_without_noise():
    flight = record(calls=2, signal=np.array([0.6, 1], np.float32), noise=np.array([0.8, 0], np.float32))
    assert path.snr(flight) == pytest.approx([0.5625, math.inf])


# Guidance


def test_guidance_is_measured_as_by_hand():
    flight = record()
    found = guidance.guidance(flight)
    cond, uncond = (reading.x0(flight, which).astype(float) for which in ("cond", "uncond"))
    for k in range(8):
        d = (cond[k] - uncond[k]).ravel()
        assert found.lengths[k] == pytest.approx(math.sqrt(sum(d**2)))
        assert found.share[k] == pytest.approx(found.lengths[k] / math.sqrt(sum(uncond[k].ravel() ** 2)))
        both = math.sqrt(sum(d**2)) * math.sqrt(sum(uncond[k].ravel() ** 2))
        assert found.cosines[k] == pytest.approx(sum(d * uncond[k].ravel()) / both, abs=1e-6)
        assert np.sqrt((found.where[k].astype(float) ** 2).sum()) == pytest.approx(found.lengths[k])
        assert found.where[k, 3, 4] == pytest.approx(np.linalg.norm(cond[k, :, 3, 4] - uncond[k, :, 3, 4]))
    assert found.scale == 4.0


@pytest.mark.parametrize("kind", KINDS)
def test_another_scale_is_what_a_run_at_that_scale_says_at_its_first_call(kind):
    flight, other = record(prediction_type=kind), record(prediction_type=kind, guidance_scale=9.0)
    assert apart(guidance.at_scale(flight, 0, 9.0), reading.x0(other)[0]) < 1e-5
    assert apart(guidance.at_scale(flight, 5, 4.0), reading.x0(flight)[5]) < 1e-5


def test_the_scale_of_another_run_breaks_the_identity():
    assert broken(replace(record(), request=request_for(guidance_scale=4.1))) != []


def test_where_plugins_guide_the_identity_is_left_out():
    names = [check.name for check in guidance.checks(record(request=request_for(plugins={"a.b": 1})))]
    assert len(names) == 2
    assert not any(name.startswith("guided") for name in names)


def test_what_is_clipped_is_counted():
    flight = record()
    scales = [0, 1, 4, 16]
    shares = guidance.clipped(flight, 6, scales)
    for scale, share in zip(scales, shares, strict=True):
        values = colours.linear(flight, guidance.at_scale(flight, 6, scale)).ravel().tolist()
        assert share == pytest.approx(sum(not -1 <= value <= 1 for value in values) / len(values))
    assert shares[-1] > shares[0]


# Bands


def wave(cycles_down, cycles_across, size=16):
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    return np.cos(2 * np.pi * (cycles_down * rows + cycles_across * columns) / size)


def of_guesses(*guesses):
    """A record with these x0 (h, w), one a call, in the first of its channels."""
    stack = np.zeros((len(guesses), CHANNELS, *guesses[0].shape), np.float32)
    stack[:, 0] = guesses
    base = record(prediction_type="sample", calls=len(guesses), guidance_scale=1.0)
    return replace(base, latents=np.zeros_like(stack), cond=stack, guided=stack, final=stack[-1])


@pytest.mark.parametrize("cycles", [(1, 0), (0, 2), (3, 4), (8, 8)])
def test_a_wave_is_in_the_band_of_its_frequency_alone(cycles):
    found = bands.bands(of_guesses(wave(*cycles)))
    frequency = math.hypot(*cycles) / 16
    filled = np.flatnonzero(found.power[0] > 1e-9)
    assert len(filled) == 1
    assert found.edges[filled[0]] <= frequency + 1e-6
    assert frequency <= found.edges[filled[0] + 1] + 1e-6
    mean_square = (wave(*cycles) ** 2).mean() / CHANNELS
    assert found.power[0].sum() == pytest.approx(mean_square, rel=1e-5)


def test_coherence_tells_contrast_from_difference():
    coarse, fine = wave(1, 0), wave(0, 6)
    found = bands.bands(
        of_guesses(0.3 * coarse, coarse - fine, coarse + np.roll(fine, 1, axis=1), coarse + fine)
    )
    low, high = (
        found.coherence[:, 0],
        found.coherence[:, np.argmax(found.power[-1] * (found.edges[:-1] > 0.2))],
    )
    assert low == pytest.approx([1, 1, 1, 1], abs=1e-5)
    assert high == pytest.approx([0, -1, math.cos(2 * math.pi * 6 / 16), 1], abs=1e-5)


def test_coherence_is_that_of_a_slow_transform():
    """Every coefficient by its definition, in loops, on latents that are not square."""
    flight = record(size=(64, 80), calls=3)
    found = bands.bands(flight, 3)
    x0 = reading.x0(flight).astype(float)
    _, channels, height, width = x0.shape
    rows, columns = np.arange(height)[:, None], np.arange(width)
    sums = np.zeros((3, 3, 3))  # call, band, (product, own power, power of the last)
    for u in range(height):
        for v in range(width):
            near = min(u, height - u) / height, min(v, width - v) / width
            if not (radius := math.hypot(*near)):
                continue
            band = max(n for n in range(3) if found.edges[n] <= radius + 1e-6)
            turn = np.exp(-2j * math.pi * (u * rows / height + v * columns / width))
            values = (x0 * turn).sum(axis=(2, 3))
            for k in range(3):
                product = (values[k] * values[-1].conj()).real.sum()
                powers = (abs(values[k]) ** 2).sum(), (abs(values[-1]) ** 2).sum()
                sums[k, band] += (product, *powers)
    assert found.coherence == pytest.approx(sums[..., 0] / np.sqrt(sums[..., 1] * sums[..., 2]), abs=1e-5)
    per_value = (height * width) ** 2 * channels
    assert found.power == pytest.approx(sums[..., 1] / per_value, rel=1e-4)


def test_small_latents_have_no_empty_bands():
    found = bands.bands(of_guesses(np.random.default_rng(0).standard_normal((4, 4))))
    assert len(found.edges) - 1 < bands.COUNT
    assert (found.power > 0).all()
    assert (np.diff(found.edges) > 0).all()


# Words


def said(*tokens):
    return [(word.text, word.tokens) for word in words.words(record(tokens=tokens))]


def test_words_are_joined_from_their_tokens():
    assert said(*TOKENS) == [("a", (1,)), ("fox", (2,)), ("on", (3,)), ("blue", (4,)), ("background", (5, 6))]


def test_a_word_said_twice_is_two_words():
    assert said("fox</w>", "fox</w>") == [("fox", (0,)), ("fox", (1,))]


def test_marks_are_no_words_and_end_those_before_them():
    tokens = ("<|startoftext|>", "a</w>", "ha", "<|endoftext|>", "<|startoftext|>", "lf</w>", "<|endoftext|>")
    assert said(*tokens) == [("a", (1,)), ("ha", (2,)), ("lf", (5,))]


def test_the_bytes_of_clip_are_the_characters_a_person_wrote():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny.CLIP_WORDS)
    prompt = "🦊 café, straße 日本 a'b"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)
    found = said(*tokens)
    assert "".join(text for text, _ in found) == prompt.replace(" ", "")
    assert found[0] == ("🦊", tuple(range(1, 1 + len(found[0][1]))))


def test_every_byte_has_the_character_of_the_tokenizers_own():
    from tokenizers.pre_tokenizers import ByteLevel

    for text in ("".join(map(chr, range(33, 0x800))), "".join(map(chr, range(0x3040, 0x30FF))), "\U0001f98a"):
        pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        assert said(*(f"{piece}</w>" for piece, _ in pieces)) == [(text, (0,))]


def test_the_pieces_of_t5_begin_a_word_at_their_mark():
    assert said("▁a", "▁fo", "x", "▁", "é", "▁日本", "</s>") == [
        ("a", (0,)),
        ("fox", (1, 2)),
        ("é", (4,)),
        ("日本", (5,)),
    ]


def test_attention_of_words_is_the_sum_of_their_tokens():
    flight = record()
    maps, rest = words.maps(flight), words.rest(flight)
    assert np.allclose(maps[4], flight.attention[:, 5] + flight.attention[:, 6])
    assert words.shares(flight)[1] == pytest.approx([flight.attention[k, 2].mean() for k in range(8)])
    others = flight.attention[:, 0] + flight.attention[:, 7] + flight.padding
    assert rest == pytest.approx(others.mean(axis=(1, 2)))
    assert words.shares(flight).sum(axis=0) + rest == pytest.approx(np.ones(8))


def test_the_bars_of_a_place_are_its_own_and_sum_to_one():
    flight = record(size=(96, 160))
    bars = words.at(flight, 2, 7, 4)
    assert bars[:-1] == pytest.approx(words.maps(flight)[:, 2, 7, 4])
    assert bars.sum() == pytest.approx(1)


def test_overlap_is_the_cosine_of_what_two_words_look_at():
    flight = record()
    found = words.overlap(flight)
    a, b = (words.maps(flight)[n].mean(axis=0).ravel() for n in (1, 3))
    assert found[1, 3] == found[3, 1] == pytest.approx(sum(a * b) / math.sqrt(sum(a**2) * sum(b**2)))
    assert found[1, 3] < 0.9  # the fox is not where the background is


def test_a_word_that_nothing_looks_at_overlaps_with_nothing():
    attention = record().attention.copy()
    attention[:, 2] = 0
    flight = record(attention=attention, padding=1 - attention.sum(axis=1))
    assert broken(flight) == []
    assert words.overlap(flight)[1].tolist() == [0] * 5


# Times and arrays


def test_times_have_words_for_a_person_and_keep_their_order():
    flight = record(seconds={"prompt": 0.5, "net": 2.0, "something new": 0.25})
    assert times.stages(flight) == [("Reading the prompt", 0.5), ("The net", 2.0), ("something new", 0.25)]


def test_the_latents_have_48_times_fewer_numbers_than_the_picture():
    flight = record(size=(512, 512), calls=1)
    smaller = {row.name: row.smaller for row in arrays.rows(flight)}
    assert smaller["latents"] == smaller["output of the net"] == 48
    assert smaller["prompt embeddings"] is None
    assert arrays.compression(flight) == 512 * 512 * 3 / 16384


def test_of_a_picture_larger_than_its_latents_nothing_is_said():
    flight = record(picture=np.zeros((256, 256, 3), np.uint8))
    assert broken(flight) == []
    assert arrays.compression(flight) == 192


def test_the_size_of_a_number_is_in_its_name():
    import torch

    types = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64)
    for dtype in (*types, torch.int64, torch.uint8, torch.bool):
        assert arrays.itemsize(str(dtype).removeprefix("torch.")) == dtype.itemsize
    assert arrays.itemsize("strange") == 0


# Real runs


def flown(engine, **changes):
    view = engine.submit([request_for(**changes)], "test", Delivery(record=True)).wait()
    assert view.error is None
    return engine.flight(view.saved[0].id, "test")


ENDS_ELSEWHERE = ("PLMS", "LMS", "DEIS", "SA-Solver")
REAL = [
    *("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 3M", "DPM++ 2S", "Euler a", "Euler", "Heun", "DPM2"),
    *("DPM2 a", "DDIM", "DDPM", "UniPC", "LCM", "TCD", *ENDS_ELSEWHERE),
]


@pytest.mark.parametrize("name", REAL)
def test_every_check_holds_of_a_real_run_of_a_net_that_predicts_v(engine, name):
    flight = flown(engine, scheduler=name, prompt="a fox on a blue background", negative_prompt="red")
    assert [check for check in checks_of(flight) if not check.held] == []
    ends = [check for check in reading.checks(flight) if "decoded" in check.name]
    assert len(ends) == (name not in ENDS_ELSEWHERE)


@pytest.fixture(scope="module")
def predicting_noise(make_engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.folder("sd1", folder / "sd1")
    tiny.folder("sd3", folder / "sd3")
    return make_engine(models_dir=[folder], model="sd1")


@pytest.mark.parametrize("name", REAL)
def test_every_check_holds_of_a_real_run_of_a_net_that_predicts_noise(predicting_noise, name):
    flight = flown(predicting_noise, scheduler=name, num_inference_steps=16)
    assert flight.prediction_type == "epsilon"
    assert [check for check in checks_of(flight) if not check.held] == []


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPM++ 2M", "UniPC", "LCM"])
def test_every_check_holds_of_a_real_run_of_a_flow_model(predicting_noise, name):
    flight = flown(predicting_noise, model="sd3", scheduler=name)
    assert flight.prediction_type == "flow_prediction"
    assert [check for check in checks_of(flight) if not check.held] == []
    assert any("decoded" in check.name for check in reading.checks(flight))


def test_ddim_as_sd_has_it_stops_at_the_noise_of_its_first_timestep(predicting_noise):
    flight = flown(predicting_noise, scheduler="DDIM")
    share = 1 - 0.00085  # alphas_cumprod[0]; PNDM's config has no set_alpha_to_one, or says False
    assert reading.end(flight) == pytest.approx((share**0.5, (1 - share) ** 0.5), abs=1e-5)
    assert apart(reading.x0(flight)[-1], flight.final) > 1e-3
