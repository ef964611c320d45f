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
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from webui.catalogue.found import Found, Signature
from webui.diffusion import checkpoints, devices, families, loading, planning, tiers
from webui.diffusion.ahead import ReadAhead
from webui.diffusion.checkpoints import Checkpoint
from webui.diffusion.devices import Device
from webui.diffusion.model import Model, Stage
from webui.diffusion.offload import grouped, tiling
from webui.diffusion.planning import Plan
from webui.diffusion.preview import FittedLater, LatentPreview
from webui.diffusion.store import Part, Store
from webui.diffusion.tiers import Budgets, Mode, Refused, Relief, Want
from webui.errors import NotAllowed, NotFound
from webui.request import GenerationRequest
from webui.residency import Residency

Guests = Mapping[str, Found]  # what a job adds to its model, by the keys of loading.GUESTS
SMALL = GenerationRequest(width=64, height=64)  # stands for a job where none is there yet
USUAL_RELIEF = Relief()
NO_GUESTS: Guests = MappingProxyType({})


class ModelManager:
    """Keeps :class:`Model` objects, and their parts on the device or in RAM.

    What a job adds to its model beside these (another VAE, a ControlNet) is a guest: it is kept, moved and
    given back as they are, and computes with the model for as long as that job has it.

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
        self.tiled = False  # whether the present job has decoded or encoded in tiles
        self._failed: tuple[Stage, Mode] | None = None  # where and how the last run ended by an error
        self._plans: dict[str, Plan] = {}  # of each model, in the job that it ran last
        self._spoilt: set[str] = set()  # keys of parts that something has changed for good
        self._host = ""  # the model that the running job adds things to
        self._present: dict[str, Part] = {}  # what it adds, by what it is
        self._guests: dict[
            tuple[str, Path, Signature], str
        ] = {}  # keys of their parts, of all that are in memory
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
        guests: Guests = NO_GUESTS,
    ) -> Model:
        """The model, whole in memory, with room for the work that ``request`` asks of it.

        Args:
            relief: how to run what ran out of memory before.
            guests: what the request adds, for which there is to be room too.

        Raises:
            ModelError: it cannot be loaded; the others are as they were, but for those that made room.
            OutOfMemory: there is no room for it; says how much is missing.
        """
        with self._lock:
            self._failed, self.tiled = None, False
            self._forget_changed(checkpoint)
            try:
                self._make_room(checkpoint, request or SMALL, relief, guests)
            except Refused as refused:
                self._publish()
                raise self._advised(refused, checkpoint, request or SMALL, guests) from None
            model = self._models.get(checkpoint.name) or self._load(checkpoint)
            self._models[checkpoint.name] = self._latest = model
            self._store.touch(self._parts(checkpoint.name))
            devices.set_threads(self.device, sum(each.numel() for each in model.net.parameters()))
            self._publish()
            return model

    @contextmanager
    def using(
        self,
        checkpoint: Checkpoint,
        request: GenerationRequest | None = None,
        relief: Relief = USUAL_RELIEF,
        guests: Guests = NO_GUESTS,
    ) -> Iterator[Model]:
        """The model, as :meth:`get` gives it. Until the end nobody takes its parts away, nor its guests'."""
        with ExitStack() as stack:
            with self._lock:  # so that nobody releases it in between
                model = self.get(checkpoint, request, relief, guests)
                stack.enter_context(self.busy(model))
            yield model

    @contextmanager
    def busy(self, model: Model) -> Iterator[None]:
        """While it computes, nobody takes its parts away, nor those of its guests."""
        with self._lock:
            parts = self._parts(model.name)
            self._hold(parts)
            self._host, self._present = model.name, {}
        try:
            yield
        finally:
            with self._lock:
                parts += self._present.values()
                self._host, self._present = "", {}
                self._let_go(parts)

    def spoil(self, model: Model) -> None:
        """Something has changed it for good: it leaves when it is no longer busy, and so do its guests."""
        self._spoilt |= {part.key for part in [*self._parts(model.name), *self._present.values()]}

    def guest(self, component: str, found: Found, load: Callable[[], Any]) -> Any:
        """What the running job adds to its model: from memory, else as ``load`` reads it into RAM.

        It is the job's until the model is no longer busy, and stays in memory as any part does.

        Args:
            component: a key of :data:`webui.diffusion.loading.GUESTS`.

        Raises:
            OutOfMemory: there is no room for it; says how much is missing. And whatever ``load`` raises.
        """
        with self._lock:
            key = component, found.path, found.signature
            if key not in self._guests:
                self._guests[key] = self._let_in(component, found, load)
            part = self._store.parts[self._guests[key]]
            part.files.add(found.name)
            if part not in self._present.values():
                self._present[component] = part
                self._hold([part])
            return part.module

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
            self._store.drop_idle(after)
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
        stage, mode = self._failed or (None, self.plan.mode)
        return tiers.relief(stage, mode, self._store.budgets)

    def residency(self) -> Residency:
        """What is where. Never waits."""
        return self._view

    # Room

    def _make_room(
        self, checkpoint: Checkpoint, request: GenerationRequest, relief: Relief, guests: Guests
    ) -> None:
        """Decide how the job runs, and bring or make room for the parts it starts with."""
        sizes, added = self._sizes(checkpoint), self._wants(guests)
        computing = [*sizes.items(), *((name, want.bytes) for name, want in added.items())]
        budgets = self._store.budgets
        plan = planning.planned(checkpoint, request, computing, relief, self.device, budgets)
        self.plan = self._plans[checkpoint.name] = plan
        keys = self._keys.get(checkpoint.name, {})
        wants = [
            Want(keys.get(name, f"{checkpoint.name}/{name}"), size, plan.tier(name))
            for name, size in sizes.items()
        ]
        wants += [replace(want, tier=plan.tier(name)) for name, want in added.items()]
        self._store.room(wants, plan.kept_free, checkpoint.name, plan.alone)

    def _wants(self, guests: Guests) -> dict[str, Want]:
        return {component: self._want(component, found) for component, found in guests.items()}

    def _want(self, component: str, found: Found) -> Want:
        """What a guest takes, from its header if it is not in memory."""
        if key := self._guests.get((component, found.path, found.signature)):
            return Want(key, self._store.parts[key].bytes)
        size = loading.size_of(found.path, found.signature, self.device)
        return Want(f"{component}/{found.path}", size)

    def _sizes(self, checkpoint: Checkpoint) -> dict[str, int]:
        if checkpoint.name in self._models:
            return {name: self._store.parts[key].bytes for name, key in self._keys[checkpoint.name].items()}
        return loading.sizes(checkpoint, self.device)

    def _advised(
        self, refused: Refused, checkpoint: Checkpoint, request: GenerationRequest, guests: Guests
    ) -> Refused:
        weights = sum(self._sizes(checkpoint).values())
        weights += sum(want.bytes for want in self._wants(guests).values())
        smaller = tiers.would_fit(*request.final_size, request.num_images_per_prompt)
        fits = weights < self._store.budgets.device
        return self._saying(refused, planning.title(checkpoint, guests), smaller if fits else "")

    def _saying(self, refused: Refused, whose: str, smaller: str = "") -> Refused:
        pinned = any(part.pinned for part in self._store.parts.values())
        return planning.advised(refused, whose, pinned, smaller)

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
        part = self._store.take_in(component, module, time.perf_counter() - self._began, {model}, set())
        self._keys[model][component] = part.key
        self._place(part, self._plans[model], model)
        self._began = time.perf_counter()
        return part.module

    def _place(self, part: Part, plan: Plan, needed_by: str) -> None:
        if part.tier == "RAM" and plan.tier(part.component) == "device":
            self._store.settle(part, "device", f"Needed by {needed_by}")

    def _let_in(self, component: str, found: Found, load: Callable[[], nn.Module]) -> str:
        """Read a guest, in the room that was made for it, or is made now; returns its key."""
        plan = self._plans.get(self._host, self.plan)
        label = f"{loading.GUESTS[component]} {found.name}"
        try:
            want = replace(self._want(component, found), tier=plan.tier(component))
            self._store.room([want], plan.kept_free, label)
        except Refused as refused:
            raise self._saying(refused, f"The {label}") from None
        start = time.perf_counter()
        with devices.plain_memory_errors():
            module = load()
        part = self._store.take_in(component, module, time.perf_counter() - start, set(), {found.name})
        self._place(part, plan, self._host or label)
        return part.key

    def _forget_changed(self, checkpoint: Checkpoint) -> None:
        files = checkpoint.path, checkpoint.signature
        if self._files.get(checkpoint.name, files) != files:
            self._forget(checkpoint.name, "Its files have changed.")
        self._files[checkpoint.name] = files

    def _forget(self, name: str, why: str) -> None:
        """A model, and the parts that no other has."""
        alone = [part for part in self._parts(name) if part.models == {name} and not part.files]
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
            plan = self._plans[name]
            parts = [part for part in self._beside(name) if self._computes(part, stage)]
            lazily = plan.mode == "group" and stage != "vae"
            moved = [part for part in parts if not (lazily and loading.stage_of(part.component) == stage)]
            wants = [Want(part.key, part.bytes) for part in moved]
            try:
                self._store.room(wants, getattr(plan.working, stage), name, plan.alone)
            except Refused:  # by what the work is reckoned to need; the device has the last word on that
                try:
                    self._store.room(wants, 0, name)
                except Refused as refused:
                    raise self._saying(refused, f"The model {name}") from None
            self._use(parts, 1)
        try:
            with ExitStack() as stack:
                for part in parts:
                    if part not in moved:
                        stack.enter_context(grouped(part.module, self.device))
                if stage == "vae" and plan.tiled:
                    self.tiled = True
                    stack.enter_context(tiling([part.module for part in parts]))
                yield
        except BaseException:
            self._failed = self._failed or (stage, plan.mode)
            raise
        finally:
            self._use(parts, -1)

    def _beside(self, name: str) -> list[Part]:
        """A model's parts, and the guests that compute with it: a VAE takes the place of its own.

        The job's other model, which refines, has no guests but those that make pictures of latents.
        """
        guests = {
            component: part
            for component, part in self._present.items()
            if name == self._host or loading.stage_of(component) == "vae"
        }
        return list(({part.component: part for part in self._parts(name)} | guests).values())

    def _computes(self, part: Part, stage: Stage) -> bool:
        """The VAE is there with the net: diffusers takes a pipeline's device from either."""
        own = loading.stage_of(part.component)
        return own == stage or (stage == "net" and own == "vae")

    def _use(self, parts: Sequence[Part], more: int) -> None:
        with self._lock:
            for part in parts:
                part.computing += more
            self._publish()

    def _hold(self, parts: Sequence[Part]) -> None:
        for part in parts:
            part.holders += 1
        self._store.touch(parts)
        self._publish()

    def _let_go(self, parts: Sequence[Part]) -> None:
        for part in parts:
            part.holders -= 1
        self._store.touch(parts)
        spoilt = [part for part in parts if part.key in self._spoilt and not part.held]
        self._store.drop(spoilt, "released", "A plugin left changes in it.")
        self._spoilt -= {part.key for part in spoilt}
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
        self._guests = {guest: each for guest, each in self._guests.items() if each != key}

    def _publish(self) -> None:
        self._view = self._store.view(self.plan.mode)
