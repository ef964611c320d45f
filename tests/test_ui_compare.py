"""The comparison tab without a browser: its controls, what a plan says, a run in messages, saved grids."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from tests.conftest import pixels, request_for
from tests.test_ui import EVIL, Shape, asked_by, values
from webui import images
from webui.errors import InvalidField, NotFound
from webui.grid.axes import AxisKind, Known, kinds
from webui.grid.plan import AxisSpec, Grid, plan
from webui.grid.values import split
from webui.jobs import Job, JobView
from webui.request import Delivery, GenerationRequest
from webui.ui import compare, layout, runs, show_plan
from webui.ui.actions import Actions
from webui.ui.choosing import Choosing
from webui.ui.comparing import OVERLAP, Comparing
from webui.ui.page import build
from webui.ui.presets import BUILT_IN, FIRST, Preset, Presets
from webui.ui.show_plan import Outlook


@pytest.fixture(scope="module")
def choosing(engine) -> Choosing:
    return Choosing.among(engine.models(), engine.schedulers())


@pytest.fixture(scope="module")
def known(choosing) -> Known:
    return choosing.known


@pytest.fixture(scope="module")
def do(page):
    return page.comparing


class Said:
    """What a browser says with an event."""

    def __init__(self, **data: object) -> None:
        self._data = data


def asked(choosing: Choosing, x: tuple[str, str], y: tuple[str, str] = ("", ""), **changes: object) -> dict:
    """The form and the axes, filled in."""
    axes = {"x": AxisSpec(*x), "y": AxisSpec(*y), "z": AxisSpec()}
    for name, spec in axes.items():
        shown = choosing.properties(spec)
        changes |= {f"{name}_{part}": shown[part]["value"] for part in ("kind", "text", "pick")}
    return {**values(), "per_cell": 1, "seeds": None, **changes}


def told(do, updates) -> list[dict]:
    """The messages for the grid in a stream of updates."""
    return [update[do.parts.grid]["value"] for update in updates if do.parts.grid in update]


def merged(messages: list[dict]) -> dict[tuple, dict]:
    """The cells as a browser has them in the end."""
    return {tuple(index): cell for message in messages for *index, cell in message["cells"]}


TWO_BY_TWO = (("scheduler", "Euler, Heun"), ("guidance_scale", "1, 4"))


# Controls


@pytest.mark.parametrize("name", sorted(kinds()))
def test_an_axis_shows_what_it_is_read_from(choosing, name):
    spec = choosing.started(name)
    shown = choosing.properties(spec)
    assert shown["pick"]["visible"] is not shown["text"]["visible"]
    assert choosing.spec({f"x_{part}": shown[part].get("value") for part in shown}, "x") == spec
    if spec.text:
        assert kinds()[name].parse(spec.text, request_for(), choosing.known)


def test_every_axis_is_on_the_list_once(choosing):
    names = [name for _, name in choosing.kinds_by_label()]
    assert sorted(names) == sorted(["", *kinds()])


def test_all_stands_for_the_whole_pick_list(choosing):
    shown = choosing.properties(AxisSpec("scheduler", "ALL"))
    assert shown["pick"]["value"] == [info.name for info in choosing.known.schedulers]


def test_what_is_not_on_a_pick_list_is_left_out_and_named(choosing):
    spec = AxisSpec("scheduler", "Euler, Nonsense, euler")
    assert choosing.properties(spec)["pick"]["value"] == ["Euler"]
    assert choosing.missing(spec) == ["Nonsense"]
    assert choosing.missing(AxisSpec("scheduler", '"open')) == []
    assert choosing.missing(AxisSpec("of a plugin", "1, 2")) == ["of a plugin"]
    assert choosing.missing(AxisSpec()) == []


def mood(text: str, base: GenerationRequest, known: Known) -> tuple[str, ...]:
    return tuple(split(text))


MOOD = AxisKind(
    "mood", "Mood", 2, lambda known: ("calm", "wild"), mood,
    lambda request, value: request.model_copy(update={"prompt": f"{request.prompt}, {value}"}), str,
)  # fmt: skip


def test_an_axis_of_a_plugin_is_on_the_lists_and_makes_cells(engine):
    with gr.Blocks():
        parts = layout.build(engine.models(), engine.schedulers(), axes=[MOOD])
    do = Actions(engine, parts).comparing
    for axis in do.parts.axes.values():
        assert axis.kind.choices[-1] == ("Mood", "mood")
    chosen = do.varying.choose("x")("mood")
    assert chosen[do.parts.axes["x"].pick]["value"] == ["calm", "wild"]
    wanted = asked(do.varying.choosing(), ("mood", "wild, calm"), ("guidance_scale", "1, 4"), prompt="a fox")
    first, *_, last = told(do, do.run(asked_by("moody"), **wanted))
    assert first["plan"]["axes"][0] == {"title": "Mood", "labels": ["wild", "calm"]}
    assert last["status"]["headline"] == "Done: 4 of 4 pictures"
    run = do.runs.latest("moody")
    assert run.requests[0, 1, 0, 0] == run.requests[0, 0, 0, 0].replace(guidance_scale=4.0)
    assert run.requests[1, 0, 0, 0].prompt == "a fox, calm"
    opened = Comparing(engine, parts, do.source, do.filling, runs.Runs()).attach(asked_by("moody"))
    assert next(opened)[do.parts.grid]["value"]["last"]["axes"] == "Mood × CFG scale"


def test_the_page_takes_axes_of_plugins(engine):
    demo, _ = build(engine, engine.settings, axes=[MOOD])
    lists = [block for block in demo.blocks.values() if getattr(block, "elem_id", "") == "axis-z-kind"]
    assert [part.choices[-1] for part in lists] == [("Mood", "mood")]
    with pytest.raises(ValueError, match="two axes named 'mood'"):
        build(engine, engine.settings, axes=[MOOD, MOOD])


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_grids_that_come_with_the_program_can_be_run(known, engine, name):
    preset = BUILT_IN[name]
    made = plan(Grid(request_for(), **vars(preset)), known, lambda request: engine.check(request, "x"))
    assert made.cells


def test_swapping_axes_swaps_everything_of_them(do, choosing):
    update = do.varying.swap("x", "y")(**asked(choosing, *TWO_BY_TWO))
    x, y = do.parts.axes["x"], do.parts.axes["y"]
    assert (update[x.kind]["value"], update[x.text]["value"]) == ("guidance_scale", "1, 4")
    assert (update[y.kind]["value"], update[y.pick]["value"]) == ("scheduler", ["Euler", "Heun"])


# Saved grids


@pytest.fixture
def presets(tmp_path) -> Presets:
    return Presets(tmp_path)


MINE = Preset(AxisSpec("seed", "1-4"), per_cell=2)


def test_a_saved_grid_is_found_again_after_a_restart_by_its_owner_alone(presets, tmp_path):
    assert presets.save("  My   seeds ", MINE, "ada") == "My seeds"
    again = Presets(tmp_path)
    assert again.get("My seeds", "ada") == MINE
    assert again.names("ada") == [*BUILT_IN, "My seeds"]
    assert again.names("bob") == list(BUILT_IN)
    with pytest.raises(InvalidField):
        again.get("My seeds", "bob")
    again.delete("My seeds", "ada")
    assert presets.names("ada") == list(BUILT_IN)


@pytest.mark.parametrize("name", ["", "   ", None, 7, "a" * 61, "a\x00b", FIRST])
def test_a_name_that_is_none_is_refused(presets, name):
    with pytest.raises(InvalidField, match=r"^Saved grids: "):
        presets.save(name, MINE, "ada")


def test_a_name_never_becomes_a_path(presets, tmp_path):
    presets.save("../../evil", MINE, "../ada/..")
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.parent == tmp_path / "grids"
    assert presets.get("../../evil", "../ada/..") == MINE


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"presets": 3}', '{"presets": {"a": {"x": 1}}, "last": []}']
)
def test_a_damaged_file_loses_no_more_than_what_is_damaged(presets, tmp_path, text):
    presets.save("Mine", MINE, "ada")
    (file,) = (tmp_path / "grids").iterdir()
    file.write_text(text)
    assert presets.names("ada") == list(BUILT_IN)
    assert presets.last("ada") is None
    presets.save("Mine", MINE, "ada")
    assert presets.get("Mine", "ada") == MINE


def test_the_last_grid_is_kept_whole_beside_the_presets(presets, tmp_path):
    grid = Grid(request_for(prompt="kept"), AxisSpec("seed", "1-4"))
    presets.save("Mine", MINE, "ada")
    presets.remember(grid, "ada")
    assert Presets(tmp_path).last("ada") == grid
    assert presets.get("Mine", "ada") == MINE


# What a grid comes to


def planned(known, x, y=("", ""), check=lambda request: None, **changes):
    return plan(Grid(request_for(**changes), AxisSpec(*x), AxisSpec(*y)), known, check)


def test_the_figures_of_a_plan_are_said_before_it_runs(known):
    html = show_plan.plan(planned(known, *TWO_BY_TWO), Outlook(1, 15, 12.2, 77))
    text = Shape(html).text
    for part in ("4 (2 × 2)", "Known already1", "Net calls15", "about 13 s", "Seed 77"):
        assert part in text


def test_impossible_cells_are_named_with_the_reason_and_escaped(known):
    def check(request):
        if request.scheduler == "Heun":
            raise InvalidField("scheduler", EVIL, "Scheduler")

    html = show_plan.plan(planned(known, *TWO_BY_TWO, check=check), Outlook())
    text = Shape(html).text
    assert "2 cells are left out" in text
    assert f"Heun: Scheduler: {EVIL}" in text
    assert "<img" not in html
    assert EVIL in Shape(show_plan.plan(error=EVIL)).text
    assert "<img" not in show_plan.plan(error=EVIL)


def test_values_given_twice_and_cells_that_are_one_picture_are_told(known):
    made = planned(known, ("seed", "1, 1, 2"), ("strength", "0.5"))
    assert "given before" in show_plan.plan(made, Outlook())


@pytest.mark.parametrize(
    ("duration", "text"), [(0.3, "under 1 s"), (12.3, "about 13 s"), (7200, "about 2.0 h")]
)
def test_a_plan_is_no_stopwatch(duration, text):
    assert show_plan.about(duration) == text


@pytest.mark.parametrize(
    ("view", "text"),
    [
        (JobView("1", place=3), "Making the grid: 2 of 9 pictures"),  # between two of them
        (JobView("1", "running"), "Making the grid: 2 of 9 pictures"),
        (JobView("1", "cancelled"), "Stopped: 2 of 9 pictures kept. Run the grid again to go on."),
        (JobView("1", "done"), "Done: 2 of 9 pictures, 1 failed"),
    ],
)
def test_the_headline_of_a_grid_says_what_happens(view, text):
    assert runs.headline(view, 2, 9, 1) == text


def test_a_grid_that_has_not_begun_says_where_it_stands():
    assert runs.headline(JobView("1", place=3), 0, 9, 0) == "Waiting: place 3 in the queue"
    assert runs.headline(JobView("1", place=1), 0, 9, 0) == "Waiting: next in the queue"


def test_looking_says_what_is_known_and_names_what_is_wrong(do, choosing):
    update = do.look(asked_by("looker"), **asked(choosing, *TWO_BY_TWO))
    assert "Cells4" in Shape(update[do.parts.plan]).text.replace(" (2 × 2)", "")
    update = do.look(asked_by("looker"), **asked(choosing, ("guidance_scale", "abc")))
    assert "X (CFG scale): “abc”" in Shape(update[do.parts.plan]).text


BAD_AXES = [
    ("guidance_scale", "", "X (CFG scale): give at least one value"),
    ("guidance_scale", " , ,", "X (CFG scale): give at least one value"),
    ("guidance_scale", "1-9 (0)", "X (CFG scale): 1-9 (0) has a step of 0"),
    ("guidance_scale", "nan, 3", "X (CFG scale): “nan” is neither"),
    ("guidance_scale", "1, -inf", "X (CFG scale): “-inf” is neither"),
    ("guidance_scale", "1e308", "X (CFG scale): “1e308” is neither"),
    ("guidance_scale", "-4", "X (CFG scale): “-4” must be at least 0"),
    ("num_inference_steps", "1.5", "X (Steps): 1.5 is not a whole number"),
    ("seed", str(2**64), "X (Seed): “18446744073709551616” must be at most"),
    ("seed", "1-10001", "X (Seed): 1-10001 makes more than 1000 values"),
    ("prompt", '"never closed', 'X (Prompt (whole list)): “"never closed” has a quotation mark'),
    ("prompt", "a\x00b", "X (Prompt (whole list)): “a\x00b” contains a character that cannot be stored"),
    ("prompt", "x" * 100_000, "X (Prompt (whole list)): “xxxx"),
    ("prompt", "x" * 300_000, "X (Prompt (whole list)): must be at most 200000 characters"),
    ("prompt_replace", "\u202eelephant, owl", "X (Prompt search/replace): “\u202eelephant” is not in"),
    ("scheduler", "", "X (Scheduler): give at least one value"),
    ("size", "0x0", "X (Size): “0x0”"),
    ("strength", "0.5, 1", "X (Denoising strength): changes nothing without an image"),
]


@pytest.mark.parametrize(("kind", "text", "message"), BAD_AXES)
def test_a_wrong_axis_is_named_starts_nothing_and_keeps_what_was_typed(
    do, choosing, engine, kind, text, message
):
    wanted = asked(choosing, (kind, text), ("clip_skip", "1, 2"))
    update = do.look(asked_by("wrong"), **wanted)
    assert Shape(update[do.parts.plan]).text.startswith(message)
    with pytest.warns(UserWarning, match=re.escape(escape(message))):
        (update,) = do.run(asked_by("wrong"), **wanted)
    assert set(update) == {do.parts.plan}
    assert Shape(update[do.parts.plan]).text.startswith(message)
    assert engine.latest("wrong") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_kind": "guidance_scale", "y_text": "2, 3"}, "Y (CFG scale): CFG scale varies along X already"),
        ({"x_kind": "", "y_kind": ""}, "X axis: choose what varies"),
        ({"x_kind": "nonsense"}, "X axis: there is no axis named “nonsense”"),
        ({"y_kind": "seed", "y_text": "1-1000", "x_text": "1-11"}, "Grid: has 11,000 pictures; at most"),
        ({"x_kind": ["seed"]}, "X axis: must be text"),
        ({"x_text": 7}, "X axis: must be text"),
        ({"x_kind": "scheduler", "x_pick": "Euler"}, "X axis: must be text"),
        ({"x_kind": "scheduler", "x_pick": [None, 1]}, "X axis: must be text"),
        *(({"per_cell": value}, "Pictures per cell: must be a whole number")
          for value in (0, -1, 1.5, 2**64, float("nan"), float("inf"), "abc", "2", True, None, [1])),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_grid_is_said_and_nothing_is_saved(do, choosing, engine, changes, message):
    wanted = asked(choosing, ("guidance_scale", "1, 4"), ("clip_skip", "1, 2")) | changes
    update = do.look(asked_by("wrong"), **wanted)
    assert Shape(update[do.parts.plan]).text.startswith(message)
    with pytest.warns(UserWarning, match=re.escape(escape(message))):
        assert set(*do.run(asked_by("wrong"), **wanted)) == {do.parts.plan}
    assert engine.latest("wrong") is None
    if "must be" in message:
        with pytest.warns(UserWarning, match=message):
            do.varying.save_preset(asked_by("wrong"), preset="Wrong", **wanted)
        assert do.presets.names("wrong") == list(BUILT_IN)


# A run


def test_a_run_tells_of_each_cell_when_it_changes_and_never_sends_a_picture(do, choosing, engine):
    wanted = asked(choosing, ("scheduler", "Euler, Heun, DDIM"), ("guidance_scale", "1, 4, 9"), prompt="told")
    first, *rest = told(do, do.run(asked_by("teller"), **wanted))
    assert [axis["title"] for axis in first["plan"]["axes"]] == ["Scheduler", "CFG scale", ""]
    assert all("plan" not in message for message in rest)
    assert rest[-1]["status"]["headline"] == "Done: 9 of 9 pictures"
    cells = merged([first, *rest])
    assert len(cells) == 9
    for message in [first, *rest]:
        without = {**message, "status": {**message["status"], "preview": ""}}
        assert len(json.dumps(without)) < 1000 + 800 * len(message["cells"]) + 4000 * ("plan" in message)
    corners = [tuple(index[:2]) for message in [first, *rest] for *index, _ in message["cells"]]
    assert set(list(dict.fromkeys(corners))[:4]) == {(0, 0), (2, 0), (0, 2), (2, 2)}
    run = do.runs.latest("teller")
    single = engine.submit([run.requests[1, 2, 0, 0]], "someone").wait().saved[0]
    shown = Path(cells[1, 2, 0, 0]["url"].removeprefix("gradio_api/file="))
    assert (pixels(shown) == pixels(single.path)).all()
    assert not shown.is_relative_to(engine.settings.outputs_dir)


def test_what_a_message_holds_does_not_grow_with_the_grid(do, choosing):
    wanted = asked(choosing, ("seed", "1-24"), prompt="many", num_inference_steps=1)
    _, *rest = told(do, do.run(asked_by("many"), **wanted))
    assert rest[-1]["status"]["state"] == "done"
    assert len(merged(rest)) >= 20
    # Each cell changes with its picture and with each neighbour's, and stands in at most OVERLAP messages.
    assert sum(len(message["cells"]) for message in rest) <= 24 * 3 * OVERLAP


def test_while_the_last_picture_is_being_saved_no_cell_is_running(known):
    made = planned(known, *TWO_BY_TWO)
    run = runs.Run(made, "saver", "", Delivery())
    job = Job([cell.request for cell in made.cells], "saver", Delivery())
    run.add(job, [cell.index for cell in made.cells])
    for turn, running in ((3, list(made.cells[3].index)), (4, None)):
        job.update(state="running", turn=turn)
        assert run.whole()["status"]["running"] == running


def test_a_second_run_takes_everything_from_the_library_with_the_seed_that_was_drawn(do, choosing):
    wanted = asked(choosing, *TWO_BY_TWO, prompt="twice", seed=-1)
    first, *_ = do.run(asked_by("twice"), **wanted)
    seeds = first[do.parts.seeds]
    last = told(do, do.run(asked_by("twice"), **{**wanted, "seeds": seeds}))[-1]
    assert last["status"]["details"] == "4 known already"
    plan = do.look(asked_by("twice"), **{**wanted, "seeds": seeds})[do.parts.plan]
    assert f"Seed {seeds['seed']}" in plan
    assert "Known already4" in Shape(plan).text


def test_numbers_come_with_the_cells(do, choosing):
    wanted = asked(choosing, ("num_inference_steps", "2, 4"), ("guidance_scale", "1, 4"), prompt="numbers")
    cells = merged(told(do, do.run(asked_by("counter"), **wanted)))
    assert cells[1, 0, 0, 0]["numbers"]["net_calls"] == 4
    assert cells[1, 0, 0, 0]["numbers"]["to_most_expensive"] == 0
    assert cells[0, 0, 0, 0]["numbers"]["to_most_expensive"] > 0
    assert cells[0, 0, 0, 0]["numbers"]["to_neighbours"] > 0


@contextmanager
def busy(engine) -> Iterator[None]:
    """The device computes something for somebody else."""
    job = engine.submit([request_for(num_inference_steps=500)], "busy")
    for view in job.watch():
        if view.net_calls:
            break
    yield
    engine.cancel(job.id, "busy")
    job.wait()


def test_a_cell_that_fails_says_why_and_is_retried_by_itself(do, choosing, engine):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    digest = engine.sources.keep(noise, "failing")
    from webui.ui.canvas import EMPTY

    drawn = {**EMPTY, "source": digest, "width": 64, "height": 64}
    wanted = asked(choosing, *TWO_BY_TWO, task="img2img", canvas=drawn, prompt="failing")
    with busy(engine):
        stream = do.run(asked_by("failing"), **wanted)
        updates = [next(stream), next(stream)]
        hidden = engine.sources._path(digest, "failing")
        kept = hidden.read_bytes()
        hidden.unlink()
    *_, last = told(do, [*updates, *stream])
    cells = merged([*told(do, updates), last])
    assert "is no longer here" in cells[0, 0, 0, 0]["error"]
    hidden.write_bytes(kept)
    said = Said(run=last["run"], cells=[[0, 0, 0, 0]], until=last["until"])
    again = told(do, do.again(asked_by("failing"), said))
    cell = merged(again)[0, 0, 0, 0]
    assert "error" not in cell
    assert "url" in cell
    assert again[-1]["status"]["headline"] == "Done: 1 of 4 pictures, 3 failed"


def test_recomputing_asks_the_net_again_for_the_same_pixels(do, choosing):
    messages = told(do, do.run(asked_by("redo"), **asked(choosing, *TWO_BY_TWO, prompt="redo")))
    run = do.runs.latest("redo")
    before = dict(run.pictures)
    told(do, do.again(asked_by("redo"), Said(run=run.id, cells=None, until=messages[-1]["until"])))
    assert [job.view.reused for job in run.jobs] == [0, 0]
    for index, picture in run.pictures.items():
        assert picture.path != before[index].path
        assert (pixels(picture.path) == pixels(before[index].path)).all()


def test_stopping_keeps_what_is_there_and_a_fresh_server_goes_on_with_the_last_grid(
    do, page, choosing, engine
):
    wanted = asked(choosing, ("seed", "1-4"), prompt="stopped", num_inference_steps=25)
    messages = []
    for update in do.run(asked_by("stopper"), **wanted):
        messages += told(do, [update])
        if messages and len(merged(messages)) >= 2:
            do.stop(asked_by("stopper"))
    kept = len(merged(messages))
    assert 2 <= kept < 4
    assert messages[-1]["status"]["headline"].startswith(f"Stopped: {kept} of 4 pictures kept")

    fresh = Comparing(engine, page.comparing.layout, page.source, page.filling, runs.Runs())
    (opened,) = fresh.attach(asked_by("stopper"))
    assert opened[do.parts.grid]["value"] == {"last": {"axes": "Seed", "prompt": "stopped"}}
    first, *rest = fresh.resume(asked_by("stopper"))
    assert first[do.layout.fields["prompt"]]["value"] == "stopped"
    assert first[do.parts.axes["x"].text]["value"] == "1-4"
    last = told(do, rest)[-1]
    assert last["status"]["headline"] == "Done: 4 of 4 pictures"
    assert f"{kept} known already" in last["status"]["details"]


def test_a_page_that_opens_finds_the_grid_and_the_gallery_does_not_show_it(do, page, choosing, engine):
    updates = do.run(
        asked_by("reloader"), **asked(choosing, *TWO_BY_TWO, prompt="reloaded", num_inference_steps=15)
    )
    next(updates), next(updates)
    (gallery,) = page.making.attach(asked_by("reloader"))
    assert list(gallery) == [page.making.layout.fields["model"]]
    first, *rest = do.attach(asked_by("reloader"))
    assert first[do.layout.fields["prompt"]]["value"] == "reloaded"
    assert first[do.layout.tabs].selected == compare.TAB
    found = told(do, rest)
    assert found[0]["plan"]["prompt"] == "reloaded"
    assert found[-1]["status"]["headline"] == "Done: 4 of 4 pictures"
    page.making.cancel(asked_by("reloader"))
    assert do.runs.latest("reloader").jobs[0].view.state == "done"


def test_nobody_reaches_into_anothers_grid(do, choosing):
    told(do, do.run(asked_by("mine"), **asked(choosing, *TWO_BY_TWO, prompt="mine")))
    run = do.runs.latest("mine")
    with pytest.raises(NotFound):
        do.runs.get(run.id, "theirs")
    with pytest.warns(UserWarning, match="no longer in memory"):
        assert list(do.again(asked_by("theirs"), Said(run=run.id, cells=None))) == []
    with pytest.warns(UserWarning, match="no longer in memory"):
        do.files(asked_by("theirs"), Said(run=run.id, what="zip"))


@pytest.mark.parametrize("data", [{}, {"cells": "x"}, {"cells": [[0], "y", [0, 0, 0, True], None]}])
def test_what_a_browser_says_is_not_trusted(do, known, data):
    run = do.runs.latest("mine")
    assert run.chosen(data.get("cells", [])) == []
    with pytest.raises(NotFound):
        run.picture(data.get("cells"))


def test_the_text_inside_a_cells_picture_is_told_to_its_owner(do):
    run = do.runs.latest("mine")
    update = do.infotext(asked_by("mine"), Said(run=run.id, cell=[1, 1, 0, 0]))
    message = update[do.parts.grid]["value"]
    assert message == {"run": run.id, "infotext": [[1, 1, 0, 0], run.pictures[1, 1, 0, 0].infotext]}
    assert images.read_infotext(run.pictures[1, 1, 0, 0].path) == message["infotext"][1]
    for owner, cell in (("theirs", [1, 1, 0, 0]), ("mine", [9, 9, 9, 9]), ("mine", "x")):
        with pytest.warns(UserWarning, match="no longer in memory|no such picture"):
            do.infotext(asked_by(owner), Said(run=run.id, cell=cell))


def test_a_cell_is_sent_to_a_tab_with_its_settings(do, known):
    run = do.runs.latest("mine")
    with pytest.raises(NotFound):
        run.picture([9, 9, 9, 9])
    update = do.use(asked_by("mine"), Said(run=run.id, cell=[1, 1, 0, 0], target="settings"))
    fields = do.layout.fields
    assert update[fields["scheduler"]]["value"] == "Heun"
    assert update[fields["guidance_scale"]]["value"] == 4.0
    sent = {"task": "txt2img", "detect_size": True, "model": "", "inpaint_area": "Whole picture"}
    sides = dict.fromkeys(("extend_left", "extend_top", "extend_right", "extend_bottom"), 0)
    said = Said(run=run.id, cell=[1, 1, 0, 0], target="img2img")
    update = do.use(asked_by("mine"), said, **sent, **sides, width=64, height=64)
    assert update[fields["canvas"]]["value"]["width"] == 64


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("sheet", "grid.png"),
        ("page", "grid.png"),
        ("zip", "grid.zip"),
        ("csv", "grid.csv"),
        ("html", "grid.html"),
    ],
)
def test_every_file_of_a_grid_can_be_fetched(do, what, name):
    run = do.runs.latest("mine")
    update = do.files(asked_by("mine"), Said(run=run.id, what=what, page=0, stars=[[0, 0, 0, 0], "x"]))
    file = update[do.parts.grid]["value"]["file"]
    assert file["name"] == name
    assert Path(file["url"].removeprefix("gradio_api/file=")).stat().st_size > 300


def test_a_sheet_dropped_on_the_prompt_restores_the_axes(do):
    run = do.runs.latest("mine")
    file = do.files(asked_by("mine"), Said(run=run.id, what="sheet"))[do.parts.grid]["value"]["file"]
    update = do.fill_from_file(asked_by("mine"), file["url"].removeprefix("gradio_api/file="))
    axes = do.parts.axes
    assert update[axes["x"].pick]["value"] == ["Euler", "Heun"]
    assert update[axes["y"].text]["value"] == "1, 4"
    assert update[do.layout.fields["prompt"]]["value"] == "mine"
    assert update[do.layout.tabs].selected == compare.TAB


def test_old_grids_are_forgotten_but_none_that_still_runs(do, known, engine):
    made = planned(known, *TWO_BY_TWO)
    kept = runs.Runs()
    with busy(engine):
        going = runs.Run(made, "ada", "", do.runs.latest("mine").delivery)
        job = engine.submit([request_for()], "ada")
        going.add(job, [(0, 0, 0, 0)])
        kept.keep(going)
        ended = [runs.Run(made, "ada", "", going.delivery) for _ in range(5)]
        for run in ended:
            kept.keep(run)
        assert kept.of_job(job) is going
    assert kept.get(ended[-1].id, "ada") is ended[-1]
    with pytest.raises(NotFound):
        kept.get(ended[0].id, "ada")
