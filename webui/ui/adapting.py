"""How the form follows its model: what goes with it, what it cannot do, and which words suit its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from webui.catalogue.found import Found, Kind
from webui.engine import Engine
from webui.request import LABELS, ModelInfo
from webui.ui import show, sizes, tags
from webui.ui.companions import AUTOMATIC, NONE
from webui.ui.layout import NEGATIVE_HINT, Layout
from webui.ui.source import Update

Choices = list[tuple[str, str]]
SIDES = ("width", "height")
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
            **self._sides(info),
        }

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

    def _sides(self, info: ModelInfo | None) -> Update:
        """Width and height go in the model's own steps."""
        step = info.multiple if info else sizes.STEP
        return {self.layout.fields[side]: gr.update(step=step) for side in SIDES}

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
        return {
            self.parts.refining: gr.update(visible=bool(names)),
            self.layout.fields["refiner"]: gr.update(choices=choices, **_kept(chosen, names)),
        }

    def _vae(self, info: ModelInfo | None, chosen: str) -> Update:
        names = list(self._fitting("vae", info))
        return {
            self.layout.fields["vae"]: gr.update(
                choices=[AUTOMATIC, *((name, name) for name in names)],
                visible=bool(names),
                **_kept(chosen, names),
            )
        }

    def _fitting(self, kind: Kind, info: ModelInfo | None) -> dict[str, Found]:
        """The usable files of a kind that may go with the model."""
        family = info.family if info else ""
        return {
            name: found
            for name, found in self.engine.catalogue.of(kind).items()
            if not found.problem and found.family in ("", "other", family)
        }


def _kept(chosen: str, names: Sequence[str]) -> dict[str, str]:
    """The value of a list, only where it must go: what fills the form while the page loads is left alone."""
    return {"value": ""} if chosen and chosen not in names else {}


def _refines(other: ModelInfo, info: ModelInfo) -> bool:
    """Whether another model reads the same latents, and so can go on with them."""
    return other.family.removesuffix("-refiner") == info.family.removesuffix("-refiner")
