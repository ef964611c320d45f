"""A request with a source: what it asks for, and what is refused by the name of its field."""

import math

import pytest

from webui.errors import InvalidField
from webui.request import INPAINT_AREAS, LABELS, MASKED_CONTENTS, RESIZE_MODES, GenerationRequest

IMAGE, MASK = "0a" * 32, "1b" * 32

# (lowest, highest) that is taken, of every new number.
RANGES = {
    "strength": (0.05, 1),
    "extend_left": (0, 2048),
    "extend_top": (0, 2048),
    "extend_right": (0, 2048),
    "extend_bottom": (0, 2048),
    "mask_grow": (-256, 256),
    "mask_blur": (0, 64),
    "masked_padding": (0, 256),
}
NOT_A_NUMBER = ["", "abc", "4", None, True, [], {}, math.nan, math.inf, -math.inf, 1e308]
WHOLE = [name for name in RANGES if name not in ("strength", "mask_blur")]
CHOICES = {"resize_mode": RESIZE_MODES, "masked_content": MASKED_CONTENTS, "inpaint_area": INPAINT_AREAS}
SWITCHES = ["color_correction", "mask_inverted", "soft_inpainting"]


def refused(**fields: object) -> InvalidField:
    with pytest.raises(InvalidField) as error:
        GenerationRequest(**{"image": IMAGE, "mask_image": MASK} | fields)
    return error.value


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({}, "txt2img"),
        ({"image": IMAGE}, "img2img"),
        ({"image": IMAGE, "mask_image": MASK}, "inpaint"),
        ({"image": IMAGE, "extend_left": 8}, "inpaint"),
        ({"image": IMAGE, "extend_bottom": 1}, "inpaint"),
        (
            {"strength": 0.2, "mask_blur": 9.0, "mask_inverted": True, "inpaint_area": "Only masked"},
            "txt2img",
        ),
    ],
)
def test_the_task_follows_from_what_is_given(fields, task):
    assert GenerationRequest(**fields).task == task


@pytest.mark.parametrize("name", RANGES)
def test_the_ends_of_a_range_are_taken_and_what_lies_beyond_is_refused_by_name(name):
    low, high = RANGES[name]
    for value in (low, high):
        assert getattr(GenerationRequest(image=IMAGE, mask_image=MASK, **{name: value}), name) == value
    for value in (low - 1, high + 1, -(10**9), 10**9):
        error = refused(**{name: value})
        assert error.field == name
        assert str(error).startswith(f"{LABELS[name]}: must be ")


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", NOT_A_NUMBER, ids=repr)
def test_what_is_no_number_is_refused_by_name(name, value):
    assert refused(**{name: value}).field == name


@pytest.mark.parametrize("name", WHOLE)
def test_pixels_are_whole_but_may_be_written_as_20_0(name):
    assert refused(**{name: 1.5}).field == name
    value = getattr(GenerationRequest(image=IMAGE, **{name: 20.0}), name)
    assert (value, type(value)) == (20, int)


@pytest.mark.parametrize("name", ["image", "mask_image"])
@pytest.mark.parametrize(
    "value",
    [
        "0a" * 31,
        "0a" * 33,
        "0A" * 32,
        "0g" * 32,
        "0a" * 32 + "\n",
        "../" * 21 + "x",
        "/etc/passwd",
        None,
        5,
        b"0a" * 32,
    ],
    ids=repr,
)
def test_a_source_is_named_by_its_hash_and_by_nothing_else(name, value):
    assert refused(**{name: value}).field == name


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_taken_as_they_are_spelt_and_no_other(name):
    for value in CHOICES[name]:
        assert getattr(GenerationRequest(**{name: value}), name) == value
    for wrong in (CHOICES[name][0].upper(), "", "Other", None, 0):
        assert refused(**{name: wrong}).field == name


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_are_on_or_off(name):
    for wrong in ("true", 1, 0, None, "on"):
        error = refused(**{name: wrong})
        assert (error.field, error.message) == (name, "must be on or off")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"image": ""}, "image"),
        ({"image": "", "mask_image": "", "extend_top": 8}, "image"),
        ({"hires_scale": 1.5}, "hires_scale"),
        ({"strength": 0.0}, "strength"),
        ({"strength": 0.1, "num_inference_steps": 9}, "strength"),
    ],
)
def test_what_is_impossible_together_names_the_field_to_change(fields, field):
    assert refused(**fields).field == field


def test_a_strength_that_is_less_than_a_step_matters_only_with_a_source():
    assert GenerationRequest(strength=0.1, num_inference_steps=9).task == "txt2img"
    assert GenerationRequest(image=IMAGE, strength=0.1, num_inference_steps=10).task == "img2img"


def test_every_field_has_a_name_for_people():
    assert GenerationRequest.model_fields.keys() <= LABELS.keys()
    assert len(set(LABELS.values())) == len(LABELS)


def test_a_prompt_that_is_too_long_is_told_the_limit_in_characters():
    with pytest.raises(InvalidField, match="Prompt: must be at most 20000 characters"):
        GenerationRequest(prompt="x" * 20_001)
