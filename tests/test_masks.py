"""Masks: what is not painted stays as it was, to the pixel; what is painted is where a person painted it."""

import math
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageDraw, ImageFilter
from scipy.ndimage import distance_transform_edt
from scipy.special import ndtr

from webui import masks
from webui.errors import InvalidField
from webui.images import open_picture, open_upright
from webui.masks import Repaint, prepare, used
from webui.request import INPAINT_AREAS, MASKED_CONTENTS, RESIZE_MODES, GenerationRequest

DIGEST = "0" * 64
SIDES = ("left", "top", "right", "bottom")


def asking(**fields: object) -> GenerationRequest:
    return GenerationRequest(**{"image": DIGEST, "mask_image": DIGEST, "width": 128, "height": 128} | fields)


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def painted(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Image.Image:
    """A mask that is 255 in boxes (left, top, right, bottom)."""
    mask = Image.new("L", size)
    for box in boxes:
        mask.paste(255, box)
    return mask


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def refusal(request: GenerationRequest, size: tuple[int, int], mask: Image.Image | None) -> InvalidField:
    with pytest.raises(InvalidField) as error:
        prepare(request, Image.new("RGB", size), mask)
    return error.value


# What is exact

lengths = st.integers(1, 200)
multiples = st.integers(8, 32).map(lambda k: 8 * k)


@st.composite
def paintings(draw: st.DrawFn) -> tuple[GenerationRequest, Image.Image, Image.Image | None]:
    size = draw(st.tuples(lengths, lengths) | st.sampled_from([(600, 7), (5, 400), (1, 1)]))
    fields = {
        "width": draw(multiples),
        "height": draw(multiples),
        "resize_mode": draw(st.sampled_from(RESIZE_MODES)),
        "mask_inverted": draw(st.booleans()),
        "mask_grow": draw(st.just(0) | st.integers(-12, 12) | st.integers(-256, 256)),
        "mask_blur": draw(st.just(0.0) | st.floats(0, 8) | st.floats(0, 64)),
        "masked_content": draw(st.sampled_from(MASKED_CONTENTS)),
        "inpaint_area": draw(st.sampled_from(INPAINT_AREAS)),
        "masked_padding": draw(st.integers(0, 256)),
        "soft_inpainting": draw(st.booleans()),
    }
    fields |= {f"extend_{side}": draw(st.just(0) | st.integers(0, 150)) for side in SIDES}
    extends = any(fields[f"extend_{side}"] for side in SIDES)
    mask = draw(st.none() | masks_of(size)) if extends else draw(masks_of(size))
    request = asking(mask_image="" if mask is None else DIGEST, **fields)
    return request, noise(size, draw(st.integers(0, 2**32 - 1))), mask


@st.composite
def masks_of(draw: st.DrawFn, size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size)
    pen = ImageDraw.Draw(mask)
    places = st.tuples(st.integers(0, size[0]), st.integers(0, size[1]))
    for _ in range(draw(st.integers(1, 3))):
        line = draw(st.lists(places, min_size=2, max_size=4))
        pen.line(line, fill=draw(st.sampled_from([255, 255, 0, 90])), width=draw(st.integers(1, 40)))
    return mask


def planned(request: GenerationRequest, image: Image.Image, mask: Image.Image | None) -> Repaint | None:
    """The layout; None if nothing of a random mask is left."""
    try:
        return prepare(request, image, mask)
    except InvalidField as error:
        if error.field not in ("mask_image", "mask_grow", "mask_blur"):
            raise
        return None


@settings(max_examples=400, deadline=None)
@given(paintings(), st.integers(0, 2**32 - 1))
def test_where_the_used_mask_is_0_not_one_pixel_changes_and_where_it_is_255_all_are_new(painting, seed):
    request = painting[0]
    plan = planned(*painting)
    if plan is None:
        return
    picture = noise((request.width, request.height), seed)
    finished, weight = plan.finish(picture), levels(plan.mask)
    changed = np.abs(levels(finished) - levels(plan.canvas)).max(-1)
    largest = changed[weight == 0].max(initial=0)
    print("largest difference where the mask is 0:", largest)  # noqa: T201
    assert largest == 0
    left, top, right, bottom = plan.box
    new = levels(picture.resize((right - left, bottom - top), Image.Resampling.LANCZOS))
    inside = finished.crop(plan.box), plan.mask.crop(plan.box)
    assert np.array_equal(levels(inside[0])[levels(inside[1]) == 255], new[levels(inside[1]) == 255])


@settings(max_examples=300, deadline=None)
@given(paintings())
def test_the_box_holds_the_mask_in_the_proportions_asked_for_inside_the_canvas(painting):
    request = painting[0]
    plan = planned(*painting)
    if plan is None:
        return
    (left, top, right, bottom), (width, height) = plan.box, plan.canvas.size
    assert plan.mask.size == plan.canvas.size
    assert {plan.image.size, plan.hard.size, plan.soft.size} == {(request.width, request.height)}
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    around = levels(plan.mask)
    around[top:bottom, left:right] = 0
    assert not around.any()
    if request.inpaint_area == "Whole picture":
        assert plan.box == (0, 0, request.width, request.height)
    else:
        across, down = right - left, bottom - top
        wanted = request.width / request.height
        assert across == width or down == height or abs(across - down * wanted) <= 0.5 * max(1, wanted)
        bounds, pad = plan.mask.getbbox(), request.masked_padding
        assert left <= max(0, bounds[0] - pad)
        assert bottom >= min(height, bounds[3] + pad)


@settings(max_examples=100, deadline=None)
@given(paintings())
def test_an_extension_is_made_anew_wholly_and_the_middle_of_the_source_is_kept(painting):
    request, image, _ = painting
    if not request.extends:
        return
    request = request.replace(inpaint_area="Only masked", mask_image="")
    plan = prepare(request, image, None)
    left, top = request.extend_left, request.extend_top
    right, bottom = left + image.width, top + image.height
    new = np.ones(plan.mask.size[::-1], bool)
    new[top:bottom, left:right] = False
    assert (levels(plan.mask)[new] == 255).all()
    assert np.array_equal(levels(plan.canvas)[~new], levels(image).reshape(-1, 3))
    if min(image.size) > 12 * request.mask_blur + 4:
        assert plan.mask.getpixel(((left + right) // 2, (top + bottom) // 2)) == 0


def test_without_blur_a_source_is_kept_up_to_its_very_edge():
    request = asking(mask_image="", extend_left=20, mask_blur=0.0, inpaint_area="Only masked")
    mask = levels(prepare(request, noise((40, 30)), None).mask)
    assert (mask[:, :20] == 255).all()
    assert (mask[:, 20:] == 0).all()


def test_an_extension_is_feathered_into_the_source_by_its_blur():
    request = asking(mask_image="", extend_right=100, mask_blur=8.0, inpaint_area="Only masked")
    row = levels(prepare(request, noise((200, 30)), None).mask)[15]
    assert (row[200:] == 255).all()
    assert abs(row[200 - 16] - 127.5) < 10  # half at twice the blur
    assert (np.diff(row) >= 0).all()
    assert row[199] > 240
    assert (row[:150] == 0).all()


def test_the_source_may_be_extended_and_repainted_at_once():
    request = asking(extend_top=30, inpaint_area="Only masked", mask_blur=0.0)
    mask = levels(prepare(request, noise((60, 50)), painted((60, 50), (10, 20, 30, 40))).mask)
    assert set(map(tuple, np.argwhere(mask[30:] == 255))) == {
        (y, x) for y in range(20, 40) for x in range(10, 30)
    }


# Where the mask lies


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [(1500, 1000), (700, 1400), (97, 1021), (64, 64), (6000, 300)])
def test_picture_and_mask_have_the_same_geometry(size, mode):
    """A white square in a black picture, and the mask painted over just that square, must coincide."""
    w, h = size
    box = (w * 2 // 5, h * 2 // 5, w * 3 // 5, h * 3 // 5)
    mask = painted(size, box)
    plan = prepare(asking(width=512, height=384, resize_mode=mode, mask_blur=0.0), mask.convert("RGB"), mask)
    white = plan.canvas.convert("L").point(lambda level: 255 * (level > 127)).getbbox()
    inside = plan.mask
    if mode == "Fill":  # whose border is painted too
        scale = min(512 / w, 384 / h)
        rim = [
            math.ceil((side - scale * length) / 2) + 2 for side, length in zip((512, 384), size, strict=True)
        ]
        inside = Image.new("L", (512, 384))
        inside.paste(plan.mask.crop(seen := (rim[0], rim[1], 512 - rim[0], 384 - rim[1])), seen)
    assert np.abs(np.subtract(inside.getbbox(), white)).max() <= 1
    assert np.array_equal(levels(plan.hard), levels(plan.mask))


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.tuples(multiples, multiples),
    st.sampled_from(["Stretch", "Fill"]),
    st.sampled_from(INPAINT_AREAS),
    st.data(),
)
def test_no_pixel_that_was_painted_is_lost_however_small_the_picture_becomes(size, target, mode, area, data):
    """One pixel of a large picture still is a pixel that the net may change."""
    x, y = data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))
    request = asking(width=target[0], height=target[1], resize_mode=mode, mask_blur=0.0, inpaint_area=area)
    plan = prepare(request, Image.new("RGB", size), painted(size, (x, y, x + 1, y + 1)))
    assert plan.hard.getbbox()
    assert set(np.unique(levels(plan.hard))) <= {0, 255}
    if area == "Whole picture" and mode == "Stretch":
        middle = (x + 0.5) / size[0] * target[0], (y + 0.5) / size[1] * target[1]
        assert plan.hard.getpixel((int(middle[0]), int(middle[1]))) == 255
        assert plan.mask.getpixel((int(middle[0]), int(middle[1]))) == 255


def test_at_its_own_size_a_mask_is_used_as_it_was_painted():
    mask = painted((96, 64), (13, 7, 50, 31), (80, 60, 81, 61))
    plan = prepare(asking(width=96, height=64, mask_blur=0.0), noise((96, 64)), mask)
    assert np.array_equal(levels(plan.mask), levels(mask))
    assert np.array_equal(levels(plan.hard), levels(mask))
    assert np.array_equal(levels(plan.soft), levels(mask))


def test_only_masked_computes_a_part_and_leaves_a_picture_of_any_size():
    image = noise((301, 203))
    mask = painted(image.size, (100, 50, 140, 80))
    plan = prepare(asking(inpaint_area="Only masked", masked_padding=8, mask_blur=0.0), image, mask)
    assert plan.box == (92, 37, 148, 93)  # 56 x 46 made square
    part = image.crop(plan.box).resize((128, 128), Image.Resampling.LANCZOS)
    middle = (16, 16, 112, 112)  # near its border a resized picture sees what lies beyond, its crop cannot
    assert np.array_equal(levels(plan.image.crop(middle)), levels(part.crop(middle)))
    assert plan.finish(noise((128, 128))).size == (301, 203)


@pytest.mark.parametrize(
    ("box", "expected"),
    [((0, 0, 10, 10), (0, 0, 42, 42)), ((390, 190, 400, 200), (358, 158, 400, 200))],
)
def test_near_a_border_the_box_moves_inwards(box, expected):
    request = asking(inpaint_area="Only masked", mask_blur=0.0)
    assert prepare(request, noise((400, 200)), painted((400, 200), box)).box == expected


def test_a_box_too_large_for_its_canvas_takes_what_there_is():
    request = asking(inpaint_area="Only masked", mask_blur=0.0)
    plan = prepare(request, noise((400, 100)), painted((400, 100), (10, 10, 390, 20)))
    assert plan.box == (0, 0, 400, 100)


@pytest.mark.parametrize("size", [(750, 500), (375, 250), (100, 67), (3000, 2000)])
def test_a_mask_of_the_same_proportions_is_scaled_to_its_picture(size):
    box = (size[0] // 5, size[1] // 5, size[0] * 2 // 5, size[1] * 2 // 5)
    request = asking(width=1504, height=1000, resize_mode="Stretch", mask_blur=0.0)
    bounds = used(request, (1500, 1000), painted(size, box)).mask.getbbox()
    assert np.abs(np.subtract(bounds, (300, 200, 600, 400))).max() <= 1500 / size[0] + 2


@pytest.mark.parametrize("size", [(1000, 1500), (1500, 997), (750, 503), (1500, 1)])
def test_a_mask_of_other_proportions_is_refused(size):
    error = refusal(asking(), (1500, 1000), Image.new("L", size, 255))
    assert error.field == "mask_image"
    assert f"{size[0]}x{size[1]}" in str(error)
    assert "1500x1000" in str(error)


# Inverted, grown, blurred


def flat(mask: Image.Image, **fields: object) -> np.ndarray:
    """The mask as used on a canvas of its own size."""
    return levels(used(asking(width=mask.width, height=mask.height, **fields), mask.size, mask).mask)


@settings(max_examples=150, deadline=None)
@given(masks_of((320, 280)), st.integers(1, 256))
def test_growing_and_shrinking_are_by_a_disc(mask, radius):
    solid = levels(mask) >= 128
    if not solid.any() or solid.all():
        return
    grown = flat(mask, mask_grow=radius, mask_blur=0.0) > 0
    assert np.array_equal(grown, distance_transform_edt(~solid) <= radius)
    left = distance_transform_edt(solid) > radius
    if left.any():
        assert np.array_equal(flat(mask, mask_grow=-radius, mask_blur=0.0) > 0, left)


def test_the_border_of_the_picture_is_no_edge_to_shrink_from():
    half = painted((128, 64), (0, 0, 64, 64))
    assert np.array_equal(
        flat(half, mask_grow=-10, mask_blur=0.0), levels(painted((128, 64), (0, 0, 54, 64)))
    )


@pytest.mark.parametrize("blur", [1.0, 2.5, 4.0, 16.0, 64.0])
def test_the_blur_is_a_gaussian_of_that_standard_deviation(blur):
    edge = flat(painted((1024, 64), (0, 0, 512, 64)), mask_blur=blur)[32]
    exact = 255 * ndtr((512 - (np.arange(1024) + 0.5)) / blur)
    assert np.abs(edge - exact).max() <= 255 * 0.02 + 1
    profile = -np.diff(edge) / 255
    middle = np.arange(1, 1024)
    mean = (profile * middle).sum()
    assert abs(np.sqrt((profile * (middle - mean) ** 2).sum()) / blur - 1) < 0.03


def test_an_inverted_mask_repaints_what_is_not_painted():
    mask = painted((128, 128), (30, 40, 90, 100))
    assert np.array_equal(flat(mask, mask_inverted=True, mask_blur=0.0), 255 - levels(mask))
    twice = Image.fromarray(255 - np.asarray(mask))
    assert np.array_equal(flat(mask, mask_inverted=True, mask_grow=3), flat(twice, mask_grow=3))


def test_greys_count_with_soft_inpainting_only():
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (64, 1)))
    assert np.array_equal(flat(ramp, mask_blur=0.0), levels(ramp.point(lambda level: 255 * (level >= 128))))
    assert np.array_equal(flat(ramp, mask_blur=0.0, soft_inpainting=True), levels(ramp))
    request = asking(width=256, height=64, mask_blur=0.0, soft_inpainting=True)
    plan = prepare(request, noise((256, 64)), ramp)
    assert np.array_equal(levels(plan.hard) > 0, levels(ramp) > 0)


@pytest.mark.parametrize(
    ("fields", "mask", "field"),
    [
        ({}, painted((90, 60)), "mask_image"),
        ({}, None, "mask_image"),
        ({}, Image.new("L", (90, 60), 127), "mask_image"),
        ({"mask_inverted": True}, Image.new("L", (90, 60), 255), "mask_image"),
        ({"resize_mode": "Crop", "width": 64, "height": 128}, painted((90, 60), (0, 0, 9, 60)), "mask_image"),
        ({"mask_grow": -12}, painted((90, 60), (20, 20, 30, 30)), "mask_grow"),
        ({"mask_blur": 64.0}, painted((90, 60), (20, 20, 21, 21)), "mask_blur"),
        ({"extend_left": 2048, "extend_top": 2048}, None, "extend_left"),
    ],
)
def test_where_nothing_is_left_to_repaint_or_too_much_the_field_to_change_is_named(fields, mask, field):
    size = (90, 60) if "extend_left" not in fields else (30_000, 300)
    assert refusal(asking(**fields), size, mask).field == field


# What the net sees


def test_holes_are_filled_with_their_surroundings_and_nothing_of_what_was_there():
    image = Image.new("RGB", (128, 128), (40, 160, 220))
    image.paste((255, 0, 0), (40, 40, 80, 80))
    mask = painted(image.size, (36, 36, 84, 84))
    plan = prepare(asking(masked_content="Fill", mask_blur=0.0), image, mask)
    assert np.abs(levels(plan.image) - (40, 160, 220)).max() <= 1
    for content in ("Original", "Latent noise", "Latent nothing"):
        plan = prepare(asking(masked_content=content, mask_blur=0.0), image, mask)
        assert np.array_equal(levels(plan.image), levels(image))


def test_a_filled_hole_goes_over_smoothly_into_what_surrounds_it():
    ramp = np.tile(np.arange(128, dtype=np.uint8)[:, None] * 2, (128, 1, 3))
    image = Image.fromarray(np.ascontiguousarray(ramp))
    hole = painted(image.size, (30, 30, 98, 98))
    hollow = image.copy()
    hollow.paste((255, 0, 255), (30, 30, 98, 98))
    filled = levels(prepare(asking(masked_content="Fill", mask_blur=0.0), hollow, hole).image)
    outside = levels(hole) == 0
    assert np.array_equal(filled[outside], ramp[outside])
    assert np.abs(np.diff(filled[:, :, 0], axis=1)).max() < 40
    assert np.abs(filled - ramp)[40:88, 40:88].mean() < 20


def test_a_picture_that_is_all_hole_is_filled_with_grey():
    plan = prepare(asking(masked_content="Fill"), noise((50, 50)), Image.new("L", (50, 50), 255))
    assert np.unique(levels(plan.image)).tolist() == [128]


def test_the_new_border_has_the_colours_of_the_picture_beside_it():
    image = Image.new("RGB", (64, 64), (200, 0, 0))
    image.paste((0, 0, 200), (32, 0, 64, 64))
    request = asking(mask_image="", extend_left=64, extend_right=64, inpaint_area="Only masked")
    plan = prepare(request, image, None)
    assert plan.canvas.size == (192, 64)
    assert plan.canvas.getpixel((2, 32)) == (200, 0, 0)
    assert plan.canvas.getpixel((189, 32)) == (0, 0, 200)


# Sizes


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_is_stretched_cut_or_fitted_inside(mode):
    wide = Image.new("RGB", (300, 100), (200, 200, 200)).convert(mode)
    wide.paste("black", (0, 0, 100, 100))
    wide.paste("white", (200, 0, 300, 100))

    def across(how: str) -> list[int]:
        row = masks.resized(wide, (96, 96), how).convert("L")
        assert row.size == (96, 96)
        return [row.getpixel((x, 48)) for x in (8, 48, 88)]

    assert across("Stretch") == across("Latent") == across("Fill") == [0, 200, 255]
    assert across("Crop") == [200, 200, 200]
    fitted = masks.resized(wide, (96, 96), "Fill").crop((0, 32, 96, 64))
    inside = wide.resize((96, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(levels(fitted), levels(inside))


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (17, 23)])
def test_pictures_of_any_shape_can_be_resized(size, mode):
    for target in ((64, 64), (8, 1000), (1000, 8)):
        assert masks.resized(noise(size), target, mode).size == target


def test_at_the_same_size_nothing_changes():
    image = noise((64, 48))
    for mode in RESIZE_MODES:
        assert np.array_equal(levels(masks.resized(image, (64, 48), mode)), levels(image))


def test_the_mask_is_shown_where_it_is_used():
    canvas = Image.new("RGB", (20, 10), (10, 200, 10))
    shown = levels(masks.overlay(canvas, painted((20, 10), (5, 5, 10, 10))))
    assert np.array_equal((shown != (10, 200, 10)).any(-1), levels(painted((20, 10), (5, 5, 10, 10))) > 0)
    assert shown[7, 7, 0] > shown[7, 7, 1]


# Masks from elsewhere


def file_of(image: Image.Image, format: str = "PNG", **options: object) -> BytesIO:
    file = BytesIO()
    image.save(file, format, **options)
    return file


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_of_alpha_lies_where_the_picture_is_seen_to_be_transparent(orientation):
    image = Image.new("RGBA", (40, 30), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (5, 3, 15, 9))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = file_of(image, exif=exif)
    mask, seen = masks.of_alpha(open_upright(file)), open_picture(file)
    assert mask.size == seen.size
    assert np.array_equal(levels(mask), levels(seen.convert("L")))  # white where transparent, else black
    with Image.open(file) as stored:
        assert np.array_equal(levels(masks.of_alpha(stored)), levels(mask))


def see_through(mode: str) -> tuple[Image.Image, dict[str, object]]:
    """Two pixels, of which the first is transparent."""
    match mode:
        case "LA":
            image = Image.new("LA", (2, 1), (5, 255))
            image.putpixel((0, 0), (5, 0))
            return image, {}
        case "P":
            image = Image.new("P", (2, 1), 3)
            image.putpixel((0, 0), 7)
            image.putpalette([9, 9, 9] * 256)
            return image, {"transparency": 7}
        case "RGB":
            image = Image.new("RGB", (2, 1), (5, 5, 5))
            image.putpixel((0, 0), (1, 2, 3))
            return image, {"transparency": (1, 2, 3)}
    image = Image.new("RGBA", (2, 1), (5, 5, 5, 255))
    image.putpixel((0, 0), (5, 5, 5, 0))
    return image, {}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_every_kind_of_transparency_makes_a_mask(mode):
    image, options = see_through(mode)
    assert list(masks.of_alpha(open_upright(file_of(image, **options))).get_flattened_data()) == [255, 0]


def test_of_an_animation_the_first_frames_transparency_counts():
    frames = [Image.new("RGBA", (8, 8), (255, 0, 0, 255)) for _ in range(2)]
    frames[0].paste((0, 0, 0, 0), (0, 0, 4, 8))
    file = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(levels(masks.of_alpha(open_upright(file))), levels(painted((8, 8), (0, 0, 4, 8))))


@pytest.mark.parametrize("image", [Image.new("RGB", (4, 4)), Image.new("RGBA", (4, 4), (1, 2, 3, 255))])
def test_a_picture_that_hides_nothing_has_no_mask_of_alpha(image):
    assert masks.of_alpha(image) is None


def test_a_mask_by_colour_takes_what_is_no_farther_off_in_any_channel():
    image = Image.new("RGB", (4, 1), (100, 100, 100))
    for x, color in enumerate([(110, 90, 100), (111, 100, 100), (100, 100, 89)]):
        image.putpixel((x, 0), color)
    row = masks.of_color(image, (100, 100, 100), 10)
    assert row.mode == "L"
    assert list(row.get_flattened_data()) == [255, 0, 0, 255]
    assert masks.of_color(image, (0, 0, 0), 255).getextrema() == (255, 255)
    assert list(masks.of_color(image, (111, 100, 100), 0).get_flattened_data()) == [0, 255, 0, 0]


# Colours


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB -> CIELAB, straight from the standards (IEC 61966-2-1, ISO 11664-4), in double precision."""
    c = rgb / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.moveaxis(linear @ matrix.T, -1, 0)

    def f(t: np.ndarray) -> np.ndarray:
        return np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)

    fx, fy, fz = f(x / 0.9505), f(y), f(z / 1.089)
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -1)


def muted(
    seed: int, middle: tuple[int, int, int], spread: float, size: tuple[int, int] = (90, 70)
) -> Image.Image:
    """Noise far enough from the borders of what a screen shows."""
    values = np.random.default_rng(seed).normal(middle, spread, (size[1], size[0], 3))
    return Image.fromarray(np.clip(values + 0.5, 60, 200).astype(np.uint8))


def test_colours_are_matched_as_reinhard_says():
    picture, reference = muted(1, (120, 130, 110), 8), muted(2, (140, 120, 125), 12, (50, 160))
    ours, theirs = lab(levels(picture)), lab(levels(reference))
    goal = theirs.reshape(-1, 3)
    wanted = (ours - ours.mean((0, 1))) * goal.std(0) / ours.std((0, 1)) + goal.mean(0)
    matched = lab(levels(masks.match_colors(picture, reference)))
    assert np.abs(matched - wanted).max() < 1.5  # what rounding to 8 bits makes of it
    assert np.abs((matched - wanted).mean((0, 1))).max() < 0.05
    assert np.allclose(matched.std((0, 1)), goal.std(0), rtol=0.02)


def test_matched_to_itself_a_picture_stays_what_it_is():
    image = noise((128, 128))
    assert np.abs(levels(masks.match_colors(image, image)) - levels(image)).max() <= 1


def test_a_smooth_picture_stays_smooth_when_its_colours_are_matched():
    """In steps of CIELAB stored as bytes, a ramp of 256 greys would come out in fewer."""
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (16, 1, 3)))
    matched = levels(masks.match_colors(ramp, ramp.point(lambda level: 20 + level * 0.8)))[0]
    assert np.ptp(matched, axis=-1).max() <= 1  # grey stays grey
    steps = np.diff(matched[:, 1])
    assert (steps >= 0).all()
    assert steps.max() <= 2


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255)])
def test_extreme_colours_are_matched_without_wrapping_round(color):
    single = Image.new("RGB", (32, 32), color)
    assert np.abs(levels(masks.match_colors(noise((32, 32)), single)) - color).max() <= 2
    assert np.isfinite(levels(masks.match_colors(single, noise((32, 32))))).all()
    brightest = masks.match_colors(noise((32, 32)), noise((32, 32)).point(lambda level: 255 * (level > 99)))
    assert brightest.getextrema() == ((0, 255),) * 3


def test_what_becomes_brighter_than_white_keeps_its_tint():
    reference = Image.new("RGB", (2, 1), (255, 215, 225))
    reference.putpixel((0, 0), (20, 5, 8))
    red, green, _ = np.moveaxis(
        levels(masks.match_colors(noise((64, 64)).convert("L").convert("RGB"), reference)), -1, 0
    )
    assert ((red - green)[red == 255] >= 5).all()


def test_a_picture_almost_without_colour_is_not_torn_into_bands():
    almost = muted(3, (128, 128, 128), 0.4)
    matched = levels(masks.match_colors(almost, noise((64, 64))))
    assert np.abs(matched - matched.mean((0, 1))).max() < 20


# What a person sees is what is masked


def test_a_photograph_lying_on_its_side_is_masked_where_it_is_seen():
    """1400 x 700 as stored, 700 x 1400 as seen; a mask over its red square, drawn as seen."""
    stored = Image.new("RGB", (1400, 700), "white")
    stored.paste((255, 0, 0), (200, 100, 400, 200))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    seen = open_picture(file_of(stored, exif=exif))
    assert seen.size == (700, 1400)
    mask = masks.of_color(seen, (255, 0, 0), 0)
    assert mask.getbbox() == (500, 200, 600, 400)
    plan: Repaint = prepare(asking(width=256, height=512, resize_mode="Stretch", mask_blur=0.0), seen, mask)
    red = levels(plan.canvas)
    inner = plan.mask.filter(ImageFilter.MinFilter(9))
    assert (red[levels(inner) == 255] == (255, 0, 0)).all(axis=-1).all()
    assert (red[levels(plan.mask.filter(ImageFilter.MaxFilter(9))) == 0] == 255).all()
