"""The comparison grid as a person meets it. One finished grid serves the tests that only look at it."""

import re
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.test_page import CONTROL, PROMPT, drop, field, fill
from tests.conftest import pixels
from webui.grid.axes import kinds
from webui.images import read_infotext
from webui.ui.choosing import STARTS

HEADLINE = "#grid .headline"
QUICK = {"num_inference_steps": 2, "width": 64, "height": 64, "seed": 5}
SLOW = {"num_inference_steps": 25, "seed": 5}  # a few seconds on a busy machine


def open_tab(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#grid-run")).to_be_visible()


def axis(page: Page, name: str, kind: str, values: str) -> None:
    """Choose what varies, and the typed values."""
    expect(page.get_by_role("option")).to_have_count(0)  # a list that closes fades away, options and all
    page.locator(f"#axis-{name}-kind input").click()
    page.get_by_role("option", name=kind, exact=True).click()
    box = page.locator(f"#axis-{name}-text textarea")
    expect(box).to_be_visible(visible=kind != "None")
    if kind != "None":
        (name,) = (name for name, each in kinds().items() if each.label == kind)
        expect(box).to_have_value(STARTS.get(name, ""))  # the answer of the server, which would come too late
        box.fill(values)
        box.blur()


def ended(page: Page, words: str) -> None:
    expect(page.locator(HEADLINE)).to_have_text(words, timeout=60_000)


def cell(page: Page, x: int, y: int, z: int = 0):
    return page.locator(f'#grid .shot[data-at="{x},{y},{z},0"]')


@pytest.fixture(scope="module")
def finished(browser, address) -> Iterator[Page]:
    """A page with a grid of Steps x CFG scale that has run, and the pictures seen meanwhile."""
    page = browser.new_context(viewport={"width": 1366, "height": 900}).new_page()
    page.set_default_timeout(20_000)
    page.goto(address)
    page.get_by_text("Ready on cpu").wait_for(timeout=60_000)
    open_tab(page)
    page.evaluate(
        """() => {
            window.seen = {}; // cell -> at which look it was there first; one look may find several
            let looks = 0;
            const look = () => {
                looks += 1;
                for (const shot of document.querySelectorAll("#grid .shot.there")) {
                    window.seen[shot.dataset.at] ??= looks;
                }
                if (document.querySelector("#grid .shot.running img")) window.previewed = true;
            };
            const everything = { subtree: true, childList: true, attributes: true };
            new MutationObserver(look).observe(document.querySelector("#grid"), everything);
        }"""
    )
    fill(page, prompt="a red apple", width=64, height=64, seed=5)
    axis(page, "x", "Steps", "2, 3, 25")
    axis(page, "y", "CFG scale", "1, 2, 8")
    expect(page.locator("#grid-plan")).to_contain_text(re.compile(r"Cells\s*9 \(3 × 3\)"))
    page.keyboard.press("Control+Enter")
    ended(page, "Done: 9 of 9 pictures")
    yield page
    page.context.close()


def test_the_grid_fills_cell_by_cell_with_its_corners_first(finished):
    seen = finished.evaluate("window.seen")
    corners = [seen.pop(place) for place in ("0,0,0,0", "2,0,0,0", "0,2,0,0", "2,2,0,0")]
    assert len(seen) == 5
    assert max(corners) <= min(seen.values())
    assert len({*corners, *seen.values()}) >= 3
    assert finished.evaluate("window.previewed")
    expect(finished.locator("#grid-plan")).to_contain_text(re.compile(r"Known already\s*9"))
    heads = finished.locator("#grid thead th")
    assert heads.all_inner_texts() == ["2", "3", "25"]


def test_hovering_tells_settings_and_time(finished):
    cell(finished, 2, 1).hover()
    tip = finished.locator("#grid .grid-tip")
    for part in ("Steps25", "CFG scale2", "Net calls25", "Seconds", "Seed5"):
        expect(tip).to_contain_text(part)


def test_a_click_shows_it_full_size_with_neighbours_on_the_arrow_keys(finished):
    page = finished
    cell(page, 1, 1).locator(".open").click()
    viewer = page.get_by_role("dialog", name="Picture, full size")
    title, picture = viewer.locator("h3"), viewer.locator(".shown img")
    expect(title).to_have_text("Steps 3, CFG scale 2")
    sources = {picture.get_attribute("src")}
    for key, words in (
        ("ArrowRight", "Steps 25, CFG scale 2"),
        ("ArrowRight", "Steps 25, CFG scale 2"),  # the edge
        ("ArrowUp", "Steps 25, CFG scale 1"),
        ("ArrowLeft", "Steps 3, CFG scale 1"),
    ):
        page.keyboard.press(key)
        expect(title).to_have_text(words)
        sources.add(picture.get_attribute("src"))
    assert len(sources) == 4
    assert picture.bounding_box()["height"] > 600
    for _ in range(12):  # the focus cannot leave the dialog for the page
        page.keyboard.press("Tab")
        assert page.evaluate(
            "!document.activeElement.closest('#page') || !!document.activeElement.closest('dialog')"
        )
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(cell(page, 1, 0).locator(".open")).to_be_focused()
    expect(page.locator(HEADLINE)).to_have_text("Done: 9 of 9 pictures")


def test_the_large_picture_tells_the_settings_inside_its_file_to_copy(finished, data_dir):
    page = finished
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    cell(page, 0, 2).locator(".open").click()
    viewer = page.get_by_role("dialog", name="Picture, full size")
    for key in ("ArrowRight", "ArrowUp"):  # each picture its own
        page.keyboard.press(key)
        name = viewer.locator("dl > div", has_text="Saved as").locator("dd").inner_text()
        text = read_infotext(data_dir / "outputs" / name)
        assert text is not None
        assert text.startswith("a red apple\nSteps: 3,")
        expect(viewer.locator("pre")).to_have_text(text)
        viewer.locator("[data-do=copy]").click()
        expect(viewer.locator("[data-do=copy]")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == text
    page.keyboard.press("Escape")


def test_the_keyboard_goes_from_picture_to_picture_over_what_is_hidden(finished):
    page = finished
    cell(page, 0, 1).locator(".open").focus()
    page.keyboard.press("s")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(cell(page, 2, 1).locator(".open")).to_be_focused()
    page.keyboard.press("s")
    page.get_by_role("button", name="★ only").click()
    expect(page.locator("#grid .shot:visible")).to_have_count(2)
    cell(page, 2, 1).locator(".open").focus()
    page.keyboard.press("ArrowLeft")
    expect(cell(page, 0, 1).locator(".open")).to_be_focused()
    for place in ((0, 1), (2, 1)):
        cell(page, *place).locator(".open").focus()
        page.keyboard.press("s")
    expect(page.locator("#grid .none")).to_have_text("No cell of this page has a star.")
    page.get_by_role("button", name="★ only").click()


def test_the_menu_of_files_closes_by_esc_and_by_a_click_beside_it(finished):
    page = finished
    menu, summary = page.locator("#grid .menu"), page.locator("#grid .menu summary")
    summary.click()
    page.get_by_role("button", name="Numbers (CSV)").focus()
    page.keyboard.press("Escape")
    expect(menu).not_to_have_attribute("open", "")
    expect(summary).to_be_focused()
    summary.click()
    page.locator("h1").click()
    expect(menu).not_to_have_attribute("open", "")


def test_two_cells_are_seen_with_a_slider_as_difference_and_blinking(finished):
    page = finished
    for place in ((0, 0), (2, 2)):
        cell(page, *place).hover()
        cell(page, *place).get_by_role("button", name="Pick to compare").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    versus = page.get_by_role("dialog", name="Two pictures compared")
    expect(versus.locator(".names")).to_have_text("A: Steps 2, CFG scale 1  ·  B: Steps 25, CFG scale 8")
    first, second = versus.locator("figure").all()
    versus.get_by_role("slider", name="Where the first picture ends").fill("20")
    assert first.evaluate("(e) => getComputedStyle(e).clipPath") == "inset(0px 80% 0px 0px)"
    page.keyboard.press("3")  # the modes are on the number keys too
    assert second.evaluate("(e) => getComputedStyle(e).mixBlendMode") == "difference"
    versus.get_by_role("button", name="Blink").click()
    page.wait_for_function(
        "getComputedStyle(document.querySelectorAll('.pair figure')[1]).visibility === 'visible'"
    )
    page.wait_for_function(
        "getComputedStyle(document.querySelectorAll('.pair figure')[1]).visibility === 'hidden'"
    )
    versus.get_by_role("button", name="Side by side").click()
    assert first.bounding_box()["x"] + first.bounding_box()["width"] <= second.bounding_box()["x"]
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#grid .grid-picks")).to_be_hidden()


def test_numbers_tint_the_cells_and_are_drawn_as_lines(finished):
    page = finished
    page.get_by_label("Numbers over the cells").select_option("Net calls")
    expect(page.locator("#grid .number").first).to_have_text("2")
    tints = page.locator("#grid .shot").evaluate_all(
        "(all) => all.map((e) => getComputedStyle(e, '::after').backgroundColor)"
    )
    assert len(set(tints)) == 3
    assert tints[0] == "rgb(0, 34, 78)"
    assert tints[2] == "rgb(255, 234, 70)"
    expect(page.locator("#grid .grid-scale")).to_contain_text("Net calls: of the denoising net")
    page.get_by_role("button", name="Chart").click()
    chart = page.get_by_role("img", name="Net calls over Steps")
    expect(chart.locator("polyline")).to_have_count(3)
    expect(page.locator("#grid .grid-chart .legend li")).to_have_text(["1", "2", "8"])
    heights = chart.locator("circle").evaluate_all(
        "(all) => all.slice(0, 3).map((e) => Number(e.getAttribute('cy')))"
    )
    assert heights[0] > heights[1] > heights[2]
    page.get_by_role("button", name="Chart").click()
    page.get_by_label("Numbers over the cells").select_option("None")
    expect(page.locator("#grid .number").first).to_be_hidden()


def test_the_grid_takes_the_whole_window_until_esc(finished):
    page = finished
    page.get_by_role("button", name="Whole window").click()
    scroll = page.locator("#grid .grid-scroll")
    page.wait_for_function("document.querySelector('#grid .grid-scroll').clientWidth > innerWidth - 60")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Whole window")).to_be_visible()
    assert scroll.bounding_box()["width"] < 1000


def test_winners_are_starred_and_seen_alone(finished):
    page = finished
    cell(page, 1, 2).hover()
    cell(page, 1, 2).get_by_role("button", name="Star").click()
    page.get_by_role("button", name="★ only").click()
    expect(page.locator("#grid .shot:visible")).to_have_count(1)
    expect(page.locator("#grid thead th:visible")).to_have_text(["3"])
    page.get_by_role("button", name="★ only").click()
    expect(page.locator("#grid .shot:visible")).to_have_count(9)
    assert page.evaluate("JSON.parse(localStorage.getItem('studio-stars')).length") == 1


def test_the_files_come_and_a_sheet_restores_the_axes(finished, open_page, tmp_path):
    page = finished
    found = {}
    for what in ("Sheet (PNG)", "Pictures (ZIP)", "Web page (HTML)"):
        page.locator("#grid .menu summary").click()
        with page.expect_download() as download:
            page.get_by_role("button", name=what).click()
        found[what] = Path(download.value.path())
        assert download.value.suggested_filename.startswith("grid.")
    assert len(ZipFile(found["Pictures (ZIP)"]).namelist()) == 9 + 2
    exported = page.context.browser.new_context(offline=True).new_page()
    copy = tmp_path / "grid.html"
    copy.write_bytes(found["Web page (HTML)"].read_bytes())
    exported.goto(copy.as_uri())
    expect(exported.locator(".prompt")).to_have_text("a red apple")
    sizes = exported.locator(".picture img").evaluate_all("(all) => all.map((e) => e.naturalWidth)")
    assert sizes == [64] * 9
    exported.locator(".picture").first.click()
    expect(exported.locator("#viewer .foot")).to_contain_text("Steps: 2, CFG scale: 1")
    exported.context.close()

    other = open_page()
    drop(other, found["Sheet (PNG)"])
    expect(other.locator("#axis-x-text textarea")).to_have_value("2, 3, 25")
    expect(other.locator(PROMPT)).to_have_value("a red apple")
    expect(other.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")
    assert field(other, "seed") == "5"


def test_a_cell_goes_to_another_tab_with_its_settings(finished):
    page = finished
    cell(page, 2, 2).locator(".open").click()
    page.get_by_role("dialog").get_by_role("button", name="Image to image").click()
    expect(page.get_by_role("tab", name="Image to image")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#canvas .about")).to_contain_text("64 × 64")
    assert field(page, "guidance_scale") == "8"
    open_tab(page)
    expect(page.locator(HEADLINE)).to_be_visible()


def test_stop_keeps_what_is_done_and_running_again_goes_on(open_page):
    page = open_page()
    open_tab(page)
    fill(page, prompt="a castle", **SLOW)
    axis(page, "x", "Seed", "1-4")
    axis(page, "y", "None", "")
    page.locator("#grid-run").click()
    cell(page, 0, 0).locator("button.star").wait_for(state="attached")
    page.keyboard.press("Escape")
    expect(page.locator(HEADLINE)).to_contain_text(re.compile(r"Stopped: [12] of 4 pictures kept"))
    first = cell(page, 0, 0).locator("img").get_attribute("src")
    expect(page.locator("#grid-run")).to_be_enabled()
    page.locator("#grid-run").click()
    expect(page.locator(HEADLINE)).not_to_contain_text("Stopped")  # the server has been asked
    page.reload()  # while it runs: the grid is found again
    expect(page.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#axis-x-text textarea")).to_have_value("1-4")
    ended(page, "Done: 4 of 4 pictures")
    expect(page.locator("#grid .details")).to_contain_text(re.compile("[12] known already"))
    assert Path(cell(page, 0, 0).locator("img").get_attribute("src")).parent == Path(first).parent


def test_news_of_a_grid_that_the_page_has_not_been_told_of_asks_for_all_of_it(open_page):
    """Two updates in one breath come as the later one alone."""
    asked = open_page().evaluate("""() => {
        const asked = [];
        const tell = { resync: (it) => asked.push(it.run) };
        const board = new studio.compare.Board(document.createElement("div"), tell, () => {});
        const news = (run) => board.receive({ run, since: 3, until: 4, cells: [], status: {} });
        news("first");
        Object.assign(board, { run: "second", past: new Set(["first"]) });
        news("first");
        news("third");
        return asked;
    }""")
    assert asked == ["first", "third"]


def test_the_focus_stays_in_the_large_picture_while_the_grid_goes_on(open_page):
    page = open_page()
    open_tab(page)
    fill(page, prompt="a mug", **SLOW)
    axis(page, "x", "Seed", "1-4")
    axis(page, "y", "None", "")
    page.locator("#grid-run").click()
    cell(page, 0, 0).locator("button.star").wait_for(state="attached")
    cell(page, 0, 0).locator(".open").click()
    send = page.get_by_role("dialog").get_by_role("button", name="Inpainting")
    send.focus()
    before = page.locator(HEADLINE).inner_text()
    expect(page.locator(HEADLINE)).not_to_have_text(before, timeout=60_000)
    expect(send).to_be_focused()


def test_a_cell_that_failed_says_why_and_is_tried_again(open_page, data_dir):
    page, other = open_page(), open_page()
    fill(other, prompt="a house", **{**SLOW, "num_inference_steps": 500})
    page.get_by_role("tab", name="Image to image").click()
    page.get_by_role("button", name="Blank sheet").click()
    expect(page.locator("#canvas .about")).to_contain_text("×")
    page.get_by_role("tab", name="Compare").click()
    fill(page, prompt="a fox", **QUICK)
    axis(page, "x", "Denoising strength", "0.5, 1")
    axis(page, "y", "None", "")
    expect(page.locator("#grid-plan")).to_contain_text(re.compile(r"Cells\s*2"))
    other.keyboard.press("Control+Enter")
    other.locator("#stage .preview img").wait_for()
    page.locator("#grid-run").click()
    expect(page.locator(HEADLINE)).to_have_text("Waiting: next in the queue")
    kept = data_dir / "sources"
    kept.rename(data_dir / "elsewhere")
    other.keyboard.press("Escape")
    expect(cell(page, 1, 0).locator(".error")).to_contain_text("no longer here")
    (data_dir / "elsewhere").rename(kept)
    cell(page, 1, 0).get_by_role("button", name="Try again").click()
    expect(cell(page, 1, 0).locator("img")).to_be_visible()
    expect(cell(page, 0, 0).locator(".error")).to_be_visible()


def test_every_control_has_a_name_and_a_phone_sees_all_without_scrolling_sideways(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    open_tab(page)
    fill(page, prompt="a rose", **QUICK)
    axis(page, "x", "CFG scale", "1-9 [5]")
    axis(page, "y", "Prompt (whole list)", "a rose\n<b>a rose</b>")
    axis(page, "z", "Steps", "1, 2")
    page.locator("#grid-run").tap()
    ended(page, "Done: 20 of 20 pictures")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.locator("#grid tbody th")).to_have_text(["a rose", "<b>a rose</b>"])
    head, side = page.locator("#grid thead th").last, page.locator("#grid tbody th").first
    page.locator("#grid .grid-scroll").evaluate("(e) => e.scrollTo(400, 60)")
    assert side.bounding_box()["x"] < 40
    assert head.bounding_box()["y"] >= page.locator("#grid .grid-scroll").bounding_box()["y"]
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in nodes if not n["ignored"] and CONTROL.fullmatch(n["role"]["value"])]
    assert len(controls) > 60
    assert [n for n in controls if not n.get("name", {}).get("value", "").strip()] == []
    page.get_by_role("button", name="2", exact=True).last.tap()
    cell(page, 0, 0, 1).locator(".open").tap()
    expect(page.get_by_role("dialog").locator("h3")).to_have_text(
        "CFG scale 1, Prompt (whole list) a rose, Steps 2"
    )
    wipe(page, page.get_by_role("dialog").locator(".shown"), -150)
    expect(page.get_by_role("dialog").locator("h3")).to_contain_text("CFG scale 3")
    wipe(page, page.get_by_role("dialog").locator(".shown"), 150)
    expect(page.get_by_role("dialog").locator("h3")).to_contain_text("CFG scale 1")
    page.keyboard.press("Escape")  # Chromium takes a tap so soon after a wipe for its end
    page.get_by_role("button", name="Chart").tap()
    chart = page.locator("#grid .grid-chart svg").first
    assert (
        chart.evaluate("(e) => e.getBoundingClientRect().width / e.viewBox.baseVal.width") == 1
    )  # letters keep it
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def wipe(page: Page, part: Locator, right: int) -> None:
    """A finger over the middle of a part."""
    box = part.bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    finger = page.context.new_cdp_session(page)
    finger.send(
        "Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x - right / 2, "y": y}]}
    )
    for n in range(1, 6):
        at = [{"x": x + right * (n / 5 - 0.5), "y": y}]
        finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": at})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_how_cells_are_made_is_chosen_sent_and_remembered(open_page):
    page = open_page()
    open_tab(page)
    cells, plan = page.locator("#grid-cells"), page.locator("#grid-plan")
    expect(cells.get_by_label("Automatic")).to_be_checked()
    fill(page, prompt="a chosen fox", num_inference_steps=2, width=64, height=64, seed=8)
    axis(page, "x", "CFG scale", "5, 6")  # made alone first: so it is known what one takes
    axis(page, "y", "None", "")
    page.locator("#grid-run").click()
    ended(page, "Done: 2 of 2 pictures")
    page.fill("#axis-x-text textarea", "2, 3, 4")
    cells.get_by_label("Faster: together").check()
    expect(plan).to_contain_text(re.compile(r"Cells\s*3Known already\s*0"))
    page.locator("#grid-run").click()
    ended(page, "Done: 3 of 3 pictures")
    cells.get_by_label("Automatic").check()
    expect(plan).to_contain_text(re.compile(r"Known already\s*[01]N"))
    cells.get_by_label("Faster: together").check()
    expect(plan).to_contain_text(re.compile(r"Known already\s*3"))
    cells.get_by_label("Exactly as alone").check()
    page.reload()
    expect(page.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")
    expect(cells.get_by_label("Exactly as alone")).to_be_checked()


def test_a_cell_equals_its_single_run(finished, open_page, data_dir):
    page = finished
    cell(page, 1, 2).locator(".open").click()
    name = page.locator(".viewer dl > div", has_text="Saved as").locator("dd").inner_text()
    page.keyboard.press("Escape")
    alone = open_page()
    fill(alone, prompt="a red apple", num_inference_steps=3, guidance_scale=8, width=64, height=64, seed=5)
    alone.locator("#generate").click()
    expect(alone.locator("#stage .headline")).to_have_text("Done: 1 picture", timeout=60_000)
    single = alone.locator("#caption code").inner_text()
    assert np.array_equal(pixels(data_dir / "outputs" / name), pixels(data_dir / "outputs" / single))


def test_a_finished_picture_can_be_compared_from_its_settings(open_page):
    page = open_page()
    fill(page, **QUICK, guidance_scale=6)
    page.fill(PROMPT, "a castle")
    page.keyboard.press("Control+Enter")
    page.locator("#gallery img").first.wait_for()
    page.fill(PROMPT, "something else")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#grid-run")).to_be_visible()
    expect(page.locator(PROMPT)).to_have_value("a castle")
    assert field(page, "guidance_scale") == "6"
