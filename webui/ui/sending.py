"""Where a finished picture can be sent: the list that the buttons under the gallery are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from webui.request import Task

Tool = Literal["", "mask", "paint"]


@dataclass(frozen=True)
class Target:
    """A tab that takes a picture. Whatever takes pictures adds itself to :data:`TARGETS`."""

    name: str
    label: str
    task: Task  # the tab it opens
    tool: Tool = ""  # of the canvas, to begin with; "": as the tab has it


TARGETS = (
    Target("img2img", "Image to image", "img2img"),
    Target("inpaint", "Inpainting", "inpaint", "mask"),
    Target("sketch", "Sketch", "img2img", "paint"),
)
