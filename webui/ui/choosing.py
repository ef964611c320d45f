"""What the controls of an axis offer, show and say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from webui.engine import Engine
from webui.errors import InvalidField
from webui.grid.axes import AxisKind, Known, kinds
from webui.grid.plan import AXES, AxisSpec
from webui.grid.values import short, split, written
from webui.request import ModelInfo, SchedulerInfo
from webui.ui.presets import Preset

# The axes in the order of the list: what is varied most comes first, the rest as the grid has it.
COMMON = (
    "scheduler", "guidance_scale", "num_inference_steps", "seed", "prompt_replace", "prompt",
    "sigma_schedule", "model", "size", "negative_prompt",
)  # fmt: skip
# What to begin with when an axis is chosen, so that there is something to change; of a pick list, everything.
STARTS = {
    "guidance_scale": "1, 2, 4, 8",
    "num_inference_steps": "5, 10, 20, 40",
    "eta": "0, 0.5, 1",
    "seed": "1-4",
    "variation_seed": "1-4",
    "variation_strength": "0-1 [5]",
    "clip_skip": "1-3",
    "strength": "0.2-1 [5]",
    "hires_strength": "0.2-1 [5]",
    "hires_scale": "1.5, 2",
    "mask_blur": "0, 4, 16",
    "mask_grow": "-8, 0, 8",
    "masked_padding": "0, 32, 128",
}
HINTS = {
    "prompt": "One prompt a line, or between commas; quotation marks keep a comma",
    "negative_prompt": "One a line, or between commas; quotation marks keep a comma",
    "prompt_replace": "What to look for in the prompt, then what takes its place: cat, dog, owl",
    "negative_prompt_replace": "What to look for, then what takes its place: blur, noise",
    "prompt_order": "Words of the prompt, in all orders: red, round, shiny",
    "negative_prompt_order": "Words of the negative prompt, in all orders",
    "size": "512x768, 768x512",
}
NUMBERS = "1-10 · 1-10 (+2) · 1-10 [5] · 4, 7, 12"


CONTROLS: Mapping[str, Any] = {
    "kind": "",
    "text": "",
    "pick": [],
}  # of an axis; what each says if it is empty


@dataclass(frozen=True)
class Choosing:
    """What can be chosen: the kinds of axes that there are, and what is known on this machine."""

    kinds: Mapping[str, AxisKind]
    known: Known

    @classmethod
    def among(
        cls,
        models: Iterable[ModelInfo],
        schedulers: Iterable[SchedulerInfo],
        extra: Iterable[AxisKind] = (),
    ) -> Choosing:
        """
        Raises:
            ValueError: an extra axis has the name of another.
        """
        return cls(kinds(extra), Known(tuple(models), tuple(schedulers)))

    def kinds_by_label(self) -> list[tuple[str, str]]:
        """Of the axes, for their list: (label, name)."""
        names = [*COMMON, *(name for name in self.kinds if name not in COMMON)]
        offered = [self.kinds[name] for name in names if self.kinds[name].offered()]
        return [("None", ""), *((kind.label, kind.name) for kind in offered)]

    def properties(self, spec: AxisSpec) -> dict[str, dict[str, Any]]:
        """The properties of each control of an axis that stands at ``spec``."""
        kind, listed = self.kinds.get(spec.kind), self._listed(spec)
        typed = kind is not None and kind.choices is None
        hint = HINTS.get(spec.kind, kind.hint if kind else "")
        return {
            "kind": {"value": spec.kind if kind else ""},
            "text": {"value": spec.text if typed else "", "visible": typed,
                     "placeholder": hint or NUMBERS, "lines": 2 if hint else 1},
            "pick": {"choices": list(listed), "value": list(_picked(spec.text, listed)),
                     "visible": bool(listed)},
            "every": {"visible": bool(listed)},
        }  # fmt: skip

    def started(self, name: str) -> AxisSpec:
        """An axis just chosen: with values to begin with, where any are as good as others."""
        kind = self.kinds.get(name)
        if kind is None:
            return AxisSpec()
        start = written(kind.choices(self.known)[:6]) if kind.choices else STARTS.get(name, kind.start)
        return AxisSpec(name, start)

    def missing(self, spec: AxisSpec) -> list[str]:
        """What an axis names that is not here: itself, or values of its pick list."""
        if spec.kind and spec.kind not in self.kinds:
            return [spec.kind]
        listed = self._listed(spec)
        here = {choice.casefold() for choice in listed} | {"all"}
        return [word for word in _words(spec.text) if word.casefold() not in here] if listed else []

    def spec(self, values: Mapping[str, Any], name: str) -> AxisSpec:
        """What the controls of an axis say.

        Raises:
            InvalidField: that is no text, or no such axis; the field is ``name``.
        """
        named, text, chosen = (values[f"{name}_{part}"] or empty for part, empty in CONTROLS.items())
        if not all(isinstance(each, str) for each in (named, text)) or not _are_words(chosen):
            raise InvalidField(name, "must be text", f"{name.upper()} axis")
        kind = self.kinds.get(named)
        if named and kind is None:
            raise InvalidField(name, f"there is no axis named {short(named)}", f"{name.upper()} axis")
        return AxisSpec(named, written(chosen) if kind and kind.choices else text if kind else "")

    def preset(self, values: Mapping[str, Any]) -> Preset:
        """What all controls say.

        Raises:
            InvalidField: as :meth:`spec`; or the pictures per cell are no number of them.
        """
        x, y, z = (self.spec(values, name) for name in AXES)
        return Preset(x, y, z, whole(values["per_cell"]))

    def _listed(self, spec: AxisSpec) -> tuple[str, ...]:
        """The pick list of an axis; none if its values are typed."""
        kind = self.kinds.get(spec.kind)
        return kind.choices(self.known) if kind and kind.choices else ()


def _are_words(chosen: Any) -> bool:
    return isinstance(chosen, list) and all(isinstance(word, str) for word in chosen)


def _picked(text: str, listed: Sequence[str]) -> Iterator[str]:
    """The choices that a text names and that there are, "all" being everything; each once."""
    spelt = {choice.casefold(): choice for choice in listed}
    words = [word.casefold() for word in _words(text)]
    words = [each for word in words for each in (spelt if word == "all" and word not in spelt else [word])]
    return (spelt[word] for word in dict.fromkeys(words) if word in spelt)


def _words(text: str) -> list[str]:
    try:
        return split(text)
    except ValueError:  # not written by us
        return []


def known(engine: Engine) -> Known:
    """What can be chosen by now: models come and go."""
    return Known(
        tuple(engine.models()),
        tuple(engine.schedulers()),
        tuple(engine.upscalers()),
        tuple(engine.names("lora")),
        tuple(engine.names("vae")),
        tuple(engine.names("controlnet")),
    )


def whole(value: Any) -> Any:
    """20.0 is a whole number to a person."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
