"""Classifier-free guidance taken apart (Ho & Salimans 2022, arXiv:2207.12598), and tried at other scales.

What is guided with is the difference d of what the net says with the prompt and with the negative prompt. As
an output at one call means x0 by an affine map, d of x0 is d of the outputs but for a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from webui.flight import FlightRecord, Floats
from webui.illustrated.checks import Check, apart, cosine, ratio
from webui.illustrated.colours import linear
from webui.illustrated.reading import TOLERANCE, Which, x0, x0_of


@dataclass(frozen=True, eq=False)
class Guidance:
    """All of d = x0 with the prompt - x0 with the negative prompt."""

    scale: float  # the CFG scale of the run
    lengths: Floats  # (K,), Euclidean, of all of d
    share: Floats  # (K,), in shares of the length of x0 with the negative prompt
    cosines: Floats  # (K,), of the angle between d and x0 with the negative prompt, -1..1
    where: Floats  # (K, h, w), length of d over the channels


def guidance(record: FlightRecord) -> Guidance | None:
    """None where nothing was guided."""
    if record.uncond is None:
        return None
    against = x0(record, "uncond").astype(float)
    d = x0(record, "cond") - against
    flat, base = d.reshape(len(d), -1), against.reshape(len(d), -1)
    lengths = np.linalg.norm(flat, axis=1)
    return Guidance(
        scale=record.request.guidance_scale,
        lengths=lengths.astype(np.float32),
        share=ratio(lengths, np.linalg.norm(base, axis=1)).astype(np.float32),
        cosines=cosine(flat, base).astype(np.float32),
        where=np.linalg.norm(d, axis=1).astype(np.float32),
    )


def at_scale(record: FlightRecord, call: int, scale: float) -> Floats:
    """(C, h, w): the x0 of this one call at another CFG scale, of the same latents; no net is asked.

    At 0 it is x0 with the negative prompt, at 1 with the prompt, bit for bit: in float64 the difference and
    the sum of two float32 of like size are exact.

    Raises:
        ValueError: nothing was guided.
    """
    if record.uncond is None:
        raise ValueError("nothing was guided, so there is no scale to change")
    return _scaled(record, record.uncond, call, scale).astype(np.float32)


def clipped(record: FlightRecord, call: int, scales: Sequence[float]) -> Floats:
    """(n,): for each scale, the share of colour values of :func:`at_scale` that are beyond -1..1.

    Colours are :func:`webui.illustrated.colours.linear`; what is beyond is lost in the picture, and looks
    burnt. Raises as :func:`at_scale`.
    """
    shares = [(np.abs(linear(record, at_scale(record, call, scale))) > 1).mean() for scale in scales]
    return np.array(shares, np.float32)


def checks(record: FlightRecord) -> list[Check]:
    """The first as the run computed it, in float32; it is left out where plugins guided as well."""
    if record.uncond is None:
        return []
    found = []
    if not record.request.plugins:
        told = np.float32(record.request.guidance_scale)
        guided = record.uncond + told * (record.cond - record.uncond)
        error = apart(guided, record.guided)
        found.append(Check("guided = negative + scale · (prompt − negative)", error, TOLERANCE))
    ends: tuple[tuple[float, Which, str], ...] = (
        (0.0, "uncond", "with the negative prompt"),
        (1.0, "cond", "with the prompt"),
    )
    for scale, which, words in ends:
        ours = np.stack([at_scale(record, call, scale) for call in range(len(record.timesteps))])
        found.append(Check(f"x0 at scale {scale:g} = x0 {words}", apart(ours, x0(record, which)), 0.0))
    return found


def _scaled(record: FlightRecord, uncond: Floats, call: int, scale: float) -> NDArray[np.float64]:
    only = slice(call, call + 1)
    negative = uncond[only].astype(float)
    return np.asarray(x0_of(record, negative + scale * (record.cond[only] - negative), only)[0])
