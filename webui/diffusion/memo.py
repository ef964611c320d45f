"""What was computed lately, so that it need not be computed again: embeddings, source latents, noise."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memo(Generic[K, V]):
    """The ``size`` values asked for last. For one thread."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.computed = 0  # values made so far: what was not found here
        self._values: OrderedDict[K, V] = OrderedDict()

    def empty(self) -> Memo[K, V]:
        """Another of this size."""
        return Memo(self.size)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def forget(self, key: K) -> None:
        self._values.pop(key, None)

    def __call__(self, key: K, make: Callable[[], V]) -> V:
        """The value of ``key``; ``make`` is called if it is not remembered."""
        if key not in self._values:
            self._values[key] = make()
            self.computed += 1
        self._values.move_to_end(key)
        if len(self._values) > self.size:
            self._values.popitem(last=False)
        return self._values[key]
