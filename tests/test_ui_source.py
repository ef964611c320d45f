"""Sources and masks without a browser: sizes, digests and owners, loopback, batches, what a tab sends."""

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.conftest import pixels, request_for
from tests.test_ui import asked_by, values
from webui import infotext
from webui.errors import InvalidField
from webui.jobs import Failure, JobView
from webui.request import TASKS, GenerationRequest
from webui.sources import SourceStore
from webui.ui import batch as batches
from webui.ui import desk as desks
from webui.ui import form, show, sizes
from webui.ui.desk import Desk, Drawn, NothingPainted

DIGEST = "ab" * 32
LINE = {"kind": "mask", "size": 20.0, "points": [[20.0, 20.0], [60.0, 20.0]]}
PAINT = {**LINE, "kind": "paint", "color": "#ff0000"}


def scene(size: tuple[int, int] = (96, 64)) -> Image.Image:
    image = Image.new("RGB", size, (120, 170, 220))
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill=(220, 60, 40))
    return image


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(SourceStore(tmp_path), "me", str(tmp_path / "cache"))


# Sizes


@pytest.mark.parametrize(
    ("source", "native", "size"),
    [
        ((512, 512), (512, 512), (512, 512)),
        ((1024, 1024), (512, 512), (1024, 1024)),  # as much as it can do
        ((4000, 3000), (512, 512), (1184, 888)),
        ((1500, 1000), (128, 128), (312, 208)),
        ((100, 75), (512, 512), (104, 72)),  # not made larger than it is
        ((30, 40), (512, 512), (64, 88)),  # but for the least that can be computed
        ((9000, 100), (512, 512), (2048, 64)),
    ],
)
def test_a_size_is_found_that_suits_picture_and_model(source, native, size):
    found = sizes.scaled(source, sizes.factor(source, sizes.Native(*native)))
    assert found == size
    assert all(side % 8 == 0 and 64 <= side <= 2048 for side in found)


@pytest.mark.parametrize("source", [(700, 1400), (1920, 1080), (333, 777), (64, 64)])
def test_a_found_size_keeps_the_proportions_to_a_step_of_eight(source):
    width, height = sizes.scaled(source, sizes.factor(source, sizes.Native(512, 512)))
    by = math.sqrt(width * height / (source[0] * source[1]))
    assert abs(width - source[0] * by) <= 8
    assert abs(height - source[1] * by) <= 8


# What each tab sends


@pytest.mark.parametrize("task", TASKS)
def test_each_tab_sends_what_it_uses_and_nothing_else(task):
    changed = {
        "image": DIGEST,
        "mask_image": DIGEST,
        "extend_left": 8,
        "strength": 0.5,
        "resize_mode": "Fill",
        "color_correction": True,
        "mask_blur": 1.0,
        "soft_inpainting": True,
        "hires_scale": 2.0,
    }
    (request,) = form.requests({**form.at_start([]), **changed, "task": task})
    sent = {name for name in changed if getattr(request, name) == changed[name]}
    of_source = {"image", "strength", "resize_mode", "color_correction"}
    assert request.task == task
    assert sent == {
        "txt2img": {"hires_scale"},
        "img2img": of_source,
        "inpaint": {*changed} - {"hires_scale"},
    }.get(task)


def test_padding_is_sent_only_where_it_is_used():
    wanted = {"task": "inpaint", "image": DIGEST, "mask_image": DIGEST, "masked_padding": 8}
    (whole,) = form.requests({**wanted, "inpaint_area": "Whole picture"})
    (part,) = form.requests({**wanted, "inpaint_area": "Only masked"})
    assert (whole.masked_padding, part.masked_padding) == (32, 8)


@pytest.mark.parametrize("task", ["paint", 1, ["img2img"], {}])
def test_there_are_three_tasks(task):
    with pytest.raises(InvalidField, match=r"^Task: must be one of txt2img, img2img, inpaint"):
        form.requests({"task": task})


def test_a_text_without_a_source_leaves_the_tab_and_its_source_alone():
    text = infotext.write(request_for(prompt="x", seed=7), "pocket", DIGEST)
    assert not form.of_reading(infotext.read(text)).keys() & {"task", "image", "strength", "mask_blur"}


def test_a_text_with_a_source_names_it_and_opens_its_tab():
    request = request_for(seed=7, image=DIGEST, mask_image="cd" * 32, strength=0.5)
    filled = form.of_reading(infotext.read(infotext.write(request, "pocket", DIGEST)))
    assert {name: filled[name] for name in ("task", "image", "mask_image", "strength")} == {
        "task": "inpaint",
        "image": DIGEST,
        "mask_image": "cd" * 32,
        "strength": 0.5,
    }


# Loopback

ROUNDS = {"task": "img2img", "image": DIGEST, "strength": 0.8, "seed": 5, "loopback_strength": 0.2}


@pytest.mark.parametrize(
    ("curve", "middle"), [("Linear", 0.5), ("Aggressive", 0.3757), ("Lazy", 0.6243)]
)  # 0.8 - 0.6 p, 0.8 - 0.6 sin(pi/4), 0.8 - 0.6 (1 - cos(pi/4))
def test_a_loopback_goes_from_the_first_strength_to_the_last(curve, middle):
    made = form.requests({**ROUNDS, "loopback_rounds": 3, "loopback_curve": curve})
    assert [request.strength for request in made] == [0.8, middle, 0.2]
    assert [request.seed for request in made] == [5, 6, 7]


@pytest.mark.parametrize(
    ("field", "value", "label"),
    [
        ("num_images_per_prompt", 2, "Batch size"),
        ("batch_count", 2, "Batch count"),
        ("loopback_rounds", 33, "Rounds"),
        ("loopback_rounds", 1.5, "Rounds"),
        ("loopback_strength", 0, "Final strength"),
        ("loopback_strength", float("nan"), "Final strength"),
        ("loopback_strength", None, "Final strength"),
        ("loopback_curve", ["Linear"], "Curve"),
    ],
)
def test_what_a_loopback_cannot_do_is_said_plainly(field, value, label):
    wanted = {**ROUNDS, "loopback_rounds": 3, "loopback_curve": "Linear", field: value}
    with pytest.raises(InvalidField, match=f"^{label}: must be "):
        form.requests(wanted)


def test_rounds_left_over_in_another_tab_change_nothing():
    assert len(form.requests({"task": "txt2img", "loopback_rounds": 5})) == 1


# What the canvas holds


@pytest.mark.parametrize("value", ["text", 3, ["source"], {"source": 3}, {"mask": ["x"]}])
def test_what_is_no_canvas_is_refused(value):
    with pytest.raises(InvalidField, match=r"^Picture: cannot be read"):
        desks.read(value)


def test_what_was_painted_is_part_of_the_picture_and_of_the_mask(desk):
    source = desk.keep(scene())
    canvas = {"source": source, "strokes": [LINE, {**PAINT, "points": [[20.0, 50.0]]}]}
    found = desk.pictures({"task": "inpaint", "canvas": canvas})
    image, mask = pixels(desk.store.open(found["image"], "me")), desk.store.open(found["mask_image"], "me")
    assert tuple(image[50, 20]) == (255, 0, 0)
    assert (image[20] == pixels(scene())[20]).all()
    assert [mask.getpixel(place) for place in ((20, 50), (40, 20), (80, 40))] == [255, 255, 0]
    assert desk.pictures({"task": "img2img", "canvas": canvas}) == {"image": found["image"]}


def test_a_source_that_nothing_was_painted_on_stays_the_same_file(desk):
    source = desk.keep(scene())
    found = desk.pictures({"task": "img2img", "canvas": {"source": source, "strokes": [LINE]}})
    assert found == {"image": source}


@pytest.mark.parametrize(
    "canvas",
    [
        {"strokes": []},
        {"strokes": [LINE, {**LINE, "kind": "erase", "size": 60.0}]},
    ],
)
def test_an_empty_mask_is_asked_about(desk, canvas):
    wanted = {"task": "inpaint", "canvas": {"source": desk.keep(scene()), **canvas}}
    with pytest.raises(NothingPainted):
        desk.pictures(wanted)
    assert "mask_image" not in desk.pictures({**wanted, "extend_left": 8})
    assert "mask_image" in desk.pictures({**wanted, "mask_inverted": True})


def test_a_new_mask_leaves_nothing_of_the_old_one_but_what_was_painted_stays(desk):
    drawn = Drawn(
        desk.keep(scene()), desk.keep(Image.new("L", (96, 64), 255)), desks.strokes.read([LINE, PAINT])
    )
    new = Image.new("L", (192, 128))
    new.paste(255, (100, 100, 192, 128))
    shown = desks.read(desk.with_mask(drawn, new))
    assert shown.strokes == ()
    mask = np.asarray(desk.mask(shown, (96, 64)))
    assert mask[:48].max() == 0
    assert mask[52:, 52:].min() == 255
    assert tuple(pixels(desk.picture(shown))[20, 40]) == (255, 0, 0)


def test_a_mask_of_another_shape_is_refused(desk):
    with pytest.raises(InvalidField, match=r"^Mask: has 64x64 pixels, its picture 96x64"):
        desk.with_mask(Drawn(desk.keep(scene())), Image.new("L", (64, 64), 255))


def test_the_canvas_shows_a_large_source_smaller_and_tells_its_true_size(desk):
    shown = desk.shown(Drawn(desk.keep(scene((3000, 1000)))))
    path = shown["url"].removeprefix("gradio_api/file=")
    assert (shown["width"], shown["height"]) == (3000, 1000)
    assert Image.open(path).size == (2048, 683)


def test_the_mask_is_shown_where_it_is_used_and_framed(desk):
    mask = Image.new("L", (96, 64))
    mask.paste(255, (40, 20, 60, 40))
    request = GenerationRequest(image=DIGEST, mask_image=DIGEST, mask_blur=0, width=96, height=64)
    view = pixels(desks.view_of_mask(request, scene(), mask))
    changed = (view != pixels(scene())).any(axis=2)
    assert changed[20:40, 40:60].all()
    assert changed.sum() == 400
    part = request.replace(inpaint_area="Only masked", masked_padding=0, width=64, height=64)
    framed = (pixels(desks.view_of_mask(part, scene(), mask)) != pixels(scene())).any(axis=2)
    assert framed[20:40, 40:60].all()


# Many files


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "inputs"
    (folder / "holiday").mkdir(parents=True)
    scene().save(folder / "holiday" / "a.png")
    (folder / "holiday" / "b.PNG").write_bytes(b"no picture")
    (folder / "holiday" / "notes.txt").write_text("text")
    (folder / "empty").mkdir()
    scene().save(tmp_path / "outside.png")
    (folder / "holiday" / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "elsewhere").mkdir()
    scene().save(tmp_path / "elsewhere" / "c.png")
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    return folder


def test_only_folders_with_pictures_are_offered_and_no_link_leads_out(inputs):
    assert batches.folders(inputs) == ["inputs/holiday"]
    assert [name for name, _ in batches.files(inputs, "inputs/holiday")] == ["a.png", "b.PNG"]


@pytest.mark.parametrize(
    "folder", ["inputs/out", "..", "/etc", "inputs/../elsewhere", "inputs/empty", "", None]
)
def test_a_folder_that_is_not_in_the_list_is_refused(inputs, folder):
    with pytest.raises(InvalidField, match=r"^Image: choose a folder from the list"):
        batches.files(inputs, folder)


def test_no_inputs_folder_is_no_error(tmp_path):
    assert batches.folders(tmp_path / "inputs") == []


def test_bad_files_are_named_before_anything_starts(inputs, desk):
    *_, batch = batches.read(batches.files(inputs, "inputs/holiday"), desk)
    assert [(piece.name, piece.size) for piece in batch.pieces] == [("a.png", (96, 64))]
    assert [name for name, _ in batch.refused] == ["b.PNG"]
    assert "not a picture" in batch.refused[0][1]


def test_each_picture_of_a_batch_has_its_own_size_and_the_same_seed():
    pieces = (batches.Piece("a", "aa" * 32, (96, 64)), batches.Piece("b", "bb" * 32, (3000, 1500)))
    batch = batches.Batch(pieces)
    first, second = batches.requests(batch, {"width": 512, "height": 512}, sizes.Native(128, 128, 32))
    assert (first.image, first.width, first.height) == ("aa" * 32, 96, 64)
    assert (second.image, second.width, second.height) == ("bb" * 32, 352, 192)
    assert first.seed == second.seed >= 0
    same, _ = batches.requests(batch, {"width": 256, "height": 128}, None)
    assert (same.width, same.height) == (256, 128)


def test_a_failure_while_running_is_told_with_the_files_name():
    html = show.batch(refused=[("<b>.png", "Width: is too large")], note="1 of 2 changed")
    assert "&lt;b&gt;.png" in html
    assert "Width: is too large" in html
    view = JobView("1", "done", failures=(Failure(1, InvalidField("image", "no")),))
    assert show.headline_of(view) == "Done: 0 pictures, 1 failed"


# The page over a real engine


def pressed(page, owner: str, **changes: object) -> dict:
    last: dict = {}
    for update in page.making.generate(asked_by(owner), **values(**changes)):
        last |= update
    return last


def test_the_page_makes_the_picture_that_the_engine_makes_of_the_same_request(page, engine):
    source, mask = engine.sources.keep(scene(), "maker"), Image.new("L", (96, 64))
    mask.paste(255, (30, 10, 60, 40))
    digest = engine.sources.keep(mask, "maker")
    canvas = {"source": source, "mask": digest, "strokes": []}
    size = {"width": 96, "height": 64, "mask_blur": 2.0}
    last = pressed(page, "maker", task="inpaint", canvas=canvas, **size)
    (saved,) = last[page.making.layout.saved]
    request = request_for(image=source, mask_image=digest, **size)
    straight = engine.submit([request], "maker").wait()
    assert (pixels(saved.path) == pixels(straight.saved[0].path)).all()
    kept = np.asarray(mask.point(lambda level: 255)) > 0
    kept[0:50, 20:70] = False
    assert (pixels(saved.path)[kept] == pixels(scene())[kept]).all()


@pytest.mark.parametrize("stolen", ["source", "mask"])
def test_nobody_can_use_another_persons_source_or_mask(page, engine, stolen):
    own = engine.sources.keep(scene((104, 64)), "thief")
    hers = engine.sources.keep(scene((104, 64)).rotate(180), "victim")
    mask = engine.sources.keep(Image.new("L", (104, 64), 255), "victim")
    canvas = {"source": hers, "strokes": [LINE]} if stolen == "source" else {"source": own, "mask": mask}
    with pytest.warns(UserWarning, match="is no longer here; choose it again"):
        last = pressed(page, "thief", task="inpaint", canvas=canvas)
    assert "no longer here" in last[page.making.layout.stage]
    assert engine.latest("thief") is None
    shown = page.source.view_mask(asked_by("thief"), **values(canvas=canvas))
    assert "no longer here" in shown
    assert "<img" not in shown
    survived = page.source.survive(asked_by("thief"), **values(canvas={"source": hers}))
    assert "no longer here" in survived


def test_nothing_painted_is_a_question_and_the_answer_changes_the_whole_picture(page, engine):
    canvas = {"source": engine.sources.keep(scene(), "asker")}
    wanted = {"task": "inpaint", "canvas": canvas, "width": 96, "height": 64}
    assert pressed(page, "asker", **wanted) == {
        page.making.layout.question: {"visible": True, "__type__": "update"}
    }
    assert engine.latest("asker") is None
    *_, last = page.making.change_all(asked_by("asker"), **values(**wanted))
    assert "Done: 1 picture" in last[page.making.layout.stage]
    assert engine.latest("asker").requests[0].task == "img2img"


def test_a_loopback_runs_as_one_job_whose_pictures_follow_from_one_another(page, engine):
    canvas = {"source": engine.sources.keep(scene(), "looper")}
    size = {"width": 96, "height": 64}
    pressed(page, "looper", task="img2img", canvas=canvas, loopback_rounds=3, **size)
    job = engine.latest("looper")
    assert (job.chained, len(job.view.saved)) == (True, 3)
    before = engine.sources.open(job.requests[1].image, "looper")
    assert (pixels(before) == pixels(job.view.saved[0].path)).all()


def test_a_batch_goes_past_a_picture_that_is_gone_and_names_it(page, engine):
    owner = "batcher"
    pieces = [
        batches.Piece(f"{k}.png", engine.sources.keep(scene((96 + 8 * k, 64)), owner), (96 + 8 * k, 64))
        for k in range(3)
    ]
    stream = page.making.change_files(
        asked_by(owner), batch=batches.Batch(tuple(pieces)), detect_size=True, **values(num_inference_steps=8)
    )
    next(stream)
    lost = pieces[2].digest
    for path in engine.settings.data_dir.glob(f"sources/*/{lost}.png"):
        path.unlink()
    *_, last = stream
    report = last[page.making.layout.source.batch_report]
    assert "2 of 3 changed" in report
    assert "<td>2.png</td><td>Image: is no longer here" in report
    assert "Done: 2 pictures, 1 failed" in last[page.making.layout.stage]


def test_a_file_dropped_on_the_prompt_brings_source_and_mask_back(page, engine):
    owner, size = "dropper", {"width": 96, "height": 64}
    canvas = {"source": engine.sources.keep(scene(), owner), "strokes": [LINE]}
    last = pressed(page, owner, task="inpaint", canvas=canvas, **size)
    (saved,) = last[page.making.layout.saved]
    update = page.filling.fill_from_file(asked_by(owner), str(saved.path))
    shown = update[page.making.layout.fields["canvas"]]["value"]
    assert (shown["source"], shown["mask"]) == (canvas["source"], saved.request.mask_image)
    with pytest.warns(UserWarning, match=r"^Image: is no longer here; choose it again"):
        other = page.filling.fill_from_file(asked_by("stranger"), str(saved.path))
    assert page.making.layout.fields["canvas"] not in other


def test_a_source_that_is_gone_is_said_and_the_rest_is_filled_in(page):
    request = request_for(prompt="still there", model="pocket-model", image=DIGEST, mask_image=DIGEST)
    with pytest.warns(UserWarning, match=r"^Image: is no longer here; choose it again"):
        update = page.filling.fill(form.of_request(request), "somebody")
    fields = page.making.layout.fields
    assert update[fields["prompt"]]["value"] == "still there"
    assert update[fields["task"]]["value"] == "inpaint"
    assert fields["canvas"] not in update


def test_a_new_page_finds_tab_source_and_mask_of_the_last_job(page, engine):
    source = engine.sources.keep(scene(), "finder")
    canvas = {"source": source, "strokes": [LINE]}
    pressed(page, "finder", task="inpaint", canvas=canvas, width=96, height=64)
    first, *_ = page.making.attach(asked_by("finder"))
    layout = page.making.layout
    shown = first[layout.fields["canvas"]]["value"]
    assert (shown["source"], shown["mask"], shown["strokes"]) == (
        source,
        engine.latest("finder").requests[0].mask_image,
        [],
    )
    assert first[layout.tabs].selected == "inpaint"


SIZING = {
    **dict.fromkeys(form.OF_EXTENSION, 0),
    "task": "inpaint",
    "model": "pocket-model",
    "inpaint_area": "Whole picture",
    "detect_size": True,
    "width": 128,
    "height": 128,
}


def test_a_transparent_file_brings_its_own_mask(page, engine, tmp_path):
    image = scene().convert("RGBA")
    image.paste((0, 0, 0, 0), (70, 0, 96, 64))
    image.save(tmp_path / "clear.png")
    parts, fields = page.source.parts, page.source.layout.fields
    chosen = page.source.take_file(asked_by("clear"), str(tmp_path / "clear.png"), **SIZING)
    canvas = chosen[fields["canvas"]]["value"]
    assert chosen[parts.from_alpha]["interactive"]
    masked = page.source.mask_of_alpha(asked_by("clear"), chosen[parts.alpha], canvas)
    mask = engine.sources.open(masked[fields["canvas"]]["value"]["mask"], "clear")
    assert mask.getbbox() == (70, 0, 96, 64)

    opaque = tmp_path / "opaque.png"
    scene().save(opaque)
    chosen = page.source.take_file(asked_by("clear"), str(opaque), **SIZING)
    assert (chosen[parts.alpha], chosen[parts.from_alpha]["interactive"]) == ("", False)


def test_a_colour_of_the_picture_is_masked_and_one_that_is_not_there_leaves_the_mask(page, engine):
    fields = page.source.layout.fields
    canvas = {"source": engine.sources.keep(scene(), "picker"), "strokes": [LINE]}
    masked = page.source.mask_of_color(asked_by("picker"), "#dc3c28", 10, canvas)
    shown = masked[fields["canvas"]]["value"]
    mask = engine.sources.open(shown["mask"], "picker")
    assert (mask.getbbox(), shown["strokes"]) == ((10, 10, 51, 51), [])
    with pytest.warns(UserWarning, match=r"^Mask: would be empty; the one before is kept"):
        kept = page.source.mask_of_color(asked_by("picker"), "rgba(0, 255.0, 0, 1)", 10, canvas)
    assert kept == {"__type__": "update"}


def test_the_size_follows_what_is_added_at_the_sides(page):
    fields, canvas = page.source.layout.fields, {"source": DIGEST, "width": 400, "height": 200}
    more = page.source.extend(canvas, 0.5, **SIZING)
    assert [more[fields[side]] for side in form.OF_EXTENSION] == [64] * 4
    assert (more[fields["width"]], more[fields["height"]]) == (264, 168)  # half of 528 and 328, in steps of 8
    none = page.source.extend_none(canvas, 0.5, **SIZING)
    assert (none[fields["width"]], none[fields["height"]]) == (200, 104)
    img2img = {**SIZING, "extend_left": 64, "task": "img2img"}  # left over from the other tab
    assert page.source.resize(canvas, 1.0, **img2img)[fields["width"]] == 400


def test_only_the_masked_part_is_made_at_the_models_own_size(page):
    fields, canvas = page.source.layout.fields, {"source": DIGEST, "width": 1500, "height": 1000}
    part = page.source.choose_area(canvas, **{**SIZING, "inpaint_area": "Only masked"})
    assert (part[fields["width"]], part[fields["height"]]) == (128, 128)
    assert part[fields["masked_padding"]]["visible"]
    asis = page.source.choose_area(canvas, **{**SIZING, "detect_size": False})
    assert fields["width"] not in asis


def test_choosing_a_model_keeps_a_size_that_suits_the_source(page):
    fields, canvas = page.source.layout.fields, {"source": DIGEST, "width": 1500, "height": 1000}
    update = page.filling.choose_model(canvas=canvas, **{**SIZING, "task": "img2img"})
    assert (update[fields["width"]], update[fields["height"]]) == (312, 208)


def test_a_picture_that_is_sent_takes_its_settings_along_only_if_asked(page, engine):
    from webui.ui.sending import TARGETS

    made = engine.submit([request_for(prompt="mine", width=96)], "sender").wait().saved
    send = page.filling.sender(TARGETS[1])
    fields = page.source.layout.fields
    extended = {**SIZING, "extend_left": 64}
    plain = send(asked_by("sender"), saved=made, selected=0, with_settings=False, **extended)
    assert fields["prompt"] not in plain
    assert (plain[fields["task"]]["value"], plain[fields["extend_left"]]["value"]) == ("inpaint", 0)
    assert (plain[fields["width"]], plain[fields["height"]]) == (96, 64)
    digest = plain[fields["canvas"]]["value"]["source"]
    assert (pixels(engine.sources.open(digest, "sender")) == pixels(made[0].path)).all()
    full = send(asked_by("sender"), saved=made, selected=0, with_settings=True, **extended)
    assert full[fields["prompt"]]["value"] == "mine"
    assert full[fields["task"]]["value"] == "inpaint"
