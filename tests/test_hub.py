"""Downloads from the hub, against a small server that plays it; a real child process asks."""

import hashlib
import json
import logging
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hub import REVISION, FakeHub
from webui.catalogue.shelves import Catalogue
from webui.errors import HubError, InvalidField, NotAllowed, StorageError
from webui.hub import SPARE, UNDER_WAY, Download, Hub
from webui.hub_offer import HubFile, Wanted, offer, parse

BIG = bytes(range(256)) * 40_000  # ten megabytes: more than one chunk
SECRET = "hf_that_nobody_may_see"
INDEX = json.dumps(
    {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "image_encoder": [None, None],
    }
).encode()
PIPELINE = {
    "model_index.json": INDEX,
    "README.md": b"words",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": BIG,
    "unet/diffusion_pytorch_model.fp16.safetensors": BIG[: len(BIG) // 2],
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"vae",
    "vae/diffusion_pytorch_model.fp16.safetensors": b"va",
    "safety_checker/model.safetensors": b"not needed",
    "handler.py": b"a program",
    "one-file.safetensors": b"all in one",
    "one-file.ckpt": b"pickle",
}


@pytest.fixture
def fake():
    with FakeHub({"ann/fox": dict(PIPELINE), "ann/lora": {"fox-lora.safetensors": BIG}}) as hub:
        yield hub


@pytest.fixture
def models(tmp_path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def hub(fake, models) -> Hub:
    return Hub([models], fake.address)


def ended(hub: Hub) -> Download:
    assert hub.wait(60)
    assert hub.download is not None
    return hub.download


def fetched(hub: Hub, text: str, number: int = 0) -> Download:
    found = hub.look(text)
    hub.start(found, found.choices[number])
    return ended(hub)


def begun(hub: Hub) -> Download:
    """A download of which some has come."""
    for _ in range(1000):
        if hub.download and hub.download.bytes:
            return hub.download
        assert not hub.wait(0.02)
    raise AssertionError("nothing came")


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# What is typed


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ann/fox", Wanted("ann/fox")),
        (" ann/fox-1.5@v2 ", Wanted("ann/fox-1.5", "v2")),
        ("https://huggingface.co/ann/fox", Wanted("ann/fox")),
        ("https://huggingface.co/ann/fox/tree/main/unet", Wanted("ann/fox")),
        ("https://hf.co/ann/fox/blob/main/a/b.safetensors", Wanted("ann/fox", "main", "a/b.safetensors")),
        ("https://huggingface.co/ann/fox/resolve/v2/b%20c.safetensors?download=true",
         Wanted("ann/fox", "v2", "b c.safetensors")),
    ],
)  # fmt: skip
def test_a_name_or_an_address_says_what_is_wanted(text, wanted):
    assert parse(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "fox", "../fox", "ann/..", "ann/fox/unet", "https://example.org/ann/fox", "file:///etc/passwd",
     "https://huggingface.co/datasets/ann/fox", "https://huggingface.co", "<b>/fox", "ann/fox\n", "ann/é"],
)  # fmt: skip
def test_anything_else_is_refused_by_the_fields_name(text):
    if text == "ann/fox\n":  # what is pasted may end a line
        assert parse(text) == Wanted("ann/fox")
        return
    with pytest.raises(InvalidField, match="Model on the hub"):
        parse(text)


# What is listed


def test_what_would_be_fetched_is_listed_with_sizes_and_what_not_with_reasons(hub, models, fake):
    found = hub.look("ann/fox")
    whole, half, single = found.choices
    assert [choice.title for choice in found.choices] == [
        "The whole model",
        "The whole model, half precision",
        "The file one-file.safetensors",
    ]
    assert [file.path for file in whole.files] == [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert whole.bytes == len(INDEX) + 2 + len(BIG) + 2 + 3
    assert half.bytes == len(INDEX) + 2 + len(BIG) // 2 + 2 + 2
    assert single.files == (HubFile("one-file.safetensors", 10, hashlib.sha256(b"all in one").hexdigest(),
                                    "one-file.safetensors"),)  # fmt: skip
    why = dict(found.left_out)
    assert (
        why["one-file.ckpt"]
        == why["unet/diffusion_pytorch_model.bin"]
        == "a pickle, which may hold a program"
    )
    assert why["handler.py"] == "a program"
    assert why["README.md"] == why["safety_checker/model.safetensors"] == "not needed"
    assert not any(models.iterdir())
    assert not [path for path, _ in fake.asked if path.endswith(".safetensors")]


def test_a_file_that_leads_out_of_its_folder_is_not_even_listed(hub, fake):
    evil = ("../out.safetensors", "/etc/x.safetensors", "a/../../b.safetensors", "c:\\x.safetensors",
            ".hidden/x.safetensors", "a//b.safetensors")  # fmt: skip
    fake.repos["ann/evil"] = dict.fromkeys([*evil, "good.safetensors"], b"x")
    found = hub.look("ann/evil")
    assert [file.path for choice in found.choices for file in choice.files] == ["good.safetensors"]
    assert found.left_out == ()


def test_a_model_of_pickles_alone_is_refused_in_words(hub, fake):
    fake.repos["ann/old"] = {"model_index.json": INDEX, "unet/diffusion_pytorch_model.bin": b"x"}
    with pytest.raises(HubError, match="pickles only"):
        hub.look("ann/old")
    with pytest.raises(HubError, match="pickles only"):
        hub.look(f"{fake.address}/ann/fox/blob/main/one-file.ckpt")
    with pytest.raises(HubError, match="no file nothing"):
        hub.look(f"{fake.address}/ann/fox/blob/main/nothing.safetensors")


def test_a_part_of_which_there_is_no_safetensors_makes_the_whole_no_choice():
    listed = {
        "revision": REVISION,
        "index": INDEX.decode(),
        "files": [
            {"path": path, "bytes": 1, "sha256": ""}
            for path in ("model_index.json", "unet/model.safetensors", "vae/model.bin", "x.safetensors")
        ],
    }
    assert [choice.title for choice in offer(Wanted("ann/fox"), listed).choices][
        -1
    ] == "The file x.safetensors"
    assert not any("whole" in choice.title for choice in offer(Wanted("ann/fox"), listed).choices)


def test_a_vae_or_a_controlnet_is_a_folder_of_its_own(hub, fake):
    fake.repos["ann/vae"] = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"x"}
    (whole,) = hub.look("ann/vae").choices
    assert (whole.target, whole.folder, [file.path for file in whole.files]) == (
        "vae",
        True,
        ["config.json", "diffusion_pytorch_model.safetensors"],
    )


# What comes


def test_a_download_is_in_the_models_folder_byte_for_byte_and_nothing_else_is(hub, models):
    done = fetched(hub, "ann/fox")
    assert (done.state, done.bytes) == ("done", done.total)
    wanted = {path for path in PIPELINE if path.startswith(("unet", "vae", "model_index"))}
    wanted -= {path for path in wanted if path.endswith(".bin") or "fp16" in path}
    assert files(models) == {f"fox/{path}": PIPELINE[path] for path in wanted}


def test_half_precision_is_saved_by_the_names_that_diffusers_looks_for(hub, models):
    assert fetched(hub, "ann/fox", 1).state == "done"
    name = "unet/diffusion_pytorch_model"
    assert files(models)[f"fox-fp16/{name}.safetensors"] == PIPELINE[f"{name}.fp16.safetensors"]


def test_a_single_file_is_put_straight_into_the_models_folder(hub, models, fake):
    assert fetched(hub, f"{fake.address}/ann/fox/blob/main/one-file.safetensors").state == "done"
    assert files(models) == {"one-file.safetensors": b"all in one"}


def test_a_line_that_is_cut_is_taken_up_where_it_was_cut(hub, models, fake):
    fake.cut_at["fox-lora.safetensors"] = 4_000_000
    assert fetched(hub, "ann/lora").state == "done"
    first, second = fake.ranges("fox-lora.safetensors")
    assert first == ""
    assert 3_000_000 < int(second.removeprefix("bytes=").removesuffix("-")) <= 4_000_000
    assert files(models) == {"fox-lora.safetensors": BIG}


def test_what_was_cancelled_is_no_model_and_goes_on_the_next_time(hub, models, fake):
    name = "fox-lora.safetensors"
    fake.stall_at[name] = 6_000_000
    found = hub.look("ann/lora")
    hub.start(found, found.choices[0])
    begun(hub)
    with pytest.raises(NotAllowed, match="Another download is under way"):
        hub.start(found, found.choices[0])
    hub.cancel()
    assert ended(hub).state == "cancelled"
    assert [path.name for path in models.iterdir()] == [UNDER_WAY]
    assert Catalogue([models]).all() == []

    fake.go_on.set()
    fake.stall_at.clear()
    here = hub.here(found, found.choices[0])
    assert 0 < here <= 6_000_000
    hub.start(found, found.choices[0])
    assert ended(hub).state == "done"
    assert fake.ranges(name)[1] == f"bytes={here}-"
    assert files(models) == {name: BIG}


def test_progress_is_told_while_it_runs(hub, fake):
    fake.stall_at["fox-lora.safetensors"] = 6_000_000
    found = hub.look("ann/lora")
    hub.start(found, found.choices[0])
    download = begun(hub)
    assert (download.state, download.total) == ("running", len(BIG))
    assert 0 < download.bytes < len(BIG)
    assert download.speed > 0
    assert not download.slow
    assert replace(download, news=download.news - 1000).slow
    hub.cancel()
    ended(hub)


def test_what_came_damaged_is_not_kept_and_is_no_model(hub, models, fake):
    fake.lies["fox-lora.safetensors"] = "ab" * 32
    failed = fetched(hub, "ann/lora")
    assert failed.state == "failed"
    assert "came damaged" in failed.message
    assert files(models) == {}


def test_the_disk_is_checked_first(fake, models):
    hub = Hub([models], fake.address, free=lambda path: SPARE + len(BIG) - 1)
    found = hub.look("ann/lora")
    asked = len(fake.asked)
    with pytest.raises(StorageError, match="no room on the disk"):
        hub.start(found, found.choices[0])
    assert len(fake.asked) == asked
    assert hub.download is None
    assert not any(models.iterdir())


def test_nothing_that_is_there_is_written_over(hub, models):
    (models / "fox-lora.safetensors").write_bytes(b"mine")
    found = hub.look("ann/lora")
    with pytest.raises(NotAllowed, match=r"named fox-lora\.safetensors"):
        hub.start(found, found.choices[0])
    assert files(models) == {"fox-lora.safetensors": b"mine"}


def test_without_a_folder_to_write_into_it_says_so(fake, tmp_path):
    hub = Hub([tmp_path / "nowhere"], fake.address)
    found = hub.look("ann/lora")
    with pytest.raises(StorageError, match="None of the models folders"):
        hub.start(found, found.choices[0])


# What the hub answers instead


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {"X-Error-Code": "RepoNotFound"}, "no model ann/fox, or it needs a token: set HF_TOKEN"),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            "does not accept the token",
        ),
        (403, {"X-Error-Code": "GatedRepo"}, "has terms to agree to first"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "no such version or file"),
        (429, {}, "asks for patience"),
        (503, {}, r"a fault of its own \(503\)"),
    ],
)
def test_a_refusal_is_told_in_plain_words(hub, fake, status, headers, words):
    fake.refused["/api/models/ann/fox/revision/main"] = (status, headers)
    with pytest.raises(HubError, match=words) as caught:
        hub.look("ann/fox")
    assert fake.address not in str(caught.value)


def test_a_refusal_in_the_midst_of_it_is_too(hub, fake):
    found = hub.look("ann/lora")
    fake.refused[f"/ann/lora/resolve/{REVISION}/fox-lora.safetensors"] = (
        404,
        {"X-Error-Code": "EntryNotFound"},
    )
    hub.start(found, found.choices[0])
    assert ended(hub).state == "failed"
    assert "no such version or file" in ended(hub).message


def test_offline_is_told_in_plain_words(models):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(HubError, match="cannot be reached"):
        Hub([models], nobody).look("ann/fox")


# The token, and who is online


def test_the_token_of_the_environment_opens_what_is_private_and_is_never_shown(
    fake, models, monkeypatch, caplog, capfd
):
    caplog.set_level(logging.DEBUG)
    fake.token = SECRET
    with pytest.raises(HubError, match="set HF_TOKEN"):
        Hub([models], fake.address).look("ann/lora")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match="the token in HF_TOKEN may not read it") as caught:
        Hub([models], fake.address).look("ann/lora")
    assert "hf_wrong" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    hub = Hub([models], fake.address)
    assert fetched(hub, "ann/lora").state == "done"
    assert any(SECRET in headers["authorization"] for _, headers in fake.asked if "authorization" in headers)
    out, err = capfd.readouterr()
    assert SECRET not in caplog.text + out + err + repr(hub.download) + repr(vars(hub))


def test_a_token_of_another_program_is_not_used(hub, fake, monkeypatch, tmp_path):
    (tmp_path / "token").write_text(SECRET)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    hub.look("ann/lora")
    assert not [headers for _, headers in fake.asked if "authorization" in headers]


def test_this_process_stays_offline_while_the_child_asks(hub, fake, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda *a: made.append(a) or connect(*a))
    assert hub.look("ann/lora").choices
    assert fake.asked
    assert made == []
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_the_child_ends_with_its_parent(hub, fake, models):
    fake.stall_at["fox-lora.safetensors"] = 10
    (choice,) = hub.look("ann/lora").choices
    order = {"do": "fetch", "repo": "ann/lora", "revision": REVISION, "folder": str(models)}
    with hub._asked({**order, "files": [vars(file) for file in choice.files]}) as child:
        assert fake.stalled.wait(60)
        assert child.poll() is None
        child.stdin.close()  # as the end of the parent does
        assert child.wait(20) == 1
