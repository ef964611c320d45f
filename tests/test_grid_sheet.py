"""What leaves the house: drawn sheets, the ZIP of cells, the table of numbers."""

import csv
import io
import itertools
import json
import shutil
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tests.conftest import pixels
from tests.grids import BASE, axis, planned, results_of
from webui import images
from webui.errors import InvalidField
from webui.grid import lettering, sheet
from webui.grid.measures import MEASURES
from webui.grid.plan import AxisSpec, Grid, from_infotext
from webui.grid.results import Results, name, table, write_zip
from webui.grid.values import written
from webui.request import GenerationRequest

LONG = "a very long prompt, " * 30
THREE_AXES = axis("scheduler", "all"), axis("prompt", f"fox\n{LONG}\n雪の狐"), axis("model", "all")


def overlaps(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def check_layout(found: sheet.Sheet) -> None:
    """Nothing lies outside or over another thing, and every line fits its box."""
    boxes = [one.box for one in (*found.texts, *found.slots)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= found.width
        assert 0 <= top < bottom <= found.height
    assert not [pair for pair in itertools.combinations(boxes, 2) if overlaps(*pair)]
    for text in found.texts:
        pen = lettering.Pen(text.size)
        left, top, right, bottom = text.box
        assert max(map(pen.width, text.lines)) <= right - left
        assert len(text.lines) * pen.line <= bottom - top


SIZES = [(8, 8), (64, 64), (64, 200), (300, 64), (512, 512)]
words = st.text(
    st.characters(codec="utf-8", exclude_characters='"', exclude_categories=("C", "Z")), min_size=1
)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    """A picture of each size."""
    folder = tmp_path_factory.mktemp("sizes")
    for size in SIZES:
        Image.new("RGB", size).save(folder / f"{size[0]}x{size[1]}.png")
    return {size: folder / f"{size[0]}x{size[1]}.png" for size in SIZES}


@given(
    st.sampled_from(SIZES), st.sampled_from(SIZES), st.integers(1, 5), st.lists(st.lists(words, min_size=1))
)
@settings(max_examples=20, deadline=None)
def test_nothing_on_a_sheet_overlaps_at_any_size(files, usual, odd, per_cell, labels):
    prompts = "\n".join(f'"{" ".join(label)}"' for label in [["a fox"], *labels[:4]])
    plan = planned(
        axis("scheduler", "all"), axis("prompt", prompts), axis("clip_skip", "1, 2"), per_cell=per_cell
    )
    pictures = {cell.index: files[odd if cell.index[0] == 1 else usual] for cell in plan.cells}
    for found in sheet.sheets(Results(plan, pictures)):
        check_layout(found)


def test_a_long_title_of_rows_has_room_where_columns_have_none(files):
    plan = planned(
        AxisSpec(), axis("negative_prompt_replace", "a, b"), base=BASE.replace(negative_prompt="a")
    )
    pictures = {cell.index: files[8, 8] for cell in plan.cells}
    (found,) = sheet.sheets(Results(plan, pictures))
    check_layout(found)
    assert "Negative prompt search/replace" in [" ".join(text.lines) for text in found.texts]


def test_a_cell_stands_under_the_middle_of_its_label(files):
    plan = planned(axis("scheduler", "all"))
    (found,) = sheet.sheets(Results(plan, {cell.index: files[8, 8] for cell in plan.cells}))
    labels = {text.lines: text.box for text in found.texts}
    for slot in found.slots:
        label = labels[(plan.x[slot.index[0]].label,)]
        assert abs((label[0] + label[2]) - (slot.box[0] + slot.box[2])) <= 1


def test_every_picture_is_drawn_once_a_page_and_once_together(tmp_path):
    results = results_of(planned(*THREE_AXES, per_cell=2), tmp_path)
    *pages, together = sheet.sheets(results)
    assert [page.name for page in pages] == ["page-1", "page-2", "page-3"]
    assert together.name == "all-pages"
    everything = list(results.indices())
    assert [slot.index for page in pages for slot in page.slots] == everything
    assert [slot.index for slot in together.slots] == everything


def test_pictures_lie_pixel_for_pixel_in_their_slots(tmp_path):
    results = results_of(planned(*THREE_AXES[:2]), tmp_path)
    (found,) = sheet.sheets(results)
    drawn = pixels(sheet.paint(found, results))
    assert drawn.shape == (found.height, found.width, 3)
    for slot in found.slots:
        left, top, right, bottom = slot.box
        assert (drawn[top:bottom, left:right] == pixels(results.pictures[slot.index])).all()
    for text in found.texts:
        left, top, right, bottom = text.box
        assert (drawn[top:bottom, left:right] < 128).any(), text.lines


def test_a_sheet_says_what_does_not_vary_and_only_that(tmp_path):
    base = BASE.replace(negative_prompt="blurry", mask_blur=9.0)
    results = results_of(planned(axis("guidance_scale", "1, 2"), base=base), tmp_path, model="pocket-model")
    (found,) = sheet.sheets(results)
    said = " ".join(line for text in found.texts for line in text.lines)
    assert "a red fox in the snow Negative prompt: blurry Model: pocket-model" in said
    for words in ("Scheduler: DPM++ 2M", "Steps: 20", "Seed: 7", "Size: 64x64", "Mask blur: 9"):
        assert words in said
    assert "CFG scale:" not in said
    assert "Clip skip" not in said  # at its default
    (found,) = sheet.sheets(results_of(planned(axis("guidance_scale", "1, 2")), tmp_path))
    assert not [line for text in found.texts for line in text.lines if "Negative" in line]


def test_missing_cells_are_blank_and_say_why(tmp_path):
    def check(request: GenerationRequest) -> None:
        if request.scheduler == "Heun":
            raise InvalidField("scheduler", "not today", "Scheduler")

    plan = planned(axis("scheduler", "all"), base=BASE.replace(width=256, height=128), check=check)
    gone, lost = (0, 0, 0, 0), (2, 0, 0, 0)
    results = results_of(plan, tmp_path, without=[lost], reasons={lost: "Out of memory"})
    results.pictures[gone].write_bytes(b"no picture")
    (found,) = sheet.sheets(results)
    drawn = pixels(sheet.paint(found, results))
    for slot in found.slots:
        left, top, right, bottom = slot.box
        assert (right - left, bottom - top) == (256, 128)
        inside = drawn[top:bottom, left:right]
        assert np.median(inside) == 236
        assert inside.min() < 150  # its reason
    assert results.reason(lost) == "Out of memory"
    assert results.reason((1, 0, 0, 0)) == "Scheduler: not today"
    assert results.reason(gone) == "Not computed yet"


@pytest.mark.parametrize(("max_side", "max_pixels"), [(900, 10**9), (10**6, 400_000), (500, 300_000)])
def test_a_sheet_over_the_limit_is_cut_between_cells(tmp_path, max_side, max_pixels):
    plan = planned(axis("guidance_scale", "1-9"), axis("clip_skip", "1-8"), axis("eta", "0, 1"))
    results = results_of(plan, tmp_path)
    found = [one for one in sheet.sheets(results, max_side, max_pixels) if one.name.startswith("all-pages")]
    assert len(found) > 1
    assert found[0].name == f"all-pages-part-{1:0{len(str(len(found)))}}-of-{len(found)}"
    assert sorted(slot.index for one in found for slot in one.slots) == sorted(results.indices())
    for one in found:
        check_layout(one)
        assert max(one.width, one.height) <= max_side
        assert one.width * one.height <= max_pixels
        said = {line for text in one.texts for line in text.lines}
        assert {"CFG scale", "Clip skip"} <= said  # each part has its own legend


def test_a_cell_larger_than_the_limit_is_drawn_whole(tmp_path):
    results = results_of(planned(axis("seed", "1, 2")), tmp_path, size=lambda cell: (300, 300))
    found = list(sheet.sheets(results, max_side=100))
    assert len(found) == 2
    assert all(one.slots[0].box[2] - one.slots[0].box[0] == 300 for one in found)


def test_a_written_sheet_restores_its_axes(tmp_path):
    plan = planned(*THREE_AXES, base=BASE.replace(model="pocket-model"), per_cell=2)
    results = results_of(plan, tmp_path)
    paths = sheet.write(results, tmp_path)
    assert [path.name for path in paths] == ["page-1.png", "page-2.png", "page-3.png", "all-pages.png"]
    for path, found in zip(paths, sheet.sheets(results), strict=True):
        assert from_infotext(images.read_infotext(path)) == plan.grid
        assert Image.open(path).size == (found.width, found.height)


LANGUAGES = "Café Ärger 3×3 – “naïve” Ế Ελλάδα Привет שלום مرحبا 雪の狐 ねこ、カエル 한국어 ５０％"


def test_letters_of_many_languages_are_drawn_each_in_its_own_shape():
    assert lettering.drawable(LANGUAGES) == LANGUAGES
    assert all(map(lettering.is_drawn, LANGUAGES))
    pen, shapes = lettering.Pen(20), {}
    for letter in "éÄ×–“ïẾλПשم雪狐ねエ한５🦊":
        image = Image.new("L", (60, 40), 255)
        pen.draw(ImageDraw.Draw(image), 10, 5, letter, (0,))
        shapes.setdefault(image.tobytes(), []).append(letter)
        assert lettering.is_drawn(letter) is (letter != "🦊")
    assert [letters for letters in shapes.values() if len(letters) > 1] == []
    assert Image.new("L", (60, 40), 255).tobytes() not in shapes


def test_what_is_drawn_is_as_wide_as_it_was_measured():
    pen = lettering.Pen(20)
    image = Image.new("L", (1200, 40), 255)
    pen.draw(ImageDraw.Draw(image), 0, 0, LANGUAGES, (0,))
    right = np.flatnonzero((np.asarray(image) < 128).any(axis=0)).max()
    assert pen.width(LANGUAGES) - 5 <= right <= pen.width(LANGUAGES)


def test_what_cannot_be_drawn_on_a_line_is_made_plain():
    assert lettering.drawable("one\r\ntwo\tthree\x00\u202efour") == "one two threefour"
    assert lettering.drawable("cafe\u0301 𝕬") == "café A"
    assert lettering.drawable("🦊") == "🦊"  # drawn as a box


def test_labels_that_would_be_boxes_are_told_apart(tmp_path):
    results = results_of(planned(axis("prompt", "🦊\n🦝\n雪")), tmp_path)
    (found,) = sheet.sheets(results)
    said = [line for text in found.texts for line in text.lines]
    assert {"1: 🦊", "2: 🦝", "雪"} <= set(said)
    assert any("Boxes are characters" in line for line in said)


@given(st.text(st.sampled_from("ab WM漢"), max_size=80), st.integers(5, 200), st.integers(1, 40))
def test_wrapped_lines_lose_no_word_until_the_ellipsis(text, width, most):
    pen = lettering.Pen(13)
    lines = pen.wrap(text, width, most)
    assert len(lines) <= most
    assert all(pen.width(line) <= width for line in lines if len(line) > 1 and line != "…")
    told = "".join(lines).replace(" ", "")
    if lines and lines[-1].endswith("…"):
        assert "".join(text.split()).startswith(told[:-1])
    else:
        assert told == "".join(text.split())


# ZIP and table


def test_the_zip_holds_every_picture_byte_for_byte(tmp_path):
    (tmp_path / "in").mkdir()
    plan = planned(
        axis("prompt", "../../etc/passwd\nCON\n<b>\n" + LONG), axis("scheduler", "all"), per_cell=2
    )
    results = results_of(plan, tmp_path / "in", without=[(0, 0, 0, 1)])
    results.pictures[1, 0, 0, 0].unlink()
    write_zip(results, tmp_path / "grid.zip")
    with zipfile.ZipFile(tmp_path / "grid.zip") as archive:
        names = archive.namelist()
        assert len(names) == len(set(map(str.casefold, names))) == 24 - 2 + 2
        for index, path in results.pictures.items():
            if path.exists():
                assert archive.read(name(results, index)) == path.read_bytes()
        assert Grid.from_dict(json.loads(archive.read("grid.json"))) == plan.grid
        assert archive.read("numbers.csv") == table(results)
    for one in names:
        assert len(one.encode()) < 200
        assert not set(one) & set('<>:"/\\|?*')
    pictures = [one for one in names if one.endswith(".png")]
    assert pictures == sorted(pictures)  # as the grid is read


def test_the_zip_is_streamed(tmp_path, monkeypatch):
    results = results_of(planned(axis("seed", "1-3")), tmp_path)
    path = results.pictures[0, 0, 0, 0]
    path.write_bytes(b"x" * 30_000_000)
    read = []
    copy = shutil.copyfileobj

    def watched(source, target, length):
        read.append(length)
        copy(source, target, length)

    monkeypatch.setattr(shutil, "copyfileobj", watched)
    write_zip(results, tmp_path / "grid.zip")
    assert read
    assert max(read) <= 2**20


def test_the_table_has_a_row_for_every_cell(tmp_path):
    plan = planned(axis("scheduler", "all"), axis("guidance_scale", "1, 2.5"))
    lost, star = (2, 1, 0, 0), frozenset({(0, 0, 0, 0)})
    results = results_of(plan, tmp_path, without=[lost], reasons={lost: "Out of memory"}, stars=star)
    data = table(results)
    assert data.startswith(b"\xef\xbb\xbf")
    head, *rows = csv.reader(io.StringIO(data.decode("utf-8-sig")))
    labels = [measure.label for measure in MEASURES.values()]
    axes = ["X: Scheduler", "Y: CFG scale"]
    assert head == [*axes, "Picture", "Seed", *labels, "Star", "File", "Why there is none"]
    assert len(rows) == 6
    first, last = dict(zip(head, rows[0], strict=True)), dict(zip(head, rows[-1], strict=True))
    assert [first[key] for key in (*axes, "Seed", "Star")] == ["Euler", "1", "7", "*"]
    assert float(first["Seconds"]) == 0.5
    assert first["Net calls"] == "20"
    assert (last["File"], last["Sharpness"], last["Why there is none"]) == ("", "", "Out of memory")


def test_no_cell_of_the_table_is_run_as_a_formula(tmp_path):
    evil = ["=1+1", '+cmd|" /C calc"!A0', "-2+3", "@SUM(A1)", "\t=1", " =1", "＝1", "fox", "-5"]
    results = results_of(planned(axis("prompt", written(evil))), tmp_path)
    _, *rows = csv.reader(io.StringIO(table(results).decode("utf-8-sig")))
    assert [row[0] for row in rows] == [f"'{text}" for text in evil[:7]] + ["fox", "-5"]
