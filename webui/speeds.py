"""How long the net takes here, as measured lately, and which batches of a grid's cells are worth it."""

from __future__ import annotations

from collections.abc import Sequence

from webui.request import GenerationRequest, GenerationResult

WORTH_IT = 0.95  # a batch is faster if it takes less than this much of the time of single pictures


class Speeds:
    """What the worker has learnt of its device."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], float] = {}  # (model, pixels) -> seconds per call of the net
        self._alone: set[tuple[str, int, int, bool]] = set()  # shapes that are not faster in a batch

    def seconds_per_call(self, request: GenerationRequest) -> float | None:
        """What a call of the net takes for pictures of this size, measured last or reckoned by its pixels."""
        size = request.width * request.height
        if not self._known:
            return None
        nearest = min(self._known, key=lambda known: (known[0] != request.model, abs(known[1] - size)))
        return self._known[nearest] * size / nearest[1]

    def may_share(self, request: GenerationRequest) -> bool:
        """Whether a batch of such pictures is worth trying: once single ones have been timed, and again only
        if it was faster."""
        return _timed(request) in self._known and _shape(request) not in self._alone

    def refuse(self, request: GenerationRequest) -> None:
        """No batch of such pictures any more."""
        self._alone.add(_shape(request))

    def learn(self, results: Sequence[GenerationResult]) -> None:
        """Remember what a call of the net took for one picture; and whether a batch was worth it."""
        request, calls = results[0].request, results[0].net_calls
        if not calls:  # the only one was made for another cell
            return
        per_call = results[0].seconds / calls
        if len(results) == 1:
            self._known[_timed(request)] = per_call
        elif per_call > WORTH_IT * self._known[_timed(request)]:
            self.refuse(request)


def _timed(request: GenerationRequest) -> tuple[str, int]:
    return request.model, request.width * request.height


def _shape(request: GenerationRequest) -> tuple[str, int, int, bool]:
    """What decides whether a batch is worth it."""
    return request.model, request.width, request.height, request.guidance_scale > 1
