"""Pictures as files: encode with infotext, read infotext, open what a stranger sends. Pillow only."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import IO, Literal

from PIL import ExifTags, Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from webui.errors import InvalidField

Format = Literal["png", "jpeg", "webp"]
File = str | Path | IO[bytes]

KEY = "parameters"  # A1111's PNG text chunk
MAX_INFOTEXT = 2**20  # characters, of a foreign file; Pillow's own limit for a compressed chunk
MAX_PICTURE_PIXELS = 64 * 2**20  # of a foreign file; read from its header before anything is decoded
MAX_JPEG_EXIF = 65_533  # bytes: the length of a JPEG segment is a 16-bit number

_WITH_INFOTEXT = ("PNG", "JPEG", "WEBP", "AVIF")
_READABLE = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "BMP",
    "AVIF",
)  # what browsers show; libtiff is not worth its risks
_UNICODE = b"UNICODE\0"  # EXIF 2.3, table 9: the character code of a UserComment, 8 bytes
_JIS = b"JIS\0\0\0\0\0"

# What Pillow raises for files that are cut off, damaged or made to harm.
_BROKEN = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def encode(image: Image.Image, format: Format, quality: int, infotext: str) -> bytes:
    """A picture file that holds its infotext: PNG in the text chunk ``parameters``, others in EXIF.

    Args:
        image: 8-bit RGB.
        quality: 1 to 100, for jpeg and webp.

    Raises:
        ValueError: the text does not fit into a JPEG; ask :func:`holds` first.
    """
    file = BytesIO()
    if format == "png":
        chunks = PngInfo()
        chunks.add_text(KEY, infotext)  # tEXt, or iTXt where Latin-1 does not suffice
        image.save(file, "PNG", pnginfo=chunks)
    else:
        image.save(file, format.upper(), quality=quality, exif=_user_comment(infotext))
    return file.getvalue()


def holds(format: Format, infotext: str) -> bool:
    """Whether a file of this format has room for the text; a JPEG has it for about 32,000 characters."""
    return format != "jpeg" or len(_user_comment(infotext)) <= MAX_JPEG_EXIF


def read_infotext(file: File) -> str | None:
    """The infotext inside a picture file; None if there is none, or no picture. Decodes no pixels."""
    try:
        with Image.open(file, formats=_WITH_INFOTEXT) as image:
            text = image.info.get(KEY) or _decoded(_raw_user_comment(image))
    except _BROKEN:
        return None
    return str(text) if text and len(text) <= MAX_INFOTEXT else None


def read_size(file: File) -> tuple[int, int]:
    """(width, height) in pixels of a file that :func:`read_infotext` could read. Decodes no pixels."""
    with Image.open(file, formats=_WITH_INFOTEXT) as image:
        return image.size


def open_picture(file: File) -> Image.Image:
    """A foreign picture as a person sees it, in 8-bit RGB: upright, in sRGB, on white where transparent.

    Of an animation, the first frame. Nothing of its metadata is kept.

    Raises:
        InvalidField: it is no picture, is damaged, or is too large; the field is ``image``.
    """
    try:
        picture = _in_srgb(_opaque(_eight_bit(open_upright(file))))
    except _BROKEN as error:
        raise _refused("the file is damaged or cut off") from error
    picture.info.clear()
    return picture


def open_upright(file: File) -> Image.Image:
    """A foreign picture upright but otherwise as it is stored: its mode, transparency and profile are kept.

    Raises:
        InvalidField: as :func:`open_picture`.
    """
    with _opened(file) as image:
        width, height = image.size
        if width * height > MAX_PICTURE_PIXELS:
            raise _refused(
                f"has {width}x{height} pixels; at most {MAX_PICTURE_PIXELS // 2**20} megapixels are taken"
            )
        try:
            image.load()
            return ImageOps.exif_transpose(image)
        except _BROKEN as error:
            raise _refused("the file is damaged or cut off") from error


def _opened(file: File) -> Image.Image:
    try:
        return Image.open(file, formats=_READABLE)
    except Image.DecompressionBombError as error:
        raise _refused(
            f"has too many pixels; at most {MAX_PICTURE_PIXELS // 2**20} megapixels are taken"
        ) from error
    except _BROKEN as error:
        raise _refused(
            "this is not a picture that can be read; use PNG, JPEG, WebP, GIF, BMP or AVIF"
        ) from error


def _refused(message: str) -> InvalidField:
    return InvalidField("image", message, "Image")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey with 16 bits a pixel scaled to 8; ``convert`` alone clips it to white."""
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return image


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    canvas.info = image.info
    return canvas.convert("RGB")


def _in_srgb(image: Image.Image) -> Image.Image:
    """By the file's own colour profile, where it has one that fits; matters most for CMYK."""
    profile = image.info.get("icc_profile")
    if image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGB")
    if profile:
        try:
            source, target = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
        except (ImageCms.PyCMSError, OSError):  # the profile is broken, or for another kind of picture
            pass
    return image.convert("RGB")


def _user_comment(infotext: str) -> bytes:
    """EXIF with the text as UserComment, big-endian as its header says (and as A1111 writes)."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _UNICODE + infotext.encode("utf-16-be")
    return exif.tobytes()


def _raw_user_comment(image: Image.Image) -> bytes:
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    return comment.encode("latin-1") if isinstance(comment, str) else bytes(comment)


def _decoded(comment: bytes) -> str:
    """A UserComment's text, whatever its writer took for Unicode or ASCII."""
    code, text = comment[:8], comment[8:]
    if len(comment) > 4 * MAX_INFOTEXT:
        return ""
    if code == _UNICODE and b"\0" in text:
        return _utf_16(text).rstrip("\0")
    if code == _JIS:
        return text.decode("iso2022_jp", errors="replace").rstrip("\0")
    if code not in (_UNICODE, b"ASCII\0\0\0", bytes(8)):
        text = comment  # written without a character code
    try:
        return text.decode().rstrip("\0")
    except UnicodeDecodeError:
        return text.decode("latin-1").rstrip("\0")


def _utf_16(text: bytes) -> str:
    """In the byte order of its mark, else the one that puts the zero bytes of plain letters in front."""
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return text.decode("utf-16", errors="replace")
    big = text[::2].count(0) >= text[1::2].count(0)
    return text.decode("utf-16-be" if big else "utf-16-le", errors="replace")
