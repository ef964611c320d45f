"""A grid on its way: which picture, number or failure each cell has come to, and what is new of it.

What a browser is told are plain values (:meth:`Run.whole`, :meth:`Run.news`): pictures by their address, and
of the cells only those that have changed. ``compare_board.js`` draws them.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradio.processing_utils import save_bytes_to_cache, save_file_to_cache

from webui import images, infotext
from webui.errors import InvalidField, NotFound
from webui.grid.measures import MEASURES, Measured
from webui.grid.plan import Index, Plan, net_calls
from webui.grid.results import Results
from webui.jobs import Job, JobView
from webui.request import Delivery, SavedPicture
from webui.ui import desk, show
from webui.ui.sending import TARGETS

LARGE = 640  # pixels: a picture with a longer side is shown in the grid by a smaller copy
AT_A_TIME = 0.3  # seconds of measuring, before what is measured is shown
KEPT_EACH, KEPT_RUNS = 3, 32  # grids of a person, and of all, that can be found again

Message = dict[str, Any]


class Run:
    """One grid of one person. Several threads may look at it: each page's streams."""

    def __init__(self, plan: Plan, owner: str, cache: str, delivery: Delivery) -> None:
        """``cache``: Gradio's folder for the files of a component, from which a browser may be given some."""
        self.id = secrets.token_urlsafe(8)
        self.plan = plan
        self.owner = owner
        self.cache = cache
        self.delivery = delivery
        self.requests = {cell.index: cell.request for cell in plan.cells}
        self.pictures: dict[Index, SavedPicture] = {}
        self.reasons: dict[Index, str] = {}
        self._measured = Measured({index: net_calls(request) for index, request in self.requests.items()})
        self._seen: dict[Index, Message] = {}  # what of a cell never changes once its picture is there
        self._log: list[Index] = []  # cells, in the order in which something of them changed
        self._tasks: list[_Task] = []
        self._lock = threading.Lock()

    def add(self, job: Job, indices: Sequence[Index]) -> None:
        """Follow a job that computes these cells, in the order of its requests."""
        with self._lock:
            self._tasks.append(_Task(job, tuple(indices)))
            for index in indices:
                if self.reasons.pop(index, None):
                    self._log.append(index)

    @property
    def jobs(self) -> list[Job]:
        return [task.job for task in self._tasks]

    @property
    def position(self) -> int:
        """How many changes there have been."""
        return len(self._log)

    def absorb(self, seconds: float = AT_A_TIME) -> bool:
        """Take in what the jobs have come to, for about so long; whether there is more."""
        with self._lock:
            before, end = dict(self._measured.numbers), time.monotonic() + seconds
            more = False
            for task in self._tasks:
                self._fail(task)
                more |= self._take(task, end)
            numbers = self._measured.numbers
            self._log += [index for index in numbers if numbers[index] is not before.get(index)]
            return more

    def _fail(self, task: _Task) -> None:
        for failure in task.job.view.failures[task.failures :]:
            index = task.indices[failure.turn]
            self.reasons[index] = str(failure.error)
            self._log.append(index)
            task.failures += 1

    def _take(self, task: _Task, end: float) -> bool:
        results = task.job.view.results
        while task.results < len(results) and time.monotonic() < end:
            turn, picture = results[task.results]
            task.results += 1
            self._arrive(task.indices[turn], picture)
        return task.results < len(results)

    def _arrive(self, index: Index, picture: SavedPicture) -> None:
        """Measure a picture and put it where a browser may fetch it."""
        try:
            image = images.open_picture(picture.path)
        except InvalidField as error:  # somebody deleted it a moment ago
            self.reasons[index] = str(error)
            self._log.append(index)
            return
        self._measured.add(index, image, picture.seconds)
        url = _url(save_file_to_cache(picture.path, self.cache))
        small = url
        if max(image.size) > LARGE:
            small = _url(save_bytes_to_cache(desk.encoded(image, LARGE // 2), "small.jpg", self.cache))
        self.pictures[index] = picture
        self.reasons.pop(index, None)
        self._seen[index] = {"url": url, "small": small, "width": image.width, "height": image.height,
                             "name": picture.name}  # fmt: skip

    # What a browser is told

    def whole(self, plan: bool = True) -> Message:
        """Everything so far."""
        with self._lock:
            position, cells = len(self._log), {*self._seen, *self.reasons}
        told = self._told(0, position, cells)
        return {**told, "plan": _plan(self)} if plan else told

    def news(self, since: int) -> Message:
        """What has changed since a position."""
        with self._lock:
            position, cells = len(self._log), dict.fromkeys(self._log[since:])
        return self._told(since, position, cells)

    def _told(self, since: int, until: int, cells: Iterable[Index]) -> Message:
        return {"run": self.id, "since": since, "until": until, "status": self._status(),
                "cells": [[*index, self._cell(index)] for index in cells]}  # fmt: skip

    def _cell(self, index: Index) -> Message:
        seen, error = self._seen.get(index), self.reasons.get(index)
        told: Message = {"star": star_key(self.requests[index]), "seed": self.requests[index].seed}
        if seen:
            numbers = asdict(self._measured.numbers[index])
            told |= {**seen, "numbers": {name: value for name, value in numbers.items() if value is not None}}
        return told | ({"error": error} if error else {})

    def _status(self) -> Message:
        task = next((task for task in self._tasks if not task.job.view.ended), None)
        view = (task or self._tasks[-1]).job.view if self._tasks else JobView("")
        begun = task is not None and view.state == "running" and view.turn < len(task.indices)
        running = task.indices[view.turn] if task and begun else None  # none while the last one is saved
        preview = base64.b64encode(view.preview).decode() if running and view.preview else ""
        return {
            "state": view.state,
            "headline": headline(view, len(self.pictures), len(self.requests), len(self.reasons)),
            "details": details(view),
            "share": show.progress(view),
            "busy": [list(index) for index in self._waiting()],
            "running": list(running) if running else None,
            "preview": preview and f"data:image/jpeg;base64,{preview}",
        }

    def _waiting(self) -> Iterator[Index]:
        """Cells that were asked for once more, by themselves, and are not there yet."""
        for task in self._tasks:
            view = task.job.view
            if not view.ended and len(task.indices) < len(self.requests):
                yield from task.indices[view.turn :]

    # What is done with it

    def results(self, stars: Iterable[Sequence[int]] = ()) -> Results:
        """All of it, for the files."""
        with self._lock:
            first = next(iter(self.pictures.values()), None)
            reading = infotext.read(first.infotext) if first else None
            return Results(
                self.plan,
                {index: picture.path for index, picture in self.pictures.items()},
                dict(self.reasons),
                dict(self._measured.numbers),
                frozenset(index for star in stars if (index := _index(star)) in self.pictures),
                str(reading.fields.get("model", "")) if reading else "",
                reading.model_hash if reading else "",
            )

    def picture(self, index: Any) -> SavedPicture:
        """
        Raises:
            NotFound: there is none.
        """
        found = self.pictures.get(_index(index))
        if found is None:
            raise NotFound("There is no such picture (any more).")
        return found

    def chosen(self, indices: Any) -> list[Index]:
        """Those of the cells that a browser names which there are, in run order; of None all."""
        if indices is None:
            return list(self.requests)
        wanted = {_index(index) for index in indices} if isinstance(indices, list) else set()
        return [index for index in self.requests if index in wanted]


class _Task:
    """A job, the cells it computes, and how far it was followed."""

    def __init__(self, job: Job, indices: tuple[Index, ...]) -> None:
        self.job = job
        self.indices = indices
        self.results = 0
        self.failures = 0


class Runs:
    """The newest grids, each found by its owner alone."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, run: Run) -> None:
        """Also forgets old ones that are done with: numbers of many cells take memory."""
        with self._lock:
            self._runs[run.id] = run
            ended = [old for old in self._runs.values() if all(job.view.ended for job in old.jobs)]
            mine = [old for old in ended if old.owner == run.owner and old is not run]
            for old in {*mine[: 1 - KEPT_EACH], *ended[:-KEPT_RUNS]}:
                del self._runs[old.id]

    def get(self, id: Any, owner: str) -> Run:
        """
        Raises:
            NotFound: there is none, or it is another's.
        """
        run = self._runs.get(id) if isinstance(id, str) else None
        if run is None or run.owner != owner:
            raise NotFound("This grid is no longer in memory. Run it again: what is known comes at once.")
        return run

    def latest(self, owner: str) -> Run | None:
        with self._lock:
            return next((run for run in reversed(self._runs.values()) if run.owner == owner), None)

    def of_job(self, job: Job) -> Run | None:
        """The grid that a job computes cells of."""
        with self._lock:
            mine = [run for run in self._runs.values() if run.owner == job.owner]
        return next((run for run in mine if job in run.jobs), None)


def headline(view: JobView, there: int, total: int, failed: int) -> str:
    """The one sentence that a screen reader announces when it changes."""
    kept = "1 picture" if total == 1 else f"{there} of {total} pictures"
    match view.state:
        case "queued" if not there:
            return (
                f"Waiting: place {view.place} in the queue"
                if view.place > 1
                else "Waiting: next in the queue"
            )
        case "queued" | "running":
            return f"Making the grid: {kept}"
        case "cancelled":
            return f"Stopped: {kept} kept. Run the grid again to go on."
        case "failed" if view.error and not there:
            return str(view.error)
    ending = f", {failed} failed" if failed else ""
    return f"Done: {kept}{ending}"


def details(view: JobView) -> str:
    """How far and how long still; afterwards how long it took."""
    parts = []
    if not view.ended:
        parts += [view.stage] if view.state == "running" else []
        parts += [f"about {show.seconds(view.eta)} left"] if view.eta is not None else []
    elif view.seconds:
        parts.append(f"{show.seconds(view.seconds)} of computing")
    if view.reused:
        parts.append(f"{view.reused} known already")
    return " · ".join(parts)


def star_key(request: Any) -> str:
    """What a star sticks to: the settings, so that it outlives the grid it was given in."""
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()[:16]


def _plan(run: Run) -> Message:
    plan = run.plan
    axes = zip(plan.titles, (plan.x, plan.y, plan.z), strict=True)
    width, height = plan.grid.base.final_size
    return {
        "axes": [{"title": title, "labels": [value.label for value in values]} for title, values in axes],
        "per_cell": plan.grid.per_cell,
        "settings": [list(pair) for pair in run.results().settings()],
        "prompt": "" if "prompt" in plan.varied else plan.grid.base.prompt,
        "impossible": [[*one.index, one.reason] for one in plan.impossible],
        "width": width,
        "height": height,
        "measures": [{"name": name, **asdict(measure)} for name, measure in MEASURES.items()],
        "targets": [{"name": target.name, "label": target.label} for target in TARGETS],
    }


def _index(value: Any) -> Index:
    """Of four whole numbers from a browser; of anything else no cell's."""
    if isinstance(value, list | tuple) and len(value) == 4 and all(type(part) is int for part in value):
        x, y, z, k = value
        return x, y, z, k
    return (-1, -1, -1, -1)


def _url(path: str) -> str:
    return f"gradio_api/file={Path(path).as_posix()}"
