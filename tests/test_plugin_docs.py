"""The plugins of docs/plugins.md, written down as they stand there, work."""

import re
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.conftest import ROOT, pixels, request_for
from webui.grid.axes import kinds
from webui.plugins.loading import HOOKS

TEXT = (ROOT / "docs" / "plugins.md").read_text("utf-8")


def write(folder: Path) -> None:
    for path, body in re.findall(r"```(?:toml|python)\n# (\S+/plugin\.\w+)\n(.*?)```", TEXT, re.DOTALL):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(body, "utf-8")


@pytest.fixture(scope="module")
def documented(make_engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("documented")
    write(folder)
    engine = make_engine(plugins=[folder])
    assert [(plugin.id, plugin.state) for plugin in engine.plugins.plugins] == [
        ("everything", "On"),
        ("warmth", "On"),
    ]
    return engine


def made(engine, **changes) -> list[np.ndarray]:
    view = engine.submit([request_for(seed=31, **changes)], "docs").wait()
    assert view.state == "done", view.error
    return [pixels(saved.path) for saved in view.saved]


def test_every_hook_is_in_the_table_and_in_the_plugin_that_has_them_all(documented):
    table = set(re.findall(r"`(\w+)`", TEXT.split("## The hooks")[1].split("```")[0]))
    assert set(HOOKS) <= table
    assert set(documented.plugins["everything"].hooks) == set(HOOKS)


def test_warmth_warms(documented, engine):
    (plain,) = made(engine)
    (neutral,) = made(documented)
    assert np.array_equal(plain, neutral)
    (warm,) = made(documented, plugins={"warmth.amount": 0.5})
    assert warm[..., 0].mean() > plain[..., 0].mean()
    assert warm[..., 2].mean() < plain[..., 2].mean()
    assert np.array_equal(warm[..., 1], plain[..., 1])


def test_everything_takes_part_in_everything(documented):
    (plain,) = made(documented)
    (strong,) = made(documented, plugins={"everything.strength": 1.0})
    assert not np.array_equal(strong, plain)
    picture, mirrored = made(documented, plugins={"everything.mirror": True})
    assert np.array_equal(mirrored, picture[:, ::-1])
    view = documented.submit(
        [request_for(prompt="a %% fox", plugins={"everything.mood": "sad"})], "docs"
    ).wait()
    assert view.saved[0].request.prompt == "a green fox, sad"
    assert documented.plugins["everything"].trace == ""


def test_what_everything_offers_is_there(documented, tmp_path):
    host = documented.plugins
    made(documented, scheduler="Everything's Euler")
    made(documented, hires_scale=2.0, hires_upscaler="Everything's blocks")
    ((plugin, axes),) = host.ask_all("axes")
    assert plugin.id == "everything"
    assert "everything-seed" in kinds(axes)
    ((_, tab),) = host.ask_all("tab", data_dir=tmp_path)
    with gr.Blocks():
        tab.build()
    ((_, router),) = host.ask_all("router", data_dir=tmp_path)
    app = FastAPI()
    app.include_router(router, prefix="/ext/everything")
    heard = TestClient(app).get("/ext/everything/heard").json()
    assert "pocket-model" in heard
    assert [name for name in heard if name.endswith(".png")]
    assert host.folders == [documented.settings.data_dir / "more-models"]
