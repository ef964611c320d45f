"""The engine's state, the length of the prompts, and the picture looked at."""

from __future__ import annotations

from typing import Any

import gradio as gr

from webui.engine import Engine
from webui.request import ModelInfo, SavedPicture
from webui.ui import show
from webui.ui.layout import Layout
from webui.ui.source import Update


class Telling:
    """The handlers that say something and change nothing."""

    def __init__(self, engine: Engine, layout: Layout) -> None:
        self.engine = engine
        self.layout = layout

    def tick(self, prompt: str, negative_prompt: str, model: str) -> Update:
        """Say what the engine is doing until it is ready."""
        status = self.engine.status
        said = {self.layout.status: show.status(status.message, status.device, status.ready)}
        if not status.ready:
            return said
        counted = self.count(prompt, negative_prompt, model)
        return said | counted | {self.layout.ticker: gr.Timer(active=False)}

    def count(self, prompt: str, negative_prompt: str, model: str) -> Update:
        """The tokens of both prompts."""
        texts = {"prompt": prompt, "negative_prompt": negative_prompt}
        return {
            self.layout.tokens[field]: show.tokens(self.engine.count_tokens(text or "", model or ""))
            for field, text in texts.items()
        }

    def select(self, event: gr.SelectData, saved: tuple[SavedPicture, ...]) -> Any:
        return about_picture(self.layout, saved, event.index) if event.index < len(saved) else gr.skip()


def about_picture(layout: Layout, saved: tuple[SavedPicture, ...], index: int) -> Update:
    """Everything that is said about the picture looked at, and done with it."""
    ready = gr.update(interactive=True)
    return {
        layout.selected: index,
        layout.caption: show.caption(saved[index]),
        layout.infotext: saved[index].infotext,
        layout.again: ready,
        **dict.fromkeys([*layout.send_to.values(), layout.compare_it, layout.illustrate_it], ready),
    }


def about_model(layout: Layout, info: ModelInfo | None) -> Update:
    examples = [[example] for example in (info.examples if info else ())]
    return {
        layout.model_note: show.model_note(info),
        layout.examples: gr.Dataset(samples=examples, visible=bool(examples)),
    }
