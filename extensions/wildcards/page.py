"""The tab: the files to edit, and ten prompts to see what they do."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from webui.errors import WebuiError

from .drawing import drawn
from .files import Files
from .syntax import Wrong

OWN = {"show_progress": "hidden", "api_visibility": "private"}  # events of the page, no endpoints
EXAMPLES = Path(__file__).parent / "examples"
TRY = "__scenes__, {flat|3d|cartoon}"
DRAWS = 10
NOTE = (
    "One value a line; a line that begins with # is a comment. A value may hold wildcards itself, and begin "
    "with its weight: <code>3::red</code>. These files belong to everybody who uses this server."
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

    def __init__(self, files: Files) -> None:
        self.files = files
        self.opened = gr.State(("", None))  # name and text of the file that is open; None: it is to be new
        gr.HTML(f'<p class="note">{NOTE}</p>', padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320):
                self._editor()
            with gr.Column(min_width=320):
                self._trial()
        self._wire()

    def _editor(self) -> None:
        self.name = gr.Dropdown(
            [],
            value=None,
            label="File",
            info="Choose one, or write the name of a new one: animals/pets",
            allow_custom_value=True,
            elem_id="wildcards-name",
        )
        self.text = gr.Textbox(
            label="Values",
            lines=14,
            max_lines=24,
            placeholder="fox\nowl\n3::penguin",
            elem_id="wildcards-text",
        )
        self.about = gr.HTML(said("", None), elem_id="wildcards-about", padding=False)
        with gr.Row():
            self.save = gr.Button("Save", variant="primary", min_width=80, elem_id="wildcards-save")
            self.new = gr.Button("New", min_width=80, elem_id="wildcards-new")
            self.delete = gr.Button("Delete", min_width=80, interactive=False, elem_id="wildcards-delete")
        with gr.Row(visible=False, elem_classes="with-button") as self.question:
            self.asked = gr.HTML(elem_id="wildcards-asked")
            small = {"size": "sm", "scale": 0, "min_width": 90}
            self.really = gr.Button("Delete it", variant="stop", elem_id="wildcards-really", **small)
            self.keep = gr.Button("Keep it", elem_id="wildcards-keep", **small)
        self.examples = gr.Button("Copy the examples", size="sm", elem_id="wildcards-examples")

    def _trial(self) -> None:
        self.prompt = gr.Textbox(
            TRY,
            label="Try a prompt",
            info="With the files as they are saved",
            lines=2,
            elem_id="wildcards-prompt",
        )
        with gr.Row(elem_classes="with-button"):
            self.seed = gr.Number(
                1, label="First seed", precision=0, minimum=0, min_width=120, elem_id="wildcards-seed"
            )
            self.draw = gr.Button("Draw ten", size="sm", scale=0, min_width=110, elem_id="wildcards-draw")
        self.drawn = gr.HTML(elem_id="wildcards-drawn", padding=False)

    def _wire(self) -> None:
        editor = [self.name, self.text, self.opened, self.about, self.delete, self.question]
        self.name.select(told(self.open), self.name, editor, **OWN)
        self.new.click(lambda: self.show("", None), None, editor, **OWN)
        self.save.click(told(self.keep_file), [self.name, self.text, self.opened], editor, **OWN)
        self.delete.click(self.ask, self.opened, [self.question, self.asked], **OWN)
        self.keep.click(lambda: gr.Row(visible=False), None, self.question, **OWN)
        self.really.click(told(self.delete_file), self.opened, editor, **OWN)
        self.examples.click(told(self.copy_examples), self.opened, self.name, **OWN)
        trial = [self.prompt, self.seed], self.drawn
        gr.on([self.draw.click, self.prompt.submit], self.try_out, *trial, **OWN)
        if blocks := Context.root_block:
            blocks.load(lambda: gr.Dropdown(choices=self.files.names()), None, self.name, **OWN)

    # What is done

    def show(self, name: str, text: str | None) -> Any:
        """A file, or an empty sheet if ``text`` is None."""
        return (
            gr.Dropdown(choices=self.files.names(), value=name or None),
            text or "",
            (name, text),
            said(name, text),
            gr.Button(interactive=text is not None),
            gr.Row(visible=False),
        )

    def open(self, name: str) -> Any:
        return self.show(name, self.files.text(name)) if name in self.files.names() else gr.skip()

    def keep_file(self, name: str | None, text: str, opened: tuple[str, str | None]) -> Any:
        name = (name or "").strip()
        self.files.save(name, text, opened[1] if opened[0] == name else None)
        gr.Info(f"Saved: {html.escape(name)}")
        return self.show(name, self.files.text(name))

    def ask(self, opened: tuple[str, str | None]) -> Any:
        name = html.escape(opened[0])
        question = f'<p role="alert" style="padding: 10px 12px">Delete <b>{name}</b> for everybody?</p>'
        return gr.Row(visible=True), question

    def delete_file(self, opened: tuple[str, str | None]) -> Any:
        self.files.delete(opened[0])
        gr.Info(f"Deleted: {html.escape(opened[0])}")
        return self.show("", None)

    def copy_examples(self, opened: tuple[str, str | None]) -> Any:
        """Those that are not there yet."""
        there = self.files.names()
        paths = {
            path.relative_to(EXAMPLES).with_suffix("").as_posix(): path for path in EXAMPLES.rglob("*.txt")
        }
        missing = [name for name in sorted(paths) if name not in there]
        for name in missing:
            self.files.save(name, paths[name].read_text("utf-8"), None)
        gr.Info(f"Copied: {', '.join(missing)}" if missing else "All of them are here already.")
        return gr.Dropdown(choices=self.files.names(), value=opened[0] or None)

    def try_out(self, prompt: str, seed: float | None) -> str:
        files, first = self.files.look(), int(seed or 0)
        try:
            prompts = [drawn(prompt, files, f"prompt {first + n}") for n in range(DRAWS)]
        except Wrong as error:
            return f'<p role="alert" class="note">{html.escape(str(error))}</p>'
        lines = "".join(f"<li>{html.escape(each)}</li>" for each in prompts)
        return f'<ol start="{first}" style="padding-left: 2.5em">{lines}</ol>'


def said(name: str, text: str | None) -> str:
    """What the open file is good for."""
    if text is None:
        return '<p class="note">A new file.</p>'
    lines = (line.strip() for line in text.split("\n"))
    count = sum(bool(line) and not line.startswith("#") for line in lines)
    words = "1 value" if count == 1 else f"{count:,} values"
    return f'<p class="note">{words}. In a prompt: <code>__{html.escape(name)}__</code></p>'
