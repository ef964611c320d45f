"""What a person sees of the plugins: facts -> HTML. Pure, and all of it escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from webui.plugins import facts
from webui.plugins.host import Host
from webui.plugins.loading import Plugin


def note(plugin: Plugin) -> str:
    """What a plugin does, above its settings."""
    return f'<p class="note">{escape(facts.described(plugin))}</p>'


def summary(host: Host, safe_mode: bool, admin: bool) -> str:
    """How many there are, who may switch them, and what waits for a restart."""
    parts = [f"<p>{escape(facts.summary(host, safe_mode))}</p>"]
    if waiting := ", ".join(plugin.title for plugin in host.plugins if plugin.waits):
        parts.append(f"<p><b>Restart the program</b> to have: {escape(waiting)}.</p>")
    if host.plugins and not admin:
        parts.append(
            '<p class="note">Only an administrator of this server may switch them: see '
            "<code>--admin</code>.</p>"
        )
    return f'<div class="extensions" role="status">{"".join(parts)}</div>'


def hidden(ids: Iterable[str]) -> str:
    """The style that hides the tabs of these plugins."""
    rules = "".join(f"#tab-plugin-{id}-button {{ display: none; }}" for id in ids)
    return f"<style>{rules}</style>"


def card(host: Host, plugin: Plugin, admin: bool) -> str:
    """Everything about one plugin. Where it failed names files of the server: for an administrator only."""
    kind = "on" if plugin.on else "off" if plugin.off else "faulty"
    version = f"{plugin.id} {facts.version(plugin)}".rstrip()
    return (
        f'<article class="extension-card {kind}"><h2>{escape(plugin.title)}</h2>'
        f'<p class="about"><code>{escape(version)}</code> <b class="state">{escape(plugin.state)}</b></p>'
        f"<p>{escape(facts.described(plugin))}</p>"
        f"<dl>{''.join(_fact(label, words) for label, words in facts.facts(host, plugin))}</dl>"
        f"{_settings(plugin)}{_error(plugin, admin)}</article>"
    )


def switch(plugin: Plugin) -> str:
    """What a press would do."""
    if plugin.broken:
        return "Enable again"
    return "Switch on" if plugin.off else "Switch off"


def _fact(label: str, words: str) -> str:
    return f"<div><dt>{escape(label)}</dt><dd>{escape(words)}</dd></div>"


def _settings(plugin: Plugin) -> str:
    rows = "".join(
        f"<tr><td>{escape(label)}</td><td><code>{escape(name)}</code></td><td>{escape(values)}</td></tr>"
        for name, label, values in facts.settings(plugin)
    )
    head = '<tr><th scope="col">Setting</th><th scope="col">Name</th><th scope="col">Values</th></tr>'
    count = len(plugin.settings)
    title = f"{count} setting{'s' * (count > 1)}"
    return f"<details><summary>{title}</summary><table>{head}{rows}</table></details>" if rows else ""


def _error(plugin: Plugin, admin: bool) -> str:
    if not plugin.trace:
        return ""
    last = escape(plugin.trace.strip().splitlines()[-1])
    if not admin:
        return f'<p class="wrong">Last error: {last}</p>'
    trace = f"<pre>{escape(plugin.trace)}</pre>"
    return f'<details><summary class="wrong">Last error: {last}</summary>{trace}</details>'
