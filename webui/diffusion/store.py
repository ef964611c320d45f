"""The parts in memory: what is where, and the moves that the policy decided, done.

The one thing that differs between devices is ``module.to(device)``. The moves were run with a fake device
that counts bytes and from the CPU to itself; between a GPU and RAM they have never run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from webui.diffusion import devices, laying, loading, tiers
from webui.diffusion.devices import Device
from webui.diffusion.tiers import Budgets, Entry, Move, Refused, Want
from webui.residency import Residency, ResidencyEvent, ResidentPart, Tier

MB = 1_000_000
REMEMBERED = 100  # events of the timeline
BRIEFLY = 8  # characters of a fingerprint: enough to tell a person's parts apart
What = Literal["loaded", "moved to RAM", "moved to the device", "evicted", "released", "refused"]


@dataclass
class Part:
    """A component's weights, in memory once, for all the models that have the same."""

    key: str
    component: str
    module: nn.Module
    bytes: int
    seconds: float  # that loading it took
    models: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)  # names of those that jobs add to models
    tier: Tier = "RAM"
    pinned: bool = False
    holders: int = 0  # models that the running job will need it for
    computing: int = 0  # stages of jobs that compute with it
    last_used: float = 0.0

    @property
    def label(self) -> str:
        if not self.models and self.files:
            return f"{loading.GUESTS[self.component]} {min(self.files)}"
        title = loading.TITLES.get(self.component, self.component)
        return f"{title} of {min(self.models, default='no model')}"

    @property
    def entry(self) -> Entry:
        return Entry(
            self.key,
            self.bytes,
            self.tier,
            self.seconds,
            self.last_used,
            self.pinned,
            self.held,
            self.in_use,
        )

    @property
    def held(self) -> bool:
        """The running job will need it."""
        return self.holders > 0

    @property
    def in_use(self) -> bool:
        return self.computing > 0


class Store:
    """Parts by key. For one thread at a time; the manager sees to that."""

    def __init__(
        self,
        device: Device,
        budgets: Budgets,
        dropped: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``dropped`` is told the key of each part that leaves memory, before it does."""
        self.device = device
        self.budgets = budgets
        self.parts: dict[str, Part] = {}
        self.clock = clock
        self._dropped = dropped
        self._events: deque[ResidencyEvent] = deque(maxlen=REMEMBERED)

    def room(self, wants: Iterable[Want], working: int, label: str, alone: bool = False) -> None:
        """Move and evict until what is wanted is where it should be, or can be loaded there.

        Args:
            working: bytes of the device that are to be free then.
            alone: let everything else leave the device as well.

        Raises:
            Refused: there is no room, and nothing was touched.
            OutOfMemory: the device had less room than it said; all parts are whole.
        """
        wanted = {want.key: want for want in wants}
        if alone:
            working = max(working, self._all_but(wanted))
        entries = [part.entry for part in self.parts.values()]
        try:
            moves = tiers.plan(entries, list(wanted.values()), working, self.budgets, self.clock())
        except Refused as refused:
            self.note("refused", label, refused.needs, 0, f"It {refused}")
            raise
        leaving = [move for move in moves if move.action in ("evict", "to RAM")]
        for move in leaving:
            self._leave(move, f"To make room for {label}")
        if leaving:
            devices.free_memory(self.device)
        for move in moves:
            if move.action == "to device":
                self.settle(self.parts[move.key], "device", f"Needed by {label}")

    def _all_but(self, wanted: Mapping[str, Want]) -> int:
        """Bytes that are free on the device when nothing else is there that can leave it."""
        others = [part for part in self.parts.values() if part.tier == "device" and part.key not in wanted]
        stay = sum(part.bytes for part in others if not self._may_leave(part))
        return self.budgets.device - stay - sum(w.bytes for w in wanted.values() if w.tier == "device")

    def _may_leave(self, part: Part) -> bool:
        return not (part.in_use or (not self.budgets.ram and (part.pinned or part.held)))

    def _leave(self, move: Move, why: str) -> None:
        if move.action == "evict":
            self._drop(self.parts[move.key], "evicted", why)
        else:
            self.settle(self.parts[move.key], "RAM", why)

    def settle(self, part: Part, tier: Tier, why: str) -> None:
        """Bring a part to a tier. One that is full leaves it where it was, whole.

        Raises:
            OutOfMemory: the tier is full.
        """
        start = time.perf_counter()
        places = {"device": self.device.name, "RAM": "cpu"}
        try:
            with devices.plain_memory_errors():
                part.module.to(places[tier])
        except BaseException:
            part.module.to(places[part.tier])
            raise
        part.tier = tier
        what: What = "moved to the device" if tier == "device" else "moved to RAM"
        self.note(what, part.label, part.bytes, time.perf_counter() - start, why)

    def take_in(
        self, component: str, module: nn.Module, seconds: float, models: Set[str], files: Set[str]
    ) -> Part:
        """The part that holds what was just read into RAM for these: one that is there already, or new."""
        fingerprint = loading.fingerprint(module)[:BRIEFLY]
        part = self._twin(component, module, fingerprint)
        if part is None:
            key = self._free_key(component, fingerprint)
            part = Part(key, component, module, loading.weight(module), seconds, set(models), set(files))
            part.tier = "RAM" if self.budgets.ram else "device"
            self.parts[key] = part
            self.note("loaded", part.label, part.bytes, seconds, f"For {min(models | files)}")
        part.models |= models
        part.files |= files
        return part

    def drop(self, parts: Collection[Part], what: What, why: str) -> None:
        """Give parts back, and their memory to the system."""
        for part in parts:
            self._drop(part, what, why)
        if parts:
            devices.free_memory(self.device)

    def drop_idle(self, after: float) -> None:
        """Give back what nothing has used for ``after`` seconds and nobody pinned."""
        keys = tiers.idle([part.entry for part in self.parts.values()], self.clock(), after)
        why = f"Nothing used it for {after / 60:.0f} minutes."
        self.drop([self.parts[key] for key in keys], "released", why)

    def _drop(self, part: Part, what: What, why: str) -> None:
        self.note(what, part.label, part.bytes, 0, why)
        self._dropped(part.key)
        del self.parts[part.key], part.module  # whoever still holds the part does not hold its weights

    def _twin(self, component: str, module: nn.Module, fingerprint: str) -> Part | None:
        """The part in memory that holds the same numbers as this module, if there is one."""
        alike = (part for key, part in self.parts.items() if key.startswith(f"{component}-{fingerprint}"))
        return next((part for part in alike if loading.same(module, part.module)), None)

    def _free_key(self, component: str, fingerprint: str) -> str:
        """A key for a new part; parts that look alike and are not get different ones."""
        key, n = f"{component}-{fingerprint}", 1
        while key in self.parts:
            n += 1
            key = f"{component}-{fingerprint}-{n}"
        return key

    def touch(self, parts: Iterable[Part]) -> None:
        now = self.clock()
        for part in parts:
            part.last_used = now

    def note(self, what: What, label: str, size: int, seconds: float, why: str) -> None:
        self._events.append(ResidencyEvent(self.clock(), what, label, size, seconds, why))

    def view(self, offload: str) -> Residency:
        """What is where, as people are shown it."""
        parts = [
            ResidentPart(
                part.key,
                part.label,
                tuple(sorted(part.models | part.files)),
                part.bytes,
                part.tier,
                part.pinned,
                part.in_use or part.held,
                part.last_used,
                part.seconds,
                _why(part),
            )
            for part in self.parts.values()
        ]
        used = {tier: sum(part.bytes for part in parts if part.tier == tier) for tier in ("device", "RAM")}
        return Residency(
            str(self.device),
            offload,
            tuple(parts),
            tuple(self._events),
            used["device"],
            self.budgets.device,
            used["RAM"],
            self.budgets.ram,
        )


def _why(part: Part) -> str:
    kept = laying.kept_bytes(part.module)
    beside = f" {kept / MB:,.1f} MB beside it are its weights before the LoRAs in it." if kept else ""
    return _reason(part) + beside


def _reason(part: Part) -> str:
    if part.in_use or part.held:
        return "A job that runs now needs it."
    if part.pinned:
        return "It is pinned."
    return "There is room for it; what has not been used for longest goes first."
