"""What is known of the plugins, for a person: the page and the command line say the same."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import indent

from webui import hookspecs
from webui.grid.axes import figure
from webui.hookspecs import Setting
from webui.plugins.host import Host
from webui.plugins.loading import PREPARING, TOUCHING, Plugin

SAFE_MODE = "Safe mode: the program was started with --no-extensions, so no plugins are loaded."
NONE = (
    "There are no plugins. Put one into extensions/, or name a folder of yours with --plugins-dir, and start "
    "the program anew."
)


def summary(host: Host, safe_mode: bool) -> str:
    """One sentence about all of them."""
    if not host.plugins:
        return SAFE_MODE if safe_mode else NONE
    count = len(host.plugins)
    on = sum(plugin.on for plugin in host.plugins)
    return f"{count} plugin{'s' * (count > 1)}, {on} on."


def described(plugin: Plugin) -> str:
    """The sentence its author gives."""
    return plugin.manifest.description if plugin.manifest else ""


def version(plugin: Plugin) -> str:
    return plugin.manifest.version if plugin.manifest else ""


def facts(host: Host, plugin: Plugin) -> Iterator[tuple[str, str]]:
    """(label, words)."""
    hooks = [_place(host, plugin, hook) for hook in vars(hookspecs) if hook in plugin.hooks]
    if hooks:
        yield "Hooks", ", ".join(hooks)
    if plugin.manifest and plugin.manifest.requires:
        yield "Needs", ", ".join(plugin.manifest.requires)
    if plugin.manifest and not plugin.manifest.deterministic:
        yield "Its pictures", "are always computed anew: the same settings may give another one"
    yield "Loaded in", milliseconds(plugin.load_seconds)
    if plugin.pictures:
        yield "Took part in", f"{plugin.pictures} picture{'s' * (plugin.pictures > 1)}"
        yield "Time of its own", f"{milliseconds(plugin.seconds / plugin.pictures)} per picture"


def settings(plugin: Plugin) -> Iterator[tuple[str, str, str]]:
    """(name, label, the values it takes)."""
    for setting in plugin.settings:
        yield (
            f"{plugin.id}.{setting.name}",
            setting.label,
            f"{_range(setting)}; neutral: {figure(setting.default) or 'empty'}",
        )


def milliseconds(seconds: float) -> str:
    """``0.3 ms``, ``12 ms``, ``1.5 s``."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.1f} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"


def listing(host: Host, safe_mode: bool) -> str:
    """All of it as a terminal shows it."""
    parts = [summary(host, safe_mode), *(_entry(host, plugin) for plugin in host.plugins)]
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in "\n\n".join(parts))


def _entry(host: Host, plugin: Plugin) -> str:
    lines = [described(plugin), *(f"{label}: {words}" for label, words in facts(host, plugin))]
    lines += [f"{name}: {label} ({values})" for name, label, values in settings(plugin)]
    if plugin.trace:
        lines.append(f"Last error:\n{indent(plugin.trace.rstrip(), '  ')}")
    head = f"{plugin.id} {version(plugin)}".rstrip() + f" - {plugin.title}: {plugin.state}"
    return "\n".join([head, *(indent(line, "  ") for line in lines if line)])


def _place(host: Host, plugin: Plugin, hook: str) -> str:
    """A hook, and, where it counts, when its turn is among the plugins that have it."""
    asked = host.asked(hook)
    if hook not in (*PREPARING, *TOUCHING) or len(asked) < 2 or plugin not in asked:
        return hook
    return f"{hook} ({asked.index(plugin) + 1} of {len(asked)})"


def _range(setting: Setting) -> str:
    """What a setting may be."""
    if isinstance(setting.default, bool):
        return "on or off"
    if setting.choices:
        return "one of " + ", ".join(setting.choices)
    if isinstance(setting.default, str):
        return "text"
    kind = "a whole number" if isinstance(setting.default, int) else "a number"
    match setting.minimum, setting.maximum:
        case None, None:
            return kind
        case low, None:
            return f"{kind}, at least {figure(low)}"
        case None, high:
            return f"{kind}, at most {figure(high)}"
        case low, high:
            return f"{kind} from {figure(low)} to {figure(high)}"
