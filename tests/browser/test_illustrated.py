"""The Illustrated tab as a person meets it. One watched run serves the tests that only look at it."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.browser import test_img2img as sources
from tests.browser.test_page import CONTROL, LONG, done, fill, generate
from tests.conftest import pixels
from webui.flight import FlightRecord
from webui.ui.glossary import GLOSSARY, PANELS

PROMPT = "#field-prompt textarea"
SLIDER = "#illustrated .scrubber input"
QUICK = {"width": 64, "height": 64, "seed": 5}
# What of a panel is seen, without what does not hang on the call: pictures, drawings, numbers.
LOOKS = """(panel) => [
    ...[...panel.querySelectorAll("canvas")].map((canvas) => canvas.toDataURL()),
    ...[...panel.querySelectorAll("img")].map((image) => image.src),
    ...[...panel.querySelectorAll("svg[role=img]")].map((drawing) => drawing.innerHTML),
    panel.querySelector(".depth:not(.plain)").textContent,
].join("|")"""
ON_A_CALL = ("film", "path", "noise", "words", "guidance", "bands")


def open_tab(page: Page) -> None:
    page.get_by_role("tab", name="Illustrated").click()
    expect(page.locator("#watch-run")).to_be_visible()


def explained(page: Page) -> None:
    expect(page.locator("#illustrated .panels")).to_be_visible(timeout=60_000)


def panel(page: Page, name: str):
    return page.locator(f".illustrated .panel.{name}")


def looks(page: Page, names=ON_A_CALL) -> dict[str, str]:
    return {name: panel(page, name).evaluate(LOOKS) for name in names}


def canvas(page: Page, selector: str) -> np.ndarray:
    """(h, w, 3) of what a canvas holds."""
    size, data = page.locator(selector).evaluate(
        """(canvas) => [[canvas.height, canvas.width],
            [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]]"""
    )
    return np.array(data, np.uint8).reshape(*size, 4)[:, :, :3]


@pytest.fixture(scope="module")
def watched(browser, address) -> Iterator[Page]:
    """A page with a run that was watched; what was complained of, and asked of others, is kept."""
    page = browser.new_context(viewport={"width": 1366, "height": 900}).new_page()
    page.set_default_timeout(20_000)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: message.type == "error" and said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.get_by_text("Ready on cpu").wait_for(timeout=60_000)
    open_tab(page)
    page.evaluate(
        """() => {
            const root = document.querySelector("#illustrated");
            window.seen = { frames: 0, headlines: new Set(), cancel: false };
            new MutationObserver(() => {
                const frames = root.querySelectorAll(".frames img").length;
                window.seen.frames = Math.max(window.seen.frames, frames);
                window.seen.headlines.add(root.querySelector(".live .headline").textContent);
                window.seen.cancel ||= !document.querySelector("#watch-stop").disabled;
            }).observe(root, { subtree: true, childList: true, attributes: true, characterData: true });
        }"""
    )
    fill(page, seed=5, num_inference_steps=12)
    page.fill(PROMPT, "a purple hat on blue background")
    page.keyboard.press("Control+Enter")
    explained(page)
    yield page
    page.context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


# The run


def test_the_film_grows_while_the_picture_is_made(watched):
    seen = watched.evaluate("({ ...window.seen, headlines: [...window.seen.headlines] })")
    assert seen["frames"] >= 3
    assert "Making the picture" in seen["headlines"]
    assert seen["cancel"]
    expect(watched.locator("#illustrated .live")).to_be_hidden()
    expect(watched.locator("#watch-run")).to_be_enabled()
    expect(watched.locator("#watch-stop")).to_be_disabled()


def test_every_panel_is_there_and_every_check_holds(watched):
    for name, text in PANELS.items():
        expect(panel(watched, name).locator("h3")).to_have_text(text.title)
    for name in ("film", "words", "guidance", "bands", "arrays", "time"):
        assert panel(watched, name).locator(".held").count() >= 1, name
    assert watched.locator("#illustrated .broken").count() == 0
    expect(panel(watched, "guidance").locator(".checks li").first).to_have_text(
        re.compile(r"✓ holds.*error .* of at most ")
    )


def test_the_finished_picture_is_in_the_gallery_too(watched, data_dir):
    watched.get_by_role("tab", name="Text to image").click()
    expect(watched.get_by_test_id("detailed-image")).to_be_visible()
    open_tab(watched)


# The scrubber


def test_the_keyboard_scrubs_and_every_panel_follows(watched):
    page = watched
    slider = page.locator(SLIDER)
    slider.focus()
    page.keyboard.press("Home")
    first = looks(page)
    for key, said in (
        ("ArrowRight", "Call 2 of 12"),
        ("End", "Call 12 of 12"),
        ("ArrowLeft", "Call 11 of 12"),
    ):
        page.keyboard.press(key)
        expect(page.locator("#illustrated .said")).to_have_text(said)
        now = looks(page)
        assert {name for name in ON_A_CALL if now[name] == first[name]} == set(), key
        first = now
    assert slider.get_attribute("aria-valuetext").startswith("Call 11 of 12, step 11, timestep ")
    expect(panel(page, "film").locator("[aria-current=true]")).to_have_attribute(
        "aria-label", "Call 11 of 12"
    )


def test_play_goes_to_the_end_and_the_button_jumps_there(watched):
    page = watched
    page.locator(SLIDER).fill("8")
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(page.locator("#illustrated .said")).to_have_text("Call 12 of 12")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    page.locator(SLIDER).fill("0")
    page.get_by_role("button", name="Jump to the end").click()
    expect(page.locator("#illustrated .said")).to_have_text("Call 12 of 12")


def test_a_press_on_a_curve_or_a_thumbnail_goes_to_that_call(watched):
    page = watched
    panel(page, "film").get_by_role("button", name="Call 3 of 12").click()
    expect(page.locator(SLIDER)).to_have_value("2")
    drawing = panel(page, "noise").locator("svg[role=img]")
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    drawing.click(position={"x": box["width"] - 16, "y": 80})
    expect(page.locator(SLIDER)).to_have_value("11")


# Words


def test_a_word_shows_where_it_is_looked_at(watched):
    page = watched
    maps = set()
    for word in ("hat", "blue"):
        chip = panel(page, "words").get_by_role("button", name=word, exact=True)
        chip.click()
        expect(chip).to_have_attribute("aria-pressed", "true")
        maps.add(canvas(page, ".panel.words .over").tobytes())
        expect(panel(page, "words").locator(".over")).to_have_attribute(
            "aria-label", f"Where the net looks for {word}"
        )
    panel(page, "words").get_by_role("button", name="Mean of all calls").click()
    maps.add(canvas(page, ".panel.words .over").tobytes())
    assert len(maps) == 3
    panel(page, "words").get_by_role("button", name="At this call").click()


def test_a_place_says_what_it_looks_at_by_pointer_and_by_keyboard(watched):
    page = watched
    field, where = panel(page, "words").locator(".field"), panel(page, "words").locator(".where")
    field.scroll_into_view_if_needed()
    field.hover(position={"x": 10, "y": 10})
    expect(where).to_have_text("Row 1, column 1 looks at")
    rows = panel(page, "words").locator(".shares li")
    shares = [row.locator(".value").inner_text() for row in rows.all()]
    total = sum(float(share.split()[0]) for share in shares if share[0].isdigit())
    assert 97 < total < 103
    expect(rows.last.locator(".name")).to_have_text("start, end and padding")
    page.mouse.move(5, 5)
    expect(where).to_have_text("The whole picture looks at")
    field.focus()
    page.keyboard.press("ArrowLeft")
    expect(where).to_have_text(re.compile(r"Row \d, column \d looks at"))
    page.keyboard.press("Escape")
    expect(where).to_have_text("The whole picture looks at")


# Guidance


def test_another_scale_is_drawn_at_once_and_asks_nothing_of_the_server(watched, data_dir):
    page = watched
    page.locator(SLIDER).fill("4")
    before = canvas(page, ".panel.guidance .guided")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.get_by_label("CFG scale, of this call alone").fill("11")
    after = canvas(page, ".panel.guidance .guided")
    assert (before != after).any()
    expect(panel(page, "guidance").locator("figcaption", has_text="Guided")).to_contain_text(
        "s = 11, this call alone"
    )
    assert [url for url in requests if not url.startswith("data:")] == []
    (path,) = sorted((data_dir / "flights").glob("*.npz"), key=lambda file: file.stat().st_mtime)[-1:]
    record = FlightRecord.from_bytes(path.read_bytes())
    assert record.uncond is not None
    a, s = record.signal[4].astype(float), record.noise[4].astype(float)
    said = record.uncond[4].astype(float) + 11 * (record.cond[4].astype(float) - record.uncond[4])
    x = record.latents[4].astype(float)
    x0 = a * x - s * said if record.prediction_type == "v_prediction" else (x - s * said) / a
    rgb = np.einsum("rc,chw->hwr", record.to_rgb[:, :-1].astype(float), x0) + record.to_rgb[:, -1]
    expected = np.clip((rgb + 1) * 127.5, 0, 255)
    assert np.abs(after - expected).max() < 1.01
    page.get_by_role("button", name="As it was made").click()
    assert (canvas(page, ".panel.guidance .guided") == before).all()


# Depths and terms


def test_the_depth_is_for_all_panels_and_remembered(watched):
    page = watched
    for depth, name in (
        ("numbers", "Numbers"),
        ("formula", "Formula"),
        ("plain", "Plain"),
        ("numbers", "Numbers"),
    ):
        page.get_by_role("button", name=name, exact=True).click()
        for one in PANELS:
            shown = panel(page, one).locator(".depth:visible")
            expect(shown).to_have_count(1)
            expect(shown).to_have_class(f"depth {depth}")
            expect(shown).not_to_have_text(re.compile(r"[{}?]|\[\["))
    assert page.evaluate("localStorage.getItem('studio-depth')") == "numbers"
    page.get_by_role("button", name="Plain", exact=True).click()


def test_a_term_is_explained_to_the_pointer_the_keyboard_and_who_listens(watched):
    page = watched
    term = panel(page, "film").locator(".depth.plain .term", has_text="scheduler")
    tip = page.locator("#illustrated .tip")
    term.hover()
    expect(tip).to_have_text(GLOSSARY["scheduler"])
    page.mouse.move(5, 5)
    expect(tip).to_be_hidden()
    term.focus()
    expect(tip).to_be_visible()
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    described = page.locator(f"#{term.get_attribute('aria-describedby')}")
    assert described.text_content() == GLOSSARY["scheduler"]


def test_drawings_have_names_and_tables(watched):
    page = watched
    for drawing in page.locator("#illustrated :is(svg, canvas)[role=img]").all():
        assert drawing.get_attribute("aria-label")
    table = panel(page, "noise").locator("details table")
    panel(page, "noise").locator("summary").click()
    expect(table.locator("tbody tr")).to_have_count(12)
    controls = page.locator("#illustrated").aria_snapshot()
    unnamed = [
        line for line in controls.splitlines() if CONTROL.search(line) and re.search(r"- \w+:?$", line)
    ]
    assert unnamed == []


def test_the_script_is_copied(watched):
    page = watched
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    panel(page, "script").get_by_role("button", name="Copy").click()
    expect(panel(page, "script").get_by_role("button", name="Copied")).to_be_visible()
    assert "purple hat" in page.evaluate("navigator.clipboard.readText()")


# Files


def test_the_record_can_be_downloaded(watched):
    with watched.expect_download() as download:
        watched.get_by_role("button", name="Flight record (.npz)").click()
    record = FlightRecord.from_bytes(Path(download.value.path()).read_bytes())
    assert record.request.prompt == "a purple hat on blue background"
    assert download.value.suggested_filename.endswith(".npz")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_page_that_is_exported_opens_from_a_disk_and_draws(watched, browser, tmp_path, scheme):
    with watched.expect_download() as download:
        watched.get_by_role("button", name="As a page (.html)").click()
    path = tmp_path / "flight.html"
    download.value.save_as(path)
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    context.set_offline(True)
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    expect(page.locator(".panels")).to_be_visible()
    before = looks(page)
    page.locator(".scrubber input").press("ArrowRight")
    after = looks(page)
    assert {name for name in ON_A_CALL if before[name] == after[name]} == set()
    page.get_by_role("button", name="Formula").click()
    panel(page, "words").get_by_role("button", name="blue").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []


def test_a_record_from_elsewhere_is_opened(watched, open_page, tmp_path):
    with watched.expect_download() as download:
        watched.get_by_role("button", name="Flight record (.npz)").click()
    path = tmp_path / "friend.npz"
    download.value.save_as(path)
    broken = tmp_path / "broken.npz"
    broken.write_bytes(path.read_bytes()[:1000])
    page = open_page()
    open_tab(page)
    for file in (broken, path):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Open a flight record").click()
        chooser.value.set_files(file)
        if file is broken:
            expect(page.get_by_text("broken.npz is no flight record, or a damaged one")).to_be_visible()
            expect(page.locator("#illustrated .panels")).to_have_count(0)
    explained(page)
    expect(page.locator("#illustrated .prompt")).to_have_text("a purple hat on blue background")
    expect(page.get_by_text("Opened from friend.npz; it is not kept here.")).to_be_visible()
    expect(page.get_by_role("button", name="Flight record (.npz)")).to_have_count(0)
    for each in (page, watched):
        each.locator(SLIDER).press("Home")
    same = ("film", "path", "noise", "bands")
    assert looks(page, same) == looks(watched, same)


# Again, and on other pages


def test_a_reloaded_page_shows_the_last_record_again(watched):
    page = watched
    page.get_by_role("button", name="Formula").click()
    seen = ("film", "words", "guidance", "bands")

    def at_one_call() -> dict[str, str]:
        panel(page, "words").get_by_role("button", name="hat", exact=True).click()
        page.mouse.move(5, 5)
        page.locator(SLIDER).fill("6")
        expect(panel(page, "bands").locator(".frame")).to_be_visible()
        return looks(page, seen)

    before = at_one_call()
    page.reload()
    page.get_by_text("Ready on cpu").wait_for()
    open_tab(page)
    explained(page)
    expect(panel(page, "film").locator(".depth.formula")).to_be_visible()  # as it was left
    assert at_one_call() == before
    page.get_by_role("button", name="Plain", exact=True).click()


def test_a_picture_of_the_gallery_is_made_again_bit_for_bit(open_page, data_dir):
    page = open_page()
    generate(page, "a green frog", num_inference_steps=4, **QUICK)
    done(page)
    first = data_dir / "outputs" / page.locator("#caption code").inner_text()
    page.get_by_role("button", name="Illustrate", exact=True).click()
    expect(page.get_by_role("tab", name="Illustrated")).to_have_attribute("aria-selected", "true")
    explained(page)
    expect(page.locator("#illustrated header .prompt")).to_have_text("a green frog")
    newest = max((data_dir / "outputs").rglob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    assert newest != first
    assert (pixels(newest) == pixels(first)).all()


@pytest.mark.parametrize("tool", ["Image to image", "Inpainting"])
def test_what_starts_from_a_picture_is_watched_too(open_page, data_dir, tmp_path, tool):
    page = open_page()
    sources.open_tab(page, tool)
    sources.choose(page, sources.scene(tmp_path / "source.png", (600, 600)), "600")
    if tool == "Inpainting":
        sources.draw(page, (600, 600), (200, 200), (400, 300))
    generate(page, "a fox", num_inference_steps=6, strength=0.8, **QUICK)
    done(page)
    first = data_dir / "outputs" / page.locator("#caption code").inner_text()
    open_tab(page)
    expect(page.locator("#watch-task input")).to_have_value(tool)
    page.keyboard.press("Control+Enter")
    explained(page)
    newest = max((data_dir / "outputs").rglob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    assert newest != first
    assert (pixels(newest) == pixels(first)).all()
    assert page.locator("#illustrated .broken").count() == 0
    assert page.locator("#illustrated .held").count() > 3


def test_esc_cancels_and_a_wrong_field_is_said(open_page):
    page = open_page()
    open_tab(page)
    fill(page, **LONG)
    page.fill(PROMPT, "a castle")
    page.keyboard.press("Control+Enter")
    page.locator("#illustrated .frames img").first.wait_for()
    page.keyboard.press("Escape")
    headline = page.locator("#illustrated .headline")
    expect(headline).to_have_text("Cancelled.")
    expect(page.locator("#illustrated .start")).to_be_visible()
    fill(page, width=100)
    page.locator("#watch-run").click()
    expect(headline).to_have_text(re.compile("^Width: "))


def test_the_empty_state_offers_a_prompt_and_makes_it(open_page):
    page = open_page()
    open_tab(page)
    fill(page, num_inference_steps=3, **QUICK)
    page.get_by_role("button", name=re.compile("^Watch “")).click()
    explained(page)
    expect(page.locator("#illustrated header .prompt")).to_have_text("a red apple, 3d")


def test_without_guidance_it_is_said(open_page):
    page = open_page()
    open_tab(page)
    fill(page, num_inference_steps=2, guidance_scale=1, **QUICK)
    page.fill(PROMPT, "a red apple")
    page.keyboard.press("Control+Enter")
    explained(page)
    expect(panel(page, "guidance")).to_contain_text("Nothing was guided: at CFG scale 1")
    assert page.locator("#illustrated .broken").count() == 0


def test_a_wide_picture_and_what_lies_over_it_are_wide(open_page):
    page = open_page()
    open_tab(page)
    fill(page, num_inference_steps=2, width=128, height=64)
    page.fill(PROMPT, "a red apple")
    page.keyboard.press("Control+Enter")
    explained(page)
    for part in (".film .big", ".words .field", ".words .over", ".guidance .guided"):
        box = page.locator(f"#illustrated {part}").first.bounding_box()
        assert box["width"] / box["height"] == pytest.approx(2, rel=0.02), part


def test_what_a_person_types_is_text(open_page):
    page = open_page()
    open_tab(page)
    evil = "<img src=x onerror=\"document.title='owned'\"> <b>fox</b>"
    fill(page, num_inference_steps=2, **QUICK)
    page.fill(PROMPT, evil)
    page.keyboard.press("Control+Enter")
    explained(page)
    expect(page.locator("#illustrated header .prompt")).to_have_text(evil)
    assert page.locator("#illustrated b", has_text=re.compile("^fox$")).count() == 0
    assert page.title() != "owned"


def test_on_a_phone_the_explanation_begins_where_the_preview_was(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True)
    open_tab(page)
    fill(page, num_inference_steps=40, **QUICK)
    page.fill(PROMPT, "a red apple")
    page.locator("#watch-run").click()
    page.locator("#illustrated .frames img").first.wait_for()
    page.evaluate(
        "scrollTo(0, document.querySelector('#illustrated').getBoundingClientRect().top + scrollY - 20)"
    )
    assert page.locator("#illustrated .live").is_visible()
    explained(page)
    assert page.locator("#illustrated header").bounding_box()["y"] == pytest.approx(20, abs=60)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_on_a_phone_nothing_is_wider_than_the_screen(open_page, scheme):
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    open_tab(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    fill(page, num_inference_steps=3, **QUICK)
    page.fill(PROMPT, "a red apple, " * 8)
    page.locator("#watch-run").click()
    explained(page)
    for depth in ("Plain", "Numbers", "Formula"):
        page.get_by_role("button", name=depth, exact=True).click()
        page.evaluate(
            "document.querySelectorAll('#illustrated details').forEach((each) => { each.open = true; })"
        )
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        edges = page.locator("#illustrated .panel").evaluate_all(
            "(panels) => panels.map((panel) => panel.getBoundingClientRect().right)"
        )
        assert max(edges) <= 390
