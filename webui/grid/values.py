"""How a person writes the values of an axis: as A1111's users know it, without its quirks.

============================  ==========================================================================
``1, 2.5, -3``                values; blanks are skipped
``"a, b", c``                 quotation marks keep a comma; inside them ``""`` is one quotation mark
``1-10``, ``-1-3``            a range in steps of 1; it may fall: ``10-1``
``1-10 (+2)``, ``10-1 (3)``   in steps; the direction is that of the ends, whatever the sign
``1-10 [5]``                  so many values at even distances, both ends among them
============================  ==========================================================================

A range never oversteps its end, and its values are exact decimals (0.1, 0.2, 0.3). Evenly spaced ones are
rounded to six places, or to what the field takes (whole numbers, multiples of 8).

Everything here raises :class:`ValueError`, in words for a person that hold the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from decimal import ROUND_HALF_UP, Decimal

MAX_VALUES = 1000  # of one axis
MAX_TEXT = 200_000  # characters of one axis

_PLACES = Decimal("1e-6")
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_RANGE = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*({_NUMBER})\s*\)|\[\s*([0-9]+)\s*\])?")


def split(text: str, separators: str = ",\n") -> list[str]:
    """The values of a text, between separators outside quotation marks; blanks are skipped.

    A value that is wholly in quotation marks is what stands in them; others are as written, stripped.

    Raises:
        ValueError: a quotation mark that begins a value is not closed; the text is too long.
    """
    return [value for value, _ in _values(text, separators)]


def lines(text: str) -> list[str]:
    """One value a line; a text of one line holds values between commas. Raises as :func:`split`."""
    try:
        found = list(_values(text, ",\n"))
    except ValueError:  # a line may begin a value with a quotation mark and mean it
        return split(text, "\n")
    between = {separator for _, separator in found[:-1]}
    return split(text, "\n") if "\n" in between else [value for value, _ in found]


def _values(text: str, separators: str) -> Iterator[tuple[str, str]]:
    """Each value, and the separator behind it."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"must be at most {MAX_TEXT} characters")
    piece, at = re.compile(rf'\s*("(?:[^"]|"")*+")?([^{separators}]*)'), 0
    while at < len(text):
        match = piece.match(text, at)
        assert match
        quoted, rest = match[1], match[2].strip()
        at = match.end() + 1
        if not quoted and rest.startswith('"'):
            raise ValueError(f"{short(rest)} has a quotation mark that is not closed")
        if quoted and not rest:
            yield quoted[1:-1].replace('""', '"'), text[at - 1 : at]
        elif value := match[0].strip():
            yield value, text[at - 1 : at]


def written(values: Iterable[str]) -> str:
    """The text that :func:`split` takes apart into these values."""
    return ", ".join(map(_quoted, values))


def _quoted(value: str) -> str:
    if value and value == value.strip() and not re.search(r'^"|[,\n]', value):
        return value
    return '"' + value.replace('"', '""') + '"'


def numbers(text: str, grain: int | None = None) -> list[Decimal]:
    """The numbers of a text with ranges, at most :data:`MAX_VALUES`.

    Args:
        grain: what evenly spaced values are rounded to and the step of a range without one (1 for whole
            numbers); None: to six places, and 1.

    Raises:
        ValueError: something is no number, or a range has no end; in a person's words.
    """
    found: list[Decimal] = []
    for piece in split(text):
        found += _range(piece, grain)
        if len(found) > MAX_VALUES:
            raise ValueError(f"{short(piece)} makes more than {MAX_VALUES} values")
    return found


def _range(piece: str, grain: int | None) -> list[Decimal]:
    if len(piece) <= 100 and re.fullmatch(_NUMBER, piece):
        return [_decimal(piece)]
    match = _RANGE.fullmatch(piece) if len(piece) <= 100 else None
    if not match:
        raise ValueError(f"{short(piece)} is neither a number nor a range such as 1-10 (+2) or 1-10 [5]")
    first, last = _decimal(match[1]), _decimal(match[2])
    if match[4]:
        return _evenly(first, last, int(match[4]), grain, piece)
    step = abs(_decimal(match[3])) if match[3] else Decimal(grain or 1)
    if not step:
        raise ValueError(f"{piece} has a step of 0")
    if not match[3] and first != last and abs(last - first) < step:
        raise ValueError(f"{piece} needs a step, such as {match[1]}-{match[2]} (0.1) or [5]")
    count = int(abs(last - first) / step) + 1
    if count > MAX_VALUES:
        raise ValueError(f"{piece} makes more than {MAX_VALUES} values")
    return [first + step.copy_sign(last - first) * k for k in range(count)]


def _evenly(first: Decimal, last: Decimal, count: int, grain: int | None, piece: str) -> list[Decimal]:
    if count > MAX_VALUES:
        raise ValueError(f"{piece} makes more than {MAX_VALUES} values")
    if count < 2:
        raise ValueError(f"{piece} holds both ends: that is at least [2]")
    inner = (first + (last - first) * k / (count - 1) for k in range(1, count - 1))
    return [first, *(_rounded(value, grain) for value in inner), last]


def _rounded(value: Decimal, grain: int | None) -> Decimal:
    if grain is None:
        return value.quantize(_PLACES, ROUND_HALF_UP)
    return (value / grain).quantize(Decimal(1), ROUND_HALF_UP) * grain


def _decimal(text: str) -> Decimal:
    if len(text) > 20:
        raise ValueError(f"{short(text)} has too many digits")
    return Decimal(text)


def short(text: str) -> str:
    """A value in quotation marks, for a message."""
    line = " ".join(text.split())
    return f"“{line if len(line) <= 60 else line[:59] + '…'}”"
