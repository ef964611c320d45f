"""What the page's controls do, by what they are about. Jobs live in the engine, grids on their way in
``Runs``; nothing else is kept."""

from __future__ import annotations

from webui.engine import Engine
from webui.hub import Hub
from webui.ui.adapting import Adapting
from webui.ui.comparing import Comparing
from webui.ui.fetching import Fetching
from webui.ui.filling import Filling
from webui.ui.illustrating import Illustrating
from webui.ui.layout import Layout
from webui.ui.making import Making
from webui.ui.picturing import Controlling, Picturing, Referring
from webui.ui.runs import Runs
from webui.ui.shelving import Shelving
from webui.ui.source import SourceActions
from webui.ui.switching import Switching
from webui.ui.telling import Telling


class Actions:
    """The handlers of one page."""

    def __init__(self, engine: Engine, layout: Layout) -> None:
        self.telling = Telling(engine, layout)
        self.switching = Switching(engine, layout)
        self.source = SourceActions(engine, layout)
        self.filling = Filling(engine, layout, self.source)
        self.adapting = Adapting(engine, layout)
        self.picturing: list[Picturing] = [
            Controlling(engine, layout, layout.controls),
            Referring(engine, layout, [layout.reference]),
        ]
        self.shelving = Shelving(engine, layout, self.filling)
        self.fetching = Fetching(engine, layout, Hub(engine.settings.models_dir))
        runs = Runs()
        self.making = Making(engine, layout, self.source, self.filling, runs)
        self.comparing = Comparing(engine, layout, self.source, self.filling, runs)
        self.illustrating = Illustrating(engine, layout, self.source, self.filling, self.making)
