"""The contact sheets of the documentation, made with the embedded model: ``python docs/sheets.py``.

Nobody picks: prompts and seeds are those written here.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from webui.engine import Engine  # noqa: E402
from webui.library import Library  # noqa: E402
from webui.request import GenerationRequest  # noqa: E402
from webui.settings import Settings  # noqa: E402

SIDE, GAP, LINE = 128, 8, 18  # pixels
STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def drawn(background: str, *shapes: tuple[str, str, object]) -> Image.Image:
    """A crude sketch: each shape is a method of ImageDraw, a colour, and where."""
    picture = Image.new("RGB", (SIDE, SIDE), background)
    for method, colour, place in shapes:
        getattr(ImageDraw.Draw(picture), method)(place, fill=colour)
    return picture


SKETCHES = {
    "a red apple": drawn(
        "white", ("ellipse", "#d02020", (26, 38, 102, 112)), ("rectangle", "#705020", (60, 18, 67, 44))
    ),
    "a penguin": drawn(
        "#a0d0f0", ("ellipse", "#202028", (36, 12, 92, 118)), ("ellipse", "white", (48, 46, 80, 112))
    ),
    "a castle on a light blue background": drawn(
        "#a0d8f0",
        ("rectangle", "#909098", (24, 52, 104, 112)),
        ("rectangle", "#808088", (16, 28, 42, 112)),
        ("rectangle", "#808088", (86, 28, 112, 112)),
    ),
}


class Studio:
    """The engine, with the embedded model's own settings."""

    def __init__(self, folder: str) -> None:
        settings = Settings(data_dir=Path(folder), models_dir=[HERE.parent / "models"], device="cpu")
        self.engine = Engine(settings, Library(settings.data_dir, settings.filename_pattern))
        self.engine.start()
        self.defaults = {"width": SIDE, "height": SIDE, **self.engine.models()[0].defaults}

    def keep(self, picture: Image.Image) -> str:
        return self.engine.sources.keep(picture, "docs")

    def __call__(self, prompt: str, **settings: object) -> Image.Image:
        request = GenerationRequest(**{**self.defaults, "prompt": prompt, "seed": 1, **settings})
        view = self.engine.submit([request], "docs").wait()
        if view.error:
            raise view.error
        return Image.open(view.saved[0].path).convert("RGB")


def sheet(rows: list[list[tuple[str, Image.Image]]], name: str) -> None:
    """Rows of captioned pictures as ``docs/NAME.png``."""
    cell = max(picture.height for row in rows for _, picture in row) + LINE + GAP
    width = max(sum(picture.width + GAP for _, picture in row) for row in rows) + GAP
    page = Image.new("RGB", (width, len(rows) * cell + GAP), "white")
    for y, row in enumerate(rows):
        x = GAP
        for caption, picture in row:
            ImageDraw.Draw(page).text((x, GAP + y * cell), caption, fill="#303030")
            page.paste(picture, (x, GAP + y * cell + LINE))
            x += picture.width + GAP
    page.save(HERE / f"{name}.png")


def sketches(make: Studio) -> None:
    rows = [
        [
            (prompt.partition(" on ")[0], sketch),
            *((f"{s}", make(prompt, image=make.keep(sketch), strength=s)) for s in STRENGTHS),
        ]
        for prompt, sketch in SKETCHES.items()
    ]
    sheet(rows, "img2img-sketch")


def replaced(make: Studio) -> None:
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).ellipse((6, 6, SIDE - 7, SIDE - 7), fill=255)
    rows = []
    for before, after in (("a fox", "a panda"), ("a pizza", "a burger"), ("a rocket", "a crab")):
        ground = " on a light blue background"
        picture = make(before + ground)
        new = make(after + ground, image=make.keep(picture), mask_image=make.keep(mask), strength=1.0)
        rows.append([(before, picture), ("mask", mask.convert("RGB")), (after, new)])
    sheet(rows, "inpainting")


def extended(make: Studio) -> None:
    rows = []
    for prompt in ("a castle on a light blue background", "a sunflower, flat", "a burger, 3d"):
        picture = make(prompt)
        sides = {f"extend_{side}": 32 for side in ("left", "top", "right", "bottom")}
        large = {"width": SIDE + 64, "height": SIDE + 64, "masked_content": "Fill", "strength": 0.5}
        ground = f"on a{prompt.partition(' on a')[2] or ' white background'}"  # only that is to come
        new = make(ground, image=make.keep(picture), **sides, **large)
        rows.append([(prompt.partition(" on ")[0], picture), ("32 pixels more on all sides", new)])
    sheet(rows, "outpainting")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make = Studio(folder)
        for task in (sketches, replaced, extended):
            task(make)
        make.engine.close()


if __name__ == "__main__":
    main()
