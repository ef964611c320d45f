"""What is in memory, as people are shown it. The policy and the doing are in :mod:`webui.diffusion`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tier = Literal["device", "RAM"]


@dataclass(frozen=True)
class ResidentPart:
    """A part of one or several models: its weights are in memory once."""

    key: str  # names it in load, release and pin
    label: str  # such as "UNet of pocket-model"
    models: tuple[str, ...]  # that it is part of, and files of which a job adds it to any
    bytes: int
    tier: Tier
    pinned: bool
    in_use: bool
    last_used: float  # seconds since the epoch
    load_seconds: float
    why: str  # it is held, as a sentence


@dataclass(frozen=True)
class ResidencyEvent:
    """A load, a move or an eviction."""

    at: float  # seconds since the epoch
    what: Literal["loaded", "moved to RAM", "moved to the device", "evicted", "released", "refused"]
    label: str
    bytes: int
    seconds: float
    why: str


@dataclass(frozen=True)
class Residency:
    """A snapshot. Bytes; a budget of 0 means that the tier does not exist (RAM, where RAM is the device)."""

    device: str
    offload: str  # the mode in force: "none", "model", "group"
    parts: tuple[ResidentPart, ...] = ()
    events: tuple[ResidencyEvent, ...] = ()  # the newest last
    device_used: int = 0
    device_budget: int = 0
    ram_used: int = 0
    ram_budget: int = 0
