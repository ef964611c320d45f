"""The Models tab as a person meets it: pick, switch, load, pin, release, LoRAs, and a download."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import free_port, start_server
from tests.browser.test_page import CONTROL, PROMPT, done, field, generate, saved
from tests.browser.test_plugins import tab
from tests.conftest import pixels
from tests.hub import FakeHub
from tests.test_ui_models import EVIL, stock, write_lora

QUICK = {"num_inference_steps": 2, "width": 64, "height": 64, "seed": 7}
MANY = 1000  # files


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub({"ann/fox": {"hub-lora.safetensors": b"", "old.ckpt": b"x"}}) as fake:
        yield fake


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stocked")


@pytest.fixture(scope="module")
def models(data_dir) -> Path:
    return stock(data_dir / "models")


@pytest.fixture(scope="module")
def address(data_dir, models, hub) -> Iterator[str]:
    """Of a server with some models, to which the fake hub is the hub."""
    fox = write_lora(data_dir / "hub-lora.safetensors", 9)
    hub.repos["ann/fox"]["hub-lora.safetensors"] = fox.read_bytes()
    os.environ["HF_ENDPOINT"] = hub.address
    port = free_port()
    server = start_server(data_dir, port, "--models-dir", str(models))
    del os.environ["HF_ENDPOINT"]
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    assert server.wait(20) == 0
    server.stdout.close()
    assert not (data_dir / "server.log").read_text()


def models_page(open_page, **options) -> Page:
    page = open_page(**options)
    tab(page, "Models")
    expect(row(page, "pocket-model")).to_be_visible()
    return page


def row(page: Page, name: str):
    """A file's line."""
    return page.locator("#models-shelf li").filter(has=page.get_by_role("heading", name=name, exact=True))


def seen(page: Page, *names: str) -> None:
    """Wait until the list shows these and no others, in this order."""
    expect(page.locator("#models-shelf li:not([hidden]) h3")).to_have_text(list(names))


def noted(kept: Path, words: str) -> bool:
    """Whether the server has written them down."""
    return kept.exists() and words in repr(json.loads(kept.read_text()))


def part(page: Page, name: str):
    """What is in memory of a model."""
    return page.locator("#models-memory .memory-parts li").filter(has_text=name).first


def test_picking_a_checkpoint_switches_the_form_and_the_next_picture(open_page, data_dir):
    page = models_page(open_page)
    expect(row(page, "pocket-model").locator("[data-do=use]")).to_have_text("In use")
    row(page, "tiny").locator("[data-do=use]").click()
    expect(row(page, "tiny").locator("[data-do=use]")).to_have_text("In use")
    expect(row(page, "pocket-model").locator("[data-do=use]")).to_have_text("Use")
    tab(page, "Text to image")
    assert (field(page, "width"), field(page, "height")) == ("64", "64")
    generate(page, "a fox", **QUICK)
    done(page)
    assert "Model: tiny" in page.locator("#infotext textarea").input_value()
    tab(page, "Models")
    expect(part(page, "tiny")).to_be_visible()
    expect(row(page, "tiny").locator("img")).to_be_visible()  # of the picture just made


def test_a_press_is_heard_though_the_list_comes_anew_meanwhile(open_page, models):
    """A window that gets the focus by the very press looks for new files."""
    page = models_page(open_page)
    row(page, "tiny").locator("[data-do=use]").hover()
    page.mouse.down()
    brought = write_lora(models / "Lora" / "a-first.safetensors", 5)
    page.evaluate("dispatchEvent(new Event('focus'))")
    expect(row(page, "a-first")).to_be_visible()
    page.mouse.up()
    expect(row(page, "tiny").locator("[data-do=use]")).to_have_text("In use")
    brought.unlink()


def test_a_model_is_loaded_pinned_and_released(open_page):
    page = models_page(open_page)
    memory = page.locator("#models-memory")
    memory.get_by_role("button", name="Release all").click()
    row(page, "tiny").locator("[data-do=load]").click()
    expect(row(page, "tiny").locator("[data-do=load]")).to_have_text("Loaded")
    part(page, "tiny").get_by_role("button", name="Pin").click()
    unpin = part(page, "tiny").get_by_role("button", name="Unpin")
    expect(unpin).to_have_attribute("aria-pressed", "true")
    expect(part(page, "tiny")).to_contain_text("s ago")  # which changes from now on, with each look
    unpin.hover()
    page.mouse.down()
    for _ in range(2):
        page.wait_for_event("response", lambda response: response.request.method == "POST")
    page.mouse.up()
    expect(part(page, "tiny").get_by_role("button", name="Pin")).to_have_attribute("aria-pressed", "false")
    memory.get_by_role("button", name="Release all").click()
    expect(memory.get_by_text("Nothing is in memory.")).to_be_visible()
    expect(row(page, "tiny").locator("[data-do=load]")).to_have_text("Load")
    expect(memory.get_by_role("meter").first).to_have_attribute("aria-valuenow", "0")
    memory.get_by_text("Loads and evictions").click()
    expect(memory.locator("ol li").first).to_contain_text("released")
    expect(memory.locator("ol")).to_contain_text("loaded")


def press_all(page: Page, buttons: str) -> None:
    """One after the other, faster than answers come."""
    page.evaluate(
        """async (buttons) => {
            const each = () => [...document.querySelectorAll(buttons)];
            const key = (button) => button.closest("[data-key]").dataset.key;
            for (const wanted of each().map(key)) {
                each().find((button) => key(button) === wanted)?.click();
                await new Promise((on) => setTimeout(on, 15));
            }
        }""",
        buttons,
    )


def test_buttons_pressed_faster_than_they_are_answered_are_all_heard(open_page):
    page = models_page(open_page)
    press_all(page, "#models-shelf [data-do=load]")
    for name in ("tiny", "pocket-model"):
        expect(row(page, name).locator("[data-do=load]")).to_have_text("Loaded")
    parts = page.locator("#models-memory .memory-parts li")
    count = parts.count()
    assert count > 1
    for words in ("Unpin", "Pin"):
        press_all(page, "#models-memory [data-do=pin]")
        expect(parts.get_by_role("button", name=re.compile(f"^{words} "))).to_have_count(count)
    press_all(page, "#models-memory li [data-do=release]")
    expect(page.locator("#models-memory").get_by_text("Nothing is in memory.")).to_be_visible()
    press_all(page, "#models-shelf li[data-key^=lora] [data-do=use]")
    tab(page, "Text to image")
    expect(page.locator(PROMPT)).to_have_value(re.compile("<lora:ember:1>"))
    expect(page.locator(PROMPT)).to_have_value(re.compile("<lora:ink:1>"))


def test_loras_go_into_the_prompt_and_are_listed_from_it(open_page, data_dir):
    page = open_page()
    page.fill(PROMPT, "a red apple")
    generate(page, "a red apple", **QUICK)
    done(page)
    plain = pixels(saved(data_dir, page))

    page.locator("#loras input").click()
    page.get_by_role("option", name="ink").click()
    expect(page.locator(PROMPT)).to_have_value("a red apple, ink style, brush <lora:ink:1>")
    page.fill(PROMPT, "a red apple <lora:ember:2>")
    expect(page.locator("#loras")).to_contain_text("ember")
    expect(page.locator("#loras")).not_to_contain_text("ink")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#infotext textarea")).to_have_value(re.compile("<lora:ember:2>"))
    done(page)
    assert not np.array_equal(pixels(saved(data_dir, page)), plain)

    tab(page, "Models")
    row(page, "ink").locator("[data-do=use]").click()
    tab(page, "Text to image")
    expect(page.locator(PROMPT)).to_have_value("a red apple, ink style, brush <lora:ember:2> <lora:ink:1>")
    page.locator("#loras").get_by_role("button", name="Remove").first.click()
    expect(page.locator(PROMPT)).to_have_value("a red apple, ink style, brush <lora:ink:1>")


def test_the_list_is_searched_filtered_sorted_and_noted_on(open_page, data_dir):
    page = models_page(open_page)
    shelf = page.locator("#models-shelf")
    shelf.get_by_label("Search the models").fill("brush")
    seen(page, "ink")
    expect(shelf.locator(".shelf-count")).to_contain_text("1 of ")
    shelf.get_by_label("Search the models").fill("no such thing")
    expect(shelf.get_by_text("Nothing here is like that.")).to_be_visible()
    shelf.get_by_role("button", name="Show everything").click()
    shelf.get_by_role("button", name="LoRAs").click()
    seen(page, "ember", "ink")

    row(page, "ink").get_by_role("button", name="Favourite").click()
    row(page, "ink").get_by_role("button", name="Note").click()
    page.keyboard.type(EVIL)
    page.keyboard.press("Enter")
    expect(row(page, "ink")).to_contain_text(EVIL)
    shelf.get_by_role("button", name="★ only").click()
    seen(page, "ink")
    while not noted(data_dir / "models.json", EVIL):
        page.wait_for_timeout(20)
    page.reload()
    tab(page, "Models")
    expect(row(page, "ink")).to_contain_text(EVIL)
    expect(row(page, "ink").get_by_role("button", name="Favourite")).to_have_attribute("aria-pressed", "true")
    row(page, "ink").get_by_role("button", name="Favourite").click()
    assert page.title() == "Diffusion Studio"


def test_files_that_come_and_go_are_there_after_a_refresh(open_page, models):
    page = models_page(open_page)
    refresh = page.locator("#models-shelf [data-do=refresh]")
    row(page, "ink").evaluate("row => row.classList.add('marked')")
    refresh.click()
    expect(refresh).to_be_enabled()  # also where nothing is new, so that nothing is drawn anew
    expect(page.locator("#models-shelf .marked")).to_have_count(1)
    write_lora(models / "Lora" / "fresh.safetensors", 5)
    refresh.click()
    expect(row(page, "fresh")).to_be_visible()
    (models / "Lora" / "fresh.safetensors").unlink()
    tab(page, "Text to image")
    tab(page, "Models")
    expect(row(page, "fresh")).to_have_count(0)


def test_files_that_came_while_one_was_away_are_there_but_disturb_no_note(open_page, models):
    page = models_page(open_page)
    come_back = "dispatchEvent(new Event('focus'))"
    write_lora(models / "Lora" / "brought.safetensors", 5)
    page.evaluate(come_back)
    expect(row(page, "brought")).to_be_visible()
    shutil.copytree(models / "tiny", models / "another")
    page.evaluate(come_back)
    expect(row(page, "another")).to_be_visible()
    page.locator("#field-model input").click()
    expect(page.get_by_role("option", name="Pocket (embedded): another")).to_be_visible()
    page.keyboard.press("Escape")
    shutil.rmtree(models / "another")
    row(page, "ink").get_by_role("button", name="Note on ink").click()
    note = row(page, "ink").get_by_role("textbox")
    note.fill("half a thought")
    (models / "Lora" / "brought.safetensors").unlink()
    page.evaluate(come_back)
    for _ in range(2):  # what is in memory is asked for again meanwhile, after what the list would ask
        page.wait_for_event("response", lambda response: response.request.method == "POST")
    expect(note).to_have_value("half a thought")
    note.press("Escape")
    page.evaluate(come_back)
    expect(row(page, "brought")).to_have_count(0)


def test_a_file_that_cannot_be_used_says_why_and_offers_nothing(open_page):
    page = models_page(open_page)
    expect(row(page, "page").locator(".wrong")).to_be_visible()
    expect(row(page, "page").locator("[data-do=use]")).to_have_count(0)


def test_a_model_is_fetched_from_the_hub_by_presses_alone(open_page, hub, models):
    page = models_page(open_page)
    page.locator("#hub > button").click()
    page.get_by_label("Model on the hub").fill("ann/fox")
    assert hub.asked == []
    page.get_by_role("button", name="Look up").click()
    expect(page.locator("#hub-files")).to_contain_text("Becomes the file hub-lora.safetensors")
    page.get_by_text("1 file left out").click()
    expect(page.get_by_role("row", name="old.ckpt a pickle, which may hold a program")).to_be_visible()
    assert not (models / "hub-lora.safetensors").exists()
    page.get_by_role("button", name="Download", exact=True).click()
    expect(page.locator("#hub-progress")).to_contain_text("Here: ann/fox: hub-lora.safetensors")
    expect(row(page, "hub-lora")).to_be_visible()

    page.get_by_label("Model on the hub").fill("ann/nothing")
    page.get_by_role("button", name="Look up").click()
    expect(page.get_by_text("The hub has no model ann/nothing")).to_be_visible()


def test_every_control_has_a_name_for_a_screen_reader(open_page):
    page = models_page(open_page)
    page.locator("#hub > button").click()
    page.get_by_text("Loads and evictions").click()
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in nodes if not n["ignored"] and CONTROL.fullmatch(n["role"]["value"])]
    assert [n for n in controls if not n.get("name", {}).get("value", "").strip()] == []


def test_a_thousand_files_answer_at_once(open_page):
    page = models_page(open_page)
    took = page.evaluate(
        """async (count) => {
            const root = document.createElement("div");
            root.className = "models-app shelf";
            document.querySelector("#models-shelf").append(root);
            const shelf = new studio.models.Shelf(root, {});
            const file = (i) => ({ key: `lora/x${i}`, kind: "lora", name: `x${i}`, family: "sd1", bytes: i,
                changed: i, words: ["word"], hash: "0123", star: false, note: "", use: true });
            const frame = () => new Promise(requestAnimationFrame);
            const begun = performance.now();
            const files = Array.from({ length: count }, (_, i) => file(i));
            shelf.receive({ files, hint: "", families: { sd1: "SD 1.x" },
                kinds: { lora: { title: "LoRA", plural: "LoRAs", sign: "~" } } });
            await frame();
            const shown = performance.now();
            const search = root.querySelector("input");
            search.value = "x999";
            search.dispatchEvent(new Event("input"));
            await frame();
            const seen = [...root.querySelectorAll("li:not([hidden]) h3")].map((name) => name.textContent);
            const found = performance.now();
            root.remove();
            return { seen, drawing: shown - begun, searching: found - shown };
        }""",
        MANY,
    )
    assert took["seen"] == ["x999"]
    assert took["searching"] < 500  # milliseconds, of a machine that has more to do; some 20 on an idle one
    assert took["drawing"] < 3000


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_tab_fits_a_phone_and_nothing_jumps(open_page, scheme):
    page = models_page(
        open_page, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme=scheme
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#hub > button").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    row(page, "ink").scroll_into_view_if_needed()
    page.evaluate("new Promise((drawn) => setTimeout(drawn, 300))")
    before = row(page, "ink").bounding_box()
    for _ in range(2):  # looks at what is in memory
        with page.expect_response(lambda response: "gradio_api" in response.url):
            pass
    assert row(page, "ink").bounding_box() == before
