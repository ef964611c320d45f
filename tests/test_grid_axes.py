"""What may vary in a grid, and how its values are written."""

import itertools
import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.grids import BASE, KNOWN
from webui.errors import InvalidField
from webui.grid.axes import kinds
from webui.grid.values import MAX_VALUES, lines, numbers, split, written
from webui.request import LABELS, GenerationRequest
from webui.units import FURTHER

KINDS = kinds()


def values(kind: str, text: str) -> list:
    return list(KINDS[kind].parse(text, BASE, KNOWN))


def shown(kind: str, text: str) -> list[str]:
    return [KINDS[kind].show(value) for value in values(kind, text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1, 2.5 ,, -3", "1 2.5 -3"),
        ("1-5", "1 2 3 4 5"),
        ("1-10 (+2)", "1 3 5 7 9"),
        ("1-10(2)", "1 3 5 7 9"),
        ("10-1 (-3)", "10 7 4 1"),  # the exact end, which A1111 misses
        ("10-1 (+3)", "10 7 4 1"),
        ("0-1 (+.5)", "0 0.5 1"),
        ("1-2 (+0.4)", "1 1.4 1.8"),  # never 2.2
        ("0-.3 (.1)", "0 0.1 0.2 0.3"),  # exactly
        ("-1-3", "-1 0 1 2 3"),
        ("-2--4", "-2 -3 -4"),
        ("3 - 3", "3"),
        ("1-10 [5]", "1 3.25 5.5 7.75 10"),
        ("10-1 [4]", "10 7 4 1"),
        ("0-1 [4]", "0 0.333333 0.666667 1"),
        ("1-3, 7\n9", "1 2 3 7 9"),
    ],
)
def test_numbers_are_written_as_people_know_it(text, expected):
    assert [format(number.normalize(), "f") for number in numbers(text)] == expected.split()


def test_evenly_spaced_values_are_rounded_to_what_the_field_takes():
    assert values("num_inference_steps", "1-10 [5]") == [1, 3, 6, 8, 10]
    assert values("width", "512-768 [4]") == [512, 600, 680, 768]
    assert values("width", "512-544") == [512, 520, 528, 536, 544]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("guidance_scale", "7, abc", "“abc” is neither a number nor a range"),
        ("guidance_scale", "1-2 (0)", "1-2 (0) has a step of 0"),
        ("guidance_scale", "0.1-0.5", "0.1-0.5 needs a step"),
        ("guidance_scale", "1-2 [1]", "1-2 [1] holds both ends"),
        ("guidance_scale", "-1", "“-1” must be at least 0"),
        ("guidance_scale", "nan", "“nan” is neither"),
        ("guidance_scale", "1e3", "“1e3” is neither"),
        ("guidance_scale", "1-2 (1e-9)", "is neither"),
        ("guidance_scale", "1" * 200, "is neither"),
        ("guidance_scale", "1" * 30, "has too many digits"),
        ("guidance_scale", '"7', "quotation mark that is not closed"),
        ("num_inference_steps", "1-9999", "1-9999 makes more than 1000 values"),
        ("num_inference_steps", "1-5 [999999999999]", "makes more than 1000 values"),
        ("num_inference_steps", "1.5", "1.5 is not a whole number"),
        ("num_inference_steps", "20, 0", "“0” must be at least 1"),
        ("seed", "4294967296", "“4294967296” must be at most"),
        ("width", "500", "“500” must be a multiple of 8"),
        ("size", "512", "“512” is not a size such as 512x768"),
        ("size", "512x7", "“512x7”"),
        ("size", "8192x8192", "megapixels"),
        ("scheduler", "eulr", "there is no “eulr”; did you mean Euler?"),
        ("sigma_schedule", "nonsense", "there is no “nonsense”"),
        ("color_correction", "maybe", "there is no “maybe”"),
        ("prompt_replace", '"", owl', "the first value is what is searched for"),
        ("prompt_order", "a, b, c, d, e, f, g", "7 words have too many orders; give at most 6"),
        ("prompt", "x" * 20_001, "at most 20000"),
        ("prompt", "fox\x00", "contains a character that cannot be stored"),
    ],
)
def test_a_wrong_value_is_refused_by_name(kind, text, message):
    with pytest.raises(InvalidField) as refused:
        values(kind, text)
    assert refused.value.field == kind
    assert message in str(refused.value)
    assert str(refused.value).startswith(KINDS[kind].label)


def test_every_setting_a_person_makes_is_an_axis():
    not_axes = {"image", "mask_image", "num_images_per_prompt"}
    not_axes |= {"reference_model", "reference_image", "control_image", *FURTHER}
    not_axes |= {"plugins", "template", "negative_template", "prepared"}  # plugins bring their own
    assert set(GenerationRequest.model_fields) - not_axes <= set(KINDS)
    for name, kind in KINDS.items():
        assert kind.name == name
        if name in LABELS and "prompt" not in name:
            assert kind.label == LABELS[name]


SAMPLES = {
    "num_inference_steps": "10-30 (+10)",
    "model": "third, POCKET-MODEL",
    "scheduler": "euler, DPM++ 2M",
    "sigma_schedule": "Karras, beta",
    "size": "64x128, 128×64",
    "eta": "default, 0.25",
    "hires_scale": "1-2 (0.25)",
    "variation_strength": "0-1 [3]",
    "strength": "0.1-0.9 (0.2)",
    "hires_strength": "0.5, 1",
    "width": "64-128",
    "height": "64-128",
    "mask_grow": "-4-4 (4)",
    "refiner_switch": "0.2-0.8 (0.2)",
    "prompt": 'a, "b, c"',
    "negative_prompt": "one\ntwo, three",
    "prompt_order": "red, fox",
    "prompt_replace": 'fox, owl, ""',
    "negative_prompt_order": "blurry, low",
    "negative_prompt_replace": "blurry, dark",
    "seed": "-1, 0, 4294967295",
    "reference_scale": "0, 0.6, 2",
    "control_scale": "0, 0.6, 2",
    "control_start": "0, 0.25",
    "control_end": "0.5, 1",
}


@pytest.mark.parametrize("name", list(KINDS))
def test_each_axis_changes_its_fields_and_no_others(name):
    kind = KINDS[name]
    text = SAMPLES.get(name) or ("all" if kind.choices else "1, 2, 3")
    base = BASE.replace(negative_prompt="low, blurry", image="" if name.startswith("hires") else "ab" * 32)
    if name == "lora_weight":
        base = base.replace(prompt=f"{base.prompt}<lora:ink>")
    found = dict.fromkeys(kind.parse(text, base, KNOWN))
    made = {kind.apply(base, value).replace() for value in found}
    assert len(made) == len(found) > 1
    changed = {field for one in made for field, value in one if value != getattr(base, field)}
    assert changed == set(kind.overwrites) or changed <= {"prompt", "negative_prompt"}


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if "prompt" not in name])
def test_what_is_shown_can_be_typed(name):
    found = values(name, SAMPLES.get(name) or ("all" if KINDS[name].choices else "1, 2, 3"))
    assert values(name, written(map(KINDS[name].show, found))) == found


def test_all_stands_for_the_whole_list_and_names_may_hold_commas():
    assert values("model", "all") == ["pocket-model", "big model, v2", "third"]
    assert values("model", 'third, "BIG model, v2"') == ["third", "big model, v2"]
    assert KINDS["model"].settle("All", KNOWN) == 'pocket-model, "big model, v2", third'
    assert values("soft_inpainting", "all") == [True, False]


def test_prompts_come_one_a_line_or_quoted():
    assert values("prompt", "a fox, red\n\n an owl, grey ") == ["a fox, red", "an owl, grey"]
    assert values("prompt", '"a fox, red", an owl') == ["a fox, red", "an owl"]
    assert values("prompt", '"two\nlines", "say ""hi"", fox"') == ["two\nlines", 'say "hi", fox']
    assert values("prompt", '5" screen, "so-called" art') == ['5" screen', '"so-called" art']
    assert values("prompt", 'a, "b\nc') == ['a, "b', "c"]


def test_a_search_is_replaced_in_both_prompts_and_missed_aloud():
    base = GenerationRequest(prompt="fox and fox", negative_prompt="bad fox")
    kind = KINDS["prompt_replace"]
    fox, owl, nothing = kind.parse('fox, owl, ""', base, KNOWN)
    assert kind.apply(base, fox) == base
    assert kind.apply(base, owl).prompt == "owl and owl"
    assert kind.apply(base, owl).negative_prompt == "bad owl"
    assert kind.apply(base, nothing).prompt == " and "
    with pytest.raises(InvalidField, match="“cat” is not in the prompt or the negative prompt"):
        kind.apply(base, ("cat", "dog"))


def test_an_order_puts_the_words_into_each_others_places():
    base = GenerationRequest(prompt="(cat food), a cat, red")
    kind = KINDS["prompt_order"]
    orders = kind.parse("cat food, cat, red", base, KNOWN)
    assert [kind.apply(base, order).prompt for order in orders] == [
        "(cat food), a cat, red",
        "(cat food), a red, cat",
        "(cat), a cat food, red",
        "(cat), a red, cat food",
        "(red), a cat food, cat",
        "(red), a cat, cat food",
    ]
    with pytest.raises(InvalidField, match="“dog” is not in the prompt"):
        kind.apply(base, ("dog", "cat"))


def test_random_seeds_are_drawn_once_each():
    settled = KINDS["seed"].settle("-1, 5, -1", KNOWN)
    first, five, second = values("seed", settled)
    assert five == 5
    assert first != second
    assert min(first, second) >= 0
    assert KINDS["seed"].settle("1-3", KNOWN) == "1-3"


def test_a_plugin_adds_an_axis_under_a_name_of_its_own():
    mine = KINDS["seed"].__class__(
        "mine", "Mine", 1, None, lambda text, base, known: (text,), lambda request, value: request, str
    )
    assert list(kinds([mine]))[-1] == "mine"
    with pytest.raises(ValueError, match="two axes named 'seed'"):
        kinds([KINDS["seed"]])


# Properties

plain = st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Z"), include_characters=' ",\n"')
texts = st.lists(st.text(plain, max_size=12), max_size=8)
decimals = st.decimals(-1000, 1000, places=3)


@given(texts)
def test_what_is_written_is_split_into_the_same(found):
    assert split(written(found)) == found
    if len(found) > 1:
        assert lines(written(found)) == found


@given(decimals, decimals, st.decimals(Decimal("0.001"), 500, places=3), st.sampled_from(["", "+", "-"]))
def test_a_range_keeps_its_steps_and_its_end(first, last, step, sign):
    if abs(last - first) / step >= MAX_VALUES:
        with pytest.raises(ValueError, match="more than"):
            numbers(f"{first:f}-{last:f} ({sign}{step:f})")
        return
    found = [Fraction(number) for number in numbers(f"{first:f}-{last:f} ({sign}{step:f})")]
    way = 1 if last >= first else -1
    assert found[0] == Fraction(first)
    assert {b - a for a, b in itertools.pairwise(found)} <= {way * Fraction(step)}
    assert 0 <= way * (Fraction(last) - found[-1]) < Fraction(step)


@given(decimals, decimals, st.integers(2, 50))
def test_evenly_spaced_values_hold_both_ends(first, last, count):
    found = numbers(f"{first:f}-{last:f} [{count}]")
    assert len(found) == count
    assert (found[0], found[-1]) == (first, last)
    for k, number in enumerate(found):
        exact = Fraction(first) + (Fraction(last) - Fraction(first)) * Fraction(k, count - 1)
        assert abs(Fraction(number) - exact) <= Fraction(1, 2_000_000)


@given(st.text(st.sampled_from('0123456789-+.,()[] \n"ax'), max_size=40), st.sampled_from([None, 1, 8]))
@example("0-999999 (0.0000001)", None)
@example("9" * 20 + "-" + "0" * 20, 1)
@settings(max_examples=300)
def test_any_text_gives_few_finite_numbers_or_a_reason(text, grain):
    try:
        found = numbers(text, grain)
    except ValueError as error:
        assert str(error)  # noqa: PT017
    else:
        assert len(found) <= MAX_VALUES
        assert all(map(math.isfinite, found))


# LoRAs


def prompts(kind: str, text: str, prompt: str) -> list[str]:
    base = BASE.replace(prompt=prompt)
    kind = KINDS[kind]
    return [kind.apply(base, value).prompt for value in kind.parse(text, base, KNOWN)]


def test_a_lora_of_an_axis_takes_the_place_of_those_in_the_prompt():
    assert prompts("lora", "None, ink, Oil Paint", "a fox <lora:x:0.5:0.25>") == [
        "a fox ",
        "a fox <lora:ink:0.5:0.25>",
        "a fox <lora:oil paint:0.5:0.25>",
    ]
    assert prompts("lora", "ink", "a fox") == ["a fox<lora:ink:1:1>"]
    assert prompts("lora", "all", "a fox") == ["a fox", "a fox<lora:ink:1:1>", "a fox<lora:oil paint:1:1>"]


def test_the_weight_of_an_axis_is_that_of_every_lora_in_the_prompt():
    assert prompts("lora_weight", "0, -0.5", "<lora:a:1:0>a fox<lora:b>") == [
        "<lora:a:0>a fox<lora:b:0>",
        "<lora:a:-0.5>a fox<lora:b:-0.5>",
    ]
    assert KINDS["lora_weight"].idle(BASE) == "changes nothing without a LoRA in the prompt"
    assert not KINDS["lora_weight"].idle(BASE.replace(prompt="a fox<lora:ink:1>"))


def test_a_lora_that_is_not_there_is_refused_by_the_axis():
    with pytest.raises(InvalidField, match="LoRA: there is no “inc”; did you mean ink"):
        values("lora", "inc")
