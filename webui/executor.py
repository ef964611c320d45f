"""One device and its models: what makes the pictures of a job's requests, and what those are known by.

Constructing it is cheap; torch and diffusers are imported by :meth:`Executor.start`. It computes in the
worker's thread alone; what else asks it something waits for nobody.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from webui import units
from webui.catalogue.found import Found
from webui.diffusion import additions, checkpoints
from webui.diffusion.additions import NOTHING, Additions
from webui.diffusion.checkpoints import Checkpoint, Finder
from webui.diffusion.tiers import Refused, Relief
from webui.errors import Cancelled, OutOfMemory, WebuiError
from webui.jobs import Job, Reporter
from webui.library import Library
from webui.plugins.host import Host
from webui.request import Cells, GenerationRequest, GenerationResult, invalid
from webui.settings import Settings
from webui.sources import SourceStore
from webui.speeds import Speeds

if TYPE_CHECKING:
    from PIL.Image import Image

    from webui.diffusion.devices import Device
    from webui.diffusion.manager import ModelManager
    from webui.diffusion.model import Model
    from webui.diffusion.survival import Survival
    from webui.diffusion.taesd import Previews

log = logging.getLogger(__name__)

#: Fields of a request that name a stored picture.
PICTURES = ("image", "mask_image", "reference_image", *(f"{stem}_image" for stem in units.STEMS))
AS_USUAL = Relief()
CELLS_AT_ONCE = 8  # of a grid, in one batch


@dataclass(frozen=True)
class Models:
    """What makes a request's pictures: a model, what is added to it, and any refiner the request names."""

    model: Model
    additions: Additions
    refiner: Model | None = None


class Executor:
    """
    Args:
        library: is asked which cells of a grid it has.
        following: the request that will be computed after a job's present one, if that is known.
    """

    def __init__(
        self,
        settings: Settings,
        library: Library,
        sources: SourceStore,
        plugins: Host,
        found: Finder,
        following: Callable[[Job], GenerationRequest | None],
    ) -> None:
        self.settings = settings
        self.library = library
        self.sources = sources
        self.plugins = plugins
        self.found = found
        self.following = following
        self.manager: ModelManager | None = None
        self.busy = threading.Lock()  # held while it computes
        self.speeds = Speeds()
        self._survival: Survival | None = None
        self._previews: Previews | None = None

    def start(self, say: Callable[[str, str], None]) -> Device:
        """Import torch, choose the device, load the default model; ``say`` hears what is done, and where."""
        say("Importing torch", "")
        from webui.diffusion import devices

        device = devices.wished(self.settings)
        say("Importing diffusers", str(device))
        devices.import_diffusers(device)
        from webui.diffusion import generate  # noqa: F401  (its imports are what takes time)
        from webui.diffusion.manager import ModelManager

        self.manager = ModelManager(
            device, devices.allowed(device, self.settings), self.settings.allow_pickle
        )
        found = self.checkpoints()
        if name := checkpoints.default(found, self.settings.model):
            say(f"Loading {found[name].info.title}", str(device))
            try:
                self.load(name)
            except WebuiError as error:  # another model may do; the log has it, and so will each job
                log.error("%s", error)
        return device

    def stop(self) -> None:
        """Give all memory back."""
        if self.manager is not None:
            self.manager.ahead.stop()
            self.manager.release()

    def checkpoints(self, listed: Sequence[Found] | None = None) -> dict[str, Checkpoint]:
        """All there are, by name. Reads the folders anew, unless it is told what is ``listed``."""
        return self.found.all(listed)

    def keys(self, request: GenerationRequest, checkpoint: Checkpoint, cells: Cells = "auto") -> list[str]:
        """All that the request's one picture may be found by, the best first."""
        kinds = (True, False) if self._together(cells) else (True,)
        return [key for alone in kinds if (key := self.key(request, checkpoint, alone))]

    def key(self, request: GenerationRequest, checkpoint: Checkpoint, alone: bool = True) -> str:
        """What the one picture of a complete request is known by; "" if that cannot be said (yet)."""
        if request.num_images_per_prompt > 1 or self.manager is None:
            return ""
        from webui.diffusion import identity

        model_hash = checkpoints.sha256(checkpoint)
        if request.refiner:
            model_hash += checkpoints.sha256(self.checkpoints()[request.refiner])
        config, device = checkpoint.scheduler_config, self.manager.device
        plugins = self.plugins.identity(request)
        if plugins is None:
            return ""
        added = self._added(request, checkpoint).identity()
        return identity.key(request, model_hash, config, device, alone, plugins, added)

    def _added(self, request: GenerationRequest, checkpoint: Checkpoint) -> Additions:
        return additions.find(request, self.found, checkpoint.info)

    def _together(self, cells: Cells) -> bool:
        """Whether cells of a grid may share a batch."""
        wanted = self.settings.cells if cells == "auto" else cells
        on_cpu = self.manager is None or self.manager.device.kind == "cpu"
        return wanted == "together" or (wanted == "auto" and not on_cpu)

    def survival(self, request: GenerationRequest, image: Image) -> Image | None:
        """See :meth:`webui.engine.Engine.survival`. Runs in the caller's thread, if the device is free."""
        if self.manager is None or not self.busy.acquire(blocking=False):
            return None
        try:
            resident = self.manager.resident
            if resident is None or resident.family.facts.auto:
                return None
            from webui.diffusion.survival import Survival

            self._survival = self._survival or Survival()
            return self._survival(request, resident, self.manager.device, image)
        finally:
            self.busy.release()

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether all of it is in memory."""
        return self.manager is not None and self.manager.holds(checkpoint)

    def load(self, name: str) -> None:
        """Bring a model into memory, between two turns."""
        if (checkpoint := self.checkpoints().get(name)) and self.manager is not None:
            with self._model(checkpoint):
                pass

    def release_idle(self) -> None:
        """Give back what nothing has used for as long as the settings say."""
        if self.manager is not None and self.settings.idle_release:
            self.manager.release_idle(self.settings.idle_release * 60)

    def compute(
        self, job: Job, request: GenerationRequest, checkpoint: Checkpoint
    ) -> tuple[Sequence[int], list[GenerationResult]]:
        """A job's present request, and those of its grid that are made with it: their turns and results.

        Out of memory, it is tried once more with less.

        Raises:
            OutOfMemory: that was too much as well; says what would fit.
        """
        turns, results = self._twice(job, request, checkpoint)
        self.speeds.learn(results)
        return turns, results

    def keys_of(self, results: Sequence[GenerationResult], checkpoint: Checkpoint) -> list[str]:
        """What each of the pictures just computed is known by, see :meth:`key`."""
        if self.manager is None or self.manager.tiled:  # tiles show in the pixels, and hang on the room
            return [""] * len(results)
        return [self.key(result.request, checkpoint, alone=len(results) == 1) for result in results]

    def _twice(
        self, job: Job, request: GenerationRequest, checkpoint: Checkpoint
    ) -> tuple[Sequence[int], list[GenerationResult]]:
        from webui.diffusion import devices, planning

        assert self.manager is not None
        before = job.view
        try:
            return self._tried(job, request, checkpoint, AS_USUAL)
        except Refused:
            raise
        except OutOfMemory as error:
            # As text: a log that kept the traceback would keep all that was computed.
            told = "".join(traceback.format_exception(error))
            log.warning("out of memory, so it is tried once more with less: %s", told)
        devices.free_memory(self.manager.device)
        job.update(
            stage="Out of memory: trying again with less",
            net_calls=before.net_calls,
            net_calls_total=before.net_calls_total,
            preview=None,
        )
        try:
            return self._tried(job, request, checkpoint, self.manager.relief())
        except OutOfMemory as error:
            raise planning.hopeless(request) from error

    def _tried(
        self, job: Job, request: GenerationRequest, checkpoint: Checkpoint, relief: Relief
    ) -> tuple[Sequence[int], list[GenerationResult]]:
        added = self._added(request, checkpoint)
        with (
            self._refining(request, relief, added) as refiner,
            self._model(checkpoint, request, relief, added) as model,
        ):
            following = self.following(job)
            if following and self.manager and (upcoming := self.checkpoints().get(following.model)):
                self.manager.read_ahead(upcoming)
            return self._shared(job, request, checkpoint, Models(model, added, refiner))

    @contextmanager
    def _refining(
        self, request: GenerationRequest, relief: Relief, added: Additions
    ) -> Iterator[Model | None]:
        """The model that finishes the request's pictures, held in memory meanwhile; None if it names none."""
        if not request.refiner:
            yield None
            return
        found = self.checkpoints().get(request.refiner)
        if found is None:
            raise invalid("refiner", f"{request.refiner!r} is no longer there")
        with self._model(found, request, relief, added.refining) as refiner:
            yield refiner

    def _shared(
        self, job: Job, request: GenerationRequest, checkpoint: Checkpoint, models: Models
    ) -> tuple[Sequence[int], list[GenerationResult]]:
        """The results of a request, and of those of a grid that are made in a batch with it."""
        turns = self._companions(job, checkpoint, models)
        try:
            return turns, self._generate(job, turns, models)
        except (WebuiError, RuntimeError) as error:
            if len(turns) == 1 or isinstance(error, Cancelled):
                raise
            log.warning("cells are made alone from now on, as a batch of them failed: %s", error)
            self.speeds.refuse(request)
        return [job.turn], self._generate(job, [job.turn], models)

    @contextmanager
    def _model(
        self,
        checkpoint: Checkpoint,
        request: GenerationRequest | None = None,
        relief: Relief = AS_USUAL,
        added: Additions = NOTHING,
    ) -> Iterator[Model]:
        assert self.manager is not None
        held, start = self.manager.holds(checkpoint), time.perf_counter()
        with self.manager.using(checkpoint, request, relief, added.guests) as model:
            if not held:
                seconds, device = time.perf_counter() - start, self.manager.device.name
                self.plugins.notify("model_loaded", name=model.name, seconds=seconds, device=device)
            yield model

    def _generate(self, job: Job, turns: Sequence[int], models: Models) -> list[GenerationResult]:
        from webui.diffusion import generate
        from webui.diffusion.plugged import Plugged
        from webui.diffusion.taesd import Previews

        assert self.manager is not None
        self._previews = self._previews or Previews(
            lambda: self.found.catalogue.of("preview").values(), self.manager.guest
        )
        requests = [job.requests[turn] for turn in turns]
        image, mask, reference, *controls = (
            self.sources.open(digest, job.owner, field) if (digest := getattr(requests[0], field)) else None
            for field in PICTURES
        )
        plugged = Plugged(self.plugins, requests[0])
        report = Reporter(job, turns)
        means = generate.Means(
            models.model, self.manager.device, job.delivery, report, job.check, plugged, image, mask,
            job.reuse, models.refiner, partial(self._previews.of, wanted=job.delivery.preview_decoder),
            models.additions, reference, self.manager.guest, dict(zip(units.STEMS, controls, strict=True)),
        )  # fmt: skip
        try:
            if len(requests) > 1:
                results = generate.together(requests, means)
            else:
                results = [generate.generate(requests[0], means)]
        finally:
            if plugged.leaking:
                self.manager.spoil(models.model)
        self.plugins.succeeded(plugin for plugin in plugged.plugins if plugin not in plugged.leaking)
        return [replace(result, additions=models.additions.infotext()) for result in results]

    def _companions(self, job: Job, checkpoint: Checkpoint, models: Models) -> list[int]:
        """The turns to compute now: the present one, and those of a grid that may share its batch."""
        request, asked, cells = job.requests[job.turn], job.requests, job.delivery.cells
        may = job.reuse and self._together(cells) and self.speeds.may_share(request)
        if not may or self.plugins.taking_part(request) or models.additions.embeddings:
            return [job.turn]
        from webui.diffusion.generate import alike

        later = (turn for turn in range(job.turn + 1, len(asked)) if turn not in job.ahead)
        fit = (turn for turn in later if alike(request, asked[turn], models.model.encoder))
        new = (t for t in fit if not any(map(self.library.has, self.keys(asked[t], checkpoint, cells))))
        new = (t for t in new if self._added(asked[t], checkpoint).key == models.additions.key)
        return [job.turn, *itertools.islice(new, CELLS_AT_ONCE - 1)]
