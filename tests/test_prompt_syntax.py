import random
import time
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from webui.errors import InvalidField
from webui.prompt_syntax import MAX_DEPTH, Lora, Moment, check, loras, parse


def words(text, step=0, steps=20, steps_before=0):
    """(text, weight) of the one block of a prompt's one part."""
    (part,) = parse(text)
    (block,) = part.at(Moment(step, steps, steps_before))
    return [(text, pytest.approx(weight)) for text, weight in block]


def said(text, step=0, steps=20, steps_before=0):
    return "".join(text for text, _ in words(text, step, steps, steps_before))


# -- weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red fox", [("a red fox", 1)]),
        ("", []),
        ("a (red) fox", [("a ", 1), ("red", 1.1), (" fox", 1)]),
        ("a [red] fox", [("a ", 1), ("red", 1 / 1.1), (" fox", 1)]),
        ("((red))", [("red", 1.21)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red : -.5 )", [("red ", -0.5)]),
        ("(red:0)", [("red", 0)]),
        ("(a (red:1.3) fox:2)", [("a ", 2), ("red", 2.6), (" fox", 2)]),
        ("[(red:1.1)]", [("red", 1)]),
        ("(red:1)(fox:1.0)", [("redfox", 1)]),
        ("(16:9:1.5)", [("16:9", 1.5)]),
        ("(ratio 16:9)", [("ratio 16", 9)]),
        ("a:1.2", [("a:1.2", 1)]),
        ("(a|b)", [("a|b", 1.1)]),
        ("[a:b]", [("a:b", 1 / 1.1)]),
        ("[a:b:c:0.5]", [("a:b:c:0.5", 1 / 1.1)]),
    ],
)
def test_brackets_weigh_words(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize("number", ["nan", "inf", "1e3", "1,5", "0x10", "٣", "1.2.3", "", "+", "."])
def test_what_is_no_plain_number_stays_words(number):
    assert words(f"(a:{number})") == [(f"a:{number}", 1.1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\(a\)", "(a)"),
        (r"\[a\]", "[a]"),
        (r"\[a|b\]", "[a|b]"),
        (r"\\(a)", "\\a"),
        (r"\\\(", "\\("),
        (r"a\b \: \|", r"a\b \: \|"),
        (r"\{a|b\} \__c__", "{a|b} __c__"),
        ("\\", "\\"),
        (r"(a:1.2\)", "(a:1.2)"),
    ],
)
def test_a_backslash_takes_the_meaning_from_a_bracket(text, expected):
    assert said(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a fox :(", [("a fox :(", 1)]),
        ("(a:1.3", [("(a:1.3", 1)]),
        ("a) b", [("a) b", 1)]),
        ("[a:b:0.5", [("[a:b:0.5", 1)]),
        ("[a)", [("[a)", 1)]),
        ("((a)", [("(", 1), ("a", 1.1)]),
        ("(a))", [("a", 1.1), (")", 1)]),
        ("([a)]", [("[a", 1.1), ("]", 1)]),
        ("(a [b (c:2)", [("(a [b ", 1), ("c", 2)]),
    ],
)
def test_an_unbalanced_bracket_is_a_character(text, expected):
    assert words(text) == expected


def test_brackets_nested_too_deep_are_characters():
    deepest = "[" * MAX_DEPTH + "a" + "]" * MAX_DEPTH
    assert words(deepest) == [("a", 1.1**-MAX_DEPTH)]
    assert words(f"[{deepest}]") == [("[a]", 1.1**-MAX_DEPTH)]


# -- what changes over the steps ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first_of_after"),
    [
        ("[cat:dog:5]", 5),
        ("[cat:dog:0.25]", 5),
        ("[cat:dog: .25 ]", 5),
        ("[cat:dog:0.29]", 5),  # 5.8, rounded down
        ("[cat:dog:0]", 0),
        ("[cat:dog:-3]", 0),
        ("[cat:dog:-" + "9" * 400 + "]", 0),
        ("[cat:dog:1]", 1),
        ("[cat:dog:19]", 19),
        ("[cat:dog:20]", 20),
        ("[cat:dog:1.0]", 20),
        ("[cat:dog:1.5]", 20),
        ("[cat:dog:" + "9" * 400 + "]", 20),
    ],
)
def test_a_schedule_changes_at_its_step(text, first_of_after):
    assert [said(text, step) for step in range(20)] == ["cat"] * first_of_after + ["dog"] * (
        20 - first_of_after
    )


def test_a_fraction_of_the_steps_is_exact_to_a_person():
    assert said("[cat:dog:0.29]", 28, steps=100) == "cat"
    assert said("[cat:dog:0.29]", 29, steps=100) == "dog"  # although 0.29 * 100 < 29 in binary


@pytest.mark.parametrize(
    ("text", "first_of_after"),
    [
        ("[cat:dog:1.5]", 5),
        ("[cat:dog:0.9]", 0),
        ("[cat:dog:1.0]", 0),
        ("[cat:dog:2.0]", 10),
        ("[cat:dog:25]", 5),
        ("[cat:dog:20]", 0),
        ("[cat:dog:7]", 0),
        ("[cat:dog:40]", 10),
    ],
)
def test_what_lies_beyond_the_first_pass_happens_in_the_second(text, first_of_after):
    second = [said(text, step, steps=10, steps_before=20) for step in range(10)]
    assert second == ["cat"] * first_of_after + ["dog"] * (10 - first_of_after)


def test_a_schedule_adds_or_removes_words():
    assert [said("a[ red:5] fox", step) for step in (4, 5)] == ["a fox", "a red fox"]
    assert [said("a[ red::5] fox", step) for step in (4, 5)] == ["a red fox", "a fox"]


def test_alternatives_take_turns_every_step():
    assert [said("[cat|dog|]", step) for step in range(5)] == ["cat", "dog", "", "cat", "dog"]


def test_schedules_alternatives_and_weights_nest():
    text = "([a [cat|(dog:2)]:[x:y:15]:10]:1.5)"
    assert words(text, 2) == [("a cat", 1.5)]
    assert words(text, 3) == [("a ", 1.5), ("dog", 3)]
    assert words(text, 10) == [("x", 1.5)]
    assert words(text, 15) == [("y", 1.5)]


def test_over_gives_the_words_of_each_step():
    (part,) = parse("[a:b:1][c|d]")
    assert [blocks[0][0].text for blocks in part.over(3)] == ["ac", "bd", "bc"]
    (still,) = parse("(a)")
    assert list(still.over(3)) == [still.at(Moment(0, 3))] * 3


# -- AND, BREAK, comments ----------------------------------------------------------------------------


def composed(text, compose=True):
    parts = parse(text, compose)
    return [("".join(s.text for s in part.at(Moment(0, 20))[0]), part.weight) for part in parts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat AND dog", [("cat ", 1), (" dog", 1)]),
        ("cat :1.2 AND dog:-0.5 ", [("cat ", 1.2), (" dog", -0.5)]),
        ("cat AND (dog:1.5)", [("cat ", 1), (" dog", 1)]),
        ("cat AND [a:b:0.5] :2", [("cat ", 1), (" a ", 2)]),
        ("cat\nAND\ndog AND bird", [("cat\n", 1), ("\ndog ", 1), (" bird", 1)]),
        ("cat and dog", [("cat and dog", 1)]),
        ("BRAND ANDY", [("BRAND ANDY", 1)]),
        ("(cat AND dog)", [("cat AND dog", 1)]),
        ("ratio 16:9", [("ratio 16:9", 1)]),
        ("AND", [("", 1), ("", 1)]),
    ],
)
def test_and_composes_prompts(text, expected):
    assert composed(text) == expected


def test_and_is_a_word_of_a_negative_prompt():
    assert composed("cat AND dog :2", compose=False) == [("cat AND dog :2", 1)]


def test_break_begins_a_block_at_any_depth():
    (part,) = parse("a BREAK(b BREAK c:2) BREAKS")
    assert part.at(Moment(0, 20)) == ((("a ", 1),), (("b ", 2),), ((" c", 2), (" BREAKS", 1)))


def test_whole_lines_of_comment_are_left_out():
    assert said("# by me\na fox # 1\n#(\nin snow\n#end") == "a fox # 1\nin snow\n"


# -- LoRAs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:ink>", Lora("ink", 1, 1)),
        ("<lora:ink:0.8>", Lora("ink", 0.8, 0.8)),
        ("<LoRA: ink v1.2 : -.5 >", Lora("ink v1.2", -0.5, -0.5)),
        ("<lyco:ink:0>", Lora("ink", 0, 0)),
        ("<lora:ink:0.5:0.25>", Lora("ink", 0.5, 0.25)),
        ("<lora:ink:unet=0.25>", Lora("ink", 1, 0.25)),
        ("<lora:ink:te=0.5:unet=0.25>", Lora("ink", 0.5, 0.25)),
        ("<lora:ink:te=0.5>", Lora("ink", 0.5, 0.5)),
    ],
)
def test_a_tag_names_a_lora_and_its_weights_as_a1111_reads_them(tag, expected):
    assert loras(f"a fox {tag}") == (expected,)


def test_a_lora_named_twice_has_the_sum_of_its_weights_at_its_first_place():
    tags = "<lora:b:1> a <lora:a:1> fox <lora:b:0.5:-1>"
    assert loras(tags) == (Lora("b", 1.5, 0), Lora("a", 1, 1))


def test_tags_and_tags_in_comments_are_no_words():
    prompt = "# <lora:old:2>\na <lora:ink:0.8>(red:1.3) fox<lora:x:1>"
    assert words(prompt) == [("a ", 1), ("red", 1.3), (" fox", 1)]
    assert loras(prompt) == (Lora("ink", 0.8, 0.8), Lora("x", 1, 1))


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("<lora:ink:nan>", "nan"),
        ("<lora:ink:inf>", "inf"),
        ("<lora:ink:1e3>", "1e3"),
        ("<lora:ink:>", "number such as"),
        ("<lora:ink:te=x>", "x"),
        ("<lora:ink:101>", "out of range"),
        ("<lora:ink:60><lora:ink:60>", "out of range"),
        ("<lora:ink:1:1:8>", "more than a name"),
        ("<lora:ink:dyn=8>", "more than a name"),
        ("<lora::1>", "must name a LoRA"),
        ("<lora:../../ink:1>", "without a folder"),
        ("<lora:C\\ink:1>", "without a folder"),
        ("<lora:..:1>", "without a folder"),
        ("<lora:ink:0.8", "not closed"),
    ],
)
def test_a_tag_that_means_nothing_is_refused_in_the_prompt(tag, said):
    with pytest.raises(InvalidField, match=r"^Prompt: ") as refusal:
        check(f"a fox {tag}", "prompt")
    assert said in str(refusal.value)


def test_a_lora_in_a_negative_prompt_is_refused_there():
    with pytest.raises(InvalidField, match=r"^Negative prompt: LoRAs belong into the prompt"):
        check("blurry <lora:ink:1>", "negative_prompt")


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(
    "text",
    [
        "<LoRA:../../ink:nan>",
        "<lora:ink",
        "<hypernet:x:1>",
        "(a:1000)",
        "(a:-101)",
        "(" * 60 + "a" + ")" * 60,
        "((a:99):2)",
        "[a:(b:1000):0.9]",
        "[a|(b:1000)]",
        "(a:" + "9" * 400 + ")",
        "((a:0):" + "9" * 400 + ")",  # 0 x infinity
    ],
)
def test_what_cannot_be_drawn_is_refused_by_field(text, field):
    with pytest.raises(InvalidField) as refusal:
        check(text, field)
    assert refusal.value.field == field


@pytest.mark.parametrize("text", ["a AND b :101", " AND ".join("a" * 33)])
def test_impossible_compositions_are_refused(text):
    with pytest.raises(InvalidField, match="Prompt"):
        check(text, "prompt")
    check(text, "negative_prompt")  # where AND is a word


@pytest.mark.parametrize(
    "text", ["", "(a:100)", "(a:-100)", "a < lora", "# <lora:x:1>\na", "((a:99):1)", "a:1000"]
)
def test_what_can_be_drawn_is_let_through(text):
    check(text, "prompt")


# -- any text ----------------------------------------------------------------------------------------


def is_subsequence(short, long):
    characters = iter(long)
    return all(character in characters for character in short)


def spoken(part, step):
    return "".join(text for block in part.at(Moment(step, 4)) for text, _ in block)


def test_ten_thousand_scrambled_prompts_are_read_and_no_word_is_invented():
    random_ = random.Random(0)
    pieces = [*"()[]:|\\ \n", "cat", "1.3", "0.5", "2", " AND ", " BREAK ", "::", "🦊"]
    for _ in range(10_000):
        text = "".join(random_.choices(pieces, k=random_.randrange(40)))
        for part in parse(text):
            for step in (0, 3):
                assert is_subsequence(spoken(part, step), text), text


@given(st.text())
def test_any_text_is_a_prompt(text):
    assert all(is_subsequence(spoken(part, 0), text) for part in parse(text))


@given(st.text(st.characters(exclude_characters="\\()[]:|#"), min_size=1))
def test_text_without_signs_is_itself(text):
    if "AND" not in text and "BREAK" not in text:
        assert words(text) == [(text, 1)]


@given(st.text(st.sampled_from("\\()[] ab")))
def test_escaped_text_is_itself(text):
    escaped = "".join("\\" + c if c in "\\()[]" else c for c in text)
    assert said(escaped) == text


@dataclass(frozen=True)
class Tree:
    """A prompt written down, and what it must say: [(letter, weight)] at each of 6 steps."""

    text: str
    steps: tuple[tuple[tuple[str, float], ...], ...]


def weighed(tree, text, weight):
    return Tree(text, tuple(tuple((c, w * weight) for c, w in step) for step in tree.steps))


def scheduled(before, after, when):
    steps = tuple((before if i < when else after).steps[i] for i in range(6))
    return Tree(f"[{before.text}:{after.text}:{when}]", steps)


def alternated(options):
    steps = tuple(options[i % len(options)].steps[i] for i in range(6))
    return Tree("[" + "|".join(o.text for o in options) + "]", steps)


def joined(trees):
    return Tree("".join(t.text for t in trees), tuple(sum((t.steps[i] for t in trees), ()) for i in range(6)))


def grown(tree):
    return st.one_of(
        tree.map(lambda t: weighed(t, f"({t.text})", 1.1)),
        tree.map(lambda t: weighed(t, f"[{t.text}]", 1 / 1.1)),
        st.builds(lambda t, w: weighed(t, f"({t.text}:{w})", w), tree, st.sampled_from([0.5, -1, 1.3, 2])),
        st.builds(scheduled, tree, tree, st.integers(0, 7)),
        st.lists(tree, min_size=2, max_size=3).map(alternated),
        st.lists(tree, max_size=3).map(joined),
    )


LEAF = st.sampled_from("abc").map(lambda c: Tree(c, (((c, 1.0),),) * 6))


@settings(max_examples=300)
@given(st.recursive(LEAF, grown, max_leaves=12))
def test_a_tree_written_down_is_read_back(tree):
    (part,) = parse(tree.text)
    for expected, (block,) in zip(tree.steps, part.over(6), strict=True):
        letters = [(c, weight) for text, weight in block for c in text]
        assert letters == [(c, pytest.approx(weight)) for c, weight in expected]


@pytest.mark.parametrize(
    "text",
    [
        "(" * 20_000,
        ")" * 20_000,
        "(" * 10_000 + ")" * 10_000,
        "[" * 10_000 + "]" * 10_000,
        "[" * 10_000 + ")" * 10_000,
        "[(" * 5_000 + ")" * 10_000,
        "[a:" * 4_000 + ":1]" * 2_600,
        "[|" * 6_600 + "]" * 6_600,
        ":" * 20_000,
        " " * 20_000,
        "\\" * 20_000,
        "# \n" * 6_600,
        "(a:" + " " * 20_000 + ")",
    ],
    ids=lambda text: text[:4],
)
def test_twenty_thousand_signs_are_read_at_once(text):
    start = time.perf_counter()
    for part in parse(text):
        part.at(Moment(0, 20))
    assert time.perf_counter() - start < 2  # 0.05 s measured; a quadratic reading takes minutes
