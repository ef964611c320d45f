"""Pictures from pictures: what a person draws on the screen is what the engine is asked for."""

import json
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect

from tests.browser.test_page import PROMPT, done, field, fill, saved
from tests.conftest import pixels
from webui.request import GenerationRequest

SHEET = "#canvas canvas"
QUICK = {"num_inference_steps": 2}
SMALL = {"width": 96, "height": 64}
ROTATED = 6  # EXIF: the camera was turned; shown, the picture's sides have changed places


@pytest.fixture
def wide(tmp_path) -> Path:
    return scene(tmp_path / "wide.png", (1500, 1000))


@pytest.fixture
def rotated(tmp_path) -> Path:
    """Stored as 1400x700, seen as 700x1400."""
    return scene(tmp_path / "rotated.jpg", (1400, 700), ROTATED)


def scene(path: Path, size: tuple[int, int], orientation: int = 1) -> Path:
    image = Image.new("RGB", size, (120, 170, 220))
    ImageDraw.Draw(image).ellipse((100, 100, 500, 500), fill=(220, 60, 40))
    exif = Image.Exif()
    exif[0x112] = orientation
    image.save(path, exif=exif)
    return path


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()
    expect(page.locator("#canvas")).to_be_visible()


def choose(page: Page, file: Path, size: str) -> None:
    """Put a file onto the canvas, which then says how large it is."""
    page.set_input_files("#source-file input[type=file]", file)
    expect(page.locator("#canvas .about")).to_contain_text(size)


def draw(page: Page, size: tuple[int, int], *points: tuple[float, float]) -> float:
    """Draw a line through points of the source, in its pixels; the brush's diameter in the same."""
    sheet = page.locator(SHEET)
    sheet.scroll_into_view_if_needed()
    box = sheet.bounding_box()
    scale = min(box["width"] / size[0], box["height"] / size[1])
    left = box["x"] + (box["width"] - size[0] * scale) / 2
    top = box["y"] + (box["height"] - size[1] * scale) / 2
    for i, (x, y) in enumerate(points):
        page.mouse.move(left + x * scale, top + y * scale, steps=5)
        if i == 0:
            page.mouse.down()
    page.mouse.up()
    return float(page.locator("#canvas .size output").inner_text().removesuffix(" px"))


def make(page: Page, prompt: str = "an apple", **fields: object) -> None:
    fill(page, **{**QUICK, **fields})
    page.fill(PROMPT, prompt)
    press(page)


def press(page: Page) -> None:
    """Make what the form says, and see it finished."""
    caption = page.locator("#caption .caption")
    before = caption.text_content() or ""
    page.keyboard.press("Control+Enter")
    expect(caption).not_to_have_text(before, timeout=60_000)
    done(page)


def asked(data_dir: Path) -> GenerationRequest:
    """The request that made the newest picture."""
    with sqlite3.connect(data_dir / "library.sqlite3") as db:
        (request,) = db.execute("SELECT request FROM pictures ORDER BY id DESC LIMIT 1").fetchone()
    return GenerationRequest(**json.loads(request))


def kept(data_dir: Path, digest: str) -> Image.Image:
    return Image.open(next((data_dir / "sources").glob(f"*/{digest}.png")))


def distance(size: tuple[int, int], start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """Of every pixel's middle from a line, (height, width) in pixels."""
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    (x0, y0), (x1, y1) = start, end
    along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
    along = along.clip(0, 1)
    return np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))


def check_is_line(mask: Image.Image, start, end, brush: float) -> None:
    """The mask is this line, to 2 pixels, and nothing else."""
    away, drawn = distance(mask.size, start, end), np.asarray(mask) > 127
    assert away[drawn].max() <= brush / 2 + 2
    assert drawn[away <= brush / 2 - 2].all()


@pytest.mark.parametrize(
    ("file", "size"), [("wide", (1500, 1000)), ("rotated", (700, 1400))], ids=["wide", "rotated"]
)
def test_what_is_drawn_on_the_screen_is_the_mask_that_is_used(open_page, data_dir, request, file, size):
    page = open_page()
    open_tab(page, "Inpainting")
    choose(page, request.getfixturevalue(file), f"{size[0]} × {size[1]}")
    line, other = ((150, 300), (550, 700)), ((200, 800), (600, 820))
    brush = draw(page, size, *line)
    width, height = size[0] // 160 * 16, size[1] // 160 * 16
    make(page, width=width, height=height)
    first = asked(data_dir)
    mask = kept(data_dir, first.mask_image)
    assert (first.task, mask.size, kept(data_dir, first.image).size) == ("inpaint", size, size)
    check_is_line(mask, *line, brush)

    page.get_by_role("button", name="Undo").click()
    draw(page, size, *other)
    make(page)
    check_is_line(kept(data_dir, asked(data_dir).mask_image), *other, brush)

    square = Image.new("L", (size[0] // 2, size[1] // 2))
    square.paste(255, (20, 20, 60, 80))
    square.save(data_dir / "mask.png")
    page.set_input_files("#mask-file input[type=file]", data_dir / "mask.png")
    expect(page.locator(SHEET)).to_have_attribute("aria-label", re.compile("Drawn: a mask"))
    make(page)
    mask = kept(data_dir, asked(data_dir).mask_image)
    assert mask.size == size
    left, top, right, bottom = mask.point(lambda level: 255 * (level > 127)).getbbox()
    assert np.abs(np.array((left, top, right, bottom)) - (40, 40, 120, 160)).max() <= 2


def test_a_sketch_on_a_blank_sheet_is_the_source(open_page, data_dir):
    page = open_page()
    open_tab(page, "Image to image")
    page.get_by_role("button", name="Blank sheet").click()
    expect(page.locator("#canvas .about")).to_contain_text("128 × 128")
    assert field(page, "width") == "128"
    brush = draw(page, (128, 128), (30, 64), (98, 64))
    make(page, strength=0.6)
    request = asked(data_dir)
    assert (request.task, request.strength, request.mask_image) == ("img2img", 0.6, "")
    sketch = pixels(kept(data_dir, request.image))
    away = distance((128, 128), (30, 64), (98, 64))
    assert (sketch[away <= brush / 2 - 2] == (0xD9, 0x77, 0x06)).all()
    assert (sketch[away > brush / 2 + 2] == 255).all()


def test_how_much_of_the_picture_survives_is_seen_as_the_slider_moves(open_page, wide):
    page = open_page()
    open_tab(page, "Image to image")
    choose(page, wide, "1500 × 1000")
    assert (field(page, "width"), field(page, "height")) == ("312", "208")
    expect(page.locator("#size-note")).to_have_text("1500 × 1000 becomes 312 × 208.")
    left = page.locator("#survival img")
    before = left.get_attribute("src")
    page.locator("#field-strength input[type=range]").focus()
    for key in ("ArrowLeft",) * 9:
        page.keyboard.press(key)
    expect(left).not_to_have_attribute("src", before)
    page.get_by_role("button", name="Size and colours").click()
    page.get_by_label("Resize by").first.fill("0.4")
    page.get_by_label("Resize by").first.blur()
    expect(page.locator("#size-note")).to_have_text("1500 × 1000 becomes 600 × 400.")


def test_inpainting_without_a_mask_asks_what_is_meant(open_page, data_dir, wide):
    page = open_page()
    open_tab(page, "Inpainting")
    choose(page, wide, "1500 × 1000")
    fill(page, **QUICK, **SMALL)
    page.get_by_role("button", name="Generate").click()
    question = page.get_by_text("Nothing is painted. Change the whole picture?")
    expect(question).to_be_visible()
    page.get_by_role("button", name="I will paint first").click()
    expect(question).to_be_hidden()
    expect(page.locator("#canvas .about")).to_contain_text("1500 × 1000")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("button", name="Change the whole picture").click()
    done(page)
    expect(question).to_be_hidden()
    assert asked(data_dir).task == "img2img"


def test_a_picture_goes_to_a_tab_and_its_settings_bring_source_and_mask_back(open_page, data_dir, wide):
    page = open_page()
    make(page, "a crab", seed=3, **SMALL)
    first = saved(data_dir, page)
    page.locator("#send").get_by_role("button", name="Inpainting").click()
    expect(page.get_by_role("tab", name="Inpainting")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#canvas .about")).to_contain_text("96 × 64")
    assert field(page, "prompt") == "a crab"
    draw(page, (96, 64), (40, 30), (60, 30))
    make(page, "a rose", seed=4)
    request, changed = asked(data_dir), pixels(saved(data_dir, page))
    assert np.array_equal(pixels(kept(data_dir, request.image)), pixels(first))
    assert (request.width, request.height) == (96, 64)

    page.reload()  # the tab, the source and the mask are found again
    expect(page.get_by_role("tab", name="Inpainting")).to_have_attribute("aria-selected", "true")
    expect(page.locator(SHEET)).to_have_attribute("aria-label", re.compile("96 × 64 .*: a mask"))

    page.get_by_role("button", name="Remove picture").click()
    page.get_by_role("tab", name="Text to image").click()
    fill(page, prompt="something else")
    page.get_by_role("button", name="Use these settings again").click()
    expect(page.locator(PROMPT)).to_have_value("a rose")
    expect(page.locator(SHEET)).to_have_attribute("aria-label", re.compile("96 × 64 .*: a mask"))
    press(page)
    assert asked(data_dir) == request
    assert np.array_equal(pixels(saved(data_dir, page)), changed)


def test_a_picture_is_extended_and_what_was_there_stays(open_page, data_dir):
    page = open_page()
    make(page, "a star", seed=3, **SMALL)
    first = pixels(saved(data_dir, page))
    page.locator("#send").get_by_role("button", name="Inpainting").click()
    expect(page.locator("#canvas .about")).to_contain_text("96 × 64")
    page.get_by_role("button", name="Extend the picture").click()
    page.get_by_role("button", name="All sides +64").click()
    expect(page.locator("#field-width input[type=number]")).to_have_value("224")
    page.get_by_role("button", name="Mask: edges").click()
    make(page, "a star", mask_blur=0)
    request, larger = asked(data_dir), pixels(saved(data_dir, page))
    assert (request.task, request.mask_image, larger.shape) == ("inpaint", "", (192, 224, 3))
    assert np.array_equal(larger[64:128, 64:160], first)


def test_a_mask_is_seen_as_it_will_be_used(open_page, wide):
    page = open_page()
    open_tab(page, "Inpainting")
    choose(page, wide, "1500 × 1000")
    page.get_by_role("button", name="The mask as it will be used").click()
    expect(page.locator("#mask-view figcaption")).to_contain_text("empty")
    draw(page, (1500, 1000), (300, 300), (600, 300))
    shown = page.locator("#mask-view img")
    whole = shown.get_attribute("src")
    page.get_by_label("Only masked").check()
    expect(shown).not_to_have_attribute("src", whole)
    expect(page.get_by_label("Padding").first).to_be_visible()
    assert (field(page, "width"), field(page, "height")) == ("128", "128")


def test_many_files_are_changed_and_a_broken_one_is_named(open_page, data_dir, tmp_path, wide):
    broken = tmp_path / "broken <b>.png"
    broken.write_bytes(wide.read_bytes()[:500])
    small = scene(tmp_path / "small.png", (80, 120))
    page = open_page()
    open_tab(page, "Image to image")
    page.get_by_role("button", name="Batch: many pictures").click()
    page.set_input_files("#batch-files input[type=file]", [small, broken, wide])
    report = page.locator("#batch-report")
    expect(report).to_contain_text("2 pictures ready.")
    expect(report.get_by_role("row")).to_have_count(2)
    expect(report.get_by_role("row").last).to_contain_text(re.compile("broken.*the file is damaged"))
    fill(page, prompt="a fish", **QUICK)
    page.get_by_role("button", name="Change all 2 of them").click()
    done(page, "2 pictures")
    expect(report).to_contain_text("2 of 2 changed")
    assert (asked(data_dir).width, asked(data_dir).height) == (312, 208)
    assert kept(data_dir, asked(data_dir).image).size == (1500, 1000)


def test_a_file_that_is_no_picture_is_refused_and_the_one_before_stays(open_page, tmp_path, wide):
    page = open_page()
    open_tab(page, "Image to image")
    choose(page, wide, "1500 × 1000")
    bad = tmp_path / "bad.png"
    bad.write_text("not a picture")
    page.set_input_files("#source-file input[type=file]", bad)
    expect(page.get_by_test_id("toast-body")).to_contain_text("Image: this is not a picture")
    expect(page.locator("#canvas .about")).to_contain_text("1500 × 1000")
    small = scene(tmp_path / "small.png", (80, 120))
    choose(page, small, "80 × 120")  # the next one is taken


def test_a_phone_sees_every_tab_without_scrolling_sideways(open_page, wide):
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for tab in ("Image to image", "Inpainting"):
        open_tab(page, tab)
        if tab == "Image to image":
            choose(page, wide, "1500 × 1000")
        closed = page.locator("#studio .label-wrap:visible:not(.open)")
        while closed.count():
            closed.first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(WIDER_THAN_THE_PHONE) == []


WIDER_THAN_THE_PHONE = """() => Array.from(document.querySelectorAll("button, input, textarea, p"))
    .filter((part) => part.checkVisibility() && part.getBoundingClientRect().right > 390)
    .map((part) => part.outerHTML)"""
