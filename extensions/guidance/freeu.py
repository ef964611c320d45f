"""FreeU (Si et al. 2023, arXiv:2309.11497): the decoder's backbone and skip connections, weighed anew.

The first two stages of the UNet's decoder multiply half of the backbone's channels by b, and the lowest
frequencies of what comes through the skip connection by s. diffusers' blocks do that themselves wherever
they carry the four numbers as attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

NAMES = ("b1", "b2", "s1", "s2")


@contextmanager
def enabled(unet: Any, scales: Mapping[str, float]) -> Iterator[None]:
    """With FreeU inside.

    ``disable_freeu`` would leave the attributes behind, as None. So they are put back here: those that a
    block had, and none where there were none.
    """
    before = [{name: vars(block)[name] for name in NAMES if name in vars(block)} for block in unet.up_blocks]
    try:
        unet.enable_freeu(**scales)
        yield
    finally:
        for block, had in zip(unet.up_blocks, before, strict=True):
            for name in NAMES:
                vars(block).pop(name, None)
            vars(block).update(had)
