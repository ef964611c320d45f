"""Numbers of a grid's pictures, against hand-made pictures and scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from webui.grid.measures import MEASURES, SIDE, WINDOW, Measured, Numbers, distance, look, structure


def picture(seed: int, size: tuple[int, int] = (80, 48)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def flat(*colour: int) -> Image.Image:
    return Image.new("RGB", (32, 32), colour)


def test_clipped_counts_pixels_with_any_channel_at_an_end():
    image = flat(1, 128, 254)
    assert look(image).clipped == 0
    for at, colour in enumerate([(0, 5, 5), (5, 255, 5), (0, 0, 255), (1, 1, 1)]):
        image.putpixel((at, 0), colour)
    assert look(image).clipped == 3 / 1024


def test_saturation_is_the_mean_chroma():
    assert look(flat(90, 90, 90)).saturation == 0
    assert look(flat(255, 0, 0)).saturation == 1
    assert look(flat(200, 98, 149)).saturation == pytest.approx(102 / 255)
    assert look(flat(1, 0, 0)).saturation < 0.01  # HSV would call this black fully saturated


def test_sharpness_is_the_variance_of_the_laplacian():
    image = picture(1)
    grey = np.asarray(image.convert("L"), float)
    kernel = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]
    expected = np.var(ndimage.convolve(grey, kernel)[1:-1, 1:-1])
    assert look(image).sharpness == pytest.approx(expected)
    assert look(flat(3, 4, 5)).sharpness == 0
    assert look(Image.new("RGB", (1, 1))).sharpness == 0


def test_distance_is_the_root_mean_square_of_the_difference():
    black, white, grey = (look(flat(v, v, v)).small for v in (0, 255, 51))
    assert distance(black, np.stack([black, grey, white])) == pytest.approx([0, 0.2, 1])
    red, others = look(flat(255, 0, 0)).small, np.stack([black])
    assert distance(red, others) == pytest.approx([3**-0.5])


def test_pictures_of_two_sizes_compare():
    image = picture(2, (SIDE * 2, SIDE * 3))
    assert look(image).small.shape == (SIDE, SIDE, 3)
    expected = np.asarray(image, float).reshape(SIDE, 3, SIDE, 2, 3).mean(axis=(1, 3))
    assert np.abs(look(image).small - expected).max() < 1  # Pillow rounds after rows and after columns


def test_structure_is_ssim():
    one, other = look(picture(3)).small, look(picture(4)).small
    nearly = np.clip(one.astype(int) + 9, 0, 255).astype(np.uint8)
    found = structure(one, np.stack([one, other, nearly]))
    expected = [(1 - ssim(one.mean(-1), b.mean(-1))) / 2 for b in (one, other, nearly)]
    assert found == pytest.approx(expected, abs=1e-9)
    assert found[0] == 0
    assert found[2] < 0.05 < 0.3 < found[1]


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """By scipy's filter, on whole windows."""
    half = WINDOW // 2

    def mean(x):
        return ndimage.uniform_filter(x, WINDOW)[half:-half, half:-half]

    ma, mb = mean(a), mean(b)
    va, vb, vab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 6.5025, 58.5225
    return float(((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


COSTS = {
    (x, y, 0, k): (10 * (y + 1)) * (2 if x == 1 else 1) for x in range(3) for y in range(4) for k in range(2)
}


def expected(pictures: dict) -> dict:
    """The numbers of all cells, each from scratch."""
    looks = {index: look(image) for index, image in pictures.items()}

    def apart(a, b):
        return float(distance(looks[a].small, looks[b].small[None])[0])

    found = {}
    for (x, y, z, k), own in looks.items():
        near = [(x - 1, y, z, k), (x + 1, y, z, k), (x, y - 1, z, k), (x, y + 1, z, k)]
        distances = [apart((x, y, z, k), other) for other in near if other in looks]
        dearest = (x, 3, z, k)  # net calls vary by 4 along y, by 2 along x
        here = dearest in looks
        unlike = float(structure(looks[dearest].small, own.small[None])[0]) if here else None
        found[x, y, z, k] = Numbers(
            COSTS[x, y, z, k], None, own.clipped, own.saturation, own.sharpness,
            pytest.approx(np.mean(distances)) if distances else None,
            pytest.approx(apart((x, y, z, k), dearest)) if here else None,
            pytest.approx(unlike) if here else None,
        )  # fmt: skip
    return found


@given(st.permutations(sorted(COSTS)), st.integers(1, len(COSTS)))
@settings(max_examples=10, deadline=None)
def test_numbers_do_not_depend_on_the_order_of_arrival(order, count):
    measured = Measured(COSTS)
    for n, index in enumerate(order[:count]):
        measured.add(index, picture(n))
    assert dict(measured.numbers) == expected({index: picture(n) for n, index in enumerate(order[:count])})


def test_a_recomputed_picture_takes_the_place_of_the_first():
    measured = Measured(COSTS)
    pictures = {index: picture(n) for n, index in enumerate(COSTS)}
    for index, image in [((1, 3, 0, 0), flat(9, 9, 9)), *pictures.items()]:
        measured.add(index, image)
    assert dict(measured.numbers) == expected(pictures)


def test_where_all_cells_cost_the_same_none_is_the_most_expensive():
    measured = Measured({(x, 0, 0, 0): 20 for x in range(3)})
    for x in range(3):
        measured.add((x, 0, 0, 0), picture(x), seconds=1.5)
    assert {one.to_most_expensive for one in measured.numbers.values()} == {None}
    assert {(one.seconds, one.net_calls) for one in measured.numbers.values()} == {(1.5, 20)}


def test_the_most_expensive_of_its_line_is_the_last_of_equals_and_at_no_distance_from_itself():
    measured = Measured({(0, 0, 0, 0): 10, (1, 0, 0, 0): 20, (2, 0, 0, 0): 20})
    for x in range(3):
        measured.add((x, 0, 0, 0), picture(x))
    far = [measured.numbers[x, 0, 0, 0].to_most_expensive for x in range(3)]
    assert far[2] == 0 < min(far[:2])


def test_each_picture_is_measured_once(monkeypatch):
    seen = []
    monkeypatch.setattr("webui.grid.measures.look", lambda image: seen.append(image) or look(image))
    measured = Measured(COSTS)
    for n, index in enumerate(COSTS):
        measured.add(index, picture(n))
    assert len(seen) == len(COSTS)


def test_every_number_has_a_name_and_is_shown():
    assert set(MEASURES) == set(Numbers.__dataclass_fields__)
    assert MEASURES["clipped"].show(0.0123) == "1.23 %"
    assert MEASURES["net_calls"].show(39) == "39"
    assert MEASURES["seconds"].show(None) == "–"
