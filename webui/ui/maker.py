"""Makes the controls of fields: labelled as everywhere, with the value they start with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from webui.ui.form import LABELS


def element(field: str) -> str:
    """The id of a field's control on the page."""
    return f"field-{field.replace('.', '-')}"


class Maker:
    """Called with a component's class and a field; remembers what it made in ``fields``."""

    def __init__(self, at_start: Mapping[str, Any]) -> None:
        self.at_start = at_start
        self.fields: dict[str, Any] = {}

    def __call__(self, kind: type, field: str, *arguments: Any, **keywords: Any) -> Any:
        keywords = {"label": LABELS.get(field), "value": self.at_start[field], **keywords}
        component = kind(*arguments, elem_id=element(field), **keywords)
        self.fields[field] = component
        return component

    def slider(
        self, field: str, low: float, high: float, step: float, info: str | None = None, **keywords: Any
    ) -> Any:
        keywords = {"min_width": 200, **keywords}
        return self(gr.Slider, field, low, high, step=step, info=info, buttons=[], **keywords)
