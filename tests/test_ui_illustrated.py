"""The Illustrated tab without a browser: a run in messages, one's records, what is drawn of one."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import flights
from tests.conftest import pixels, request_for
from tests.test_ui import EVIL, asked_by, values
from tests.test_ui_compare import Said
from webui.errors import GenerationError
from webui.flight import FlightRecord
from webui.illustrated import bands, guidance, path, reading, words
from webui.jobs import JobView
from webui.request import Delivery
from webui.ui import glossary, illustrated, illustrated_page, show_illustrated
from webui.ui.glossary import GLOSSARY, PANELS

EMBEDDED = 2**20  # bytes: what a browser is sent of a run of the embedded model, at most
# Words of the trade that nobody need know who reads at the first depth, unless they are in the glossary.
JARGON = re.compile(
    r"\b(tensor|epsilon|sigma|logits?|softmax|cosine|embeddings?|VAE|UNet|U-Net|encoder|decoder|SNR|variance|"
    r"Fourier|norm|checkpoint|sampler|inference|conditional|unconditional|cross-attention|tokens?|latents?|"
    r"timesteps?|padding|guidance|negative prompt|scheduler|attention|net|noise|signal|array|diffusers)\b",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def do(page):
    return page.illustrating


@pytest.fixture(scope="module")
def watched(do):
    """All that the page is told while somebody makes a picture."""
    return told(do, do.run(asked_by("watcher"), **values(prompt="a fox", seed=3, num_inference_steps=5)))


def told(do, updates) -> list[dict]:
    """The messages for the view in a stream of updates."""
    return [update[do.parts.view]["value"] for update in updates if do.parts.view in update]


def shown(uri: str) -> np.ndarray:
    return pixels(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def numbers(text: str, kind: str, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind).reshape(shape)


# A run


def test_a_run_is_told_step_by_step_and_its_record_once_at_the_end(watched):
    *before, last = watched
    assert before
    assert not any("record" in message for message in before)
    assert any(message["state"]["preview"].startswith("data:image/jpeg;base64,") for message in before)
    assert {message["state"]["done"] for message in before} == {False}
    assert last["state"]["done"]
    assert last["state"]["share"] == 1.0
    assert last["record"]["calls"] == 5
    assert last["record"]["about"]["prompt"] == "a fox"


def test_what_is_watched_is_the_picture_that_the_form_makes(do, watched, engine):
    kept = engine.library.get(watched[-1]["record"]["id"], "watcher")
    plain = (
        engine.submit([request_for(prompt="a fox", seed=3, num_inference_steps=5)], "other").wait().saved[0]
    )
    assert (pixels(kept.path) == pixels(plain.path)).all()
    assert (shown(watched[-1]["record"]["picture"]) == pixels(kept.path)).all()  # 64 pixels: a PNG


def test_one_picture_is_made_however_many_the_form_says(do):
    many = values(num_images_per_prompt=3, batch_count=2, num_inference_steps=1)
    *_, last = told(do, do.run(asked_by("modest"), **many))
    assert last["state"]["headline"] == "Done: 1 picture"


def test_every_check_holds_for_a_run_of_the_embedded_model(watched):
    checks = watched[-1]["record"]["checks"]
    assert {"film", "words", "guidance", "bands", "arrays", "time"} == checks.keys()
    assert [check for found in checks.values() for check in found if not check["held"]] == []


def test_a_wrong_field_is_said_in_words_and_starts_nothing(do, engine):
    (message,) = told(do, do.run(asked_by("careless"), **values(width=100)))
    assert message["state"]["headline"].startswith("Width: ")
    assert (message["state"]["ended"], message["state"]["done"]) == (True, False)
    assert engine.latest("careless") is None


def test_cancel_stops_what_one_watches_and_nothing_else(do, engine):
    long = request_for(num_inference_steps=500, width=128, height=128)
    other = engine.submit([long], "other")
    plain = engine.submit([long], "waverer")
    stream = do.run(asked_by("waverer"), **values(num_inference_steps=500))
    next(stream)
    do.stop(asked_by("waverer"))
    *_, last = told(do, stream)
    assert last["state"]["headline"] == "Cancelled."
    assert "record" not in last
    assert not other.view.ended
    assert not plain.view.ended
    for job in (other, plain):
        job.cancel()
        job.wait()


def test_a_run_that_fails_says_why():
    view = JobView("a", state="failed", error=GenerationError("There is not enough memory."))
    state = show_illustrated.state(view)
    assert (state["headline"], state["ended"], state["done"]) == ("There is not enough memory.", True, False)


def test_who_waits_is_told_the_place_in_the_queue():
    assert show_illustrated.state(JobView("a", place=3))["headline"] == "Waiting: place 3 in the queue"


def test_a_run_that_another_tab_shows_is_not_on_the_stage_of_pictures(page, do, engine):
    job = engine.submit([request_for(num_inference_steps=500)], "busy", Delivery(record=True))
    page.making.cancel(asked_by("busy"))
    assert not job.cancelled
    do.stop(asked_by("busy"))
    assert job.wait().state == "cancelled"


# Found again


def test_the_newest_record_is_there_again_for_its_owner_alone(do, watched):
    (message,) = told(do, do.attach(asked_by("watcher")))
    assert message["remembered"]
    assert message["record"] == watched[-1]["record"]
    for update in do.attach(asked_by("stranger")):
        assert do.parts.view not in update


def test_a_page_that_comes_back_goes_on_with_what_is_being_made(do, engine):
    job = engine.submit([request_for()], "returner", Delivery(record=True))
    *_, last = told(do, do.attach(asked_by("returner")))
    assert last["state"]["job"] == job.id
    assert last["record"]["calls"] == 4


def test_a_picture_of_the_gallery_is_made_again_bit_for_bit(do, engine):
    kept = engine.submit([request_for(prompt="a crab", seed=9)], "owner").wait().saved
    opened, *rest = do.take(asked_by("owner"), kept, 0)
    assert opened[do.layout.tabs].selected == illustrated.TAB
    assert opened[do.layout.fields["prompt"]]["value"] == "a crab"
    record = told(do, rest)[-1]["record"]
    assert record["id"] != kept[0].id
    assert (pixels(engine.library.get(record["id"], "owner").path) == pixels(kept[0].path)).all()


def test_a_picture_that_has_a_record_is_shown_without_being_made_again(do, engine, watched):
    saved = (engine.library.get(watched[-1]["record"]["id"], "watcher"),)
    before = len(engine.library.recent("watcher", 100))
    (message,) = told(do, do.take(asked_by("watcher"), saved, 0))
    assert message["record"] == watched[-1]["record"]
    assert len(engine.library.recent("watcher", 100)) == before


# Files


@pytest.mark.parametrize("what", ["npz", "html"])
def test_a_record_is_handed_on_to_its_owner_alone(do, watched, what):
    record = watched[-1]["record"]
    asked = Said(id=record["id"], what=what)
    message = do.files(asked_by("watcher"), asked)[do.parts.view]["value"]
    name = message["file"]["url"].removeprefix("gradio_api/file=")
    data = Path(name).read_bytes()
    if what == "npz":
        assert FlightRecord.from_bytes(data).request.prompt == "a fox"
    else:
        assert illustrated_page.page(record).encode() == data
    for owner, said in (
        ("stranger", asked),
        ("watcher", Said(what=what)),
        ("watcher", Said(id="1", what=what)),
    ):
        with pytest.warns(UserWarning, match="no|There"):
            assert do.parts.view not in do.files(asked_by(owner), said)


def kept(folder, record) -> str:
    path = folder / "elsewhere.npz"
    path.write_bytes(record.to_bytes())
    return str(path)


def test_a_record_from_elsewhere_is_opened_and_not_kept(do, engine, tmp_path):
    record = flights.record(calls=5)
    message = do.open(kept(tmp_path, record))[do.parts.view]["value"]["record"]
    expected = show_illustrated.record(record, message["id"])
    expected["about"]["notes"].insert(0, "Opened from elsewhere.npz; it is not kept here.")
    assert message == expected
    with pytest.warns(UserWarning, match="no such record"):
        do.files(asked_by("watcher"), Said(id=message["id"], what="npz"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[: len(data) // 2], "is no flight record, or a damaged one"),
        (lambda data: b"\x89PNG", "is no flight record, or a damaged one"),
        (lambda data: b"", "is no flight record, or a damaged one"),
    ],
)
def test_what_is_no_record_is_refused_by_its_name(do, tmp_path, change, said):
    path = tmp_path / "a <b>.npz"
    path.write_bytes(change(flights.record(calls=2).to_bytes()))
    with pytest.warns(UserWarning, match=f"^Flight record: a &lt;b&gt;.npz {said}"):
        assert do.parts.view not in do.open(str(path))


EXTREMES = [0.0, -1.0, 3e38, 1e-38]


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("kind", ["epsilon", "sample", "flow_prediction"])
@pytest.mark.parametrize("name", ["signal", "noise", "latents", "guided", "to_rgb", "attention", "timesteps"])
def test_numbers_that_no_run_has_are_told_or_refused_and_never_break_the_page(
    do, tmp_path, name, kind, value
):
    record = flights.record(calls=3, size=(64, 64), prediction_type=kind)
    odd = replace(record, **{name: np.full_like(getattr(record, name), value)})
    with np.errstate(all="ignore"):
        message = do.open(kept(tmp_path, odd))[do.parts.view]["value"]["record"]
    json.dumps(message, allow_nan=False)


def test_a_record_of_more_than_any_run_has_is_refused(do, tmp_path):
    record = flights.record(calls=2, size=(64, 64))
    for odd in (
        replace(record, tokens=record.tokens * 5000),
        replace(record, timesteps=np.zeros(6000, np.float32)),
        replace(record, notes=("n" * 5 * 2**20,)),
    ):
        with pytest.warns(UserWarning, match="too long a run|says too much"):
            do.open(kept(tmp_path, odd))


def test_a_prompt_of_many_words_is_compared_in_part():
    names = tuple(f"{chr(97 + n % 26)}{n}</w>" for n in range(300))
    record = flights.record(calls=2, size=(64, 64), tokens=("<|startoftext|>", *names, "<|endoftext|>"))
    drawn = show_illustrated.record(record, 1)
    assert len(drawn["words"]["words"]) == 300
    assert np.shape(drawn["words"]["overlap"]) == (words.COMPARED, words.COMPARED)


def test_what_a_person_typed_cannot_become_part_of_the_page():
    record = flights.record()
    record.request.__dict__["prompt"] = f"{EVIL}</script><script>alert(1)</script>"
    text = illustrated_page.page(show_illustrated.record(record, 1))
    assert text.count("<script") == 2
    assert "<img src=x" not in text
    found = json.loads(re.search(r'id="record">(.*?)</script>', text, re.DOTALL)[1])
    assert found["about"]["prompt"] == record.request.prompt


# What is drawn


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction", "sample"])
def test_the_numbers_are_those_of_the_functions(kind):
    record = flights.record(prediction_type=kind)
    drawn = show_illustrated.record(record, 1)
    found = guidance.guidance(record)
    for ours, theirs in (
        (drawn["path"]["change"], path.changes(record)),
        (drawn["path"]["distance"], path.distance_to_end(record)),
        (drawn["guidance"]["size"], found.share),
        (drawn["guidance"]["clipped"][2], guidance.clipped(record, 2, drawn["guidance"]["scales"])),
        (np.transpose(drawn["bands"]["values"]), np.clip(bands.bands(record).coherence, 0, 1)),
        (drawn["words"]["overlap"], words.overlap(record)),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert drawn["path"]["settled"] == path.settled(record)
    json.dumps(drawn, allow_nan=False)


def test_shares_of_each_place_are_those_of_the_functions_and_sum_to_one():
    record = flights.record()
    drawn = show_illustrated.record(record, 1)["words"]
    names = len(drawn["words"]) + 1
    assert drawn["words"] == ["a", "fox", "on", "blue", "background"]
    shares = numbers(drawn["shares"], "<u2", 8, names, *drawn["grid"]) / 65535
    np.testing.assert_allclose(shares[3, :, 2, 5], words.at(record, 3, 2, 5), atol=1e-5)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-4)
    mean = numbers(drawn["mean"], "<u2", names, *drawn["grid"]) / 65535
    np.testing.assert_allclose(mean, shares.mean(axis=0), atol=2e-5)


@pytest.mark.parametrize("size", [(128, 128), (640, 384)])
def test_colours_mixed_in_the_browser_are_those_of_latents_mixed_before(size):
    """In large pictures the means of blocks: what is linear stays so."""
    record = flights.record(size=size, guidance_scale=5.0)
    drawn = show_illustrated.record(record, 1)["guidance"]
    cond, uncond = (numbers(drawn[name], "<f4", 8, *drawn["grid"], 3) for name in ("cond", "uncond"))
    x0 = guidance.at_scale(record, 4, 11.0)
    rgb = np.einsum("rc,chw->hwr", record.to_rgb[:, :-1], x0) + record.to_rgb[:, -1]
    rows, columns = drawn["grid"]
    assert max(rows, columns) <= show_illustrated.LARGEST_MAP
    block = rgb.shape[0] // rows
    small = rgb[: rows * block, : columns * block].reshape(rows, block, columns, block, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(uncond[4] + 11 * (cond[4] - uncond[4]), small, atol=1e-4)


def test_without_guidance_attention_or_decoded_guesses_there_is_less_to_draw():
    drawn = show_illustrated.record(flights.record(guidance_scale=1.0, attended=False, guesses=None), 1)
    assert drawn["guidance"] is None
    assert drawn["words"] is None
    assert not drawn["film"]["decoded"]
    assert shown(drawn["film"]["guess"][0]).shape == (16, 16, 3)
    assert drawn["checks"]["words"] == drawn["checks"]["guidance"] == []


def test_an_empty_prompt_has_no_words_and_all_attention_is_the_rest():
    record = flights.record(tokens=("<|startoftext|>", "<|endoftext|>"))
    drawn = show_illustrated.record(record, 1)["words"]
    assert drawn["words"] == []
    assert drawn["overlap"] == []
    assert (numbers(drawn["mean"], "<u2", 1, *drawn["grid"]) == show_illustrated.WHOLE).all()


def test_a_broken_identity_is_said_to_be_broken():
    record = flights.record()
    record.guided[3, 0, 0, 0] += 1
    (first, *_) = show_illustrated.record(record, 1)["checks"]["guidance"]
    assert not first["held"]
    record.guided[3, 0, 0, 0] = np.nan
    drawn = show_illustrated.record(record, 1)
    assert (drawn["checks"]["guidance"][0]["error"], drawn["checks"]["guidance"][0]["held"]) == (None, False)
    json.dumps(drawn, allow_nan=False)


@pytest.mark.parametrize(("calls", "count"), [(1, 1), (7, 7), (40, 40), (41, 40), (1000, 40)])
def test_pictures_are_of_evenly_chosen_calls_with_the_first_and_the_last(calls, count):
    found = show_illustrated.shown_of(calls)
    assert (found[0], found[-1], len(found)) == (0, calls - 1, count)
    assert max(np.diff(found), default=1) - min(np.diff(found), default=1) <= 1


def test_a_run_of_the_embedded_model_is_sent_in_less_than_a_mebibyte(do):
    long = values(prompt="a red apple, 3d", width=128, height=128, num_inference_steps=60)
    *_, last = told(do, do.run(asked_by("patient"), **long))
    assert len(last["record"]["timesteps"]) == 60
    assert len(last["record"]["film"]["guess"]) == 40
    assert len(json.dumps(last)) < EMBEDDED


def test_guesses_are_read_back_as_they_were_decoded():
    record = flights.record(size=(64, 64))
    drawn = show_illustrated.record(record, 1)
    for k, uri in enumerate(drawn["film"]["guess"]):
        assert (shown(uri) == record.guesses[k]).all()
    assert reading.x0(record).shape == record.latents.shape


# Words


def test_every_term_has_an_entry_and_every_entry_is_used():
    used = {term for panel in PANELS.values() for text in texts_of(panel) for term in glossary.terms(text)}
    assert used == GLOSSARY.keys()


@pytest.mark.parametrize("name", sorted(PANELS))
def test_no_word_of_the_trade_is_left_unexplained_at_the_first_depth(name):
    text = PANELS[name].plain
    marked = set()
    for shown, term in glossary.TERM.findall(text):
        marked |= {shown.lower(), (term or shown).lower()}
    bare = glossary.TERM.sub("", text)
    assert {word.lower() for word in JARGON.findall(bare)} <= marked


def test_an_entry_explains_itself_in_words_that_have_entries():
    for term, text in GLOSSARY.items():
        assert {word.lower() for word in JARGON.findall(text)} <= {
            *map(str.lower, GLOSSARY),
            "tensor",
            "vae",
            "decoder",
        }, term


def texts_of(panel: glossary.PanelText) -> list[str]:
    return [panel.plain, panel.numbers, panel.formula]


def test_a_panel_says_something_at_each_depth_and_names_its_sources():
    for name, panel in PANELS.items():
        assert all(texts_of(panel)), name
        assert all(re.search(r"arXiv:\d{4}\.\d{5}$", source) for source in panel.sources), name
        assert panel.sources or name in ("time", "script")
