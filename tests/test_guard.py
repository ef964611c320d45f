"""The guard's layers one by one, round an application that only says who asks and counts what it reads."""

import asyncio
import hashlib

import httpx
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse

from webui import guard
from webui.accounts import Accounts, Brake
from webui.settings import Settings

HOME = "http://127.0.0.1:7860"


async def asked(scope, receive, send):
    """The application behind the layers."""
    body = await Request(scope, receive).body()
    await JSONResponse({**scope.get("state", {}), "length": len(body)})(scope, receive, send)


def ask(app, method: str = "GET", path: str = "/", base: str = HOME, **options) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base) as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def ask_websocket(app, headers: dict[str, str]) -> list[dict]:
    """What the application sends when a websocket wants to open."""
    sent = []

    async def open_it() -> None:
        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            sent.append(message)

        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "websocket", "path": "/", "scheme": "ws", "headers": raw, "client": ("1.1.1.1", 1)}
        await app(scope, receive, send)

    asyncio.run(open_it())
    return sent


async def accepting(scope, receive, send):
    await send({"type": "websocket.accept"})


def names(**settings) -> guard.Names:
    return guard.Names(Settings(**settings))


# Host


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "LOCALHOST.:1", "[::1]:7860", "127.8.9.1"])
def test_this_computers_own_names_are_answered(host):
    assert ask(guard.HostCheck(asked, names()), headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.5",
     "", "127.0.0.1:x", "evil.example@127.0.0.1:1", "<script>"],
)  # fmt: skip
def test_a_foreign_host_is_refused_and_the_flag_is_named(host):
    answer = ask(guard.HostCheck(asked, names()), headers={"host": host})
    assert answer.status_code == 421
    assert "--allow-host" in answer.json()["error"]
    assert "<" not in answer.text


def test_a_server_for_others_is_answered_by_address_and_machine_name(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Studio.lan")
    check = guard.HostCheck(asked, names(listen=True, open=True))
    for host in ("192.168.1.5:7860", "[fe80::1]", "studio", "studio.lan", "studio.local:7860", "localhost"):
        assert ask(check, headers={"host": host}).status_code == 200, host
    assert ask(check, headers={"host": "evil.example"}).status_code == 421


def test_allowed_names_and_all_names_below_one_are_answered():
    check = guard.HostCheck(asked, names(allowed_hosts=["a.example", ".b.example"]))
    for host, status in (("a.example", 200), ("x.b.example", 200), ("b.example", 421), ("xb.example", 421)):
        assert ask(check, headers={"host": host}).status_code == status, host


def test_only_a_shared_server_answers_to_a_tunnel():
    headers = {"host": "1a2b.gradio.live"}
    assert ask(guard.HostCheck(asked, names()), headers=headers).status_code == 421
    assert ask(guard.HostCheck(asked, names(share=True, open=True)), headers=headers).status_code == 200


# Origin


FOREIGN = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:9999"},  # another program of this computer
    {"origin": "http://127.0.0.1"},
    {"origin": "http://127.0.0.1:7860.evil.example"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
]
OURS = [
    {},
    {"origin": HOME},
    {"sec-fetch-site": "same-origin"},
    {"origin": HOME, "sec-fetch-site": "same-origin"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_foreign_page_can_change_nothing(headers):
    check = guard.OriginCheck(asked, names())
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert ask(check, method, headers=headers).status_code == 403
    [closed] = ask_websocket(guard.OriginCheck(accepting, names()), {"host": "127.0.0.1:7860", **headers})
    assert closed["type"] == "websocket.close"


@pytest.mark.parametrize("headers", OURS, ids=str)
def test_our_own_page_and_programs_that_are_no_browser_can(headers):
    check = guard.OriginCheck(asked, names())
    assert ask(check, "POST", headers=headers).status_code == 200
    opened = ask_websocket(guard.OriginCheck(accepting, names()), {"host": "127.0.0.1:7860", **headers})
    assert opened == [{"type": "websocket.accept"}]


def test_a_link_from_a_foreign_page_may_be_followed():
    assert ask(guard.OriginCheck(asked, names()), headers={"sec-fetch-site": "cross-site"}).status_code == 200


def test_a_page_behind_a_proxy_is_ours_by_its_host_or_by_its_allowed_name():
    https = {"host": "a.example", "origin": "https://a.example"}
    assert ask(guard.OriginCheck(asked, names()), "POST", headers=https).status_code == 200
    rewritten = {"host": "127.0.0.1:7860", "origin": "https://a.example:8443"}
    assert ask(guard.OriginCheck(asked, names()), "POST", headers=rewritten).status_code == 403
    allowed = names(allowed_hosts=["a.example"])
    assert ask(guard.OriginCheck(asked, allowed), "POST", headers=rewritten).status_code == 200


# Headers and files


def test_pages_are_told_to_stay_here():
    headers = ask(guard.SecurityHeaders(asked)).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'self'" in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


def test_a_space_may_be_framed_by_the_hub():
    policy = ask(guard.SecurityHeaders(asked, on_space=True)).headers["content-security-policy"]
    assert policy.endswith("frame-ancestors 'self' https://huggingface.co")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/link").symlink_to(tmp_path / "library.sqlite3")
    return tmp_path, guard.CachedFilesOnly(asked, tmp_path / "cache")


def test_copies_made_for_a_page_are_served(files):
    folder, only = files
    for path in (
        f"/gradio_api/file={folder}/cache/1/a.png",
        f"/gradio_api/file/{folder}/cache/a%20b.png",
        "/",
    ):
        assert ask(only, path=path).status_code == 200, path


@pytest.mark.parametrize(
    "path",
    ["file={}/outputs/1.png", "file={}/cache/../library.sqlite3", "file={}/cache/%2e%2e/library.sqlite3",
     "file={}/cache/link", "file={}/cacheold/a.png", "file=/etc/passwd", "file=a.png", "file=",
     "file/etc/passwd", "file=http://evil.example/a.png", "file={}/cache/a%00", "proxy=http://evil.example"],
)  # fmt: skip
def test_nothing_else_is_served_by_gradios_file_route(files, path):
    folder, only = files
    assert ask(only, path="/gradio_api/" + path.format(folder)).status_code == 403


def test_a_root_path_is_no_way_round(files):
    _, only = files

    async def below(scope, receive, send):
        await only({**scope, "root_path": "/studio"}, receive, send)

    assert ask(below, path="/studio/gradio_api/file=/etc/passwd").status_code == 403
    assert ask(below, path="/gradio_api/file=/etc/passwd").status_code == 403


# Owner


def test_a_browser_keeps_its_owner_and_no_other_has_it():
    app = guard.OwnerCookie(asked)
    first = ask(app)
    cookie = first.headers["set-cookie"].partition(";")[0]
    again = ask(app, headers={"cookie": cookie})
    assert again.json()["owner"] == first.json()["owner"]
    assert "set-cookie" not in again.headers
    assert ask(app).json()["owner"] != first.json()["owner"]


def test_the_owner_does_not_give_the_cookie_away():
    answer = ask(guard.OwnerCookie(asked))
    token = answer.cookies[guard.OWNER_COOKIE]
    assert token not in answer.json()["owner"]
    assert (
        hashlib.sha256(token.encode()).hexdigest().startswith(answer.json()["owner"].removeprefix("browser:"))
    )


@pytest.mark.parametrize("cookie", ["", "short", "x" * 23, "user:ann" + "x" * 14, "é" * 22])
def test_a_made_up_cookie_is_replaced(cookie):
    answer = ask(guard.OwnerCookie(asked), headers={"cookie": f"{guard.OWNER_COOKIE}={cookie}".encode()})
    assert len(answer.cookies[guard.OWNER_COOKIE]) == 22


def test_cookies_are_kept_from_scripts_and_foreign_pages():
    plain = ask(guard.OwnerCookie(asked)).headers["set-cookie"]
    assert "HttpOnly; SameSite=Lax" in plain
    assert "Secure" not in plain  # a browser would not keep it for http
    assert ask(guard.OwnerCookie(asked), base="https://a.example").headers["set-cookie"].endswith("; Secure")
    space = ask(guard.OwnerCookie(asked, on_space=True)).headers["set-cookie"]
    assert "HttpOnly; SameSite=None; Secure; Partitioned" in space


# Login

HTML = {"accept": "text/html,*/*"}


@pytest.fixture(scope="module")
def accounts():
    return Accounts.of([SecretStr("ann:pw"), SecretStr("bob:b:ü")], None)


@pytest.fixture
def login(accounts):
    return guard.Login(guard.OwnerCookie(asked), accounts)


def sign_in(app, user="ann", password="pw", **headers) -> httpx.Response:
    return ask(app, "POST", "/login", data={"username": user, "password": password}, headers=headers)


def test_a_stranger_gets_the_login_page_or_a_401(login):
    page = ask(login, path="/any/where", headers=HTML)
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    program = ask(login, path="/any/where")
    assert program.status_code == 401
    assert program.json() == {"error": "Please sign in.", "field": None}
    assert program.headers["www-authenticate"].startswith("Basic")
    assert ask(login, "POST", headers=HTML).status_code == 401
    [closed] = ask_websocket(guard.Login(accepting, login.accounts), {})
    assert closed["type"] == "websocket.close"


def test_a_browsers_script_is_not_answered_with_a_window_asking_for_a_password(login):
    assert "www-authenticate" not in ask(login, headers={"sec-fetch-mode": "cors"}).headers


def test_the_login_page_is_whole_by_itself(login):
    page = ask(login, path="/login")
    assert page.status_code == 200
    assert '<form method="post" action="/login">' in page.text
    assert page.text.count("<label for=") == page.text.count("<input ") == 2
    assert "color-scheme: light dark" in page.text
    assert not {"src=", "href=", "url(", "http:", "https:", "@import"} & set(page.text.split())
    assert "http" not in page.text


def test_signing_in_and_out_by_the_page(login):
    answer = sign_in(login, **HTML)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = {"cookie": answer.headers["set-cookie"].partition(";")[0]}
    assert ask(login, headers=cookie).json() == {"user": "ann", "owner": "user:ann", "length": 0}
    out = ask(login, "POST", "/logout", headers=cookie)
    assert "Max-Age=0" in out.headers["set-cookie"]
    assert ask(login, headers=cookie).status_code == 401


def test_a_get_does_not_sign_out(login):
    cookie = {"cookie": sign_in(login).headers["set-cookie"].partition(";")[0]}
    ask(login, path="/logout", headers=cookie)
    assert ask(login, headers=cookie).status_code == 200


def test_a_program_may_sign_in_by_the_same_form_or_by_basic(login):
    assert sign_in(login).json() == {"success": True}  # as gradio_client does
    for _ in range(2):
        assert ask(login, auth=("bob", "b:ü".encode())).json()["owner"] == "user:bob"
    assert ask(login, auth=("bob", "b")).status_code == 401
    assert ask(login, headers={"authorization": "Basic %%%"}).status_code == 401
    assert ask(login, headers={"authorization": "Bearer pw"}).status_code == 401


def test_basic_is_hashed_once(login, monkeypatch):
    checked = []
    check = login.accounts.check
    monkeypatch.setattr(login.accounts, "check", lambda *given: checked.append(given) or check(*given))
    for _ in range(3):
        assert ask(login, auth=("ann", "pw")).status_code == 200
    assert len(checked) == 1


def test_a_wrong_password_says_so_without_saying_what_was_wrong(login):
    wrong, unknown = sign_in(login, password="no", **HTML), sign_in(login, user="<b>", **HTML)
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.text == unknown.text
    assert "do not belong together" in wrong.text
    assert "<b>" not in unknown.text
    assert "set-cookie" not in wrong.headers


def test_a_login_form_of_a_novels_length_is_refused(login):
    assert sign_in(login, password="x" * 10_000).status_code == 413


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_guessing_is_slowed_down_by_address_and_a_right_password_waits_too(login):
    clock = Clock()
    login.by_address = Brake(free=3, clock=clock)
    for user in ("ann", "bob", "eve"):
        assert sign_in(login, user=user, password="no").status_code == 401
    slow = sign_in(login)
    assert (slow.status_code, slow.headers["retry-after"]) == (429, "1")
    assert ask(login, auth=("ann", "pw")).status_code == 429
    clock.now += 1
    assert sign_in(login).status_code == 200
    assert sign_in(login, password="no").status_code == 401  # forgiven: it begins anew


def test_guessing_one_users_password_from_many_addresses_is_slowed_down(login):
    login.by_name = Brake(free=2)
    for last in (1, 2, 3):
        login.by_address = Brake()
        answer = sign_in(login, password="no")
        assert answer.status_code == (401 if last < 3 else 429)
    assert sign_in(login, user="bob", password="b:ü").status_code == 200


def test_a_hundred_guesses_at_one_moment_are_slowed_down_like_one_after_another(login, monkeypatch):
    checked = []
    monkeypatch.setattr(login.accounts, "check", lambda *given: checked.append(given))

    async def flood():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(login), base_url=HOME) as client:
            form = {"username": "ann", "password": "no"}
            await asyncio.gather(*(client.post("/login", data=form) for _ in range(100)))

    asyncio.run(flood())
    assert len(checked) == 5
