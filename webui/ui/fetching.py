"""What the Models tab does with the Hugging Face Hub: look up, fetch, cancel. Nothing without a click."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from webui.engine import Engine
from webui.errors import NotAllowed, WebuiError
from webui.hub import Hub
from webui.hub_offer import Choice, Offer
from webui.ui import show_models
from webui.ui.layout import Layout
from webui.ui.source import Update, may_manage, plainly

LOOK_AGAIN = 0.4  # seconds between two looks at a download


class Fetching:
    """The handlers of the panel. The download is the hub's: it goes on if the page goes away."""

    def __init__(self, engine: Engine, layout: Layout, hub: Hub) -> None:
        self.engine = engine
        self.parts = layout.models
        self.hub = hub

    def show(self, request: gr.Request) -> Update:
        """Who may download anything; what anyone has looked up is his own."""
        admin = may_manage(self.engine, request)
        return {
            self.parts.hub_note: show_models.hub_note(admin),
            self.parts.hub_row: gr.update(visible=admin),
        }

    @plainly
    def look(self, request: gr.Request, text: str | None) -> Update:
        """Ask the hub what it has, and show what could be fetched."""
        self._check(request)
        offer = self.hub.look(text or "")
        first = offer.choices[0]
        titles = [(show_models.hub_choice(choice), i) for i, choice in enumerate(offer.choices)]
        return {
            self.parts.offer: offer,
            self.parts.choice: gr.update(choices=titles, value=0, visible=len(titles) > 1),
            self.parts.files: show_models.hub_offer(self.hub, offer, first),
            self.parts.start_row: gr.update(visible=True),
        }

    @plainly
    def choose(self, offer: Offer | None, number: int | None) -> Any:
        """Show what another choice is made of."""
        if offer is None:
            return gr.skip()
        return show_models.hub_offer(self.hub, offer, _chosen(offer, number))

    def start(self, request: gr.Request, offer: Offer | None, number: int | None) -> Iterator[Update]:
        """Fetch what is chosen, and follow it."""
        try:
            self._check(request)
            if offer is None:
                raise NotAllowed("Look a model up first.")
            self.hub.start(offer, _chosen(offer, number))
        except WebuiError as error:
            gr.Warning(escape(str(error)), title="Not started")
            return
        yield {self.parts.start_row: gr.update(visible=False)}
        yield from self.follow(request)
        done = self.hub.download is not None and self.hub.download.state == "done"
        left = "" if done else show_models.hub_offer(self.hub, offer, _chosen(offer, number))
        yield {self.parts.start_row: gr.update(visible=not done), self.parts.files: left}

    def follow(self, request: gr.Request) -> Iterator[Update]:
        """How far the download is, until it ends; the last one, if none is under way."""
        admin = may_manage(self.engine, request)
        while True:
            ended = self.hub.wait(LOOK_AGAIN)
            download = self.hub.download
            yield {
                self.parts.progress: show_models.hub_progress(download),
                self.parts.cancel: gr.update(visible=admin and not ended),
            }
            if ended:
                return

    @plainly
    def cancel(self, request: gr.Request) -> None:
        self._check(request)
        self.hub.cancel()

    def _check(self, request: gr.Request) -> None:
        """
        Raises:
            NotAllowed: this person may not.
        """
        if not may_manage(self.engine, request):
            raise NotAllowed("Only an administrator of this server may download models.")


def _chosen(offer: Offer, number: int | None) -> Choice:
    return offer.choices[number if number and number in range(len(offer.choices)) else 0]
