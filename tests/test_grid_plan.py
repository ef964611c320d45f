"""From axes to cells: each possible one exactly once, in an order that shows the range early."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.grids import BASE, KNOWN, anything, axis, model, planned
from webui import infotext
from webui.diffusion import schedulers
from webui.errors import InvalidField
from webui.grid.axes import Known
from webui.grid.plan import AxisSpec, Grid, from_infotext, pairs, plan
from webui.request import GenerationRequest

SCHEDULER_BY_CFG = axis("scheduler", "all"), axis("guidance_scale", "2-8 (+3)")


def test_cells_are_ordinary_requests_of_one_picture():
    made = planned(*SCHEDULER_BY_CFG, base=BASE.replace(num_images_per_prompt=4))
    cells = {cell.index: cell.request for cell in made.cells}
    assert made.titles == ("Scheduler", "CFG scale", "")
    assert [value.label for value in made.x] == ["Euler", "Heun", "DPM++ 2M"]
    assert [value.label for value in made.y] == ["2", "5", "8"]
    assert cells[1, 2, 0, 0] == BASE.replace(scheduler="Heun", guidance_scale=8.0)
    assert len(cells) == 9


def test_net_calls_are_those_of_each_scheduler_and_equal_pictures_count_once():
    shared = 3 * 2  # of each scheduler, the first call is made once for its three scales
    assert planned(*SCHEDULER_BY_CFG).net_calls == 3 * (20 + 39 + 20) - shared
    overlapping = planned(axis("seed", "1, 2"), per_cell=2)  # 1, 2 and 2, 3
    assert len(overlapping.cells) == 4
    assert overlapping.net_calls == 3 * 20
    steps = axis("num_inference_steps", "10")
    image = BASE.replace(image="ab" * 32, strength=0.5, scheduler="Heun")
    assert planned(steps, base=image).net_calls == schedulers.net_calls("Heun", 5)
    hires = BASE.replace(hires_scale=2, hires_steps=20, hires_strength=0.5)
    assert planned(steps, base=hires).net_calls == 10 + 10


def test_one_seed_is_drawn_for_the_whole_grid():
    made = planned(*SCHEDULER_BY_CFG, base=BASE.replace(seed=-1))
    (seed,) = {cell.request.seed for cell in made.cells}
    assert seed == made.grid.base.seed >= 0
    assert {cell.request.variation_seed for cell in made.cells} == {-1}


def test_a_variation_seed_is_shared_wherever_there_is_variation():
    made = planned(axis("variation_strength", "0, 0.1, 0.2"))
    first, *others = sorted(made.cells, key=lambda cell: cell.index)
    assert first.request.variation_seed == -1  # as the engine completes it
    (seed,) = {cell.request.variation_seed for cell in others}
    assert seed >= 0


def test_pictures_of_a_cell_have_seeds_in_a_row():
    made = planned(axis("guidance_scale", "1, 2"), per_cell=3)
    assert {(cell.index[3], cell.request.seed) for cell in made.cells} == {(0, 7), (1, 8), (2, 9)}


def test_random_seeds_of_an_axis_stay_what_they_were_drawn():
    made = planned(axis("seed", "-1, -1, 3"))
    again = plan(made.grid, KNOWN, anything)
    assert len(made.x) == 3
    assert again == made


def test_a_planned_grid_does_not_grow_with_what_is_installed_later():
    made = planned(axis("model", "all"))
    more = Known((*KNOWN.models, model("newcomer")), KNOWN.schedulers)
    assert plan(made.grid, more, anything) == made


def test_equal_values_collapse_and_it_is_said():
    made = planned(axis("guidance_scale", "1, 1.0, 2, 1-2"), axis("scheduler", "euler, Euler"))
    assert [value.label for value in made.x] == ["1", "2"]
    assert made.notes == (
        "X (CFG scale): 3 values were given before and count once.",
        "Y (Scheduler): 1 value was given before and count once.",
    )


def test_impossible_cells_are_named_and_left_out():
    def check(request: GenerationRequest) -> None:
        if (request.scheduler, request.guidance_scale) == ("Heun", 5.0):
            raise InvalidField("sigma_schedule", "Heun cannot follow it", "Sigma schedule")

    made = planned(*SCHEDULER_BY_CFG, check=check, per_cell=2)
    assert [(one.index, one.reason) for one in made.impossible] == [
        ((1, 1, 0, 0), "Sigma schedule: Heun cannot follow it")
    ]
    assert len(made.cells) == 16
    with pytest.raises(InvalidField, match="Sigma schedule: Heun cannot follow it"):
        planned(axis("scheduler", "Heun"), base=BASE.replace(guidance_scale=5.0), check=check)


def test_only_the_finished_request_must_be_possible():
    """10 steps at strength 0.05 are less than one, 20 are one: in either order of the axes."""
    base = BASE.replace(image="ab" * 32, num_inference_steps=10, strength=0.1)
    for x, y in (("num_inference_steps", "strength"), ("strength", "num_inference_steps")):
        values = {"num_inference_steps": "10, 20", "strength": "0.05"}
        made = planned(axis(x, values[x]), axis(y, values[y]), base=base)
        assert [cell.request.num_inference_steps for cell in made.cells] == [20]
        assert [one.reason for one in made.impossible] == [
            "Denoising strength: 0.05 of 10 steps is less than one step"
        ]


def test_whole_prompts_come_before_what_is_replaced_in_them():
    search, whole = axis("prompt_replace", "fox, owl"), axis("prompt", "a fox\na cat\na fox and a cat")
    for axes in ((search, whole), (whole, search)):
        made = planned(*axes)
        assert {cell.request.prompt for cell in made.cells} == {
            "a fox", "a owl", "a fox and a cat", "a owl and a cat",
        }  # fmt: skip
        assert len(made.impossible) == 2
        assert "“fox” is not in the prompt" in made.impossible[0].reason


def test_two_searches_may_cross():
    made = planned(axis("prompt_replace", "fox, owl"), axis("prompt_replace", "red, blue"))
    assert len({cell.request.prompt for cell in made.cells}) == 4


@pytest.mark.parametrize(
    ("axes", "field", "message"),
    [
        ((), "x", "X axis: choose what varies"),
        ((axis("guidance_scale", " , "),), "x", "X (CFG scale): give at least one value"),
        ((axis("nonsense", "1"),), "x", "X axis: there is no axis named “nonsense”"),
        ((AxisSpec(), axis("seed", "1, x")), "y", "Y (Seed): “x” is neither a number"),
        ((axis("seed", "1"), axis("seed", "2")), "y", "Y (Seed): Seed varies along X already"),
        ((axis("size", "64x64"), axis("width", "64")), "y", "Y (Width): Size varies along X already"),
        ((axis("prompt_replace", "fox, owl"),) * 2, "y", "Prompt search/replace varies along X already"),
        ((axis("seed", "1-101"), axis("guidance_scale", "1-50 [100]")), "grid", "Grid: has 10,100 pictures"),
        ((axis("mask_blur", "1, 2"),), "x", "X (Mask blur): changes nothing without a mask"),
        ((axis("strength", "0.5, 1"),), "x", "changes nothing without an image"),
        ((axis("hires_steps", "5, 9"),), "x", "changes nothing while Hires scale is 1"),
        ((axis("variation_seed", "5, 9"),), "x", "changes nothing while Variation strength is 0"),
        ((axis("prompt_replace", "cat, dog"),), "x", "X (Prompt search/replace): “cat” is not in the prompt"),
    ],
)
def test_an_impossible_grid_is_refused_by_name(axes, field, message):
    with pytest.raises(InvalidField) as refused:
        planned(*axes)
    assert refused.value.field == field
    assert message in str(refused.value)


def test_an_axis_may_change_nothing_in_a_part_of_the_grid():
    assert len(planned(axis("hires_steps", "5, 9"), axis("hires_scale", "1, 2")).cells) == 4
    assert len(planned(axis("negative_prompt", "a, b"), axis("guidance_scale", "1, 7")).cells) == 4


def test_a_grid_survives_json():
    grid = Grid(BASE, axis("prompt", 'a, "b\nc"'), axis("seed", "-1"), axis("model", "all"), 3)
    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


@pytest.mark.parametrize(
    "change",
    [
        {"x": 5}, {"x": {"kind": 1, "text": ""}}, {"x": {"kind": "", "text": "", "and": ""}}, {"base": None},
        {"base": {"num_inference_steps": 0}}, {"base": {"path": "/"}}, {"per_cell": 0}, {"per_cell": True},
        {"per_cell": 10**9},
    ],
)  # fmt: skip
def test_foreign_json_is_refused(change):
    with pytest.raises(InvalidField):
        Grid.from_dict({**Grid(BASE, axis("seed", "1")).to_dict(), **change})
    with pytest.raises(InvalidField):
        Grid.from_dict(change)


# Infotext

typed = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20).map(str.strip)
specs = st.builds(AxisSpec, st.sampled_from(["seed", "prompt_replace", "mask_blur", "strength"]), typed)


@given(specs, specs, st.one_of(st.just(AxisSpec()), specs), st.integers(1, 9))
def test_a_sheets_infotext_restores_its_axes(x, y, z, per_cell):
    grid = Grid(BASE.replace(model="pocket-model"), x, y, z, per_cell)
    assert from_infotext(infotext.write(grid.base, "pocket-model", "ab" * 32, extra=pairs(grid))) == grid


def test_an_a1111_sheet_restores_its_axes():
    text = (
        "a fox\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 512x512, "
        "Denoising strength: 0.7, Hires upscale: 2, Hires upscaler: Latent, Script: X/Y/Z plot, "
        'X Type: Seed, X Values: "-1,-1", Fixed X Values: "81, 42", Y Type: Denoising, '
        'Y Values: "0.5-0.7 (+0.1)", '
        "Z Type: Face restore, Z Values: CodeFormer, Version: v1.10.1"
    )
    grid = from_infotext(text)
    assert grid is not None
    assert (grid.x, grid.y) == (axis("seed", "81, 42"), axis("hires_strength", "0.5-0.7 (+0.1)"))
    assert grid.z == axis("Face restore", "CodeFormer")  # refused by name when it is planned
    assert grid.base.sigma_schedule == "Karras"
    assert from_infotext(infotext.write(BASE, "pocket-model", "")) is None


# Properties

axes_of = {
    "model": st.lists(st.sampled_from([one.name for one in KNOWN.models]), min_size=1, unique=True),
    "scheduler": st.lists(st.sampled_from(["Euler", "Heun", "DPM++ 2M"]), min_size=1, unique=True),
    "size": st.lists(st.sampled_from(["64x64", "64x128", "128x64"]), min_size=1, unique=True),
    "guidance_scale": st.lists(st.sampled_from(["1", "2.5", "7", "10"]), min_size=1, unique=True),
    "prompt_replace": st.lists(st.sampled_from(["owl", "cat"]), unique=True).map(
        lambda found: ["fox", *found]
    ),
}


@st.composite
def plans(draw):
    """A plan of up to three axes, some of whose cells are impossible; and which."""
    names = draw(st.lists(st.sampled_from(sorted(axes_of)), min_size=1, max_size=3, unique=True))
    axes = [axis(name, ", ".join(f'"{value}"' for value in draw(axes_of[name]))) for name in names]
    grid = Grid(BASE, *axes, per_cell=draw(st.integers(1, 3)))
    whole = plan(grid, KNOWN, anything)
    refused = draw(st.sets(st.sampled_from([cell.request for cell in whole.cells]), max_size=6))

    def check(request: GenerationRequest) -> None:
        if request in refused:
            raise InvalidField("scheduler", "not this one")

    try:
        return plan(grid, KNOWN, check), whole, check
    except InvalidField:
        return whole, whole, anything


@given(plans())
@settings(max_examples=60, deadline=None)
def test_every_possible_cell_comes_exactly_once(made):
    found, whole, _ = made
    lost = {one.index[:3] for one in found.impossible}
    expected = {cell.index: cell.request for cell in whole.cells if cell.index[:3] not in lost}
    assert {cell.index: cell.request for cell in found.cells} == expected
    assert len(found.cells) == len(expected)
    sizes = len(found.x), len(found.y), len(found.z), found.grid.per_cell
    assert len(whole.cells) == sizes[0] * sizes[1] * sizes[2] * sizes[3]


@given(plans())
@settings(max_examples=60, deadline=None)
def test_each_model_is_loaded_once_and_its_corners_come_first(made):
    found, _, _ = made
    blocks: list[list] = []
    for cell in found.cells:
        if not blocks or blocks[-1][0].request.model != cell.request.model:
            blocks.append([])
        blocks[-1].append(cell)
    assert len(blocks) == len({cell.request.model for cell in found.cells}) == found.model_switches + 1
    for block in blocks:
        ends = [{min(line), max(line)} for line in zip(*(cell.index[:3] for cell in block), strict=True)]
        corners = [
            cell.index[3] == 0 and all(at in end for at, end in zip(cell.index, ends, strict=False))
            for cell in block
        ]
        assert corners == sorted(corners, reverse=True)


@given(plans())
@settings(max_examples=30, deadline=None)
def test_the_same_grid_is_planned_the_same(made):
    found, _, check = made
    assert plan(found.grid, KNOWN, check) == found


def test_a_dear_change_is_made_seldom():
    made = planned(axis("size", "64x64, 64x128, 128x64"), axis("guidance_scale", "1-9"))
    inside = [cell.request.height * 1000 + cell.request.width for cell in made.cells][4:]
    assert sum(a != b for a, b in itertools.pairwise(inside)) == 2


def test_every_cell_has_a_picture_before_any_has_two():
    made = planned(axis("scheduler", "all"), axis("guidance_scale", "1-4"), per_cell=2)
    assert [cell.index[3] for cell in made.cells] == [0] * 12 + [1] * 12
