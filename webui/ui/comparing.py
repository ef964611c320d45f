"""Comparison grids: planned, run, followed, and what is done with their cells."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from webui import images, infotext
from webui.engine import Engine
from webui.errors import InvalidField, WebuiError
from webui.grid import plan as plans
from webui.grid.plan import AXES, Grid, Index, Plan, net_calls
from webui.jobs import Job
from webui.request import RANDOM_SEED, Cells, Delivery, GenerationRequest, SavedPicture
from webui.ui import compare, exports, form, show_plan
from webui.ui.filling import Filling, merged
from webui.ui.form import Values
from webui.ui.layout import Layout
from webui.ui.making import LOOK_UP, PAUSE
from webui.ui.presets import Preset, Presets
from webui.ui.runs import Message, Run, Runs
from webui.ui.sending import TARGETS
from webui.ui.show_plan import Outlook
from webui.ui.source import SourceActions, Update, components, owner_of, plainly
from webui.ui.varying import Varying

MOST_LOOKED_UP = 2000  # cells: of more it is not said beforehand how many are known
OVERLAP = 6  # messages: a browser that misses fewer in a row misses nothing
SEEDS = ("seed", "variation_seed")


class Comparing:
    """The handlers of the comparison tab. ``runs`` are the grids on their way, of everybody."""

    def __init__(
        self, engine: Engine, layout: Layout, source: SourceActions, filling: Filling, runs: Runs
    ) -> None:
        self.engine = engine
        self.layout = layout
        self.parts = layout.compare
        self.source = source
        self.filling = filling
        self.runs = runs
        self.presets = Presets(engine.settings.data_dir)
        self.varying = Varying(engine, layout, self.presets)

    # What it comes to

    def look(self, request: gr.Request, **values: Any) -> Update:
        """Plan the grid, and say what that comes to."""
        owner = owner_of(request)
        drawn = values["seeds"] if values.get("seed") == RANDOM_SEED else None
        button = {self.parts.new_seed: gr.update(visible=bool(drawn))}
        try:
            plan = self._plan(values, owner)
        except WebuiError as error:
            return {self.parts.plan: show_plan.plan(error=str(error))} | button
        seed = plan.grid.base.seed if drawn and "seed" not in plan.varied else None
        outlook = self._outlook(plan, owner, seed, form.delivery(values).cells)
        return {self.parts.plan: show_plan.plan(plan, outlook)} | button

    def _plan(self, values: Values, owner: str) -> Plan:
        """
        Raises:
            WebuiError: what is wrong, naming the field or the axis.
        """
        pictures = self.source.desk(owner).pictures(values)
        values = form.with_plugins(values, self.engine.plugins)
        base = GenerationRequest(**form.used({**values, **pictures}))
        for name, seed in (values["seeds"] or {}).items():
            if name in SEEDS and getattr(base, name) == RANDOM_SEED:
                base = base.replace(**{name: seed})
        return self._planned(Grid(base, **vars(self.varying.choosing().preset(values))), owner)

    def _planned(self, grid: Grid, owner: str) -> Plan:
        checked: dict[GenerationRequest, InvalidField | None] = {}

        def check(request: GenerationRequest) -> None:
            """The engine's answer depends on neither of these, and looking for it takes a while."""
            request = request.model_copy(update={"seed": 0, "variation_seed": 0, "guidance_scale": 7.0})
            if request not in checked:
                try:
                    self.engine.check(request, owner)
                    checked[request] = None
                except InvalidField as error:
                    checked[request] = error
            if refusal := checked[request]:
                raise refusal

        return plans.plan(grid, self.varying.choosing().known, check, self.parts.kinds)

    def _outlook(self, plan: Plan, owner: str, seed: int | None, cells: Cells) -> Outlook:
        distinct = list({cell.request: None for cell in plan.cells})
        looked = len(distinct) <= MOST_LOOKED_UP and self.engine.status.ready
        known = self.engine.known(distinct, owner, cells) if looked else [False] * len(distinct)
        left = [request for request, is_known in zip(distinct, known, strict=True) if not is_known]
        paces = [(net_calls(request), self.engine.seconds_per_call(request)) for request in left]
        timed = all(pace is not None for _, pace in paces)
        return Outlook(
            sum(known) if looked else None,
            sum(calls for calls, _ in paces),
            sum(calls * (pace or 0.0) for calls, pace in paces) if timed else None,
            seed,
        )

    # Running

    def run(self, request: gr.Request, **values: Any) -> Iterator[Update]:
        """Run what the controls say, and show it as it comes. What the library has is not computed again."""
        owner = owner_of(request)
        try:
            plan, delivery = self._plan(values, owner), form.delivery(values)
            run, job = self._started(plan, owner, delivery)
        except WebuiError as error:
            gr.Warning(escape(str(error)), title="Not started")
            yield {self.parts.plan: show_plan.plan(error=str(error))}
            return
        yield self._seeds(run)
        yield from self._follow(run, [job])

    def resume(self, request: gr.Request, cells: Cells = "auto") -> Iterator[Update]:
        """Go on with the last grid, also after a restart: the form and the axes as they were, and run it."""
        owner = owner_of(request)
        grid = self.presets.last(owner)
        if grid is None:
            return
        try:
            run, job = self._started(self._planned(grid, owner), owner, Delivery(cells=cells))
        except WebuiError as error:
            gr.Warning(escape(str(error)), title="Not started")
            return
        yield merged(self._filled(run), self._seeds(run))
        yield from self._follow(run, [job])

    def attach(self, request: gr.Request) -> Iterator[Update]:
        """A page opens: find this person's grid again."""
        owner = owner_of(request)
        names = {self.parts.preset: gr.update(choices=self.presets.names(owner))}
        run, last = self.runs.latest(owner), self.presets.last(owner)
        if run is None:
            known = {self.parts.grid: gr.update(value={"last": self._described(last)})} if last else {}
            yield names | known
            return
        newest = self.engine.latest(owner) in run.jobs
        yield merged(names, merged(self._filled(run) if newest else {}, self._seeds(run)))
        yield from self._follow(run, [job for job in run.jobs if not job.view.ended])

    def again(self, request: gr.Request, event: gr.EventData) -> Iterator[Update]:
        """Compute some cells anew, whatever the library has; all of them, if none are named."""
        owner, data = owner_of(request), _data(event)
        try:
            run = self.runs.get(data.get("run"), owner)
            indices = run.chosen(data.get("cells"))
            if not indices:
                return
            job = self._submitted(run, indices, owner, run.delivery, reuse=False)
        except WebuiError as error:
            gr.Warning(escape(str(error)), title="Not started")
            return
        since = data.get("until")
        yield from self._follow(run, [job], since if type(since) is int and since >= 0 else None)

    def stop(self, request: gr.Request) -> None:
        """Stop the grids of this person; what is there stays."""
        owner = owner_of(request)
        for job in self.engine.unfinished(owner):
            if self.runs.of_job(job):
                self.engine.cancel(job.id, owner)

    @plainly
    def resync(self, request: gr.Request, event: gr.EventData) -> Update:
        """Everything anew, to a page that has missed something."""
        run = self.runs.get(_data(event).get("run"), owner_of(request))
        return {self.parts.grid: gr.update(value=run.whole())}

    def _started(self, plan: Plan, owner: str, delivery: Delivery) -> tuple[Run, Job]:
        run = Run(plan, owner, self.layout.gallery.GRADIO_CACHE, delivery)
        job = self._submitted(run, [cell.index for cell in plan.cells], owner, delivery, reuse=True)
        self.runs.keep(run)
        self.presets.remember(plan.grid, owner)
        return run, job

    def _submitted(
        self, run: Run, indices: Sequence[Index], owner: str, delivery: Delivery, reuse: bool
    ) -> Job:
        requests = [run.requests[index] for index in indices]
        job = self.engine.submit(
            requests, owner, delivery.replace(image_format="png"), attended=True, persevere=True, reuse=reuse
        )
        run.add(job, indices)
        return job

    def _follow(self, run: Run, jobs: Sequence[Job], since: int | None = None) -> Iterator[Update]:
        """Tell what is new of a run while these jobs go on; everything at first, or what is new ``since``."""
        sent, working = deque([since or 0], maxlen=OVERLAP), None
        for first in self._looks(run, jobs):
            message = run.whole() if first and since is None else run.news(sent[0])
            sent.append(message["until"])
            update: Update = {self.parts.grid: gr.update(value=message)}
            if working != (working := any(not job.view.ended for job in run.jobs)):
                update |= {
                    self.parts.run: gr.update(interactive=not working),
                    self.parts.stop: gr.update(interactive=working),
                }
            yield update

    def _looks(self, run: Run, jobs: Sequence[Job]) -> Iterator[bool]:
        """Take in what has come, and yield, again and again to the end: whether that is the first time."""
        first = True
        for job in jobs:
            with closing(job.watch(LOOK_UP, PAUSE)) as watch:
                for view in watch:
                    if view.state == "queued":
                        self.engine.queue.tidy()  # a place that someone gave up shows at once
                    run.absorb()
                    yield first
                    first = False
        while run.absorb():
            yield first
            first = False
        yield first

    def _seeds(self, run: Run) -> Update:
        """What was drawn for this grid stays for the next ones, so that their cells are known."""
        return {self.parts.seeds: {name: getattr(run.plan.grid.base, name) for name in SEEDS}}

    def _filled(self, run: Run) -> Update:
        """The form and the axes as they were; the seeds stay apart (see :meth:`_seeds`)."""
        base = run.plan.grid.base
        values = form.of_request(base)
        for name in SEEDS if base.model else (*SEEDS, "model"):
            del values[name]
        return self._opened(self.filling.fill(values, run.owner), run.plan.grid)

    def _opened(self, filled: Update, grid: Grid) -> Update:
        """The tab, its axes and its task, beside a form that is filled."""
        return filled | self.varying.chosen(Preset.of(grid)) | {
            self.layout.tabs: gr.Tabs(selected=compare.TAB), self.parts.task: grid.base.task,
        }  # fmt: skip

    def take(self, request: gr.Request, saved: tuple[SavedPicture, ...], selected: int) -> Update:
        """A picture's settings, source and mask become what a grid varies."""
        return self.filling.again(request, saved, selected) | {
            self.layout.tabs: gr.Tabs(selected=compare.TAB),
            self.parts.task: saved[selected].request.task,
        }

    def _described(self, grid: Grid) -> Message:
        """The last grid, for a page that has none."""
        kinds = self.parts.kinds
        labels = [kinds[spec.kind].label for name in AXES if (spec := grid.axis(name)).kind in kinds]
        return {"axes": " × ".join(labels), "prompt": grid.base.prompt}

    # What is done with cells

    @plainly
    def use(self, request: gr.Request, event: gr.EventData, **values: Any) -> Any:
        """Send a cell to a tab, with its settings; or the settings alone."""
        owner, data = owner_of(request), _data(event)
        picture = self.runs.get(data.get("run"), owner).picture(data.get("cell"))
        target = next((target for target in TARGETS if target.name == data.get("target")), None)
        if target is None:
            return self.filling.again(request, (picture,), 0)
        send = self.filling.sender(target)
        return send(request, saved=(picture,), selected=0, with_settings=True, **values)

    @plainly
    def infotext(self, request: gr.Request, event: gr.EventData) -> Update:
        """The text inside a cell's picture."""
        data = _data(event)
        run, cell = self.runs.get(data.get("run"), owner_of(request)), data.get("cell")
        message = {"run": run.id, "infotext": [cell, run.picture(cell).infotext]}
        return {self.parts.grid: gr.update(value=message)}

    @plainly
    def files(self, request: gr.Request, event: gr.EventData) -> Update:
        """Make a file of the grid, and let the browser fetch it."""
        data = _data(event)
        run = self.runs.get(data.get("run"), owner_of(request))
        stars = data.get("stars")
        found = run.results(stars if isinstance(stars, list) else [])
        if not found.pictures:
            raise InvalidField("grid", "has no pictures yet", "Grid")
        page = data.get("page")
        with tempfile.TemporaryDirectory() as folder:
            path = exports.written(
                str(data.get("what")), found, Path(folder), page if type(page) is int else 0
            )
            kept = save_file_to_cache(path, self.layout.gallery.GRADIO_CACHE)
        url = f"gradio_api/file={Path(kept).as_posix()}"
        return {self.parts.grid: gr.update(value={"file": {"url": url, "name": path.name}})}

    def fill_from_file(self, request: gr.Request, file: str | None) -> Any:
        """Read what is inside a picture that was dropped on the prompt: a grid's sheet restores the axes."""
        try:
            text = images.read_infotext(file) if file else None
            grid = plans.from_infotext(text) if text else None
            if text is None or grid is None:
                return self.filling.fill_from_file(request, file)
            filled = self.filling.fill(form.of_reading(infotext.read(text)), owner_of(request))
        except WebuiError as error:
            gr.Warning(escape(str(error)), title="Not filled in")
            return gr.skip()
        return self._opened(components(filled), grid)


def _data(event: gr.EventData) -> Mapping[str, Any]:
    """What the browser says, unchecked."""
    data = event._data
    return data if isinstance(data, dict) else {}
