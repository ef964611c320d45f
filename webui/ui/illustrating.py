"""What the Illustrated tab does: a picture made while it is watched, and its flight record shown and kept."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import closing
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache, save_file_to_cache

from webui.engine import Engine
from webui.errors import InvalidField, NotFound, WebuiError
from webui.flight import FlightRecord
from webui.jobs import Job, JobView
from webui.request import Delivery, GenerationRequest, SavedPicture
from webui.ui import form, illustrated, illustrated_page, show_illustrated
from webui.ui.filling import Filling
from webui.ui.form import Values
from webui.ui.layout import Layout
from webui.ui.making import LOOK_UP, PAUSE, Making
from webui.ui.show_illustrated import Message
from webui.ui.source import SourceActions, Update, owner_of, plainly

LOOKED_THROUGH = 50  # of the newest pictures, for one with a record


class Illustrating:
    """The handlers of the tab. Nothing is kept: jobs are the engine's, and so are the records."""

    def __init__(
        self, engine: Engine, layout: Layout, source: SourceActions, filling: Filling, making: Making
    ) -> None:
        self.engine = engine
        self.layout = layout
        self.parts = layout.illustrated
        self.source = source
        self.filling = filling
        self.making = making

    def run(self, request: gr.Request, **values: Any) -> Iterator[Update]:
        """Make the picture that the form says, one of it, and show it as it comes."""
        owner = owner_of(request)
        try:
            job = self._submitted(self._request(values, owner), owner, form.delivery(values))
        except WebuiError as error:
            yield self._refused(error)
            return
        for view, update in self._follow(job):
            yield update | (self.making.pictures(view, 0) if view.ended else {})

    def take(self, request: gr.Request, saved: tuple[SavedPicture, ...], selected: int) -> Iterator[Update]:
        """The picture that is looked at in the gallery: its record, or made again and watched."""
        owner, picture = owner_of(request), saved[selected]
        opened = self.filling.fill(form.of_request(picture.request), owner) | {
            self.layout.tabs: gr.Tabs(selected=illustrated.TAB),
            self.parts.task: picture.request.task,
        }
        if record := self._record(picture, owner):
            yield opened | self._told(record=record)
            return
        try:
            job = self._submitted(picture.request, owner, Delivery())
        except WebuiError as error:
            yield opened | self._refused(error)
            return
        yield opened
        yield from (update for _, update in self._follow(job))

    def attach(self, request: gr.Request) -> Iterator[Update]:
        """The tab opens for the first time: go on with what is being made, or show the newest record."""
        owner = owner_of(request)
        if jobs := self._unfinished(owner):
            yield from (update for _, update in self._follow(jobs[0]))
            return
        recent = self.engine.library.recent(owner, LOOKED_THROUGH)
        record = next(filter(None, (self._record(picture, owner) for picture in recent)), None)
        yield self._told(record=record, remembered=True) if record else gr.skip()

    def stop(self, request: gr.Request) -> None:
        """Stop what this person watches."""
        owner = owner_of(request)
        for job in self._unfinished(owner):
            self.engine.cancel(job.id, owner)

    @plainly
    def files(self, request: gr.Request, event: gr.EventData) -> Update:
        """Hand a record on, as it is or as a page, and let the browser fetch it."""
        data, owner = event._data if isinstance(event._data, dict) else {}, owner_of(request)
        id, cache = data.get("id"), self.layout.gallery.GRADIO_CACHE
        if type(id) is not int:
            raise NotFound("There is no such record.")
        if data.get("what") == "html":
            text = illustrated_page.page(show_illustrated.record(self.engine.flight(id, owner), id))
            kept, name = save_bytes_to_cache(text.encode(), f"flight-{id}.html", cache), f"flight-{id}.html"
        else:
            kept, name = save_file_to_cache(self.engine.flight_file(id, owner), cache), f"flight-{id}.npz"
        url = f"gradio_api/file={Path(kept).as_posix()}"
        # What is told twice alike is not told the second time; a file may be wanted again.
        return self._told(file={"url": url, "name": name, "nonce": secrets.token_hex(4)})

    @plainly
    def open(self, file: str) -> Update:
        """A record from elsewhere: a file that this tab has handed on, here or on another machine."""
        name, data = Path(file).name, Path(file).read_bytes()
        try:
            record = show_illustrated.record(FlightRecord.from_bytes(data), hashlib.sha256(data).hexdigest())
        except ValueError as error:
            raise InvalidField("record", f"{name} is {error}", "Flight record") from error
        record["about"]["notes"].insert(0, f"Opened from {name}; it is not kept here.")
        return self._told(record=record)

    # Parts

    def _request(self, values: Values, owner: str) -> GenerationRequest:
        """
        Raises:
            WebuiError: what is wrong.
        """
        pictures = self.source.desk(owner).pictures(values)
        values = form.with_plugins(values, self.engine.plugins)
        return GenerationRequest(**{**form.used({**values, **pictures}), "num_images_per_prompt": 1})

    def _submitted(self, request: GenerationRequest, owner: str, delivery: Delivery) -> Job:
        return self.engine.submit([request], owner, delivery.replace(record=True), attended=True)

    def _unfinished(self, owner: str) -> list[Job]:
        return [job for job in self.engine.unfinished(owner) if job.delivery.record]

    def _follow(self, job: Job) -> Iterator[tuple[JobView, Update]]:
        """Each snapshot, and what is shown of it; with the last one the record."""
        with closing(job.watch(LOOK_UP, PAUSE)) as watch:
            for view in watch:
                if view.state == "queued":
                    self.engine.queue.tidy()  # a place that someone gave up shows at once
                going = not view.ended
                buttons = {
                    self.parts.run: gr.update(interactive=not going),
                    self.parts.stop: gr.update(interactive=going),
                }
                yield view, buttons | self._told(**self._said(job, view))

    def _said(self, job: Job, view: JobView) -> Message:
        status = self.engine.status
        state = show_illustrated.state(view, "" if status.ready else f"{status.message}…")
        if view.state != "done":
            return {"state": state}
        record = self._record(view.saved[0], job.owner)
        if record is None:
            said = " ".join(view.notes) or "The picture is made and saved, but no record of it could be kept."
            return {"state": {**state, "done": False, "headline": said}}
        return {"state": state, "record": record}

    def _record(self, picture: SavedPicture, owner: str) -> Message | None:
        try:
            return show_illustrated.record(self.engine.flight(picture.id, owner), picture.id)
        except NotFound:
            return None

    def _refused(self, error: WebuiError) -> Update:
        gr.Warning(escape(str(error)), title="Not started")
        return self._told(state=show_illustrated.refused(str(error)))

    def _told(self, **message: Any) -> Update:
        return {self.parts.view: gr.update(value=message)}
