"""What a model can do, in numbers: each function paints from prompts with fixed seeds and measures.

Names, styles and colours are what the prompts asked for; "right" means the judge's or the ruler's first
answer, among all concepts, styles or colours. Accuracies are 0..1.
"""

import itertools
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

from training.judge import Judge, halves
from training.latents import as_tensor, encode_pixels
from training.scenes import (
    BACKGROUNDS,
    PLACES,
    STYLE_WORDS,
    TINTS,
    Composer,
    article,
    as_pixels,
    held_out,
    tinted,
)

Figures = dict[str, float]
Key = tuple[str, str]
HEART = 71  # concepts that the first model knew


@dataclass(frozen=True)
class Studio:
    """A model, what it is asked about, and who judges."""

    pipeline: StableDiffusionPipeline
    composer: Composer
    judge: Judge
    guidance: float = 4.0
    steps: int = 20
    bf16: bool = False

    def paint(self, prompts: Sequence[str], guidance: float | None = None, seed: int = 0) -> list[np.ndarray]:
        """One (H, W, 3) uint8 picture for each prompt; the i-th from seed + i."""
        pictures: list[np.ndarray] = []
        for start in range(0, len(prompts), 16):
            batch = list(prompts[start : start + 16])
            noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                painted = self.pipeline(
                    batch,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance if guidance is None else guidance,
                    generator=noise,
                    output_type="np",
                ).images
            pictures += list((painted * 255).round().astype(np.uint8))
        return pictures

    def keys(self, count: int, seed: int) -> list[Key]:
        """Random (concept, style) pairs, no two the same before all have come."""
        keys = sorted(self.composer.sprites)
        draw = random.Random(seed)
        rounds = itertools.chain.from_iterable(draw.sample(keys, len(keys)) for _ in itertools.count())
        return list(itertools.islice(rounds, count))

    def plain(self, keys: Sequence[Key]) -> list[np.ndarray]:
        return [self.composer.plain(*key).pixels for key in keys]

    def round_trip(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Through the VAE and back."""
        return [decoded for i in range(0, len(pictures), 16) for decoded in self.decode(pictures[i : i + 16])]

    @torch.no_grad()
    def decode(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        vae = self.pipeline.vae
        latents = vae.encode(as_tensor(list(pictures)).to(vae.dtype)).latent_dist.mean
        pixels = vae.decode(latents).sample.float().clamp(-1, 1).add(1).mul(127.5).round().byte()
        decoded: np.ndarray = pixels.permute(0, 2, 3, 1).numpy()
        return decoded


def vae(studio: Studio, count: int, unseen: Composer | None = None) -> Figures:
    """PSNR (dB) and SSIM of reconstructions: of art and scenes it learnt from, and of art it never saw."""
    sets = {"art": studio.plain(studio.keys(count, 1))}
    sets["scenes"] = [studio.composer.scene(*key).pixels for key in studio.keys(count, 2)]
    if unseen is not None:
        sets["unseen_art"] = [unseen.plain(*key).pixels for key in sorted(unseen.sprites)[:count]]
    figures: Figures = {}
    for name, pictures in sets.items():
        before, after = (as_tensor(p) for p in (pictures, studio.round_trip(pictures)))
        error = (before - after).square().mean((1, 2, 3)).clamp(min=1e-6)
        figures[f"{name}_psnr"] = (10 * torch.log10(4 / error)).mean().item()
        figures[f"{name}_ssim"] = ssim(before, after)
    return figures


def retrieval(studio: Studio, count: int) -> Figures:
    """One thing in one style on white: is it that thing, by the judge and by the nearest art in latent space?

    `ceiling` is the judge's answer for the art itself after the VAE; `frechet` the distance of the judge's
    features to those of the art, and `frechet_vae` that of the art after the VAE.
    """
    keys = studio.keys(count, 3)
    pictures = studio.paint([f"{article(name)}, {STYLE_WORDS[style][0]}" for name, style in keys], seed=1000)
    art = studio.plain(keys)
    trips = studio.round_trip(art)
    ranks, nearest = concept_ranks(studio, pictures, keys), latent_ranks(studio, pictures, keys)
    heart = [i for i, (name, _) in enumerate(keys) if name in list(studio.composer.concepts)[:HEART]]
    others = sorted(set(range(count)) - set(heart))
    of_art, features = studio.judge.look(art)[2], studio.judge.look(pictures)[2]
    tiers = {"": range(count), "heart_": heart, "others_": others}
    accuracies = [
        top([found[i] for i in chosen], f"{tier}{by}")
        for tier, chosen in tiers.items()
        if chosen
        for by, found in (("judge", ranks), ("latent", nearest))
    ]
    return {
        **{name: value for accuracy in accuracies for name, value in accuracy.items()},
        "style": style_accuracy(studio, pictures, keys),
        "ceiling_top1": top(concept_ranks(studio, trips, keys), "ceiling")["ceiling_top1"],
        "ceiling_style": style_accuracy(studio, trips, keys),
        "frechet": frechet(features, of_art),
        "frechet_vae": frechet(studio.judge.look(trips)[2], of_art),
    }


def combinations(studio: Studio, count: int) -> Figures:
    """Things in a style on a background that training never showed together."""
    colours = [colour for colour in BACKGROUNDS if colour != "white"]
    unseen = [(*key, c) for key in sorted(studio.composer.sprites) for c in colours if held_out(*key, c)]
    chosen = random.Random(4).sample(unseen, min(count, len(unseen)))
    prompts = [
        f"{article(name)} on {article(c)} background, {STYLE_WORDS[style][0]}" for name, style, c in chosen
    ]
    pictures = studio.paint(prompts, seed=2000)
    keys = [(name, style) for name, style, _ in chosen]
    things = [rank == 0 for rank in concept_ranks(studio, pictures, keys)]
    _, styles, _ = studio.judge.look(pictures)
    right_style = [
        studio.judge.styles[i] == style for i, (_, style) in zip(styles.argmax(1), keys, strict=True)
    ]
    right_colour = [corner_colour(p) == c for p, (_, _, c) in zip(pictures, chosen, strict=True)]
    together = [all(each) for each in zip(things, right_style, right_colour, strict=True)]
    return {
        "thing": mean(things),
        "style": mean(right_style),
        "background": mean(right_colour),
        "all_three": mean(together),
    }


def two_things(studio: Studio, count: int) -> Figures:
    """Two things side by side: is each the one asked for, in its half? `ceiling_`: of art after the VAE."""
    draw = random.Random(5)
    lefts = studio.keys(count, 5)
    names = sorted({name for name, _ in studio.composer.sprites})
    rights = [(draw.choice([other for other in names if other != name]), style) for name, style in lefts]
    prompts = [
        f"{article(left)} and {article(right)}, {STYLE_WORDS[style][0]}"
        for (left, style), (right, _) in zip(lefts, rights, strict=True)
    ]
    figures: Figures = {}
    real = studio.round_trip(
        [beside(studio.composer, left, right) for left, right in zip(lefts, rights, strict=True)]
    )
    for prefix, pictures in (("", studio.paint(prompts, seed=3000)), ("ceiling_", real)):
        sides = [halves(picture) for picture in pictures]
        left, right = (
            [rank == 0 for rank in concept_ranks(studio, [side[i] for side in sides], keys)]
            for i, keys in enumerate((lefts, rights))
        )
        figures[f"{prefix}half"] = mean(left + right)
        figures[f"{prefix}both"] = mean([a and b for a, b in zip(left, right, strict=True)])
    return figures


def tints(studio: Studio, count: int) -> Figures:
    """`a blue cat`: is it a cat, and is the nearest of all paints of it, in latent space, the blue one?

    `ceiling_thing`: whether the art itself, so painted and after the VAE, is a cat to the judge.
    """
    draw = random.Random(6)
    keys = studio.keys(count, 6)
    asked = [draw.choice(list(TINTS)) for _ in keys]
    prompts = [
        f"{article(f'{colour} {name}')}, {STYLE_WORDS[style][0]}"
        for colour, (name, style) in zip(asked, keys, strict=True)
    ]
    pictures = studio.paint(prompts, seed=4000)
    latents = encode(studio, pictures)
    right = []
    for latent, key, colour in zip(latents, keys, asked, strict=True):
        paints = encode(studio, [painted(studio.composer, key, paint) for paint in TINTS])
        right.append(list(TINTS)[distances(latent, paints).argmin()] == colour)
    things = [rank == 0 for rank in concept_ranks(studio, pictures, keys)]
    real = studio.round_trip(
        [painted(studio.composer, key, paint) for key, paint in zip(keys, asked, strict=True)]
    )
    ceiling = [rank == 0 for rank in concept_ranks(studio, real, keys)]
    return {"thing": mean(things), "colour": mean(right), "ceiling_thing": mean(ceiling)}


def places(studio: Studio, count: int) -> Figures:
    """`a small fox on the left`: is the middle of what is not background nearest to that place?"""
    draw = random.Random(7)
    keys = studio.keys(count, 7)
    asked = [draw.choice(list(PLACES)) for _ in keys]
    prompts = [
        f"a small {name} {place}, {STYLE_WORDS[style][0]}"
        for place, (name, style) in zip(asked, keys, strict=True)
    ]
    found = [place_of(picture) for picture in studio.paint(prompts, seed=5000)]
    return {"place": mean([place == wanted for place, wanted in zip(found, asked, strict=True)])}


def diversity(studio: Studio, count: int, seeds: int = 6) -> Figures:
    """How far pictures of one prompt are from each other: root mean square, in grey levels of 255."""
    spread = []
    for i, (name, _) in enumerate(studio.keys(count, 8)):
        pictures = as_tensor(studio.paint([article(name)] * seeds, seed=6000 + 100 * i)).flatten(1)
        spread.append(torch.pdist(pictures).mean().item() / pictures.shape[1] ** 0.5 * 127.5)
    return {"pairwise_rms": mean(spread)}


def guidance(studio: Studio, count: int, scales: Sequence[float] = (1, 2, 3, 4, 5, 7.5, 12)) -> Figures:
    """The right thing at each CFG scale, and the share of colour values that are at either end."""
    keys = studio.keys(count, 9)
    prompts = [f"{article(name)}, {STYLE_WORDS[style][0]}, on a blue background" for name, style in keys]
    figures: Figures = {}
    for scale in scales:
        pictures = studio.paint(prompts, guidance=scale, seed=7000)
        figures[f"cfg{scale:g}_thing"] = mean([rank == 0 for rank in concept_ranks(studio, pictures, keys)])
        figures[f"cfg{scale:g}_clipped"] = mean([np.isin(picture, (0, 255)).mean() for picture in pictures])
    return figures


def examples(studio: Studio, prompts: Sequence[str], seeds: int) -> Figures:
    """The prompts a page offers: how often it is the right thing, over all of them, and for the worst."""
    shares = []
    for i, prompt in enumerate(prompts):
        pictures = studio.paint([prompt] * seeds, seed=8000 + 100 * i)
        keys = [(thing_of(studio.composer, prompt), "")] * seeds
        shares.append(mean([rank == 0 for rank in concept_ranks(studio, pictures, keys)]))
    return {"thing": mean(shares), "worst": min(shares)}


def speed(studio: Studio) -> Figures:
    """Seconds for one picture, the best of three, with the threads this process has."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        studio.paint(["a fox"])
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "threads": torch.get_num_threads()}


def concept_ranks(studio: Studio, pictures: Sequence[np.ndarray], keys: Sequence[Key]) -> list[int]:
    """Where the judge ranks the right concept of each picture; 0 is first."""
    concepts, _, _ = studio.judge.look(pictures)
    wanted = torch.tensor([studio.judge.names.index(name) for name, _ in keys])
    scores = concepts.gather(1, wanted[:, None])
    return (concepts > scores).sum(1).tolist()


def latent_ranks(studio: Studio, pictures: Sequence[np.ndarray], keys: Sequence[Key]) -> list[int]:
    """Where the right art is among all art of that style, by distance in latent space; 0 is nearest."""
    latents = encode(studio, pictures)
    ranks = []
    galleries = {
        style: sorted(key for key in studio.composer.sprites if key[1] == style) for _, style in keys
    }
    encoded = {style: encode(studio, studio.plain(gallery)) for style, gallery in galleries.items()}
    for latent, (name, style) in zip(latents, keys, strict=True):
        apart = distances(latent, encoded[style])
        ranks.append(int((apart < apart[galleries[style].index((name, style))]).sum()))
    return ranks


def style_accuracy(studio: Studio, pictures: Sequence[np.ndarray], keys: Sequence[Key]) -> float:
    _, styles, _ = studio.judge.look(pictures)
    return mean(
        [studio.judge.styles[i] == style for i, (_, style) in zip(styles.argmax(1), keys, strict=True)]
    )


def thing_of(composer: Composer, prompt: str) -> str:
    """The concept a prompt names: that of the longest name in it. Raises ValueError if there is none."""
    called = {word: each.name for each in composer.concepts.values() for word in (each.name, *each.aliases)}
    found = [word for word in called if re.search(rf"\b{re.escape(word)}\b", prompt)]
    if not found:
        raise ValueError(f"no thing in {prompt!r} that the model knows")
    return called[max(found, key=len)]


def encode(studio: Studio, pictures: Sequence[np.ndarray]) -> Tensor:
    vae = studio.pipeline.vae
    return torch.cat([encode_pixels(vae, list(pictures[i : i + 16])) for i in range(0, len(pictures), 16)])


def distances(latent: Tensor, gallery: Tensor) -> Tensor:
    """(4, h, w), (N, 4, h, w) -> (N,) squared distances."""
    return (gallery - latent).square().sum((1, 2, 3))


def painted(composer: Composer, key: Key, colour: str) -> np.ndarray:
    canvas = composer.canvas((255, 255, 255))
    composer.paste(canvas, tinted(composer.sprites[key], TINTS[colour]))
    return as_pixels(canvas)


def beside(composer: Composer, left: Key, right: Key) -> np.ndarray:
    canvas = composer.canvas((255, 255, 255))
    composer.paste_beside(canvas, composer.sprites[left], composer.sprites[right])
    return as_pixels(canvas)


def corner_colour(picture: np.ndarray) -> str:
    """The named background nearest to the mean of the four corners."""
    mean_colour = corners(picture).mean(0)
    return min(
        BACKGROUNDS, key=lambda name: float(np.square(np.array(BACKGROUNDS[name]) - mean_colour).sum())
    )


def corners(picture: np.ndarray) -> np.ndarray:
    """(n, 3): the pixels of four squares, a sixteenth of the side."""
    d = max(1, len(picture) // 16)
    ends = (slice(d), slice(-d, None))
    blocks = [picture[rows, columns].reshape(-1, 3) for rows in ends for columns in ends]
    return np.concatenate(blocks).astype(np.float32)


def place_of(picture: np.ndarray) -> str:
    """The named place nearest to the middle of what differs from the corners."""
    apart = np.abs(picture - np.median(corners(picture), axis=0)).sum(-1)
    rows, columns = np.nonzero(apart > 60)
    if not len(rows):
        return ""
    middle = np.array([columns.mean(), rows.mean()]) / len(picture)
    return min(PLACES, key=lambda place: float(np.square(np.array(PLACES[place]) - middle).sum()))


def frechet(ours: Tensor, theirs: Tensor) -> float:
    """Between Gaussians of the moments of two sets of features (N, D) (Heusel et al. 2017)."""
    a, b = ours.double(), theirs.double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    roots = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots
    return float(distance)


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of (N, 3, H, W) in -1..1, in windows of 11 px (Wang et al. 2004)."""
    axis = torch.arange(11.0) - 5
    bell = torch.exp(-axis.square() / (2 * 1.5**2))
    window = (bell[:, None] * bell / bell.sum() ** 2).expand(3, 1, 11, 11)
    blur = partial(F.conv2d, weight=window, groups=3)
    a, b = (a + 1) / 2, (b + 1) / 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a.square(), blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return float(((2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1) * structure).mean())


def top(ranks: Sequence[int], name: str) -> Figures:
    return {f"{name}_top1": mean([r == 0 for r in ranks]), f"{name}_top5": mean([r < 5 for r in ranks])}


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
