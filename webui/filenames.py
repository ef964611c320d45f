"""File names of pictures from a pattern such as ``[number]-[seed]-[prompt_words]``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from unicodedata import category, normalize

from webui.errors import SettingsError
from webui.request import GenerationRequest

DEFAULT_PATTERN = "[number]-[seed]-[prompt_words]"
TOKENS = "[number] [seed] [prompt_words] [model] [scheduler] [steps] [cfg] [width] [height] [date] [time]"
MAX_BYTES = 150  # of UTF-8, without the ending; most file systems take 255

_TOKEN = re.compile(r"\[([^\[\]]*)\]")
_MARKUP = re.compile(r"<[^<>]*>|:[\d.]+")  # of a prompt: <lora:ink:0.8>, and the weight in (fox:1.2)
_WINDOWS = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)


def checked(pattern: str) -> str:
    """A file-name pattern whose tokens are all known.

    Raises:
        SettingsError: it has others, or a stray bracket or a separator.
    """
    unknown = set(_TOKEN.findall(pattern)) - set(_TOKEN.findall(TOKENS))
    if unknown or not pattern or re.search(r"[\[\]/\\]", _TOKEN.sub("", pattern)):
        raise SettingsError(f"--filename-pattern: {pattern!r} may hold {TOKENS} and text without / \\ [ ]")
    return pattern


def tokens(request: GenerationRequest, model: str, width: int, height: int, now: datetime) -> dict[str, str]:
    """What each token of a pattern stands for; ``number`` is known only when the name is chosen.

    ``width`` and ``height`` are the finished picture's, in pixels.
    """
    prompt = _MARKUP.sub(" ", request.prompt[:1000])
    return {
        "seed": str(request.seed),
        "prompt_words": "-".join(words(prompt)[:8]),
        "model": model,
        "scheduler": request.scheduler,
        "width": str(width),
        "height": str(height),
        "steps": str(request.num_inference_steps),
        "cfg": f"{request.guidance_scale:g}",
        "date": f"{now:%Y-%m-%d}",
        "time": f"{now:%H%M%S}",
    }


def words(text: str) -> list[str]:
    """Runs of letters, marks, digits and emoji."""
    return "".join(c if category(c)[0] in "LMN" or category(c) == "So" else " " for c in text).split()


def stem(pattern: str, tokens: Mapping[str, str]) -> str:
    """A file name without its ending that every file system takes and no person misreads."""
    name = normalize("NFC", _TOKEN.sub(lambda token: tokens[token[1]], pattern))
    name = "".join("_" if c in '<>:"/\\|?*' or category(c)[0] == "C" else c for c in name)
    name = " ".join(name.split()).lstrip(". ")
    name = name.encode()[:MAX_BYTES].decode(errors="ignore").rstrip(". -")
    return f"_{name}" if _WINDOWS.match(name) else name or "picture"
