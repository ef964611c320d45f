"""The table against the real classes, and every solver against a net that is exactly right."""

import inspect
import json
import math
import subprocess
import sys

import diffusers
import pytest
import torch

from tests.conftest import POCKET, ROOT, request_for
from webui.diffusion import schedulers
from webui.errors import InvalidField, Unsupported
from webui.request import SIGMA_SCHEDULES

CONFIG = json.loads((POCKET / "scheduler" / "scheduler_config.json").read_text())
FLOW_CONFIG = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
SOLVERS = [(row, solver) for row in schedulers.TABLE for solver in row.solvers]
IDS = [f"{row.name}: {solver.class_name}" for row, solver in SOLVERS]
COMBINATIONS = [(row.name, solver, s) for row, solver in SOLVERS for s in solver.sigma_schedules]
STOCHASTIC = (
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 3M SDE",
    "Euler a",
    "DPM2 a",
    "DDPM",
    "SA-Solver",
    "LCM",
    "TCD",
)

# torchsde compares a rounded end of its interval with the exact one; harmless.
pytestmark = pytest.mark.filterwarnings("ignore:Should have t")

# Data whose denoiser is known: every latent value is drawn from N(0.3, 0.5^2).
MEAN, STD = 0.3, 0.5


def config_for(solver: schedulers.Solver) -> dict:
    return FLOW_CONFIG if solver.prediction_types == ("flow_prediction",) else CONFIG


def ideal_x0(x: torch.Tensor, signal: float, noise: float) -> torch.Tensor:
    """E[x0 | x] for x = signal x0 + noise eps."""
    gain = signal * STD**2 / (signal**2 * STD**2 + noise**2)
    return MEAN + gain * (x - signal * MEAN)


def ideal_output(x: torch.Tensor, t: torch.Tensor, scheduler, kind: str) -> torch.Tensor:
    """What a perfectly trained net says of its (scaled) input x at timestep t."""
    if kind == "flow_prediction":
        sigma = float(t) / 1000
        return (x - ideal_x0(x, 1 - sigma, sigma)) / sigma
    alphas = scheduler.alphas_cumprod.double()
    below = int(t)
    logits = torch.logit(alphas[[below, min(below + 1, 999)]].clamp(min=1e-12))
    alpha = float(torch.lerp(logits[0], logits[1], float(t) - below).sigmoid())
    signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
    x0 = ideal_x0(x, signal, noise)
    eps = (x - signal * x0) / noise
    return {"epsilon": eps, "v_prediction": signal * eps - noise * x0, "sample": x0}[kind]


def run(request, config, size: int = 16, start: torch.Tensor | None = None) -> tuple[torch.Tensor, int]:
    """Sample with the ideal net, as a pipeline would: final latents (B, 4, size, size), and net calls."""
    scheduler = schedulers.build(request, config)
    scheduler.set_timesteps(request.num_inference_steps)
    seeds = [request.picture(k).seed for k in range(request.num_images_per_prompt)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.cat([torch.randn(1, 4, size, size, generator=g) for g in generators])
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    takes = inspect.signature(scheduler.step).parameters
    extra = {"generator": generators, "eta": schedulers.eta(request)}
    extra = {key: extra[key] for key in extra if key in takes}
    kind, calls = schedulers.prediction_type(config), 0
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(ideal_output(model_input, t, scheduler, kind), t, x, **extra).prev_sample
        calls += 1
    return x, calls


# The table


def test_the_module_is_imported_without_torch_and_diffusers():
    code = "import sys, webui.diffusion.schedulers as s; s.infos(); print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_every_scheduler_of_diffusers_is_in_the_table_or_its_absence_is_explained():
    there = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    used = {solver.class_name for _, solver in SOLVERS}
    assert used <= there
    for name in there - used:
        assert f"``{name}``" in schedulers.__doc__, name
    for name in used:
        assert f"``{name}``" not in schedulers.__doc__, name


@pytest.mark.parametrize(("row", "solver"), SOLVERS, ids=IDS)
def test_a_class_knows_every_option_the_table_would_give_it(row, solver):
    known = inspect.signature(getattr(diffusers, solver.class_name).__init__).parameters
    none = set(schedulers._FLAGS.values())  # switched off where the class knows them at all
    assert {key for key in solver.options if key not in none} <= set(known)
    for schedule in solver.sigma_schedules:
        assert schedule in SIGMA_SCHEDULES
        chosen = {key for key, value in schedulers._sigmas(schedule).items() if value}
        assert chosen <= set(known), schedule


@pytest.mark.parametrize(("row", "solver"), SOLVERS, ids=IDS)
def test_the_table_says_truly_which_demands_of_a_checkpoint_a_class_knows(row, solver):
    known = inspect.signature(getattr(diffusers, solver.class_name).__init__).parameters
    flow = solver.prediction_types == ("flow_prediction",)
    demand = schedulers.DYNAMIC_SHIFT if flow else schedulers.ZERO_SNR
    assert (demand in known) == (solver.lacks != demand)


@pytest.mark.parametrize(("row", "solver"), SOLVERS, ids=IDS)
def test_no_accepted_sigma_schedule_is_ignored_by_its_class(row, solver):
    seen = {}
    for schedule in solver.sigma_schedules:
        if config_for(solver) is CONFIG and schedule == "Automatic":
            continue  # the embedded model's own spacing is trailing, as SGM uniform
        scheduler = schedulers.build(
            request_for(scheduler=row.name, sigma_schedule=schedule), config_for(solver)
        )
        scheduler.set_timesteps(10)
        points = (
            tuple(scheduler.timesteps.tolist()),
            tuple(getattr(scheduler, "sigmas", torch.zeros(0)).tolist()),
        )
        assert points not in seen, f"{schedule} is as {seen.get(points)}"
        seen[points] = schedule


@pytest.mark.parametrize("config", [CONFIG, FLOW_CONFIG], ids=["diffusion", "flow"])
def test_what_a_scheduler_cannot_follow_is_refused_by_name(config):
    for row in schedulers.TABLE:
        solver = next((s for s in row.solvers if config_for(s) is config), None)
        for schedule in SIGMA_SCHEDULES:
            request = request_for(scheduler=row.name, sigma_schedule=schedule)
            if solver and schedule in solver.sigma_schedules:
                schedulers.check(request, config)
                continue
            with pytest.raises(Unsupported) as caught:
                schedulers.build(request, config)
            assert caught.value.field == ("sigma_schedule" if solver else "scheduler")
            assert row.name in caught.value.message


def test_the_page_is_offered_every_sigma_schedule_that_some_model_allows():
    infos = {info.name: info for info in schedulers.infos()}
    assert tuple(infos) == schedulers.names()
    assert infos["DDIM"].sigma_schedules == ("Automatic", "SGM uniform", "Linspace", "Leading")
    assert infos["DPM++ 2M"].sigma_schedules == SIGMA_SCHEDULES
    assert [name for name, info in infos.items() if info.uses_eta] == ["DDIM", "TCD"]


@pytest.mark.parametrize(
    ("given", "name"),
    [("Euler a", "Euler a"), ("k_euler_a", "Euler a"), ("euler A", "Euler a"), ("plms", "PLMS")],
)
def test_a_scheduler_is_found_by_name_and_alias_in_any_case(given, name):
    assert schedulers.resolve(given) == name


def test_no_two_schedulers_share_a_name():
    given = [alias.lower() for row in schedulers.TABLE for alias in {row.name.lower(), *row.aliases}]
    assert len({alias.lower() for alias in given}) == len({(a, schedulers.resolve(a)) for a in given})
    for row in schedulers.TABLE:
        assert all(schedulers.resolve(alias) == row.name for alias in (row.name, *row.aliases))


def test_an_unknown_scheduler_is_refused_with_the_nearest_names():
    with pytest.raises(InvalidField, match=r"Scheduler: there is no “Eulr”; did you mean Euler or Euler a\?"):
        schedulers.resolve("Eulr")
    with pytest.raises(InvalidField, match=r"did you mean .*DPM\+\+ 2S"):
        schedulers.resolve("DPM++ 2S a")
    with pytest.raises(InvalidField) as caught:
        schedulers.resolve("x " * 150)
    assert len(str(caught.value)) < 120


# The numbers


@pytest.mark.parametrize(
    ("name", "solver", "schedule"),
    COMBINATIONS,
    ids=[f"{n}: {s.class_name}, {c}" for n, s, c in COMBINATIONS],
)
def test_every_combination_runs_at_1_2_and_10_steps_with_the_net_calls_it_promises(name, solver, schedule):
    for steps in (1, 2, 10):
        request = request_for(scheduler=name, sigma_schedule=schedule, num_inference_steps=steps)
        latents, calls = run(request, config_for(solver))
        assert latents.isfinite().all(), steps
        assert calls == schedulers.net_calls(name, steps), steps


@pytest.mark.parametrize(("row", "solver"), SOLVERS, ids=IDS)
def test_with_an_ideal_net_every_scheduler_turns_noise_into_the_data(row, solver):
    # LCM draws new noise at every step: right for students that jump to x0, too narrow for this net.
    # DPM++ 3M SDE carries a sign slip of diffusers; 2M SDE Heun leaves some noise in a flow of 40 steps.
    odd = {"LCM": (0.32, 0.05), "DPM++ 3M SDE": (STD, 0.12), "DPM++ 2M SDE Heun": (STD, 0.08)}
    spread, tolerance = odd.get(row.name, (STD, 0.08))
    for kind in solver.prediction_types:
        config = FLOW_CONFIG if kind == "flow_prediction" else {**CONFIG, "prediction_type": kind}
        latents, _ = run(request_for(scheduler=row.name, num_inference_steps=40), config, size=32)
        assert latents.mean().item() == pytest.approx(MEAN, abs=0.03), kind
        assert latents.std().item() == pytest.approx(spread, abs=tolerance), kind


@pytest.mark.parametrize("name", [row.name for row in schedulers.TABLE])
def test_no_scheduler_runs_a_kind_of_model_it_would_misread(name):
    row = next(row for row in schedulers.TABLE if row.name == name)
    can = {kind for solver in row.solvers for kind in solver.prediction_types}
    for kind in {"epsilon", "v_prediction", "sample", "flow_prediction"} - can:
        config = FLOW_CONFIG if kind == "flow_prediction" else {**CONFIG, "prediction_type": kind}
        with pytest.raises(Unsupported, match=f"Scheduler: .* cannot run {kind.removesuffix('_prediction')}"):
            schedulers.build(request_for(scheduler=name), config)


@pytest.mark.parametrize("name", ["DPM++ 2M", "DPM++ 2S", "UniPC", "DEIS"])
def test_many_steps_of_beta_sigmas_do_not_run_off_the_end(name):
    """Their first timesteps are rounded to the same number, where diffusers alone starts at the second."""
    latents, calls = run(
        request_for(scheduler=name, sigma_schedule="Beta", num_inference_steps=50), CONFIG, size=32
    )
    assert calls == 50
    assert latents.std().item() == pytest.approx(STD, abs=0.1)


@pytest.mark.parametrize("row", schedulers.TABLE, ids=lambda row: row.name)
def test_no_scheduler_diverges_on_the_curves_it_accepts(row):
    """SA-Solver does so with beta sigmas (a spread of 7), which is why it does not accept them."""
    solver = row.solvers[0]
    for schedule in set(solver.sigma_schedules) & {"Karras", "Exponential", "Beta", "Lambda"}:
        request = request_for(scheduler=row.name, sigma_schedule=schedule, num_inference_steps=30)
        latents, _ = run(request, CONFIG)
        assert 0.25 < latents.std() < 1, schedule


@pytest.mark.parametrize("schedule", SIGMA_SCHEDULES)
def test_the_most_steps_allowed_still_give_numbers(schedule):
    request = request_for(
        scheduler="DPM++ 2M", sigma_schedule=schedule, num_inference_steps=schedulers.MAX_STEPS
    )
    latents, _ = run(request, CONFIG, size=4)
    assert latents.isfinite().all()


@pytest.mark.parametrize(("name", "limit"), [("DDIM", 500), ("LCM", 50), ("TCD", 50)])
def test_more_steps_than_a_method_has_are_refused(name, limit):
    schedulers.check(request_for(scheduler=name, num_inference_steps=limit), CONFIG)
    with pytest.raises(Unsupported, match=f"Steps: {name} takes at most {limit}"):
        schedulers.build(request_for(scheduler=name, num_inference_steps=limit + 1), CONFIG)
    with pytest.raises(Unsupported, match=f"Hires steps: {name} takes at most {limit}"):
        schedulers.check(request_for(scheduler=name, hires_scale=2.0, hires_steps=limit + 1), CONFIG)
    schedulers.check(request_for(scheduler=name, hires_steps=limit + 1), CONFIG)  # no second pass: not used


# The checkpoint's config


@pytest.mark.parametrize(
    ("row", "solver"),
    [pair for pair in SOLVERS if config_for(pair[1]) is CONFIG],
    ids=lambda v: v.name if isinstance(v, schedulers.Row) else "",
)
def test_a_zero_terminal_snr_checkpoint_runs_or_is_refused_but_never_runs_wrongly(row, solver):
    config = {**CONFIG, "rescale_betas_zero_snr": True}
    request = request_for(scheduler=row.name, num_inference_steps=20)
    if solver.lacks:
        with pytest.raises(Unsupported, match="zero terminal SNR"):
            schedulers.build(request, config)
        return
    latents, _ = run(request, config)
    assert latents.mean().item() == pytest.approx(MEAN, abs=0.1)
    assert latents.std().item() == pytest.approx(0.32 if row.name == "LCM" else STD, abs=0.13)


def test_a_time_shift_by_size_is_refused_where_it_would_be_ignored():
    config = {**FLOW_CONFIG, "use_dynamic_shifting": True}
    schedulers.build(request_for(scheduler="Euler"), config)
    with pytest.raises(Unsupported, match="Scheduler: Heun does not know a time shift"):
        schedulers.build(request_for(scheduler="Heun"), config)


def test_an_edm_checkpoint_is_refused():
    with pytest.raises(Unsupported, match="Model: needs EDM preconditioning"):
        schedulers.build(request_for(), {**CONFIG, "_class_name": "EDMDPMSolverMultistepScheduler"})


def test_the_methods_of_the_checkpoints_own_scheduler_do_not_leak_into_another():
    config = {**CONFIG, "algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"}
    for name in ("DPM++ 2M", "DPM++ 2S"):
        built = schedulers.build(request_for(scheduler=name), config).config
        assert (built.algorithm_type, built.solver_order, built.solver_type) == ("dpmsolver++", 2, "midpoint")
    assert (
        schedulers.build(request_for(scheduler="SA-Solver"), config).config.algorithm_type
        == "data_prediction"
    )


def test_latents_are_not_clipped_though_the_checkpoint_does_not_say_so():
    config = {key: value for key, value in CONFIG.items() if key != "clip_sample"}
    assert diffusers.DDIMScheduler.from_config(config).config.clip_sample  # the trap
    assert not schedulers.build(request_for(scheduler="DDIM"), config).config.clip_sample


def test_automatic_keeps_the_checkpoints_sigmas_and_any_other_schedule_replaces_them():
    config = {**CONFIG, "use_karras_sigmas": True}
    automatic = schedulers.build(request_for(scheduler="Euler"), config).config
    assert automatic.use_karras_sigmas
    assert automatic.timestep_spacing == "trailing"
    linspace = schedulers.build(request_for(scheduler="Euler", sigma_schedule="Linspace"), config).config
    assert not linspace.use_karras_sigmas
    assert linspace.timestep_spacing == "linspace"


def test_the_time_shift_of_a_flow_checkpoint_reaches_every_solver():
    for name in ("Euler", "Heun", "LCM", "DPM++ 2M", "DPM++ 2S", "UniPC"):
        config = schedulers.build(request_for(scheduler=name), FLOW_CONFIG).config
        assert 3.0 in (config.get("shift"), config.get("flow_shift"))
    dpm_flow = {**CONFIG, "use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 5.0}
    assert schedulers.build(request_for(scheduler="Euler"), dpm_flow).config.shift == 5.0


def test_building_leaves_the_checkpoints_config_as_it_was():
    before = json.dumps(CONFIG)
    for row in schedulers.TABLE:
        schedulers.build(request_for(scheduler=row.name), CONFIG).set_timesteps(4)
    assert json.dumps(CONFIG) == before


# Same request, same pixels


@pytest.mark.parametrize("name", STOCHASTIC)
def test_what_a_scheduler_draws_comes_from_the_request_alone(name):
    request = request_for(scheduler=name, num_inference_steps=6)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first, _ = run(request, CONFIG)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    again, _ = run(request, CONFIG)
    other, _ = run(request.replace(seed=request.seed + 1), CONFIG)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_picture_k_of_a_batch_has_the_noise_it_has_alone(name):
    request = request_for(scheduler=name, num_inference_steps=6, num_images_per_prompt=2)
    batch, _ = run(request, CONFIG)
    for k in range(2):
        alone, _ = run(request.picture(k), CONFIG)
        torch.testing.assert_close(batch[k : k + 1], alone, rtol=0, atol=1e-6)


def test_the_brownian_tree_is_diffusers_own_for_the_same_seed():
    request = request_for(scheduler="DPM++ SDE", seed=7)
    ours, _ = run(request, CONFIG)
    plain = diffusers.DPMSolverSDEScheduler.from_config(CONFIG, noise_sampler_seed=7)
    plain.set_timesteps(request.num_inference_steps)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7)) * plain.init_noise_sigma
    for t in plain.timesteps:
        output = ideal_output(plain.scale_model_input(x, t), t, plain, "v_prediction")
        x = plain.step(output, t, x).prev_sample
    assert torch.equal(ours, x)


# Eta


def test_eta_is_the_persons_or_the_schedulers_default():
    assert schedulers.eta(request_for(scheduler="DDIM")) == 0.0
    assert schedulers.eta(request_for(scheduler="TCD")) == 0.3
    assert schedulers.eta(request_for(scheduler="DDIM", eta=0.5)) == 0.5
    assert schedulers.eta(request_for(scheduler="Euler")) == 0.0


@pytest.mark.parametrize("name", [row.name for row in schedulers.TABLE])
def test_eta_is_refused_where_the_scheduler_would_ignore_it(name):
    row = next(row for row in schedulers.TABLE if row.name == name)
    takes = "eta" in inspect.signature(getattr(diffusers, row.solvers[0].class_name).step).parameters
    if takes:
        schedulers.check(request_for(scheduler=name, eta=0.5), CONFIG)
        return
    with pytest.raises(Unsupported, match=f"Eta: {name.replace('+', '.')} takes none"):
        schedulers.check(request_for(scheduler=name, eta=0.5), CONFIG)


# The pipeline


@pytest.mark.parametrize("name", [row.name for row in schedulers.TABLE])
def test_the_pocket_model_paints_with_every_scheduler(bare, name):
    """In float32, through diffusers' own pipeline: finite, and at 10 steps within the range of latents."""
    pipe = diffusers.StableDiffusionPipeline(**{**bare.components, "scheduler": None})
    pipe.set_progress_bar_config(disable=True)
    for steps in (1, 2, 10):
        request = request_for(scheduler=name, num_inference_steps=steps)
        pipe.scheduler = schedulers.build(request, CONFIG)
        latents = pipe(
            request.prompt,
            width=request.width,
            height=request.height,
            guidance_scale=request.guidance_scale,
            num_inference_steps=steps,
            eta=schedulers.eta(request),
            generator=[torch.Generator().manual_seed(request.seed)],
            output_type="latent",
        ).images
        assert latents.isfinite().all(), steps
        assert pipe.num_timesteps == schedulers.net_calls(name, steps)
    assert 0.5 < latents.std() < 3  # 1.5 for finished pictures
