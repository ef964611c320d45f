"""The whole application, over its real routes: who gets in, what is said, what is served."""

import asyncio
import base64
import re
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tests.test_plugins import write
from webui import server, streams
from webui.engine import Engine
from webui.errors import QueueFull, SettingsError
from webui.library import Library
from webui.plugins.host import Host
from webui.request import invalid
from webui.settings import Settings
from webui.ui import page

ROUTES = """
import threading
opened = threading.Event()

@hookimpl
def router():
    from fastapi import APIRouter, Request, WebSocket
    from webui.errors import NotFound

    api = APIRouter()

    @api.get("/who")
    def who(request: Request) -> str: return request.state.owner
    @api.post("/change")
    async def change() -> str: return "changed"
    @api.get("/items/{name}")
    def item(name: str): raise NotFound(f"There is no {name}.")
    @api.get("/bug")
    def bug(): raise ValueError("/home/ann/secret")
    @api.get("/exit")
    def leave(): raise SystemExit
    @api.get("/blocked")
    def blocked() -> bool: return opened.wait(60)
    @api.websocket("/socket")
    async def socket(socket: WebSocket):
        await socket.accept()
        await socket.close()
    return api
"""
HERE = "http://127.0.0.1:7860"
LOCAL = {"host": "127.0.0.1:7860"}  # a test client says something else of websockets
ACCOUNT = ("ada", "correct horse")
OPEN_TO_ALL = {"/login"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """A test client never leaves a stream before it has ended."""
    monkeypatch.setattr(streams, "PATIENCE", 0.01)


def build(data_dir: Path, host: Host | None = None, **options: object) -> FastAPI:
    """The application as ``app.py`` builds it; the engine is not started, as no picture is made here."""
    settings = Settings(data_dir=data_dir, **options)
    server.silence(settings)
    engine = Engine(settings, Library(settings.data_dir, settings.filename_pattern), host)
    demo, mounting = page.build(engine, settings)
    return server.build_app(settings, engine, demo, mounting)


def plugged(data_dir: Path) -> Host:
    """A plugin with routes."""
    write(data_dir / "plugins" / "toy", ROUTES)
    return Host(data_dir, [data_dir / "plugins"])


@pytest.fixture(scope="module")
def open_app(tmp_path_factory) -> FastAPI:
    folder = tmp_path_factory.mktemp("open")
    return build(folder, plugged(folder))


@pytest.fixture(scope="module")
def closed_app(tmp_path_factory) -> FastAPI:
    folder = tmp_path_factory.mktemp("closed")
    return build(folder, plugged(folder), auth=[":".join(ACCOUNT)])


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
    return re.sub(r"\{[^}]*\}", "x", path)


def test_the_walk_finds_the_routes_that_matter(closed_app):
    paths = {path for _, path in routes(closed_app)}
    assert len(paths) > 20
    wanted = ("/healthz", "/config", "/upload", "/queue/join", "/queue/data", "/file=", "/run/")
    of_plugins = ("/ext/toy/who", "/ext/toy/items/{name}", "/ext/toy/socket")
    for part in (*wanted, *of_plugins):
        assert any(part in path for path in paths), part


def test_without_signing_in_no_route_answers_but_the_login(closed_app):
    stranger = client(closed_app)
    for method, path in routes(closed_app):
        if path in OPEN_TO_ALL:
            continue
        if method == "WEBSOCKET":
            with pytest.raises(WebSocketDisconnect), stranger.websocket_connect(filled(path), headers=LOCAL):
                pass
            continue
        answer = stranger.request(method, filled(path))
        assert answer.status_code == 401, (method, path)
        assert "sign in" in answer.text or method == "HEAD", (method, path)


async def status(app: FastAPI, method: str, path: str, headers: dict[str, str]) -> int:
    """How a route begins to answer an empty request; streams that never end are left."""
    raw = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": raw, "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 7860)}
    began: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def receive():
        if not receive.read:
            receive.read = True
            return {"type": "http.request"}
        return await asyncio.Future()  # the client stays

    receive.read = False

    async def send(message):
        if message["type"] == "http.response.start":
            began.set_result(message["status"])

    task = asyncio.create_task(app(scope, receive, send))
    try:
        return await asyncio.wait_for(began, 30)
    finally:
        task.cancel()


def test_signed_in_every_route_answers_as_if_there_were_no_login(open_app, closed_app):
    credentials = base64.b64encode(":".join(ACCOUNT).encode()).decode()
    ours = {(method, filled(path)) for method, path in routes(closed_app) if path != "/login"}
    ours = sorted(route for route in ours if "WEBSOCKET" not in route and "blocked" not in route[1])

    async def compare() -> dict[tuple[str, str], tuple[int, int]]:
        known = {"authorization": f"Basic {credentials}"}
        return {
            route: (await status(closed_app, *route, known), await status(open_app, *route, {}))
            for route in ours
        }

    for route, (signed_in, without_login) in asyncio.run(compare()).items():
        assert signed_in == without_login, route


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
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for method in ("OPTIONS", "GET"):
        answer = client(open_app).request(method, "/config", headers=asked)
        assert "access-control-allow-origin" not in answer.headers


def test_nor_is_it_where_gradio_alone_would_tell_it(tmp_path):
    """Gradio allows every origin where the host is not a loopback name."""
    answer = client(build(tmp_path, listen=True, open=True)).get(
        "/config", headers={"host": "192.168.1.5:7860", "origin": "https://evil.example"}
    )
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_the_endpoint_that_passes_the_queue_by_is_closed(open_app):
    answer = client(open_app).post("/gradio_api/run/generate", json={"data": []})
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


def test_a_body_that_says_no_length_is_refused_once_it_is_beyond_the_limit(open_app):
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        while taken < 2 * server.MAX_BODY:
            taken += 2**20
            yield bytes(2**20)

    answer = client(open_app).post("/gradio_api/upload", content=endless(), headers=boundary)
    assert answer.status_code == 413


def call(person: TestClient, function: int, *data: object) -> str:
    """Call a function of the page through Gradio's queue; everything that is sent back."""
    session = secrets.token_hex(5)
    body = {"fn_index": function, "data": data, "session_hash": session}
    assert person.post("/gradio_api/queue/join", json=body).status_code == 200
    return person.get("/gradio_api/queue/data", params={"session_hash": session}).text


ASKED: list[object] = []  # addresses that something here wanted to look up


def listen_in() -> None:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("socket.getaddrinfo", "socket.gethostbyname"):
            ASKED.append(arguments[0])

    sys.addaudithook(hook)


@pytest.mark.parametrize("path", [__file__, "https://pictures.example/fox.png"])
def test_a_page_cannot_pass_a_file_of_the_server_or_an_address_off_as_an_upload(tmp_path, path):
    app = build(tmp_path)
    listen_in()
    ASKED.clear()
    with client(app) as person:
        config = person.get("/config").json()
        files = {part["id"] for part in config["components"] if part["type"] in ("file", "image")}
        taking = [f["id"] for f in config["dependencies"] if f["inputs"] and files >= set(f["inputs"])]
        assert taking
        for function in taking:
            said = call(person, function, {"path": path, "meta": {"_type": "gradio.FileData"}})
            assert '"success":false' in said
            assert '"error":null' in said  # nothing is told of how it went wrong
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert ASKED == []


def whoami_app(data_dir: Path, **options: object) -> FastAPI:
    """A page whose one function says who is asking."""
    import gradio as gr

    settings = Settings(data_dir=data_dir, **options)
    server.silence(settings)
    with gr.Blocks() as demo:
        said = gr.Textbox()

        def whoami(request: gr.Request) -> str:
            return request.request.state.owner

        gr.Button().click(whoami, None, said)
    engine = Engine(settings, Library(settings.data_dir, settings.filename_pattern))
    return server.build_app(settings, engine, demo, {})


def test_the_page_is_told_who_asks_by_browser_or_by_user(tmp_path):
    with client(whoami_app(tmp_path)) as person, client(person.app) as other:
        owners = [re.search(r"browser:[0-9a-f]{32}", call(who, 0)) for who in (person, person, other)]
        mine, again, theirs = (owner and owner[0] for owner in owners)
        assert mine == again != theirs
    with client(whoami_app(tmp_path, auth=[":".join(ACCOUNT)])) as person:
        person.post("/login", data=dict(zip(("username", "password"), ACCOUNT, strict=True)))
        assert "user:ada" in call(person, 0)


@pytest.mark.parametrize("prefix", ["", "/studio"])
def test_behind_a_proxy_the_page_works_below_its_path_stripped_or_not(tmp_path, prefix):
    app = build(tmp_path, root_path="/studio", auth=[":".join(ACCOUNT)])
    browser = client(app)
    html = {"accept": "text/html"}
    assert browser.get(f"{prefix}/", headers=html).headers["location"] == "/studio/login"
    assert 'action="/studio/login"' in browser.get(f"{prefix}/login").text
    form = dict(zip(("username", "password"), ACCOUNT, strict=True))
    cookie = browser.post(f"{prefix}/login", data=form, headers=html).headers["set-cookie"]
    assert "Path=/studio/;" in cookie
    signed_in = {"cookie": cookie.partition(";")[0]}
    config = browser.get(f"{prefix}/config", headers=signed_in).json()
    assert config["root"] == f"{HERE}/studio"
    assert browser.get(f"{prefix}/gradio_api/file=/etc/hostname", headers=signed_in).status_code == 403


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


@pytest.fixture
def host(tmp_path) -> Host:
    return plugged(tmp_path)


def test_a_plugins_routes_are_below_its_id_and_are_told_who_asks(tmp_path, host):
    person = client(build(tmp_path, host))
    assert person.get("/ext/toy/who").json().startswith("browser:")
    assert person.get("/ext/toy/who").json() == person.get("/ext/toy/who").json()
    with person.websocket_connect("/ext/toy/socket", headers=LOCAL):
        pass
    assert person.get("/ext/nobody/who").status_code == 404


def test_nor_may_a_page_of_another_site_change_a_plugin(tmp_path, host):
    visitor = client(build(tmp_path, host))
    assert visitor.post("/ext/toy/change", headers={"origin": "https://evil.example"}).status_code == 403
    assert visitor.post("/ext/toy/change", headers={"origin": HERE}).json() == "changed"


def test_the_routes_of_a_plugin_that_is_off_are_not_there(tmp_path, host):
    person = client(build(tmp_path, host))
    host.switch("toy", False)
    answer = person.get("/ext/toy/who")
    assert (answer.status_code, answer.json()["error"]) == (404, "The plugin Toy is not on.")
    with pytest.raises(WebSocketDisconnect), person.websocket_connect("/ext/toy/socket", headers=LOCAL):
        pass
    host.switch("toy", True)
    assert person.get("/ext/toy/who").status_code == 200


def test_what_a_plugins_route_raises_is_noted_as_its_own_and_disables_nothing(tmp_path, host):
    person = client(build(tmp_path, host))
    answer = person.get("/ext/toy/items/fox")
    assert (answer.status_code, answer.json()["error"]) == (404, "There is no fox.")
    assert host["toy"].trace == ""
    for path in ["bug"] * 4 + ["exit"]:
        answer = person.get(f"/ext/toy/{path}")
        assert answer.status_code == 500
        assert "secret" not in answer.text
    assert "SystemExit" in host["toy"].trace
    assert host["toy"].on
    assert person.get("/ext/toy/who").status_code == 200


def test_routes_that_block_block_nobody_else(tmp_path, host):
    with client(build(tmp_path, host)) as person:
        portal = person.portal
        blocked = [
            portal.start_task_soon(status, person.app, "GET", "/ext/toy/blocked", {}) for _ in range(60)
        ]
        assert person.get("/healthz").status_code == 200
        assert person.get("/gradio_api/info").status_code == 200
        assert not any(each.done() for each in blocked)
        host["toy"].module.opened.set()
        assert {each.result(30) for each in blocked} == {200}


@pytest.mark.parametrize("given", ["7", "None", "lambda: 0", "1 / 0"])
def test_a_plugin_that_gives_no_router_is_disabled_and_the_page_works(tmp_path, given):
    write(tmp_path / "plugins" / "odd", f"@hookimpl\ndef router(): return {given}")
    host = Host(tmp_path, [tmp_path / "plugins"])
    person = client(build(tmp_path, host))
    assert host["odd"].broken
    assert person.get("/").status_code == 200
    assert person.get("/ext/odd/x").status_code == 404


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


def test_a_tunnel_that_fails_is_said_and_stops_nothing(monkeypatch):
    def fail(*_):
        raise RuntimeError("no such host: /home/ann")

    monkeypatch.setattr("gradio.networking.setup_tunnel", fail)
    said: list[str] = []
    server._share("127.0.0.1", 7860, said.append)
    assert said == ["No public address could be opened (is the internet reachable?). Going on without."]


def test_a_tunnels_address_is_said(monkeypatch):
    monkeypatch.setattr(
        "gradio.networking.setup_tunnel", lambda host, port, *_: f"https://{host}.{port}.live"
    )
    said: list[str] = []
    server._share("127.0.0.1", 7860, said.append)
    assert said == ["Open https://127.0.0.1.7860.live"]


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
