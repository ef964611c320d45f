"""Text <-> request: everything that decides the pixels survives, whatever a person typed."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from webui import __version__
from webui.errors import InvalidField
from webui.infotext import read, write
from webui.request import (
    HIRES_UPSCALERS,
    INPAINT_AREAS,
    MASKED_CONTENTS,
    MAX_SEED,
    PREPROCESSORS,
    RESIZE_MODES,
    SIGMA_SCHEDULES,
    GenerationRequest,
)
from webui.units import STEMS

HASH = "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa"

A1111 = """a watercolor fox, (detailed:1.2) <lora:ink:0.8>
Negative prompt: blurry
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Denoising strength: 0.7, Clip skip: 2, \
Hires upscale: 2.0, Hires upscaler: Latent, Lora hashes: "ink: 1a2b3c4d5e6f", Version: v1.10.1"""

# What makes trouble in a text whose structure is lines, commas, colons and quotation marks.
AWKWARD = [
    "Negative prompt:",
    "\nNegative prompt: blurry",
    "\nSteps: 20, Sampler: x, Seed: 1, Size: 8x8",
    A1111,
    'Exact prompt: "no"',
    "\r\n",
    "\r",
    "\n\n",
    " \t",
    '"',
    "\\",
    "\\u002c",
    ",",
    ": ",
    "\u2028",
    "\u202e",
    "🦊\ufe0f",
    "\u3000",
]
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t\r"), max_size=40)
PROMPTS = st.lists(st.sampled_from(AWKWARD) | WORDS, max_size=5).map("".join)
NAMES = (
    st.sampled_from(["Euler a", "DPM++ 2M Karras", "SGM uniform", "Automatic", "a, b", '"', " x", "512", ""])
    | WORDS
)
SEEDS = st.integers(-1, MAX_SEED) | st.sampled_from([-1, 0, MAX_SEED])
SIDES = st.integers(8, 64).map(lambda k: k * 8)


def between(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64) | st.sampled_from(
    ["0" * 64, "1" + "e1" * 31 + "0"]
)
MARGINS = st.just(0) | st.integers(0, 2048)

WORD = st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True)
SCALARS = st.booleans() | st.integers(-9, 99) | st.floats(allow_nan=False, allow_infinity=False) | PROMPTS
PLUGINS = st.dictionaries(st.tuples(WORD, WORD).map(".".join), SCALARS, max_size=4)


def in_order(values: dict) -> tuple:
    return tuple(sorted(values.items()))


VERSIONS = st.dictionaries(WORD, st.from_regex(r"[0-9]\.[0-9a-z]{1,4}", fullmatch=True), max_size=2)

FIELDS = {
    "plugins": PLUGINS.map(in_order),
    "prepared": st.tuples(PLUGINS, VERSIONS).map(lambda both: in_order({**both[0], **both[1]})),
    "template": PROMPTS,
    "negative_template": PROMPTS,
    "prompt": PROMPTS,
    "negative_prompt": PROMPTS,
    "model": NAMES,
    "scheduler": NAMES,
    "sigma_schedule": st.sampled_from(SIGMA_SCHEDULES),
    "num_inference_steps": st.integers(1, 1000),
    "guidance_scale": between(0, 100),
    "eta": st.none() | between(0, 1),
    "seed": SEEDS,
    "variation_seed": SEEDS,
    "variation_strength": st.just(0.0) | between(0, 1),
    "width": SIDES,
    "height": SIDES,
    "num_images_per_prompt": st.integers(1, 8),
    "clip_skip": st.integers(1, 12),
    "hires_scale": st.just(1.0) | between(1, 4),
    "hires_upscaler": st.sampled_from(HIRES_UPSCALERS),
    "hires_steps": st.integers(0, 1000),
    "hires_strength": between(1e-300, 1),
    "refiner": st.just("") | NAMES,
    "refiner_switch": between(0.01, 1),
    "image": st.just("") | DIGESTS,
    "strength": st.just(0.75) | between(1e-300, 1),
    "resize_mode": st.sampled_from(RESIZE_MODES),
    "color_correction": st.booleans(),
    "extend_left": MARGINS,
    "extend_top": MARGINS,
    "extend_right": MARGINS,
    "extend_bottom": MARGINS,
    "mask_image": st.just("") | DIGESTS,
    "mask_inverted": st.booleans(),
    "mask_grow": st.integers(-256, 256),
    "mask_blur": between(0, 64),
    "masked_content": st.sampled_from(MASKED_CONTENTS),
    "inpaint_area": st.sampled_from(INPAINT_AREAS),
    "masked_padding": st.integers(0, 256),
    "soft_inpainting": st.booleans(),
    "vae": st.just("") | NAMES,
    **{
        f"{stem}_{name}": values
        for stem in STEMS
        for name, values in {
            "model": st.just("") | NAMES,
            "image": st.just("") | DIGESTS,
            "preprocessor": st.sampled_from(PREPROCESSORS),
            "scale": between(0, 2),
            "start": between(0, 1),
            "end": between(0, 1),
        }.items()
    },
    "reference_model": NAMES,
    "reference_image": DIGESTS,
    "reference_scale": between(0, 2),
}
OF_A_MASK = {"mask_image", "extend_left", "extend_top", "extend_right", "extend_bottom"}


def possible(fields: dict[str, object]) -> GenerationRequest | None:
    """The request, unless its values exclude each other, such as one step of strength 0.1."""
    if fields["image"]:
        fields = fields | {"hires_scale": 1.0}
    else:
        fields = {name: value for name, value in fields.items() if name not in OF_A_MASK}
    if not fields["reference_model"]:
        fields = fields | {"reference_image": ""}
    try:
        return GenerationRequest(**fields)
    except InvalidField:
        return None


REQUESTS = st.fixed_dictionaries(FIELDS).map(possible).filter(lambda request: request is not None)


def written(request: GenerationRequest, index: int = 0) -> str:
    return write(request, request.model, HASH, index)


def last_line(text: str) -> str:
    return text.rpartition("\n")[2]


def test_every_field_of_a_request_is_drawn_by_these_tests():
    assert set(FIELDS) == set(GenerationRequest.model_fields)


@settings(max_examples=400, deadline=None)
@given(REQUESTS, st.data())
def test_any_request_comes_back_from_the_text_of_any_picture_of_its_batch(request, data):
    index = data.draw(st.integers(0, request.num_images_per_prompt - 1))
    reading = read(written(request, index))
    assert reading.request() == request
    assert (reading.unknown, reading.index) == ({}, index)


@settings(max_examples=100, deadline=None)
@given(REQUESTS.filter(lambda r: r.seed >= 0 and r.variation_seed >= 0), st.integers(0, 7))
def test_the_text_of_a_picture_tells_the_request_of_just_this_picture(request, index):
    index = min(index, request.num_images_per_prompt - 1)
    assert read(written(request, index)).picture() == request.picture(index)


@pytest.mark.parametrize("field", sorted(GenerationRequest.model_fields))
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_each_field_alone_survives(field, data):
    value = data.draw(FIELDS[field].filter(bool) if field == "reference_model" else FIELDS[field])
    image = {"image": "0" * 64} if field in OF_A_MASK else {}
    strength = {"num_inference_steps": 1000} if field == "image" else {}
    reference = (
        {"reference_model": "ip", "reference_image": "0" * 64} if field.startswith("reference") else {}
    )
    stem, _, name = field.partition("_")
    control = {f"{stem}_image": "0" * 64} if name == "model" and stem in STEMS else {}
    request = GenerationRequest(**image | strength | reference | control | {field: value})
    assert getattr(read(written(request)).request(), field) == value


@settings(max_examples=100, deadline=None)
@given(REQUESTS)
def test_a_text_that_went_through_a_text_box_still_gives_the_request(request):
    """Browsers turn every line end into \\n; mail and chat make it \\r\\n and trim the ends."""
    text = written(request).replace("\r\n", "\n").replace("\r", "\n")
    assert read(text).request() == request
    assert read("\n" + text.replace("\n", "\r\n") + "\r\n ").request() == request


def test_a_plain_picture_has_the_text_that_a1111_users_know():
    request = GenerationRequest(
        prompt="a fox,\nin snow", negative_prompt="blurry", scheduler="Euler a", seed=5, model="pocket-model"
    )
    assert write(request, "pocket-model", HASH) == (
        "a fox,\nin snow\nNegative prompt: blurry\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 5, Size: 512x512, "
        f"Model hash: 6ce0161689, Model: pocket-model, Version: Diffusion Studio {__version__}"
    )


def test_what_is_unusual_is_written_under_a1111s_keys():
    request = GenerationRequest(
        sigma_schedule="SGM uniform",
        guidance_scale=7.5,
        seed=5,
        variation_seed=9,
        variation_strength=0.25,
        clip_skip=2,
        eta=0.5,
        hires_scale=1.5,
        hires_steps=12,
        num_images_per_prompt=4,
    )
    assert write(request, "m", HASH, 2) == (
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: SGM Uniform, CFG scale: 7.5, Seed: 5, Size: 512x512, "
        "Model hash: 6ce0161689, Model: m, Variation seed: 11, Variation seed strength: 0.25, "
        "Denoising strength: 0.7, Clip skip: 2, Eta: 0.5, Hires upscale: 1.5, Hires steps: 12, "
        f"Hires upscaler: Latent, Batch size: 4, Batch pos: 2, Version: Diffusion Studio {__version__}"
    )


def test_exact_words_are_added_only_where_they_would_be_lost():
    plain = GenerationRequest(prompt="a fox\n  in snow, (x:1.2)", seed=1)
    assert "Exact" not in written(plain)
    assert 'Exact prompt: "a fox "' in written(plain.replace(prompt="a fox "))
    both = written(plain.replace(prompt="a fox\nNegative prompt: a: b, c"))
    assert 'Exact prompt: "a fox\\nNegative prompt\\u003a a\\u003a b\\u002c c"' in both
    assert last_line(both).count(",") == last_line(both).count(": ") - 1  # naive readers stay in step


def test_a_prompt_edited_in_the_text_wins_over_the_exact_words():
    text = written(GenerationRequest(prompt="a fox ", seed=1))
    assert read(text.replace("a fox \n", "a cat\n")).request().prompt == "a cat"


def test_a_request_that_leaves_the_model_open_comes_back_with_the_one_used():
    assert read(write(GenerationRequest(), "pocket-model", HASH)).request().model == "pocket-model"


def test_extra_pairs_come_back_as_unknown():
    text = write(GenerationRequest(seed=1), "m", HASH, extra={"Wood": "oak: 1a2b, x: 2"})
    assert read(text).unknown == {"Wood": "oak: 1a2b, x: 2"}


def test_hashes_of_loras_are_written_as_a1111_writes_them_and_are_not_unknown():
    text = write(GenerationRequest(seed=1), "m", HASH, extra={"Lora hashes": "ink: 1a2b, x: 2"})
    assert 'Lora hashes: "ink: 1a2b, x: 2"' in text
    assert (read(text).hashes, read(text).unknown) == ({"Lora hashes": "ink: 1a2b, x: 2"}, {})


def test_the_seeds_of_a_batch_wrap_at_two_to_the_32():
    request = GenerationRequest(seed=MAX_SEED, num_images_per_prompt=2)
    assert "Seed: 0," in written(request, 1)
    assert read(written(request, 1)).request() == request


def test_a1111s_own_text_is_read():
    reading = read(A1111)
    assert reading.request() == GenerationRequest(
        prompt="a watercolor fox, (detailed:1.2) <lora:ink:0.8>",
        negative_prompt="blurry",
        model="v1-5-pruned-emaonly",
        sigma_schedule="Karras",
        seed=965400086,
        height=768,
        clip_skip=2,
        hires_scale=2.0,
    )
    assert (reading.unknown, reading.hashes) == ({}, {"Lora hashes": "ink: 1a2b3c4d5e6f"})
    assert (reading.model_hash, reading.version) == ("6ce0161689", "v1.10.1")


def foreign(line: str) -> dict[str, object]:
    return read(f"a fox\nSteps: 20, CFG scale: 7, {line}").fields


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("sd_xl_refiner_1.0 [7440042bbd]", "sd_xl_refiner_1.0"),
        ("refiner.v2", "refiner.v2"),
        ("mine [new]", "mine [new]"),
    ],
)
def test_a1111s_refiner_is_read_without_its_hash(written, name):
    fields = foreign(f"Refiner: {written}, Refiner switch at: 0.7")
    assert (fields["refiner"], fields["refiner_switch"]) == (name, 0.7)


@pytest.mark.parametrize(
    ("written", "scheduler", "schedule"),
    [
        ("Sampler: DPM++ 2M Karras", "DPM++ 2M", "Karras"),
        ("Sampler: DPM++ 2M SDE Exponential", "DPM++ 2M SDE", "Exponential"),
        ("Sampler: Euler a, Schedule type: Automatic", "Euler a", "Automatic"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "DPM++ 2M", "Karras"),
        ("Sampler: DPM++ 3M SDE, Schedule type: Automatic", "DPM++ 3M SDE", "Exponential"),
        ("Sampler: Euler, Schedule type: SGM Uniform", "Euler", "SGM uniform"),
        ("Sampler: Euler, Schedule type: Uniform", "Euler", "Linspace"),
        ("Sampler: Euler, Schedule type: Normal", "Euler", "Linspace"),
        ("Sampler: Euler, Schedule type: Simple", "Euler", "SGM uniform"),
        ("Sampler: Euler, Schedule type: DDIM", "Euler", "Leading"),
        ("Sampler: Euler, Schedule type: Beta", "Euler", "Beta"),
    ],
)
def test_a1111s_samplers_and_schedules_are_translated(written, scheduler, schedule):
    fields = foreign(written)
    assert (fields["scheduler"], fields["sigma_schedule"]) == (scheduler, schedule)


IMAGE, MASK = "ab" * 32, "cd" * 32


def settings_of(request: GenerationRequest) -> str:
    """The line of settings from the model on, without the version."""
    return last_line(write(request, "m", HASH)).partition("Model: m, ")[2].rpartition(", Version")[0]


def test_image_to_image_has_a1111s_denoising_strength_and_names_its_source():
    request = GenerationRequest(seed=5, image=IMAGE, color_correction=True)
    assert settings_of(request) == (
        f"Denoising strength: 0.75, Init image hash: {IMAGE}, Resize mode: Crop, Color correction: True"
    )


def test_inpainting_has_a1111s_keys_and_choices():
    request = GenerationRequest(seed=5, image=IMAGE, mask_image=MASK, strength=0.5)
    assert settings_of(request) == (
        f"Denoising strength: 0.5, Init image hash: {IMAGE}, Mask hash: {MASK}, Mask blur: 4, "
        "Mask mode: Inpaint masked, Inpaint area: Whole picture, Masked content: original, Resize mode: Crop"
    )
    only = request.replace(
        mask_inverted=True,
        masked_content="Latent noise",
        inpaint_area="Only masked",
        mask_grow=-3,
        soft_inpainting=True,
        extend_top=64,
        resize_mode="Fill",
    )
    assert settings_of(only) == (
        f"Denoising strength: 0.5, Init image hash: {IMAGE}, Mask hash: {MASK}, Mask blur: 4, "
        "Mask mode: Inpaint not masked, Inpaint area: Only masked, Masked area padding: 32, "
        "Masked content: latent noise, Mask grow: -3, Soft inpainting: True, Resize mode: Fill, "
        "Extend top: 64"
    )


def test_a1111s_inpainting_is_read():
    reading = read(
        "a fox\nSteps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x512, "
        "Model hash: 6ce0161689, Model: m, Denoising strength: 0.6, Init image hash: 1a2b3c4d5e, "
        "Mask blur: 8, Mask mode: Inpaint not masked, Inpaint area: Only masked, Masked area padding: 48, "
        "Masked content: latent nothing, Soft inpainting enabled: True, Version: v1.10.1"
    )
    assert reading.request() == GenerationRequest(
        prompt="a fox",
        scheduler="Euler a",
        seed=1,
        model="m",
        strength=0.6,
        mask_blur=8.0,
        mask_inverted=True,
        inpaint_area="Only masked",
        masked_padding=48,
        masked_content="Latent nothing",
        soft_inpainting=True,
    )
    assert reading.unknown == {"Init image hash": "1a2b3c4d5e"}


@pytest.mark.parametrize(
    ("rest", "fields"),
    [
        ("", {"strength": 0.4}),
        (f", Init image hash: {IMAGE}", {"strength": 0.4, "image": IMAGE}),
        (", Hires upscale: 2", {"hires_strength": 0.4, "hires_scale": 2}),
        (", Hires resize: 1024x1024", {"hires_strength": 0.4}),
        (", Hires upscale: 2, Init image hash: 1a2b3c4d5e", {"strength": 0.4, "hires_scale": 2}),
        (", Hires steps: 9", {"strength": 0.4, "hires_steps": 9}),
    ],
)
def test_a_denoising_strength_is_the_second_passs_only_where_there_is_one(rest, fields):
    """A1111 writes both under one key."""
    said = foreign(f"Denoising strength: 0.4{rest}")
    for name in ("strength", "hires_strength", "hires_scale", "hires_steps", "image"):
        assert said.get(name) == fields.get(name)


@pytest.mark.parametrize(
    "digest", ["1a2b3c4d5e", "AB" * 32, "ab" * 33, "../../" + "a" * 58, '"' + "\\u0061" * 64 + 'x"', "None"]
)
def test_a_hash_that_is_not_one_of_ours_is_set_aside(digest):
    reading = read(f"x\nSteps: 5, Sampler: Euler, Seed: 1, Init image hash: {digest}, Mask hash: {digest}")
    assert reading.unknown.keys() == {"Init image hash", "Mask hash"}
    assert reading.request().task == "txt2img"


def test_masked_content_and_modes_that_are_not_offered_are_set_aside():
    pairs = {
        "Masked content": "telea",
        "Mask mode": "sketch",
        "Inpaint area": "half",
        "Color correction": "1",
    }
    text = ", ".join(f"{key}: {value}" for key, value in pairs.items())
    assert read(f"x\nSteps: 5, Sampler: Euler, Seed: 1, {text}").unknown == pairs


def test_text_to_image_says_nothing_of_pictures():
    text = write(GenerationRequest(seed=5, hires_scale=2.0), "m", HASH)
    for word in ("mage", "ask", "npaint", "xtend", "Resize", "olor", "Unused"):
        assert word not in text


def test_our_own_automatic_stays_automatic():
    request = GenerationRequest(scheduler="DPM++ 2M", sigma_schedule="Automatic", seed=1)
    assert read(written(request)).request() == request


def test_choices_that_are_not_offered_here_are_set_aside_and_not_guessed():
    reading = read(
        "x\nSteps: 5, Sampler: Euler, Seed: 1, Schedule type: KL Optimal, ENSD: 31337, "
        "Hires upscaler: 4x-UltraSharp"
    )
    assert reading.unknown == {
        "Schedule type": "KL Optimal",
        "Hires upscaler": "4x-UltraSharp",
        "ENSD": "31337",
    }
    assert reading.request().sigma_schedule == "Automatic"


def test_a_batch_of_a1111_is_read_as_a_whole():
    reading = read("x\nSteps: 5, Sampler: Euler, Seed: 12, Batch size: 4, Batch pos: 2")
    assert (reading.index, reading.request().seed, reading.picture().seed) == (2, 10, 12)
    misplaced = read("x\nSteps: 5, Sampler: Euler, Seed: 12, Batch size: 2, Batch pos: 7")
    assert (misplaced.request().seed, misplaced.unknown) == (12, {"Batch pos": "7"})


@pytest.mark.parametrize(
    "text",
    [
        "a fox",
        "  a fox\r\n ",
        "1girl: solo, style: anime, mood: dark",
        "a fox\nSteps: 20",
        "",
        "{}",
        "\n\n",
        '::,:,"',
    ],
)
def test_a_text_without_parameters_is_just_a_prompt(text):
    assert read(text).fields == {"prompt": text}


def test_a_text_without_parameters_may_have_a_negative_prompt():
    assert read("a fox\r\nNegative prompt: blurry").fields == {"prompt": "a fox", "negative_prompt": "blurry"}


@pytest.mark.parametrize(
    ("pair", "field"),
    [
        ("Seed: 4294967296", "seed"),
        ("Seed: -2", "seed"),
        ("Seed: abc", "seed"),
        (f"Seed: {'9' * 5000}", "seed"),
        ("Steps: 0", "num_inference_steps"),
        ("Steps: 1.5", "num_inference_steps"),
        ("Steps: inf", "num_inference_steps"),
        ("CFG scale: nan", "guidance_scale"),
        ("CFG scale: 1e308", "guidance_scale"),
        ("CFG scale: ", "guidance_scale"),
        ("Size: 7x8", "width"),
        ("Size: 512", "height"),
        ("Size: big", "width"),
        ("Batch size: 1000000", "num_images_per_prompt"),
        ("Batch size: x", "num_images_per_prompt"),
        ("Variation seed strength: x", "variation_strength"),
        ("Denoising strength: 0", "strength"),
        ("Denoising strength: 0, Hires upscale: 2", "hires_strength"),
        ("Mask blur: 65", "mask_blur"),
        ("Mask blur: wide", "mask_blur"),
        ("Mask grow: 1.5", "mask_grow"),
        ("Masked area padding: -1", "masked_padding"),
        ("Extend left: 1e9", "extend_left"),
        (f"Mask hash: {'0' * 64}", "image"),
        ("Clip skip: 99", "clip_skip"),
        ('Sampler: "a\\u0000"', "scheduler"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(pair, field):
    text = f"a fox\nSteps: 20, Sampler: Euler, Seed: 1, CFG scale: 7, Batch pos: 0, {pair}"
    with pytest.raises(InvalidField) as refusal:
        read(text).request()
    assert refusal.value.field == field


SIZE = 100_000
BOMBS = [
    "a",
    "a ",
    " ",
    "\t",
    ":",
    ",",
    '"',
    "\\",
    '\\"',
    ' "',
    "aa:",
    'aa: "',
    'aa: "b, ',
    'aa: "\\',
    ', aa: "\\"',
]
BOMBS += ["\n", "Negative prompt:", " \nNegative prompt: ", "Steps: 1, ", "\r", "aa: {", '"a": [', "é", "-/"]


@pytest.mark.parametrize("unit", BOMBS)
def test_hostile_text_is_read_in_linear_time(unit):
    text = unit * (SIZE // len(unit))
    started = time.process_time()
    for tail in ("", ", Steps: 1, Sampler: x, Seed: 1", '\nSteps: 1, Sampler: x, Seed: 1, Eta: "'):
        read(text + tail)
    assert time.process_time() - started < 3  # quadratic time would be minutes; linear is a tenth of a second


PIECES = [
    "Steps",
    "Seed",
    "Size",
    ": ",
    ", ",
    '"',
    "\\",
    "x",
    "1",
    "\n",
    "Exact prompt",
    "\ud800",
    '"\\ud800"',
]
PIECES += ["Sampler: e, Seed: 1, Steps: 2", "Batch pos", "Batch size", "Init image hash: " + "0" * 64]
PIECES += ["Mask hash: " + "0" * 64, "Mask mode", "Mask blur", "Extend left", "Denoising strength"]
PIECES += ["Hires upscale", "Masked content", "True"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_is_read_and_gives_a_request_or_names_the_wrong_field(text):
    try:
        wrong = None if read(text).request() else ""
    except InvalidField as error:
        wrong = error.field
    assert wrong is None or wrong in GenerationRequest.model_fields


def test_keys_that_would_set_paths_or_settings_do_nothing():
    text = (
        "x\nSteps: 1, Sampler: e, Seed: 1, outputs: /etc, __class__: x, data_dir: /, filename_pattern: ../x"
    )
    reading = read(text)
    assert set(reading.fields) <= set(GenerationRequest.model_fields)
    assert set(reading.unknown) == {"outputs", "__class__", "data_dir", "filename_pattern"}


def test_half_a_surrogate_pair_never_comes_out_of_a_quoted_value():
    reading = read('x\nSteps: 1, Sampler: e, Seed: 1, Note: "\\ud800"')
    json.dumps(reading.unknown, ensure_ascii=False).encode()
