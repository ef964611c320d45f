"""What a person sees of the models: facts -> what the lists of the page draw (``models_*.js``), and HTML.

Everything that a file says of itself is escaped, here or there; no path is ever shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from html import escape
from typing import Any

from webui.catalogue.found import FAMILY_TITLES, KINDS, Found
from webui.catalogue.notes import Note
from webui.catalogue.relatives import LAID
from webui.hub import Download, Hub
from webui.hub_offer import Choice, Offer
from webui.residency import Residency

SHORT_HASH = 10  # digits, as A1111 shows them
SHOWN_WORDS = 12  # trigger words of one file
SHOWN_EVENTS = 40
SHOWN_FILES = 200  # of a download
KIND_WORDS: Mapping[str, tuple[str, str, str]] = {  # kind -> one, several, a sign in place of a picture
    "checkpoint": ("Checkpoint", "Checkpoints", "◆"),
    "net": ("Net alone", "Nets alone", "◇"),
    "vae": ("VAE", "VAEs", "▣"),
    "text encoder": ("Text encoder", "Text encoders", "¶"),
    "lora": ("LoRA", "LoRAs", "≈"),
    "embedding": ("Embedding", "Embeddings", "“"),
    "controlnet": ("ControlNet", "ControlNets", "#"),
    "ip-adapter": ("IP-Adapter", "IP-Adapters", "◎"),
    "preview": ("Preview decoder", "Preview decoders", "◔"),
    "upscaler": ("Upscaler", "Upscalers", "↗"),
    "other": ("Something else", "Something else", "·"),
}
PREDICTIONS = {"v_prediction": "v-prediction", "flow_prediction": "flow"}  # of epsilon, nothing is said
HINT = "Put checkpoints, LoRAs and the like into models/, in folders as you like, and press Refresh."


def key(found: Found) -> str:
    """What names a file between the page and us."""
    return f"{found.kind}/{found.name}"


def shelf(files: Iterable[Mapping[str, Any]]) -> str:
    """All that is on the disk, as JSON: what is text goes through Gradio untouched, however long it is."""
    kinds = {kind: dict(zip(("title", "plural", "sign"), KIND_WORDS[kind], strict=True)) for kind in KINDS}
    families = {**FAMILY_TITLES, "other": "Another family"}
    return json.dumps({"files": list(files), "families": families, "kinds": kinds, "hint": HINT})


def file(found: Found, sha256: str, note: Note, use: bool, manage: bool) -> dict[str, Any]:
    """One line of it. Its picture, if it has one, is added by who knows it.

    Args:
        use: whether the form can take files of this kind.
        manage: whether the person may load it, and write notes that everyone sees.
    """
    return {
        "key": key(found),
        "kind": found.kind,
        "name": found.name,
        "family": found.family,
        "bytes": found.bytes,
        "changed": max((time for _, _, time in found.signature), default=0) / 1e9,
        "prediction": PREDICTIONS.get(found.prediction, ""),
        "precision": found.precision,
        "form": found.layout if found.layout in LAID else "",
        "problem": found.problem,
        "words": list(found.words[:SHOWN_WORDS]),
        "hash": sha256[:SHORT_HASH],
        "star": note.favourite,
        "note": note.text,
        "assumed": found.note,
        "use": use and not found.problem,
        "manage": manage,
    }


def memory(residency: Residency, manage: bool) -> str:
    """What is in memory, and what came and went, as JSON."""
    known = asdict(residency)
    return json.dumps({**known, "events": known["events"][-SHOWN_EVENTS:], "manage": manage})


# The hub


def hub_note(admin: bool) -> str:
    """What the panel does, or who may use it."""
    if not admin:
        words = "Only an administrator of this server may download models: see <code>--admin</code>."
    else:
        words = (
            "Type the name of a model, or paste the address of one or of a file. Nothing is asked of the hub "
            "before you press Look up, and nothing is fetched before you press Download. What is private "
            "needs <code>HF_TOKEN</code> set when the program starts."
        )
    return f'<p class="note">{words}</p>'


def hub_choice(choice: Choice) -> str:
    return f"{choice.title}, {size(choice.bytes)}"


def hub_offer(hub: Hub, offer: Offer, choice: Choice) -> str:
    """What would be fetched for a choice, and what not."""
    here = hub.here(offer, choice)
    partly = f"<p>{size(here)} of it is here from an earlier try.</p>" if here else ""
    what = "folder" if choice.folder else "file"
    rows = _rows((file.path, size(file.bytes)) for file in choice.files[:SHOWN_FILES])
    head = '<tr><th scope="col">Fetched</th><th scope="col">Size</th></tr>'
    return (
        f'<div class="hub"><p>Becomes the {what} <b>{escape(choice.target)}</b> in the models folder: '
        f"{_count(len(choice.files))}, {size(choice.bytes)}.</p>{partly}"
        f'<div class="scroll"><table>{head}{rows}</table></div>{_left_out(offer)}</div>'
    )


def hub_progress(download: Download | None) -> str:
    """How far a download is, or how it ended."""
    if download is None:
        return ""
    percent = round(100 * download.bytes / download.total) if download.total else 100
    return (
        f'<div class="hub-progress {download.state}">'
        f'<p class="headline" aria-live="polite">{_headline(download)}</p>'
        f'<div class="bar" role="progressbar" aria-label="Download" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}"><span style="width:{percent}%"></span></div>'
        f'<p class="details">{escape(_details(download))}</p></div>'
    )


def size(count: float) -> str:
    """Bytes as people say them."""
    if count < 2**20:
        return f"{max(1, round(count / 2**10))} KiB"
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def _headline(download: Download) -> str:
    begin = {"running": "Fetching", "done": "Here:", "failed": "Not fetched:", "cancelled": "Cancelled:"}
    return escape(f"{begin[download.state]} {download.title}")


def _details(download: Download) -> str:
    if download.state != "running":
        return download.message
    parts = [f"{size(download.bytes)} of {size(download.total)}"]
    if download.slow:
        parts.append("nothing has come for a while; it goes on by itself when the line is back")
    elif download.speed:
        parts += [f"{size(download.speed)}/s", _left((download.total - download.bytes) / download.speed)]
    return " · ".join(parts)


def _left(seconds: float) -> str:
    return f"about {round(seconds)} s left" if seconds < 90 else f"about {round(seconds / 60)} min left"


def _left_out(offer: Offer) -> str:
    if not offer.left_out:
        return ""
    rows = _rows(offer.left_out[:SHOWN_FILES])
    head = '<tr><th scope="col">Not fetched</th><th scope="col">Why</th></tr>'
    title = f"{_count(len(offer.left_out))} left out"
    return (
        f'<details><summary>{title}</summary><div class="scroll"><table>{head}{rows}</table></div></details>'
    )


def _rows(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in pairs)


def _count(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"
