"""The server: one FastAPI application with Gradio's page mounted in it, behind the layers of ``guard``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.server import HANDLED_SIGNALS

from webui import guard, routes, streams
from webui.accounts import Accounts
from webui.engine import Engine
from webui.errors import InvalidField, SettingsError, WebuiError
from webui.settings import Settings

if TYPE_CHECKING:
    from gradio import Blocks

log = logging.getLogger(__name__)

MAX_BODY = 64 * 2**20  # bytes of one request: pictures, not films
PORTS_TRIED = 20
BACKLOG = 2048  # connections the system holds until they are taken up
PATIENCE_AT_THE_END = 3  # seconds for requests under way when the server stops


def silence(settings: Settings) -> None:
    """Set what Gradio and the hub's library read when they are imported: ask no other host, write only here.

    To be called before the page is imported.

    Raises:
        SettingsError: the data folder cannot be made.
    """
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_RUN_HISTORY="False",
        GRADIO_TEMP_DIR=str(settings.cache_dir),
        HF_HUB_DISABLE_TELEMETRY="1",
    )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise SettingsError("--data-dir: nothing can be written there") from None


def build_app(settings: Settings, engine: Engine, demo: Blocks, options: Mapping[str, Any]) -> FastAPI:
    """The whole application. ``options`` go to ``gr.mount_gradio_app``: theme, css, head.

    Raises:
        SettingsError: the accounts file is wrong.
    """
    import gradio as gr
    from gradio import processing_utils

    ending: streams.Ending = {}
    demo._queue.push = streams.after(demo._queue.push, ending)
    app = FastAPI(
        middleware=[*_layers(settings), Middleware(streams.Streams, ending)],
        docs_url=None,  # these pages load scripts from another host
        redoc_url=None,
        openapi_url=None,
    )

    @app.get("/healthz")
    def healthz() -> dict[str, object]:
        return {"ready": engine.status.ready, "message": engine.status.message}

    app.routes.extend(routes.mounts(engine.plugins))
    # A page may hand in an address where a file is expected; Gradio would fetch it.
    processing_utils.async_ssrf_protected_get = _fetch_nothing
    gr.mount_gradio_app(
        app,
        demo,
        path="/",
        root_path=settings.root_path or None,
        max_file_size=MAX_BODY,
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        app_kwargs={"openapi_url": None},
        **options,
    )
    return app


def _layers(settings: Settings) -> list[Middleware]:
    """From the network inwards."""
    accounts = Accounts.of(settings.auth, settings.auth_file)
    names = guard.Names(settings)
    login = [Middleware(guard.Login, accounts, settings.on_space)] if accounts else []
    return [
        Middleware(RootPath, settings.root_path),
        Middleware(guard.SecurityHeaders, settings.on_space),
        Middleware(Faults),
        Middleware(guard.HostCheck, names),
        Middleware(guard.OriginCheck, names),
        Middleware(CORSMiddleware),  # allows nobody; without it, Gradio's own would allow everybody
        Middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY),
        *login,
        Middleware(guard.OwnerCookie, settings.on_space),
        Middleware(guard.CachedFilesOnly, settings.cache_dir),
    ]


async def _fetch_nothing(url: str) -> Any:
    raise InvalidField("file", "must be a file of yours, not an address")


class RootPath:
    """Tell every route under which path a reverse proxy shows it, whether or not the proxy strips it off."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope["root_path"] = self.root_path
        await self.app(scope, receive, send)


class Faults:
    """Turn errors into answers: a person's words for ours, nothing but "500" for others, which are logged."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            pass
        except Exception as error:
            if scope["type"] != "http":
                raise
            if not isinstance(error, WebuiError):
                log.exception("An error while answering %s %s", scope["method"], scope["path"])
            if not started:
                await _answer(error)(scope, receive, send)


def _answer(error: Exception) -> ASGIApp:
    if isinstance(error, WebuiError):
        return routes.answer(error)
    return PlainTextResponse("Something went wrong. The server's log says what.", 500)


def listen(settings: Settings) -> socket.socket:
    """A listening socket, on the next free port if the person named none.

    Opened first of all: a port in use is said at once, and a browser that comes early waits.

    Raises:
        SettingsError: the port is in use, or the address is not this computer's.
    """
    host = settings.host.strip("[]")
    named = "port" in settings.model_fields_set
    for port in range(settings.port, settings.port + (1 if named else PORTS_TRIED)):
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(BACKLOG)
            return listening
        except OSError as error:
            listening.close()
            if error.errno in (errno.EACCES, errno.EPERM):
                raise SettingsError(f"--port: {port} needs an administrator's rights") from None
            if error.errno != errno.EADDRINUSE:
                raise SettingsError(f"--host: {settings.host} is not an address of this computer") from None
    if named:
        raise SettingsError(f"--port: {settings.port} is in use. Stop what uses it, or choose another.")
    raise SettingsError(f"--port: {settings.port} to {port} are all in use. Choose another.")


def serve(
    app: FastAPI,
    settings: Settings,
    engine: Engine,
    listening: socket.socket,
    announce: Callable[[str], None],
) -> None:
    """Answer until SIGINT or SIGTERM; return when everything has ended. ``announce`` tells a person where.

    The engine starts once the page can be had, so that importing torch does not delay it.
    """
    host, port = listening.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)

    def opened() -> None:
        announce(f"Open http://{name}:{port}{settings.root_path}")
        engine.start()
        if settings.share:
            threading.Thread(target=_share, args=(name, port, announce), name="tunnel", daemon=True).start()

    ended = asyncio.Event()
    config = uvicorn.Config(
        EndOfStreams(app, ended),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=PATIENCE_AT_THE_END,
        forwarded_allow_ips="*" if settings.on_space else None,
    )
    _Server(config, opened, ended, engine.close).run(sockets=[listening])


def _share(host: str, port: int, announce: Callable[[str], None]) -> None:
    from gradio.networking import setup_tunnel

    try:
        announce(f"Open {setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)}")
    except Exception as error:
        log.debug("The tunnel failed", exc_info=error)
        announce("No public address could be opened (is the internet reachable?). Going on without.")


class EndOfStreams:
    """When the server stops, tell the event streams still open that their browsers have gone."""

    def __init__(self, app: ASGIApp, ended: asyncio.Event) -> None:
        self.app, self.ended = app, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body_follows, answering = True, False

        async def until_the_end() -> Message:
            nonlocal body_follows
            message = await (receive() if body_follows else self._first(receive))
            body_follows = message.get("more_body", False)
            return message

        async def watched(message: Message) -> None:
            nonlocal answering
            answering = message["type"] == "http.response.start" or message.get("more_body", False)
            await send(message)

        await self.app(scope, until_the_end, watched)
        if answering and self.ended.is_set():
            await send({"type": "http.response.body", "body": b""})
        return None

    async def _first(self, receive: Receive) -> Message:
        """Whichever comes first: the client's going, or the server's."""
        client, server = asyncio.ensure_future(receive()), asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait((client, server), return_when=asyncio.FIRST_COMPLETED)
            return client.result() if client.done() else {"type": "http.disconnect"}
        finally:
            client.cancel()
            server.cancel()


class _Server(uvicorn.Server):
    """uvicorn that says when it answers, and that a signal ends without an error."""

    def __init__(
        self,
        config: uvicorn.Config,
        opened: Callable[[], None],
        ended: asyncio.Event,
        close: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.opened, self.ended, self.close = opened, ended, close

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal is not raised again afterwards: to be stopped is no failure."""
        before = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.opened()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, and close the engine meanwhile: its jobs' watchers keep threads busy."""
        self.ended.set()
        await asyncio.gather(asyncio.to_thread(self.close), super().shutdown(sockets))
