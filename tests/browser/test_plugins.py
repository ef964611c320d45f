"""Plugins as a person meets them: a server with a plugin of one's own beside those that come along."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import free_port, start_server
from tests.browser.test_page import CONTROL, PROMPT, done, field, fill, generate, saved
from tests.conftest import pixels
from tests.test_plugins import write

TOY = """
@hookimpl
def settings():
    return [
        Setting("dark", 0.0, "Darkness", minimum=0, maximum=1),
        Setting("turned", False, "Turned"),
        Setting("tint", "None", "Tint", choices=("None", "Red")),
        Setting("words", "", "Words"),
    ]

@hookimpl
def postprocess(image, settings):
    image = image.point(lambda value: int(value * (1 - settings.dark)))
    return image.rotate(180) if settings.turned else image

@hookimpl
def tab():
    def build():
        import gradio as gr

        said = gr.Textbox(label="Say it")
        loud = gr.Textbox(label="Loudly", interactive=False)
        said.submit(lambda text: text.upper(), said, loud)
    return Tab("Toy's tab", build)
"""
EVIL = "<img src=x onerror=document.title=1>"
QUICK = {"num_inference_steps": 2, "width": 64, "height": 64, "seed": 7}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("plugged")


@pytest.fixture(scope="module")
def address(data_dir) -> Iterator[str]:
    """Of a server with the toy, and with a plugin that is not loaded."""
    write(data_dir / "mine" / "toy", TOY, f'name = "The toy"\ndescription = "Darkens pictures. {EVIL}"')
    write(data_dir / "mine" / "needy", "", 'requires = ["nothing-that-there-is"]')
    port = free_port()
    server = start_server(data_dir, port, "--plugins-dir", str(data_dir / "mine"))
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    assert server.wait(20) == 0
    server.stdout.close()
    assert not (data_dir / "server.log").read_text()


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def card(page: Page, title: str):
    """A plugin on the list, with its switch."""
    return page.locator(".extension").filter(has=page.get_by_role("heading", name=title, exact=True))


def section(page: Page):
    return page.locator("#plugin-toy > button")


def test_the_list_says_what_there_is_and_what_is_wrong(open_page):
    page = open_page()
    tab(page, "Extensions")
    toy, needy = card(page, "The toy"), card(page, "needy")
    expect(toy.locator(".state")).to_have_text("On")
    expect(toy).to_contain_text(f"Darkens pictures. {EVIL}")
    expect(toy).to_contain_text("settings, tab, postprocess")
    toy.get_by_text("4 settings").click()
    expect(toy.get_by_role("row", name="Darkness toy.dark a number from 0 to 1; neutral: 0")).to_be_visible()
    expect(needy.locator(".state")).to_contain_text("pip install 'nothing-that-there-is'")
    expect(needy.get_by_role("button")).to_have_count(0)
    expect(page.locator("#studio")).to_be_hidden()
    assert page.title() == "Diffusion Studio"


def test_keys_do_nothing_where_there_is_nothing_to_generate(open_page):
    page = open_page()
    page.fill(PROMPT, "a fox")
    tab(page, "Extensions")
    page.keyboard.press("Control+Enter")
    tab(page, "Text to image")
    expect(page.locator("#stage .headline")).to_have_text(
        "Ready when you are: write a prompt and press Generate."
    )


def test_a_setting_changes_the_picture_and_comes_back_with_it(open_page, data_dir):
    page = open_page()
    generate(page, "a red apple", **QUICK)
    done(page)
    plain = pixels(saved(data_dir, page))

    expect(section(page)).not_to_contain_text("in use")
    section(page).click()
    page.get_by_label("Turned").check()
    expect(section(page)).to_contain_text("The toy · in use")
    fill(page, **{"toy-dark": 0.5})
    page.keyboard.press("Control+Enter")
    expect(page.locator("#infotext textarea")).to_have_value(re.compile("toy 1.0"))
    done(page)
    assert np.array_equal(pixels(saved(data_dir, page)), plain[::-1, ::-1] // 2)

    page.locator("#plugin-toy-reset").click()
    expect(section(page)).not_to_contain_text("in use")
    assert field(page, "toy-dark") == "0"
    page.get_by_role("button", name="Use these settings again").click()
    expect(section(page)).to_contain_text("in use")
    expect(page.get_by_label("Turned")).to_be_checked()
    assert field(page, "toy-dark") == "0.5"


def test_a_plugins_tab_has_the_page_to_itself_and_works(open_page):
    page = open_page()
    tab(page, "Toy's tab")
    expect(page.locator("#studio")).to_be_hidden()
    page.get_by_label("Say it").fill("hello")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Loudly")).to_have_value("HELLO")
    tab(page, "Text to image")
    expect(page.locator("#studio")).to_be_visible()
    expect(page.get_by_label("Say it")).to_be_hidden()


def test_a_plugin_that_is_switched_off_is_gone_until_it_is_switched_on(open_page):
    page, other = open_page(), open_page()
    tab(page, "Extensions")
    toy = card(page, "The toy")
    toy.get_by_role("button", name="Switch off").click()
    expect(toy.locator(".state")).to_have_text("Off")
    expect(page.get_by_role("tab", name="Toy's tab")).to_have_count(0)
    tab(page, "Text to image")
    expect(section(page)).to_be_hidden()
    expect(page.locator("#plugin-guidance")).to_be_visible()

    section(other).click()
    fill(other, **{"toy-dark": 0.5})
    generate(other, "a fox", **QUICK)
    expect(other.locator("#stage .headline")).to_contain_text("the plugin The toy is not on")
    other.reload()
    expect(section(other)).to_be_hidden()
    expect(other.get_by_role("tab", name="Toy's tab")).to_have_count(0)

    tab(page, "Extensions")
    toy.get_by_role("button", name="Switch on").click()
    expect(toy.locator(".state")).to_have_text("On")
    expect(page.get_by_role("tab", name="Toy's tab")).to_be_visible()
    other.reload()
    expect(section(other)).to_be_visible()


def test_every_control_of_a_plugin_has_a_name_for_a_screen_reader(open_page):
    page = open_page()
    section(page).click()
    expect(page.get_by_label("Darkness").first).to_be_visible()
    for name in ("Text to image", "Extensions"):
        tab(page, name)
        nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
        controls = [n for n in nodes if not n["ignored"] and CONTROL.fullmatch(n["role"]["value"])]
        assert [n for n in controls if not n.get("name", {}).get("value", "").strip()] == []


def test_many_tabs_and_the_list_fit_a_phone(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.get_by_role("tab").count() >= 6
    for name in ("Text to image", "Toy's tab", "Extensions"):
        tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(card(page, "The toy").get_by_role("button")).to_be_visible()
