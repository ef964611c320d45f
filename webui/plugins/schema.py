"""The values of plugins' settings: checked, and written in one way only."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from webui.errors import InvalidField
from webui.hookspecs import Setting
from webui.request import Scalar

N = TypeVar("N", int, float)

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
LONGEST = 20_000  # characters of a text


def check(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    """A plugin's settings, if they can be offered.

    Raises:
        TypeError, ValueError: they are no settings, or their defaults do not fit.
    """
    found: dict[str, Setting] = {}
    for setting in settings:
        if not isinstance(setting, Setting):
            raise TypeError(f"settings() must give Setting objects, not {type(setting).__name__}")
        if not NAME.fullmatch(setting.name):
            raise ValueError(f"{setting.name!r} is no name for a setting: a-z, 0-9 and _")
        if setting.name in found:
            raise ValueError(f"there are two settings named {setting.name!r}")
        if not isinstance(setting.default, bool | int | float | str):
            raise TypeError(f"the default of {setting.name} must be a bool, int, float or str")
        _check_words(setting)
        value(setting, setting.default, setting.name)
        found[setting.name] = setting
    return tuple(found.values())


def _check_words(setting: Setting) -> None:
    """What a control is made of.

    Raises:
        TypeError: it is something else.
    """
    if not all(isinstance(text, str) for text in (setting.label, setting.info, *setting.choices)):
        raise TypeError(f"label, info and choices of {setting.name} must be text")
    for number in (setting.minimum, setting.maximum, setting.step):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise TypeError(f"minimum, maximum and step of {setting.name} must be numbers")


def value(setting: Setting, given: Any, field: str) -> Scalar:
    """The value, of the setting's own type.

    Raises:
        InvalidField: it is of the wrong kind or out of range.
    """
    match setting.default:
        case bool():
            return _switch(setting, given, field)
        case int():
            return _number(setting, _whole(setting, given, field), field)
        case float():
            return _number(setting, _real(setting, given, field), field)
        case _:
            return _text(setting, given, field)


def chosen(settings: Iterable[Setting], given: Mapping[str, Any], prefix: str) -> dict[str, Scalar]:
    """Of the values given, those that are not neutral.

    Raises:
        InvalidField: one is wrong, or there is no such setting.
    """
    known = {setting.name: setting for setting in settings}
    for name in given.keys() - known.keys():
        raise InvalidField(f"{prefix}.{name}", "there is no such setting")
    values = {name: value(known[name], each, f"{prefix}.{name}") for name, each in given.items()}
    return {name: each for name, each in values.items() if each != known[name].default}


def _switch(setting: Setting, given: Any, field: str) -> bool:
    if not isinstance(given, bool):
        raise InvalidField(field, "must be on or off", setting.label)
    return given


def _whole(setting: Setting, given: Any, field: str) -> int:
    if isinstance(given, bool) or not isinstance(given, int | float) or given % 1 != 0:
        raise InvalidField(field, "must be a whole number", setting.label)
    return int(given)


def _real(setting: Setting, given: Any, field: str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise InvalidField(field, "must be a number", setting.label)
    return float(given)


def _number(setting: Setting, given: N, field: str) -> N:
    if setting.minimum is not None and given < setting.minimum:
        raise InvalidField(field, f"must be at least {setting.minimum}", setting.label)
    if setting.maximum is not None and given > setting.maximum:
        raise InvalidField(field, f"must be at most {setting.maximum}", setting.label)
    return given


def _text(setting: Setting, given: Any, field: str) -> str:
    if not isinstance(given, str):
        raise InvalidField(field, "must be text", setting.label)
    if setting.choices and given not in setting.choices:
        raise InvalidField(field, f"must be one of {', '.join(setting.choices)}", setting.label)
    if len(given) > LONGEST:
        raise InvalidField(field, f"must be at most {LONGEST} characters", setting.label)
    return given
