"""The page without a browser: what was filled in -> requests, snapshots -> HTML, the stream of one press."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.requests import Request

from tests.conftest import pixels, request_for
from webui import infotext
from webui.errors import GenerationError, InvalidField
from webui.jobs import JobView
from webui.request import MAX_SEED, Delivery, GenerationRequest, ModelInfo, SavedPicture
from webui.ui import form, show

EVIL = "<img src=x onerror=alert(1)>&\"'"
MODEL = ModelInfo("pocket", "Pocket", EVIL, 128, 96, (), {"guidance_scale": 4.0}, 1)


def picture(name: str = "2030-01-01/00001-5.png", **changes: object) -> SavedPicture:
    return SavedPicture(1, name, Path("/secret") / name, "infotext", request_for(**changes), 64, 64)


class Shape(HTMLParser):
    """The tags of a page in order, and every attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= dict(attrs)

    def handle_data(self, data):
        self.text += data


# What was filled in -> requests


def test_one_batch_leaves_the_random_seed_to_the_engine():
    assert form.requests({"prompt": "a fox"}) == [GenerationRequest(prompt="a fox")]


def test_several_batches_count_their_seeds_on():
    made = form.requests({"seed": 10, "batch_count": 3, "num_images_per_prompt": 2})
    assert [request.seed for request in made] == [10, 12, 14]


def test_several_batches_of_a_random_seed_are_consecutive():
    seeds = [request.seed for request in form.requests({"seed": -1, "batch_count": 3})]
    assert seeds == [(seeds[0] + i) % (MAX_SEED + 1) for i in range(3)]
    assert seeds[0] >= 0


def test_variations_count_on_while_the_seed_stays():
    values = {"seed": 5, "variation_seed": MAX_SEED, "variation_strength": 0.2, "batch_count": 2}
    made = form.requests(values)
    assert [(r.seed, r.variation_seed) for r in made] == [(5, MAX_SEED), (5, 0)]


@pytest.mark.parametrize(
    ("field", "value", "label"),
    [
        ("batch_count", 0, "Batch count"),
        ("batch_count", 1.5, "Batch count"),
        ("batch_count", float("nan"), "Batch count"),
        ("batch_count", None, "Batch count"),
        ("batch_count", True, "Batch count"),
        ("seed", None, "Seed"),
        ("width", 100, "Width"),
        ("guidance_scale", float("nan"), "CFG scale"),
        ("prompt", None, "Prompt"),
        ("num_inference_steps", "20", "Steps"),
    ],
)
def test_what_is_wrong_is_refused_by_the_name_on_the_page(field, value, label):
    with pytest.raises(InvalidField, match=f"^{label}: ") as caught:
        form.requests({field: value})
    assert caught.value.field == field


def test_how_pictures_are_kept_is_read_from_the_form_too():
    kept = form.delivery({"prompt": "a fox", "preview_every": 3, "image_format": "webp", "image_quality": 80})
    assert kept == Delivery(preview_every=3, image_format="webp", image_quality=80)


# Requests -> what is filled in


def test_a_fresh_form_has_the_models_size_and_settings():
    values = form.at_start([MODEL])
    assert (values["model"], values["width"], values["height"]) == ("pocket", 128, 96)
    assert values["guidance_scale"] == 4.0
    assert form.requests(values) == [
        GenerationRequest(model="pocket", width=128, height=96, guidance_scale=4.0)
    ]


def test_using_a_pictures_settings_again_makes_exactly_it():
    request = request_for(prompt="x", seed=7, hires_scale=2.0, clip_skip=2, eta=0.5)
    stale = {"batch_count": 4, "num_images_per_prompt": 3, "variation_strength": 0.5}
    assert form.requests({**stale, **form.of_request(request)}) == [request]


def test_a_text_with_parameters_resets_what_it_does_not_mention():
    text = infotext.write(request_for(prompt="x", seed=7), "pocket", "ab" * 32)
    values = form.of_reading(infotext.read(text))
    assert values["clip_skip"] == 1
    assert values["hires_scale"] == 1.0
    assert form.requests({"clip_skip": 3, "hires_scale": 2.0, **values}) == [
        request_for(prompt="x", seed=7, model="pocket")
    ]


def test_a_text_of_prompts_alone_sets_the_prompts_alone():
    assert form.of_reading(infotext.read("a fox")) == {"prompt": "a fox"}


def test_a_text_from_a_batch_gives_the_picture_it_came_with():
    batch = request_for(seed=7, num_images_per_prompt=4)
    values = form.of_reading(infotext.read(infotext.write(batch, "pocket", "ab" * 32, index=2)))
    assert (values["seed"], values["num_images_per_prompt"]) == (9, 1)


def test_a_text_without_a_model_leaves_the_model_alone():
    assert "model" not in form.of_reading(infotext.read("a\nSteps: 5, Sampler: Euler, CFG scale: 3, Seed: 1"))


def test_a_text_without_a_seed_keeps_it_random():
    text = "a\nSteps: 5, Sampler: Euler, CFG scale: 3, Size: 64x64"
    assert form.of_reading(infotext.read(text))["seed"] == -1


# Snapshots -> HTML


@pytest.mark.parametrize(
    "html",
    [
        show.refusal(EVIL),
        show.stage(JobView("1", "failed", error=GenerationError(EVIL))),
        show.stage(JobView("1", "running", stage=EVIL, net_calls=1, net_calls_total=2)),
        show.stage(JobView("1", "done", device=EVIL)),
        show.stage(JobView("1"), note=EVIL),
        show.caption(picture(EVIL)),
        show.status(EVIL, EVIL, ready=True),
        show.model_note(MODEL),
    ],
)
def test_nothing_a_person_wrote_becomes_markup(html):
    assert "<img" not in html
    assert EVIL in Shape(html).text


def test_the_stage_keeps_its_shape_so_that_nothing_blinks():
    views = [JobView("1"), JobView("1", "running", net_calls=3), JobView("1", "done"), JobView("1", "failed")]
    assert {tuple(Shape(show.stage(view)).tags) for view in [None, *views]} == {
        ("div", "div", "div", "span", "p", "p")
    }


def test_the_progress_bar_tells_how_far_the_whole_job_is():
    bar = Shape(show.stage(JobView("1", "running", net_calls=13, net_calls_total=39))).attributes
    assert (bar["role"], bar["aria-valuenow"], bar["style"]) == ("progressbar", "33", "width:33%")


def test_a_preview_is_shown_only_while_the_picture_is_being_made():
    running = JobView("1", "running", preview=b"jpeg")
    assert 'src="data:image/jpeg;base64,anBlZw=="' in show.stage(running)
    assert "<img" not in show.stage(JobView("1", "cancelled", preview=b"jpeg"))


def test_what_is_announced_stays_the_same_from_step_to_step():
    steps = [
        JobView("1", "running", stage=f"Step {i} of 9", net_calls=i, net_calls_total=9) for i in (1, 2, 3)
    ]
    assert {show.headline_of(view) for view in steps} == {"Making the picture"}


@pytest.mark.parametrize(
    ("view", "headline"),
    [
        (JobView("1", place=3), "Waiting: place 3 in the queue"),
        (JobView("1", place=1), "Waiting: next in the queue"),
        (JobView("1", "running", stage="Loading big"), "Loading big…"),
        (
            JobView("1", "queued", place=1, saved=(picture(),), pictures_total=4),
            "Making the pictures: 1 of 4 done",
        ),
        (
            JobView("1", "cancelled", stage="Cancelled", saved=(picture(),), pictures_total=4),
            "Cancelled. 1 of 4 pictures kept.",
        ),
        (JobView("1", "done", saved=(picture(),)), "Done: 1 picture"),
    ],
)
def test_the_headline_says_what_happens(view, headline):
    assert show.headline_of(view) == headline


def test_speed_and_memory_are_shown_afterwards():
    view = JobView(
        "1", "done", saved=(picture(), picture()), seconds=1.6, peak_memory=3 * 2**29, device="cpu"
    )
    assert "1.6 s · 1.25 pictures/s · peak memory 1.5 GiB · cpu" in show.stage(view)


def test_the_page_says_where_a_picture_is_but_not_where_the_server_keeps_it():
    html = show.caption(picture())
    assert "2030-01-01/00001-5.png" in html
    assert "secret" not in html


@pytest.mark.parametrize(
    ("value", "text"), [(0.84, "0.8 s"), (9.99, "10 s"), (59.2, "1 min 0 s"), (125, "2 min 5 s")]
)
def test_durations_read_as_people_say_them(value, text):
    assert show.seconds(value) == text


# The page over a real engine


@pytest.fixture(scope="module")
def demo(engine):
    from webui.ui.page import build

    return build(engine, engine.settings)[0]


def asked_by(owner: str):
    import gradio as gr

    return gr.Request(Request({"type": "http", "headers": [], "state": {"owner": owner}}))


def values(**changes: object) -> dict:
    return {**form.at_start([]), **dict(request_for()), "batch_count": 1, **changes}


def test_building_the_page_imports_no_torch():
    code = "import sys, webui.ui.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_field_has_a_control(page):
    assert set(page.making.layout.fields) == set(form.FIELDS)


def test_one_endpoint_is_public_and_takes_the_fields_by_name(demo):
    demo.config = demo.get_config_file()
    endpoints = demo.get_api_info()["named_endpoints"]
    assert list(endpoints) == ["/generate"]
    parameters = endpoints["/generate"]["parameters"]
    assert {parameter["parameter_name"] for parameter in parameters} == set(form.FIELDS)
    assert all(parameter["parameter_has_default"] for parameter in parameters)


def test_no_event_tells_the_browser_of_progress_that_is_not_shown(demo):
    """Each output told of it costs a search through all components, at every step of every event."""
    events = demo.get_config_file()["dependencies"]
    assert len(events) > 100
    assert [event["api_name"] for event in events if event["show_progress_on"] != []] == []


def test_a_press_streams_previews_and_ends_with_the_picture_the_engine_makes(page, engine):
    stages, last = [], {}
    for update in page.making.generate(asked_by("ui"), **values(num_inference_steps=60)):
        stages.append(update.get(page.making.layout.stage, ""))
        last |= update
    assert len({stage for stage in stages if "data:image/jpeg" in stage}) >= 3
    assert "Done: 1 picture" in stages[-1]

    (saved,) = last[page.making.layout.saved]
    (shown,) = last[page.making.layout.gallery]["value"]
    assert Path(shown).read_bytes() == saved.path.read_bytes()
    assert not Path(shown).is_relative_to(engine.settings.outputs_dir)
    assert last[page.making.layout.infotext] == saved.infotext

    straight = engine.submit([request_for(num_inference_steps=60)], "script").wait()
    assert (pixels(saved.path) == pixels(straight.saved[0].path)).all()


def test_a_page_that_goes_away_does_not_stop_its_job(page, engine):
    stream = page.making.generate(asked_by("leaver"), **values(num_inference_steps=12))
    while "running" not in next(stream)[page.making.layout.stage]:
        pass
    stream.close()
    assert engine.latest("leaver").wait().state == "done"


def test_a_page_that_opens_finds_the_job_and_its_form_again(page, engine):
    job = engine.submit([request_for(prompt="find me", num_inference_steps=30)], "returner", attended=True)
    first, *_, last = page.making.attach(asked_by("returner"))
    assert first[page.making.layout.fields["prompt"]]["value"] == "find me"
    assert first[page.making.layout.fields["model"]].keys() >= {"value", "choices"}
    assert page.making.layout.fields["seed"] not in first
    assert last[page.making.layout.saved] == job.view.saved


def test_a_page_that_opens_sees_only_its_own_jobs(page, engine):
    engine.submit([request_for(prompt="private")], "one").wait()
    (update,) = page.making.attach(asked_by("nobody's neighbour"))
    assert list(update) == [page.making.layout.fields["model"]]


def test_a_second_press_waits_its_turn_and_is_counted(page, engine):
    first = page.making.generate(asked_by("keen"), **values(num_inference_steps=30))
    next(first)
    second = page.making.generate(asked_by("keen"), **values(prompt="second"))
    assert page.making.layout.stage not in next(second)  # the first one is on the stage
    assert any("1 more waiting" in update[page.making.layout.stage] for update in first)
    assert (
        "Done: 1 picture"
        in [update for update in second if page.making.layout.stage in update][-1][page.making.layout.stage]
    )


def test_cancel_stops_the_job_on_the_stage_and_no_one_elses(page, engine):
    long = [request_for(num_inference_steps=500)]
    mine, hers = engine.submit(long, "me"), engine.submit([request_for()], "her")
    page.making.cancel(asked_by("me"))
    assert mine.wait().state == "cancelled"
    assert hers.wait().state == "done"


def test_a_wrong_value_is_said_on_the_stage_and_starts_nothing(page, engine):
    with pytest.warns(UserWarning, match="^Width: must be a multiple of 8"):  # outside a browser
        (update,) = page.making.generate(asked_by("careless"), **values(width=100))
    assert "Width: must be a multiple of 8" in update[page.making.layout.stage]
    assert engine.latest("careless") is None


def test_choosing_a_model_sets_its_size_and_leaves_the_prompts(page, engine):
    info = engine.models()[0]
    update = page.filling.choose_model(info.name)
    assert update[page.making.layout.fields["width"]]["value"] == info.width
    assert page.making.layout.fields["prompt"] not in update


def test_choosing_a_scheduler_offers_only_the_schedules_that_fit(page, engine):
    for info in engine.schedulers():
        field = page.making.layout.fields["sigma_schedule"]
        offered = page.filling.choose_scheduler(info.name, "Karras")[field]
        assert tuple(offered["choices"]) == info.sigma_schedules
        assert offered["value"] == ("Karras" if "Karras" in info.sigma_schedules else "Automatic")


def test_settings_of_a_model_that_is_not_here_leave_the_model_alone(page):
    text = infotext.write(request_for(prompt="x"), "somebody's model", "ab" * 32)
    with pytest.warns(UserWarning, match="^Model: somebody&#x27;s model is not here"):
        update = page.filling.fill_from_text(asked_by("x"), text, (), 0)
    assert update[page.making.layout.fields["prompt"]]["value"] == "x"
    assert page.making.layout.fields["model"] not in update


def test_an_empty_prompt_is_filled_from_the_selected_picture(page):
    saved = (picture(), picture())
    text = infotext.write(request_for(prompt="from the picture"), "pocket-model", "ab" * 32)
    saved = (saved[0], SavedPicture(2, "b.png", Path("b.png"), text, request_for(), 64, 64))
    update = page.filling.fill_from_text(asked_by("x"), "  ", saved, 1)
    assert update[page.making.layout.fields["prompt"]]["value"] == "from the picture"
