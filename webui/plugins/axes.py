"""What plugins let vary in a grid: each of their settings, and axes of their own making."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, wraps
from typing import Any

from webui.errors import InvalidField
from webui.grid.axes import COST, AxisKind, Known, figure, kinds, pick, setter, switch
from webui.grid.values import lines, numbers, short
from webui.hookspecs import Setting
from webui.plugins import schema
from webui.plugins.host import Host
from webui.plugins.loading import Plugin
from webui.request import GenerationRequest, Scalar

ONE_A_LINE = "One a line, or between commas; quotation marks keep a comma"
FEW = 5  # values
CALLED = ("choices", "parse", "apply", "show", "settle", "idle")  # of an axis: a plugin's code


def offered(host: Host) -> list[AxisKind]:
    """The axes of all plugins. A plugin that offers something else, or a name twice, is disabled."""
    found = [of_setting(plugin, setting) for plugin, setting in host.settings() if plugin.on]
    for plugin, given in host.ask_all("axes", data_dir=host.data_dir):
        with host.starting(plugin), host.guarded(plugin, "axes"):
            own = list(_checked(given, {*kinds(found)}))
            found += [_guarded(host, plugin, kind) for kind in own]
    return found


def of_setting(plugin: Plugin, setting: Setting) -> AxisKind:
    """The axis that a setting makes by its type."""
    name = f"{plugin.id}.{setting.name}"
    rest: dict[str, Any] = {
        "label": f"{plugin.title}: {setting.label}",
        "apply": partial(_apply, name, setting.default),
        "idle": lambda request: "",
        "offered": lambda: plugin.on,
    }
    if isinstance(setting.default, bool):
        return switch(name, **rest)
    if setting.choices:
        return pick(name, lambda known: setting.choices, **rest)
    typed = {"hint": ONE_A_LINE} if isinstance(setting.default, str) else {"start": _start(setting)}
    return setter(name, COST, partial(_parse, name, setting), **{"show": figure, **rest, **typed})


def _start(setting: Setting) -> str:
    """Values of a number to begin with: the whole range, if it has one."""
    low, high = setting.minimum, setting.maximum
    if low is None or high is None:
        return ""
    few = isinstance(setting.default, int) and high - low < FEW
    return f"{figure(low)}-{figure(high)}" + ("" if few else f" [{FEW}]")


def _parse(name: str, setting: Setting, text: str, base: GenerationRequest, known: Known) -> tuple[Any, ...]:
    try:
        if isinstance(setting.default, str):
            given: list[Any] = lines(text)
        else:
            whole = isinstance(setting.default, int)
            given = [float(number) for number in numbers(text, 1 if whole else None)]
    except ValueError as error:
        raise InvalidField(name, str(error), setting.label) from None
    return tuple(_valid(name, setting, value) for value in given)


def _valid(name: str, setting: Setting, value: Any) -> Scalar:
    try:
        return schema.value(setting, value, name)
    except InvalidField as error:
        raise InvalidField(name, f"{short(figure(value))} {error.message}", setting.label) from None


def _apply(name: str, neutral: Scalar, request: GenerationRequest, value: Scalar) -> GenerationRequest:
    values = dict(request.plugins) | {name: value}
    if value == neutral:
        del values[name]
    return request.model_copy(update={"plugins": tuple(sorted(values.items()))})


def _checked(given: Any, names: set[str]) -> Iterator[AxisKind]:
    for kind in given or ():
        if not isinstance(kind, AxisKind):
            raise TypeError(f"axes must give AxisKind objects, not {type(kind).__name__}")
        if kind.name in names:
            raise ValueError(f"there is an axis named {kind.name!r} already")
        names.add(kind.name)
        yield kind


def _guarded(host: Host, plugin: Plugin, kind: AxisKind) -> AxisKind:
    """The plugin's axis, whose failures are the plugin's."""

    def guard(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*arguments: Any) -> Any:
            with host.guarded(plugin, f"axis {kind.name}"):
                return function(*arguments)

        return run

    called: dict[str, Any] = {name: guard(getattr(kind, name)) for name in CALLED if getattr(kind, name)}
    return replace(kind, **called, offered=lambda: plugin.on)
