"""Picture files: the text inside comes back; a stranger's file is opened as a person sees it, or refused."""

import struct
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from webui.errors import InvalidField
from webui.images import MAX_INFOTEXT, encode, holds, open_picture, read_infotext

TEXTS = {
    "plain": "a fox\nSteps: 20, Sampler: Euler a, Seed: 1",
    "accents": "un café ♥ à Zürich\r\n\ttrailing \n",
    "emoji": "🦊 красная лиса 狐\n\u202e",
    "long": "狐🦊," * 8_000,
}


def noise(width: int = 48, height: int = 32) -> Image.Image:
    return Image.effect_noise((width, height), 60).convert("RGB")


def file_of(image: Image.Image, format: str = "PNG", **options: object) -> BytesIO:
    file = BytesIO()
    image.save(file, format, **options)
    return file


def corner(image: Image.Image) -> tuple[int, ...]:
    return image.getpixel((0, 0))


# What is inside


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_the_infotext_comes_back_from_a_file_byte_for_byte(format, text, tmp_path):
    text = text if holds(format, text) else text[:16_000]
    path = tmp_path / "picture"
    path.write_bytes(encode(noise(), format, 90, text))
    assert read_infotext(path) == text
    assert read_infotext(BytesIO(path.read_bytes())) == text


def test_a_png_keeps_every_pixel_and_has_a1111s_text_chunk():
    image = noise()
    saved = Image.open(BytesIO(encode(image, "png", 1, TEXTS["plain"])))
    assert np.array_equal(np.asarray(saved), np.asarray(image))
    assert saved.text == {"parameters": TEXTS["plain"]}


def test_quality_decides_the_size_of_jpeg_and_webp():
    for format in ("jpeg", "webp"):
        assert len(encode(noise(), format, 10, "")) < len(encode(noise(), format, 95, "")) / 2


def test_a_jpeg_says_beforehand_how_much_text_it_holds():
    longest = max(n for n in range(32_700, 32_770) if holds("jpeg", "x" * n))
    assert read_infotext(BytesIO(encode(noise(), "jpeg", 90, "x" * longest))) == "x" * longest
    with pytest.raises(ValueError, match="too long"):
        encode(noise(), "jpeg", 90, "x" * (longest + 1))
    assert holds("png", "x" * 10**6)
    assert holds("webp", "x" * 10**6)


JIS = b"JIS\0\0\0\0\0" + "狐 fox".encode("iso2022_jp")


@pytest.mark.parametrize("endian", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"UNICODE\0" + "a 狐 fox".encode("utf-16-be"), "a 狐 fox"),
        (b"UNICODE\0" + "a 狐 fox".encode("utf-16-le"), "a 狐 fox"),
        (b"UNICODE\0" + "a 狐 fox".encode("utf-16"), "a 狐 fox"),
        (b"UNICODE\0" + "a 狐 fox".encode(), "a 狐 fox"),
        (b"ASCII\0\0\0a fox\0\0", "a fox"),
        (b"\0" * 8 + "a 狐 fox".encode(), "a 狐 fox"),
        (b"ASCII\0\0\0" + "café".encode("latin-1"), "café"),
        (b"a fox, no code", "a fox, no code"),
        (JIS, "狐 fox"),
        (b"", None),
        (b"UNICODE\0", None),
    ],
)
def test_a_user_comment_is_read_in_whatever_encoding(comment, text, endian):
    exif = Image.Exif()
    exif.endian = endian
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    assert read_infotext(file_of(noise(), "JPEG", exif=exif.tobytes())) == text


@pytest.mark.parametrize(
    "content", [b"", b"a fox\nSteps: 1", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_picture_has_no_infotext(content, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    assert read_infotext(tmp_path / "x.png") is None
    assert read_infotext(tmp_path / "missing.png") is None


def test_an_oversized_infotext_is_ignored():
    chunks = PngInfo()
    chunks.add_text("parameters", "x" * (MAX_INFOTEXT + 1))
    assert read_infotext(file_of(noise(), pnginfo=chunks)) is None


# What a stranger sends


def refusal(content: bytes | BytesIO) -> InvalidField:
    with pytest.raises(InvalidField) as error:
        open_picture(content if isinstance(content, BytesIO) else BytesIO(content))
    assert error.value.field == "image"
    return error.value


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4", b"II*\0" + b"\0" * 64],
)
def test_what_is_no_picture_is_refused_by_name(content, tmp_path):
    assert "not a picture" in str(refusal(content))
    (tmp_path / "secret.png").write_bytes(content)
    with pytest.raises(InvalidField) as error:
        open_picture(tmp_path / "secret.png")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("size", [(9_000, 9_000), (20_000, 20_000), (2**31 - 1, 1)])
def test_a_decompression_bomb_is_refused_by_its_header(size):
    started = time.process_time()
    assert "at most 64 megapixels" in str(refusal(claiming(*size)))
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_file_that_is_cut_off_is_refused(format):
    content = file_of(noise(), format).getvalue()
    message = str(refusal(content[: len(content) // 2]))
    assert ("not a picture" if format == "WEBP" else "damaged") in message


def test_a_damaged_avif_is_refused():
    head, mark, pixels = file_of(noise(), "AVIF").getvalue().partition(b"mdat")
    assert "damaged" in str(refusal(head + mark + b"\xff" * len(pixels)))
    assert "not a picture" in str(refusal(head.replace(b"pitm", b"free") + mark + pixels))


def test_a_text_chunk_that_swells_is_refused():
    chunks = PngInfo()
    chunks.add_text("parameters", "x" * 2**22, zip=True)
    swelling = file_of(noise(), pnginfo=chunks)
    assert len(swelling.getvalue()) < 20_000
    refusal(swelling)
    assert read_infotext(swelling) is None


# Where the first row and column of the stored picture are seen (EXIF 2.3, tag 274), as (right, bottom).
SEEN = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}


@pytest.mark.parametrize("orientation", SEEN)
def test_a_photograph_is_turned_upright(orientation):
    stored = Image.new("RGB", (4, 3), "white")
    stored.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    upright = open_picture(file_of(stored, exif=exif))
    right, bottom = SEEN[orientation]
    assert upright.size == ((4, 3) if orientation < 5 else (3, 4))
    assert upright.getpixel((right * (upright.width - 1), bottom * (upright.height - 1))) == (255, 0, 0)


def test_grey_of_16_bits_is_scaled():
    values = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    opened = open_picture(file_of(Image.fromarray(values)))
    assert [pixel[0] for pixel in opened.get_flattened_data()] == [0, 1, 128, 255]


def test_what_is_transparent_is_seen_on_white():
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (255, 0, 0, 255))
    for format in ("PNG", "WEBP"):
        opened = open_picture(file_of(half, format, lossless=True))
        assert list(opened.get_flattened_data()) == [(255, 255, 255), (255, 0, 0)]
    palette = Image.new("P", (1, 1), 3)
    palette.putpalette([9, 9, 9] * 256)
    assert corner(open_picture(file_of(palette))) == (9, 9, 9)
    assert corner(open_picture(file_of(palette, transparency=3))) == (255, 255, 255)
    assert corner(open_picture(file_of(Image.new("LA", (1, 1), (7, 0))))) == (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "format", "seen"),
    [
        (Image.new("1", (1, 1), 1), "PNG", (255, 255, 255)),
        (Image.new("L", (1, 1), 100), "PNG", (100, 100, 100)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", (254, 0, 0)),
        (Image.new("P", (1, 1), 0), "GIF", (0, 0, 0)),
    ],
)
def test_every_kind_of_picture_becomes_rgb(image, format, seen):
    opened = open_picture(file_of(image, format))
    assert opened.mode == "RGB"
    assert np.allclose(corner(opened), seen, atol=2)


def test_colours_are_what_the_files_own_profile_says():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    assert corner(open_picture(file_of(red, icc_profile=srgb))) == (255, 0, 0)
    assert np.allclose(corner(open_picture(file_of(red, icc_profile=swapped))), (0, 255, 0), atol=2)


@pytest.mark.parametrize(
    "profile", [b"rubbish", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()]
)
def test_a_profile_that_does_not_fit_is_ignored(profile):
    cyan_free = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    opened = open_picture(file_of(cyan_free, "JPEG", icc_profile=profile))
    assert np.allclose(corner(opened), (254, 0, 0), atol=2)


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animation = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert corner(open_picture(animation)) == (255, 0, 0)


def test_nothing_of_the_metadata_is_kept(tmp_path: Path):
    path = tmp_path / "picture.png"
    path.write_bytes(encode(noise(), "png", 90, "my secret prompt"))
    opened = open_picture(path)
    opened.save(path)
    assert (opened.info, read_infotext(path)) == ({}, None)
