"""Schedulers: the names people know, the diffusers classes behind them, and what each can do.

A row of :data:`TABLE` is a name, with a solver for models that predict noise or velocity on a
variance-preserving schedule, one for flow models, or both; the checkpoint's scheduler config decides. What a
class would ignore is refused here by name, because ``from_config`` drops unknown options without a word.

The names follow k-diffusion, by way of AUTOMATIC1111. Where diffusers has no such sampler, no other is
passed off as it: DPM++ 2S is diffusers' *single-step* DPM-Solver++ of order 2, which is deterministic and
spends n net calls on n steps (pairs of them share one step of the solver, the last stands alone); it is not
the ancestral "DPM++ 2S a", which diffusers lacks, as it lacks DPM fast, DPM adaptive, Restart and DDIM CFG++.

Known of diffusers 0.42.1, and left as it computes them: DPM++ 3M SDE has a sign slip in its third-order
term (-1/2 for +1/2), which leaves some noise in long runs; beta sigmas crowd at both ends of sigma, not of
time as in their paper, and want 30 steps or more; Lambda is Exponential with timesteps rounded; a single
step paints nothing with Leading or Linspace (it is taken at the end), nor with DEIS or SA-Solver on curves.

The other schedulers of diffusers are left out because they give nonsense here, or nothing new:

* preconditioned or scaled in their own way, so that a Stable Diffusion net would be fed foreign timesteps
  (EDM passes ln(sigma)/4 where the net expects 0..999) and be read wrongly: ``EDMEulerScheduler``,
  ``EDMDPMSolverMultistepScheduler``, ``CosineDPMSolverMultistepScheduler``, ``KarrasVeScheduler``,
  ``ScoreSdeVeScheduler``, ``CMStochasticIterativeScheduler``, ``IPNDMScheduler``, ``SCMScheduler``
* the same sampler again, for pipelines that run steps side by side: ``DDIMParallelScheduler``,
  ``DDPMParallelScheduler``
* run backwards, from picture to noise: ``DDIMInverseScheduler``, ``DPMSolverMultistepInverseScheduler``
* want more than a prediction (a mask, a second timestep, a policy, another net's output):
  ``RePaintScheduler``, ``FlowMapEulerDiscreteScheduler``, ``PiflowScheduler``, ``UnCLIPScheduler``
* made for one other family of models: ``CogVideoXDPMScheduler``,
  ``DDPMWuerstchenScheduler``, ``HeliosScheduler``, ``HeliosDMDScheduler``, ``LTXEulerAncestralRFScheduler``,
  ``MiniMaxH3Scheduler``, ``RFD4ProteinaScheduler``
* choose tokens, not latents: ``AmusedScheduler``, ``BlockRefinementScheduler``, ``DiscreteDDIMScheduler``,
  ``EntropyBoundScheduler``, ``VQDiffusionScheduler``

Nothing here imports torch or diffusers before :func:`build` is called.
"""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from webui.diffusion.dialects import DYNAMIC_SHIFT, as_pipelines_call
from webui.errors import Unsupported
from webui.request import SIGMA_SCHEDULES, GenerationRequest, SchedulerInfo, invalid

MAX_STEPS = 500  # of 1000 training timesteps; beyond, neighbours coincide and solvers divide by zero

_DIFFUSION = ("epsilon", "v_prediction", "sample")
_NOISE_OR_V = ("epsilon", "v_prediction")
_FLOW = ("flow_prediction",)

_FLAGS = {
    "Karras": "use_karras_sigmas",
    "Exponential": "use_exponential_sigmas",
    "Beta": "use_beta_sigmas",
    "Lambda": "use_lu_lambdas",
}
_SPACINGS = {"SGM uniform": "trailing", "Linspace": "linspace", "Leading": "leading"}

_OWN = ("Automatic",)
_CURVES = ("Automatic", "Karras", "Exponential", "Beta")
_SPACED = ("Automatic", *_SPACINGS)
_ALL = (*_CURVES, *_SPACINGS)

# Of models that no other scheduler can run: this one has betas of its own (``snr_shift_scale``).
ALONE = ("CogVideoXDDIMScheduler",)

# What a checkpoint's config may demand. A class that does not know it would make a wrong picture.
ZERO_SNR = "rescale_betas_zero_snr"
_IN_WORDS = {ZERO_SNR: "zero terminal SNR", DYNAMIC_SHIFT: "a time shift by picture size"}


@dataclass(frozen=True)
class Solver:
    """A diffusers class with its options, and what it accepts.

    ``lacks``: what a checkpoint may demand and the class does not know (:data:`ZERO_SNR`, ...).
    """

    class_name: str
    sigma_schedules: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    prediction_types: tuple[str, ...] = _DIFFUSION
    lacks: str = ""
    factory: Callable[[Mapping[str, Any]], Any] | None = None  # a plugin's: config -> scheduler


@dataclass(frozen=True)
class Row:
    """A scheduler under the name people know.

    ``calls``: net calls for n steps. ``eta``: its default where it takes one. ``max_steps``: a limit of the
    method. No two solvers of a row share a prediction type, but for those of :data:`ALONE`.
    """

    name: str
    solvers: tuple[Solver, ...]
    aliases: tuple[str, ...] = ()
    calls: Callable[[int], int] = lambda steps: steps
    eta: float | None = None
    max_steps: int = MAX_STEPS


def _second_order(steps: int) -> int:
    """Two calls a step, but one for the last, which ends at sigma 0."""
    return 2 * steps - 1


def _pseudo_linear(steps: int) -> int:
    """PLMS takes its first step twice, to have a history (Liu et al. 2022, arXiv:2202.09778)."""
    return steps + 1 if steps > 1 else 1


def _multistep(**options: Any) -> tuple[Solver, Solver]:
    """DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), for diffusion and for flow models."""
    name = "DPMSolverMultistepScheduler"
    options = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", **options}
    return Solver(name, (*_CURVES, "Lambda", *_SPACINGS), options), _on_flow(name, options)


def _on_flow(class_name: str, options: Mapping[str, Any]) -> Solver:
    """A diffusion solver following flow sigmas; any other sigma schedule makes it return NaN."""
    none = dict.fromkeys(_FLAGS.values(), False)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    return Solver(class_name, _OWN, {**options, **none, **flow}, _FLOW)


_SINGLESTEP = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,  # diffusers would switch it on later, with a warning
}
_UNIPC = {"solver_order": 2, "solver_type": "bh2"}
_DEIS = {"algorithm_type": "deis", "solver_order": 2, "solver_type": "logrho"}

TABLE: tuple[Row, ...] = (
    Row("DPM++ 2M", _multistep(), ("k_dpmpp_2m",)),
    Row(
        "DPM++ SDE",
        (Solver("DPMSolverSDEScheduler", _ALL, {}, _NOISE_OR_V, ZERO_SNR),),
        ("k_dpmpp_sde",),
        _second_order,
    ),
    Row("DPM++ 2M SDE", _multistep(algorithm_type="sde-dpmsolver++"), ("k_dpmpp_2m_sde",)),
    Row(
        "DPM++ 2M SDE Heun",
        _multistep(algorithm_type="sde-dpmsolver++", solver_type="heun"),
        ("k_dpmpp_2m_sde_heun",),
    ),
    Row("DPM++ 3M", _multistep(solver_order=3)),
    Row("DPM++ 3M SDE", _multistep(algorithm_type="sde-dpmsolver++", solver_order=3), ("k_dpmpp_3m_sde",)),
    Row(
        "DPM++ 2S",
        (  # takes no timestep spacing: its own is linspace
            Solver("DPMSolverSinglestepScheduler", _CURVES, _SINGLESTEP, lacks=ZERO_SNR),
            _on_flow("DPMSolverSinglestepScheduler", _SINGLESTEP),
        ),
    ),
    Row(
        "Euler a",
        (Solver("EulerAncestralDiscreteScheduler", _SPACED, {}, _NOISE_OR_V),),
        ("k_euler_a", "k_euler_ancestral"),
    ),
    Row(
        "Euler",
        (
            Solver("EulerDiscreteScheduler", _ALL),
            Solver("FlowMatchEulerDiscreteScheduler", _CURVES, {"stochastic_sampling": False}, _FLOW),
        ),
        ("k_euler",),
    ),
    Row("LMS", (Solver("LMSDiscreteScheduler", _ALL, lacks=ZERO_SNR),), ("k_lms",)),
    Row(
        "Heun",
        (
            Solver("HeunDiscreteScheduler", _ALL, {}, _NOISE_OR_V, ZERO_SNR),
            Solver("FlowMatchHeunDiscreteScheduler", _OWN, {}, _FLOW, DYNAMIC_SHIFT),
        ),
        ("k_heun",),
        _second_order,
    ),
    Row(
        "DPM2",
        (Solver("KDPM2DiscreteScheduler", _ALL, {}, _NOISE_OR_V, ZERO_SNR),),
        ("k_dpm_2",),
        _second_order,
    ),
    Row(
        "DPM2 a",
        (Solver("KDPM2AncestralDiscreteScheduler", _ALL, {}, _NOISE_OR_V, ZERO_SNR),),
        ("k_dpm_2_a",),
        _second_order,
    ),
    Row("DDIM", (Solver("DDIMScheduler", _SPACED), Solver("CogVideoXDDIMScheduler", _OWN)), eta=0.0),
    Row("DDPM", (Solver("DDPMScheduler", _SPACED, {"variance_type": "fixed_small"}),)),
    Row(
        "PLMS",
        (Solver("PNDMScheduler", _SPACED, {"skip_prk_steps": True}, _NOISE_OR_V, ZERO_SNR),),
        ("PNDM",),
        _pseudo_linear,
    ),
    Row(
        "UniPC",
        (Solver("UniPCMultistepScheduler", _ALL, _UNIPC), _on_flow("UniPCMultistepScheduler", _UNIPC)),
    ),
    Row("DEIS", (Solver("DEISMultistepScheduler", _ALL, _DEIS, lacks=ZERO_SNR),)),
    Row(
        "SA-Solver",
        (
            Solver(
                "SASolverScheduler",
                tuple(name for name in _ALL if name != "Beta"),  # diverges, however right the net is
                {"algorithm_type": "data_prediction"},
                lacks=ZERO_SNR,
            ),
        ),
    ),
    Row(
        "LCM",
        (Solver("LCMScheduler", _OWN), Solver("FlowMatchLCMScheduler", _CURVES, {}, _FLOW)),
        ("k_lcm",),
        max_steps=50,  # original_inference_steps: the schedule the students were distilled on
    ),
    Row("TCD", (Solver("TCDScheduler", _OWN),), eta=0.3, max_steps=50),
)

_ROWS: dict[str, Row] = {row.name: row for row in TABLE}
_NAMES: dict[str, str] = {alias.lower(): row.name for row in TABLE for alias in (row.name, *row.aliases)}


def offer(
    name: str, factory: Callable[[Mapping[str, Any]], Any], calls: Callable[[int], int] = lambda steps: steps
) -> None:
    """Add a plugin's scheduler, or let it take the place of one that a plugin added under this name.

    Raises:
        ValueError: the name is one of ours.
    """
    if name.lower() in {alias.lower() for row in TABLE for alias in (row.name, *row.aliases)}:
        raise ValueError(f"there is a scheduler named {name} already")
    solver = Solver(name, _OWN, {}, (*_DIFFUSION, *_FLOW), factory=factory)
    _ROWS[name] = Row(name, (solver,), calls=calls)
    _NAMES[name.lower()] = name


def names() -> tuple[str, ...]:
    """The names of all schedulers, in the order to show them."""
    return tuple(_ROWS)


def infos() -> list[SchedulerInfo]:
    """All schedulers with every sigma schedule that one of their solvers can follow."""
    return [SchedulerInfo(row.name, _schedules(row), row.eta is not None) for row in _ROWS.values()]


def resolve(name: str) -> str:
    """The name of a scheduler given as itself or as an alias (``k_euler_a``), in any case of letters.

    Raises:
        InvalidField: there is none; the message suggests the nearest.
    """
    known = _NAMES.get(name.strip().lower())
    if known is None:
        near = difflib.get_close_matches(name.lower(), _NAMES, n=3, cutoff=0.5)
        meant = " or ".join(dict.fromkeys(_NAMES[match] for match in near))
        shown = textwrap.shorten(name, 60, placeholder="…")
        raise invalid("scheduler", f"there is no “{shown}”" + (f"; did you mean {meant}?" if meant else ""))
    return known


def prediction_type(config: Mapping[str, Any]) -> str:
    """What the net of a checkpoint with this scheduler config predicts.

    Returns:
        "epsilon", "v_prediction", "sample" or "flow_prediction".

    Raises:
        Unsupported: the checkpoint needs EDM preconditioning (Playground 2.5).
    """
    class_name = str(config.get("_class_name", ""))
    if class_name.startswith("EDM"):
        raise invalid("model", "needs EDM preconditioning, which no scheduler here follows", Unsupported)
    if class_name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return "flow_prediction"
    return str(config.get("prediction_type", "epsilon"))


def alphas_cumprod(config: Mapping[str, Any]) -> Any:
    """The share of the picture in the variance at each training timestep, as a tensor; None of flow models.

    Raises:
        Unsupported: as :func:`prediction_type`.
    """
    if prediction_type(config) == "flow_prediction":
        return None
    import diffusers

    own = config.get("_class_name")
    kind = getattr(diffusers, own if own in ALONE else "DDPMScheduler")
    return kind.from_config(dict(config)).alphas_cumprod


def check(request: GenerationRequest, config: Mapping[str, Any]) -> None:
    """Refuse what the request's scheduler cannot do with a checkpoint of this scheduler config.

    Raises:
        InvalidField: there is no such scheduler.
        Unsupported: it cannot run this kind of model, follow this sigma schedule, take so many steps, or
            take an eta. The message names the field.
    """
    row, solver = _row_and_solver(request, config)
    if request.sigma_schedule not in solver.sigma_schedules:
        on = " on a flow model" if solver.prediction_types == _FLOW else ""
        taken = ", ".join(solver.sigma_schedules)
        message = f"{row.name} cannot follow {request.sigma_schedule}{on}; it takes {taken}"
        raise invalid("sigma_schedule", message, Unsupported)
    for steps in ("num_inference_steps", "hires_steps") if request.hires else ("num_inference_steps",):
        if getattr(request, steps) > row.max_steps:
            raise invalid(steps, f"{row.name} takes at most {row.max_steps}", Unsupported)
    eta(request)


def fits(scheduler: str, config: Mapping[str, Any]) -> bool:
    """Whether a scheduler can run a checkpoint of this scheduler config at all."""
    try:
        _row_and_solver(GenerationRequest(scheduler=scheduler), config)
    except Unsupported:
        return False
    return True


def own(config: Mapping[str, Any]) -> str:
    """The scheduler that a checkpoint of this scheduler config comes with; "" if it is not on the list."""
    kind = prediction_type(config)
    shipped = (
        row.name
        for row in TABLE
        for solver in row.solvers
        if solver.class_name == config.get("_class_name") and kind in solver.prediction_types
    )
    return next(shipped, "")


def net_calls(scheduler: str, steps: int) -> int:
    """How often the net runs for ``steps`` steps from pure noise (both halves of CFG count as one).

    With a strength below 1, as for a second pass, count ``int(steps * strength)`` steps.
    """
    return _ROWS[resolve(scheduler)].calls(steps)


def steps(request: GenerationRequest, rounds_up: bool = False) -> tuple[int, int]:
    """Steps that the first and the second pass of a request really take; 0 for a pass there is not.

    A pass over a picture takes ``int(steps * strength)``, as diffusers' img2img counts; its pipelines of
    transformers round up.
    """
    first = _left(request.num_inference_steps, request.strength if request.image else 1, rounds_up)
    second = _left(request.hires_steps or request.num_inference_steps, request.hires_strength, rounds_up)
    return first, second if request.hires else 0


def _left(count: int, strength: float, rounds_up: bool) -> int:
    return count - int(count - count * strength) if rounds_up else int(count * strength)


def calls(request: GenerationRequest, rounds_up: bool = False) -> int:
    """How often the net runs for a request, all passes together."""
    return sum(net_calls(request.scheduler, count) for count in steps(request, rounds_up) if count)


def eta(request: GenerationRequest) -> float:
    """Eta for the pipeline: the request's, else the scheduler's default; 0 where it has no meaning.

    Raises:
        Unsupported: an eta was asked of a scheduler that takes none.
    """
    row = _ROWS[resolve(request.scheduler)]
    if request.eta is None:
        return row.eta or 0.0
    if row.eta is None:
        raise invalid("eta", f"{row.name} takes none; leave it empty", Unsupported)
    return request.eta


def build(request: GenerationRequest, config: Mapping[str, Any], seeds: Sequence[int] | None = None) -> Any:
    """A fresh diffusers scheduler for one pipeline call.

    ``config`` is the checkpoint's pristine scheduler config, with its ``_class_name``. Betas, prediction
    type, spacing and (for "Automatic") sigma schedule are the checkpoint's; the method is the row's.

    Same request, same pixels: whatever a scheduler draws comes from the generators given to the pipeline,
    except DPM++ SDE, whose Brownian tree takes the seed of each picture from the request here, so that
    picture k of a batch has the noise it has alone. The tree draws on the device of the latents. ``seeds``
    are the pictures', where they are not those of the request's own batch.

    Raises:
        InvalidField, Unsupported: as :func:`check`.
    """
    check(request, config)
    _, solver = _row_and_solver(request, config)
    if solver.factory is not None:
        return as_pipelines_call(solver.factory(config))

    import diffusers

    cls = getattr(diffusers, solver.class_name)
    known = inspect.signature(cls.__init__).parameters
    wanted = {**_implied(request, config, seeds), **_options(request, solver)}
    scheduler = cls.from_config(dict(config), **{key: wanted[key] for key in wanted if key in known})
    return as_pipelines_call(scheduler)


def changes(scheduler: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`build` made of a checkpoint's config, as JSON takes it: the class (``_class_name``), and
    the options that its ``from_config`` must be given besides ``config``. Empty of a plugin's scheduler."""
    cls = type(scheduler)
    if not cls.__module__.startswith("diffusers."):
        return {}
    own = inspect.signature(cls.__init__).parameters
    used = {name: scheduler.config[name] for name in own if name in scheduler.config}
    told = {name: used[name] for name in used if config.get(name, own[name].default) != used[name]}
    return {"_class_name": cls.__name__, **told}


def identity(request: GenerationRequest, config: Mapping[str, Any]) -> dict[str, Any]:
    """What of the scheduler decides the pixels, as JSON takes it: its class and all that it is told.

    Raises:
        InvalidField, Unsupported: as :func:`check`.
    """
    check(request, config)
    _, solver = _row_and_solver(request, config)
    told = {**config, **_implied(request, config), **_options(request, solver)}
    return {"class": solver.class_name, "eta": eta(request), "told": told}


def _options(request: GenerationRequest, solver: Solver) -> dict[str, Any]:
    return {**_sigmas(request.sigma_schedule), **solver.options}


def _schedules(row: Row) -> tuple[str, ...]:
    """Every sigma schedule that one of its solvers can follow, in the order to show them."""
    taken = {schedule for solver in row.solvers for schedule in solver.sigma_schedules}
    return tuple(schedule for schedule in SIGMA_SCHEDULES if schedule in taken)


def _row_and_solver(request: GenerationRequest, config: Mapping[str, Any]) -> tuple[Row, Solver]:
    """The row of the request, and its solver for this kind of checkpoint."""
    row, kind = _ROWS[resolve(request.scheduler)], prediction_type(config)
    alone = config.get("_class_name") in ALONE
    solvers = [solver for solver in row.solvers if (solver.class_name in ALONE) == alone]
    solver = next((solver for solver in solvers if kind in solver.prediction_types), None)
    if solver is None and alone:
        raise invalid("scheduler", f"{row.name} cannot run this model, which needs its own", Unsupported)
    if solver is None:
        kind = kind.removesuffix("_prediction")
        raise invalid("scheduler", f"{row.name} cannot run {kind}-prediction models", Unsupported)
    if config.get(solver.lacks):
        message = f"{row.name} does not know {_IN_WORDS[solver.lacks]}, which this model needs"
        raise invalid("scheduler", message, Unsupported)
    return row, solver


def _sigmas(sigma_schedule: str) -> dict[str, Any]:
    """The options of a sigma schedule; every other one is switched off, whatever the checkpoint says."""
    if sigma_schedule == "Automatic":
        return {}
    options: dict[str, Any] = {flag: name == sigma_schedule for name, flag in _FLAGS.items()}
    if sigma_schedule in _SPACINGS:
        options["timestep_spacing"] = _SPACINGS[sigma_schedule]
    return options


def _implied(
    request: GenerationRequest, config: Mapping[str, Any], seeds: Sequence[int] | None = None
) -> dict[str, Any]:
    """Options that follow from the request and the checkpoint, for the classes that know them."""
    shift = config.get("flow_shift" if config.get("use_flow_sigmas") else "shift", 1.0)
    pictures = range(request.num_images_per_prompt)
    return {
        "clip_sample": False,  # latents are not bounded by 1, and some classes clip unless told
        "shift": shift,
        "flow_shift": shift,
        "noise_sampler_seed": list(seeds or (request.picture(k).seed for k in pictures)),
    }
