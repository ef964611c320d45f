"""From the tree to words: by chance, or one combination after the other.

Both write the tree out from left to right, and differ in what they choose at each place. Everything is
bounded here, for a small file can ask for a very long prompt.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate, combinations
from random import Random

from .files import Listing
from .syntax import Choice, FromFile, Nodes, Option, Place, Wrong, parse

MAX_LENGTH = 20_000  # characters of a prompt
MAX_PLACES = 20_000  # where something is chosen, in one prompt
MAX_NESTING = 64  # of braces and files in one another
MAX_WAYS = 200_000  # options and combinations of them that are looked at, for one prompt

ENDLESS = 10**12  # combinations: beyond that they are not counted

Choose = Callable[[Place], Nodes]


def drawn(text: str, files: Listing, seed: str) -> str:
    """The words of a prompt, by chance. The same seed draws the same on every machine.

    Raises:
        Wrong: a file is not there, or it becomes too much.
    """
    return write(parse(text), Chance(files, seed))


class Chance:
    """Chooses at a place, each option as likely as its weight says."""

    def __init__(self, files: Listing, seed: str) -> None:
        self.files = files
        self.random = Random(seed)  # hashes a text by SHA-512: alike in every process and version
        self._prepared: dict[Place, tuple[Sequence[Option], list[float]]] = {}
        self._looked = 0

    def __call__(self, place: Place) -> Nodes:
        if place not in self._prepared:
            found = options(place, self.files)
            self._prepared[place] = found, list(accumulate(option.weight for option in found))
        found, sums = self._prepared[place]
        counts = wanted(place, len(found))
        count = counts[int(self.random.random() * len(counts))]
        if count == 1:
            return found[self._index(sums)].nodes
        return joined([found[index] for index in self._different(found, count)], place)

    def _index(self, sums: Sequence[float]) -> int:
        return bisect(sums, self.random.random() * sums[-1], hi=len(sums) - 1)

    def _different(self, found: Sequence[Option], count: int) -> list[int]:
        """Indices, one after the other, of what was not chosen yet."""
        self._looked += count * len(found)
        if self._looked > MAX_WAYS:
            raise Wrong("asks to choose several of too many")
        left = list(range(len(found)))
        sums = (list(accumulate(found[index].weight for index in left)) for _ in range(count))
        return [left.pop(self._index(each)) for each in sums]


class Combinations:
    """All that can become of a prompt, numbered like an odometer: the last place turns fastest."""

    def __init__(self, text: str, files: Listing) -> None:
        """
        Raises:
            Wrong: a file is not there, or asks for itself.
        """
        self.files = files
        self._nodes = parse(text)
        self._known: dict[Place, list[tuple[int, Nodes]]] = {}  # combinations in each alternative
        self._opened: list[str] = []  # files that are being counted, outermost first; "" for braces
        self._looked = 0
        #: How many there are, up to :data:`ENDLESS`.
        self.count = self._count(self._nodes)

    def __getitem__(self, number: int) -> str:
        """The words of one of them, counted from 0.

        Raises:
            Wrong: it becomes too long.
        """
        rest, size = number, self.count  # of what is still to be written

        def choose(place: Place) -> Nodes:
            nonlocal rest, size
            after = size // self._ways(place)
            digit, rest = divmod(rest, after)
            for count, nodes in self._alternatives(place):
                if digit < count:
                    rest, size = digit * after + rest, count * after
                    return nodes
                digit -= count
            raise IndexError(number)

        return write(self._nodes, choose)

    def _count(self, nodes: Nodes) -> int:
        count = 1
        for node in nodes:
            count = min(ENDLESS, count if isinstance(node, str) else count * self._ways(node))
        return count

    def _ways(self, place: Place) -> int:
        return sum(count for count, _ in self._alternatives(place))

    def _alternatives(self, place: Place) -> list[tuple[int, Nodes]]:
        if place not in self._known:
            enter(place, self._opened)
            self._known[place] = [(self._count(nodes), nodes) for nodes in self._listed(place)]
            self._opened.pop()
        return self._known[place]

    def _listed(self, place: Place) -> list[Nodes]:
        found = options(place, self.files)
        counts = wanted(place, len(found))
        self._looked += sum(math.comb(len(found), count) for count in counts)
        if self._looked > MAX_WAYS:
            raise Wrong(f"has more than {MAX_WAYS:,} words to choose from")
        return [joined(some, place) for count in counts for some in combinations(found, count)]


def write(nodes: Nodes, choose: Choose) -> str:
    """The words of a tree. What is chosen may hold places of its own, which are chosen then.

    Raises:
        Wrong: a file asks for itself; it becomes too long, or too deep.
    """
    pieces: list[str] = []
    length = places = 0
    opened: list[str] = []

    def visit(nodes: Nodes) -> None:
        nonlocal length, places
        for node in nodes:
            if isinstance(node, str):
                pieces.append(node)
                length += len(node)
            else:
                places += 1
                enter(node, opened)
                visit(choose(node))
                opened.pop()
            if length > MAX_LENGTH or places > MAX_PLACES:
                raise Wrong(f"asks for more than {MAX_LENGTH:,} characters, or {MAX_PLACES:,} wildcards")

    visit(nodes)
    return "".join(pieces)


def options(place: Place, files: Listing) -> Sequence[Option]:
    """What can be chosen at a place, without what has no weight.

    Raises:
        Wrong: nothing can.
    """
    if isinstance(place, Choice) and (alone := place.alone):
        return options(alone, files)
    found, what = (
        (place.options, "the braces")
        if isinstance(place, Choice)
        else (files.options(place.name), f"“{place.name}”")
    )
    if chosen := [option for option in found if option.weight]:
        return chosen
    raise Wrong(f"there is nothing to choose from in {what}")


def wanted(place: Place, found: int) -> range:
    """How many may be chosen.

    Raises:
        Wrong: more than there are.
    """
    least, most = (place.least, place.most) if isinstance(place, Choice) else (1, 1)
    if most > found:
        raise Wrong(f"braces ask for {most} of {found}")
    return range(least, most + 1)


def joined(chosen: Sequence[Option], place: Place) -> Nodes:
    """Several options with what belongs in between."""
    between = place.between if isinstance(place, Choice) else ""
    return tuple(node for n, option in enumerate(chosen) for node in ((between,) if n else ()) + option.nodes)


def enter(place: Place, opened: list[str]) -> None:
    """Note a place as open, with all the others that it stands in.

    Raises:
        Wrong: its file is open already, or too much is.
    """
    name = place.name if isinstance(place, FromFile) else ""
    if name and name in opened:
        circle = [each for each in opened[opened.index(name) :] if each]
        raise Wrong(f"the files ask for one another in a circle: {' → '.join([*circle, name])}")
    if len(opened) == MAX_NESTING:
        raise Wrong(f"wildcards are nested more than {MAX_NESTING} deep")
    opened.append(name)
