"""What stands between the network and the application: small ASGI layers, each against one danger.

They are plain ASGI (https://asgi.readthedocs.io), not Starlette's BaseHTTPMiddleware, because event
streams and uploads pass through them and because websockets must not pass round them. Each takes the
application that it protects; ``webui.server`` puts them in order. A request that has passed them all
carries ``scope["state"]["owner"]``: whose jobs it may start and see.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import ipaddress
import math
import os
import re
import secrets
import socket
from pathlib import Path
from string import Template
from urllib.parse import parse_qs, urlsplit

from starlette._utils import get_route_path  # the very path that the routes will see
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from webui.accounts import SESSION_SECONDS, Accounts, Brake, Sessions
from webui.settings import Settings, is_address

MAX_LOGIN_BODY = 8 * 2**10
MAX_NAME = 200  # characters of a user name
SAFE_METHODS = ("GET", "HEAD", "OPTIONS", "TRACE")  # RFC 9110, 9.2.1
OWNER_COOKIE, SESSION_COOKIE = "studio_owner", "studio_session"
OWNER_SECONDS = 400 * 86_400  # the longest that browsers keep a cookie
LOGIN_PAGE = Template((Path(__file__).parent / "login.html").read_text("utf-8"))

# Gradio's page needs inline scripts and styles, compiles templates and makes blobs. What this forbids is
# loading anything from, and sending anything to, another host.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
SPACE_FRAME = " https://huggingface.co"  # a Space is shown in a frame of the hub's page


async def refuse(scope: Scope, receive: Receive, send: Send, status: int, message: str) -> None:
    """Say no, in the shape of every error here; a websocket is closed before it opens."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": message[:100]})
    else:
        await JSONResponse({"error": message, "field": None}, status)(scope, receive, send)


def split_host(netloc: str) -> tuple[str, int | None]:
    """(lower-case name or address without brackets, port or None if it is a scheme's own)."""
    try:
        parts = urlsplit(f"//{netloc}")
        port = parts.port
    except ValueError:
        return "", None
    if parts.netloc != netloc or parts.username is not None:  # there is more in it than a host
        return "", None
    return (parts.hostname or "").removesuffix("."), None if port in (80, 443) else port


class Names:
    """The host names that mean this server."""

    def __init__(self, settings: Settings) -> None:
        names = [*settings.allowed_hosts, *([".gradio.live"] if settings.share else [])]
        self.named = frozenset(names)  # by the person who started it
        self._own = {"localhost", settings.host.strip("[]").lower()}
        self._addresses = not settings.loopback
        if not settings.loopback:
            host = socket.gethostname().lower()
            self._own |= {host, host.partition(".")[0], f"{host.partition('.')[0]}.local"}

    def __contains__(self, name: str) -> bool:
        """An address cannot be rebound by a foreign name server, so any will do where we answer others."""
        if is_address(name):
            return self._addresses or name in self._own or ipaddress.ip_address(name).is_loopback
        return name in self._own or self.is_named(name)

    def is_named(self, name: str) -> bool:
        return name in self.named or any(n.startswith(".") and name.endswith(n) for n in self.named)


class HostCheck:
    """Refuse a ``Host`` that is not ours: a foreign name that was made to point here (DNS rebinding)."""

    def __init__(self, app: ASGIApp, names: Names) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            name, _ = split_host(Headers(scope=scope).get("host", ""))
            if name not in self.names:
                said = name if re.fullmatch(r"[a-z0-9.:-]{1,100}", name) else "that name"
                message = (
                    f"This server does not answer to {said}. If it should, start it with --allow-host {said}."
                )
                return await refuse(scope, receive, send, 421, message)
        return await self.app(scope, receive, send)


class OriginCheck:
    """Refuse what another site's page wants to change here in the name of its visitor (CSRF).

    Browsers send ``Origin`` with every request that changes something and with websockets; a program
    that is no browser sends none, and is let through.
    """

    def __init__(self, app: ASGIApp, names: Names) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        changing = scope["type"] == "websocket" or scope.get("method", "GET") not in SAFE_METHODS
        if scope["type"] != "lifespan" and changing and not self._ours(Headers(scope=scope)):
            message = "A page of another site may not do this. If it is yours, name it with --allow-host."
            return await refuse(scope, receive, send, 403, message)
        return await self.app(scope, receive, send)

    def _ours(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site") != "cross-site"
        source = split_host(urlsplit(origin).netloc)
        return source == split_host(headers.get("host", "")) or self.names.is_named(source[0])


class SecurityHeaders:
    """Tell the browser what a page from here may do, and who may show it."""

    def __init__(self, app: ASGIApp, on_space: bool = False) -> None:
        self.app = app
        self.headers = {
            "content-security-policy": CONTENT_SECURITY_POLICY + (SPACE_FRAME if on_space else ""),
            "x-content-type-options": "nosniff",
            "referrer-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        await self.app(scope, receive, with_headers)


class CachedFilesOnly:
    """Let Gradio's file route serve copies made for a page, nothing else.

    It would also serve whatever folder is ever allowed to it, and fetch addresses of other hosts.
    """

    def __init__(self, app: ASGIApp, cache: Path) -> None:
        self.app, self.cache = app, cache.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = get_route_path(scope)
            file = re.match(r"/gradio_api/file[=/](.*)", path, re.DOTALL)
            if path.startswith("/gradio_api/proxy=") or (file and not self._cached(file[1])):
                return await refuse(scope, receive, send, 403, "There is no such file for you.")
        return await self.app(scope, receive, send)

    def _cached(self, path: str) -> bool:
        return "\0" not in path and Path(os.path.realpath(path)).is_relative_to(self.cache)


def set_cookie(scope: Scope, name: str, value: str, seconds: int, on_space: bool) -> str:
    """A ``Set-Cookie`` value that scripts cannot read; in a Space's frame it is a third party's."""
    site = "SameSite=None; Secure; Partitioned" if on_space else "SameSite=Lax"
    if scope["scheme"] == "https" and not on_space:
        site += "; Secure"
    return f"{name}={value}; Path={scope.get('root_path', '')}/; Max-Age={seconds}; HttpOnly; {site}"


class OwnerCookie:
    """Give each browser a random 128-bit name, so that its jobs are its own; a signed-in user has hers.

    What is passed on, and may be stored, is a digest: it cannot be used as the cookie.
    """

    def __init__(self, app: ASGIApp, on_space: bool = False) -> None:
        self.app, self.on_space = app, on_space

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        state = scope.setdefault("state", {})
        if user := state.get("user"):
            state["owner"] = f"user:{user}"
            return await self.app(scope, receive, send)
        known = HTTPConnection(scope).cookies.get(OWNER_COOKIE, "")
        token = known if re.fullmatch(r"[\w-]{22}", known, re.ASCII) else secrets.token_urlsafe(16)
        state["owner"] = f"browser:{hashlib.sha256(token.encode()).hexdigest()[:32]}"

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and token != known:
                cookie = set_cookie(scope, OWNER_COOKIE, token, OWNER_SECONDS, self.on_space)
                MutableHeaders(scope=message).append("set-cookie", cookie)
            await send(message)

        return await self.app(scope, receive, with_cookie)


class _TooSoon(Exception):
    def __init__(self, seconds: float) -> None:
        self.seconds = math.ceil(seconds)


class Login:
    """Nothing but ``/login`` for whoever is not signed in, by the page's cookie or by HTTP Basic.

    Guessing is slowed down by address and (less, so that nobody can shut another out) by user name.
    """

    def __init__(self, app: ASGIApp, accounts: Accounts, on_space: bool = False) -> None:
        self.app, self.accounts, self.on_space = app, accounts, on_space
        self.sessions = Sessions()
        self.by_address, self.by_name = Brake(), Brake(free=20, longest=60.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        route = get_route_path(scope) if scope["type"] == "http" else ""
        try:
            if route == "/login":
                response = await self._login(Request(scope, receive))
            elif (user := self._by_cookie(scope) or await self._by_basic(scope)) is None:
                response = self._turn_away(scope)
            elif route == "/logout" and scope["method"] == "POST":
                response = self._logout(scope)
            else:
                scope.setdefault("state", {})["user"] = user
                return await self.app(scope, receive, send)
        except _TooSoon as error:
            response = _say(scope, 429, f"Too many tries. Wait {error.seconds} seconds.")
            response.headers["retry-after"] = str(error.seconds)
        if scope["type"] == "websocket":
            return await refuse(scope, receive, send, response.status_code, "Please sign in.")
        return await response(scope, receive, send)

    def _by_cookie(self, scope: Scope) -> str | None:
        return self.sessions.user(HTTPConnection(scope).cookies.get(SESSION_COOKIE, ""))

    async def _by_basic(self, scope: Scope) -> str | None:
        """A right ``Authorization`` header is remembered as a session's token: hashing takes a while."""
        header = Headers(scope=scope).get("authorization", "")
        scheme, _, credentials = header.partition(" ")
        if scheme.lower() != "basic":
            return None
        if user := self.sessions.user(header):
            return user
        try:
            name, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
        except ValueError:
            return None
        if not await self._right(scope, name, password):
            return None
        self.sessions.open(name, token=header)
        return name

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            return _page(request.scope, 200)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_LOGIN_BODY:
                return _say(request.scope, 413, "That is too long for a name and a password.")
        form = parse_qs(body.decode(errors="replace"), keep_blank_values=True)
        name, password = (form.get(field, [""])[0] for field in ("username", "password"))
        if not await self._right(request.scope, name.strip(), password):
            return _say(request.scope, 401, "This name and password do not belong together.")
        response = _home(request.scope) if _wants_html(request.scope) else JSONResponse({"success": True})
        token = self.sessions.open(name.strip())
        cookie = set_cookie(request.scope, SESSION_COOKIE, token, SESSION_SECONDS, self.on_space)
        response.headers.append("set-cookie", cookie)
        return response

    async def _right(self, scope: Scope, name: str, password: str) -> bool:
        address = scope["client"][0] if scope.get("client") else ""
        brakes = ((self.by_address, address), (self.by_name, name[:MAX_NAME]))
        if (wait := max(brake.wait(key) for brake, key in brakes)) > 0:
            raise _TooSoon(wait)
        for brake, key in brakes:
            brake.count(key)
        right = await asyncio.to_thread(self.accounts.check, name, password)
        if right:
            for brake, key in brakes:
                brake.forgive(key)
        return right

    def _turn_away(self, scope: Scope) -> Response:
        if _wants_html(scope) and scope["method"] in SAFE_METHODS:
            return RedirectResponse(f"{scope.get('root_path', '')}/login", 303)
        response = _say(scope, 401, "Please sign in.")
        if "sec-fetch-mode" not in Headers(scope=scope):  # no browser, which would open a window of its own
            response.headers["www-authenticate"] = 'Basic realm="Diffusion Studio", charset="UTF-8"'
        return response

    def _logout(self, scope: Scope) -> Response:
        self.sessions.close(HTTPConnection(scope).cookies.get(SESSION_COOKIE, ""))
        response = _home(scope)
        response.headers.append("set-cookie", set_cookie(scope, SESSION_COOKIE, "", 0, self.on_space))
        return response


def _wants_html(scope: Scope) -> bool:
    return scope["type"] == "http" and "text/html" in Headers(scope=scope).get("accept", "")


def _say(scope: Scope, status: int, message: str) -> Response:
    """The login page with a message to a person, JSON to a program."""
    if _wants_html(scope):
        return _page(scope, status, message)
    return JSONResponse({"error": message, "field": None}, status)


def _page(scope: Scope, status: int, message: str = "") -> Response:
    action = f"{scope.get('root_path', '')}/login"
    page = LOGIN_PAGE.substitute(
        action=html.escape(action), message=html.escape(message), hidden="" if message else "hidden"
    )
    return HTMLResponse(page, status, {"cache-control": "no-store"})


def _home(scope: Scope) -> Response:
    return RedirectResponse(f"{scope.get('root_path', '')}/", 303)
