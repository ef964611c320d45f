"""What a person drew: strokes become exactly the pixels under the brush, in the order they were drawn."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from webui import strokes
from webui.errors import InvalidField
from webui.strokes import FARTHEST, MAX_BRUSH, MAX_POINTS, MAX_STROKES, Stroke

SIZE = (40, 30)


def stroke(
    kind: str = "mask", size: float = 6, points: object = ((10, 10),), color: str = "#ff0000"
) -> Stroke:
    return Stroke(kind=kind, color=color, size=float(size), points=points)


def drawn(*lines: Stroke, size: tuple[int, int] = SIZE, base: Image.Image | None = None) -> np.ndarray:
    return np.asarray(strokes.mask(size, lines, base)) > 0


def distances(points: list[tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
    """From the middle of every pixel to the line, piece by piece."""
    middle = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1])), -1) + 0.5
    nearest = np.full(size[::-1], np.inf)
    for a, b in zip(points, points[1:] or points, strict=False):
        way = np.subtract(b, a)
        along = np.clip((middle - a) @ way / max(way @ way, 1e-300), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(middle - a - along[..., None] * way, axis=-1))
    return nearest


PLACES = st.floats(-30, 70) | st.integers(-30, 70).map(float)
SIDES = st.integers(1, 50)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(PLACES, PLACES), min_size=1, max_size=6),
    st.floats(1, 60) | st.integers(1, 60).map(float),
    st.tuples(SIDES, SIDES),
)
def test_a_stroke_covers_the_pixels_whose_middle_is_under_the_round_brush(points, diameter, size):
    away = distances(points, size) - diameter / 2
    inside = drawn(stroke(size=diameter, points=points), size=size)
    assert inside[away < -1e-6].all()
    under_points = np.zeros(size[::-1], bool)
    for x, y in points:
        if 0 <= x < size[0] and 0 <= y < size[1]:
            under_points[int(y), int(x)] = True
    assert not inside[(away > 1e-6) & ~under_points].any()


def test_a_brush_finer_than_a_pixel_still_leaves_its_mark():
    assert drawn(stroke(size=0.1, points=[(3.9, 7.1)])).nonzero() == (7, 3)
    assert drawn(stroke(size=1, points=[(3.5, 7.5), (9.5, 7.5)])).nonzero()[1].tolist() == [
        3,
        4,
        5,
        6,
        7,
        8,
        9,
    ]


def test_a_stroke_far_outside_leaves_the_mask_empty():
    assert not drawn(stroke(points=[(-500, -500), (-400, 900)])).any()


def test_a_stroke_that_crosses_the_picture_from_outside_is_seen_in_it():
    crossing = drawn(stroke(size=4, points=[(-1000, 15), (1000, 15)]))
    assert crossing[13:17].all()
    assert crossing.sum() == 4 * SIZE[0]


def test_long_strokes_are_drawn_in_parts_without_a_seam(monkeypatch):
    points = [(x % 40, (x * 7) % 30) for x in range(60)]
    whole = drawn(stroke(points=points, size=3))
    monkeypatch.setattr(strokes, "_SPANS_AT_ONCE", 100)
    assert np.array_equal(drawn(stroke(points=points, size=3)), whole)


# Order


def test_an_eraser_takes_away_what_was_drawn_before_it_and_nothing_drawn_after():
    left, right = stroke(points=[(10, 10)]), stroke(points=[(30, 10)])
    eraser = stroke("erase", size=200)
    assert not drawn(left, right, eraser).any()
    assert np.array_equal(drawn(left, eraser, right), drawn(right))


def test_an_eraser_takes_away_the_mask_that_was_there_before():
    base = Image.new("L", SIZE, 255)
    erased = drawn(stroke("erase", size=10, points=[(20, 15)]), base=base)
    assert np.array_equal(~erased, drawn(stroke(size=10, points=[(20, 15)])))
    assert base.getextrema() == (255, 255)  # untouched


def test_the_mask_that_was_there_keeps_its_greys_where_nothing_was_drawn():
    mask = strokes.mask(SIZE, [stroke(points=[(5, 5)])], Image.new("L", SIZE, 100))
    assert (mask.getpixel((5, 5)), mask.getpixel((30, 20))) == (255, 100)


def test_a_mask_of_another_size_than_its_picture_is_refused():
    with pytest.raises(InvalidField, match="39x30") as refusal:
        strokes.mask(SIZE, [], Image.new("L", (39, 30)))
    assert refusal.value.field == "mask_image"


def test_what_was_painted_is_repainted_unless_paint_is_only_a_sketch():
    lines = [stroke("paint", points=[(10, 10)]), stroke("mask", points=[(30, 10)])]
    assert drawn(*lines)[10, 10]
    only = np.asarray(strokes.mask(SIZE, lines, paint=False)) > 0
    assert (only[10, 10], only[10, 30]) == (False, True)


def test_paint_covers_the_picture_in_the_order_it_was_drawn_and_the_eraser_brings_the_picture_back():
    picture = Image.effect_noise(SIZE, 80).convert("RGB")
    red = stroke("paint", size=20, points=[(10, 15), (30, 15)])
    blue = stroke("paint", size=6, points=[(10, 15)], color="#0000FF")
    gone = stroke("erase", size=8, points=[(30, 15)])
    seen = strokes.painted(picture, [red, gone, stroke("mask", points=[(20, 3)]), blue])
    assert [seen.getpixel(at) for at in ((10, 15), (20, 15))] == [(0, 0, 255), (255, 0, 0)]
    assert seen.getpixel((30, 15)) == picture.getpixel((30, 15))
    assert seen.getpixel((20, 3)) == picture.getpixel((20, 3))
    untouched = ~drawn(red, blue)
    assert np.array_equal(np.asarray(seen)[untouched], np.asarray(picture)[untouched])
    assert picture.getpixel((10, 15)) != (0, 0, 255)  # the source itself is left as it was


# What a page sends

GOOD = {"kind": "mask", "color": "#a0b1c2", "size": 12.5, "points": [[1, 2.5], [3, 4]]}


def test_what_a_page_sends_is_read():
    read = strokes.read(json.loads(json.dumps([GOOD, {**GOOD, "kind": "erase"}])))
    assert read == (
        Stroke(kind="mask", color="#a0b1c2", size=12.5, points=((1, 2.5), (3, 4))),
        Stroke(kind="erase", color="#a0b1c2", size=12.5, points=((1, 2.5), (3, 4))),
    )
    assert strokes.read([]) == ()


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "[]",
        {},
        5,
        [None],
        [[]],
        ["mask"],
        [{}],
        [{**GOOD, "kind": "spray"}],
        [{**GOOD, "kind": None}],
        [{**GOOD, "color": "red"}],
        [{**GOOD, "color": "#fff"}],
        [{**GOOD, "color": "#ffffff; x"}],
        [{**GOOD, "size": 0}],
        [{**GOOD, "size": -1}],
        [{**GOOD, "size": True}],
        [{**GOOD, "size": "5"}],
        [{**GOOD, "size": float("nan")}],
        [{**GOOD, "size": MAX_BRUSH + 1}],
        [{**GOOD, "points": []}],
        [{**GOOD, "points": None}],
        [{**GOOD, "points": [[1]]}],
        [{**GOOD, "points": [[1, 2, 3]]}],
        [{**GOOD, "points": [["1", "2"]]}],
        [{**GOOD, "points": [[1, None]]}],
        [{**GOOD, "points": [[1, float("nan")]]}],
        [{**GOOD, "points": [[float("inf"), 1]]}],
        [{**GOOD, "points": [[1, FARTHEST + 1]]}],
        [{**GOOD, "points": [[0, 0]] * (MAX_POINTS + 1)}],
        [{**GOOD, "opacity": 1}],
        [GOOD] * (MAX_STROKES + 1),
        [{**GOOD, "points": [[0, 0]] * MAX_POINTS}] * 21,
        [{**GOOD, "size": 4000, "points": [[0, 0]] * MAX_POINTS}],
    ],
)
def test_what_is_no_list_of_strokes_is_refused_by_name(value):
    with pytest.raises(InvalidField) as refusal:
        strokes.read(value)
    assert refusal.value.field == "mask_image"
    assert str(refusal.value).startswith("Mask: ")
    assert len(str(refusal.value)) < 300


def test_a_session_of_drawing_is_well_within_the_limits():
    """Ten minutes at 100 points a second with a brush of 200 pixels."""
    line = {**GOOD, "size": 200, "points": [[x % 1000, x % 700] for x in range(200)]}
    assert len(strokes.read([line] * 300)) == 300
