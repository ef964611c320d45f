"""Schedulers, dressed so that every pipeline can call them: they have grown apart in what they are asked."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

DYNAMIC_SHIFT = "use_dynamic_shifting"  # in a config: how far flow is shifted depends on the picture's size


def as_pipelines_call(scheduler: Any) -> Any:
    """The scheduler itself, with the methods and manners that pipelines rely on."""
    return _from_the_first_step(_by_their_names(scheduler))


def _by_their_names(scheduler: Any) -> Any:
    """Flow matching starts from noise of size 1, scales nothing, and mixes noise in by another name."""
    if not hasattr(scheduler, "add_noise"):
        scheduler.init_noise_sigma = 1.0
        scheduler.scale_model_input = lambda sample, timestep: sample
        scheduler.add_noise = lambda sample, noise, timestep: scheduler.scale_noise(sample, timestep, noise)
    elif not hasattr(scheduler, "scale_noise"):
        scheduler.scale_noise = lambda sample, timestep, noise: scheduler.add_noise(sample, noise, timestep)
    if scheduler.config.get("use_flow_sigmas") or hasattr(scheduler.config, "shift"):
        return _taking_flow_times(scheduler)
    return scheduler


def _taking_flow_times(scheduler: Any) -> Any:
    """Pipelines of flow models say from which sigmas to start and by how much (mu) to shift them.

    Solvers that were not made for flow have sigmas of their own, which are the same before the shift but
    for the last, and take mu only where the shift depends on the size of the picture. ``timesteps`` besides
    sigmas are those that CogView 4 tells its net.
    """
    own = scheduler.set_timesteps
    known = inspect.signature(own).parameters
    ready_made = type(scheduler).__name__.startswith("FlowMatch") and "sigmas" in known
    shifts = scheduler.config.get(DYNAMIC_SHIFT)

    def set_timesteps(
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        told: dict[str, Any] = {"mu": mu} if shifts and mu is not None else {}
        if sigmas is not None and ready_made:
            told |= {"timesteps": timesteps} if timesteps is not None and "timesteps" in known else {}
            own(sigmas=sigmas, device=device, **told)
        else:
            own(len(sigmas) if sigmas is not None else num_inference_steps, device=device, **told)

    scheduler.set_timesteps = set_timesteps
    return scheduler


def _from_the_first_step(scheduler: Any) -> Any:
    """Make every run begin at step 0.

    A diffusers scheduler finds its place by looking its first timestep up, and takes the *second* of two
    equal ones: then it starts one step late and fails at the last (30 steps of beta sigmas, for example,
    whose timesteps are rounded). Telling it the place is what img2img and SDXL pipelines do anyway.
    """
    if not hasattr(scheduler, "set_begin_index"):
        return scheduler
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def set_timesteps_and_place(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        scheduler.set_begin_index(0)

    scheduler.set_timesteps = set_timesteps_and_place
    return scheduler
