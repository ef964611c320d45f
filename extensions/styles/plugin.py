"""Prompt styles: named pieces of prompts, kept in a file that AUTOMATIC1111 reads and writes too.

Shows how a plugin changes the prompts by a setting (``prepare_prompt``), brings an axis for grids (``axes``)
and a tab.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from webui.errors import InvalidField
from webui.grid.axes import PROMPT_COST, AxisKind, Known, pick
from webui.grid.values import short, split, written
from webui.hookspecs import Setting, Tab, Values, hookimpl
from webui.request import MAX_PROMPT, GenerationRequest

from .store import Store, refused
from .table import Style

NONE = "(no style)"
NAMES = "styles.names"  # the setting, as requests and grids know it


@hookimpl
def settings() -> Sequence[Setting]:
    info = "Names of styles, between commas; quotation marks keep a comma"
    return (Setting("names", "", "Styles", info=info),)


@hookimpl
def prepare_prompt(prompt: str, field: str, settings: Values, data_dir: Path) -> str | None:
    if not settings.names:
        return None
    for style in named(settings.names, Store(data_dir)):
        prompt = style.applied(prompt, field)
        if len(prompt) > MAX_PROMPT:
            raise refused(f"with {short(style.name)} a prompt is longer than {MAX_PROMPT:,} characters")
    return prompt


@hookimpl
def axes(data_dir: Path) -> Sequence[AxisKind]:
    """A pick list of the styles there are; the setting's own axis takes texts."""
    store = Store(data_dir)

    def choices(known: Known) -> tuple[str, ...]:
        with suppress(InvalidField):  # the file cannot be read: the tab says why
            return (NONE, *store.styles())
        return (NONE,)

    return (
        pick(
            "style", choices, PROMPT_COST, label="Style", apply=styled, overwrites=(NAMES,), idle=lambda _: ""
        ),
    )


@hookimpl
def tab(data_dir: Path) -> Tab:
    def build() -> None:
        from .page import Page  # with Gradio, which need not be there before the page is

        Page(Store(data_dir))

    return Tab("Styles", build)


def named(text: str, store: Store) -> list[Style]:
    """The styles of the setting, in its order.

    Raises:
        InvalidField: there is none of a name.
    """
    try:
        names = split(text)
    except ValueError as error:
        raise refused(str(error)) from None
    styles = store.styles() if names else {}
    if missing := [name for name in names if name not in styles]:
        raise refused(f"there is no style {short(missing[0])}{_instead(missing[0], styles)}")
    return [styles[name] for name in names]


def _instead(name: str, styles: Iterable[str]) -> str:
    """The nearest name there is, for a person."""
    spelt = {each.casefold(): each for each in styles}
    near = difflib.get_close_matches(name.casefold()[:100], spelt, 1)
    return f"; did you mean {short(spelt[near[0]])}?" if near else "" if spelt else ": there are none yet"


def styled(request: GenerationRequest, name: str) -> GenerationRequest:
    """With this style and no other."""
    values = {key: value for key, value in request.plugins if key != NAMES}
    if name != NONE:
        values[NAMES] = written([name])
    return request.replace(plugins=values)
