"""How the form follows its model: what goes with it, what it cannot do, and which words suit its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from webui import images
from webui.catalogue.found import Found, Kind
from webui.engine import Engine
from webui.errors import WebuiError
from webui.request import LABELS, ModelInfo
from webui.ui import show, tags
from webui.ui.companions import AUTOMATIC, NONE
from webui.ui.layout import NEGATIVE_HINT, Layout
from webui.ui.source import Update, owner_of, plainly

SIDE = 320  # pixels, of the reference as it is shown
Choices = list[tuple[str, str]]
TOLD = "Told to this model, which follows it by itself"


class Adapting:
    """The handlers."""

    def __init__(self, engine: Engine, layout: Layout) -> None:
        self.engine = engine
        self.layout = layout
        self.parts = layout.companions

    def follow(
        self,
        model: str | None,
        prompt: str | None,
        refiner: str | None,
        vae: str | None,
        reference: str | None,
    ) -> Update:
        """Everything that hangs on the model and on the files there are. What does not fit is taken back."""
        models = self.engine.models()
        info = next((info for info in models if info.name == model), None)
        return {
            self.parts.note: show.model_limits(info),
            **self._guidance(info),
            **self._scheduler(info),
            **self._loras(info, prompt or ""),
            **self._refiner(info, models, refiner or ""),
            **self._vae(info, vae or ""),
            **self._reference(info, reference or ""),
        }

    # The reference picture

    @plainly
    def take_picture(self, request: gr.Request, file: str | None) -> Any:
        """A file that was chosen: its digest, for the field."""
        if not file:
            return gr.skip()
        return self.engine.sources.keep(images.open_picture(file), owner_of(request))

    def show_picture(self, request: gr.Request, digest: str | None) -> str:
        """The picture that the field names, if this person has it."""
        try:
            picture = self.engine.sources.open(digest or "", owner_of(request), "reference_image")
        except WebuiError:
            return show.reference(None)
        small = picture.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        return show.reference(images.encode(small, "jpeg", 85, ""))

    # LoRAs

    def loras_in(self, prompt: str | None, known: Mapping[str, Sequence[str]]) -> Any:
        """Those of a prompt, on their list. Names that there are not stay in the prompt alone."""
        return [name for name in tags.loras(prompt or "") if name in known]

    def choose_loras(
        self, prompt: str | None, chosen: Sequence[str] | None, known: Mapping[str, Sequence[str]]
    ) -> str:
        """The prompt with the tags of these, and with those of no other that is on the list."""
        others = [name for name in tags.loras(prompt or "") if name not in known]
        return tags.chosen(prompt or "", [*others, *(chosen or ())], known)

    def _guidance(self, info: ModelInfo | None) -> Update:
        guided = info is None or info.guided
        return {
            self.layout.fields["negative_prompt"]: gr.update(
                interactive=guided, placeholder=NEGATIVE_HINT if guided else "This model takes none."
            ),
            self.layout.fields["guidance_scale"]: gr.update(
                label=LABELS["guidance_scale"] if guided else "Guidance", info=None if guided else TOLD
            ),
        }

    def _scheduler(self, info: ModelInfo | None) -> Update:
        misfits = self.engine.misfits(info.name) if info else []
        fits = [each.name for each in self.engine.schedulers() if each.name not in misfits]
        told = f"Not for this model: {', '.join(misfits)}" if misfits else None
        if len(fits) < len(misfits):
            told = f"For this model: {', '.join(fits)}"
        return {self.layout.fields["scheduler"]: gr.update(info=told)}

    def _loras(self, info: ModelInfo | None, prompt: str) -> Update:
        found = self._fitting("lora", info)
        known = {name: each.words for name, each in found.items()}
        shown = self.loras_in(prompt, known)
        return {
            self.parts.known: known,
            self.parts.loras: gr.update(choices=list(known), value=shown, visible=bool(known)),
        }

    def _refiner(self, info: ModelInfo | None, models: Sequence[ModelInfo], chosen: str) -> Update:
        others = [each for each in models if info and each.name != info.name and _refines(each, info)]
        names = [each.name for each in others]
        choices: Choices = [NONE, *((each.title, each.name) for each in others)]
        value = chosen if chosen in names else ""
        return {
            self.parts.refining: gr.update(visible=bool(names)),
            self.layout.fields["refiner"]: gr.update(choices=choices, value=value),
        }

    def _vae(self, info: ModelInfo | None, chosen: str) -> Update:
        names = list(self._fitting("vae", info))
        return {
            self.layout.fields["vae"]: gr.update(
                choices=[AUTOMATIC, *((name, name) for name in names)],
                value=chosen if chosen in names else "",
                visible=bool(names),
            )
        }

    def _reference(self, info: ModelInfo | None, chosen: str) -> Update:
        names = list(self._fitting("ip-adapter", info))
        choices: Choices = [NONE, *((name, name) for name in names)]
        fields = self.layout.fields
        gone = not names or (chosen and chosen not in names)  # and with the model its picture
        return {
            self.parts.referring: gr.update(visible=bool(names)),
            fields["reference_model"]: gr.update(choices=choices, value="" if gone else chosen),
            **({fields["reference_image"]: ""} if gone else {}),
        }

    def _fitting(self, kind: Kind, info: ModelInfo | None) -> dict[str, Found]:
        """The usable files of a kind that may go with the model."""
        family = info.family if info else ""
        return {
            name: found
            for name, found in self.engine.catalogue.of(kind).items()
            if not found.problem and found.family in ("", "other", family)
        }


def _refines(other: ModelInfo, info: ModelInfo) -> bool:
    """Whether another model reads the same latents, and so can go on with them."""
    return other.family.removesuffix("-refiner") == info.family.removesuffix("-refiner")
