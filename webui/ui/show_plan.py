"""What a grid comes to, before it runs: a plan -> HTML. Pure, and all of it escaped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from webui.grid.plan import Plan
from webui.ui.show import seconds

MOST_REASONS = 12  # said one by one


@dataclass(frozen=True)
class Outlook:
    """What the plan itself does not know. ``known`` cells are in the library; None: nobody looked."""

    known: int | None = None
    net_calls: int = 0  # of what is left to compute
    seconds: float | None = None
    seed: int | None = None  # kept from the last grid


def plan(plan: Plan | None = None, outlook: Outlook | None = None, error: str = "") -> str:
    """The figures and notes of a plan, or why there is none."""
    if error:
        return f'<div class="plan" role="status"><p class="wrong">{escape(error)}</p></div>'
    if plan is None or outlook is None:
        return '<div class="plan" role="status"></div>'
    figures = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>"
        for label, value in _figures(plan, outlook)
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in _notes(plan, outlook))
    return f'<div class="plan" role="status"><dl>{figures}</dl>{notes}{_left_out(plan)}</div>'


def _figures(plan: Plan, outlook: Outlook) -> Iterator[tuple[str, str]]:
    cells = len({cell.index[:3] for cell in plan.cells})
    sides = [len(axis) for axis, title in zip((plan.x, plan.y, plan.z), plan.titles, strict=True) if title]
    yield "Cells", f"{cells:,}" + (f" ({' × '.join(map(str, sides))})" if len(sides) > 1 else "")
    if plan.grid.per_cell > 1:
        yield "Pictures", f"{len(plan.cells):,}"
    if outlook.known is not None:
        yield "Known already", f"{outlook.known:,}"
    yield "Net calls", f"{outlook.net_calls:,}"
    if plan.model_switches:
        yield "Model switches", f"{plan.model_switches:,}"
    yield "Time here", "not measured yet" if outlook.seconds is None else about(outlook.seconds)


def about(duration: float) -> str:
    """A rough duration: a plan is no stopwatch."""
    if duration < 1:
        return "under 1 s"
    if duration < 5400:
        return f"about {seconds(math.ceil(duration))}"
    return f"about {duration / 3600:.1f} h"


def _notes(plan: Plan, outlook: Outlook) -> Iterator[str]:
    if outlook.seed is not None:
        yield f"Seed {outlook.seed}, as drawn for the last grid: so its cells stay known."
    yield from plan.notes
    same = len(plan.cells) - len({cell.request for cell in plan.cells})
    if same:
        yield f"{_count(same, 'cell is', 'cells are')} the same picture as another, and computed once."


def _left_out(plan: Plan) -> str:
    """The cells that cannot be computed, by reason."""
    if not plan.impossible:
        return ""
    reasons = Counter(one.reason for one in plan.impossible)
    rows = "".join(
        f"<li>{escape(_named(plan, reason))}: {escape(reason)}</li>"
        for reason, _ in reasons.most_common(MOST_REASONS)
    )
    more = f"<li>… and {len(reasons) - MOST_REASONS} more reasons</li>" if len(reasons) > MOST_REASONS else ""
    were = _count(len(plan.impossible), "cell is", "cells are")
    return f"<details><summary>{were} left out, as impossible</summary><ul>{rows}{more}</ul></details>"


def _named(plan: Plan, reason: str) -> str:
    """The cells with this reason, by the values of the axes on which it depends."""
    indices = [one.index for one in plan.impossible if one.reason == reason]
    return "; ".join(_some(_labels(plan, indices)))


def _labels(plan: Plan, indices: Sequence[tuple[int, ...]]) -> list[str]:
    axes = (plan.x, plan.y, plan.z)
    # An axis of which every value is impossible says nothing.
    telling = [n for n in range(3) if len({index[n] for index in indices}) < len(axes[n])] or [0]
    return list(dict.fromkeys(", ".join(axes[n][index[n]].label for n in telling) for index in indices))


def _some(words: Sequence[str], most: int = 6) -> Iterable[str]:
    return [*words[:most], f"{len(words) - most} more"] if len(words) > most else words


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
