"""What is resident: as many models as there is room for, shared by everything that runs.

Weights stay; pipelines and schedulers are made per run and thrown away. Models share the parts that hold the
same numbers (a VAE, a text encoder). What goes when room is needed decides :mod:`webui.diffusion.tiers`; a
model whose files have changed is loaded anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from webui.catalogue.found import Signature
from webui.diffusion import checkpoints, devices, families, loading, tiers
from webui.diffusion.ahead import ReadAhead
from webui.diffusion.checkpoints import Checkpoint
from webui.diffusion.devices import Device
from webui.diffusion.model import Model, Stage
from webui.diffusion.offload import grouped, tiling
from webui.diffusion.preview import FittedLater, LatentPreview
from webui.diffusion.store import Part, Store
from webui.diffusion.tiers import Budgets, Mode, Refused, Relief, Want, Working
from webui.errors import NotAllowed, NotFound, OutOfMemory
from webui.request import GenerationRequest
from webui.residency import Residency, Tier

BRIEFLY = 8  # characters of a fingerprint: enough to tell a person's parts apart
SMALL = GenerationRequest(width=64, height=64)  # stands for a job where none is there yet
USUAL_RELIEF = Relief()
NO_WORK = Working()


@dataclass(frozen=True)
class Plan:
    """How the present job runs."""

    mode: Mode = "none"
    working: Working = NO_WORK
    alone: bool = False
    tiled: bool = False


class ModelManager:
    """Keeps :class:`Model` objects, and their parts on the device or in RAM.

    Any thread may ask; computing and loading are the worker's. A part that a running job needs is not taken
    from it.
    """

    def __init__(
        self,
        device: Device,
        budgets: Budgets | None = None,
        allow_pickle: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``budgets``: of the weights and the work on them; None: as the machine says."""
        self.device = device
        self.allow_pickle = allow_pickle
        self.plan = Plan()
        self.ahead = ReadAhead()
        self.failed_at: Stage | None = None  # where the last run ended by an error
        budgets = budgets or devices.budgets(device, devices.memory(device))
        self._store = Store(device, budgets, self._dropped, clock)
        self._lock = threading.RLock()
        self._models: dict[str, Model] = {}  # by name
        self._keys: dict[str, dict[str, str]] = {}  # of each model: component -> key
        self._files: dict[str, tuple[Path, Signature]] = {}  # that each was read from
        self._latest: Model | None = None
        self._view = self._store.view("none")

    @property
    def resident(self) -> Model | None:
        """The model used last, if it is still whole in memory."""
        return self._latest

    def get(
        self,
        checkpoint: Checkpoint,
        request: GenerationRequest | None = None,
        relief: Relief = USUAL_RELIEF,
    ) -> Model:
        """The model, whole in memory, with room for the work that ``request`` asks of it.

        Args:
            relief: how to run what ran out of memory before.

        Raises:
            ModelError: it cannot be loaded; the others are as they were, but for those that made room.
            OutOfMemory: there is no room for it; says how much is missing.
        """
        with self._lock:
            self.failed_at = None
            self._forget_changed(checkpoint)
            try:
                self._make_room(checkpoint, request or SMALL, relief)
            except Refused as refused:
                self._publish()
                raise self._advised(refused, checkpoint, request or SMALL) from None
            model = self._models.get(checkpoint.name) or self._load(checkpoint)
            self._models[checkpoint.name] = self._latest = model
            self._store.touch(self._parts(checkpoint.name))
            devices.set_threads(self.device, sum(each.numel() for each in model.net.parameters()))
            self._publish()
            return model

    @contextmanager
    def busy(self, model: Model) -> Iterator[None]:
        """While it computes, nobody takes its parts away."""
        self._mark(model.name, True)
        try:
            yield
        finally:
            self._mark(model.name, False)

    def release(self, key: str = "") -> None:
        """Give a part, a model's parts, or all, back to the system: from any thread, at once.

        Args:
            key: of a part, or a model's name; "" is everything that no running job needs.

        Raises:
            NotAllowed: a running job needs it.
            NotFound: nothing of that name is in memory.
        """
        with self._lock:
            parts = self._named(key)
            needed = [part for part in parts if part.held or part.in_use]
            if needed and key:
                raise NotAllowed(
                    f"The {needed[0].label} is in use. It can be released once the job has ended."
                )
            self._store.drop([part for part in parts if part not in needed], "released", "As somebody asked.")
            self._publish()

    def pin(self, key: str, pinned: bool) -> None:
        """Keep a part, or a model's parts, in memory whatever else needs room; or no longer.

        Raises:
            NotFound: nothing of that name is in memory.
        """
        with self._lock:
            for part in self._named(key):
                part.pinned = pinned
            self._publish()

    def release_idle(self, after: float) -> None:
        """Give back what nothing has used for ``after`` seconds and nobody pinned."""
        with self._lock:
            entries = [part.entry for part in self._store.parts.values()]
            keys = tiers.idle(entries, self._store.clock(), after)
            why = f"Nothing used it for {after / 60:.0f} minutes."
            self._store.drop([self._store.parts[key] for key in keys], "released", why)
            self._publish()

    def read_ahead(self, checkpoint: Checkpoint) -> None:
        """Have the files of the next job's model in the system's memory when it comes, if there is room."""
        if self.holds(checkpoint):
            return
        memory = devices.memory(self.device)
        working = 0 if self._store.budgets.ram else self.plan.working.most
        size = sum(size for _, size, _ in checkpoint.signature)
        if tiers.may_read_ahead(size, memory.ram, memory.ram_free, working):
            base = checkpoint.path.parent if checkpoint.file else checkpoint.path
            self.ahead.read([base / name for name, *_ in checkpoint.signature])

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether the model is whole in memory, as its files are now."""
        model = self._models.get(checkpoint.name)
        return model is not None and model.signature == checkpoint.signature

    def relief(self) -> Relief:
        """How to try what has just run out of memory once more."""
        return tiers.relief(self.failed_at, self.plan.mode, self._store.budgets)

    def hopeless(self, request: GenerationRequest) -> OutOfMemory:
        """What to say when that did not help either."""
        fits = tiers.would_fit(*request.final_size, request.num_images_per_prompt)
        what = "The device ran out of memory, even with everything else taken from it."
        return OutOfMemory(f"{what} {fits}".strip())

    def residency(self) -> Residency:
        """What is where. Never waits."""
        return self._view

    # Room

    def _make_room(self, checkpoint: Checkpoint, request: GenerationRequest, relief: Relief) -> None:
        """Decide how the job runs, and bring or make room for the parts it starts with."""
        sizes = self._sizes(checkpoint)
        self.plan = plan = self._planned(checkpoint, sizes, request, relief)
        tier: Tier = "device" if plan.mode == "none" else "RAM"
        keys = self._keys.get(checkpoint.name, {})
        wants = [
            Want(keys.get(name, f"{checkpoint.name}/{name}"), size, tier) for name, size in sizes.items()
        ]
        self._bring(wants, plan.working.most if plan.mode == "none" else 0, checkpoint.name)

    def _bring(self, wants: Sequence[Want], working: int, label: str) -> None:
        if self.plan.alone:  # ask for all the room there is, so that everything else leaves
            others = [part for part in self._store.parts.values() if part.key not in {w.key for w in wants}]
            stay = sum(part.bytes for part in others if part.tier == "device" and not self._may_leave(part))
            on_device = sum(want.bytes for want in wants if want.tier == "device")
            working = max(working, self._store.budgets.device - on_device - stay)
        self._store.room(wants, working, label)

    def _may_leave(self, part: Part) -> bool:
        if self._store.budgets.ram:
            return not part.in_use
        return not (part.pinned or part.held or part.in_use)

    def _planned(
        self, checkpoint: Checkpoint, sizes: Mapping[str, int], request: GenerationRequest, relief: Relief
    ) -> Plan:
        width, height = request.final_size
        pictures = request.num_images_per_prompt
        working = tiers.working(
            width,
            height,
            pictures * (2 if request.guidance_scale > 1 else 1),
            pictures,
            self.device.torch_dtype.itemsize,
            **loading.measures(checkpoint),
        )
        budget = self._store.budgets.device
        stages: dict[Stage, int] = {}
        for name, size in sizes.items():
            stages[loading.stage_of(name)] = stages.get(loading.stage_of(name), 0) + size
        beside = stages.get("vae", 0) if self._store.budgets.ram else sum(stages.values())
        tiled = relief.tiled or beside + working.vae > budget
        if tiled:
            working = tiers.tiled(working, width, height, pictures)
        mode = relief.mode or self._mode(stages, working)
        return Plan(mode, working, relief.alone, tiled)

    def _mode(self, stages: Mapping[Stage, int], working: Working) -> Mode:
        """As the person said, else the fastest that fits; where RAM is the device, there is but one."""
        if not self._store.budgets.ram:
            return "none"
        said = next((mode for mode in tiers.MODES if mode == self.device.offload), None)
        return said or tiers.choose_mode(stages, working, self._store.budgets.device)

    def _sizes(self, checkpoint: Checkpoint) -> dict[str, int]:
        if checkpoint.name in self._models:
            return {name: self._store.parts[key].bytes for name, key in self._keys[checkpoint.name].items()}
        return loading.sizes(checkpoint, self.device)

    def _advised(self, refused: Refused, checkpoint: Checkpoint, request: GenerationRequest) -> Refused:
        """With what is not known where it is found: whose, and what would help."""
        sentences = [f"The model {checkpoint.name} {refused}."]
        if any(part.pinned for part in self._store.parts.values()):
            sentences.append("Pinned models are not taken away.")
        if sum(self._sizes(checkpoint).values()) < self._store.budgets.device:
            sentences.append(tiers.would_fit(*request.final_size, request.num_images_per_prompt))
        flag = "--vram-budget" if self._store.budgets.ram else "--ram-budget"
        sentences.append(f"{flag} raises what models and their work may take.")
        return refused.saying(" ".join(filter(None, sentences)))

    # Loading

    def _load(self, checkpoint: Checkpoint) -> Model:
        self.ahead.stop()
        own = self._keys.setdefault(checkpoint.name, {})
        have = {name: self._store.parts[key].module for name, key in own.items()}
        self._began = time.perf_counter()
        try:
            weights = loading.load(
                checkpoint, self.device, have, self.allow_pickle, partial(self._settle, checkpoint.name)
            )
        except BaseException:
            self._forget(checkpoint.name, "It could not be loaded.")
            self._publish()
            raise
        family = families.of(checkpoint.family)
        net, vae, encoder = family.assemble({**weights.parts, **weights.others})
        return Model(
            name=checkpoint.name,
            digest=partial(checkpoints.sha256, checkpoint),
            signature=checkpoint.signature,
            scheduler_config=checkpoint.scheduler_config,
            net=net,
            vae=vae,
            encoder=encoder,
            preview=FittedLater(partial(self._fit_preview, checkpoint.name, vae)),
            family=family,
            stage=partial(self._stage, checkpoint.name),
        )

    def _fit_preview(self, name: str, vae: Any) -> LatentPreview:
        with self._stage(name, "vae"):
            return LatentPreview.fit(vae)

    def _settle(self, model: str, component: str, module: nn.Module) -> nn.Module:
        """Take in a part that was just read: an equal one that is there already, else on its tier."""
        fingerprint = loading.fingerprint(module)[:BRIEFLY]
        part = self._store.twin(component, module, fingerprint)
        if part is None:
            key = self._store.free_key(component, fingerprint)
            seconds = time.perf_counter() - self._began
            part = Part(key, component, module, loading.weight(module), seconds, {model})
            part.tier = "RAM" if self._store.budgets.ram else "device"
            self._store.add(part, f"For {model}")
        part.models.add(model)
        self._keys[model][component] = part.key
        if self.plan.mode == "none" and part.tier == "RAM":
            self._store.settle(part, "device", f"Needed by {model}")
        self._began = time.perf_counter()
        return part.module

    def _forget_changed(self, checkpoint: Checkpoint) -> None:
        files = checkpoint.path, checkpoint.signature
        if self._files.get(checkpoint.name, files) != files:
            self._forget(checkpoint.name, "Its files have changed.")
        self._files[checkpoint.name] = files

    def _forget(self, name: str, why: str) -> None:
        """A model, and the parts that no other has."""
        alone = [part for part in self._parts(name) if part.models == {name}]
        if self._latest is self._models.pop(name, None):
            self._latest = None
        self._keys.pop(name, None)
        for part in self._store.parts.values():
            part.models.discard(name)
        self._store.drop(alone, "evicted", why)

    # Computing

    @contextmanager
    def _stage(self, name: str, stage: Stage) -> Iterator[None]:
        """The parts that compute at a stage are on the device while they do."""
        with self._lock, devices.plain_memory_errors():
            parts = [part for part in self._parts(name) if self._computes(part, stage)]
            lazily = self.plan.mode == "group" and stage != "vae"
            moved = [part for part in parts if not (lazily and loading.stage_of(part.component) == stage)]
            wants = [Want(part.key, part.bytes) for part in moved]
            try:
                self._bring(wants, getattr(self.plan.working, stage), name)
            except Refused:  # by what the work is reckoned to need; the device has the last word on that
                self._bring(wants, 0, name)
            self._use(parts, 1)
        try:
            with ExitStack() as stack:
                for part in parts:
                    if part not in moved:
                        stack.enter_context(grouped(part.module, self.device))
                if stage == "vae" and self.plan.tiled:
                    stack.enter_context(tiling([part.module for part in parts]))
                yield
        except BaseException:
            self.failed_at = self.failed_at or stage
            raise
        finally:
            self._use(parts, -1)

    def _computes(self, part: Part, stage: Stage) -> bool:
        """The VAE is there with the net: diffusers takes a pipeline's device from either."""
        own = loading.stage_of(part.component)
        return own == stage or (stage == "net" and own == "vae")

    def _use(self, parts: Sequence[Part], more: int) -> None:
        with self._lock:
            for part in parts:
                part.computing += more
            self._publish()

    def _mark(self, name: str, held: bool) -> None:
        with self._lock:
            parts = self._parts(name)
            for part in parts:
                part.held = held
            self._store.touch(parts)
            self._publish()

    # What is known of the parts

    def _parts(self, model: str) -> list[Part]:
        return [self._store.parts[key] for key in self._keys.get(model, {}).values()]

    def _named(self, key: str) -> list[Part]:
        if not key:
            return list(self._store.parts.values())
        if key in self._store.parts:
            return [self._store.parts[key]]
        if key in self._models:
            return self._parts(key)
        raise NotFound("It is not in memory (any more).")

    def _dropped(self, key: str) -> None:
        """A part leaves memory: so does every model that is made of it, but for its other parts."""
        for name in [name for name, keys in self._keys.items() if key in keys.values()]:
            if self._models.pop(name, None) is self._latest:
                self._latest = None
            self._keys[name] = {part: each for part, each in self._keys[name].items() if each != key}

    def _publish(self) -> None:
        self._view = self._store.view(self.plan.mode)
