"""The exported grid, opened from a disk in a browser without a network."""

import base64
import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from tests.conftest import pixels
from tests.grids import BASE, axis, planned, results_of
from webui.errors import InvalidField
from webui.grid import page as grid_page
from webui.request import GenerationRequest

EVIL = '</script><script>document.title="owned"</script><img src=x onerror=\'document.title="owned"\'> "&amp;'


@pytest.fixture
def open_export(browser, tmp_path) -> Iterator[Callable]:
    """Write the page of some results and open it: a file, offline. It may ask for nothing, nor complain."""
    contexts, asked, said = [], [], []

    def open_export(results, may_complain=False, **options):
        path = tmp_path / "grid.html"
        grid_page.write(results, path)
        context = browser.new_context(**{"viewport": {"width": 1000, "height": 800}, **options})
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: may_complain or said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield open_export
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == len(contexts)
    assert said == []


def seen(page, selector: str) -> np.ndarray:
    """What a part of the page looks like, (h, w, 3)."""
    return pixels(Image.open(io.BytesIO(page.locator(selector).screenshot())))


def name_of(page) -> str:
    return page.locator("#viewer .grow").inner_text()


def test_pictures_are_inside_byte_for_byte(open_export, tmp_path):
    results = results_of(
        planned(axis("scheduler", "all"), axis("guidance_scale", "1, 2"), per_cell=2), tmp_path
    )
    page = open_export(results)
    inside = page.eval_on_selector_all(".picture", "all => all.map(b => [b.dataset.cell, b.firstChild.src])")
    assert len(inside) == 12
    for key, source in inside:
        index = tuple(map(int, key.split(",")))
        assert source.startswith("data:image/png;base64,")
        assert base64.b64decode(source.partition(",")[2]) == results.pictures[index].read_bytes()
    assert page.eval_on_selector_all(
        ".picture img", "all => all.every(i => i.complete && i.naturalWidth === 64)"
    )


def test_words_of_a_person_stay_words(open_export, tmp_path):
    prompts = axis("prompt_replace", f'fox, "{EVIL.replace(chr(34), chr(34) * 2)}"')
    base = BASE.replace(prompt=f"fox {EVIL}", negative_prompt=EVIL)
    plan = planned(prompts, axis("seed", "1, 2"), base=base)
    results = results_of(plan, tmp_path, without=[(0, 0, 0, 0)], reasons={(0, 0, 0, 0): EVIL})
    page = open_export(results)
    assert page.locator(".prompt").inner_text() == f"fox {EVIL}"
    assert page.locator(".blank").inner_text() == EVIL
    assert EVIL in page.locator("thead").inner_text()
    page.locator(".picture").first.click()
    assert f"Negative prompt: {EVIL}" in page.locator("#viewer .foot").inner_text()
    assert page.title() != "owned"
    assert page.locator("script").count() == 2
    assert page.locator("main script, main img[onerror]").count() == 0


def test_the_policy_lets_nothing_else_run(open_export, tmp_path):
    page = open_export(results_of(planned(axis("seed", "1, 2")), tmp_path), may_complain=True)
    policy = page.locator("meta[http-equiv]").get_attribute("content")
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    errors = page.evaluate(
        """async () => {
          const stopped = [];
          addEventListener("securitypolicyviolation", (event) => stopped.push(event.effectiveDirective));
          const script = document.createElement("script");
          script.textContent = "document.title = 'owned'";
          document.body.append(script);
          await fetch("https://example.org/").catch(() => 0);
          await new Promise((resolve) => setTimeout(resolve));
          return [document.title, ...stopped];
        }"""
    )
    assert errors[0] != "owned"
    assert set(errors[1:]) == {"script-src-elem", "connect-src"}


def refuse_heun_at_two(request: GenerationRequest) -> None:
    if (request.scheduler, request.guidance_scale) == ("Heun", 2.0):
        raise InvalidField("scheduler", "not at 2", "Scheduler")


@pytest.fixture
def three_by_three(tmp_path):
    """Scheduler x CFG with a hole in the middle, on two pages; one star."""
    axes = axis("scheduler", "all"), axis("guidance_scale", "1-3"), axis("clip_skip", "1, 2")
    plan = planned(*axes, check=refuse_heun_at_two)
    return results_of(plan, tmp_path, stars=frozenset({(2, 0, 0, 0)}))


def test_arrow_keys_walk_the_grid_in_full_size(open_export, three_by_three):
    page = open_export(three_by_three)
    page.locator(".picture").first.click()
    assert name_of(page) == "Scheduler: Euler, CFG scale: 1, Clip skip: 1"
    walk = {
        "ArrowRight": "Scheduler: Heun, CFG scale: 1, Clip skip: 1",
        "ArrowDown": "Scheduler: Heun, CFG scale: 3, Clip skip: 1",  # over the hole
        "ArrowLeft": "Scheduler: Euler, CFG scale: 3, Clip skip: 1",
        "ArrowUp": "Scheduler: Euler, CFG scale: 2, Clip skip: 1",
        "PageDown": "Scheduler: Euler, CFG scale: 2, Clip skip: 2",
        "PageUp": "Scheduler: Euler, CFG scale: 2, Clip skip: 1",
    }
    for key, expected in walk.items():
        page.keyboard.press(key)
        assert name_of(page) == expected
    shown = page.locator("#viewer img").get_attribute("src").partition(",")[2]
    assert base64.b64decode(shown) == three_by_three.pictures[0, 1, 0, 0].read_bytes()
    page.keyboard.press("ArrowLeft")  # at the edge
    assert name_of(page) == "Scheduler: Euler, CFG scale: 2, Clip skip: 1"
    page.get_by_role("button", name="Right", exact=True).click()
    assert "DPM++ 2M" in name_of(page)
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    page.wait_for_function("document.activeElement.dataset.cell === '2,1,0,0'")  # once "close" is heard


def colours(results, *indices) -> list[tuple]:
    return [tuple(pixels(results.pictures[index])[0, 0]) for index in indices]


def middle(page, left: float, top: float = 0.5) -> tuple:
    """The colour at a share of the pair's box."""
    picture = seen(page, ".pair")
    return tuple(picture[int(picture.shape[0] * top), int(picture.shape[1] * left)])


def compare(page, first: str, second: str) -> None:
    page.get_by_role("button", name="Compare two").click()
    page.locator(f'[data-cell="{first}"]').click()
    page.locator(f'[data-cell="{second}"]').click()


def test_two_cells_meet_at_a_slider(open_export, three_by_three):
    page = open_export(three_by_three)
    compare(page, "0,0,0,0", "2,2,0,0")
    one, other = colours(three_by_three, (0, 0, 0, 0), (2, 2, 0, 0))
    assert (middle(page, 0.45), middle(page, 0.55)) == (one, other)
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert (middle(page, 0.55), middle(page, 0.62)) == (one, other)
    box = page.locator(".pair").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 50)
    page.mouse.up()
    assert page.locator("#at").input_value() == "40"
    assert (middle(page, 0.38), middle(page, 0.45)) == (one, other)


def test_two_cells_stand_side_by_side_and_blink(open_export, three_by_three):
    page = open_export(three_by_three, reduced_motion="reduce")  # blinks by hand only
    compare(page, "0,0,0,0", "2,2,0,0")
    one, other = colours(three_by_three, (0, 0, 0, 0), (2, 2, 0, 0))
    page.keyboard.press("2")
    assert (middle(page, 0.25), middle(page, 0.75)) == (one, other)
    page.get_by_role("button", name="Blink").click()
    assert middle(page, 0.5) == one
    page.get_by_role("button", name="Other one").click()
    assert middle(page, 0.5) == other


def test_it_blinks_by_itself(open_export, three_by_three):
    page = open_export(three_by_three)
    compare(page, "0,0,0,0", "2,2,0,0")
    page.keyboard.press("3")
    for shown in ("1", "2", "1"):
        page.locator(f'.pair[data-shown="{shown}"]').wait_for()


def test_the_difference_is_drawn_and_reckoned(open_export, three_by_three):
    page = open_export(three_by_three)
    compare(page, "0,0,0,0", "2,2,0,0")
    page.keyboard.press("4")
    one, other = np.array(colours(three_by_three, (0, 0, 0, 0), (2, 2, 0, 0)), int)
    share = np.sqrt(np.mean((one - other) ** 2)) / 2.55
    page.get_by_text(f"RMS difference {share:.2f} %").wait_for()
    assert middle(page, 0.5) == tuple(np.minimum(abs(one - other) * 4, 255))


def test_numbers_are_shown_as_colours(open_export, three_by_three):
    page = open_export(three_by_three)
    page.get_by_label("Numbers").select_option(label="Net calls")
    assert page.locator("#legend").inner_text().split() == ["20", "39"]
    heat = 'button => [button.style.getPropertyValue("--heat"), button.querySelector(".number").textContent]'
    assert page.locator('[data-cell="0,0,0,0"]').evaluate(heat) == ["rgb(68,1,84)", "20"]
    assert page.locator('[data-cell="1,0,0,0"]').evaluate(heat) == ["rgb(253,231,37)", "39"]
    assert page.locator(".number:visible").count() == 8
    page.get_by_label("Numbers").select_option(label="none")
    assert page.locator(".number:visible").count() == 0


def test_settings_are_shown_beside_the_pointer_and_the_focus(open_export, three_by_three):
    page = open_export(three_by_three)
    page.locator('[data-cell="1,2,0,0"]').hover()
    hint = page.locator("#hint").inner_text()
    for words in (
        "Scheduler: Heun, CFG scale: 3",
        "a red fox in the snow",
        "Seed: 7",
        "Seconds: 0.50, Net calls: 39",
    ):
        assert words in hint
    page.mouse.move(2, 2)
    assert not page.locator("#hint").is_visible()
    page.locator("#theme").focus()
    page.keyboard.press("Tab")
    assert "CFG scale: 1" in page.locator("#hint").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#hint").is_visible()


def test_pages_turn_and_stars_stand_out(open_export, three_by_three):
    page = open_export(three_by_three)
    assert page.locator(".picture:visible").count() == 8
    assert page.locator(".blank:visible").inner_text() == "Scheduler: not at 2"
    page.get_by_label("Clip skip").select_option("2")
    assert page.locator(".picture:visible").first.get_attribute("data-cell") == "0,0,1,0"
    page.get_by_label("Clip skip").select_option("1")
    page.get_by_label("Only starred").check()
    assert page.locator(".picture:visible:not(.faded)").evaluate_all(
        "all => all.map(b => b.dataset.cell)"
    ) == ["2,0,0,0"]


def test_labels_stay_in_view(open_export, tmp_path):
    results = results_of(planned(axis("guidance_scale", "1-20"), axis("clip_skip", "1-12")), tmp_path)
    page = open_export(results, viewport={"width": 500, "height": 500})
    page.locator("#grid").evaluate("grid => grid.scrollTo(900, 600)")
    grid = page.locator("#grid").bounding_box()
    row, column = page.locator("tbody th").nth(9), page.locator("thead th").nth(11)
    assert row.bounding_box()["x"] == grid["x"]
    assert column.bounding_box()["y"] == grid["y"]
    corner = page.locator("th.corner").bounding_box()
    assert (corner["x"], corner["y"]) == (grid["x"], grid["y"])
    assert page.evaluate("document.documentElement.scrollWidth") == 500


def test_light_and_dark_follow_the_system_and_the_button(open_export, three_by_three):
    page = open_export(three_by_three, color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.locator("#theme").click()
    assert (dark, page.evaluate(paper)) == ("rgb(20, 22, 26)", "rgb(255, 255, 255)")
    page.locator("#theme").click()
    assert page.evaluate(paper) == dark
