"""A ControlNet as a person meets it: chosen, given a picture, seen, used, found again, taken away."""

from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests import tiny
from tests.browser.conftest import free_port, start_server
from tests.browser.test_page import PROMPT, done, drop, field, generate, saved
from tests.test_controls import control_net, picture
from webui import infotext

QUICK = {"num_inference_steps": 2, "width": 96, "height": 64, "seed": 7}
SECTION = "ControlNet: a picture gives the outlines"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("controlling")


@pytest.fixture(scope="module")
def address(data_dir) -> Iterator[str]:
    """Of a server with a ControlNet, on a model that takes it."""
    models = data_dir / "models"
    tiny.folder("sd1", models / "sd1")
    tiny.folder("sdxl-refiner", models / "refiner")
    (models / "ControlNet").mkdir()
    unet = diffusers.UNet2DConditionModel.from_pretrained(models / "sd1" / "unet")
    for name in ("edges", "lines"):
        control_net(unet, models / "ControlNet" / name)
    port = free_port()
    server = start_server(data_dir, port, "--models-dir", str(models), "--model", "sd1")
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    assert server.wait(20) == 0
    server.stdout.close()


def choose(page: Page, name: str, option: str) -> None:
    page.locator(f"#field-{name} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def give(page: Page, file: Path, stem: str = "control") -> None:
    page.locator(f"#{stem}-file input[type=file]").set_input_files(file)


def test_a_picture_guides_another_and_comes_back_with_its_job(open_page, data_dir, tmp_path):
    page = open_page()
    page.get_by_role("button", name=SECTION).click()
    choose(page, "control_model", "edges")
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was turned
    picture(size=(60, 120)).save(tmp_path / "turned.jpg", exif=exif)
    give(page, tmp_path / "turned.jpg")
    shown = page.locator("#control-shown img")
    expect(shown).to_be_visible()
    before = shown.get_attribute("src")
    choose(page, "control_preprocessor", "Canny")
    expect(shown).not_to_have_attribute("src", before)
    page.locator("#field-control_end input[type=number]").fill("0.5")
    generate(page, "a fox", **QUICK)
    done(page)
    expect(shown).to_have_js_property("naturalWidth", 96)  # as the net is shown it
    file = saved(data_dir, page)
    with Image.open(file) as made:
        told = infotext.read(made.info["parameters"]).request()
    assert (told.control_model, told.control_preprocessor, told.control_end) == ("edges", "Canny", 0.5)

    page.reload()
    page.get_by_role("button", name=SECTION).click()
    expect(shown).to_be_visible()
    expect(page.locator("#field-control_model input")).to_have_value("edges")
    page.get_by_role("button", name="Take the picture away").click()
    expect(shown).to_have_count(0)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("a ControlNet needs a picture to look at").first).to_be_visible()

    choose(page, "control_model", "None")
    page.fill(PROMPT, "")
    drop(page, file)  # what made it fills the form, the control picture with it
    expect(page.locator(PROMPT)).to_have_value("a fox")
    expect(page.locator("#field-control_model input")).to_have_value("edges")
    expect(shown).to_be_visible()
    assert field(page, "control_end") == "0.5"


def test_another_can_be_added_once_there_is_one(open_page, data_dir, tmp_path):
    page = open_page()
    page.get_by_role("button", name=SECTION).click()
    another = page.get_by_role("button", name="Another ControlNet")
    expect(another).to_have_count(0)
    picture().save(tmp_path / "one.png")
    for stem, name in (("control", "edges"), ("control2", "lines")):
        choose(page, f"{stem}_model", name)
        give(page, tmp_path / "one.png", stem)
        expect(page.locator(f"#{stem}-shown img")).to_be_visible()
        expect(page.get_by_label("Control picture 2", exact=True)).to_be_hidden()
        another.last.click()
    generate(page, "a fox", **QUICK)
    done(page)
    with Image.open(saved(data_dir, page)) as made:
        told = infotext.read(made.info["parameters"]).request()
    assert [unit.model for unit in told.controls] == ["edges", "lines"]
    page.reload()
    page.get_by_role("button", name=SECTION).click()
    another.first.click()
    expect(page.locator("#control2-shown img")).to_be_visible()
    expect(page.locator("#field-control2_model input")).to_have_value("lines")


def test_what_is_no_picture_is_refused_in_words_and_without_a_fitting_model_there_is_nothing(
    open_page, tmp_path
):
    page = open_page()
    page.get_by_role("button", name=SECTION).click()
    (tmp_path / "letter.png").write_text("Dear all,")
    give(page, tmp_path / "letter.png")
    expect(page.get_by_text("Control picture: this is not a picture").first).to_be_visible()
    expect(page.locator("#control-file")).not_to_contain_text("letter")
    expect(page.locator("#control-shown img")).to_have_count(0)
    choose(page, "model", "refiner")
    expect(page.get_by_text(SECTION)).to_be_hidden()
