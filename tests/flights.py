"""Flight records of a denoiser that can be written down: no net, no torch, and every number known.

Clean latents are taken to be Gaussian about one mean with the prompt and about another without, so that the
best guess of x0 is a straight line in what the net sees. The scheduler is DDIM without noise of its own
(Song et al. 2020, arXiv:2010.02502, eq. 12), which for x = signal x0 + noise eps is the same line for flow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from webui.flight import ArrayNote, FlightRecord
from webui.request import GenerationRequest

CHANNELS = 4
SPREAD = 0.3  # standard deviation of clean latents about their mean
TOKENS = ("<|startoftext|>", "a</w>", "fox</w>", "on</w>", "blue</w>", "back", "ground</w>", "<|endoftext|>")
WEIGHTS = {  # of each token in the attention, before softmax: most goes to the start, as it does
    "<|startoftext|>": 2.5, "fox</w>": 1.5, "blue</w>": 1.0, "back": 0.6, "ground</w>": 0.8,
}  # fmt: skip
TO_RGB = np.array(
    [[0.35, 0.20, 0.30, 0.05, 0.0], [0.35, -0.20, 0.10, 0.05, 0.05], [0.35, 0.05, -0.35, 0.05, -0.05]],
    np.float32,
)


def record(
    *,
    prediction_type: str = "epsilon",
    guidance_scale: float = 4.0,
    calls: int = 8,
    size: tuple[int, int] = (128, 128),
    seed: int = 1,
    tokens: tuple[str, ...] = TOKENS,
    attended: bool = True,
    end: tuple[float, float] = (1.0, 0.0),
    **changes: Any,
) -> FlightRecord:
    """A record that is consistent in itself.

    Args:
        prediction_type: one of the four that a record knows.
        guidance_scale: 1 or less is not guided.
        calls: of the net, one a step.
        size: (width, height) of the picture in pixels, multiples of 16.
        attended: whether there is attention; it is on places of 16 pixels.
        end: signal and noise of what the scheduler ends with.
        changes: any other fields of the record, laid over it at last.
    """
    width, height = size
    shape = CHANNELS, height // 8, width // 8
    signal, noise, timesteps = _schedule(prediction_type, calls)
    random = np.random.default_rng(seed)
    with_prompt, without = _means(shape)
    x = random.standard_normal(shape)
    kept: dict[str, list[Any]] = {name: [] for name in ("latents", "cond", "uncond", "guided", "guesses")}
    for k in range(calls):
        a, s = float(signal[k]), float(noise[k])
        seen = x.astype(np.float32)
        cond, uncond = (_said(prediction_type, seen, a, s, mean) for mean in (with_prompt, without))
        guided = uncond + np.float32(guidance_scale) * (cond - uncond) if guidance_scale > 1 else cond
        for name, value in (("latents", seen), ("cond", cond), ("uncond", uncond), ("guided", guided)):
            kept[name].append(value)
        x0 = _x0(prediction_type, seen, guided, a, s)
        kept["guesses"].append(_pixels(x0))
        after = (float(signal[k + 1]), float(noise[k + 1])) if k + 1 < calls else end
        x = after[0] * x0 + after[1] * (x - a * x0) / s
    arrays = {name: np.stack(values) for name, values in kept.items()}
    if guidance_scale <= 1:
        arrays["uncond"] = None
    attention, padding = _attention(tokens, calls, (height // 16, width // 16))
    final = x.astype(np.float32)
    made = FlightRecord(
        request=GenerationRequest(
            prompt="a fox on blue background",
            negative_prompt="red",
            model="pocket-model",
            scheduler="DDIM",
            num_inference_steps=calls,
            guidance_scale=guidance_scale,
            seed=seed,
            width=width,
            height=height,
        ),
        model="pocket-model",
        model_hash="0" * 64,
        family="sd1",
        device="cpu, float32, sdpa",
        versions={"torch": "2.13.0", "diffusers": "0.42.1", "transformers": "5.23.0"},
        prediction_type=prediction_type,
        scale=8,
        steps=np.arange(calls, dtype=np.int32),
        timesteps=timesteps,
        signal=signal,
        noise=noise,
        final=final,
        to_rgb=TO_RGB,
        picture=_pixels(final),
        tokens=tokens,
        attention=attention if attended else None,
        padding=padding if attended else None,
        seconds={"prompt": 0.04, "net": 1.2, "scheduler": 0.01, "vae": 0.35, "watching": 0.1},
        wall=1.7,
        arrays=_notes(width, height),
        scheduler_config={"_class_name": "DDIMScheduler", "clip_sample": False},
        **arrays,
    )
    return replace(made, **changes)


def _schedule(prediction_type: str, calls: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal, noise and timesteps of each call, (K,) float32."""
    timesteps = np.linspace(951, 51, calls) if calls > 1 else np.array([951.0])
    if prediction_type == "flow_prediction":
        noise = timesteps / 1000
        signal = 1 - noise
    else:
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        share = np.cumprod(1 - betas)[timesteps.astype(int)]
        signal, noise = np.sqrt(share), np.sqrt(1 - share)
    return signal.astype(np.float32), noise.astype(np.float32), timesteps.astype(np.float32)


def _means(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where clean latents are with the prompt, a disc on a slope, and without it, the slope alone."""
    _, height, width = shape
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    disc = (rows**2 + columns**2 < 0.3).astype(float)
    slope = np.stack([0.3 * rows, 0.2 * columns, -0.3 * rows, 0.1 * columns])
    fox = np.stack([0.9 * disc, 0.7 * disc, 0.5 * disc - 0.6 * (1 - disc), -0.2 * disc])
    return slope + fox, slope


def _said(kind: str, x: np.ndarray, a: float, s: float, mean: np.ndarray) -> np.ndarray:
    """The net's output (C, h, w) float32 for ``x``: what its best guess of x0 is as a prediction."""
    x0 = mean + a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) * (x - a * mean)
    eps = (x - a * x0) / s
    said = {"sample": x0, "epsilon": eps, "v_prediction": a * eps - s * x0, "flow_prediction": eps - x0}
    return said[kind].astype(np.float32)


def _x0(kind: str, x: np.ndarray, said: np.ndarray, a: float, s: float) -> np.ndarray:
    x, said = x.astype(float), said.astype(float)
    means = {"sample": said, "v_prediction": a * x - s * said, "flow_prediction": x - s * said}
    return means[kind] if kind in means else (x - s * said) / a


def _pixels(latents: np.ndarray) -> np.ndarray:
    """(C, h, w) -> (8 h, 8 w, 3) uint8."""
    rgb = np.einsum("rc,chw->hwr", TO_RGB[:, :-1], latents) + TO_RGB[:, -1]
    small = np.clip((rgb + 1) * 127.5, 0, 255).round().astype(np.uint8)
    return small.repeat(8, axis=0).repeat(8, axis=1)


def _attention(tokens: tuple[str, ...], calls: int, places: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(K, T, gh, gw) and (K, gh, gw), of softmax over the tokens and padding: they sum to 1."""
    height, width = places
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    inside = np.exp(-3 * (rows**2 + columns**2))
    scores = np.empty((calls, len(tokens) + 1, height, width))
    for k in range(calls):
        clearer = 2 * (k + 1) / calls
        for n, token in enumerate(tokens):
            about = {"fox</w>": inside, "blue</w>": 1 - inside, "back": 1 - inside, "ground</w>": 1 - inside}
            scores[k, n] = WEIGHTS.get(token, 0.0) + clearer * about.get(token, 0.5)
        scores[k, -1] = 1.5
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return shares[:, :-1].astype(np.float32), shares[:, -1].astype(np.float32)


def _notes(width: int, height: int) -> tuple[ArrayNote, ...]:
    latents = 1, CHANNELS, height // 8, width // 8
    shapes = {
        "token ids": ((1, 77), "int64", 8),
        "prompt embeddings": ((1, 77, 128), "float32", 4),
        "latents": (latents, "float32", 4),
        "input of the net": ((2, *latents[1:]), "float32", 4),
        "output of the net": ((2, *latents[1:]), "float32", 4),
        "pixels": ((1, 3, height, width), "float32", 4),
    }
    return tuple(
        ArrayNote(name, shape, dtype, int(np.prod(shape)) * size)
        for name, (shape, dtype, size) in shapes.items()
    )
