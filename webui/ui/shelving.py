"""What the Models tab does with what is on the disk and in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any, cast

import gradio as gr

from webui.catalogue.found import KINDS, Found, Kind
from webui.engine import Engine
from webui.errors import NotAllowed, NotFound
from webui.ui import show_models, tags
from webui.ui.filling import Filling, merged
from webui.ui.layout import Layout, model_choices
from webui.ui.source import Update, may_manage, owner_of, plainly
from webui.ui.thumbnails import Thumbnails

LONGEST_NOTE = 1000  # characters
IN_THE_FORM = ("checkpoint", "lora", "embedding")  # kinds that it takes as its model, or in its prompt
FIELDS = {
    "vae": "vae",
    "controlnet": "control_model",
    "ip-adapter": "reference_model",
}  # those that further fields name

USED = (*IN_THE_FORM, *FIELDS)


class Shelving:
    """The handlers of the lists. What there is, the engine knows; nothing is kept here but small pictures."""

    def __init__(self, engine: Engine, layout: Layout, filling: Filling) -> None:
        self.engine = engine
        self.layout = layout
        self.parts = layout.models
        self.filling = filling
        self.thumbnails = Thumbnails(engine.library)

    # What is on the disk

    def list(self, request: gr.Request) -> Update:
        """All there is, looked for anew, and what is in memory."""
        manage, catalogue = may_manage(self.engine, request), self.engine.catalogue
        pictures = self.thumbnails.of(owner_of(request))
        files, listed = [], catalogue.all()
        for found in listed:
            note = catalogue.notes.get(found.kind, found.name)
            shown = show_models.file(found, catalogue.known_sha256(found), note, found.kind in USED, manage)
            files.append(shown | pictures.get(show_models.key(found), {}))
        offered = gr.update(choices=model_choices(self.engine.models(listed)))
        shelf = {self.parts.shelf: show_models.shelf(files), self.layout.fields["model"]: offered}
        return shelf | self.look(request)

    @plainly
    def use(
        self,
        request: gr.Request,
        event: gr.EventData,
        prompt: str = "",
        canvas: Any = None,
        **values: Any,
    ) -> Any:
        """The form takes a file: as its model, VAE or reference model, or in its prompt."""
        found, fields = self._found(data_of(event)), self.layout.fields
        if found.problem:
            raise NotFound(f"{found.name} cannot be used: {found.problem}")
        match found.kind:
            case "checkpoint":
                chosen = self.filling.choose_model(**{**values, "model": found.name, "canvas": canvas})
                return merged({fields["model"]: gr.update(value=found.name)}, chosen)
            case "lora":
                _tell(found)
                return {fields["prompt"]: tags.with_lora(prompt, found.name, found.words)}
            case "embedding":
                _tell(found)
                return {fields["prompt"]: tags.with_word(prompt, found.name)}
        return {fields[FIELDS[found.kind]]: gr.update(value=found.name)}

    @plainly
    def note(self, request: gr.Request, event: gr.EventData) -> None:
        """Make a file a favourite or an ordinary one, or keep what is said of it. Everyone sees that."""
        self._check(request)
        found, data = self._found(data_of(event)), data_of(event)
        changes: dict[str, Any] = {"favourite": data["star"] is True} if "star" in data else {}
        changes |= {"text": _text(data, "note")[:LONGEST_NOTE]} if "note" in data else {}
        self.engine.catalogue.notes.change(found.kind, found.name, **changes)

    # What is in memory

    def look(self, request: gr.Request) -> Update:
        """What is in memory by now."""
        manage = may_manage(self.engine, request)
        return {self.parts.memory: show_models.memory(self.engine.residency(), manage)}

    def load(self, request: gr.Request, event: gr.EventData) -> Update:
        """Load a checkpoint, before a picture needs it."""
        self._manage(request, lambda: self.engine.load(self._found(data_of(event)).name))
        return self.look(request)

    def release(self, request: gr.Request, event: gr.EventData) -> Update:
        """Give a part's memory back, or all that nothing uses."""
        self._manage(request, lambda: self.engine.release(_text(data_of(event), "key")))
        return self.look(request)

    def pin(self, request: gr.Request, event: gr.EventData) -> Update:
        """Keep a part whatever comes, or no longer."""
        key, pinned = _text(data_of(event), "key"), data_of(event).get("pinned") is True
        self._manage(request, lambda: self.engine.pin(key, pinned))
        return self.look(request)

    # Parts

    @plainly
    def _manage(self, request: gr.Request, do: Callable[[], None]) -> None:
        self._check(request)
        do()

    def _check(self, request: gr.Request) -> None:
        """
        Raises:
            NotAllowed: this person may not.
        """
        if not may_manage(self.engine, request):
            raise NotAllowed("Only an administrator of this server may do that with its models.")

    def _found(self, data: Mapping[str, Any]) -> Found:
        """
        Raises:
            NotFound: there is no such file (any more).
        """
        kind, _, name = _text(data, "key").partition("/")
        found = self.engine.catalogue.of(cast(Kind, kind)).get(name) if kind in KINDS else None
        if found is None:
            raise NotFound("That file is not here any more. Press Refresh.")
        return found


def data_of(event: gr.EventData) -> Mapping[str, Any]:
    """What the browser says, unchecked."""
    data = event._data
    return data if isinstance(data, dict) else {}


def _text(data: Mapping[str, Any], name: str) -> str:
    text = data.get(name)
    return text if isinstance(text, str) else ""


def _tell(found: Found) -> None:
    """The prompt is not seen from here."""
    gr.Info(escape(f"{found.name} is in the prompt."))
