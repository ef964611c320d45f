"""The Models tab and the form that follows its model, without a browser."""

import json
import shutil
import time
from html import escape
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import tiny, tiny_auto
from tests.conftest import POCKET, ROOT, request_for
from tests.hub import FakeHub
from tests.test_ui import Shape
from tests.test_ui_plugins import asked_by
from webui.engine import Engine
from webui.errors import Unsupported
from webui.hub import Download, Hub
from webui.library import Library
from webui.request import GenerationRequest
from webui.settings import Settings
from webui.ui import form, layout, show, show_models, tags
from webui.ui.actions import Actions
from webui.ui.fetching import Fetching

EVIL = "<img src=x onerror=alert(1)>"


def write_lora(path: Path, seed: int = 1, words: str = "", metadata: dict[str, str] | None = None) -> Path:
    """A LoRA of the pocket model's attention, as sd-scripts writes it; ``words``: its trigger phrase."""
    random = np.random.default_rng(seed)
    tensors = {}
    for place, width in (("down_blocks_1_attentions_0", 128), ("mid_block_attentions_0", 256)):
        name = f"lora_unet_{place}_transformer_blocks_0_attn2_to_k"
        tensors[f"{name}.lora_down.weight"] = random.normal(size=(4, 192)).astype(np.float32)
        tensors[f"{name}.lora_up.weight"] = random.normal(size=(width, 4)).astype(np.float32)
        tensors[f"{name}.alpha"] = np.full((), 4, np.float32)
    notes = {"ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": words, **(metadata or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, notes)
    return path


def stock(folder: Path) -> Path:
    """A models folder: a checkpoint, two LoRAs, and a file that is none."""
    shutil.copytree(ROOT / "tests" / "tiny-model", folder / "tiny")
    write_lora(folder / "Lora" / "ink.safetensors", 1, "ink style, brush")
    write_lora(folder / "Lora" / "ember.safetensors", 2)
    shutil.copytree(ROOT / "tests" / "tiny-model" / "vae", folder / "VAE" / "soft")
    (folder / "page.safetensors").write_bytes(b"<!doctype html><title>404</title>" * 9)
    return folder


@pytest.fixture(scope="module")
def stocked(make_engine, tmp_path_factory) -> Engine:
    engine = make_engine(models_dir=[stock(tmp_path_factory.mktemp("models")), POCKET.parent])
    assert engine.submit([request_for(prompt="a fox <lora:ink:1>")], "ann").wait().state == "done"
    return engine


def opened(engine: Engine) -> Actions:
    with gr.Blocks():
        parts = layout.build(engine.models(), engine.schedulers())
    return Actions(engine, parts)


@pytest.fixture(scope="module")
def do(stocked) -> Actions:
    return opened(stocked)


@pytest.fixture
def idle(tmp_path):
    """An engine that is not started, on some models."""

    def idle(**options: object) -> Engine:
        folder = tmp_path / "models"
        given = {
            "data_dir": tmp_path,
            "models_dir": [folder if folder.exists() else stock(folder)],
            **options,
        }
        return Engine(Settings(**given), Library(tmp_path))

    return idle


def event(**data: object) -> gr.EventData:
    return gr.EventData(None, data)


def files(do: Actions, owner: str = "ann", user: str | None = None) -> dict[str, dict]:
    return {file["key"]: file for file in shelf(do, owner, user)["files"]}


def shelf(do: Actions, owner: str = "ann", user: str | None = None) -> dict:
    return json.loads(do.shelving.list(asked_by(owner, user))[do.shelving.parts.shelf])


def memory(do: Actions, owner: str = "ann", user: str | None = None) -> dict:
    return json.loads(do.shelving.look(asked_by(owner, user))[do.shelving.parts.memory])


def used(do: Actions, key: str, **values: object) -> dict[str, object]:
    """What a press of Use changes in the form, by field."""
    base = {"task": "txt2img", "model": "pocket-model", "width": 64, "height": 64, "detect_size": True}
    update = do.shelving.use(asked_by(), event(key=key), **{**base, **values})
    fields = do.shelving.layout.fields
    return {name: update[part] for name, part in fields.items() if part in update}


# What is on the disk


def test_everything_is_listed_as_what_it_is(do):
    found = files(do)
    assert {"checkpoint/pocket-model", "checkpoint/tiny", "lora/ink", "lora/ember"} <= found.keys()
    ink = found["lora/ink"]
    assert (ink["family"], ink["precision"], ink["words"]) == ("sd1", "float32", ["ink style", "brush"])
    assert ink["use"]
    assert ink["bytes"] > 10_000
    (page,) = (file for file in found.values() if file["name"] == "page")
    assert page["problem"]
    assert not page["use"]


def test_the_list_can_be_sent_to_a_browser_and_holds_no_path(do, stocked):
    text = json.dumps([shelf(do), memory(do)])
    assert str(stocked.settings.models_dir[0]) not in text
    assert str(stocked.settings.data_dir) not in text


def test_many_files_cost_one_walk_and_little_text_and_nothing_new_is_the_same_text(idle, monkeypatch):
    from webui.catalogue import headers, walking

    engine, many = idle(), 300
    for i in range(many):
        write_lora(engine.settings.models_dir[0] / "Lora" / f"style-{i}.safetensors", i)
    do = opened(engine)
    first = do.shelving.list(asked_by())[do.shelving.parts.shelf]
    assert len(first) < 500 * many
    walks, plain = [], walking.Walk.spots
    monkeypatch.setattr(walking.Walk, "spots", lambda walk: walks.append(1) or plain(walk))
    monkeypatch.setattr(headers, "read", None)
    assert do.shelving.list(asked_by())[do.shelving.parts.shelf] == first
    assert walks == [1]


def test_a_picture_shows_what_it_was_made_with_to_its_owner_alone(do):
    found = files(do, "ann")
    for key in ("checkpoint/pocket-model", "lora/ink"):
        assert found[key]["picture"].startswith("data:image/jpeg;base64,")
        assert found[key]["used"] > 0
    assert "picture" not in found["lora/ember"]
    assert not any("picture" in file for file in files(do, "bob").values())


def test_notes_and_favourites_are_kept(idle):
    do = opened(idle())
    do.shelving.note(asked_by(), event(key="lora/ink", star=True))
    do.shelving.note(asked_by(), event(key="lora/ink", note=EVIL))
    again = files(opened(idle()))
    assert (again["lora/ink"]["star"], again["lora/ink"]["note"]) == (True, EVIL)
    assert not again["lora/ember"]["star"]


@pytest.mark.parametrize(
    "key", ["lora/gone", "lora", "", "nothing/ink", "../lora/ink", None, 7, ["lora/ink"]]
)
def test_what_is_not_there_is_said_to_be_gone(do, key):
    with pytest.warns(UserWarning, match="not here any more"):
        do.shelving.use(asked_by(), event(key=key))


def test_what_is_unusable_says_why(do):
    (key,) = (key for key, file in files(do).items() if file["name"] == "page")
    with pytest.warns(UserWarning, match="cannot be used"):
        do.shelving.use(asked_by(), event(key=key))


def test_a_new_file_is_there_after_a_refresh_and_a_deleted_one_is_not(idle):
    engine = idle()
    do = opened(engine)
    folder = engine.settings.models_dir[0] / "Lora"
    (folder / "ember.safetensors").unlink()
    write_lora(folder / "new.safetensors", 3)
    found = files(do)
    assert "lora/new" in found
    assert "lora/ember" not in found


# Use


def test_a_checkpoint_becomes_the_forms_model_with_its_size(do):
    new = used(do, "checkpoint/tiny")
    assert new["model"]["value"] == "tiny"
    assert (new["width"]["value"], new["height"]["value"]) == (64, 64)
    assert "prompt" not in new


def test_a_lora_goes_into_the_prompt_with_its_words(do):
    assert used(do, "lora/ink", prompt="a fox") == {"prompt": "a fox, ink style, brush <lora:ink:1>"}
    assert used(do, "lora/ember", prompt="a fox <lora:ink:0.5>") == {
        "prompt": "a fox <lora:ink:0.5> <lora:ember:1>"
    }


@pytest.mark.parametrize(
    ("prompt", "name", "words", "expected"),
    [
        ("", "ink", (), "<lora:ink:1>"),
        ("", "ink", ("brush",), "brush <lora:ink:1>"),
        ("a fox,", "ink", ("brush",), "a fox, brush <lora:ink:1>"),
        ("A Brush", "ink", ("brush",), "A Brush <lora:ink:1>"),
        ("a brushed fox", "ink", ("brush",), "a brushed fox, brush <lora:ink:1>"),
        ("a fox <lora:ink:0.4>", "ink", (), "a fox <lora:ink:0.4>"),
        ("a fox <LORA: ink :0.4:0.2>", "ink", (), "a fox <LORA: ink :0.4:0.2>"),
        ("a <lora:x:1> fox", "ink", ("c++",), "a <lora:x:1> fox, c++ <lora:ink:1>"),
        ("a fox", "ink", ("a", "b", "c", "d", "e"), "a fox, b, c <lora:ink:1>"),
    ],
)
def test_a_tag_and_words_are_put_in_once(prompt, name, words, expected):
    assert tags.with_lora(prompt, name, words) == expected
    assert tags.with_lora(expected, name, words) == expected


def test_the_list_of_loras_is_what_the_prompt_names(do):
    known = {"ink": ("ink style",), "ember": ()}
    adapting = do.adapting
    assert adapting.loras_in("a fox <lora:ember:1> b <lyco:ink:0.2> <lora:gone:1>", known) == ["ember", "ink"]
    assert adapting.loras_in(None, known) == []
    assert adapting.choose_loras("a fox", ["ink"], known) == "a fox, ink style <lora:ink:1>"
    assert adapting.choose_loras("a fox <lora:ink:0.5> end", [], known) == "a fox end"
    kept = "a fox <lora:gone:1> <lora:ink:0.5>"
    assert adapting.choose_loras(kept, ["ink"], known) == kept


# What is in memory


def test_memory_says_what_is_there_and_how_much_of_the_budget_that_is(do, stocked):
    now = memory(do)
    assert now["parts"]
    assert any("pocket-model" in part["models"] for part in now["parts"])
    assert 0 < now["device_used"] <= now["device_budget"]
    assert now["events"][-1]["what"] == "loaded"
    assert now["manage"]


def waited(do: Actions, until, seconds: float = 30) -> dict:
    """Memory, once ``until`` holds of it: the engine does its errands between two turns."""
    end = time.monotonic() + seconds
    while not until(now := memory(do)):
        assert time.monotonic() < end, now
        time.sleep(0.02)
    return now


def test_a_model_is_loaded_pinned_and_released_by_its_buttons(do, stocked):
    do.shelving.load(asked_by(), event(key="checkpoint/tiny"))
    now = waited(do, lambda now: any("tiny" in part["models"] for part in now["parts"]))
    key = next(part["key"] for part in now["parts"] if part["models"] == ["tiny"])

    do.shelving.pin(asked_by(), event(key=key, pinned=True))
    assert next(part for part in memory(do)["parts"] if part["key"] == key)["pinned"]
    do.shelving.pin(asked_by(), event(key=key, pinned=False))
    do.shelving.release(asked_by(), event(key=key))
    assert key not in [part["key"] for part in memory(do)["parts"]]
    assert memory(do)["events"][-1]["what"] == "released"

    do.shelving.release(asked_by(), event(key=""))
    assert memory(do)["parts"] == []
    assert stocked.submit([request_for()], "ann").wait().state == "done"


def test_a_part_that_is_gone_is_said_to_be(do):
    with pytest.warns(UserWarning, match="memory"):
        do.shelving.pin(asked_by(), event(key="gone", pinned=True))


def test_only_an_administrator_manages_the_models_of_a_shared_server(idle, monkeypatch):
    engine = idle(auth=["ann:pw", "bob:pw"], admin=["ann"])
    do = opened(engine)
    ann, bob = ("user:ann", "ann"), ("user:bob", "bob")
    assert memory(do, *ann)["manage"]
    assert not memory(do, *bob)["manage"]
    assert not any(file["manage"] for file in files(do, *bob).values())
    called = []
    for name in ("load", "release", "pin"):
        monkeypatch.setattr(engine, name, lambda *given: called.append(given))
    for press in (do.shelving.load, do.shelving.release, do.shelving.pin, do.shelving.note):
        with pytest.warns(UserWarning, match="Only an administrator"):
            press(asked_by(*bob), event(key="checkpoint/tiny", note="mine"))
    assert called == []
    assert files(do, *ann)["checkpoint/tiny"]["note"] == ""
    do.shelving.load(asked_by(*ann), event(key="checkpoint/tiny"))
    assert called == [("tiny",)]
    assert used(do, "lora/ink", prompt="x")  # anybody may use what there is


# The form follows the model


def followed(do: Actions, model: str, **values: object) -> dict:
    given = {"prompt": "", "refiner": "", "vae": "", **values}
    update = do.adapting.follow(model, *given.values())
    names = {part: name for name, part in do.adapting.layout.fields.items()}
    names |= {part: name for name, part in vars(do.adapting.parts).items()}
    return {names[part]: value for part, value in update.items()}


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> Actions:
    """A page on a tiny model of each of these families."""
    folder = tmp_path_factory.mktemp("families")
    for family in ("sdxl", "sdxl-refiner", "flux"):
        tiny.folder(family, folder / family)
    tiny_auto.folder("lumina2", folder / "lumina2")
    write_lora(folder / "ink.safetensors")
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), models_dir=[folder])
    return opened(Engine(settings, Library(settings.data_dir)))


def test_a_distilled_model_takes_no_negative_prompt_and_is_told_its_guidance(families):
    new = followed(families, "flux")
    assert not new["negative_prompt"]["interactive"]
    assert new["guidance_scale"]["label"] == "Guidance"
    usual = followed(families, "sdxl")
    assert usual["negative_prompt"]["interactive"]
    assert usual["guidance_scale"]["label"] == "CFG scale"


def test_sides_go_in_the_steps_of_the_model(families):
    for model, step in (("flux", 16), ("sdxl", 8)):
        new = followed(families, model)
        assert [new[side] for side in ("width", "height")] == [gr.update(step=step)] * 2
    values = {"task": "img2img", "model": "flux", "inpaint_area": "Whole picture"}
    values |= dict.fromkeys(form.OF_EXTENSION, 0)
    sized = families.source.resize({"width": 500, "height": 640}, 1.0, **values)
    assert [sized[families.adapting.layout.fields[side]] for side in ("width", "height")] == [496, 640]


def test_a_prompt_that_is_read_as_it_is_written_is_said_to_be(families):
    assert "as they are written" in followed(families, "lumina2")["note"]
    assert "text to image" in followed(families, "lumina2")["note"]
    assert not followed(families, "sdxl")["note"]


def test_schedulers_that_cannot_run_a_model_are_named(families):
    engine = families.adapting.engine
    misfits = engine.misfits("flux")
    assert misfits
    told = followed(families, "flux")["scheduler"]["info"]
    fits = [info.name for info in engine.schedulers() if info.name not in misfits]
    assert told in (f"Not for this model: {', '.join(misfits)}", f"For this model: {', '.join(fits)}")
    for name in (info.name for info in engine.schedulers()):
        info = next(info for info in engine.models() if info.name == "flux")
        request = GenerationRequest(model="flux", scheduler=name, width=info.width, height=info.height)
        if name in misfits:
            with pytest.raises(Unsupported, match="Scheduler: "):
                engine.check(request, "ann")
        else:
            engine.check(request, "ann")
    assert followed(families, "pocket-model")["scheduler"]["info"] is None


def test_what_a_model_cannot_do_is_said(families):
    assert (
        "<b>sdxl-refiner</b> does image to image and inpainting only"
        in followed(families, "sdxl-refiner")["note"]
    )
    assert followed(families, "sdxl")["note"] == ""


def test_loras_and_refiners_are_offered_where_they_fit(families):
    for_sd1, for_sdxl = followed(families, "pocket-model"), followed(families, "sdxl", refiner="sdxl-refiner")
    assert for_sd1["loras"]["choices"] == ["ink"]
    assert for_sd1["loras"]["visible"]
    assert not for_sdxl["loras"]["visible"]
    assert [name for _, name in for_sdxl["refiner"]["choices"]] == ["", "sdxl-refiner"]
    assert "value" not in for_sdxl["refiner"]  # it stays
    assert for_sdxl["refining"]["visible"]
    assert followed(families, "flux", refiner="sdxl-refiner")["refiner"]["value"] == ""
    assert not followed(families, "flux")["refining"]["visible"]


def test_a_vae_is_offered_used_and_taken_back_where_it_does_not_fit(do, families):
    assert files(do)["vae/soft"]["use"]
    assert used(do, "vae/soft")["vae"]["value"] == "soft"
    offered = followed(do, "pocket-model", vae="soft")["vae"]
    assert offered["choices"] == [("Automatic", ""), ("soft", "soft")]
    assert (offered.get("value"), offered["visible"]) == (None, True)  # it stays
    none = followed(families, "flux", vae="soft")["vae"]
    assert (none["value"], none["visible"]) == ("", False)


def test_every_field_of_a_request_has_a_control(do):
    assert set(do.making.layout.fields) == set(form.FIELDS)


# The hub


@pytest.fixture
def fetching(idle):
    engine = idle()
    with FakeHub({"ann/fox": {"fox.safetensors": b"x" * 5000, f"{EVIL}.bin": b"x"}}) as fake:
        do = opened(engine)
        yield SimpleNamespace(
            do=Fetching(engine, do.making.layout, Hub(engine.settings.models_dir, fake.address)), fake=fake
        )


def test_a_model_is_looked_up_shown_and_fetched_by_presses(fetching):
    do, parts = fetching.do, fetching.do.parts
    found = do.look(asked_by(), "ann/fox")
    shown = Shape(found[parts.files])
    assert "Becomes the file fox.safetensors in the models folder: 1 file, 5 KiB." in shown.text
    assert not [path for path, _ in fetching.fake.asked if "resolve" in path]
    last = {}
    for update in do.start(asked_by(), found[parts.offer], 0):
        last |= update
    assert Shape(last[parts.progress]).text.startswith("Here: ann/fox: fox.safetensors")
    assert not last[parts.cancel]["visible"]
    assert (do.hub.folders[0] / "fox.safetensors").stat().st_size == 5000


def test_a_download_that_was_cancelled_can_be_taken_up_at_once(fetching):
    do, parts, fake = fetching.do, fetching.do.parts, fetching.fake
    fake.repos["ann/fox"]["fox.safetensors"] = b"x" * 3_000_000
    fake.stall_at["fox.safetensors"] = 2_000_000
    offer = do.look(asked_by(), "ann/fox")[parts.offer]
    last = {}
    for update in do.start(asked_by(), offer, 0):
        last |= update
        if do.hub.download.state == "running" and do.hub.download.bytes:
            do.cancel(asked_by())
    assert last[parts.start_row]["visible"]
    assert "of it is here from an earlier try" in last[parts.files]
    fake.stall_at.clear()
    fake.go_on.set()
    for update in do.start(asked_by(), offer, 0):
        last |= update
    assert do.hub.download.state == "done"
    assert not last[parts.start_row]["visible"]


def test_nothing_is_asked_of_the_hub_by_opening_the_page(fetching):
    do = fetching.do
    do.show(asked_by())
    list(do.follow(asked_by()))
    do.choose(None, None)
    with pytest.warns(UserWarning, match="Look a model up first"):
        assert list(do.start(asked_by(), None, None)) == []
    assert fetching.fake.asked == []


def test_only_an_administrator_downloads(idle):
    engine = idle(auth=["ann:pw", "bob:pw"], admin=["ann"])
    do = opened(engine).fetching
    bob = asked_by("user:bob", "bob")
    assert not do.show(bob)[do.parts.hub_row]["visible"]
    assert "--admin" in do.show(bob)[do.parts.hub_note]
    for press in (
        lambda: do.look(bob, "ann/fox"),
        lambda: list(do.start(bob, None, 0)),
        lambda: do.cancel(bob),
    ):
        with pytest.warns(UserWarning, match="Only an administrator"):
            press()
    assert do.hub.download is None
    assert do.show(asked_by("user:ann", "ann"))[do.parts.hub_row]["visible"]


def test_nothing_that_a_file_or_the_hub_says_becomes_markup(fetching):
    offer = fetching.do.hub.look("ann/fox")
    html = show_models.hub_offer(fetching.do.hub, offer, offer.choices[0])
    assert "<img" not in html
    told = show_models.hub_progress(Download(EVIL, "failed", 1, 2, EVIL))
    assert told.count(escape(EVIL)) == 2
    assert "<img" not in told + show.model_limits(None)


@pytest.mark.parametrize(
    ("download", "words"),
    [
        (
            Download("x", "running", 2**20, 2**21, speed=2**20, news=1e12),
            "1 MiB of 2 MiB · 1 MiB/s · about 1 s left",
        ),
        (Download("x", "running", 2**20, 2**21, news=-1e12), "nothing has come for a while"),
        (Download("x", "done", 1, 1, "In the models folder."), "In the models folder."),
    ],
)
def test_progress_is_said_in_words(download, words):
    assert words in Shape(show_models.hub_progress(download)).text


def test_models_of_one_title_are_told_apart_by_name():
    infos = [
        SimpleNamespace(title=title, name=name) for title, name in (("Fox", "a"), ("Owl", "b"), ("Fox", "c"))
    ]
    assert layout.model_choices(infos) == [("Fox: a", "a"), ("Owl", "b"), ("Fox: c", "c")]
