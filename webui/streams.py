"""No event of a page gets lost between two of Gradio's streams.

A page hears of its events by one stream, which Gradio ends as soon as none is under way. Until the page has
read that, it takes the stream for open: what it sends meanwhile is answered into a stream that nobody reads,
and seems to have done nothing until something else is pressed. On a busy machine that is a long moment. So a
stream that is said to be over is held until the page has left it, and the page's next event waits for that;
it then finds no stream and opens the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OVER = b'"msg":"close_stream"'  # within a text of a person the quotation marks are escaped
PATIENCE = 2.0  # seconds for a page to leave; a proxy may never say that it has

Ending = dict[str, asyncio.Event]  # by the page's session: set once it has left its stream


class Streams:
    """Holds the end of each stream until its page has left. ``ending`` is shared with :func:`after`."""

    def __init__(self, app: ASGIApp, ending: Ending) -> None:
        self.app, self.ending = app, ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/queue/data"):
            await self.app(scope, receive, send)
            return
        session = QueryParams(scope["query_string"]).get("session_hash", "")
        left: asyncio.Event | None = None

        async def held(message: Message) -> None:
            nonlocal left
            if left is None and OVER in message.get("body", b""):
                left = self.ending[session] = asyncio.Event()  # in the same breath as it was decided
            if left is not None and not message.get("more_body"):
                await _leaving(receive)
            await send(message)

        try:
            await self.app(scope, receive, held)
        finally:
            if left is not None:
                left.set()
                if self.ending.get(session) is left:
                    del self.ending[session]


def after(push: Callable[..., Awaitable[Any]], ending: Ending) -> Callable[..., Awaitable[Any]]:
    """Gradio's ``Queue.push``, for whose answer a page waits: once it has left the stream that is over."""

    async def pushed(body: Any, *rest: Any, **named: Any) -> Any:
        if left := ending.get(body.session_hash):
            await left.wait()
        return await push(body, *rest, **named)

    return pushed


async def _leaving(receive: Receive) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while (await receive())["type"] != "http.disconnect":
                pass
