"""Making pictures: read the fields by name, submit, stream snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from webui.engine import Engine
from webui.errors import WebuiError
from webui.jobs import Job, JobView
from webui.ui import batch as batches
from webui.ui import form, show
from webui.ui.batch import Batch
from webui.ui.desk import NothingPainted
from webui.ui.filling import Filling, merged
from webui.ui.form import Values
from webui.ui.layout import Layout, model_choices
from webui.ui.runs import Runs
from webui.ui.source import SourceActions, Update, components, owner_of
from webui.ui.telling import about_picture

LOOK_UP = 0.5  # seconds: how often a stream looks up, and so how soon it notices that its page has gone
PAUSE = 0.15  # seconds between two snapshots: more would cost the worker time, and nobody sees faster


class Making:
    """The handlers that submit, stream and cancel jobs. A job goes on if the page goes away."""

    def __init__(
        self, engine: Engine, layout: Layout, source: SourceActions, filling: Filling, runs: Runs
    ) -> None:
        """``runs``: grids, whose jobs are not shown here."""
        self.engine = engine
        self.layout = layout
        self.source = source
        self.filling = filling
        self.runs = runs

    def generate(
        self, request: gr.Request, eta: float | None = None, canvas: Any = None, **values: Any
    ) -> Iterator[Update]:
        """Submit what the form says as one job, and stream it; ask first if it says less than it seems to."""
        owner = owner_of(request)
        values |= {"eta": eta, "canvas": canvas}
        before = self._unfinished(owner)
        try:
            job = self._submitted(values, owner)
        except NothingPainted:
            yield {self.layout.question: gr.update(visible=True)}
            return
        except WebuiError as error:
            yield self._refused(error)
            return
        stream = self._stream([job], owner, ahead=before[-1] if before else None)
        yield components(next(stream)) | {self.layout.question: gr.update(visible=False)}
        yield from stream

    def change_all(self, request: gr.Request, **values: Any) -> Iterator[Update]:
        """Image to image with what the inpainting tab says: nothing was painted, and that is meant."""
        yield from self.generate(request, **{**values, "task": "img2img", "loopback_rounds": 1})

    def attach(self, request: gr.Request) -> Iterator[Update]:
        """A page opens: find this person's jobs again, and what was asked for last."""
        owner = owner_of(request)
        models = self.engine.models()
        update: Update = {self.layout.fields["model"]: gr.update(choices=model_choices(models))}
        latest = self.engine.latest(owner)
        jobs = self._unfinished(owner)
        if latest is None or self._elsewhere(latest):
            yield update
        else:
            yield merged(update, self.filling.of_job(latest))
            jobs = jobs or [latest]
        yield from self._stream(jobs, owner)

    def cancel(self, request: gr.Request) -> None:
        """Stop the oldest unfinished job: the one on the stage."""
        owner = owner_of(request)
        for job in self._unfinished(owner)[:1]:
            self.engine.cancel(job.id, owner)

    # Many files

    def folders(self) -> Any:
        """The folders of the server's inputs."""
        found = batches.folders(self._inputs())
        hint = "" if found else "Put pictures into inputs/ in the data folder, or folders of them."
        return gr.update(choices=found, info=hint)

    def read_files(self, request: gr.Request, files: list[str] | None) -> Iterator[Update]:
        """Open uploaded files, and say which cannot be used."""
        yield from self._read([(Path(file).name, Path(file)) for file in files or []], owner_of(request))

    def read_folder(self, request: gr.Request, folder: str | None) -> Iterator[Update]:
        """The same for a folder of the list."""
        try:
            named = batches.files(self._inputs(), folder)
        except WebuiError as error:
            gr.Warning(escape(str(error)))
            return
        yield from self._read(named, owner_of(request))

    def change_files(
        self,
        request: gr.Request,
        batch: Batch | None = None,
        detect_size: bool = True,
        eta: float | None = None,
        **values: Any,
    ) -> Iterator[Update]:
        """One job for all of them, which goes on past those that fail."""
        owner, batch = owner_of(request), batch or Batch()
        before = self._unfinished(owner)
        native = self.source.native(values) if detect_size is True else None
        try:
            whole = form.with_plugins({**values, "eta": eta}, self.engine.plugins)
            requests = batches.requests(batch, whole, native)
            job = self.engine.submit(requests, owner, form.delivery(values), attended=True, persevere=True)
        except WebuiError as error:
            yield self._refused(error)
            return
        for update in self._stream([job], owner, ahead=before[-1] if before else None):
            yield components(update) | {self.layout.source.batch_report: _report(batch, job)}

    def _read(self, named: Sequence[batches.Named], owner: str) -> Iterator[Update]:
        parts, batch = self.layout.source, Batch()
        try:
            for batch in batches.read(named, self.source.desk(owner)):
                done = len(batch.pieces) + len(batch.refused)
                note = f"Reading: {done} of {len(named)}"
                yield {parts.batch_report: show.batch(refused=batch.refused, note=note)}
        except WebuiError as error:
            gr.Warning(escape(str(error)))
            batch = Batch()
        count = len(batch.pieces)
        words = "Change all of them" if count < 2 else f"Change all {count} of them"
        yield {
            parts.batch: batch,
            parts.batch_report: show.batch(count, batch.refused),
            parts.batch_start: gr.update(value=words, interactive=count > 0),
        }

    def _inputs(self) -> Path:
        return self.engine.settings.data_dir / "inputs"

    # Parts

    def _submitted(self, values: Values, owner: str) -> Job:
        """
        Raises:
            NothingPainted: a person must be asked.
            WebuiError: what is wrong.
        """
        delivery = form.delivery(values)
        values = form.with_plugins(values, self.engine.plugins)
        requests = form.requests({**values, **self.source.desk(owner).pictures(values)})
        return self.engine.submit(requests, owner, delivery, attended=True, chained=form.is_loopback(values))

    def _unfinished(self, owner: str) -> list[Job]:
        """Those that are shown here, in the order in which they get their turns."""
        return [job for job in self.engine.unfinished(owner) if not self._elsewhere(job)]

    def _elsewhere(self, job: Job) -> bool:
        """Whether another tab shows it: a grid's jobs, and one that is watched, which ends up here too."""
        return self.runs.of_job(job) is not None or (job.delivery.record and not job.view.ended)

    def _refused(self, error: WebuiError) -> Update:
        gr.Warning(escape(str(error)), title="Not started")
        return {self.layout.stage: show.refusal(str(error))}

    def _stream(self, jobs: Sequence[Job], owner: str, ahead: Job | None = None) -> Iterator[Any]:
        """Show jobs one after the other; nothing while ``ahead`` is not ended, as another stream shows it.

        All of them count as watched from the start, so that none gives up its place in the queue.
        """
        with ExitStack() as stack:
            watches = [stack.enter_context(closing(job.watch(LOOK_UP, PAUSE))) for job in jobs]
            for later in watches[1:]:
                next(later)
            for watch in watches:
                pictures = 0
                for view in watch:
                    if view.state == "queued":
                        self.engine.queue.tidy()  # a place that someone gave up shows at once
                    if ahead is not None and not ahead.view.ended:
                        yield gr.skip()
                        continue
                    yield self._progress(view, owner) | self.pictures(view, pictures)
                    pictures = len(view.saved)

    def _progress(self, view: JobView, owner: str) -> Update:
        status = self.engine.status
        others = [job for job in self._unfinished(owner) if job.id != view.id]
        note = "" if status.ready else f"{status.message}…"
        return {
            self.layout.stage: show.stage(view, note, waiting=len(others)),
            self.layout.cancel: gr.update(interactive=not view.ended or bool(others)),
        }

    def pictures(self, view: JobView, before: int) -> Update:
        """The gallery, when there are more pictures than ``before`` and at the end; the first is selected.

        Files are copied into Gradio's cache byte for byte, under a name that holds their hash: so no folder
        of ours is opened to the web, and nobody can ask for a picture that he was not shown.
        """
        layout = self.layout
        if not view.saved or not (view.ended or len(view.saved) > before):
            return {}
        paths = [save_file_to_cache(picture.path, layout.gallery.GRADIO_CACHE) for picture in view.saved]
        update: Update = {layout.gallery: gr.update(value=paths), layout.saved: view.saved}
        if before == 0:
            update[layout.gallery]["selected_index"] = 0
            update |= about_picture(layout, view.saved, 0)
        return update


def _report(batch: Batch, job: Job) -> str:
    """How far a batch is, what was left out of it, and what has failed."""
    view = job.view
    failed = [(batch.pieces[failure.turn].name, str(failure.error)) for failure in view.failures]
    note = f"{len(view.saved)} of {view.pictures_total} changed"
    return show.batch(refused=(*batch.refused, *failed), note=note)
