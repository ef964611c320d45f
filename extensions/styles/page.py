"""The tab: the styles to edit, and what becomes of a prompt."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.context import Context

from webui.errors import WebuiError
from webui.grid.values import written

from .store import Store
from .table import PLACE, Style

OWN = {"show_progress": "hidden", "api_visibility": "private"}  # events of the page, no endpoints
AT_ONCE = {**OWN, "queue": False}
TRY = "a fox on a blue background"
NOTE = (
    f"A style takes the prompt in where it says <code>{PLACE}</code>, else it is added behind a comma. "
    "These styles belong to everybody who uses this server."
)


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose refusals are shown to the person, and change nothing."""

    @functools.wraps(handler)
    def wrapped(*values: Any) -> Any:
        try:
            return handler(*values)
        except WebuiError as error:
            gr.Warning(html.escape(str(error)), title="Not done")
            return gr.skip()

    return wrapped


class Page:
    """Lays the tab out inside the current ``gr.Blocks``, and does what it is asked."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.opened = gr.State(None)  # the Style that is open, as it was then; None: it is to be new
        gr.HTML(f'<p class="note">{NOTE}</p>', padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320):
                self._editor()
            with gr.Column(min_width=320):
                self._preview()
        self._wire()

    def _editor(self) -> None:
        self.name = gr.Dropdown(
            [],
            value=None,
            label="Style",
            info="Choose one, or write the name of a new one",
            allow_custom_value=True,
            elem_id="styles-name",
        )
        shown = {"lines": 3, "max_lines": 12}
        self.prompt = gr.Textbox(
            label="Prompt", placeholder=f"{PLACE}, 3d render", elem_id="styles-prompt", **shown
        )
        self.negative = gr.Textbox(label="Negative prompt", elem_id="styles-negative", **shown)
        self.about = gr.HTML(said(None), elem_id="styles-about", padding=False)
        with gr.Row():
            self.save = gr.Button("Save", variant="primary", min_width=80, elem_id="styles-save")
            self.new = gr.Button("New", min_width=80, elem_id="styles-new")
            self.delete = gr.Button("Delete", min_width=80, interactive=False, elem_id="styles-delete")
        with gr.Row(visible=False, elem_classes="with-button") as self.question:
            self.asked = gr.HTML(elem_id="styles-asked")
            small = {"size": "sm", "scale": 0, "min_width": 90}
            self.really = gr.Button("Delete it", variant="stop", elem_id="styles-really", **small)
            self.keep = gr.Button("Keep it", elem_id="styles-keep", **small)

    def _preview(self) -> None:
        self.trial = gr.Textbox(
            TRY,
            label="Try it on a prompt",
            info="With the style as it stands here, saved or not",
            elem_id="styles-trial",
        )
        self.trial_negative = gr.Textbox(
            "", label="And on a negative prompt", elem_id="styles-trial-negative"
        )
        shown = {"interactive": False, "lines": 2, "max_lines": 8}
        self.result = gr.Textbox(TRY, label="The prompt becomes", elem_id="styles-result", **shown)
        self.result_negative = gr.Textbox(
            label="The negative prompt becomes", elem_id="styles-result-negative", **shown
        )

    def _wire(self) -> None:
        texts = [self.name, self.prompt, self.negative]
        editor = [*texts, self.opened, self.about, self.delete, self.question]
        self.name.select(told(self.open), self.name, editor, **OWN)
        self.new.click(told(lambda: self.show(None)), None, editor, **OWN)
        self.save.click(told(self.keep_style), [*texts, self.opened], editor, **OWN)
        self.delete.click(self.ask, self.opened, [self.question, self.asked], **OWN)
        self.keep.click(lambda: gr.Row(visible=False), None, self.question, **OWN)
        self.really.click(told(self.delete_style), self.opened, editor, **OWN)
        tried = [self.prompt, self.negative, self.trial, self.trial_negative]
        gr.on(
            [text.change for text in tried],
            self.preview,
            tried,
            [self.result, self.result_negative],
            trigger_mode="always_last",
            **AT_ONCE,
        )
        if blocks := Context.root_block:
            blocks.load(self.look, None, [self.name, self.about], **OWN)

    # What is done

    def show(self, style: Style | None) -> Any:
        """A style, or an empty sheet."""
        shown = style or Style("")
        return (
            gr.Dropdown(choices=list(self.store.styles()), value=shown.name or None),
            shown.prompt,
            shown.negative_prompt,
            style,
            said(style),
            gr.Button(interactive=style is not None),
            gr.Row(visible=False),
        )

    def open(self, name: str) -> Any:
        style = self.store.styles().get(name)
        return self.show(style) if style else gr.skip()

    def keep_style(self, name: str | None, prompt: str, negative: str, opened: Style | None) -> Any:
        style = Style((name or "").strip(), prompt, negative)
        self.store.save(style, opened if opened and opened.name == style.name else None)
        gr.Info(f"Saved: {html.escape(style.name)}")
        return self.show(self.store.styles().get(style.name))

    def ask(self, opened: Style) -> Any:
        name = html.escape(opened.name)
        question = f'<p role="alert" style="padding: 10px 12px">Delete <b>{name}</b> for everybody?</p>'
        return gr.Row(visible=True), question

    def delete_style(self, opened: Style) -> Any:
        self.store.delete(opened)
        gr.Info(f"Deleted: {html.escape(opened.name)}")
        return self.show(None)

    def preview(self, prompt: str, negative: str, trial: str, trial_negative: str) -> tuple[str, str]:
        style = Style("", prompt, negative)
        return style.applied(trial, "prompt"), style.applied(trial_negative, "negative_prompt")

    def look(self) -> Any:
        """What styles there are, or why that cannot be said."""
        try:
            return gr.Dropdown(choices=list(self.store.styles())), gr.skip()
        except WebuiError as error:
            return gr.skip(), f'<p class="note" role="alert">{html.escape(str(error))}</p>'


def said(style: Style | None) -> str:
    """How the open style is used."""
    if style is None:
        return '<p class="note">A new style.</p>'
    name = html.escape(written([style.name]))
    return f'<p class="note">Under Styles, write <code>{name}</code></p>'
