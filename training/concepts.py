"""The things the model learns, and what they are called."""

from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_name("concepts.txt")


@dataclass(frozen=True)
class Concept:
    """One emoji: its code points in hexadecimal, its name, its other names, and words about it."""

    code: str
    name: str
    aliases: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


def load(count: int | None = None) -> list[Concept]:
    """The first `count` concepts of the list, which runs from its heart outwards."""
    lines = [line for line in LIST.read_text().splitlines() if not line.startswith("#")]
    return [parse(line) for line in lines[:count]]


def parse(line: str) -> Concept:
    """`code | name | alias, alias | keyword, keyword`."""
    code, name, aliases, keywords = (field.strip() for field in line.split("|"))
    return Concept(code, name, words(aliases), words(keywords))


def words(field: str) -> tuple[str, ...]:
    return tuple(field.split(", ")) if field else ()
