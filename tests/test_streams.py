"""An event that a page sends while its stream ends is heard in the next one."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
import uvicorn

from tests.browser.conftest import free_port
from tests.test_server import whoami_app
from webui import streams

SESSION = "a-page"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[httpx.Client]:
    """A client of a real server."""
    port = free_port()
    app = whoami_app(tmp_path_factory.mktemp("streams"), port=port)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    up, begin = threading.Event(), server.startup

    async def startup(*given, **named):
        await begin(*given, **named)
        up.set()

    server.startup = startup
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert up.wait(30)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/gradio_api", timeout=30) as client:
        yield client
    server.should_exit = True
    thread.join(30)


def join(page: httpx.Client, session: str = SESSION) -> str:
    """Send an event; -> its id, once it is answered."""
    asked = {"data": [], "fn_index": 0, "session_hash": session}
    answer = page.post("/queue/join", json=asked)
    assert answer.status_code == 200
    return answer.json()["event_id"]


@contextmanager
def stream(page: httpx.Client) -> Iterator[Iterator[dict]]:
    """What the page is told, one by one; left at the end of the block."""
    with page.stream("GET", "/queue/data", params={"session_hash": SESSION}) as told:
        yield (json.loads(line.removeprefix("data: ")) for line in told.iter_lines() if line)


def heard(messages: Iterator[dict], event: str) -> None:
    """Read until this event is done, and the stream is over."""
    done = False
    for message in messages:
        done |= message["msg"] == "process_completed" and message["event_id"] == event
        if message["msg"] == "close_stream":
            break
    assert done


def test_an_event_sent_while_the_stream_ends_waits_until_the_page_has_left(page):
    first = join(page)
    with ThreadPoolExecutor(2) as threads:
        with stream(page) as messages:
            heard(messages, first)
            second = threads.submit(join, page)
            other = threads.submit(join, page, "another-page")
            assert other.result(10)  # nobody else waits
            with pytest.raises(TimeoutError):
                second.result(1)
        event = second.result(2)
    with stream(page) as messages:
        heard(messages, event)


def test_who_never_leaves_is_waited_for_a_while_only(page, monkeypatch):
    monkeypatch.setattr(streams, "PATIENCE", 0.2)
    first = join(page)
    with stream(page) as messages:
        heard(messages, first)
        assert join(page)
        assert list(messages) == []  # it ends
