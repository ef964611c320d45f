"""What stays in memory: the policy, as pure functions of what there is. Knows no torch and moves nothing.

Weights live in two tiers, the device and the machine's RAM; where the CPU computes there is one, and the
budget of the other is 0. Asked for room, :func:`plan` answers with moves, in an order in which the device
never holds more than its budget, or raises before anything is touched.

What leaves the device goes to RAM, the least recently used first. What leaves memory is what has been idle
for long and comes back fast: idle seconds times bytes over the seconds its load took, the largest first
(after GreedyDual-Size: Cao and Irani, 'Cost-aware WWW proxy caching algorithms', 1997). A part that computes
is never touched; one that a person pinned, or that the running job needs, may go to RAM but not be dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from webui.errors import OutOfMemory
from webui.residency import Tier

Mode = Literal["none", "model", "group"]
Stage = Literal["text", "picture", "net", "vae"]  # "picture": one beside the prompt is described
Action = Literal["evict", "to RAM", "to device", "load"]

MODES: tuple[Mode, ...] = ("none", "model", "group")  # the cheaper the later
# Peaks of what is alive at once, counted over a whole call at 256 to 1024 pixels: of the decoder (the encoder
# needs two thirds) in maps of its second level's channels at full size, of a UNet in maps of its first
# channels (SD 1.5; SDXL needs 15), of Flux and SD3 in rows of a token's width for each latent pixel. Half as
# much again is for what a convolution needs inside.
DECODE_MAPS, UNET_MAPS, TRANSFORMER_MAPS = 3.75, 23.0, 5.0
INSIDE = 1.5
TILE = 512  # pixels: of a side, that a tiled VAE works on at once
GB = 1e9
OF_DEVICE = "memory of the device"


@dataclass(frozen=True)
class Budgets:
    """Bytes each tier may hold; ``ram`` is 0 where the device is the CPU, whose memory is RAM."""

    device: int
    ram: int = 0


@dataclass(frozen=True)
class Entry:
    """A part in memory."""

    key: str
    bytes: int
    tier: Tier
    reload: float  # seconds that loading it took
    last_used: float  # seconds, on any one clock
    pinned: bool = False
    held: bool = False  # the running job will need it
    in_use: bool = False  # it computes


@dataclass(frozen=True)
class Want:
    """A part that has to be there. One for RAM is as well off on the device, if it is there."""

    key: str
    bytes: int
    tier: Tier = "device"


@dataclass(frozen=True)
class Move:
    key: str
    action: Action
    bytes: int
    tier: Tier = "device"  # where a load goes


@dataclass(frozen=True)
class Working:
    """Bytes that a job needs beside the weights, at each stage."""

    text: int = 0
    picture: int = 0
    net: int = 0
    vae: int = 0

    @property
    def most(self) -> int:
        return max(self.text, self.picture, self.net, self.vae)


class Refused(OutOfMemory):
    """There is no room: ``needs`` bytes, of which ``free`` can be made free at most."""

    def __init__(self, needs: int, free: int, where: str) -> None:
        super().__init__(f"needs {_readable(needs)} of {where}, {_readable(free)} can be freed")
        self.needs = needs
        self.free = free
        self.where = where

    def saying(self, message: str) -> Refused:
        """The same with another message."""
        other = Refused(self.needs, self.free, self.where)
        other.args = (message,)
        return other


def plan(
    entries: Sequence[Entry], wants: Sequence[Want], working: int, budgets: Budgets, now: float
) -> list[Move]:
    """The moves that bring ``wants`` to their tiers and leave ``working`` bytes of the device free.

    Raises:
        Refused: even without everything that may go there is no room.
    """
    present = {entry.key: entry for entry in entries}
    kept = {want.key for want in wants}
    due = [want for want in wants if want.tier == "device" and not _on_device(present.get(want.key))]
    used = _sum(entry for entry in entries if entry.tier == "device")
    stays = {want.key for want in wants if want.tier == "device"}
    leaving = _choose(
        [e for e in entries if e.tier == "device" and not e.in_use and e.key not in stays],
        used + _sum(due) + working - budgets.device,
        _sum(due) + working,
        OF_DEVICE if budgets.ram else "memory",
        worth=(lambda entry: entry.last_used) if budgets.ram else (lambda entry: _worth(entry, now)),
        may_go=lambda entry: bool(budgets.ram) or _may_be_dropped(entry, kept),
    )
    coming = {want.key for want in due}
    demoted = [replace(entry, tier="RAM") for entry in leaving]
    parked = [entry for entry in entries if entry.tier == "RAM" and entry.key not in coming] + demoted
    new = [want for want in wants if want.tier == "RAM" and want.key not in present]
    dropped = _choose(
        parked,
        _sum(parked) + _sum(new) - budgets.ram,
        _sum(new) + _sum(demoted),
        "RAM",
        worth=lambda entry: _worth(entry, now),
        may_go=lambda entry: _may_be_dropped(entry, kept),
    )
    gone = {entry.key for entry in dropped}
    return [
        *(Move(entry.key, "evict", entry.bytes) for entry in dropped),
        *(Move(entry.key, "to RAM", entry.bytes) for entry in demoted if entry.key not in gone),
        *(Move(want.key, "load", want.bytes, "RAM") for want in new),
        *(
            Move(want.key, "to device" if want.key in present else "load", want.bytes)
            for want in sorted(due, key=lambda want: want.key in present, reverse=True)
        ),
    ]


def idle(entries: Iterable[Entry], now: float, after: float) -> list[str]:
    """Keys of the parts to give back, as nothing has used them for ``after`` seconds."""
    return [
        entry.key
        for entry in entries
        if now - entry.last_used >= after and not (entry.pinned or entry.held or entry.in_use)
    ]


def _worth(entry: Entry, now: float) -> float:
    """Of staying in memory: the longer idle and the faster back, the less."""
    return -max(now - entry.last_used, 1e-3) * entry.bytes / max(entry.reload, 1e-3)


def _may_be_dropped(entry: Entry, kept: set[str]) -> bool:
    return not (entry.pinned or entry.held or entry.in_use or entry.key in kept)


def _on_device(entry: Entry | None) -> bool:
    return entry is not None and entry.tier == "device"


def _sum(things: Iterable[Entry | Want]) -> int:
    return sum(thing.bytes for thing in things)


def _choose(
    entries: Sequence[Entry],
    excess: int,
    needs: int,
    where: str,
    worth: Callable[[Entry], float],
    may_go: Callable[[Entry], bool],
) -> list[Entry]:
    """The least worth that make ``excess`` bytes free, and none that is not needed for it."""
    chosen: list[Entry] = []
    for entry in sorted(filter(may_go, entries), key=worth):
        if _sum(chosen) >= excess:
            break
        chosen.append(entry)
    if _sum(chosen) < excess:
        raise Refused(needs, needs - excess + _sum(chosen), where)
    for entry in reversed(chosen):
        if _sum(chosen) - entry.bytes >= excess:
            chosen.remove(entry)
    return chosen


def choose_mode(sizes: Mapping[Stage, int], working: Working, budget: int) -> Mode:
    """The fastest way for a model whose parts have these bytes to run in ``budget`` bytes of a device.

    "none": all of it stays there. "model": the part that computes is there, and the VAE beside the net, as
    diffusers takes a pipeline's device from either. "group": the layer that computes is there. What
    describes pictures computes seldom: it is only ever there while it does.
    """
    text, picture, net, vae = (sizes.get(stage, 0) for stage in ("text", "picture", "net", "vae"))
    alone = picture + working.picture
    if max(text + net + vae + working.most, alone) <= budget:
        return "none"
    if max(text + working.text, alone, net + vae + working.net, vae + working.vae) <= budget:
        return "model"
    return "group"


def cheaper(mode: Mode) -> Mode:
    """The next that needs less; the last stays."""
    return MODES[min(MODES.index(mode) + 1, len(MODES) - 1)]


def working(
    width: int,
    height: int,
    samples: int,
    pictures: int = 1,
    number: int = 4,
    net_numbers: float = UNET_MAPS * 320,
    vae_channels: int = 256,
    scale: int = 8,
) -> Working:
    """Reckon the working memory of a job.

    Args:
        width, height: of the pictures, in pixels.
        samples: the net takes at once: twice the pictures where they are guided.
        pictures: the VAE takes at once.
        number: bytes of one number.
        net_numbers: alive in the net at once for each latent pixel.
        vae_channels: of the VAE's second level, which at full size is what needs most.
        scale: pixels of a latent pixel's side.
    """
    cells = width * height / scale**2
    net = net_numbers * cells * samples * number
    vae = DECODE_MAPS * vae_channels * width * height * pictures * number
    return Working(net=int(INSIDE * net), vae=int(INSIDE * vae))


def tiled(working: Working, width: int, height: int, pictures: int) -> Working:
    """The same with a VAE that works on tiles, one picture at a time."""
    share = min(1.0, TILE**2 / (width * height)) / pictures
    return replace(working, vae=int(working.vae * share))


def may_read_ahead(size: int, ram: int, ram_free: int, working: int) -> bool:
    """Whether the next job's model, of so many bytes on the disk, may be read while this one runs.

    Args:
        ram, ram_free: of the machine.
        working: bytes of RAM that the running job may still ask for.
    """
    return size + working + ram // 10 <= ram_free


@dataclass(frozen=True)
class Relief:
    """What a job that ran out of memory is tried again with."""

    mode: Mode | None = None  # None: as the budgets say
    alone: bool = False  # nothing else stays on the device
    tiled: bool = False  # the VAE works on tiles


def relief(stage: Stage | None, mode: Mode, budgets: Budgets) -> Relief:
    """The next cheaper way for a job that ran out of memory at ``stage`` (None: while it was loaded)."""
    if stage == "vae":
        return Relief(mode if mode != "none" or not budgets.ram else "model", True, tiled=True)
    return Relief(cheaper(mode) if budgets.ram else mode, True)


def would_fit(width: int, height: int, pictures: int) -> str:
    """Advice after a job of this size did not fit: about half of it, as a person would say it."""
    if pictures > 1:
        return f"A batch size of {pictures // 2} should fit."
    smaller = [max(64, int(side * 0.7) // 64 * 64) for side in (width, height)]
    return "{}x{} should fit.".format(*smaller) if smaller != [width, height] else ""


def _readable(size: int) -> str:
    """Such as "6.1 GB", or "250 MB"."""
    size = max(0, size)
    return f"{size / GB:.1f} GB" if size >= 0.95 * GB else f"{size * 1000 / GB:.1f} MB"
