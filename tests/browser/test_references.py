"""A reference picture as a person meets it: chosen, shown, used, found again, taken away."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import free_port, start_server
from tests.browser.test_page import done, generate, saved
from tests.test_references import picture, stock
from webui import infotext

QUICK = {"num_inference_steps": 2, "width": 64, "height": 64, "seed": 7}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("referring")


@pytest.fixture(scope="module")
def address(data_dir) -> Iterator[str]:
    """Of a server with adapters, on a model that takes them."""
    port = free_port()
    models = stock(data_dir / "models")
    server = start_server(data_dir, port, "--models-dir", str(models), "--model", "sd1")
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    assert server.wait(20) == 0
    server.stdout.close()


def choose(page: Page, name: str) -> None:
    page.locator("#field-reference_model input").click()
    page.get_by_role("option", name=name, exact=True).click()


def test_a_picture_is_a_prompt_and_comes_back_with_its_job(open_page, data_dir, tmp_path):
    page = open_page()
    page.get_by_role("button", name="Reference: a picture as a prompt").click()
    choose(page, "ip-sd1")
    picture().save(tmp_path / "reference.png")
    page.locator("#reference-file input[type=file]").set_input_files(tmp_path / "reference.png")
    shown = page.locator("#reference-shown img")
    expect(shown).to_be_visible()
    generate(page, "a fox", **QUICK)
    done(page)
    with Image.open(saved(data_dir, page)) as made:
        told = infotext.read(made.info["parameters"]).request()
    assert (told.reference_model, told.reference_scale) == ("ip-sd1", 0.6)
    page.reload()
    page.get_by_role("button", name="Reference: a picture as a prompt").click()
    expect(shown).to_be_visible()
    expect(page.locator("#field-reference_model input")).to_have_value("ip-sd1")
    page.get_by_role("button", name="Take the picture away").click()
    expect(shown).to_have_count(0)
    generate(page, "a fox", **QUICK)
    expect(page.get_by_text("needs a picture").first).to_be_visible()


def test_without_an_adapter_that_fits_there_is_nothing_of_it(open_page):
    page = open_page()
    expect(page.get_by_text("Reference: a picture as a prompt")).to_be_visible()
    page.locator("#field-model input").click()
    page.get_by_role("option", name="flux").click()
    expect(page.get_by_text("Reference: a picture as a prompt")).to_be_hidden()
