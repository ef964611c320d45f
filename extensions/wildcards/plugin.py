"""Wildcards: words drawn for ``__file__`` and ``{a|b}``, or every combination of them.

Shows how a plugin makes the prompts (``prepare_prompt``), several requests of one (``prepare_request``) and a
tab with files of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from webui.hookspecs import Setting, Tab, Values, hookimpl
from webui.request import GenerationRequest, invalid

from .drawing import ENDLESS, Combinations, drawn
from .files import Files
from .syntax import Wrong, is_plain

RANDOM, EVERY = "Random", "Every combination"


@hookimpl
def settings() -> Sequence[Setting]:
    return (
        Setting(
            "mode",
            RANDOM,
            "Wildcards",
            info="Drawn by each picture's seed, or a picture of every combination, all with one seed",
            choices=(RANDOM, EVERY),
        ),
        Setting(
            "limit",
            100,
            "Most combinations",
            info="More are refused, before anything is made",
            minimum=1,
            maximum=1000,
            step=1,
        ),
    )


@hookimpl
def prepare_prompt(prompt: str, field: str, seed: int, data_dir: Path) -> str | None:
    if is_plain(prompt):
        return None
    with naming(field):
        return drawn(prompt, Files(data_dir).look(), f"{field} {seed}")


@hookimpl
def prepare_request(
    request: GenerationRequest, settings: Values, data_dir: Path
) -> Sequence[GenerationRequest] | None:
    fields = [name for name in ("prompt", "negative_prompt") if not is_plain(getattr(request, name))]
    if settings.mode != EVERY or not fields:
        return None
    files, requests = Files(data_dir).look(), [request]
    for field in fields:
        with naming(field):
            words = Combinations(getattr(request, field), files)
            check_limit(words.count * len(requests), settings.limit)
            written = [words[number] for number in range(words.count)]
        requests = [each.replace(**{field: text}) for each in requests for text in written]
    return requests


@hookimpl
def tab(data_dir: Path) -> Tab:
    def build() -> None:
        from .page import Page  # with Gradio, which need not be there before the page is

        Page(Files(data_dir))

    return Tab("Wildcards", build)


@contextmanager
def naming(field: str) -> Iterator[None]:
    """What is wrong in a prompt is told with the prompt's name."""
    try:
        yield
    except Wrong as error:
        raise invalid(field, str(error)) from None


def check_limit(count: int, limit: int) -> None:
    """
    Raises:
        Wrong: there are more combinations.
    """
    if count > limit:
        number = f"{count:,}" if count < ENDLESS else "countless"
        raise Wrong(
            f"has {number} combinations, and at most {limit:,} are wanted; raise the limit of the wildcards"
        )
