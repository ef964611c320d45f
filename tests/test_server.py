"""The whole application, over its real routes: who gets in, what is said, what is served."""

import base64
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from webui import server
from webui.engine import Engine
from webui.errors import QueueFull, SettingsError
from webui.library import Library
from webui.request import invalid
from webui.settings import Settings
from webui.ui import page

HERE = "http://127.0.0.1:7860"
ACCOUNT = ("ada", "correct horse")
OPEN_TO_ALL = {"/login"}


def build(data_dir: Path, **options: object) -> FastAPI:
    """The application as ``app.py`` builds it; the engine is not started, as no picture is made here."""
    settings = Settings(data_dir=data_dir, **options)
    server.silence(settings)
    engine = Engine(settings, Library(settings.data_dir, settings.filename_pattern))
    demo, mounting = page.build(engine, settings)
    return server.build_app(settings, engine, demo, mounting)


@pytest.fixture(scope="module")
def open_app(tmp_path_factory) -> FastAPI:
    return build(tmp_path_factory.mktemp("open"))


@pytest.fixture(scope="module")
def closed_app(tmp_path_factory) -> FastAPI:
    return build(tmp_path_factory.mktemp("closed"), auth=[":".join(ACCOUNT)])


def client(app: FastAPI, **options: object) -> TestClient:
    return TestClient(app, base_url=HERE, follow_redirects=False, raise_server_exceptions=False, **options)


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path) of every route there is, mounted ones too."""

    def walk(found: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
        for route in found:
            if isinstance(route, Mount):
                yield "GET", f"{prefix}{route.path}/"
                yield from walk(route.routes or [], prefix + route.path)
            elif isinstance(route, WebSocketRoute):
                yield "WEBSOCKET", prefix + route.path
            elif isinstance(route, Route):
                yield from ((method, prefix + route.path) for method in route.methods or ())
            elif inner := getattr(route, "original_router", None):  # FastAPI's wrapper of an included router
                yield from walk(inner.routes, prefix)

    return walk(app.routes)


def filled(path: str) -> str:
    """A path with something in place of its parameters."""
    import re

    return re.sub(r"\{[^}]*\}", "x", path)


def test_the_walk_finds_the_routes_that_matter(closed_app):
    paths = {path for _, path in routes(closed_app)}
    assert len(paths) > 20
    wanted = ("/healthz", "/config", "/upload", "/queue/join", "/queue/data", "/file=", "/run/")
    for part in wanted:
        assert any(part in path for path in paths), part


def test_without_signing_in_no_route_answers_but_the_login(closed_app):
    stranger = client(closed_app)
    for method, path in routes(closed_app):
        if path in OPEN_TO_ALL:
            continue
        if method == "WEBSOCKET":
            with pytest.raises(WebSocketDisconnect), stranger.websocket_connect(filled(path)):
                pass
            continue
        answer = stranger.request(method, filled(path))
        assert answer.status_code == 401, (method, path)
        assert "sign in" in answer.text or method == "HEAD", (method, path)


def test_a_browser_is_shown_the_login_page_and_gets_in_with_the_right_password(closed_app):
    browser = client(closed_app)
    html = {"accept": "text/html"}
    turned_away = browser.get("/", headers=html)
    assert (turned_away.status_code, turned_away.headers["location"]) == (303, "/login")
    assert "password" in browser.get("/login", headers=html).text
    name, password = ACCOUNT
    wrong = browser.post("/login", data={"username": name, "password": "guess"}, headers=html)
    assert wrong.status_code == 401
    right = browser.post("/login", data={"username": name, "password": password}, headers=html)
    assert right.headers["location"] == "/"
    assert browser.get("/healthz").json()["ready"] is False
    assert "Diffusion Studio" in browser.get("/", headers=html).text
    browser.post("/logout", headers=html)
    assert browser.get("/healthz").status_code == 401


def test_a_script_gets_in_with_http_basic(closed_app):
    script = client(closed_app)
    credentials = base64.b64encode(":".join(ACCOUNT).encode()).decode()
    assert script.get("/healthz", headers={"authorization": f"Basic {credentials}"}).status_code == 200
    wrong = base64.b64encode(b"ada:wrong").decode()
    assert script.get("/healthz", headers={"authorization": f"Basic {wrong}"}).status_code == 401


def test_guessing_passwords_is_slowed_down(tmp_path):
    guesser = client(build(tmp_path, auth=["eve:a secret of eve"]))
    answers = [
        guesser.post("/login", data={"username": "eve", "password": str(n)}).status_code for n in range(30)
    ]
    assert answers[0] == 401
    assert 429 in answers


def test_no_secret_is_in_the_page_or_its_configuration(closed_app):
    name, password = ACCOUNT
    inside = client(closed_app)
    inside.post("/login", data={"username": name, "password": password})
    for path in ("/", "/config", "/healthz", "/gradio_api/info"):
        answer = inside.get(path)
        assert answer.status_code == 200, path
        assert password not in answer.text
        assert str(Path.home()) + "/" not in answer.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.1.5", ""])
def test_a_foreign_host_name_is_refused(open_app, host):
    answer = client(open_app).get("/", headers={"host": host})
    assert answer.status_code == 421
    assert "--allow-host" in answer.text


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join"])
def test_a_page_of_another_site_may_change_nothing(open_app, path):
    visitor = client(open_app)
    answer = visitor.post(path, headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert visitor.post(path, headers={"origin": HERE}).status_code != 403


def test_a_foreign_origin_is_never_told_it_may_read(open_app):
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for method in ("OPTIONS", "GET"):
        answer = client(open_app).request(method, "/config", headers=headers)
        assert "access-control-allow-origin" not in answer.headers


def test_the_endpoint_that_passes_the_queue_by_is_closed(open_app):
    answer = client(open_app).post("/gradio_api/run/txt2img", json={"data": []})
    assert answer.status_code in (401, 403, 404)


def test_pictures_and_other_files_cannot_be_had_by_their_names(open_app, tmp_path_factory):
    person = client(open_app)
    person.get("/")
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.txt"
    secret.write_text("secret")
    for path in (secret, Path("requirements.txt").resolve(), "/etc/hostname", "C:\\secret", "%2e%2e/secret"):
        for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/"):
            answer = person.get(f"{prefix}{path}")
            assert answer.status_code in (403, 404), (prefix, path)
            assert "secret" not in answer.text


def test_a_body_beyond_the_limit_is_refused_at_once(open_app):
    answer = client(open_app).post("/gradio_api/upload", headers={"content-length": str(10 * 2**30)})
    assert answer.status_code == 413


def test_a_browser_keeps_one_unguessable_name_for_its_jobs(open_app):
    first, second = client(open_app), client(open_app)
    cookie = first.get("/healthz").headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "set-cookie" not in first.get("/healthz").headers
    assert second.get("/healthz").headers["set-cookie"].split(";")[0] != cookie.split(";")[0]


def test_the_page_may_load_nothing_from_another_host(open_app):
    policy = client(open_app).get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http:" not in policy
    assert "https:" not in policy


def test_our_errors_are_said_in_words_and_others_not_at_all(tmp_path):
    app = build(tmp_path)
    secret = secrets.token_hex(8)

    def fail(error: Exception):
        def route():
            raise error

        return route

    errors = {
        "full": QueueFull("The queue is full."),
        "field": invalid("width", "must be at least 64"),
        "bug": ValueError(f"/home/{secret}/file"),
    }
    for name, error in errors.items():
        app.add_api_route(f"/fail/{name}", fail(error))
        app.router.routes.insert(0, app.router.routes.pop())  # before the page, which takes every path
    person = client(app)
    full, field, bug = (person.get(f"/fail/{name}") for name in errors)
    assert (full.status_code, full.json()["error"]) == (429, "The queue is full.")
    assert (field.status_code, field.json()["field"]) == (422, "width")
    assert field.json()["error"] == "Width: must be at least 64"
    assert bug.status_code == 500
    assert secret not in bug.text


def test_a_port_in_use_is_said_plainly():
    taken = server.listen(Settings(port=17860))
    try:
        with pytest.raises(SettingsError, match=r"--port: 17860 is in use"):
            server.listen(Settings(port=17860))
    finally:
        taken.close()


def test_without_a_port_of_ones_own_the_next_free_one_is_taken():
    first = server.listen(Settings())
    second = server.listen(Settings())
    try:
        assert first.getsockname()[1] < second.getsockname()[1]
    finally:
        first.close()
        second.close()


def test_an_address_of_another_computer_is_refused():
    with pytest.raises(SettingsError, match="--host"):
        server.listen(Settings(host="203.0.113.7", open=True))
