"""What the page's controls do: read the fields by name, submit, stream snapshots, fill the form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from html import escape
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from webui import images, infotext
from webui.engine import Engine
from webui.errors import WebuiError
from webui.jobs import Job, JobView
from webui.request import LABELS, ModelInfo, SavedPicture
from webui.ui import form, show
from webui.ui.layout import Layout, model_choices

Update = dict[Any, Any]  # component -> its new value or properties

LOOK_UP = 0.5  # seconds: how often a stream looks up, and so how soon it notices that its page has gone
PAUSE = 0.15  # seconds between two snapshots: more would cost the worker time, and nobody sees faster
SEEDS = ("seed", "variation_seed")


class Actions:
    """The handlers of one page. No state here: jobs live in the engine, what a page shows in ``gr.State``."""

    def __init__(self, engine: Engine, layout: Layout) -> None:
        self.engine = engine
        self.layout = layout

    # Making pictures

    def generate(self, request: gr.Request, eta: float | None = None, **values: Any) -> Iterator[Update]:
        """Submit what the form says as one job, and stream it. The job goes on if the page goes away."""
        owner = owner_of(request)
        before = self.engine.unfinished(owner)
        try:
            requests, delivery = form.requests({**values, "eta": eta}), form.delivery(values)
            job = self.engine.submit(requests, owner, delivery, attended=True)
        except WebuiError as error:
            gr.Warning(escape(str(error)), title="Not started")
            yield {self.layout.stage: show.refusal(str(error))}
            return
        yield from self._stream([job], owner, ahead=before[-1] if before else None)

    def attach(self, request: gr.Request) -> Iterator[Update]:
        """A page opens: find this person's jobs again, and what was asked for last."""
        owner = owner_of(request)
        models = self.engine.models()
        update: Update = {self.layout.fields["model"]: gr.update(choices=model_choices(models))}
        latest = self.engine.latest(owner)
        if latest is None:
            yield update
            return
        yield _merged(update, self._restored(latest))
        jobs = self.engine.unfinished(owner) or [latest]
        yield from self._stream(jobs, owner)

    def cancel(self, request: gr.Request) -> None:
        """Stop the oldest unfinished job: the one on the stage."""
        owner = owner_of(request)
        for job in self.engine.unfinished(owner)[:1]:
            self.engine.cancel(job.id, owner)

    # Filling the form

    def again(self, saved: tuple[SavedPicture, ...], selected: int) -> Update:
        return self._fill(form.of_request(saved[selected].request))

    def reuse_seed(self, saved: tuple[SavedPicture, ...], selected: int) -> Any:
        return saved[selected].request.seed if saved else gr.skip()

    def fill_from_text(self, prompt: str, saved: tuple[SavedPicture, ...], selected: int) -> Any:
        """Read A1111 infotext from the prompt; if the prompt is empty, the selected picture's."""
        text = prompt if prompt.strip() else saved[selected].infotext if saved else ""
        return self._fill_from(text, "The prompt holds no settings to read.")

    def fill_from_file(self, file: str | None) -> Any:
        """Read the infotext inside a picture that was dropped on the prompt."""
        text = images.read_infotext(file) if file else None
        return self._fill_from(text or "", "There are no settings inside this file.")

    def choose_model(self, name: str) -> Update:
        """A model's own size and recommended settings; everything else stays."""
        models = self.engine.models()
        info = _named(name, models)
        return self._fill(form.of_model(info) if info else {}) | self._about(info)

    def choose_scheduler(self, name: str, schedule: str) -> Update:
        """Offer the sigma schedules that fit; keep the present one if it does."""
        infos = self.engine.schedulers()
        choices = form.schedules(name, infos)
        fields = self.layout.fields
        return {
            fields["sigma_schedule"]: gr.update(
                choices=list(choices), value=schedule if schedule in choices else "Automatic"
            ),
            fields["eta"]: gr.update(visible=form.uses_eta(name, infos)),
        }

    def refresh(self, name: str) -> Update:
        """Look into the models folders again."""
        models = self.engine.models()
        info = _named(name, models) or next(iter(models), None)
        chosen = gr.update(choices=model_choices(models), value=info.name if info else None)
        return {self.layout.fields["model"]: chosen} | self._about(info)

    # Telling

    def tick(self, prompt: str, negative_prompt: str, model: str) -> Update:
        """Say what the engine is doing until it is ready."""
        status = self.engine.status
        said = {self.layout.status: show.status(status.message, status.device, status.ready)}
        if not status.ready:
            return said
        counted = self.count(prompt, negative_prompt, model)
        return said | counted | {self.layout.ticker: gr.Timer(active=False)}

    def count(self, prompt: str, negative_prompt: str, model: str) -> Update:
        """The tokens of both prompts."""
        texts = {"prompt": prompt, "negative_prompt": negative_prompt}
        return {
            self.layout.tokens[field]: show.tokens(self.engine.count_tokens(text or "", model or ""))
            for field, text in texts.items()
        }

    def select(self, event: gr.SelectData, saved: tuple[SavedPicture, ...]) -> Any:
        return self._about_picture(saved, event.index) if event.index < len(saved) else gr.skip()

    # Parts

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
                    yield self._progress(view, owner) | self._pictures(view, pictures)
                    pictures = len(view.saved)

    def _progress(self, view: JobView, owner: str) -> Update:
        status = self.engine.status
        others = [job for job in self.engine.unfinished(owner) if job.id != view.id]
        note = "" if status.ready else f"{status.message}…"
        return {
            self.layout.stage: show.stage(view, note, waiting=len(others)),
            self.layout.cancel: gr.update(interactive=not view.ended or bool(others)),
        }

    def _pictures(self, view: JobView, before: int) -> Update:
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
            update |= self._about_picture(view.saved, 0)
        return update

    def _about_picture(self, saved: tuple[SavedPicture, ...], index: int) -> Update:
        layout = self.layout
        return {
            layout.selected: index,
            layout.caption: show.caption(saved[index]),
            layout.infotext: saved[index].infotext,
            layout.again: gr.update(interactive=True),
        }

    def _about(self, info: ModelInfo | None) -> Update:
        examples = [[example] for example in (info.examples if info else ())]
        return {
            self.layout.model_note: show.model_note(info),
            self.layout.examples: gr.Dataset(samples=examples, visible=bool(examples)),
        }

    def _restored(self, job: Job) -> Update:
        """The form as it was when ``job`` was submitted, but for the seeds: those are drawn anew."""
        values = {**dict(job.requests[0]), **dict(job.delivery), "batch_count": len(job.requests)}
        return self._fill({name: value for name, value in values.items() if name not in SEEDS})

    def _fill_from(self, text: str, otherwise: str) -> Any:
        """Fill the form from a text. One with parameters sets every field, so that it gives that picture."""
        reading = infotext.read(text)
        if not any(reading.fields.values()):
            gr.Warning(otherwise)
            return gr.skip()
        try:
            values = form.of_reading(reading)
        except WebuiError as error:
            gr.Warning(escape(str(error)), title="Not filled in")
            return gr.skip()
        if reading.unknown:
            gr.Info(f"Not used: {escape(', '.join(reading.unknown))}")
        return self._fill(values)

    def _fill(self, values: Mapping[str, Any]) -> Update:
        """Set these fields, and what hangs on the model and the scheduler among them."""
        values = self._known(values)
        update: Update = {self.layout.fields[name]: gr.update(value=value) for name, value in values.items()}
        if "model" in values:
            update |= self._about(_named(values["model"], self.engine.models()))
        if "scheduler" in values:
            offered = self.choose_scheduler(values["scheduler"], values.get("sigma_schedule", "Automatic"))
            update = _merged(update, offered)
        return update

    def _known(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Without a model or scheduler that is not here; the person is told."""
        here = {
            "model": [info.name for info in self.engine.models()],
            "scheduler": [info.name for info in self.engine.schedulers()],
        }
        missing = {name for name, names in here.items() if name in values and values[name] not in names}
        for name in sorted(missing):
            gr.Warning(
                f"{escape(LABELS[name])}: {escape(str(values[name]))} is not here; it stays as it was."
            )
        return {name: values[name] for name in values if name in self.layout.fields and name not in missing}


def owner_of(request: gr.Request) -> str:
    """Who is asking, as the guard found out."""
    return str(request.request.state.owner)


def _merged(first: Update, second: Update) -> Update:
    """Both updates; of a component in both, the properties of both."""
    return first | {
        component: {**first[component], **value} if component in first else value
        for component, value in second.items()
    }


def _named(name: str, models: Sequence[ModelInfo]) -> ModelInfo | None:
    return next((info for info in models if info.name == name), None)
