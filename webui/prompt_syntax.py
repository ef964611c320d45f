r"""AUTOMATIC1111's prompt syntax: text -> a small tree -> the words for one step. No torch.

============================  ==================================================================
``(a)`` ``[a]`` ``(a:1.3)``   weight x1.1, /1.1, x1.3; nested weights multiply
``[from:to:when]``            `from` before step `when`, then `to`; ``[to:when]`` and ``[from::when]`` too
``[a|b|c]``                   one after the other, a new one each step; entries may be empty
``a AND b :1.2``              two prompts composed, the second with weight 1.2 (may be negative)
``BREAK``                     the words after it start a new chunk of tokens
``\(`` ``\)`` ``\[`` ``\]``   the bracket itself; ``\\`` is a backslash
``\{`` ``\}`` ``\_``          the character itself, to which plugins then give no meaning of theirs
``# ...``                     a line that begins with # is a comment
``<lora:name:0.8>``           adds a LoRA with this weight; see :class:`Lora`
============================  ==================================================================

`when` counts the steps of the pass from 0; with a decimal point it is a fraction of them, rounded down.
What lies beyond the first pass belongs to the second ('hires'): 1.5 is half-way through it, and 25 is
its step 5 when the first had 20.

Where this differs from A1111, on purpose:

* An unbalanced bracket is the character itself (A1111 stresses everything after it: think of ``:(``).
* ``AND`` composes outside brackets only; ``:1.2`` at the end is its weight only if there is an ``AND``
  (so that "ratio 16:9" stays words). In a negative prompt ``AND`` is a word, as in A1111.
* ``#`` in the middle of a line is a character; a backslash before anything else is a backslash.
* Nothing is silently capped: :func:`check` refuses what is out of range. Brackets nested more than
  :data:`MAX_DEPTH` deep are characters. ``(a:nan)`` and ``(a:1e3)`` hold no number in this syntax.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, NamedTuple, TypeAlias

from webui.request import invalid

STRONGER = 1.1  # weight of one pair of round brackets; a square pair divides by it
MAX_WEIGHT = 100.0  # of any word or AND part, either sign
MAX_PARTS = 32  # composed by AND; each costs a net call per step
MAX_DEPTH = 64  # of nested brackets; 1.1**64 is over MAX_WEIGHT already

_COMMENT = re.compile(r"^#[^\n]*(?:\n|\Z)", re.MULTILINE)
_MARK = re.compile(r"\\[()\[\]{}_\\]|[()\[\]:|]|\bAND\b|\bBREAK\b")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
_LORA = re.compile(r"<(?:lora|lyco):([^<>\n]*)>", re.IGNORECASE)
_TAG = re.compile(r"<(lora|lyco|hypernet):", re.IGNORECASE)
_UNUSABLE = {
    "prompt": "{}… is a tag that is not closed; write it as <lora:name:0.8>",
    "negative_prompt": "LoRAs belong into the prompt; move the {}…> tag there",
    "hypernet": "hypernetworks are not supported; remove the {}…> tag",
}
_OPENER = {")": "(", "]": "["}


class Segment(NamedTuple):
    """Words that share a weight."""

    text: str
    weight: float


# What an encoder reads: blocks separated by BREAK, each of segments. At least one block.
Blocks: TypeAlias = tuple[tuple[Segment, ...], ...]


class Lora(NamedTuple):
    """``<lora:name:text:net>``: what a file adds to the text encoders and to the net, by its weights.

    As A1111 has it the text encoders' weight is 1 if none is given, and the net's is theirs; both may be
    named (``te=``, ``unet=``). ``name`` is the file's, without its ending.
    """

    name: str
    text: float = 1.0
    net: float = 1.0


@dataclass(frozen=True)
class Moment:
    """Step ``step`` (from 0) of a pass of ``steps``; ``steps_before``: of the first pass, 0 within it."""

    step: int
    steps: int
    steps_before: int = 0


@dataclass(frozen=True)
class Break:
    """The word BREAK."""


@dataclass(frozen=True)
class Emphasis:
    content: Nodes
    weight: float


@dataclass(frozen=True)
class Schedule:
    """``[before:after:when]``."""

    before: Nodes
    after: Nodes
    when: float
    fraction: bool  # of the steps, else a step number

    def started(self, moment: Moment) -> bool:
        """Whether `after` has replaced `before` at this moment."""
        if self.fraction:
            passes_before = 1 if moment.steps_before else 0
            # the small term: 0.29 * 100 is 28.999... in binary, and 29 to a person
            when = (self.when - passes_before) * moment.steps + 1e-9
        else:
            when = self.when - moment.steps_before
        return moment.step >= int(min(max(when, 0), moment.steps))


@dataclass(frozen=True)
class Alternation:
    """``[a|b|c]``."""

    options: tuple[Nodes, ...]


Node: TypeAlias = "str | Break | Emphasis | Schedule | Alternation"
Nodes: TypeAlias = "tuple[Node, ...]"
Choose: TypeAlias = "Callable[[Schedule | Alternation], Iterable[Nodes]]"


@dataclass(frozen=True)
class Part:
    """A whole prompt, or one of those that AND composes, with its share of the guidance."""

    nodes: Nodes
    weight: float = 1.0

    def at(self, moment: Moment) -> Blocks:
        """The words that hold at this moment; neighbours of equal weight are joined."""

        def choose(node: Schedule | Alternation) -> Iterable[Nodes]:
            if isinstance(node, Schedule):
                return (node.after if node.started(moment) else node.before,)
            return (node.options[moment.step % len(node.options)],)

        return _blocks(_leaves(self.nodes, choose))

    def over(self, steps: int, steps_before: int = 0) -> Iterator[Blocks]:
        """The words of every step of a pass, one entry a step."""
        if not _varies(self.nodes):
            return repeat(self.at(Moment(0, steps, steps_before)), steps)
        return (self.at(Moment(step, steps, steps_before)) for step in range(steps))


def parse(text: str, compose: bool = True) -> tuple[Part, ...]:
    """Read a prompt: one part, or several if ``compose`` and it says AND. Any text is a prompt.

    Takes time in proportion to the length, and a stack in proportion to the depth (:data:`MAX_DEPTH`).
    """
    tokens = _tokens(without_loras(text))
    reader = _Reader(tokens, _pairs(tokens))
    spans = reader.split(0, len(tokens), "AND") if compose else [(0, len(tokens))]
    if len(spans) == 1:
        return (Part(reader.nodes(*spans[0])),)
    return tuple(reader.part(start, end) for start, end in spans)


def check(text: str, field: Literal["prompt", "negative_prompt"]) -> None:
    """Refuse a prompt that :func:`parse` can read but nothing can draw.

    Raises:
        InvalidField: a LoRA's tag that says nothing usable, or is in a negative prompt; a hypernetwork's; a
            weight beyond :data:`MAX_WEIGHT`; more than :data:`MAX_PARTS` prompts composed.
    """
    if field == "prompt":
        loras(text)
    if tag := _TAG.search(without_loras(text) if field == "prompt" else _COMMENT.sub("", text)):
        raise invalid(field, _UNUSABLE[field if tag[1].lower() != "hypernet" else "hypernet"].format(tag[0]))
    parts = parse(text, compose=field == "prompt")
    if len(parts) > MAX_PARTS:
        raise invalid(field, f"composes {len(parts)} prompts with AND; at most {MAX_PARTS} work")
    words = (weight for part in parts for _, weight in _leaves(part.nodes, _everything))
    for weight in (*words, *(part.weight for part in parts)):
        if not abs(weight) <= MAX_WEIGHT:  # so that NaN (0 x infinity) is refused too
            raise invalid(
                field, f"a weight of {weight:g} is out of range; use {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
            )


def loras(prompt: str) -> tuple[Lora, ...]:
    """What its tags add, each name once, in the order of the prompt; the weights of one named twice add up.

    Raises:
        InvalidField: a tag without a name, with a path in it, or with what is no weight.
    """
    added: dict[str, Lora] = {}
    for tag in _LORA.finditer(_COMMENT.sub("", prompt)):
        each = _lora(tag)
        before = added.get(each.name, Lora(each.name, 0, 0))
        added[each.name] = Lora(each.name, before.text + each.text, before.net + each.net)
    for each in added.values():
        if max(abs(each.text), abs(each.net)) > MAX_WEIGHT:
            most = f"{-MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
            raise invalid("prompt", f"the weight of the LoRA {each.name:.80} is out of range; use {most}")
    return tuple(added.values())


def whole_word(name: str) -> str:
    """A regular expression for a name that stands alone; for any case of letters, as A1111 reads them."""
    return rf"(?<!\w){re.escape(name)}(?!\w)"


def with_lora(prompt: str, name: str) -> str:
    """The prompt with this LoRA in the place of its own, as strong as the first of them; "": with none."""
    first = next(iter(loras(prompt)), Lora(name))
    return _LORA.sub("", prompt) + (f"<lora:{name}:{first.text:g}:{first.net:g}>" if name else "")


def with_lora_weight(prompt: str, weight: float) -> str:
    """The prompt with this weight in all of its LoRAs' tags."""
    return _LORA.sub(lambda tag: f"<lora:{_lora(tag).name}:{weight:g}>", prompt)


def without_loras(prompt: str) -> str:
    """The prompt without its comments and its LoRAs' tags."""
    return _LORA.sub("", _COMMENT.sub("", prompt))


def _lora(tag: re.Match[str]) -> Lora:
    name, *rest = (piece.strip() for piece in tag[1].split(":"))
    shown = f"{tag[0]:.80}"
    if not name or re.search(r"[/\\]|^\.+$", name):
        raise invalid("prompt", f"{shown} must name a LoRA as it is listed, without a folder")
    named = dict(piece.split("=", 1) for piece in rest if "=" in piece)
    given = [piece for piece in rest if "=" not in piece]
    if len(given) > 2 or not named.keys() <= {"te", "unet"}:
        raise invalid("prompt", f"{shown} says more than a name and the weights of text encoder and net")
    for weight in (*given, *named.values()):
        if not _NUMBER.fullmatch(weight):
            raise invalid("prompt", f"{shown}: “{weight:.20}” is not a weight; write a number such as 0.8")
    text = named.get("te", given[0] if given else "1")
    return Lora(name, float(text), float(named.get("unet", given[1] if len(given) > 1 else text)))


# -- text -> tree ------------------------------------------------------------------------------------

_Token: TypeAlias = "tuple[str, str]"  # (mark, characters); words and escaped characters have the mark ""


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    end = 0
    for match in _MARK.finditer(text):
        if match.start() > end:
            tokens.append(("", text[end : match.start()]))
        mark = match[0]
        tokens.append(("", mark[1]) if mark[0] == "\\" else (mark, mark))
        end = match.end()
    if end < len(text):
        tokens.append(("", text[end:]))
    return tokens


def _pairs(tokens: Sequence[_Token]) -> dict[int, int]:
    """Index of each opening bracket -> index of its closing one; unbalanced and too deep ones are left out.

    A closing bracket takes the nearest opening one of its kind; those opened since then stay unbalanced.
    """
    pairs: dict[int, int] = {}
    waiting: list[int] = []
    count = {"(": 0, "[": 0}  # of those waiting: without it each closing bracket might search them all
    for i, (mark, _) in enumerate(tokens):
        if mark in count:
            waiting.append(i)
            count[mark] += 1
        elif mark in _OPENER and count[_OPENER[mark]]:
            while True:
                opener = waiting.pop()
                count[tokens[opener][0]] -= 1
                if tokens[opener][0] == _OPENER[mark]:
                    break
            pairs[opener] = i
    return _shallow(pairs)


def _shallow(pairs: dict[int, int]) -> dict[int, int]:
    """Only the pairs that at most MAX_DEPTH - 1 others enclose."""
    shallow: dict[int, int] = {}
    ends: list[int] = []  # of the pairs round this one
    for start in sorted(pairs):
        while ends and ends[-1] < start:
            ends.pop()
        if len(ends) < MAX_DEPTH:
            shallow[start] = pairs[start]
        ends.append(pairs[start])
    return shallow


@dataclass(frozen=True)
class _Reader:
    """Recursive descent over spans [start, end) of the tokens."""

    tokens: Sequence[_Token]
    pairs: dict[int, int]

    def top(self, start: int, end: int) -> Iterator[int]:
        """Indices of the tokens that lie in no inner pair of brackets."""
        i = start
        while i < end:
            yield i
            i = self.pairs.get(i, i) + 1

    def split(self, start: int, end: int, mark: str) -> list[tuple[int, int]]:
        """The spans between the outer tokens of this mark."""
        marks = [i for i in self.top(start, end) if self.tokens[i][0] == mark]
        return list(zip([start, *(i + 1 for i in marks)], [*marks, end], strict=True))

    def number(self, start: int, end: int) -> str | None:
        """The number that ends this span after a colon, as in ``a:1.3``."""
        if end - start < 2 or self.tokens[end - 2][0] != ":":
            return None
        number = self.tokens[end - 1][1].strip()
        return number if _NUMBER.fullmatch(number) else None

    def part(self, start: int, end: int) -> Part:
        if number := self.number(start, end):
            return Part(self.nodes(start, end - 2), float(number))
        return Part(self.nodes(start, end))

    def nodes(self, start: int, end: int) -> Nodes:
        return tuple(self.node(i) for i in self.top(start, end))

    def node(self, i: int) -> Node:
        mark, characters = self.tokens[i]
        if i in self.pairs:
            read = self.round if mark == "(" else self.square
            return read(i + 1, self.pairs[i])
        return Break() if mark == "BREAK" else characters

    def round(self, start: int, end: int) -> Emphasis:
        if number := self.number(start, end):
            return Emphasis(self.nodes(start, end - 2), float(number))
        return Emphasis(self.nodes(start, end), STRONGER)

    def square(self, start: int, end: int) -> Node:
        options = self.split(start, end, "|")
        if len(options) > 1:
            return Alternation(tuple(self.nodes(*option) for option in options))
        fields = self.split(start, end, ":")
        number = self.number(start, end)
        if number is None or len(fields) > 3:
            return Emphasis(self.nodes(start, end), 1 / STRONGER)
        before = self.nodes(*fields[0]) if len(fields) == 3 else ()
        return Schedule(before, self.nodes(*fields[-2]), float(number), "." in number)


# -- tree -> words -----------------------------------------------------------------------------------


def _leaves(nodes: Nodes, choose: Choose, weight: float = 1.0) -> Iterator[tuple[str | Break, float]]:
    for node in nodes:
        if isinstance(node, (str, Break)):
            yield node, weight
        elif isinstance(node, Emphasis):
            yield from _leaves(node.content, choose, weight * node.weight)
        else:
            for branch in choose(node):
                yield from _leaves(branch, choose, weight)


def _varies(nodes: Nodes) -> bool:
    return any(
        _varies(node.content) if isinstance(node, Emphasis) else isinstance(node, (Schedule, Alternation))
        for node in nodes
    )


def _everything(node: Schedule | Alternation) -> Iterable[Nodes]:
    return (node.before, node.after) if isinstance(node, Schedule) else node.options


def _blocks(leaves: Iterable[tuple[str | Break, float]]) -> Blocks:
    blocks: list[list[tuple[list[str], float]]] = [[]]
    for leaf, weight in leaves:
        block = blocks[-1]
        if isinstance(leaf, Break):
            blocks.append([])
        elif block and block[-1][1] == weight:
            block[-1][0].append(leaf)
        else:
            block.append(([leaf], weight))
    return tuple(tuple(Segment("".join(texts), weight) for texts, weight in block) for block in blocks)
