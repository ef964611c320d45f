"""LoRAs and embeddings in a prompt: put in, found, taken out. What they mean is in ``prompt_syntax``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_TAG = re.compile(r"[ \t]*<(?:lora|lyco):([^<>:\n]+)[^<>\n]*>", re.IGNORECASE)
MOST_WORDS = 3  # trigger words put in with a LoRA; its line in the Models tab says them all


def loras(prompt: str) -> list[str]:
    """The names of the LoRAs in a prompt, each once, in its order."""
    return list(dict.fromkeys(match[1].strip() for match in _TAG.finditer(prompt)))


def with_lora(prompt: str, name: str, words: Sequence[str] = ()) -> str:
    """With a LoRA's tag at the end and, before it, its first trigger words that are not there yet."""
    for word in words[:MOST_WORDS]:
        prompt = with_word(prompt, word)
    return prompt if name in loras(prompt) else f"{prompt.rstrip()} <lora:{name}:1>".lstrip()


def without_lora(prompt: str, name: str) -> str:
    """Without the tags of this LoRA; its words stay, as a person may have written them."""
    return _TAG.sub(lambda match: "" if match[1].strip() == name else match[0], prompt).lstrip()


def with_word(prompt: str, word: str) -> str:
    """With a word at the end of what is written, before the tags there, unless it is there already."""
    if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", _TAG.sub("", prompt), re.IGNORECASE):
        return prompt
    text, tags = _parted(prompt)
    joint = "" if not text else " " if text.endswith((",", ".")) else ", "
    return f"{text}{joint}{word}{f' {tags}' if tags else ''}"


def chosen(prompt: str, names: Iterable[str], words: Mapping[str, Sequence[str]]) -> str:
    """The prompt with exactly the LoRAs named; ``words``: trigger words by name."""
    wanted = list(names)
    for name in loras(prompt):
        if name not in wanted:
            prompt = without_lora(prompt, name)
    for name in wanted:
        if name not in loras(prompt):
            prompt = with_lora(prompt, name, words.get(name, ()))
    return prompt


def _parted(prompt: str) -> tuple[str, str]:
    """(what is written, the tags at its end)."""
    match = re.search(rf"(?:{_TAG.pattern}\s*)*\Z", prompt, re.IGNORECASE)
    start = match.start() if match else len(prompt)
    return prompt[:start].rstrip(), prompt[start:].strip()
