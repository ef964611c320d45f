"""What the page's controls do, by what they are about. None of it holds state: jobs live in the engine."""

from __future__ import annotations

from webui.engine import Engine
from webui.ui.filling import Filling
from webui.ui.layout import Layout
from webui.ui.making import Making
from webui.ui.source import SourceActions
from webui.ui.telling import Telling


class Actions:
    """The handlers of one page."""

    def __init__(self, engine: Engine, layout: Layout) -> None:
        self.telling = Telling(engine, layout)
        self.source = SourceActions(engine, layout)
        self.filling = Filling(engine, layout, self.source)
        self.making = Making(engine, layout, self.source, self.filling)
