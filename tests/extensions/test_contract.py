"""What every plugin must keep to. Check yours:

pytest tests/extensions/test_contract.py --plugin path/to/your-plugin
"""

import subprocess
import sys
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from tests.conftest import ROOT, pixels, request_for
from webui import infotext
from webui.errors import InvalidField
from webui.grid.axes import kinds
from webui.hookspecs import Setting, Tab
from webui.plugins.host import Host
from webui.plugins.loading import TOUCHING

BUNDLED = sorted(path.parent for path in (ROOT / "extensions").glob("*/plugin.toml"))
SECONDS = 1.0  # that a plugin may take to load


def pytest_generate_tests(metafunc):
    given = metafunc.config.getoption("--plugin")
    folders = [Path(given).resolve()] if given else BUNDLED
    metafunc.parametrize("folder", folders, ids=[folder.name for folder in folders], scope="module")


@pytest.fixture(scope="module")
def plugged(folder, make_engine):
    """An engine with this plugin alone."""
    engine = make_engine(plugins=[folder])
    assert engine.submit([request_for()], "contract").wait().state == "done"
    return engine


@pytest.fixture(scope="module")
def plugin(plugged):
    (plugin,) = plugged.plugins.plugins
    return plugin


def made(engine, **changes) -> np.ndarray:
    view = engine.submit([request_for(**changes)], "contract").wait()
    assert view.state == "done", view.error
    return pixels(view.saved[0].path)


def others(setting: Setting) -> list:
    """Values that are not neutral: the other way, both ends, each choice."""
    match setting.default:
        case bool():
            return [not setting.default]
        case str():
            return [choice for choice in setting.choices if choice != setting.default]
    ends = (setting.minimum, setting.maximum)
    return [type(setting.default)(end) for end in ends if end is not None and end != setting.default]


def test_it_loads_and_says_what_it_does(plugin):
    assert plugin.state == "On", plugin.trace
    assert plugin.hooks
    assert plugin.load_seconds < SECONDS
    assert plugin.manifest.description.endswith(".")


def test_it_loads_without_torch(folder, tmp_path):
    """The page is there before torch is: import it inside the hooks about pictures."""
    code = (
        "import sys; from pathlib import Path; from webui.plugins.host import Host;"
        f"host = Host(Path({str(tmp_path)!r}), [Path({str(folder)!r})]);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_its_settings_are_labelled_and_have_ends(plugin):
    for setting in plugin.settings:
        assert setting.label
        assert not setting.label.endswith(".")
        if isinstance(setting.default, int | float) and not isinstance(setting.default, bool):
            assert setting.minimum is not None, f"{setting.name}: a number needs a minimum"
            assert setting.maximum is not None, f"{setting.name}: a number needs a maximum"


def test_at_neutral_settings_a_picture_is_as_without_it(plugged, plugin, engine):
    if not plugin.settings and set(plugin.hooks) & set(TOUCHING):
        pytest.skip("it has no settings, and so takes part in every picture")
    assert np.array_equal(made(plugged, seed=5), made(engine, seed=5))


def test_every_value_makes_a_picture_or_is_refused_by_name(plugged, plugin):
    plain = made(plugged, seed=6)
    for setting in plugin.settings:
        for value in others(setting):
            name = f"{plugin.id}.{setting.name}"
            try:
                view = plugged.submit([request_for(seed=6, plugins={name: value})], "contract").wait()
            except InvalidField:
                continue
            assert view.state == "done" or isinstance(view.error, InvalidField), (
                f"{name} {value}: {view.error}"
            )
            assert not plugin.trace, f"{name} = {value}: {plugin.trace}"
    assert np.array_equal(made(plugged, seed=6), plain), "it changed the pictures after it"


def test_the_same_request_gives_the_same_picture(plugged, plugin):
    if not plugin.manifest.deterministic:
        pytest.skip("it says that it is not deterministic")
    for setting in plugin.settings:
        for value in others(setting)[-1:]:
            chosen = {"seed": 7, "plugins": {f"{plugin.id}.{setting.name}": value}}
            try:
                first = made(plugged, **chosen)
            except (InvalidField, AssertionError):
                continue
            assert np.array_equal(first, made(plugged, **chosen)), setting.name


def test_its_settings_come_back_from_a_picture(plugged, plugin):
    for setting in plugin.settings:
        for value in others(setting)[:1]:
            try:
                view = plugged.submit(
                    [request_for(plugins={f"{plugin.id}.{setting.name}": value})], "contract"
                ).wait()
            except InvalidField:
                continue
            if view.saved:
                saved = view.saved[0]
                assert infotext.read(saved.infotext).request().plugins == saved.request.plugins
                assert f"{plugin.id} {plugin.manifest.version}" in saved.infotext.replace('\\"', '"')


def test_what_it_offers_works(plugged, plugin, tmp_path):
    host: Host = plugged.plugins
    for _, tab in host.ask_all("tab", data_dir=tmp_path):
        assert isinstance(tab, Tab)
        with gr.Blocks():
            tab.build()
    for _, router in host.ask_all("router", data_dir=tmp_path):
        FastAPI().include_router(router, prefix=f"/ext/{plugin.id}")
    for _, axes in host.ask_all("axes", data_dir=tmp_path):
        assert set(kinds(axes)) > set(kinds())
    for name, (_, upscaler) in host.upscalers.items():
        assert upscaler.enlarge(Image.new("RGB", (40, 24)), (96, 56)).size == (96, 56), name
    for name in host.schedulers:
        assert made(plugged, scheduler=name).std() > 0
    assert plugin.state == "On", plugin.trace
