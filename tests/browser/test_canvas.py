"""The canvas alone, on a page as small as can be: what a person draws is what the server gets.

The picture bears three discs at known places. Where they are on the screen is read from a screenshot, so that
nothing here trusts the canvas' own arithmetic.
"""

import base64
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from playwright.sync_api import CDPSession, Locator, Page, expect

from tests.browser.conftest import BROWSERS, FLAGS
from webui import strokes
from webui.ui import canvas

SIZES = {"wide": (1500, 1000), "tall": (700, 1400), "tiny": (64, 64)}
DISCS = {"black": (0.2, 0.25), "lime": (0.75, 0.3), "blue": (0.5, 0.8)}  # shares of the width and the height
COLORS = {"black": (0, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}
DESKTOP = {"viewport": {"width": 1366, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}

SURFACE = ".board canvas"

# What the page's own script gives the canvas, and its key for Generate.
SCRIPT = """
const studio = {
  button: (id) => document.getElementById(id),
  holdsFiles: (event) => event.dataTransfer.types.includes("Files"),
};
document.addEventListener("keydown", ({ key, ctrlKey }) => {
  if (key === "Enter" && ctrlKey) studio.button("generate").click();
});
"""

Place = tuple[float, float]


def as_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def proxy(name: str) -> Image.Image:
    """A third of the source's size: white, with the discs."""
    width, height = (max(side // 3, 64) for side in SIZES[name])
    image = Image.new("RGB", (width * 4, height * 4), "white")  # drawn larger for smooth edges
    for color, (x, y) in DISCS.items():
        ImageDraw.Draw(image).circle((x * width * 4, y * height * 4), width / 5, fill=color)
    return image.resize((width, height), Image.Resampling.BOX)


def drawing(name: str) -> canvas.Drawing:
    width, height = SIZES[name]
    return canvas.Drawing(
        source=name, url=as_url(proxy(name)), width=width, height=height, mask="", mask_url="", strokes=[]
    )


def with_mask(value: canvas.Drawing) -> canvas.Drawing:
    """A mask instead of the strokes: the middle of the picture, in half its size."""
    width, height = (max(value[side] // 2, 64) for side in ("width", "height"))
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle((width // 3, height // 3, width * 2 // 3, height * 2 // 3), fill=255)
    return {**value, "mask": "middle", "mask_url": as_url(mask), "strokes": []}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The canvas, and around it what a page has to have for it."""
    with gr.Blocks(analytics_enabled=False) as demo:
        board = canvas.Canvas(elem_id="canvas")
        source = gr.Textbox(elem_id="source")
        gr.Textbox(elem_id="prompt")
        masked, generate = gr.Button("Masked", elem_id="masked"), gr.Button("Generate", elem_id="generate")
        sent, came = gr.Textbox(elem_id="sent"), gr.Textbox(elem_id="came")
        for kind in ("source", "mask"):
            file = gr.File(elem_id=f"{kind}-file", visible="hidden", file_types=["image"])
            file.upload(lambda path, kind=kind: (f"{kind} {Path(path).name}", None), file, [came, file])
        for name in ("blank-sheet", "use-last"):
            gr.Button(name, elem_id=name, visible="hidden").click(lambda name=name: name, None, came)
        board.clear(lambda: "removed", None, came)
        source.change(drawing, source, board, show_progress="hidden")
        as_it_is = {"show_progress": "hidden", "preprocess": False, "trigger_mode": "multiple"}
        masked.click(with_mask, board, board, **as_it_is)
        generate.click(json.dumps, board, sent, **as_it_is)
    head = f"<script>{SCRIPT}</script>{canvas.head()}"
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", head=head)
    yield address
    demo.close()


@pytest.fixture
def open_board(browser, server) -> Iterator[Callable[..., Page]]:
    contexts, errors = [], []

    def open_board(source: str = "wide", **options: object) -> Page:
        contexts.append(browser.new_context(**{**DESKTOP, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server)
        page.locator(".board").wait_for()
        if source:
            choose(page, source)
        return page

    yield open_board
    for context in contexts:
        context.close()
    assert errors == []


def choose(page: Page, source: str) -> None:
    """Let the server send a source, and wait until it is to be seen."""
    page.fill("#source textarea", source)
    page.locator("#source textarea").blur()
    expect(page.locator(".size-of")).to_have_text("{} × {}".format(*SIZES[source]))
    page.wait_for_function("document.querySelector('.board canvas').width > 300")
    until(page, lambda seen: discs(seen).keys() == DISCS.keys())


def until(page: Page, true: Callable[[np.ndarray], bool]) -> np.ndarray:
    """The surface as soon as it looks right; it is painted with the next frame."""
    for _ in range(40):
        seen = look(page)
        if true(seen):
            return seen
        page.wait_for_timeout(50)
    raise AssertionError("the canvas never looked as it should")


def look(page: Page) -> np.ndarray:
    """(height, width, 3) int16: the surface as it is on the screen, in screen pixels."""
    page.mouse.move(2, 2)
    png = page.locator(SURFACE).screenshot()
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int16)


def discs(seen: np.ndarray) -> dict[str, Place]:
    """The middles of the discs on the screen, in its pixels from the surface's corner."""
    found = {}
    for name, color in COLORS.items():
        rows, columns = np.nonzero(np.abs(seen - color).max(-1) < 60)
        if len(rows) > 20:
            found[name] = (columns.mean() + 0.5, rows.mean() + 0.5)
    return found


def tinted(seen: np.ndarray) -> np.ndarray:
    """(height, width) bool: where the mask lies over white."""
    return np.abs(seen - (250, 159, 175)).max(-1) < 25


def on_page(page: Page, place: Place) -> Place:
    box = page.locator(SURFACE).bounding_box()
    scale = page.evaluate("devicePixelRatio")
    return box["x"] + place[0] / scale, box["y"] + place[1] / scale


def draw(page: Page, *places: Place, release: bool = True) -> None:
    """A stroke with the mouse, through places on the surface in screen pixels."""
    first, *rest = (on_page(page, place) for place in places)
    page.mouse.move(*first)
    page.mouse.down()
    for place in rest:
        page.mouse.move(*place, steps=5)
    if release:
        page.mouse.up()


def draw_over(page: Page, *names: str) -> None:
    """A stroke through discs, wherever they are on the screen."""
    places = discs(look(page))
    draw(page, *(places[name] for name in names))


def placed(surface: tuple[int, int], size: tuple[int, int]) -> tuple[Place, float]:
    """(corner, scale) of a whole picture, fit into a surface and centred."""
    scale = min(surface[0] / size[0], surface[1] / size[1])
    return ((surface[0] - size[0] * scale) / 2, (surface[1] - size[1] * scale) / 2), scale


def wide(page: Page, *shares: Place) -> list[tuple[int, int]]:
    """Screen pixels of the surface for shares of the width and height of the wide picture, whole in sight."""
    (left, top), scale = placed(look(page).shape[1::-1], SIZES["wide"])
    return [(round(left + x * 1500 * scale), round(top + y * 1000 * scale)) for x, y in shares]


def disc(source: str, name: str) -> Place:
    """In pixels of the source."""
    (x, y), (width, height) = DISCS[name], SIZES[source]
    return x * width, y * height


def value(page: Page) -> canvas.Drawing:
    """What Generate sends."""
    page.evaluate("document.querySelector('#sent textarea').value = ''")
    return sent(page, lambda: page.keyboard.press("Control+Enter"))


def sent(page: Page, act: Callable[[], object]) -> canvas.Drawing:
    with page.expect_request(lambda request: "queue/join" in request.url) as request:
        act()
    (payload,) = request.value.post_data_json["data"]
    return payload


def close(stroke: dict, *places: Place, within: float = 2) -> bool:
    ends = [stroke["points"][0], stroke["points"][-1]]
    return np.abs(np.subtract(ends, [places[0], places[-1]])).max() <= within


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def tool(page: Page, name: str) -> Locator:
    return page.locator(f"button[data-tool={name}]")


# Where strokes land


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("source", ["wide", "tall"])
def test_a_stroke_lands_where_it_was_drawn(open_board, source, screen):
    page = open_board(source, **screen)
    draw_over(page, "black", "blue")
    (stroke,) = value(page)["strokes"]
    assert stroke["kind"] == "mask"
    assert close(stroke, disc(source, "black"), disc(source, "blue"))


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_also_does_when_the_picture_is_enlarged_and_moved(open_board, screen):
    page = open_board("wide", **screen)
    at = discs(look(page))["lime"]
    page.mouse.move(*on_page(page, at))
    page.keyboard.down("Control")
    for _ in range(2):
        page.mouse.wheel(0, -120)
    page.keyboard.up("Control")
    enlarged = discs(until(page, lambda seen: "lime" in discs(seen) and "black" not in discs(seen)))["lime"]
    assert np.abs(np.subtract(enlarged, at)).max() < 3  # what is under the pointer stays there

    page.mouse.move(*on_page(page, enlarged))
    page.keyboard.down(" ")
    page.mouse.down()
    page.mouse.move(*on_page(page, (enlarged[0] - 60, enlarged[1] + 40)), steps=4)
    page.mouse.up()
    page.keyboard.up(" ")
    moved = discs(until(page, lambda seen: discs(seen)["lime"][0] < enlarged[0] - 50))["lime"]
    assert np.abs(np.subtract(moved, (enlarged[0] - 60, enlarged[1] + 40))).max() < 3

    draw(page, moved, (moved[0] + 50, moved[1]))
    (stroke,) = value(page)["strokes"]
    assert close(stroke, disc("wide", "lime"), stroke["points"][-1], within=1)


def test_another_size_of_the_window_moves_nothing(open_board):
    page = open_board("wide")
    draw_over(page, "black", "blue")
    before = value(page)["strokes"]
    page.set_viewport_size({"width": 500, "height": 700})
    press(page, "Show the mask")  # or it covers the discs
    until(page, lambda seen: len(discs(seen)) == 3)
    draw_over(page, "lime", "blue")
    first, second = value(page)["strokes"]
    assert [first] == before
    assert close(second, disc("wide", "lime"), disc("wide", "blue"))


@pytest.mark.parametrize(
    ("source", "screen"),
    [("wide", DESKTOP), ("tall", PHONE), ("tiny", DESKTOP)],
    ids=["wide-desktop", "tall-phone", "tiny-desktop"],
)
def test_the_mask_on_the_screen_is_the_mask_that_is_used(open_board, source, screen):
    page = open_board(source, **screen)
    places = discs(look(page))
    page.click("#masked")
    until(page, lambda seen: tinted(seen).any())
    draw(page, places["black"], places["lime"], places["blue"])
    tool(page, "erase").click()
    draw(page, places["black"], places["blue"])
    now = value(page)
    size = SIZES[source]
    base = Image.open(io.BytesIO(base64.b64decode(now["mask_url"].split(",")[1])))
    used = strokes.mask(size, strokes.read(now["strokes"]), base.resize(size))

    seen = look(page)
    (left, top), scale = placed(seen.shape[1::-1], size)
    shown = [round(side * scale) for side in size]
    seen = seen[round(top) :, round(left) :][: shown[1], : shown[0]]
    edge = 2 * math.ceil(max(2 * scale, 2)) + 1  # two pixels to each side
    expected, white = (
        used.resize(shown),
        proxy(source).convert("L").point(lambda x: 255 * (x > 254)).resize(shown),
    )
    surely = np.asarray(expected.filter(ImageFilter.MinFilter(edge))) > 127
    hardly = np.asarray(expected.filter(ImageFilter.MaxFilter(edge))) > 127
    clear = np.asarray(white.filter(ImageFilter.MinFilter(7))) > 127
    assert (surely & clear).sum() > 1000
    wrong = clear & ((tinted(seen) & ~hardly) | (~tinted(seen) & surely))
    assert wrong.sum() <= 2 * scale**2  # a gap finer than a pixel of the source, where two lines meet


def test_leaving_points_out_moves_no_place_by_half_a_pixel(open_board):
    page = open_board("")
    random = np.random.default_rng(3)
    for path in (random.normal(size=(800, 2)).cumsum(0), random.normal(size=(300, 2)) * 0.3):
        kept = np.array(page.evaluate("points => studio.canvas.simplified(points)", path.tolist()))
        starts, along = kept[:-1, None], np.diff(kept, axis=0)[:, None]
        share = ((path - starts) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9)
        nearest = starts + np.clip(share, 0, 1)[..., None] * along
        assert np.linalg.norm(path - nearest, axis=-1).min(0).max() < 0.5
        assert len(kept) < len(path)
        assert np.allclose(kept * 10, np.round(kept * 10))


def test_a_very_long_stroke_becomes_several_that_can_be_read(open_board):
    page = open_board("wide")
    page.evaluate(
        """() => {
            PointerEvent.prototype.getCoalescedEvents = function () {
                const at = (i) => ({ clientX: this.clientX + 9 * Math.sin(i * i), clientY: this.clientY });
                return Array.from({ length: 4000 }, (_, i) => at(i));
            };
        }"""
    )
    draw_over(page, "black", "blue")
    drawn = value(page)["strokes"]
    assert len(drawn) > 1
    assert len(strokes.read(drawn)) == len(drawn)
    assert all(a["points"][-1] == b["points"][0] for a, b in pairwise(drawn))


# What is sent, and when


def test_a_stroke_is_sent_by_what_comes_right_after_it(open_board):
    page = open_board("wide")
    places = discs(look(page))
    draw(page, places["black"], places["blue"], release=False)
    drawn = sent(page, lambda: (page.mouse.up(), page.keyboard.press("Control+Enter")))
    assert close(*drawn["strokes"], disc("wide", "black"), disc("wide", "blue"))


def test_generating_in_the_middle_of_a_stroke_ends_it_first(open_board):
    page = open_board("wide")
    places = discs(look(page))
    draw(page, places["black"], places["blue"], release=False)
    drawn = sent(page, lambda: page.keyboard.press("Control+Enter"))
    assert close(*drawn["strokes"], disc("wide", "black"), disc("wide", "blue"))
    page.mouse.move(*on_page(page, places["lime"]))
    page.mouse.up()
    assert value(page)["strokes"] == drawn["strokes"]


def test_drawing_asks_the_server_for_nothing(open_board):
    page = open_board("wide")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    draw_over(page, "black", "blue")
    draw_over(page, "blue", "lime")
    press(page, "Undo")
    page.wait_for_timeout(200)
    assert [url for url in asked if not url.startswith("data:")] == []


def test_what_the_server_drew_is_shown_and_can_be_sent_back(open_board):
    page = open_board("wide")
    draw_over(page, "black", "blue")
    page.click("#masked")
    until(page, lambda seen: tinted(seen).any())
    now = value(page)
    assert (now["mask"], now["strokes"]) == ("middle", [])
    press(page, "Undo")  # the strokes that the mask replaced
    assert (value(page)["mask"], len(value(page)["strokes"])) == ("", 1)


# Tools


def test_the_eraser_takes_away_mask_and_paint(open_board):
    page = open_board("wide")
    above, below, left = wide(page, (0.5, 0.4), (0.5, 0.55), (0.35, 0.4))
    draw(page, *wide(page, (0.3, 0.4), (0.7, 0.4)))
    tool(page, "paint").click()
    page.locator("input[type=color]").fill("#102030")
    draw(page, *wide(page, (0.3, 0.55), (0.7, 0.55)))
    marked = until(page, lambda seen: abs(seen[below[::-1]] - (16, 32, 48)).max() < 3)
    assert tinted(marked)[above[::-1]]
    tool(page, "erase").click()
    draw(page, *wide(page, (0.5, 0.35), (0.5, 0.6)))
    erased = until(page, lambda seen: seen[below[::-1]].min() > 250)
    assert not tinted(erased)[above[::-1]]
    assert tinted(erased)[left[::-1]]
    assert [stroke["kind"] for stroke in value(page)["strokes"]] == ["mask", "paint", "erase"]
    assert value(page)["strokes"][1]["color"] == "#102030"


def test_the_tint_is_no_darker_where_strokes_cross(open_board):
    page = open_board("wide")
    once, twice = wide(page, (0.4, 0.5), (0.5, 0.5))
    draw(page, *wide(page, (0.3, 0.5), (0.65, 0.5)))
    draw(page, *wide(page, (0.5, 0.4), (0.5, 0.6)))
    seen = until(page, lambda seen: tinted(seen)[wide(page, (0.5, 0.42))[0][::-1]])
    assert tinted(seen)[once[::-1]]
    assert abs(seen[twice[::-1]] - seen[once[::-1]]).max() <= 2


def test_undo_redo_and_clear_by_button_and_by_key(open_board):
    page = open_board("wide")
    count = lambda: len(value(page)["strokes"])  # noqa: E731
    draw_over(page, "black", "blue")
    draw_over(page, "blue", "lime")
    page.keyboard.press("Control+z")
    assert count() == 1
    page.keyboard.press("Control+Shift+z")
    assert count() == 2
    press(page, "Undo")
    press(page, "Undo")
    assert count() == 0
    assert not tinted(look(page)).any()
    expect(page.get_by_role("button", name="Undo", exact=True)).to_have_attribute("aria-disabled", "true")
    page.keyboard.press("Control+y")
    press(page, "Redo")
    assert count() == 2
    press(page, "Clear drawing")
    assert count() == 0
    press(page, "Undo")
    assert count() == 2
    until(page, lambda seen: tinted(seen).any())


def test_the_brush_is_sized_by_slider_keys_and_wheel_and_drawn_as_wide(open_board):
    page = open_board("wide")
    size = lambda: int(page.locator(".size output").inner_text().removesuffix(" px"))  # noqa: E731
    (middle,) = wide(page, (0.5, 0.5))
    page.locator(SURFACE).focus()
    before = size()
    page.keyboard.press("]")
    assert size() > before
    page.keyboard.press("[")
    page.keyboard.press("[")
    assert size() < before
    page.mouse.move(*on_page(page, middle))
    page.keyboard.down("Alt")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Alt")
    wheeled = size()
    assert wheeled > before * 0.9
    page.get_by_role("slider", name="Brush size").fill("0.7")
    assert size() > wheeled
    scale = placed(look(page).shape[1::-1], SIZES["wide"])[1]
    page.mouse.move(*on_page(page, middle))
    ring = page.locator(".ring").bounding_box()
    assert abs(ring["width"] - size() * scale) < 1
    draw(page, middle, (middle[0] + 50, middle[1]))
    assert value(page)["strokes"][0]["size"] == size()


def test_keys_typed_into_a_field_do_not_draw(open_board):
    page = open_board("wide")
    draw_over(page, "black", "blue")
    page.click("#prompt textarea")
    page.mouse.move(*on_page(page, wide(page, (0.5, 0.5))[0]))
    page.keyboard.type("pe[")
    page.keyboard.press("Control+z")
    expect(tool(page, "mask")).to_have_attribute("aria-pressed", "true")
    assert len(value(page)["strokes"]) == 1


def test_sketching_shows_the_paint_alone(open_board):
    page = open_board("wide")
    draw_over(page, "black", "blue")
    until(page, lambda seen: tinted(seen).any())
    page.evaluate("studio.canvas.mode('sketch')")
    expect(tool(page, "mask")).to_be_hidden()
    expect(tool(page, "paint")).to_have_attribute("aria-pressed", "true")
    assert not tinted(until(page, lambda seen: not tinted(seen).any())).any()
    draw_over(page, "lime", "blue")
    press(page, "Clear drawing")
    page.evaluate("studio.canvas.mode('inpaint', 'erase')")
    expect(tool(page, "erase")).to_have_attribute("aria-pressed", "true")
    assert [stroke["kind"] for stroke in value(page)["strokes"]] == ["mask"]


def test_the_mask_can_be_hidden_from_sight(open_board):
    page = open_board("wide")
    draw_over(page, "black", "blue")
    until(page, lambda seen: tinted(seen).any())
    press(page, "Show the mask")
    until(page, lambda seen: not tinted(seen).any())
    assert len(value(page)["strokes"]) == 1


# Fingers


@pytest.fixture
def touch() -> Callable[..., None]:
    """Put fingers on places of the page, move them, or take them away."""
    sessions: dict[Page, CDPSession] = {}

    def touch(page: Page, kind: str, *places: Place) -> None:
        session = sessions.get(page) or sessions.setdefault(page, page.context.new_cdp_session(page))
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    return touch


def test_one_finger_draws(open_board, touch):
    page = open_board("wide", **PHONE)
    page.locator(SURFACE).scroll_into_view_if_needed()
    places = {name: on_page(page, place) for name, place in discs(look(page)).items()}
    touch(page, "touchStart", places["black"])
    touch(page, "touchMove", places["lime"])
    touch(page, "touchMove", places["blue"])
    touch(page, "touchEnd")
    (stroke,) = value(page)["strokes"]
    assert close(stroke, disc("wide", "black"), disc("wide", "blue"), within=3)


def test_two_fingers_enlarge_and_draw_nothing(open_board, touch):
    page = open_board("wide", **PHONE)
    page.locator(SURFACE).scroll_into_view_if_needed()
    before = discs(look(page))
    x, y = on_page(page, before["lime"])
    touch(page, "touchStart", (x - 20, y))
    touch(page, "touchMove", (x - 24, y))
    touch(page, "touchStart", (x - 24, y), (x + 24, y))
    touch(page, "touchMove", (x - 72, y), (x + 72, y))
    touch(page, "touchEnd", (x - 72, y))
    touch(page, "touchMove", (x - 60, y))
    touch(page, "touchEnd")
    seen = until(page, lambda seen: "lime" in discs(seen) and "black" not in discs(seen))
    assert not tinted(seen).any()
    place = on_page(page, discs(seen)["lime"])
    touch(page, "touchStart", place)
    touch(page, "touchEnd")
    (stroke,) = value(page)["strokes"]
    assert close(stroke, disc("wide", "lime"), disc("wide", "lime"))


# Pictures come and go


def test_of_an_old_picture_nothing_remains(open_board):
    page = open_board("wide")
    page.click("#masked")
    until(page, lambda seen: tinted(seen).any())
    draw_over(page, "black", "blue")
    choose(page, "tall")
    assert not tinted(look(page)).any()
    now = value(page)
    assert (now["source"], now["mask"], now["mask_url"], now["strokes"]) == ("tall", "", "", [])
    page.locator(SURFACE).focus()
    page.keyboard.press("Control+z")
    assert value(page) == now


def test_a_removed_picture_can_be_brought_back(open_board):
    page = open_board("wide")
    draw_over(page, "black", "blue")
    before = value(page)
    press(page, "Remove picture")
    expect(page.locator("#came textarea")).to_have_value("removed")
    expect(page.get_by_text("Drop a picture here")).to_be_visible()
    assert value(page)["source"] == ""
    press(page, "Bring the removed picture back")
    until(page, lambda seen: tinted(seen).any())
    assert value(page) == before


def transfer(page: Page, name: str = "fox.png", kind: str = "image/png"):
    return page.evaluate_handle(
        """([name, type]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(9)], name, { type }));
            return transfer;
        }""",
        [name, kind],
    )


def came(page: Page, text: str) -> None:
    expect(page.locator("#came textarea")).to_have_value(text)


def test_a_picture_comes_by_choice_drop_and_paste(open_board, tmp_path):
    page = open_board("")
    Image.new("RGB", (8, 8)).save(tmp_path / "chosen.png")
    with page.expect_file_chooser() as chooser:
        press(page, "Choose a file")
    chooser.value.set_files(tmp_path / "chosen.png")
    came(page, "source chosen.png")
    page.dispatch_event(".ask", "drop", {"dataTransfer": transfer(page, "dropped.png"), "shiftKey": True})
    came(page, "source dropped.png")  # there is no picture yet that it could be a mask for
    page.evaluate(
        """(data) => document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }))""",
        transfer(page, "pasted.png"),
    )
    came(page, "source pasted.png")
    page.dispatch_event(".ask", "drop", {"dataTransfer": transfer(page, "notes.txt", "text/plain")})
    expect(page.get_by_text("That is not a picture.")).to_be_visible()


def test_a_mask_comes_by_choice_and_by_a_drop_of_its_own(open_board, tmp_path):
    page = open_board("wide")
    Image.new("L", (8, 8)).save(tmp_path / "chosen.png")
    with page.expect_file_chooser() as chooser:
        press(page, "Upload mask")
    chooser.value.set_files(tmp_path / "chosen.png")
    came(page, "mask chosen.png")
    page.dispatch_event(SURFACE, "dragenter", {"dataTransfer": transfer(page)})
    page.dispatch_event("[data-drop=mask]", "drop", {"dataTransfer": transfer(page, "dropped.png")})
    came(page, "mask dropped.png")
    page.dispatch_event(SURFACE, "drop", {"dataTransfer": transfer(page, "shifted.png"), "shiftKey": True})
    came(page, "mask shifted.png")
    page.dispatch_event(SURFACE, "drop", {"dataTransfer": transfer(page, "another.png")})
    came(page, "source another.png")


def test_the_blank_sheet_and_the_last_result_are_the_pages_to_give(open_board):
    page = open_board("")
    press(page, "Blank sheet")
    came(page, "blank-sheet")
    press(page, "Last result")
    came(page, "use-last")


def test_the_camera_takes_a_picture_and_goes_off(browser, server):
    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    path = next(filter(None, map(shutil.which, BROWSERS)))
    camera = browser.browser_type.launch(executable_path=path, args=[*FLAGS, *flags])
    page = camera.new_page()
    page.goto(server)
    press(page, "Camera")
    page.wait_for_function("document.querySelector('video').videoWidth > 0")
    tracks = page.evaluate_handle("document.querySelector('video').srcObject.getTracks()")
    press(page, "Take the picture")
    came(page, "source camera.png")
    assert tracks.evaluate("tracks => tracks.map((track) => track.readyState)") == ["ended"]
    camera.close()


def test_a_refused_camera_is_said_so(open_board):
    page = open_board("")
    page.context.clear_permissions()
    press(page, "Camera")
    expect(page.locator(".said")).to_have_text(re.compile("camera .*[.]$|^No camera"))


def test_everything_has_a_name_and_the_surface_tells_what_is_on_it(open_board):
    page = open_board("wide")
    surface = page.get_by_role("application")
    expect(surface).to_have_accessible_name("Picture, 1500 × 1000 pixels. Drawn: nothing.")
    draw_over(page, "black", "blue")
    draw_over(page, "black", "lime")
    expect(surface).to_have_accessible_name("Picture, 1500 × 1000 pixels. Drawn: 2 mask strokes.")
    for control in page.locator(".board :is(button, input)").all():
        if control.is_visible():
            assert control.evaluate("it => (it.ariaLabel || it.innerText || it.title).trim()")
    height = page.locator(".board").bounding_box()["height"]
    press(page, "Remove picture")
    assert page.locator(".board").bounding_box()["height"] == height
