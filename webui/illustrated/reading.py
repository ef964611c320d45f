"""What the net's outputs mean: the clean picture it guesses (x0) and the noise it sees (eps), at every call.

With ``latents`` = signal x0 + noise eps, which of all but flow models has signal^2 + noise^2 = 1 and of those
signal + noise = 1, an output is read as (:class:`webui.diffusion.preview.Reading` does the same, live):

* "epsilon": it is eps, and x0 = (x - noise eps) / signal  (Ho et al. 2020, arXiv:2006.11239, eq. 15)
* "v_prediction": x0 = signal x - noise v, eps = noise x + signal v  (Salimans & Ho 2022, arXiv:2202.00512,
  app. D)
* "flow_prediction": x0 = x - noise v, eps = x + signal v  (Lipman et al. 2022, arXiv:2210.02747)
* "sample": it is x0, and eps = (x - signal x0) / noise

Computed in float64 from the float32 of the record, and rounded once.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from webui.flight import FlightRecord, Floats
from webui.illustrated.checks import Check, apart

Which = Literal["guided", "cond", "uncond"]
TOLERANCE = 1e-5  # of float32, in shares of the largest number
AT_THE_END = 1e-4  # a last step from much noise rounds more

# Classes of diffusers whose last step is of first order and draws no noise, as measured on real runs.
ENDS_PLAINLY = {
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
}


def x0(record: FlightRecord, which: Which = "guided") -> Floats:
    """(K, C, h, w), the clean latents guessed at each call.

    Raises:
        ValueError: "uncond" where nothing was guided.
    """
    return x0_of(record, output(record, which)).astype(np.float32)


def eps(record: FlightRecord, which: Which = "guided") -> Floats:
    """(K, C, h, w), the noise that each call takes its latents to hold.

    Raises:
        ValueError: "uncond" where nothing was guided.
    """
    return eps_of(record, output(record, which)).astype(np.float32)


def checks(record: FlightRecord) -> list[Check]:
    again = _levels(record.signal) * x0(record) + _levels(record.noise) * eps(record)
    found = [Check("signal · x0 + noise · eps = latents", apart(again, record.latents), TOLERANCE)]
    if ends_plainly(record):
        signal, noise = end(record)
        mixed = f"{signal:.4f} · last x0 + {noise:.4f} · last eps"
        name = f"what is decoded = {mixed if abs(noise) > AT_THE_END else 'the last x0'}"
        ended = signal * x0(record)[-1].astype(float) + noise * eps(record)[-1]
        found.append(Check(name, apart(ended, record.final), AT_THE_END))
    return found


def ends_plainly(record: FlightRecord) -> bool:
    """Whether what the scheduler ended with must follow from the last call of the net alone.

    It lies then on the line from the last x0 to noise: final = a x0 + s eps, of whatever small noise the
    schedule stops at. That the last x0 *is* the picture holds only where it stops at none. DDIM with Stable
    Diffusion's ``set_alpha_to_one=False`` stops at the noise of timestep 0 (a^2 = 0.99915 and s = 0.029), so
    the last x0 is off by 0.1 % and more.

    Nor need it lie there at all: PLMS, LMS, DEIS and SA-Solver mix the last call with earlier ones, and DDIM
    with an eta draws noise at the end. (DPM-Solver and UniPC end with a step of first order, the ancestral
    and SDE solvers at sigma 0, where they draw nothing. LCM keeps (1 / (20 t))^2 of its last input, at most
    7e-6, which is within the tolerance.) What plugins and a mask do to latents after the last call is not
    known here, so nothing is said of them.
    """
    request, kind = record.request, record.scheduler_config.get("_class_name")
    drawn = kind == "DDIMScheduler" and bool(request.eta)
    return kind in ENDS_PLAINLY and not (drawn or request.plugins or request.task == "inpaint")


def end(record: FlightRecord) -> tuple[float, float]:
    """(signal, noise) of what the scheduler ended with: the pair that a schedule can have (the squares add up
    to 1; of flow models they themselves do) that fits it best, by least squares."""
    clean, noisy, final = (
        array.astype(float).ravel() for array in (x0(record)[-1], eps(record)[-1], record.final)
    )
    if not all(np.isfinite(array).all() for array in (clean, noisy, final)):
        return 1.0, 0.0
    if record.prediction_type == "flow_prediction":
        way = noisy - clean
        noise = float((final - clean) @ way / max(way @ way, np.finfo(float).tiny))
        return 1 - noise, noise
    angle = _nearest(clean, noisy, final)
    return math.cos(angle), math.sin(angle)


def output(record: FlightRecord, which: Which) -> Floats:
    """(K, C, h, w), as the net said it.

    Raises:
        ValueError: "uncond" where nothing was guided.
    """
    said = {"guided": record.guided, "cond": record.cond, "uncond": record.uncond}[which]
    if said is None:
        raise ValueError("nothing was guided, so there is no output without the prompt")
    return said


def x0_of(record: FlightRecord, output: NDArray[Any], calls: slice = slice(None)) -> NDArray[np.float64]:
    """The clean latents that outputs (k, C, h, w) of these calls mean, the same shape."""
    x, said = record.latents[calls].astype(float), output.astype(float)
    signal, noise = _levels(record.signal)[calls], _levels(record.noise)[calls]
    match record.prediction_type:
        case "sample":
            clean = said
        case "flow_prediction":
            clean = x - noise * said
        case "v_prediction":
            clean = signal * x - noise * said
        case _:
            clean = (x - noise * said) / signal
    return np.asarray(clean)


def eps_of(record: FlightRecord, output: NDArray[Any]) -> NDArray[np.float64]:
    """The noise that outputs (K, C, h, w) mean, the same shape."""
    x, said = record.latents.astype(float), output.astype(float)
    signal, noise = _levels(record.signal), _levels(record.noise)
    match record.prediction_type:
        case "sample":
            noisy = (x - signal * said) / noise
        case "flow_prediction":
            noisy = x + signal * said
        case "v_prediction":
            noisy = noise * x + signal * said
        case _:
            noisy = said
    return np.asarray(noisy)


def _levels(level: Floats) -> NDArray[np.float64]:
    """(K,) as (K, 1, 1, 1)."""
    return level.astype(float)[:, None, None, None]


def _nearest(clean: NDArray[Any], noisy: NDArray[Any], final: NDArray[Any]) -> float:
    """The angle at which cos · clean + sin · noisy comes nearest to ``final``: Newton, from the best pair."""
    pair = np.linalg.lstsq(np.stack([clean, noisy], axis=1), final, rcond=None)[0]
    angle = math.atan2(pair[1], pair[0])
    more, mixed = noisy @ noisy - clean @ clean, clean @ noisy
    to_clean, to_noisy = final @ clean, final @ noisy
    for _ in range(20):
        cos, sin = math.cos(angle), math.sin(angle)
        slope = more * cos * sin + mixed * (cos**2 - sin**2) + to_clean * sin - to_noisy * cos
        bend = more * (cos**2 - sin**2) - 4 * mixed * cos * sin + to_clean * cos + to_noisy * sin
        if bend <= 0:  # not in the valley
            break
        angle -= slope / bend
    return angle
