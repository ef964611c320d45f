"""What varies in a grid: the controls of its axes, and saved grids."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from webui.engine import Engine
from webui.grid.plan import AXES, AxisSpec
from webui.ui.choosing import Choosing, known
from webui.ui.layout import Layout
from webui.ui.presets import FIRST, Preset, Presets
from webui.ui.source import Update, owner_of, plainly


class Varying:
    """The handlers of the axes. No state here."""

    def __init__(self, engine: Engine, layout: Layout, presets: Presets) -> None:
        self.engine = engine
        self.parts = layout.compare
        self.presets = presets

    def choosing(self) -> Choosing:
        return Choosing(self.parts.kinds, known(self.engine))

    def choose(self, name: str) -> Callable[[str], Update]:
        """The handler of an axis' list of kinds: values to begin with."""

        @plainly
        def choose(kind: str) -> Update:
            choosing = self.choosing()
            update = self._axis(name, choosing.started(kind), choosing)
            return update | {self.parts.preset: None}

        return choose

    def choose_all(self, name: str) -> Callable[[str], Update]:
        """The handler of an axis' button for everything."""

        def choose_all(kind: str) -> Update:
            return self._axis(name, AxisSpec(kind, "all"), self.choosing())

        return choose_all

    def swap(self, first: str, second: str) -> Callable[..., Update]:
        """The handler that swaps two axes."""

        @plainly
        def swap(**values: Any) -> Update:
            choosing = self.choosing()
            one, other = (choosing.spec(values, name) for name in (first, second))
            return self._axis(first, other, choosing) | self._axis(second, one, choosing)

        return swap

    def choose_preset(self, request: gr.Request, name: str) -> Any:
        """Set the axes as a saved grid has them. A name that is only being written changes nothing."""
        owner = owner_of(request)
        return self.chosen(self.presets.get(name, owner)) if name in self.presets.names(owner) else gr.skip()

    @plainly
    def save_preset(self, request: gr.Request, **values: Any) -> Update:
        owner = owner_of(request)
        name = self.presets.save(values["preset"], self.choosing().preset(values), owner)
        gr.Info(f"Saved: {escape(name)}")
        return {self.parts.preset: gr.update(choices=self.presets.names(owner), value=name)}

    @plainly
    def delete_preset(self, request: gr.Request, name: str) -> Update:
        owner = owner_of(request)
        self.presets.delete(name, owner)
        return {self.parts.preset: gr.update(choices=self.presets.names(owner), value=FIRST)}

    def chosen(self, preset: Preset) -> Update:
        choosing, update = self.choosing(), Update()
        for name in AXES:
            spec = getattr(preset, name)
            if missing := choosing.missing(spec):
                gr.Warning(f"Not here, and left out: {escape(', '.join(missing))}")
            update |= self._axis(name, spec, choosing)
        return update | {self.parts.per_cell: preset.per_cell}

    def _axis(self, name: str, spec: AxisSpec, choosing: Choosing) -> Update:
        axis = self.parts.axes[name]
        shown = choosing.properties(spec)
        return {getattr(axis, part): gr.update(**properties) for part, properties in shown.items()}
