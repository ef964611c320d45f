"""A flight record as one HTML file that opens from a disk: the same panels, no server, no network.

Its own Content-Security-Policy allows the one script and the one style sheet written here, by their hash,
and pictures inside the file; nothing else, least of all what a prompt may hold.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path
from string import Template

from webui.ui import illustrated
from webui.ui.show_illustrated import Message

HERE = Path(__file__).parent
START = """
new studio.illustrated.Board(document.querySelector(".illustrated"),
  JSON.parse(document.querySelector("#record").textContent));
"""


def page(record: Message) -> str:
    """``record``: as :func:`webui.ui.show_illustrated.record` has it."""
    script = f"const studio = {{}};{illustrated.script()}{START}"
    style = (HERE / "illustrated_page.css").read_text("utf-8") + illustrated.style()
    return Template((HERE / "illustrated_page.html").read_text("utf-8")).substitute(
        policy=(
            f"default-src 'none'; img-src data:; script-src 'sha256-{_digest(script)}'; "
            f"style-src 'sha256-{_digest(style)}'; base-uri 'none'; form-action 'none'"
        ),
        title=escape(f"How a picture came about: {record['about']['prompt'][:80]}"),
        style=style,
        script=script,
        record=illustrated.plain_json(record),
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
