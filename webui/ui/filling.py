"""Filling the form: from pictures, texts, models and jobs; and sending a picture to a tab."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from textwrap import shorten
from typing import Any

import gradio as gr

from webui import images, infotext, units
from webui.engine import Engine
from webui.errors import InvalidField, WebuiError
from webui.grid.values import short
from webui.jobs import Job
from webui.request import GenerationRequest, ModelInfo, SavedPicture, Scalar
from webui.ui import form
from webui.ui.form import LABELS
from webui.ui.layout import Layout, model_choices
from webui.ui.sending import Target
from webui.ui.source import SourceActions, Update, components, owner_of, plainly
from webui.ui.telling import about_model

SEEDS = ("seed", "variation_seed")
LONGEST_TEMPLATE = 500  # characters, in a notice


class Filling:
    """The handlers that fill the form."""

    def __init__(self, engine: Engine, layout: Layout, source: SourceActions) -> None:
        self.engine = engine
        self.layout = layout
        self.source = source

    def again(self, request: gr.Request, saved: tuple[SavedPicture, ...], selected: int) -> Update:
        """Everything as it was for the selected picture, its source and mask too."""
        found = saved[selected].request
        _tell_template(found)
        return self.fill(form.of_request(found), owner_of(request))

    def sender(self, target: Target) -> Callable[..., Any]:
        """The handler of a target's button."""

        @plainly
        def send(request: gr.Request, **values: Any) -> Any:
            return self._send(target, owner_of(request), **values)

        return send

    def _send(
        self,
        target: Target,
        owner: str,
        saved: tuple[SavedPicture, ...] = (),
        selected: int = 0,
        with_settings: bool = False,
        **values: Any,
    ) -> Any:
        """The selected picture, exactly, becomes the source in a tab; the rest of the form only if asked."""
        if not saved:
            return gr.skip()
        picture = saved[selected]
        kept = form.of_request(picture.request) if with_settings else {}
        for name in ("task", *form.OF_SOURCE, *form.OF_MASK):  # those of the picture it was itself made from
            kept.pop(name, None)
        kept |= dict.fromkeys(form.OF_EXTENSION, 0) | {"task": target.task}
        image = images.open_picture(picture.path)
        chosen = self.source.chosen(self.source.desk(owner), image, {**values, **kept})
        return merged(self.fill(kept, owner), chosen)

    def reuse_seed(self, saved: tuple[SavedPicture, ...], selected: int) -> Any:
        return saved[selected].request.seed if saved else gr.skip()

    def fill_from_text(
        self, request: gr.Request, prompt: str, saved: tuple[SavedPicture, ...], selected: int
    ) -> Any:
        """Read A1111 infotext from the prompt; if the prompt is empty, the selected picture's."""
        text = prompt if prompt.strip() else saved[selected].infotext if saved else ""
        return self._fill_from(text, "The prompt holds no settings to read.", owner_of(request))

    def fill_from_file(self, request: gr.Request, file: str | None) -> Any:
        """Read the infotext inside a picture that was dropped on the prompt."""
        text = images.read_infotext(file) if file else None
        return self._fill_from(text or "", "There are no settings inside this file.", owner_of(request))

    def choose_model(self, model: str = "", canvas: Any = None, **values: Any) -> Update:
        """A model's own size and recommended settings; everything else stays.

        The size is that of the model, or in its tabs the one that suits the source.
        """
        info = _named(model, self.engine.models())
        filled = self.fill(form.of_model(info) if info else {}) | about_model(self.layout, info)
        if values.get("task", "txt2img") == "txt2img":
            return filled
        return merged(filled, components(self.source.detect(canvas, model=model, **values)))

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
        return {self.layout.fields["model"]: chosen} | about_model(self.layout, info)

    def of_job(self, job: Job) -> Update:
        """The form as it was when ``job`` was submitted, but for the seeds: those are drawn anew."""
        first, last, complete = job.asked[0], job.asked[-1], job.requests[0]
        first = first.replace(model=complete.model, scheduler=complete.scheduler)
        values = {**form.of_request(first), **dict(job.delivery)}
        if job.chained:
            values |= {"loopback_rounds": len(job.asked), "loopback_strength": last.strength}
        elif not job.persevere:
            values["batch_count"] = len(job.asked)
        return self.fill({name: value for name, value in values.items() if name not in SEEDS}, job.owner)

    def fill(self, values: Mapping[str, Any], owner: str = "") -> Update:
        """Set these fields, and what hangs on the model, scheduler, task and source among them."""
        values = self._known(values)
        fields = self.layout.fields
        update: Update = {fields[name]: gr.update(value=values[name]) for name in values if name in fields}
        if "model" in values:
            update |= about_model(self.layout, _named(values["model"], self.engine.models()))
        if "scheduler" in values:
            offered = self.choose_scheduler(values["scheduler"], values.get("sigma_schedule", "Automatic"))
            update = merged(update, offered)
        if "inpaint_area" in values:
            padded = gr.update(visible=values["inpaint_area"] == "Only masked")
            update = merged(update, {fields["masked_padding"]: padded})
        if "task" in values:
            update[self.layout.tabs] = gr.Tabs(selected=values["task"])
        if values.get("image"):
            update |= self._restored(values["image"], values.get("mask_image", ""), owner)
        return update

    def _restored(self, image: str, mask: str, owner: str) -> Update:
        """Source and mask on the canvas; the person is told if they are no longer here."""
        try:
            return self.source.restored(self.source.desk(owner), image, mask)
        except WebuiError as error:
            gr.Warning(escape(str(error)), title="All but the picture is filled in")
            return {}

    def _fill_from(self, text: str, otherwise: str, owner: str) -> Any:
        """Fill the form from a text. One with parameters sets every field, so that it gives that picture."""
        reading = infotext.read(text)
        if not any(reading.fields.values()):
            gr.Warning(otherwise)
            return gr.skip()
        try:
            values = form.of_reading(reading)
            _tell_template(reading.request())
        except WebuiError as error:
            gr.Warning(escape(str(error)), title="Not filled in")
            return gr.skip()
        if reading.unknown:
            gr.Info(f"Not used: {escape(', '.join(reading.unknown))}")
        return self.fill(values, owner)

    def _known(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Without what is not here; the person is told."""
        here = {
            "model": [info.name for info in self.engine.models()],
            "scheduler": [info.name for info in self.engine.schedulers()],
            "hires_upscaler": self.engine.upscalers(),
            "vae": ["", *self.engine.catalogue.of("vae")],
            **{f"{stem}_model": ["", *self.engine.catalogue.of("controlnet")] for stem in units.STEMS},
            "reference_model": ["", *self.engine.catalogue.of("ip-adapter")],
            "refiner": ["", *(info.name for info in self.engine.models())],
        }
        missing = {name for name, names in here.items() if name in values and values[name] not in names}
        for name in sorted(missing):
            gr.Warning(
                f"{escape(LABELS[name])}: {escape(str(values[name]))} is not here; it stays as it was."
            )
        known = {name: values[name] for name in values if name not in missing}
        return known | (self._of_plugins(values["plugins"]) if "plugins" in values else {})

    def _of_plugins(self, settings: Iterable[tuple[str, Scalar]]) -> dict[str, Any]:
        """Every plugin's fields: as these settings say, else neutral. What cannot be used is told."""
        host = self.engine.plugins
        found: dict[str, Scalar] = {}
        refused = []
        for name, value in settings:
            try:
                found |= host.chosen({name: value})
            except InvalidField as error:
                refused.append(f"{name} {short(str(value))}: {error.message}")
        if refused:
            gr.Warning(escape("; ".join(refused)), title="All but these is filled in")
        return form.neutral(host.plugins) | found


def merged(first: Update, second: Update) -> Update:
    """Both updates; of a component in both, the properties of both."""
    return first | {
        component: {**first[component], **value}
        if isinstance(value, dict) and isinstance(first.get(component), dict)
        else value
        for component, value in second.items()
    }


def _tell_template(request: GenerationRequest) -> None:
    """The prompt is the one the model got; a person may want to know of what it was made."""
    for text, label in ((request.template, "template"), (request.negative_template, "negative_template")):
        if text:
            gr.Info(escape(shorten(text, LONGEST_TEMPLATE, placeholder="…")), title=LABELS[label])


def _named(name: str, models: Sequence[ModelInfo]) -> ModelInfo | None:
    return next((info for info in models if info.name == name), None)
