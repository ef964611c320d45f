"""The API routes of plugins: each plugin's below ``/ext/ID``, behind the same layers as the page."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from webui import guard
from webui.errors import InvalidField, WebuiError
from webui.plugins.host import Host
from webui.plugins.loading import Plugin, said

AT_ONCE = 16  # requests to plugins: of the 40 threads that all blocking routes share, the page's too


def mounts(host: Host) -> list[Mount]:
    """A mount for each plugin that has routes. One that fails to give them is disabled."""
    found: list[Mount] = []
    turns = asyncio.Semaphore(AT_ONCE)
    for plugin, router in host.ask_all("router", data_dir=host.data_dir):
        with host.starting(plugin), host.guarded(plugin, "router"):
            found.append(Mount(f"/ext/{plugin.id}", Door(host, plugin, _app(router), turns)))
    return found


def answer(error: WebuiError) -> JSONResponse:
    """An error in words, as every route here says it."""
    field = error.field if isinstance(error, InvalidField) else None
    return JSONResponse({"error": str(error), "field": field}, error.status)


def _app(router: Any) -> FastAPI:
    if not isinstance(router, APIRouter):
        raise TypeError(f"router must return an APIRouter, not {type(router).__name__}")

    async def told(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, WebuiError)
        return answer(error)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, exception_handlers={WebuiError: told})
    app.include_router(router)
    return app


class Door:
    """A plugin's routes: closed while it is off, not too many at once, and its faults are noted as its own.

    They do not count towards disabling it: a stranger could bring them about.
    """

    def __init__(self, host: Host, plugin: Plugin, app: FastAPI, turns: asyncio.Semaphore) -> None:
        self.host, self.plugin, self.turns = host, plugin, turns
        self.app: ASGIApp = app
        self.routes: list[BaseRoute] = app.routes  # for whoever walks them all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.plugin.on:
            return await guard.refuse(scope, receive, send, 404, f"The plugin {self.plugin.title} is not on.")
        async with self.turns:
            try:
                await self.app(scope, receive, send)
            except ClientDisconnect:
                pass
            except (Exception, SystemExit) as error:
                raise self.host.noted(self.plugin, f"{said(error)} (in {scope['path']})", error) from error
        return None
