"""Plugins on the page: the controls of their settings, the tabs they bring, and the list of them all.

Whatever a plugin says of itself is shown as words, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import gradio as gr

from webui.hookspecs import Setting, Tab
from webui.plugins.host import Host
from webui.plugins.loading import Plugin
from webui.ui import form, show_extensions
from webui.ui.maker import Maker

TAB = "extensions"
IN_USE = "in use"
WIDE = {"min_width": 200}  # pixels: two in a row, but on a phone


@dataclass(frozen=True)
class Section:
    """The settings of one plugin. ``fields`` are names of fields."""

    plugin: Plugin
    accordion: Any
    reset: Any
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One plugin on the list."""

    plugin: Plugin
    card: Any
    switch: Any


@dataclass(frozen=True)
class Panel:
    """What a plugin's tab shows, laid out apart, so that one that fails leaves nothing behind."""

    plugin: Plugin
    label: str
    blocks: gr.Blocks


@dataclass(frozen=True)
class Extensions:
    """Every component about plugins that is no field."""

    heading: Any  # of the sections
    sections: Mapping[str, Section]  # by the plugin's id
    tabs: Mapping[str, Any]  # by the plugin's id
    hidden: Any  # the style that hides tabs of plugins that are off; Gradio itself does not hide one again
    tab: Any  # of the list
    summary: Any
    entries: Sequence[Entry]

    def listed(self) -> list[Any]:
        """Of the tab."""
        return [self.summary, *(part for entry in self.entries for part in (entry.card, entry.switch))]

    def places(self) -> list[Any]:
        """What is there only while plugins are on."""
        return [self.heading, self.hidden, *(section.accordion for section in self.sections.values())]


# Before the page


def panels(host: Host) -> list[Panel]:
    """The tabs of plugins, to be shown in the page. A plugin whose tab fails is disabled."""
    found: list[Panel] = []
    for plugin, tab in host.ask_all("tab", data_dir=host.data_dir):
        with host.starting(plugin), host.guarded(plugin, "tab"):
            found.append(_panel(plugin, tab))
    return found


def _panel(plugin: Plugin, tab: Any) -> Panel:
    if not isinstance(tab, Tab) or not isinstance(tab.label, str):
        raise TypeError(f"tab must return a Tab with a label, not {type(tab).__name__}")
    with gr.Blocks(analytics_enabled=False) as blocks:
        tab.build()
    for number, event in blocks.fns.items():  # of the page alone, no endpoints
        event.api_name, event.api_visibility = f"{plugin.id}_{number}", "private"
    return Panel(plugin, tab.label, blocks)


# In the page


def tabs(plugins: Iterable[Plugin], panels: Iterable[Panel], parts: dict[str, Any]) -> None:
    """A tab for each panel, and one for the list of all plugins."""
    parts["tabs"] = {}
    for panel in panels:
        id = panel.plugin.id
        with gr.Tab(panel.label, id=f"plugin-{id}", elem_id=f"tab-plugin-{id}") as parts["tabs"][id]:
            panel.blocks.render()
    with gr.Tab("Extensions", id=TAB, elem_id=f"tab-{TAB}") as parts["tab"]:
        parts["summary"] = gr.HTML(elem_id="extensions-summary")
        parts["entries"] = [_entry(plugin) for plugin in plugins]


def _entry(plugin: Plugin) -> Entry:
    with gr.Row(elem_classes="extension"):
        card = gr.HTML()
        switch = gr.Button("Switch off", size="sm", scale=0, min_width=120, visible=False)
    return Entry(plugin, card, switch)


def sections(make: Maker, plugins: Iterable[Plugin], parts: dict[str, Any]) -> None:
    """An accordion for each plugin that has settings."""
    having = [plugin for plugin in plugins if plugin.settings]
    on = any(plugin.on for plugin in having)
    parts["hidden"] = gr.HTML(show_extensions.hidden(()), elem_id="extensions-hidden")
    parts["heading"] = gr.HTML("<h2>Extensions</h2>", elem_id="extensions-heading", visible=on)
    parts["sections"] = {plugin.id: _section(make, plugin) for plugin in having}


def _section(make: Maker, plugin: Plugin) -> Section:
    id = f"plugin-{plugin.id}"
    with gr.Accordion(plugin.title, open=False, elem_id=id, visible=plugin.on) as accordion:
        gr.HTML(show_extensions.note(plugin))
        for row in _rows(plugin.settings):
            with gr.Row():
                for setting in row:
                    _control(make, f"{plugin.id}.{setting.name}", setting)
        reset = gr.Button("Reset", size="sm", elem_id=f"{id}-reset")
    return Section(plugin, accordion, reset, tuple(form.neutral([plugin])))


def _rows(settings: Iterable[Setting]) -> Iterator[list[Setting]]:
    """Two beside each other, but for texts, which need room."""
    for typed, group in groupby(settings, lambda each: isinstance(each.default, str) and not each.choices):
        alike, wide = list(group), 1 if typed else 2
        yield from (alike[first : first + wide] for first in range(0, len(alike), wide))


def _control(make: Maker, name: str, setting: Setting) -> None:
    words = {"label": setting.label, "info": setting.info or None}
    low, high = setting.minimum, setting.maximum
    if isinstance(setting.default, bool):
        make(gr.Checkbox, name, **words, **WIDE)
    elif setting.choices:
        make(gr.Dropdown, name, list(setting.choices), **words, **WIDE)
    elif isinstance(setting.default, str):
        make(gr.Textbox, name, lines=setting.lines, max_lines=12, **words)
    elif low is not None and high is not None:
        make(gr.Slider, name, low, high, step=_step(setting, high - low), buttons=[], **words, **WIDE)
    else:
        whole = 0 if isinstance(setting.default, int) else None
        make(gr.Number, name, precision=whole, step=setting.step or 1, **words, **WIDE)


def _step(setting: Setting, range: float) -> float:
    return setting.step or (1 if isinstance(setting.default, int) else range / 100)


# In the browser


def marking(plugin: Plugin) -> str:
    """The script that names an accordion: whether a setting is not neutral can be seen while it is closed."""
    neutral = json.dumps(list(form.neutral([plugin]).values()))
    titles = json.dumps([f"{plugin.title} · {IN_USE}", plugin.title])
    title = f"{titles}[+values.every((value, i) => value === {neutral}[i])]"
    return f"(...values) => ({{ __type__: 'update', label: {title} }})"


def resetting(plugin: Plugin) -> str:
    """The script that makes a plugin's settings neutral."""
    neutral = list(form.neutral([plugin]).values())
    return f"() => {json.dumps(neutral if len(neutral) > 1 else neutral[0])}"
