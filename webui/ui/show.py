"""What a person sees of a job, the engine and a picture: snapshots -> HTML. Pure, and all of it escaped.

The markup keeps its shape from one snapshot to the next, because Gradio patches it in place: the live
region stays the same element (a screen reader announces what changes in it), and the preview does not blink.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape

from webui.jobs import JobView
from webui.request import ModelInfo, SavedPicture

PLAIN = "reads prompts as they are written: weights, schedules and LoRAs mean nothing to it"
TASK_WORDS = {"txt2img": "text to image", "img2img": "image to image", "inpaint": "inpainting"}


def stage(view: JobView | None = None, note: str = "", waiting: int = 0) -> str:
    """The preview, the progress bar and the line under it.

    Args:
        view: a snapshot of the job followed; None before the first one.
        note: said instead of the job's own stage, such as what the engine is still loading.
        waiting: further jobs of the same person behind this one.
    """
    if view is None:
        return _stage("idle", "", 0.0, "Ready when you are: write a prompt and press Generate.", "")
    headline = note if note and not view.ended else headline_of(view)
    state = f"{view.state} some-done" if view.saved else view.state
    return _stage(state, _preview(view), progress(view), headline, details_of(view, waiting))


def refusal(message: str) -> str:
    """A request was not taken; ``message`` names the field. Whatever ran before goes on."""
    return _stage("failed", "", 0.0, message, "Nothing was started. Everything you typed is still there.")


def progress(view: JobView) -> float:
    """0 to 1, over the net calls of the whole job."""
    if view.state == "done":
        return 1.0
    return min(1.0, view.net_calls / view.net_calls_total) if view.net_calls_total else 0.0


def headline_of(view: JobView) -> str:
    """The one sentence that a screen reader announces when it changes: so it holds no step numbers."""
    match view.state:
        case "queued" if view.place > 1:
            return f"Waiting: place {view.place} in the queue"
        case "queued" if not view.saved:
            return "Waiting: next in the queue"
        case "running" if not view.net_calls:
            return f"{view.stage}…"
        case "queued" | "running" if view.pictures_total > 1:
            return f"Making the pictures: {len(view.saved)} of {view.pictures_total} done"
        case "queued" | "running":
            return "Making the picture"
        case "failed":
            return str(view.error) if view.error else "It failed."
        case "cancelled" if view.saved:
            return f"{view.stage}. {len(view.saved)} of {_pictures(view.pictures_total)} kept."
        case "cancelled":
            return f"{view.stage}."
    failed = f", {len(view.failures)} failed" if view.failures else ""
    return f"Done: {_pictures(len(view.saved))}{failed}"


def caption(picture: SavedPicture | None) -> str:
    """Where the selected picture is kept, and its size."""
    if picture is None:
        return '<p class="caption">Finished pictures appear here, and are saved at once.</p>'
    return (
        f'<p class="caption">Saved as <code>{escape(picture.name)}</code>'
        f"<span>{picture.width} × {picture.height}</span></p>"
    )


def status(message: str, device: str, ready: bool) -> str:
    """The engine's line at the top of the page."""
    text = f"{message} on {device}" if ready and device else message if ready else f"{message}…"
    kind = "ready" if ready else "busy"
    return f'<p class="status {kind}" role="status">{escape(text)}</p>'


def model_note(info: ModelInfo | None) -> str:
    """What the chosen model is good for, and how to get another one."""
    how = (
        "Want another one? Put a checkpoint into <code>models/</code> and press Refresh, or fetch one in the "
        "Models tab."
    )
    if info is None:
        return f'<p class="note"><b>No model is installed yet.</b> {how}</p>'
    return f'<p class="note"><b>{escape(info.note)}</b> {how}</p>'


def model_limits(info: ModelInfo | None) -> str:
    """What a model cannot do, if there is anything."""
    if info is None:
        return ""
    offered = [words for task, words in TASK_WORDS.items() if task in info.tasks]
    limits = [f"does {' and '.join(offered)} only"] if len(offered) < len(TASK_WORDS) else []
    limits += [PLAIN] if info.plain else []
    return f'<p class="note"><b>{escape(info.title)}</b> {", and ".join(limits)}.</p>' if limits else ""


def tokens(count: tuple[int, int] | None) -> str:
    """The prompt's length, as used / room. Empty until the model is there to count."""
    if count is None:
        return '<p class="tokens"></p>'
    used, room = count
    return f'<p class="tokens" title="Tokens: {used} of {room}">{used}/{room}</p>'


def survival(picture: bytes | None = None, message: str = "") -> str:
    """What of the source is left at the first step (a JPEG), or why that is not shown."""
    words = message if message or picture else "What is left of your picture is shown here."
    return (
        f'<figure class="survival">{_jpeg(picture, "The picture with its noise")}'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def size_note() -> str:
    """Which size a source becomes, before there is one. Later on it is said by ``keys.js``."""
    return '<p class="note">Choose a picture, or draw one on a blank sheet.</p>'


def mask_view(picture: bytes | None = None, message: str = "") -> str:
    """The mask over the picture (a JPEG), or why it is not shown."""
    words = message or "Tinted: repainted, the stronger the more. Framed: what is computed."
    return (
        f'<figure class="mask-view">{_jpeg(picture, "The picture with its mask")}'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def batch(ready: int = 0, refused: Sequence[tuple[str, str]] = (), note: str = "") -> str:
    """How many pictures wait to be changed, and which files cannot be, or could not be, with the reason."""
    words = note or (f"{_pictures(ready)} ready." if ready else "No pictures chosen yet.")
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(why)}</td></tr>" for name, why in refused)
    head = '<tr><th scope="col">Left out</th><th scope="col">Why</th></tr>' if rows else ""
    return f'<div class="batch"><p role="status">{escape(words)}</p><table>{head}{rows}</table></div>'


def seconds(value: float) -> str:
    """A duration as people say it: ``0.8 s``, ``12 s``, ``2 min 5 s``."""
    if value < 9.95:
        return f"{value:.1f} s"
    whole = math.ceil(value)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def _stage(state: str, picture: str, done: float, headline: str, details: str) -> str:
    percent = round(100 * done)
    return (
        f'<div class="stage {state}">'
        f'<div class="preview">{picture}</div>'
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}"><span style="width:{percent}%"></span></div>'
        f'<p class="headline" aria-live="polite">{escape(headline)}</p>'
        f'<p class="details">{escape(details)}</p>'
        "</div>"
    )


def _preview(view: JobView) -> str:
    if view.ended or view.preview is None:
        return ""
    return _jpeg(view.preview, "Preview of the picture being made")


def _jpeg(data: bytes | None, alt: str) -> str:
    """A picture inside the page; nothing of None."""
    if data is None:
        return ""
    return f'<img alt="{alt}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'


def details_of(view: JobView, waiting: int = 0) -> str:
    """How far and how long still; afterwards time, speed, memory, device."""
    parts = _figures(view) if view.ended else _outlook(view)
    if waiting:
        parts.append(f"{waiting} more waiting")
    return " · ".join(parts)


def _outlook(view: JobView) -> list[str]:
    """While it runs: how far, and how long still."""
    parts = []
    if view.net_calls:
        parts += [view.stage, f"{100 * progress(view):.0f} %"]
    if view.eta is not None:
        parts.append(f"about {seconds(view.eta)} left")
    return parts


def _figures(view: JobView) -> list[str]:
    """Afterwards: time, speed, memory, device."""
    parts = []
    if view.seconds:
        parts.append(seconds(view.seconds))
    if view.pictures_per_second:
        parts.append(f"{view.pictures_per_second:.2f} pictures/s")
    if view.peak_memory:
        parts.append(f"peak memory {_bytes(view.peak_memory)}")
    if view.device:
        parts.append(view.device)
    return parts


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _bytes(count: int) -> str:
    mebi = count / 2**20
    return f"{mebi:.0f} MiB" if mebi < 1024 else f"{mebi / 1024:.1f} GiB"
