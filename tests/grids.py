"""Grids for tests: what is known, and results whose pictures are plain colours."""

from pathlib import Path

from PIL import Image

from webui import images
from webui.grid.axes import Known
from webui.grid.measures import Measured
from webui.grid.plan import AxisSpec, Grid, Plan, net_calls, plan
from webui.grid.results import Results
from webui.request import GenerationRequest, ModelInfo, SchedulerInfo


def model(name: str) -> ModelInfo:
    return ModelInfo(name, name.title(), "", 512, 512, (), {}, 1)


KNOWN = Known(
    (model("pocket-model"), model("big model, v2"), model("third")),
    tuple(SchedulerInfo(name, ("Automatic",), False) for name in ("Euler", "Heun", "DPM++ 2M")),
    loras=("ink", "oil paint"),
    vaes=("mse", "anime"),
    controls=("canny", "tile"),
)
BASE = GenerationRequest(prompt="a red fox in the snow", seed=7, width=64, height=64)


def anything(request: GenerationRequest) -> None:
    """A check that everything passes."""


def axis(kind: str, text: str) -> AxisSpec:
    return AxisSpec(kind, text)


def planned(*axes: AxisSpec, base: GenerationRequest = BASE, per_cell: int = 1, check=anything) -> Plan:
    return plan(Grid(base, *axes, per_cell=per_cell), KNOWN, check)


def results_of(plan: Plan, folder: Path, without=(), size=None, **more) -> Results:
    """Each cell's picture in a colour of its own, saved as the library does."""
    pictures, measured = {}, Measured({cell.index: net_calls(cell.request) for cell in plan.cells})
    for n, cell in enumerate(cell for cell in plan.cells if cell.index not in without):
        colour = (37 * n % 256, 91 * n % 256, 153 * n % 256)
        image = Image.new("RGB", size(cell) if size else cell.request.final_size, colour)
        pictures[cell.index] = folder / f"{n}.png"
        pictures[cell.index].write_bytes(images.encode(image, "png", 90, f"picture {n}"))
        measured.add(cell.index, image, 0.5)
    return Results(plan, pictures, numbers=measured.numbers, **more)
