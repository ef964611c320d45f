"""Tiny real parts that many tests share: the embedded model in float32, and engines that run it."""

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from webui.engine import Engine
from webui.library import Library
from webui.plugins.host import Host
from webui.request import GenerationRequest
from webui.settings import Settings

ROOT = Path(__file__).parent.parent
POCKET = ROOT / "models" / "pocket-model"
REGISTER = nn.Module.register_parameter
os.environ["HF_HUB_CACHE"] = os.devnull  # what this machine has there is no part of the tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--plugin", metavar="FOLDER", help="check this plugin against the contract, and no other"
    )


def request_for(**changes: object) -> GenerationRequest:
    """A quick picture: 64x64, four steps."""
    quick = {"prompt": "a fox", "seed": 1, "width": 64, "height": 64, "num_inference_steps": 4}
    return GenerationRequest(**{**quick, "guidance_scale": 4.0, **changes})


def pixels(picture: Image.Image | Path) -> np.ndarray:
    """(height, width, 3) uint8."""
    image = picture if isinstance(picture, Image.Image) else Image.open(picture)
    return np.asarray(image.convert("RGB"))


def _import_once() -> None:
    """diffusers and transformers cannot be imported by two engines' threads at once."""
    from webui.diffusion import devices

    devices.import_diffusers(devices.choose(devices.Machine(), "cpu", "float32", "sdpa"))


class Engines:
    """Starts engines on the embedded model, float32 on the CPU, and closes them.

    Each is prepared before it is handed out: while a model loads, no other thread may make one (diffusers,
    transformers and peft patch torch.nn.Module meanwhile, and two at once leave it patched for good).
    """

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self.folders = folders
        self.open: list[Engine] = []
        self.lasting: list[Engine] = []

    def __call__(self, plugins: Sequence[Path] = (), lasting: bool = False, **changes: object) -> Engine:
        """``plugins``: folders to load plugins from; ``lasting``: beyond the module that asks for it."""
        options = {
            "data_dir": self.folders.mktemp("data"),
            "device": "cpu",
            "dtype": "float32",
            "models_dir": [ROOT / "models"],
            **changes,
        }
        settings = Settings(**options)
        _import_once()
        host = Host(settings.data_dir, plugins)
        engine = Engine(settings, Library(settings.data_dir, settings.filename_pattern), host)
        engine.start()
        (self.lasting if lasting else self.open).append(engine)
        assert engine.prepared(timeout=120)
        return engine

    def close(self) -> None:
        """Those that do not last. Each collects garbage: by now slow, but for what is frozen meanwhile."""
        gc.freeze()
        while self.open:
            self.open.pop().close()
        gc.unfreeze()


@pytest.fixture(scope="session")
def make_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Engines as tests want them, closed after the module that made them: they hold their models."""
    engines = Engines(tmp_path_factory)
    yield engines
    engines.open += engines.lasting
    engines.close()


@pytest.fixture(scope="module", autouse=True)
def _closed_with_the_module(make_engine: Engines) -> Iterator[None]:
    yield
    make_engine.close()


@pytest.fixture(autouse=True)
def _one_load_at_a_time() -> Iterator[None]:
    """Two at once would leave every later model without weights: the test that had them fails, not those."""
    yield
    loading = sys.modules.get("webui.diffusion.loading")
    with loading.LOADING if loading else nullcontext():
        left, nn.Module.register_parameter = nn.Module.register_parameter, REGISTER
    assert left is REGISTER


@pytest.fixture(scope="session")
def engine(make_engine: Callable[..., Engine]) -> Engine:
    """One that is ready."""
    engine = make_engine(lasting=True)
    assert engine.submit([request_for()], "fixture").wait().state == "done"
    return engine


@pytest.fixture(scope="module")
def page(engine):
    """What the page does, over an engine that is ready."""
    import gradio as gr

    from webui.ui import layout
    from webui.ui.actions import Actions

    with gr.Blocks():
        parts = layout.build(engine.models(), engine.schedulers())
    return Actions(engine, parts)


@pytest.fixture(scope="session")
def bare(engine: Engine):
    """diffusers' own pipeline on the same files, called plainly: what we are compared with.

    Loaded after the engine is ready: diffusers and transformers cannot load in two threads at once.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        POCKET, dtype=torch.float32, local_files_only=True, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
