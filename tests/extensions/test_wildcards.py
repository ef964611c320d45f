"""Wildcards: what is drawn, what is refused, and that the files stay where they belong."""

import importlib
import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import gradio as gr
import pytest

from tests.conftest import ROOT, pixels, request_for
from webui.errors import InvalidField, Unsupported
from webui.plugins.host import Host

FOLDER = ROOT / "extensions" / "wildcards"


@pytest.fixture
def data(tmp_path):
    """A data folder with some files."""
    files = {
        "colours": "red\ngreen\n# none\n\n  blue  \n",
        "animals/cat": "tabby\nsphynx",
        "animals/dog": "poodle",
        "weights": "3::often\nseldom\n0::never",
        "nested": "{small|big} __animals/cat__",
        "round": "a __circle/one__",
        "circle/one": "a __circle/two__",
        "circle/two": "b __circle/one__",
        "empty": "# nothing",
        "utf": "\ufeffé🦊",
    }
    for name, text in files.items():
        path = tmp_path / "wildcards" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return tmp_path


@pytest.fixture
def host(data):
    host = Host(data, [ROOT / "extensions"])
    assert host["wildcards"].on
    return host


@pytest.fixture
def files(host, data):
    return importlib.import_module("webui_plugins.wildcards.files").Files(data)


@pytest.fixture
def said(host):
    """The prompt that becomes of a text with a seed."""

    def said(prompt, seed=1, **more):
        (request,) = host.prepare(request_for(prompt=prompt, seed=seed, **more))
        return request.prompt

    return said


def every(host, prompt, **more):
    settings = {"wildcards.mode": "Every combination", **more.pop("plugins", {})}
    return [each.prompt for each in host.prepare(request_for(prompt=prompt, plugins=settings, **more))]


def over_seeds(said, prompt, seeds=200):
    return Counter(said(prompt, seed) for seed in range(seeds))


# -- what is drawn -----------------------------------------------------------------------------------


def test_a_file_gives_one_of_its_lines_without_comments_and_blanks(said):
    assert set(over_seeds(said, "a __colours__ fox")) == {"a red fox", "a green fox", "a blue fox"}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("{red|green}", {"red", "green"}),
        ("{ red | green } fox", {"red fox", "green fox"}),
        ("{red|}fox", {"redfox", "fox"}),
        ("{{a|b}|c}", {"a", "b", "c"}),
        ("__animals/*__", {"tabby", "sphynx", "poodle"}),
        ("__animals/c*t__", {"tabby", "sphynx"}),
        ("__*/dog__", {"poodle"}),
        ("__nested__", {"small tabby", "small sphynx", "big tabby", "big sphynx"}),
        ("{__animals/dog__|x}", {"poodle", "x"}),
        ("{0::a|b}", {"b"}),
        ("{2$$a|b}", {"a, b", "b, a"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{0-1$$a|b}", {"", "a", "b"}),
        ("{2$$__animals/cat__}", {"tabby, sphynx", "sphynx, tabby"}),
        ("{1-2$$0::a|b|c}", {"b", "c", "b, c", "c, b"}),
        ("__utf__", {"é🦊"}),
        ("__animals/dog____animals/dog__", {"poodlepoodle"}),
        ("{(a:1.2)|[b|c]}", {"(a:1.2)", "[b|c]"}),
        ("{[cat:dog:0.5]|x}", {"[cat:dog:0.5]", "x"}),
        ("[{a|b}|c]", {"[a|c]", "[b|c]"}),
        ("{a|b} AND {c|d} :1.2", {"a AND c :1.2", "a AND d :1.2", "b AND c :1.2", "b AND d :1.2"}),
    ],
)
def test_what_can_be_drawn(said, prompt, expected):
    assert set(over_seeds(said, prompt)) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "a fox",
        "(a:1.2) [b|c] [from:to:0.5] x AND y :0.5, BREAK",
        r"\{a|b\} \__colours__ \\",
        "{a} {prompt} {",
        "} a | b {",
        "{a|b",
        "a|b}",
        "____ __ __ _a_ >__< (__)",
        "# {a|b} __nothing__\na fox",
        "[a{b|c]}",
        "a\tb\r\n",
    ],
)
def test_what_is_no_wildcard_stays_byte_for_byte(host, prompt):
    request = request_for(prompt=prompt)
    assert host.prepare(request) == [request]


@pytest.mark.parametrize("prompt", ["__colours__ \\{a|b\\}", "\\__animals/cat__ {a|b}", "__nested__ {"])
def test_what_is_drawn_can_be_given_again_and_stays(host, prompt):
    (once,) = host.prepare(request_for(prompt=prompt))
    (again,) = host.prepare(request_for(prompt=once.prompt))
    assert again.prompt == once.prompt != prompt


def test_weights_are_kept_to(said):
    for prompt, often, seldom in [("{3::a|b}", "a", "b"), ("__weights__", "often", "seldom")]:
        counts = over_seeds(said, prompt, 1000)
        assert set(counts) == {often, seldom}
        assert counts[often] / counts[seldom] == pytest.approx(3, rel=0.25)  # three standard deviations


def test_the_prompts_of_a_seed_do_not_follow_from_each_other(host):
    pairs = Counter()
    for seed in range(200):
        (request,) = host.prepare(request_for(prompt="{a|b}", negative_prompt="{a|b}", seed=seed))
        pairs[request.prompt, request.negative_prompt] += 1
    assert len(pairs) == 4
    assert min(pairs.values()) > 25


def test_the_words_hang_on_the_seed_and_on_nothing_else(said, data):
    """Neither on the process nor on Python's own hashes; these are written down to stay the same for ever."""
    prompt = "{a|b|c|d} {2$$e|f|g|h} __colours__"
    assert [said(prompt, seed) for seed in (1, 2, 3)] == WORDS
    code = (
        "import sys; sys.path.insert(0, '.'); from pathlib import Path; from webui.plugins.host import Host;"
        "from tests.conftest import request_for;"
        f"host = Host(Path({str(data)!r}), [Path('extensions')]);"
        f"requests = [request_for(prompt={prompt!r}, seed=seed) for seed in (1, 2, 3)];"
        "print(*[host.prepare(request)[0].prompt for request in requests], sep='|')"
    )
    for hash_seed in ("0", "7"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        out = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True)
        assert out.strip().split("|") == WORDS


WORDS = ["b h, e green", "b h, g red", "b e, h red"]


def test_each_picture_of_a_batch_has_its_own_words_and_they_are_those_of_its_seed(host, said):
    requests = host.prepare(request_for(prompt="{1|2|3|4|5|6|7|8}", seed=5, num_images_per_prompt=3))
    assert [(each.seed, each.prompt) for each in requests] == [
        (seed, said("{1|2|3|4|5|6|7|8}", seed)) for seed in (5, 6, 7)
    ]


def test_what_was_typed_is_kept(host):
    (request,) = host.prepare(request_for(prompt="a __colours__ fox", negative_prompt="blurry"))
    assert request.template == "a __colours__ fox"
    assert request.negative_template == ""
    assert dict(request.prepared) == {"wildcards": "1.0.0"}


# -- every combination -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("{a|b} {c|d}", ["a c", "a d", "b c", "b d"]),
        ("x{{a|b}|c}{d|e}", ["xad", "xae", "xbd", "xbe", "xcd", "xce"]),
        ("{2$$a|b|c}", ["a, b", "a, c", "b, c"]),
        ("{0-2$$a|b}", ["", "a", "b", "a, b"]),
        ("__nested__!", ["small tabby!", "small sphynx!", "big tabby!", "big sphynx!"]),
        ("{5::a|0::b|c}", ["a", "c"]),
        ("{__animals/*__|[x|y]}", ["tabby", "sphynx", "poodle", "[x|y]"]),
        (r"\{a|b\} {c|d}", [r"\{a|b\} c", r"\{a|b\} d"]),
    ],
)
def test_every_combination_in_order(host, prompt, expected):
    assert every(host, prompt) == expected


def test_every_combination_is_one_of_those_that_are_drawn(host, said):
    prompt = "{a|{b|c} __animals/*__} {d|{1-2$$e|f}}"
    combinations = every(host, prompt)
    assert len(set(combinations)) == len(combinations) == (1 + 2 * 3) * (1 + 3)
    drawn = set(over_seeds(said, prompt, 1500))
    assert set(combinations) <= drawn
    assert drawn - set(combinations) == {
        each.replace("e, f", "f, e") for each in combinations if "e, f" in each
    }


def test_both_prompts_are_combined_and_all_else_is_the_same(host):
    request = request_for(
        prompt="{a|b}", negative_prompt="{c|d}", seed=7, plugins={"wildcards.mode": "Every combination"}
    )
    requests = host.prepare(request)
    pairs = [(each.prompt, each.negative_prompt) for each in requests]
    assert pairs == list(itertools.product("ab", "cd"))
    assert {each.seed for each in requests} == {7}
    assert {(each.template, each.negative_template) for each in requests} == {("{a|b}", "{c|d}")}
    assert {each.plugins for each in requests} == {()}


def test_combinations_are_refused_where_one_picture_is_wanted(plugged_engine):
    request = request_for(prompt="{a|b}", plugins={"wildcards.mode": "Every combination"})
    with pytest.raises(Unsupported, match="2 pictures"):
        plugged_engine.check(request, "me")


def test_more_combinations_than_wanted_are_refused_with_the_numbers(host):
    with pytest.raises(InvalidField, match=r"Prompt: has 125 combinations, and at most 100") as error:
        every(host, "{a|b|c|d|e}{a|b|c|d|e}{a|b|c|d|e}")
    assert error.value.field == "prompt"
    assert len(every(host, "{a|b|c|d|e}{a|b|c|d|e}{a|b|c|d|e}", plugins={"wildcards.limit": 125})) == 125
    with pytest.raises(InvalidField, match="Negative prompt: has 9 combinations, and at most 8"):
        every(host, "{a|b|c}", negative_prompt="{a|b|c}", plugins={"wildcards.limit": 8})


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("__animals/cot__", "no wildcard file “animals/cot”; did you mean “animals/cat”"),
        ("__cat__", "did you mean “animals/cat”"),
        ("__zzzzzz__", r"no wildcard file “zzzzzz”; if these are words, write \\__zzzzzz__"),
        ("__nothing/*__", "no wildcard file “nothing/\\*”"),
        ("__empty__", "nothing to choose from in “empty”"),
        ("{0::a|0::b}", "nothing to choose from"),
        ("{3$$a|b}", "ask for 3 of 2"),
        ("__round__", "circle/one → circle/two → circle/one"),
    ],
)
def test_what_cannot_be_drawn_is_told_with_the_field(host, prompt, message):
    for field in ("prompt", "negative_prompt"):
        for mode in ("Random", "Every combination"):
            with pytest.raises(InvalidField, match=message) as error:
                host.prepare(request_for(**{field: prompt}, plugins={"wildcards.mode": mode}))
            assert error.value.field == field


def test_without_any_files_it_says_so(tmp_path):
    host = Host(tmp_path, [ROOT / "extensions"])
    with pytest.raises(InvalidField, match="“cat”: there are none yet"):
        host.prepare(request_for(prompt="__cat__"))


LEADING_OUT = [
    "../secret",
    "../../secret",
    "animals/../../secret",
    "..",
    "/etc/passwd",
    "//server/share",
    "C:/secret",
    "C:\\secret",
    "..\\secret",
    "%2e%2e/secret",
    "~/secret",
    "./colours",
    "animals//cat",
    "colours.txt",
    "link",
    "linked/secret",
    "con",
    "animals/NUL",
    "x" * 150,
]


@pytest.mark.parametrize("name", LEADING_OUT)
def test_no_name_leads_out_of_the_folder(host, data, files, name):
    (data / "secret.txt").write_text("secret")
    (data / "wildcards" / "link.txt").symlink_to(data / "secret.txt")
    (data / "wildcards" / "linked").symlink_to(data, target_is_directory=True)
    with pytest.raises(InvalidField):
        host.prepare(request_for(prompt=f"__{name}__"))
    with pytest.raises(InvalidField):
        files.text(name)
    with pytest.raises(InvalidField):
        files.delete(name)
    if name != "link":
        before = sorted(data.rglob("*"))
        with pytest.raises(InvalidField):
            files.save(name, "x", None)
        assert sorted(data.rglob("*")) == before
    assert (data / "secret.txt").read_text() == "secret"


@pytest.mark.parametrize(
    "name", ["a\0b", "a\nb", "", " ", "a__b", "_a", "a_", "a ", "a/", "a" * 61, "a/b/c/d/e/f/g"]
)
def test_odd_names_are_no_names(files, name):
    with pytest.raises(InvalidField):
        files.save(name, "x", None)


def test_a_glob_does_not_list_links_and_hidden_files(said, data):
    folder = data / "wildcards"
    (data / "secret.txt").write_text("secret")
    (folder / "animals" / "link.txt").symlink_to(data / "secret.txt")
    (folder / "animals" / ".hidden.txt").write_text("hidden")
    (folder / "animals" / "other.md").write_text("other")
    assert set(over_seeds(said, "__animals/*__")) == {"tabby", "sphynx", "poodle"}


@pytest.mark.parametrize("data_of", [b"\xff\xfe", b"x" * 1_000_001], ids=["no text", "too large"])
def test_a_file_that_cannot_be_read_is_named(host, data, data_of):
    (data / "wildcards" / "bad.txt").write_bytes(data_of)
    with pytest.raises(InvalidField, match="“bad”"):
        host.prepare(request_for(prompt="__bad__"))


# -- bounds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["Random", "Every combination"])
@pytest.mark.parametrize(
    "prompt",
    [
        "{a|" * 5000 + "}" * 5000,
        "{a|b}" * 3900,
        "{" * 20_000,
        "}" * 20_000,
        "[" * 10_000 + "|" * 10_000,
        "{[" * 5000 + "]}" * 5000,
        "{a" * 5000 + "}" * 5000,
        "__" * 10_000,
        "__a" * 6000,
        "{|" * 10_000,
        "{999$$" + "|" * 2000 + "}",
        "{50$$" + "|".join("abcdefghij" * 6) + "}",
        "\\" * 20_000,
        "__big__" * 2800,
        "{2$$__big__}" * 1600,
        "__doubling00__",
        "__nothing00__",
    ],
    ids=lambda prompt: prompt[:12],
)
def test_whatever_is_typed_is_answered_soon(host, data, prompt, mode):
    folder = data / "wildcards"
    (folder / "big.txt").write_text("\n".join(f"value {n}" for n in range(20_000)))
    for n in range(60):
        (folder / f"doubling{n:02}.txt").write_text(f"word __doubling{n + 1:02}__ __doubling{n + 1:02}__")
        (folder / f"nothing{n:02}.txt").write_text(f"__nothing{n + 1:02}____nothing{n + 1:02}__")
    (folder / "doubling60.txt").write_text("x")
    (folder / "nothing60.txt").write_text("{|}")
    start = time.process_time()
    with suppress(InvalidField):
        host.prepare(request_for(prompt=prompt[:20_000], plugins={"wildcards.mode": mode}))
    assert time.process_time() - start < 5


def test_braces_may_be_nested_thirty_two_deep(host, said):
    deepest = "{" * 32 + "a" + "|b}" * 32
    assert said(deepest) in ("a", "b")
    with pytest.raises(InvalidField, match="nested more than 32 deep"):
        said("{" + deepest + "|c}")


# -- pictures ----------------------------------------------------------------------------------------


def made(engine, **changes):
    view = engine.submit([request_for(**changes)], "me").wait()
    assert view.state == "done", view.error
    return view.saved


def test_the_picture_is_that_of_the_words_and_says_so(plugged_engine, engine):
    (picture,) = made(plugged_engine, prompt="a {fox|red apple}", seed=3)
    (plain,) = made(engine, prompt=picture.request.prompt, seed=3)
    assert (pixels(picture.path) == pixels(plain.path)).all()
    assert picture.request.prompt in ("a fox", "a red apple")
    assert picture.request.template == "a {fox|red apple}"
    assert "wildcards" in picture.infotext


def test_every_combination_makes_a_picture_each(plugged_engine):
    pictures = made(plugged_engine, prompt="a {fox|castle}", plugins={"wildcards.mode": "Every combination"})
    assert [picture.request.prompt for picture in pictures] == ["a fox", "a castle"]


# -- the tab -----------------------------------------------------------------------------------------


@pytest.fixture
def page(host, files):
    module = importlib.import_module("webui_plugins.wildcards.page")
    with gr.Blocks():
        return module.Page(files)


def test_the_tab_can_be_laid_out(host, data):
    with gr.Blocks() as blocks:
        host.ask(host["wildcards"], "tab", data_dir=data).build()
    ids = {block.elem_id for block in blocks.blocks.values()}
    assert {"wildcards-name", "wildcards-text", "wildcards-drawn"} <= ids


def test_a_file_is_written_opened_changed_and_deleted(page, files, said):
    page.keep_file(" new/birds ", "wren\nrobin\n\n", ("", None))
    assert (files.folder / "new" / "birds.txt").read_bytes() == b"wren\nrobin\n"
    assert said("__new/birds__") in ("wren", "robin")
    opened = page.open("new/birds")[2]
    assert opened == ("new/birds", "wren\nrobin\n")
    page.keep_file("new/birds", "wren", opened)
    assert files.text("new/birds") == "wren\n"
    page.delete_file(("new/birds", "wren\n"))
    assert "new/birds" not in files.names()
    assert not list(files.folder.rglob(".*")), "something was left behind"


def test_nobody_overwrites_what_another_has_saved_meanwhile(page, files):
    mine, theirs = page.open("colours")[2], page.open("colours")[2]
    page.keep_file("colours", "cyan", theirs)
    with pytest.raises(InvalidField, match="meanwhile"):
        page.keep_file("colours", "magenta", mine)
    with pytest.raises(InvalidField, match="already"):
        page.keep_file("Colours", "magenta", mine)
    assert files.text("colours") == "cyan\n"


def test_a_prompt_can_be_tried_and_its_words_are_those_of_the_picture(page, said):
    shown = page.try_out("<b>__colours__</b> {a|b}", 5)
    prompts = [said("<b>__colours__</b> {a|b}", seed) for seed in range(5, 15)]
    assert shown.count("<li>") == 10
    for prompt in prompts:
        assert prompt.replace("<", "&lt;").replace(">", "&gt;") in shown
    assert "no wildcard file" in page.try_out("__nothing__", 1)


def test_the_examples_are_copied_once_and_over_nothing(page, files):
    files.save("faces", "mine", None)
    page.copy_examples(("", None))
    assert files.text("faces") == "mine\n"
    assert files.text("colours").startswith("red"), "what was there before is kept"
    assert "animals/wild" in files.names()
    before = {name: files.text(name) for name in files.names()}
    page.copy_examples(("", None))
    assert {name: files.text(name) for name in files.names()} == before


def test_every_example_can_be_drawn_and_all_of_the_model_s_words_are_known_to_it(tmp_path):
    """Fit for the embedded model: each value is in its tokenizer's training vocabulary."""
    host = Host(tmp_path, [ROOT / "extensions"])
    files = importlib.import_module("webui_plugins.wildcards.files").Files(tmp_path)
    module = importlib.import_module("webui_plugins.wildcards.page")
    with gr.Blocks():
        module.Page(files).copy_examples(("", None))
    card = (ROOT / "models/pocket-model/README.md").read_text().replace("\n", " ")
    for name in files.names():
        for prompt in (
            every(host, f"__{name}__", plugins={"wildcards.limit": 1000}) if name != "scenes" else ()
        ):
            assert prompt in card, f"{name}: {prompt}"
    drawn = importlib.import_module("webui_plugins.wildcards.drawing").drawn
    for seed in range(100):
        assert "__" not in drawn(module.TRY, files.look(), str(seed))
