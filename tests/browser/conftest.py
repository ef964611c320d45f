"""A real server on the embedded model, and a headless Chromium that looks at it."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="session")
def address(data_dir: Path) -> Iterator[str]:
    """Of a running ``python app.py``. A closed page's place in the queue is given up after half a second."""
    port = free_port()
    server = start_server(data_dir, port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        assert server.wait(20) == 0
        server.stdout.close()
    assert not (data_dir / "server.log").read_text()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def start_server(data_dir: Path, port: int, *more: str) -> subprocess.Popen[str]:
    """``python app.py`` on this port, with ``more`` flags, once it answers."""
    flags = f"--port {port} --dtype float32 --device cpu --patience 0.5 --log-level error".split()
    log = data_dir / "server.log"
    with log.open("a") as out:
        command = [sys.executable, "app.py", *flags, "--data-dir", str(data_dir), *more]
        server = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=out, text=True, env={**os.environ, **THREADS}
        )
    assert server.stdout is not None
    assert "http" in server.stdout.readline(), log.read_text()  # it says where
    return server


THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(scope="module")
def browser():
    """Playwright keeps an event loop running in this thread: it is ended before other tests begin."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium here, and CI must not go without")
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=20_000)  # ms; on a slow machine a page takes longer than the 5 s of Playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address) -> Iterator[Callable]:
    """Open the page as somebody new: each call is another person. Nothing may be asked of another host."""
    contexts, asked = [], []

    def open_page(**options):
        context = browser.new_context(**{"viewport": {"width": 1366, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_text("Ready on cpu").wait_for(timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
