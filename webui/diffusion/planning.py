"""How a model runs in a job: in which mode, with how much memory kept free for the work, and what to say
where there is no room. Decides by sizes alone; nothing is moved here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from webui.catalogue.found import Found
from webui.diffusion import loading, tiers
from webui.diffusion.checkpoints import Checkpoint
from webui.diffusion.devices import Device
from webui.diffusion.tiers import Budgets, Mode, Refused, Relief, Stage, Working
from webui.errors import OutOfMemory
from webui.request import GenerationRequest
from webui.residency import Tier

NO_WORK = Working()


@dataclass(frozen=True)
class Plan:
    """How a model runs in the present job."""

    mode: Mode = "none"
    working: Working = NO_WORK
    alone: bool = False
    tiled: bool = False
    waits: Tier = "RAM"  # what does not compute; on the device, where that is RAM

    @property
    def kept_free(self) -> int:
        """Bytes of the device, from the start of the job on."""
        return self.working.most if self.mode == "none" else 0

    def tier(self, component: str) -> Tier:
        """Where a part waits to compute. What describes pictures comes to the device for that alone."""
        rarely = loading.stage_of(component) == "picture"
        return "device" if self.mode == "none" and not rarely else self.waits


def planned(
    checkpoint: Checkpoint,
    request: GenerationRequest,
    sizes: Iterable[tuple[str, int]],
    relief: Relief,
    device: Device,
    budgets: Budgets,
) -> Plan:
    """``sizes``: (component, bytes) of each part that will compute."""
    stages: dict[Stage, int] = {}
    for component, size in sizes:
        stages[loading.stage_of(component)] = stages.get(loading.stage_of(component), 0) + size
    width, height = request.final_size
    pictures = request.num_images_per_prompt
    working = tiers.working(
        width,
        height,
        pictures * (2 if request.guidance_scale > 1 else 1),
        pictures,
        device.torch_dtype.itemsize,
        **loading.measures(checkpoint),
    )
    beside = stages.get("vae", 0) if budgets.ram else sum(stages.values())
    tiled = relief.tiled or beside + working.vae > budgets.device
    if tiled:
        working = tiers.tiled(working, width, height, pictures)
    mode = relief.mode or _mode(stages, working, device, budgets)
    return Plan(mode, working, relief.alone, tiled, "RAM" if budgets.ram else "device")


def _mode(stages: Mapping[Stage, int], working: Working, device: Device, budgets: Budgets) -> Mode:
    """As the person said, else the fastest that fits; where RAM is the device, there is but one."""
    if not budgets.ram:
        return "none"
    said = next((mode for mode in tiers.MODES if mode == device.offload), None)
    return said or tiers.choose_mode(stages, working, budgets.device)


def title(checkpoint: Checkpoint, guests: Mapping[str, Found]) -> str:
    """A model and what a request adds to it, as the start of a sentence."""
    names = [f"the {loading.GUESTS[component]} {found.name}" for component, found in guests.items()]
    return " with ".join([f"The model {checkpoint.name}", *([" and ".join(names)] if names else [])])


def advised(refused: Refused, whose: str, pinned: bool, smaller: str = "") -> Refused:
    """With what is not known where it is found: whose, and what would help."""
    flag = "--vram-budget" if refused.where == tiers.OF_DEVICE else "--ram-budget"
    sentences = (
        f"{whose} {refused}.",
        "Pinned models are not taken away." if pinned else "",
        smaller,
        f"{flag} raises what models and their work may take.",
    )
    return refused.saying(" ".join(filter(None, sentences)))


def hopeless(request: GenerationRequest) -> OutOfMemory:
    """What to say of a job that ran out of memory again, where nothing is left that needs less."""
    fits = tiers.would_fit(*request.final_size, request.num_images_per_prompt)
    what = "The device ran out of memory, even with everything else taken from it."
    return OutOfMemory(f"{what} {fits}".strip())
