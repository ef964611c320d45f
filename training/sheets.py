"""Contact sheets: many small pictures with the words they were asked for, nobody having picked the seeds."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from PIL import Image, ImageDraw, ImageFont

from training.figures import Studio
from training.scenes import BACKGROUNDS, STYLE_WORDS, Composer, article

Row = Sequence[tuple[str, Image.Image]]

PROMPTS = (
    "a red apple, 3d",
    "a unicorn, flat style",
    "a cat on a blue background, noto style",
    "a rocket on a purple background",
    "a pizza",
    "a robot, 3d render",
    "a castle on a light blue background",
    "a palm tree, cartoon",
    "a sunflower, flat",
    "a burger, 3d",
    "a car on a yellow background, flat style",
    "a guitar",
    "an octopus on a teal background",
    "a snowman, noto style",
    "a birthday cake on a pink background",
    "a penguin",
    "a blue cat, 3d",
    "a heart and a pizza",
    "a panda and a rocket, flat",
    "two bananas on a blue background",
    "a small ghost on a black background",
    "a purple dog, cartoon",
    "a golden crown on a red background",
    "smiling face with sunglasses",
)
SCALES = (1, 2, 3, 4, 5, 7.5, 12)
STRENGTHS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
LABEL = 14  # px of words over each picture


def grid(rows: Sequence[Row]) -> Image.Image:
    """Rows of (label, picture), all of one size."""
    width, height = rows[0][0][1].size
    sheet = Image.new("RGB", (max(map(len, rows)) * (width + 2), len(rows) * (height + LABEL + 2)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for y, row in enumerate(rows):
        for x, (label, picture) in enumerate(row):
            corner = (x * (width + 2), y * (height + LABEL + 2))
            draw.text(corner, shortened(label, width, font), fill="black", font=font)
            sheet.paste(picture, (corner[0], corner[1] + LABEL))
    return sheet


def shortened(label: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while font.getlength(label) > width:
        label = label[:-2] + "…"
    return label


def contact(studio: Studio) -> Image.Image:
    """48 prompts, seeds 0 to 47: those above, and captions of random scenes."""
    known = studio.composer
    fresh = Composer(list(known.concepts.values()), known.sprites, known.size, seed=10)
    captions = [fresh.scene(*key).caption for key in studio.keys(24, 10)]
    prompts = [*PROMPTS, *captions]
    return grid(in_rows(prompts, studio.paint(prompts), 8))


def scales(studio: Studio) -> Image.Image:
    """The same prompts and seeds at each CFG scale, a row for each."""
    prompts = PROMPTS[:8]
    rows = [
        in_rows([f"CFG {s:g}: {p}" for p in prompts], studio.paint(prompts, s, seed=7), 8)[0] for s in SCALES
    ]
    return grid(rows)


def image_to_image(studio: Studio) -> Image.Image:
    """Crude sketches, and what becomes of them at each strength, seed 3."""
    pipeline = StableDiffusionImg2ImgPipeline(**studio.pipeline.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    sketches = {"a red apple, 3d": apple, "a lion, flat style": face, "a castle, noto style": house}
    rows = []
    for prompt, sketch in sketches.items():
        image = sketched(sketch, studio.composer.size)
        row = [(prompt, image)]
        for strength in STRENGTHS:
            made = pipeline(
                prompt,
                image=image,
                strength=strength,
                num_inference_steps=30,
                guidance_scale=studio.guidance,
                generator=torch.Generator().manual_seed(3),
            )
            row.append((f"strength {strength}", made.images[0]))
        rows.append(row)
    return grid(rows)


def inpainting(studio: Studio) -> Image.Image:
    """The right one of two things is masked and asked for anew, seed 5."""
    pipeline = StableDiffusionInpaintPipeline(**studio.pipeline.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    size = studio.composer.size
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).rectangle((size // 2 + 2, size // 5, size, size * 4 // 5), fill=255)
    rows = []
    names, styles = list(studio.composer.concepts), sorted({style for _, style in studio.composer.sprites})
    for left, right, style, colour in zip(
        names, names[3:6], 2 * styles, ("white", "light blue", "yellow"), strict=False
    ):
        image = beside(studio, left, right, style, colour)
        row = [
            (f"{left} and {right}", image),
            ("mask", Image.composite(Image.new("RGB", image.size), image, mask)),
        ]
        for asked in (2 * names)[6:10]:
            made = pipeline(
                f"{article(left)} and {article(asked)} on a {colour} background, {STYLE_WORDS[style][0]}",
                image=image,
                mask_image=mask,
                height=size,
                width=size,
                strength=1.0,
                num_inference_steps=25,
                guidance_scale=studio.guidance,
                generator=torch.Generator().manual_seed(5),
            )
            row.append((asked, made.images[0]))
        rows.append(row)
    return grid(rows)


def beside(studio: Studio, left: str, right: str, style: str, colour: str) -> Image.Image:
    canvas = studio.composer.canvas(BACKGROUNDS[colour])
    studio.composer.paste_beside(canvas, *(studio.composer.sprites[name, style] for name in (left, right)))
    return Image.fromarray(canvas.astype(np.uint8))


def in_rows(labels: Sequence[str], pictures: Sequence[np.ndarray], length: int) -> list[Row]:
    cells = [(label, Image.fromarray(p)) for label, p in zip(labels, pictures, strict=True)]
    return [cells[start : start + length] for start in range(0, len(cells), length)]


def sketched(sketch: Callable[[ImageDraw.ImageDraw], None], size: int) -> Image.Image:
    """A sketch on white paper of 512 px, scaled down: smooth edges."""
    paper = Image.new("RGB", (512, 512), "white")
    sketch(ImageDraw.Draw(paper))
    return paper.resize((size, size), Image.Resampling.LANCZOS)


def apple(draw: ImageDraw.ImageDraw) -> None:
    draw.ellipse((80, 120, 430, 480), fill=(200, 40, 40))
    draw.line((256, 130, 280, 40), fill=(90, 50, 20), width=18)
    draw.ellipse((280, 50, 370, 100), fill=(60, 160, 60))


def face(draw: ImageDraw.ImageDraw) -> None:
    draw.ellipse((40, 40, 470, 470), fill=(250, 200, 50))
    draw.ellipse((140, 160, 190, 240), fill="black")
    draw.ellipse((320, 160, 370, 240), fill="black")
    draw.arc((140, 200, 370, 390), 20, 160, fill="black", width=16)


def house(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((90, 240, 420, 480), fill=(225, 190, 130))
    draw.polygon([(50, 250), (256, 60), (460, 250)], fill=(190, 60, 50))
    draw.rectangle((220, 340, 290, 480), fill=(110, 70, 40))
