"""Styles: A1111's file read and written without harm, what is applied, and the axis."""

import csv
import importlib
import io
import os

import gradio as gr
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT, pixels, request_for
from webui.errors import InvalidField
from webui.grid.axes import Known, kinds
from webui.plugins import axes
from webui.plugins.host import Host

Host(ROOT / "tests", [ROOT / "extensions"])  # loads the modules; nothing is written there
TABLE = importlib.import_module("webui_plugins.styles.table")
STORE = importlib.import_module("webui_plugins.styles.store")
Damaged, Style, Table = TABLE.Damaged, TABLE.Style, TABLE.Table

# As AUTOMATIC1111 1.10 writes it: a byte order mark, CRLF, quotation marks where csv needs them.
A1111 = (
    "\ufeffname,prompt,negative_prompt\r\n"
    "None,,\r\n"
    'Ink,"ink drawing, {prompt}, ""bold"" lines",colour\r\n'
    '"Two, lines","{prompt}\nsecond line","a, b"\r\n'
    "# --- divider,,\r\n"
    "3d,3d render,flat\r\n"
)
FILES = [
    A1111,
    A1111.removeprefix("\ufeff"),
    A1111.replace("\r\n", "\n"),
    A1111.removesuffix("\r\n"),
    "prompt,extra,name,negative_prompt\nx,kept,y,z\n\n  \nshort\n,,,\nlong,a,b,c,d,e\n",
    '"name","prompt","negative_prompt"\n"a","b","c"\n',
    "name,prompt,negative_prompt\rMac,old,line ends\r",
    'name,prompt,negative_prompt\nx,5" tall,"a"b\n',
    "name,prompt,negative_prompt\nsame,first,\nsame,second,\n",
    'name,prompt,negative_prompt\nend,"never closed\n',
    "name,prompt,negative_prompt",
]


@pytest.fixture
def host(tmp_path):
    (tmp_path / "styles.csv").write_text(A1111, "utf-8", newline="")
    host = Host(tmp_path, [ROOT / "extensions"])
    assert host["styles"].on
    return host


@pytest.fixture
def store(host):
    return importlib.import_module("webui_plugins.styles.store").Store(host.data_dir)


def applied(host, names, **changes):
    (request,) = host.prepare(request_for(plugins={"styles.names": names}, **changes))
    return request


# -- the file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", FILES, ids=range(len(FILES)))
def test_a_file_in_which_nothing_changed_is_the_same_byte_for_byte(text):
    data = text.encode()
    table = Table.read(data)
    assert table.data == data
    for style in table.styles.values():
        assert table.having(style).data == data


@pytest.mark.parametrize("text", FILES[:9], ids=range(9))
def test_the_styles_are_those_that_csv_reads(text):
    rows = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    expected = {
        row["name"]: tuple(row[column] or "" for column in TABLE.COLUMNS) for row in rows if row["name"]
    }
    styles = Table.read(text.encode()).styles
    assert {name: (s.name, s.prompt, s.negative_prompt) for name, s in styles.items()} == {
        name: row for name, row in expected.items() if not name.startswith("#")
    }


def test_a_change_touches_its_own_row_alone():
    changed = Table.read(A1111.encode()).having(Style("Ink", "x", 'y "z"')).data.decode()
    assert changed.splitlines(True)[2] == 'Ink,x,"y ""z"""\r\n'
    before, after = A1111.splitlines(True), changed.splitlines(True)
    assert [line for n, line in enumerate(after) if n != 2] == [
        line for n, line in enumerate(before) if n != 2
    ]


def test_a_new_style_goes_to_the_end_with_the_line_ends_of_the_file():
    for text in FILES[:7]:
        added = Table.read(text.encode()).having(Style("New", "a\nb", "")).data.decode()
        end = "\r\n" if "\r\n" in text else "\r" if "\r" in text else "\n"
        assert added.startswith(text)
        assert Table.read(added.encode()).styles["New"] == Style("New", "a\nb", "")
        assert added.endswith(end)
        for odd in ("a\nb", "a\rb"):
            again = Table.read(text.encode()).having(Style("New", odd, ""))
            assert Table.read(again.data).styles["New"].prompt == odd
        assert "\ufeff" not in added[1:]


def test_unknown_columns_stay_where_they_are():
    table = Table.read(FILES[4].encode()).having(Style("y", "new", "z2")).having(Style("b", "w", "c"))
    lines = table.data.decode().split("\n")
    assert lines[:2] == ["prompt,extra,name,negative_prompt", "new,kept,y,z2"]
    assert lines[6] == "w,a,b,c,d,e"


def test_a_deleted_style_is_gone_and_nothing_else():
    assert Table.read(A1111.encode()).without("Ink").data.decode() == "".join(
        line for line in A1111.splitlines(True) if not line.startswith("Ink")
    )
    assert Table.read(FILES[8].encode()).without("same").data.decode() == "name,prompt,negative_prompt\n"


def test_a_new_file_is_as_a1111_writes_it(tmp_path):
    store = STORE.Store(tmp_path)
    store.save(Style("a", "b, c", ""), None)
    assert (tmp_path / "styles.csv").read_bytes() == (
        b'\xef\xbb\xbfname,prompt,negative_prompt\r\na,"b, c",\r\n'
    )


def test_nothing_is_added_where_a_quotation_mark_would_swallow_it():
    with pytest.raises(Damaged, match="not closed"):
        Table.read(FILES[9].encode()).having(Style("a", "b", "c"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"name,prompt\na,b\n", "no column negative_prompt"),
        (b"name;prompt;negative_prompt\n", "no column name"),
        (b"name,prompt,negative_prompt\na,\xff,\n", "line 2 is not UTF-8"),
        ("a,b".encode("utf-16"), "UTF-8"),
        (b"name,prompt,negative_prompt\na," + b"x" * 200_000, "line 2: field larger"),
    ],
)
def test_a_damaged_file_is_told_and_left_alone(tmp_path, data, message):
    (tmp_path / "styles.csv").write_bytes(data)
    store = STORE.Store(tmp_path)
    with pytest.raises(InvalidField, match=message):
        store.styles()
    with pytest.raises(InvalidField, match=message):
        store.save(Style("a", "b", "c"), None)
    assert (tmp_path / "styles.csv").read_bytes() == data


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from('",\n\r{}#'), max_size=20)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=5),
    st.tuples(TEXTS, TEXTS, TEXTS),
    st.sampled_from(FILES[:9]),
)
def test_whatever_is_written_is_read_again(styles, last, text):
    table = Table.read(text.encode())
    expected = dict(table.styles)
    for name, prompt, negative in [*styles, last]:
        if name.strip() and not name.startswith("#"):
            table = table.having(Style(name, prompt, negative))
            expected[name] = Style(name, prompt, negative)
    again = Table.read(table.data)
    assert again == table
    assert again.styles == expected


# -- what is applied ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "prompt", "negative"),
    [
        ("3d", "a fox, 3d render", "ugly, flat"),
        ("Ink", 'ink drawing, a fox, "bold" lines', "ugly, colour"),
        ("3d, Ink", 'ink drawing, a fox, 3d render, "bold" lines', "ugly, flat, colour"),
        ("Ink,3d", 'ink drawing, a fox, "bold" lines, 3d render', "ugly, colour, flat"),
        ('"Two, lines"', "a fox\nsecond line", "ugly, a, b"),
        ("None", "a fox", "ugly"),
    ],
)
def test_styles_are_applied_in_their_order(host, names, prompt, negative):
    request = applied(host, names, prompt="a fox", negative_prompt="ugly")
    assert (request.prompt, request.negative_prompt) == (prompt, negative)


def test_a_style_alone_is_the_prompt(host):
    request = applied(host, "3d", prompt="", negative_prompt="")
    assert (request.prompt, request.negative_prompt) == ("3d render", "flat")


def test_what_was_typed_is_kept_and_the_style_is_named_and_not_applied_twice(host):
    once = applied(host, "3d")
    assert once.template == "a fox"
    assert dict(once.prepared) == {"styles": "1.0.0", "styles.names": "3d"}
    (again,) = host.prepare(once)
    assert again == once


def test_wildcards_in_a_style_are_drawn(host):
    store = STORE.Store(host.data_dir)
    store.save(Style("any", "{prompt}, {flat|3d}"), None)
    request = applied(host, "any", seed=4)
    assert request.prompt in ("a fox, flat", "a fox, 3d")
    assert request.template == "a fox"
    assert set(dict(request.prepared)) == {"styles", "styles.names", "wildcards"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("inc", "no style “inc”; did you mean “Ink”"),
        ("3d, nothing like it", "no style “nothing like it”"),
        ("# --- divider", "no style"),
        ('"open', "not closed"),
    ],
)
def test_a_style_that_is_not_there_is_told(host, names, message):
    with pytest.raises(InvalidField, match=message) as error:
        applied(host, names)
    assert error.value.field == "styles.names"


def test_styles_that_double_the_prompt_end_in_a_message(host):
    STORE.Store(host.data_dir).save(Style("twice", "{prompt} {prompt}"), None)
    with pytest.raises(InvalidField, match="longer than 20,000 characters"):
        applied(host, ",".join(["twice"] * 40), prompt="a" * 100)


# -- the axis ----------------------------------------------------------------------------------------


def test_the_styles_are_a_pick_list_of_the_grid(host, store):
    axis = kinds(axes.offered(host))["style"]
    known = Known((), ())
    assert axis.choices(known) == ("(no style)", "None", "Ink", "Two, lines", "3d")
    store.save(Style("new", "x"), None)
    assert "new" in axis.choices(known)
    base = request_for(plugins={"styles.names": "Ink"})
    cells = [axis.apply(base, value) for value in axis.parse('3d, "two, lines", (no style)', base, known)]
    prompts = [host.prepare(cell)[0].prompt for cell in cells]
    assert prompts == ["a fox, 3d render", "a fox\nsecond line", "a fox"]
    with pytest.raises(InvalidField, match="did you mean Ink"):
        axis.parse("Inkk", base, known)
    assert axis.overwrites == ("styles.names",), "as the setting's own axis"


def test_the_axis_is_there_also_while_the_file_cannot_be_read(host):
    (host.data_dir / "styles.csv").write_bytes(b"\xff")
    assert kinds(axes.offered(host))["style"].choices(Known((), ())) == ("(no style)",)


# -- pictures ----------------------------------------------------------------------------------------


def test_the_picture_is_that_of_the_longer_prompt(plugged_engine, engine):
    data_dir = plugged_engine.plugins.data_dir
    (data_dir / "styles.csv").write_text(A1111, "utf-8", newline="")

    def made(engine, **changes):
        view = engine.submit([request_for(seed=8, **changes)], "me").wait()
        assert view.state == "done", view.error
        return view.saved[0]

    styled = made(plugged_engine, plugins={"styles.names": "3d"})
    plain = made(engine, prompt="a fox, 3d render", negative_prompt="flat")
    assert np.array_equal(pixels(styled.path), pixels(plain.path))
    assert styled.request.template == "a fox"
    assert not np.array_equal(pixels(styled.path), pixels(made(engine).path))


# -- the tab -----------------------------------------------------------------------------------------


@pytest.fixture
def page(host, store):
    module = importlib.import_module("webui_plugins.styles.page")
    with gr.Blocks():
        return module.Page(store)


def test_a_style_is_written_opened_changed_and_deleted(page, store):
    page.keep_style(" Clay ", "{prompt}, clay", "metal", None)
    assert store.styles()["Clay"].prompt == "{prompt}, clay"
    opened = page.open("Clay")[3]
    page.keep_style("Clay", "clay", "", opened)
    assert store.styles()["Clay"].prompt == "clay"
    page.delete_style(store.styles()["Clay"])
    assert store.path.read_bytes() == A1111.encode()
    assert "Clay" not in store.styles()
    assert [path.name for path in store.path.parent.iterdir()] == ["styles.csv"], "something was left behind"


def test_nobody_overwrites_what_another_has_saved_meanwhile(page, store):
    mine, theirs = page.open("Ink")[3], page.open("Ink")[3]
    page.keep_style("Ink", "theirs", "", theirs)
    with pytest.raises(InvalidField, match="meanwhile"):
        page.keep_style("Ink", "mine", "", mine)
    with pytest.raises(InvalidField, match="already"):
        page.keep_style("Ink", "mine", "", None)
    with pytest.raises(InvalidField, match="meanwhile"):
        page.delete_style(mine)
    assert store.styles()["Ink"].prompt == "theirs"


@pytest.mark.parametrize("name", ["", "  ", "#note", "a\nb", "a\0", "x" * 101])
def test_odd_names_are_refused(page, store, name):
    with pytest.raises(InvalidField):
        page.keep_style(name, "x", "", None)
    assert store.path.read_bytes() == A1111.encode()


def test_the_preview_is_what_the_picture_will_get(page, host):
    prompt, negative = page.preview('ink drawing, {prompt}, "bold" lines', "colour", "a fox", "ugly")
    request = applied(host, "Ink", prompt="a fox", negative_prompt="ugly")
    assert (prompt, negative) == (request.prompt, request.negative_prompt)


def test_a_file_that_is_a_link_stays_one(tmp_path):
    """So that the file of another program can be shared with it."""
    (tmp_path / "theirs.csv").write_text(A1111, "utf-8", newline="")
    (tmp_path / "styles.csv").symlink_to(tmp_path / "theirs.csv")
    STORE.Store(tmp_path).save(Style("a", "b", "c"), None)
    assert os.path.islink(tmp_path / "styles.csv")
    assert (tmp_path / "theirs.csv").read_bytes() == A1111.encode() + b"a,b,c\r\n"
