"""Captioned pictures: sprites on backgrounds, in words that say what is where, how, and on what.

A tenth of the (concept, style, background colour) triples never occur: `held_out` names them, and
`evaluate` asks for them. (The second of two things is not looked at: it is on the first one's background.)
"""

import random
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.concepts import Concept
from training.sprites import Sprites

Colour = tuple[int, int, int]

BACKGROUNDS: dict[str, Colour] = {
    "red": (214, 48, 49),
    "orange": (243, 146, 55),
    "yellow": (250, 211, 70),
    "green": (76, 175, 80),
    "teal": (38, 166, 154),
    "blue": (52, 120, 214),
    "light blue": (155, 208, 245),
    "dark blue": (22, 38, 92),
    "purple": (136, 84, 208),
    "pink": (246, 150, 190),
    "brown": (134, 93, 62),
    "black": (18, 18, 20),
    "grey": (150, 152, 158),
    "beige": (238, 222, 190),
    "white": (255, 255, 255),
}
TINTS: dict[str, Colour] = {
    "red": (220, 40, 45),
    "orange": (245, 135, 30),
    "yellow": (250, 205, 40),
    "green": (60, 170, 70),
    "blue": (45, 110, 220),
    "purple": (135, 75, 205),
    "pink": (245, 130, 180),
    "black": (45, 45, 50),
    "golden": (225, 175, 50),
}
STYLE_WORDS = {
    "noto": ("noto style", "cartoon", "cartoon style"),
    "flat": ("flat style", "flat", "flat vector icon"),
    "3d": ("3d", "3d render", "3d style"),
    "twemoji": ("twemoji style",),
}
# Half of the 3D scenes do not say so: it is the style of a caption without one.
STYLE_SAID = {"noto": 0.9, "flat": 0.9, "3d": 0.5, "twemoji": 1.0}
PLACES = {"on the left": (0.28, 0.5), "on the right": (0.72, 0.5), "at the top": (0.5, 0.28)}
PLACES |= {"at the bottom": (0.5, 0.72), "in the middle": (0.5, 0.5)}
KINDS = {"one": 60, "tint": 10, "small": 8, "pair": 4, "two": 18}


@dataclass(frozen=True)
class Scene:
    """(size, size, 3) uint8 pixels, the words for them, and what was drawn."""

    pixels: np.ndarray
    caption: str
    kind: str
    style: str
    names: tuple[str, ...]
    background: str


def held_out(name: str, style: str, background: str) -> bool:
    """Whether this combination is kept from training; one in ten, by a checksum of its words."""
    return background != "white" and zlib.crc32(f"{name}|{style}|{background}".encode()) % 10 == 0


class Composer:
    """Draws scenes from sprites with its own random numbers: the same seed gives the same scenes."""

    def __init__(self, concepts: list[Concept], sprites: Sprites, image_size: int, seed: int) -> None:
        self.concepts = {concept.name: concept for concept in concepts}
        self.sprites = {key: pixels for key, pixels in sprites.items() if key[0] in self.concepts}
        self.size = image_size
        self.random = random.Random(seed)

    def plain(self, name: str, style: str) -> Scene:
        """The sprite itself, whole, on white: what retrieval compares with."""
        canvas = self.canvas((255, 255, 255))
        self.paste(canvas, self.sprites[name, style])
        caption = self.caption(article(name), style, "")
        return Scene(as_pixels(canvas), caption, "plain", style, (name,), "white")

    def scene(self, name: str, style: str) -> Scene:
        """A random scene about one concept in one style."""
        kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
        canvas, background, words = self.background(name, style)
        names, phrase = getattr(self, f"draw_{kind}")(canvas, name, style)
        caption = self.caption(phrase, style, words)
        keywords = self.concepts[name].keywords
        if kind == "one" and keywords and self.random.random() < 0.06:
            caption += f", {self.random.choice(keywords)}"
        return Scene(as_pixels(canvas), caption, kind, style, names, background)

    def draw_one(self, canvas: np.ndarray, name: str, style: str) -> tuple[tuple[str, ...], str]:
        sprite = self.sprites[name, style]
        self.paste(canvas, sprite[:, ::-1] if self.random.random() < 0.08 else sprite)
        called = self.called(name)
        return (name,), self.random.choice([article(called), article(called), called])

    def draw_tint(self, canvas: np.ndarray, name: str, style: str) -> tuple[tuple[str, ...], str]:
        colour = self.random.choice(list(TINTS))
        self.paste(canvas, tinted(self.sprites[name, style], TINTS[colour]))
        phrase = f"{colour} {self.called(name)}"
        return (name,), self.random.choice([article(phrase), article(phrase), phrase])

    def draw_small(self, canvas: np.ndarray, name: str, style: str) -> tuple[tuple[str, ...], str]:
        place = self.random.choice(["", "", *PLACES])
        x, y = PLACES.get(place, (0.5, 0.5))
        self.paste(canvas, self.sprites[name, style], self.random.uniform(0.44, 0.53), x, y)
        size = self.random.choice(["small", "small", "tiny"])
        return (name,), f"a {size} {self.called(name)} {place}".strip()

    def draw_pair(self, canvas: np.ndarray, name: str, style: str) -> tuple[tuple[str, ...], str]:
        self.paste_beside(canvas, self.sprites[name, style], self.sprites[name, style])
        called = self.called(name)
        return (name, name), f"two {called}{'' if called.endswith('s') else 's'}"

    def draw_two(self, canvas: np.ndarray, name: str, style: str) -> tuple[tuple[str, ...], str]:
        other = self.random.choice([n for n, s in self.sprites if s == style and n != name])
        self.paste_beside(canvas, self.sprites[name, style], self.sprites[other, style])
        left, right = self.called(name), self.called(other)
        joined = [f"{article(left)} and {article(right)}", f"{left} and {right}"]
        return (name, other), self.random.choice([*joined, f"{article(left)} next to {article(right)}"])

    def background(self, name: str, style: str) -> tuple[np.ndarray, str, str]:
        """-> canvas, its (upper) colour, and the words for it: none for 42 % plain white."""
        if self.random.random() < 0.42:
            return self.canvas(BACKGROUNDS["white"]), "white", ""
        allowed = [colour for colour in BACKGROUNDS if not held_out(name, style, colour)]
        upper = self.random.choice(allowed)
        if upper == "white" or self.random.random() < 0.75:
            return self.canvas(self.jittered(upper)), upper, f"{upper} background"
        lower = self.random.choice([colour for colour in allowed if colour != upper])
        canvas = self.canvas(self.jittered(upper), self.jittered(lower))
        return canvas, upper, f"{upper} and {lower} gradient background"

    def canvas(self, upper: Colour, lower: Colour | None = None) -> np.ndarray:
        """(size, size, 3) float32: one colour, or a gradient from top to bottom."""
        top, bottom = (np.array(colour, np.float32) for colour in (upper, lower or upper))
        weight = np.linspace(0, 1, self.size, dtype=np.float32)[:, None, None]
        return np.repeat(top * (1 - weight) + bottom * weight, self.size, axis=1)

    def jittered(self, colour: str) -> Colour:
        spread = 0 if colour == "white" else 8
        red, green, blue = (channel + self.random.uniform(-spread, spread) for channel in BACKGROUNDS[colour])
        return (int(red), int(green), int(blue))

    def paste(
        self, canvas: np.ndarray, sprite: np.ndarray, scale: float = 1, x: float = 0.5, y: float = 0.5
    ) -> None:
        """Lay a sprite over the canvas, its centre at (x, y) of the canvas's size."""
        sprite = sprite if scale == 1 else scaled(sprite, scale)
        height, width = sprite.shape[:2]
        left, top = round(x * self.size - width / 2), round(y * self.size - height / 2)
        crop = sprite[max(0, -top) : self.size - top, max(0, -left) : self.size - left].astype(np.float32)
        area = canvas[max(0, top) : top + height, max(0, left) : left + width]
        alpha = crop[..., 3:] / 255
        area[:] = area * (1 - alpha) + crop[..., :3] * alpha

    def paste_beside(self, canvas: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
        self.paste(canvas, left, 0.55, 0.25)
        self.paste(canvas, right, 0.55, 0.75)

    def called(self, name: str) -> str:
        """Its name, or about as often one of its other names."""
        aliases = self.concepts[name].aliases
        return self.random.choice(aliases) if aliases and self.random.random() < 0.55 else name

    def caption(self, phrase: str, style: str, background: str) -> str:
        """`a fox on a blue background, flat style`, with its parts in several orders."""
        parts = [phrase]
        if self.random.random() < STYLE_SAID[style]:
            parts.append(self.random.choice(STYLE_WORDS[style]))
        if background:
            on = f"on {article(background)}"
            if self.random.random() < 0.55:
                parts[0] += f" {on}"
            else:
                parts.append(self.random.choice([on, on, background]))
        return ", ".join(parts)


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def as_pixels(canvas: np.ndarray) -> np.ndarray:
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def scaled(sprite: np.ndarray, scale: float) -> np.ndarray:
    height, width = (max(1, round(side * scale)) for side in sprite.shape[:2])
    picture = Image.fromarray(sprite).convert("RGBa").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture.convert("RGBA"))


def tinted(sprite: np.ndarray, colour: Colour) -> np.ndarray:
    """Paint a sprite in one colour: its dark parts are shades of it, its bright parts tints."""
    light = np.clip(sprite[..., :3] @ np.array([0.3, 0.59, 0.11]) / 255 * 1.15, 0, 1)[..., None]
    paint = np.array(colour, np.float32)
    painted = np.where(light < 0.6, paint * (light / 0.6), paint + (255 - paint) * (light - 0.6) / 0.4 * 0.8)
    return np.concatenate([painted, sprite[..., 3:]], axis=-1).astype(np.uint8)
