"""Every decision about the device: which one, in which precision, with which attention.

:func:`look` asks torch what the machine has; :func:`choose` is a pure function of that description and
of a person's flags, so that CUDA, ROCm, MPS and XPU are decided (and tested) without owning one.

The rule, when a person chose nothing:

========== ============ ========================================================== =========
device     taken when   precision of the weights                                   attention
========== ============ ========================================================== =========
CUDA/ROCm  present      float16                                                    sdpa
XPU        else         float16                                                    sdpa
MPS        else         float16                                                    sdpa
CPU        else         bfloat16 where the CPU multiplies it natively, else float32 sdpa
========== ============ ========================================================== =========

Only the weights and the net's activations have that precision: latents and the sampler's arithmetic are
float32 everywhere. xformers is used only on CUDA and only when asked for.

Memory: weights may take what :func:`budgets` says. Parts that do not fit are brought to the device as they
are needed (``--offload``; see :mod:`webui.diffusion.tiers`). On a CPU nothing is offloaded: RAM is all there
is. The moves, group offloading and fp8 storage were run on a CPU alone, the first two from it to itself.

Speed: ``auto`` is what was measured to pay: channels-last where :attr:`Device.channels_last` says so, and no
compiling, which gains nothing on a CPU. ``max`` compiles the net's repeated
blocks on CUDA; it has never run there. ``plain`` does neither.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from webui.diffusion.tiers import Budgets
from webui.errors import OutOfMemory, SettingsError

if TYPE_CHECKING:
    import torch

    from webui.settings import Settings

DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "xformers", "sliced")
SMALL_NET = 100_000_000  # parameters; Stable Diffusion 1.x has 860 million
# Flags of torch.cpu.get_capabilities() that mean bfloat16 products in hardware.
NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16")
GB = 1_000_000_000
SPARED = 0.08  # of a device's memory: what its driver, and fragments between the weights, take


@dataclass(frozen=True)
class Machine:
    """What torch finds. Tests describe machines that nobody here owns."""

    cuda: int = 0  # CUDA or ROCm devices
    rocm: bool = False
    xpu: int = 0
    mps: bool = False
    cpu_bf16: bool = False
    xformers: bool = False
    threads: int = 1  # that torch computes with on the CPU


@dataclass(frozen=True)
class Device:
    """Where the net runs and how. ``str()`` of it is shown on the page and in the log."""

    name: str  # as torch.device takes it: "cpu", "cuda:0", "mps", "xpu:0"
    dtype: str
    attention: str
    threads: int = 1  # on the CPU, for a net that is not small
    offload: str = "auto"  # as --offload says it
    speed: str = "auto"  # as --speed says it

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def channels_last(self) -> bool:
        """Convolutions are fastest so: 0.85 of the time on a CPU in bfloat16, the same in float32
        (benchmarks/speed.py); usual on CUDA."""
        pays = self.kind == "cuda" or (self.kind == "cpu" and self.dtype == "bfloat16")
        return pays and self.speed != "plain"

    @property
    def compiled(self) -> bool:
        """Whether the net's repeated blocks are compiled."""
        return self.speed == "max" and self.kind == "cuda"

    @property
    def fp8(self) -> bool:
        """Whether the net's weights are kept in 8 bits. This changes pixels, so only a person decides it."""
        return self.offload == "fp8"

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def __str__(self) -> str:
        more = (", fp8" if self.fp8 else "") + (", compiled" if self.compiled else "")
        return f"{self.name}, {self.dtype}, {self.attention}{more}"


def look() -> Machine:
    """Describe this machine. Imports torch."""
    # OpenMP's threads else spin while they wait: 3x slower beside any other busy process, the page included.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, as torch is loaded
    # Last bits else hang, on AMD's processors, on where in memory or in a file a weight lies. Costs no time.
    os.environ.setdefault("MKL_CBWR", "AUTO")  # read once, by MKL's first call
    import torch

    capabilities = torch.cpu.get_capabilities()
    return Machine(
        cuda=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        rocm=torch.version.hip is not None,
        xpu=torch.xpu.device_count() if torch.xpu.is_available() else 0,
        mps=torch.backends.mps.is_available(),
        cpu_bf16=any(capabilities.get(flag, False) for flag in NATIVE_BF16),
        xformers=importlib.util.find_spec("xformers") is not None,
        threads=torch.get_num_threads(),
    )


def wished(settings: Settings) -> Device:
    """The device of this machine that the settings ask for.

    Raises:
        SettingsError: as :func:`choose`.
    """
    flags = settings.device, settings.dtype, settings.attention, settings.offload, settings.speed
    return choose(look(), *flags)


def choose(
    machine: Machine,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    offload: str = "auto",
    speed: str = "auto",
) -> Device:
    """Apply a person's wishes, else the rule of this module.

    Raises:
        SettingsError: the machine cannot do what was asked for; says what it can.
    """
    name = _name(machine, device)
    attention = "sdpa" if attention == "auto" else attention
    chosen = Device(name, _dtype(machine, name, dtype), attention, machine.threads, offload, speed)
    if chosen.fp8 and chosen.kind == "mps":
        raise SettingsError("--offload fp8: Apple's GPUs have no 8-bit floating point. Use model or group.")
    if chosen.attention == "xformers":
        if chosen.kind != "cuda" or machine.rocm:
            raise SettingsError(f"--attention xformers works on CUDA only, not on {name}. Leave it out.")
        if not machine.xformers:
            raise SettingsError("--attention xformers: the package is not installed (pip install xformers).")
    return chosen


def _name(machine: Machine, asked: str) -> str:
    present = {"cuda": machine.cuda, "xpu": machine.xpu, "mps": int(machine.mps), "cpu": 1}
    kind, _, index = asked.partition(":")
    if asked == "auto":
        kind = next(kind for kind, count in present.items() if count)
    if int(index or 0) >= present.get(kind, 0):
        have = ", ".join(f"{kind} ({count})" for kind, count in present.items() if count)
        raise SettingsError(f"--device {asked}: this machine has {have}.")
    return kind if kind in ("cpu", "mps") else f"{kind}:{int(index or 0)}"


def _dtype(machine: Machine, name: str, asked: str) -> str:
    if name != "cpu":
        return "float16" if asked == "auto" else asked
    if asked == "float16":
        raise SettingsError("--dtype float16 is hundreds of times slower on a CPU. Use bfloat16 or float32.")
    if asked == "auto":
        return "bfloat16" if machine.cpu_bf16 else "float32"
    return asked


def import_diffusers(device: Device) -> None:
    """Import diffusers quietly.

    diffusers imports xformers wherever it is installed: seconds, and a warning without CUDA. A None in
    ``sys.modules`` makes it look absent, as the import system documents, unless it is to be used.
    """
    first = "diffusers" not in sys.modules
    if device.attention != "xformers" and first:
        sys.modules.setdefault("xformers", None)  # type: ignore[arg-type]
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    # The classes themselves: diffusers loads them lazily, seconds that the first picture would wait.
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline  # noqa: F401

    if first:  # what was imported stays: looking through it took 0.2 s whenever a model was freed
        gc.collect()
        gc.freeze()


def set_threads(device: Device, parameters: int) -> None:
    """Choose how many threads a net of so many parameters computes with on a CPU.

    One for a small net: its products are over before a second thread has woken up (0.75 s against 0.83 s
    a picture on two cores, and 0.8 s against 1.2 s while a page is served). Else as many as torch chose.
    """
    import torch

    if device.kind == "cpu":
        torch.set_num_threads(1 if parameters < SMALL_NET else device.threads)


def free_memory(device: Device) -> None:
    """Return to the system what dropped objects held; freeing a model is only true after this."""
    import torch

    gc.collect()
    if device.kind in ("cuda", "xpu", "mps"):
        getattr(torch, device.kind).empty_cache()
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # glibc keeps freed pages otherwise
        except (OSError, AttributeError):  # another libc, such as musl
            logging.getLogger(__name__).debug("no malloc_trim in this C library")


def synchronise(device: Device) -> None:
    """Wait until the device has done what it was told."""
    if device.kind in ("cuda", "xpu", "mps"):
        import torch

        getattr(torch, device.kind).synchronize()


@dataclass(frozen=True)
class Memory:
    """Bytes of the device and of the machine's RAM, as they were found."""

    device: int
    device_free: int
    ram: int
    ram_free: int  # available without swapping


def memory(device: Device) -> Memory:
    """Ask the device and the system."""
    import torch

    ram, free = system_memory()
    if device.kind in ("cuda", "xpu"):
        device_free, total = getattr(torch, device.kind).mem_get_info(device.name)
        return Memory(total, device_free, ram, free)
    if device.kind == "mps":
        total = torch.mps.recommended_max_memory()
        return Memory(total, total - torch.mps.driver_allocated_memory(), ram, free)
    return Memory(ram, free, ram, free)


def system_memory() -> tuple[int, int]:
    """(all, what is available), in bytes. A container's limit counts as the machine's."""
    import psutil

    found = psutil.virtual_memory()
    limit = _container_limit() or found.total
    return min(found.total, limit), min(found.available, limit)


def _container_limit() -> int | None:
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no such system, or "max"
        return None


def allowed(device: Device, settings: Settings) -> Budgets:
    """What weights and the work on them may take of this machine, by the settings."""
    return budgets(device, memory(device), settings.vram_budget, settings.ram_budget)


def budgets(
    device: Device, memory: Memory, vram_budget: float | None = None, ram_budget: float | None = None
) -> Budgets:
    """What weights and the work on them may take. A person's wishes are in GB, and go before the rule.

    The rule: of a device what is free of it now, less what fragments take; of RAM three quarters, or what is
    available now less a tenth of all, but never less than half. Beside a device RAM is a second tier, which
    takes half of that: the work on pictures and the rest of the machine need some too. Apple's GPUs share the
    machine's RAM: what is left of it beside theirs, but not nothing, which would say that RAM is the device.
    """
    usual = max(memory.ram // 2, min(memory.ram * 3 // 4, memory.ram_free - memory.ram // 10))
    ram = usual if ram_budget is None else int(ram_budget * GB)
    if device.kind == "cpu":
        return Budgets(ram)
    own = int(memory.device_free - SPARED * memory.device)
    own = own if vram_budget is None else int(vram_budget * GB)
    if device.kind == "mps":
        return Budgets(own, max(1, ram - own))
    return Budgets(own, ram if ram_budget else ram // 2)


class PeakMemory:
    """Peak memory of a run in bytes: of the device's allocator, else of this process."""

    def __init__(self, device: Device) -> None:
        self._device = device
        if device.kind in ("cuda", "xpu"):
            self._backend.reset_peak_memory_stats(device.name)

    @property
    def _backend(self) -> Any:
        import torch

        return getattr(torch, self._device.kind)

    def read(self) -> int | None:
        if self._device.kind in ("cuda", "xpu"):
            return int(self._backend.max_memory_allocated(self._device.name))
        if self._device.kind == "mps":
            return int(self._backend.driver_allocated_memory())
        return process_peak_memory()


def process_peak_memory() -> int | None:
    """Most memory this process has ever held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def plain_memory_errors() -> Iterator[None]:
    """torch's ways of running out of memory, as one error that says what helps."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory() from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch's CPU allocator has no class of its own
            raise
        raise _out_of_memory() from error


def _out_of_memory() -> OutOfMemory:
    return OutOfMemory("The device ran out of memory. A smaller size, batch or hires scale needs less.")
