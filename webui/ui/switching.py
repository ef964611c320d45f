"""The list of the plugins, switching them on and off, and what of them a page shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from webui.engine import Engine
from webui.errors import NotAllowed
from webui.plugins.loading import Plugin
from webui.ui import form, show_extensions
from webui.ui.choosing import Choosing, known
from webui.ui.layout import Layout
from webui.ui.source import Update, may_manage, plainly


class Switching:
    """The handlers of the Extensions tab. Plugins are the host's; nothing is kept here."""

    def __init__(self, engine: Engine, layout: Layout) -> None:
        self.engine = engine
        self.layout = layout
        self.parts = layout.extensions

    def list(self, request: gr.Request) -> Update:
        """How the plugins are doing, and a switch for each if this person may use it."""
        host, admin = self.engine.plugins, may_manage(self.engine, request)
        safe_mode = self.engine.settings.no_extensions
        update: Update = {self.parts.summary: show_extensions.summary(host, safe_mode, admin)}
        for entry in self.parts.entries:
            plugin = entry.plugin
            words, can = show_extensions.switch(plugin), admin and not plugin.refused
            update[entry.card] = show_extensions.card(host, plugin, admin)
            update[entry.switch] = gr.update(value=words, visible=can)
        return update

    def show(self, request: gr.Request) -> Update:
        """The list; settings and tabs of the plugins that are on; and what can be chosen with those."""
        host, layout = self.engine.plugins, self.layout
        sections = self.parts.sections.values()
        offered = known(self.engine)
        kinds = Choosing(layout.compare.kinds, offered).kinds_by_label()
        return {
            **self.list(request),
            self.parts.hidden: show_extensions.hidden(id for id in self.parts.tabs if not host[id].on),
            self.parts.heading: gr.update(visible=any(section.plugin.on for section in sections)),
            **{section.accordion: gr.update(visible=section.plugin.on) for section in sections},
            layout.fields["scheduler"]: gr.update(choices=[info.name for info in offered.schedulers]),
            layout.fields["hires_upscaler"]: gr.update(choices=list(offered.upscalers)),
            **{axis.kind: gr.update(choices=kinds) for axis in layout.compare.axes.values()},
        }

    def switch(self, plugin: Plugin) -> Callable[[gr.Request], Any]:
        """The handler of a plugin's switch."""

        @plainly
        def switch(request: gr.Request) -> Update:
            if not may_manage(self.engine, request):
                raise NotAllowed("Only an administrator of this server may switch plugins.")
            self.engine.plugins.switch(plugin.id, not plugin.on and not plugin.waits)
            fields = {} if plugin.on else form.neutral([plugin])
            neutral = {self.layout.fields[name]: value for name, value in fields.items()}
            return self.show(request) | neutral

        return switch
