r"""Wildcards in a prompt: text -> a small tree.

==================================  ==============================================================
``__animals/cat__``                 a line of the file ``animals/cat.txt``
``__animals/*__``                   a line of any file there; ``*`` stands for any part of a name
``{red|green|blue}``                one of them
``{3::red|green}``                  red three times as likely as green
``{2$$red|green|blue}``             two of them, with a comma in between; ``{1-2$$red|green|blue}``
``{2$$ and $$red|green|blue}``      with " and " in between
``{2$$__colours__}``                two different lines of the file
``\{`` ``\}`` ``\__animals__``      the characters themselves
==================================  ==============================================================

They may stand in one another. Blanks at the ends of an option are not part of it. All else belongs to the
prompt's own syntax and is left as it is: weights, ``[a|b]`` (also within braces), comments, escapes. So are
braces that are not balanced, or that hold neither ``|`` nor ``$$``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, TypeAlias

MAX_DEPTH = 32  # of braces in braces

_MARK = re.compile(
    r"""(?P<plain>\\. | ^\#[^\n]*)                          # an escape, a comment
      | __(?P<name>(?=[\w*./\\%~])(?!_)[^\n,|{}\[\]()]{1,200}?)(?<!\s)__
      | (?P<sign>[{}\[\]|])""",
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
_WEIGHT = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})::")
_SEVERAL = re.compile(r"\s*([0-9]{1,3})(?:-([0-9]{1,3}))?\$\$(?:([^$]*)\$\$)?")
_OPENER = {"}": "{", "]": "["}


class Wrong(ValueError):
    """What cannot be drawn; in a person's words."""


@dataclass(frozen=True)
class FromFile:
    """``__name__``."""

    name: str


@dataclass(frozen=True)
class Option:
    content: Nodes | str  # a line of a file is a text until it is needed
    weight: float = 1.0

    @property
    def nodes(self) -> Nodes:
        """
        Raises:
            Wrong: as :func:`parse`.
        """
        return parse(self.content) if isinstance(self.content, str) else self.content


@dataclass(frozen=True)
class Choice:
    """``{...}``: ``least`` to ``most`` different ones of the options."""

    options: tuple[Option, ...]
    least: int = 1
    most: int = 1
    between: str = ", "

    @property
    def alone(self) -> FromFile | None:
        """The file of ``{2$$__name__}``, whose lines are meant."""
        if (
            len(self.options) == 1
            and len(nodes := self.options[0].nodes) == 1
            and isinstance(nodes[0], FromFile)
        ):
            return nodes[0]
        return None


Place: TypeAlias = FromFile | Choice  # where something is to be chosen
Node: TypeAlias = str | Place
Nodes: TypeAlias = tuple[Node, ...]


def parse(text: str) -> Nodes:
    """The tree of a prompt, or of a line of a file. A text without wildcards is a tuple of one text or none.

    Takes time in proportion to the length of the text.

    Raises:
        Wrong: braces are nested more than :data:`MAX_DEPTH` deep, or ask for more options than they hold.
    """
    tokens = list(_tokens(text))
    return _Reader(tokens, _pairs(tokens)).nodes(0, len(tokens))


def is_plain(text: str) -> bool:
    """Whether there can be no wildcard in a text: most prompts, told apart fast."""
    return "{" not in text and "__" not in text


def weighted(text: str) -> tuple[float, str]:
    """An option or a line without its weight, and that."""
    match = _WEIGHT.match(text)
    return (float(match[1]), text[match.end() :]) if match else (1.0, text)


class _Token(NamedTuple):
    mark: str  # "{", "}", "[", "]", "|"; "_" for the name of a file; "" for words
    text: str


def _tokens(text: str) -> Iterator[_Token]:
    end = 0
    for match in _MARK.finditer(text):
        if match["plain"]:
            continue
        if match.start() > end:
            yield _Token("", text[end : match.start()])
        yield _Token("_", match["name"]) if match["name"] else _Token(match["sign"], match["sign"])
        end = match.end()
    if end < len(text):
        yield _Token("", text[end:])


def _pairs(tokens: Sequence[_Token]) -> dict[int, int]:
    """Index of each opening bracket -> index of its closing one.

    A closing bracket takes the nearest opening one of its kind; those opened since then stay unbalanced.
    """
    pairs: dict[int, int] = {}
    waiting: list[int] = []
    count = {"{": 0, "[": 0}  # of those waiting: without it each closing bracket might search them all
    for i, (mark, _) in enumerate(tokens):
        if mark in count:
            waiting.append(i)
            count[mark] += 1
        elif mark in _OPENER and count[_OPENER[mark]]:
            while True:
                opener = waiting.pop()
                count[tokens[opener].mark] -= 1
                if tokens[opener].mark == _OPENER[mark]:
                    break
            pairs[opener] = i
    return pairs


@dataclass
class _Reader:
    """Recursive descent over spans [start, end) of the tokens."""

    tokens: Sequence[_Token]
    pairs: dict[int, int]
    depth: int = 0  # of the braces that are open

    def nodes(self, start: int, end: int) -> Nodes:
        nodes: list[Node] = []
        i = start
        while i < end:
            mark, text = self.tokens[i]
            node = FromFile(text) if mark == "_" else self.choice(i) or text
            i = self.pairs[i] + 1 if isinstance(node, Choice) else i + 1
            nodes.append(node)
        return tuple(_joined(nodes))

    def choice(self, i: int) -> Choice | None:
        """What the braces that open here mean; None if they mean themselves, or there are none."""
        if self.tokens[i].mark != "{" or i not in self.pairs:
            return None
        spans = self.options(i + 1, self.pairs[i])
        several = _SEVERAL.match(self.first(*spans[0]))
        if len(spans) == 1 and not several:
            return None
        if self.depth == MAX_DEPTH:
            raise Wrong(f"braces are nested more than {MAX_DEPTH} deep")
        self.depth += 1
        options = [
            self.option(start, end, several if n == 0 else None) for n, (start, end) in enumerate(spans)
        ]
        self.depth -= 1
        if not several:
            return Choice(tuple(options))
        least = int(several[1])
        most = int(several[2] or several[1])
        return Choice(tuple(options), min(least, most), max(least, most), several[3] or ", ")

    def options(self, start: int, end: int) -> list[tuple[int, int]]:
        """The spans between the bars that stand in no inner pair of brackets."""
        spans = []
        i = start
        while i < end:
            if self.tokens[i].mark == "|":
                spans.append((start, i))
                start = i + 1
            i = self.pairs.get(i, i) + 1
        return [*spans, (start, end)]

    def first(self, start: int, end: int) -> str:
        """The words that a span begins with."""
        return self.tokens[start].text if start < end and not self.tokens[start].mark else ""

    def option(self, start: int, end: int, several: re.Match[str] | None) -> Option:
        """What stands between two bars, without blanks at its ends."""
        words = self.first(start, end)
        weight, rest = weighted(words[several.end() :] if several else words)
        nodes = [*_joined([rest, *self.nodes(start + bool(words), end)])]
        if isinstance(nodes[0], str):
            nodes[0] = nodes[0].lstrip()
        if isinstance(nodes[-1], str):
            nodes[-1] = nodes[-1].rstrip()
        return Option(tuple(filter(None, nodes)), weight)


def _joined(nodes: Iterable[Node]) -> Iterator[Node]:
    """With neighbouring texts as one."""
    for words, group in groupby(nodes, lambda node: isinstance(node, str)):
        if words:
            yield "".join(map(str, group))
        else:
            yield from group
