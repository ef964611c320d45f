"""The page as a person meets it: a real server, a real model, a real browser. Waits for what it expects."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.conftest import pixels
from webui.images import read_infotext

PROMPT = "#field-prompt textarea"
CONTROL = re.compile("button|checkbox|combobox|link|listbox|radio|slider|spinbutton|tab|textbox")
LONG = {"num_inference_steps": 150, "width": 320, "height": 320}  # about half a minute


def fill(page: Page, **fields: object) -> None:
    for field, value in fields.items():
        box = page.locator(f"#field-{field} :is(textarea, input[type=number])").first
        box.fill(str(value))
        box.blur()


def generate(page: Page, prompt: str, **fields: object) -> None:
    fill(page, **fields)
    page.fill(PROMPT, prompt)
    page.keyboard.press("Control+Enter")


def done(page: Page, pictures: str = "1 picture") -> None:
    expect(page.locator("#stage .headline")).to_have_text(f"Done: {pictures}", timeout=60_000)


def saved(data_dir: Path, page: Page) -> Path:
    name = page.locator("#caption code").inner_text()
    return data_dir / "outputs" / name


def field(page: Page, name: str) -> str:
    return page.locator(f"#field-{name} :is(textarea, input)").first.input_value()


def drop(page: Page, file: Path) -> None:
    """Drop a file on the prompt, as from the desktop."""
    transfer = page.evaluate_handle(
        """([name, data]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
            return transfer;
        }""",
        [file.name, base64.b64encode(file.read_bytes()).decode()],
    )
    page.dispatch_event(PROMPT, "drop", {"dataTransfer": transfer})


def test_a_prompt_becomes_a_picture_before_ones_eyes(open_page, data_dir):
    page = open_page()
    page.evaluate(
        """() => {
            const stage = document.querySelector("#stage");
            window.previews = new Set();
            new MutationObserver(() => {
                const preview = document.querySelector("#stage .preview img");
                if (preview) window.previews.add(preview.src);
            }).observe(stage, { subtree: true, childList: true, attributes: true });
        }"""
    )
    generate(page, "a red apple, 3d", seed=7)
    done(page)
    assert page.evaluate("window.previews.size") >= 3
    expect(page.locator("#stage .preview img")).to_have_count(0)
    expect(page.locator("#stage .details")).to_have_text(re.compile("pictures/s · peak memory .* · cpu"))
    expect(page.locator("#infotext textarea")).to_have_value(re.compile("a red apple, 3d\n(.|\n)*Seed: 7,"))

    kept = saved(data_dir, page)
    expect(page.get_by_test_id("detailed-image")).to_have_js_property("naturalWidth", 128)
    with page.expect_download() as download:
        page.get_by_label("Download").click()
    assert Path(download.value.path()).read_bytes() == kept.read_bytes()
    assert read_infotext(kept) == page.locator("#infotext textarea").input_value()


def test_a_click_shows_the_picture_full_size_and_esc_goes_back(open_page):
    page = open_page()
    generate(page, "a penguin", num_inference_steps=3)
    done(page)
    picture = page.get_by_test_id("detailed-image")
    small = picture.bounding_box()
    picture.click()
    expect(page.locator("#gallery")).to_have_class(re.compile("fullscreen"))
    page.wait_for_function("document.querySelector('#gallery').clientHeight >= innerHeight - 2")
    assert picture.bounding_box()["height"] > 1.2 * small["height"]
    page.keyboard.press("Escape")
    expect(page.locator("#gallery")).not_to_have_class(re.compile("fullscreen"))


def test_pictures_that_arrive_leave_the_focus_where_it_is(open_page):
    page = open_page(viewport={"width": 1366, "height": 500})
    generate(page, "a crab", batch_count=2, num_inference_steps=3)
    done(page, "2 pictures")
    page.reload()  # the pictures arrive together
    page.get_by_role("button", name="Thumbnail 2 of 2").wait_for()
    page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    assert page.evaluate("[document.activeElement.tagName, scrollY]") == ["BODY", 0]


def test_esc_cancels_and_the_next_picture_comes(open_page):
    page = open_page()
    generate(page, "a castle", **LONG)
    page.locator("#stage .preview img").wait_for()
    page.keyboard.press("Escape")
    expect(page.locator("#stage .headline")).to_have_text("Cancelled.")
    expect(page.get_by_role("button", name="Cancel")).to_be_disabled()
    generate(page, "a castle", num_inference_steps=3, width=128, height=128)
    done(page)


def test_a_reloaded_page_finds_its_running_job_again(open_page):
    page = open_page()
    generate(page, "a lion, flat style", **{**LONG, "num_inference_steps": 40})
    page.locator("#stage .preview img").wait_for()
    page.reload()
    page.locator("#stage .preview img").wait_for()
    expect(page.locator(PROMPT)).to_have_value("a lion, flat style")
    assert field(page, "num_inference_steps") == "40"
    assert field(page, "seed") == "-1"
    done(page)
    page.get_by_test_id("detailed-image").wait_for()


def test_a_killed_browser_frees_its_place_in_the_queue(open_page):
    first, second, third = open_page(), open_page(), open_page()
    generate(first, "a house", **LONG)
    first.locator("#stage .preview img").wait_for()
    headline = "#stage .headline"
    generate(second, "a house")
    expect(second.locator(headline)).to_have_text("Waiting: next in the queue")
    generate(third, "a house", num_inference_steps=3)
    expect(third.locator(headline)).to_have_text("Waiting: place 2 in the queue")
    second.context.close()
    expect(third.locator(headline)).to_have_text("Waiting: next in the queue")
    first.get_by_role("button", name="Cancel").click()
    done(third)


def test_several_presses_wait_their_turn(open_page):
    page = open_page()
    generate(page, "first", **LONG)
    page.locator("#stage .preview img").wait_for()
    generate(page, "second", num_inference_steps=3, width=128, height=128)
    expect(page.locator("#stage .details")).to_contain_text("1 more waiting")
    page.get_by_role("button", name="Cancel").click()
    done(page)
    expect(page.locator("#infotext textarea")).to_have_value(re.compile("^second\n"))


def test_a_batch_is_looked_through_and_one_of_it_is_made_again(open_page, data_dir):
    page = open_page()
    generate(page, "a crown", seed=100, batch_count=3, num_inference_steps=4, guidance_scale=2.5)
    done(page, "3 pictures")
    page.get_by_role("button", name="Thumbnail 3 of 3").click()
    expect(page.locator("#infotext textarea")).to_have_value(re.compile("Seed: 102,"))
    third = pixels(saved(data_dir, page))

    fill(page, prompt="something else", seed=-1, guidance_scale=9)
    page.get_by_role("button", name="Use these settings again").click()
    expect(page.locator(PROMPT)).to_have_value("a crown")
    assert [field(page, name) for name in ("seed", "batch_count", "guidance_scale")] == ["102", "1", "2.5"]
    page.keyboard.press("Control+Enter")
    done(page)
    assert np.array_equal(pixels(saved(data_dir, page)), third)


def test_a_picture_dropped_on_the_prompt_fills_the_form(open_page, tmp_path):
    picture = tmp_path / "from elsewhere.png"
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text(
        "parameters",
        "a bus\nNegative prompt: red\nSteps: 9, Sampler: Euler a, CFG scale: 3.5, Seed: 5, Size: 192x128",
    )
    Image.new("RGB", (8, 8)).save(picture, pnginfo=text)
    page = open_page()
    drop(page, picture)
    expect(page.locator(PROMPT)).to_have_value("a bus")
    names = (
        "negative_prompt",
        "num_inference_steps",
        "scheduler",
        "guidance_scale",
        "seed",
        "width",
        "height",
    )
    assert [field(page, name) for name in names] == ["red", "9", "Euler a", "3.5", "5", "192", "128"]


def test_a_file_that_was_never_uploaded_is_not_read(open_page, data_dir):
    owner, thief = open_page(), open_page()
    generate(owner, "a secret", num_inference_steps=2)
    done(owner)
    answer = thief.evaluate(
        """async (path) => {
            const config = await (await fetch("config")).json();
            const fn_index = config.dependencies.find((d) => d.api_name === "fill_from_file").id;
            const file = { path, meta: { _type: "gradio.FileData" } };
            const body = JSON.stringify({ fn_index, data: [file], session_hash: "thief" });
            const headers = { "Content-Type": "application/json" };
            await fetch("gradio_api/queue/join", { method: "POST", headers, body });
            return (await fetch("gradio_api/queue/data?session_hash=thief")).text();
        }""",
        str(saved(data_dir, owner)),
    )
    assert '"success":false' in answer
    assert "a secret" not in answer
    log = data_dir / "server.log"
    assert "it was not uploaded by a user" in log.read_text()
    log.write_text("")  # of all tests, only this one may leave something there


def test_what_a_text_holds_and_is_not_here_is_said_without_becoming_markup(open_page):
    page = open_page()
    page.fill(PROMPT, "a bus\nSteps: 9, Sampler: <i>Odd</i>, CFG scale: 3.5, Seed: 5")
    page.get_by_role("button", name="Fill from text").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("Scheduler: <i>Odd</i> is not here")
    expect(page.locator(PROMPT)).to_have_value("a bus")
    assert field(page, "scheduler") == "DPM++ 2M"


def test_a_wrong_value_is_named_and_the_form_stays(open_page):
    page = open_page()
    generate(page, "<b>kept</b>", seed=-5)
    expect(page.locator("#stage .headline")).to_have_text("Seed: must be at least -1")
    expect(page.locator(PROMPT)).to_have_value("<b>kept</b>")
    expect(page.get_by_role("button", name="Cancel")).to_be_disabled()


def test_settings_are_helped_along(open_page):
    page = open_page()
    fill(page, width=192, height=128)
    page.get_by_role("button", name="Swap sides").click()
    expect(page.locator("#field-height input[type=number]")).to_have_value("192")
    page.get_by_label("16:9").check()
    expect(page.locator("#field-width input[type=number]")).to_have_value("208")
    page.evaluate("document.querySelector('#field-width input[type=range]').step = 32")  # another model's
    assert page.evaluate("studio.shape('16:9', 128, 192)") == [224, 128]
    page.get_by_role("button", name="a red apple, 3d").click()
    expect(page.locator(PROMPT)).to_have_value("a red apple, 3d")
    expect(page.locator("#prompt-box .tokens")).to_have_text(re.compile(r"^[1-9]\d*/\d+$"))
    page.get_by_label("Scheduler").click()
    page.get_by_role("option", name="DDIM", exact=True).click()
    page.get_by_label("Sigma schedule").click()
    expect(page.get_by_role("option", name="Karras")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_for_a_screen_reader(open_page, scheme):
    page = open_page(color_scheme=scheme)
    generate(page, "a star", num_inference_steps=2)
    done(page)
    for group in ("#hires", "#variation", "#more"):
        page.locator(f"{group} > button").click()
    expect(page.locator("#field-clip_skip input[type=number]")).to_be_visible()
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in nodes if not n["ignored"] and CONTROL.fullmatch(n["role"]["value"])]
    assert len(controls) > 40
    assert [n for n in controls if not n.get("name", {}).get("value", "").strip()] == []


def test_a_phone_sees_everything_without_scrolling_sideways(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for group in ("#hires", "#variation", "#more"):
        page.locator(f"{group} > button").click()
    expect(page.locator("#field-clip_skip input[type=number]")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert (
        page.evaluate(
            """() => Array.from(document.querySelectorAll("button, input, textarea, p"))
            .filter((part) => part.checkVisibility() && part.getBoundingClientRect().right > 390)
            .map((part) => part.outerHTML)"""
        )
        == []
    )
    page.fill(PROMPT, "a rose")
    page.get_by_role("button", name="Generate").click()  # within reach, though the page is scrolled down
    done(page)
    expect(page.locator("#gallery")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
