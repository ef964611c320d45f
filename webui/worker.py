"""The worker: one thread that owns the device and runs the jobs of the queue, a request at a time.

It imports torch and diffusers and loads the default model in the background, so that the page is there at
once; jobs submitted meanwhile wait for it, and say so.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from webui import units
from webui.diffusion import additions, checkpoints
from webui.diffusion.additions import NOTHING, Additions
from webui.diffusion.checkpoints import Checkpoint, Finder
from webui.diffusion.tiers import Refused, Relief
from webui.errors import Cancelled, GenerationError, InvalidField, OutOfMemory, SettingsError, WebuiError
from webui.jobs import Errand, Failure, FairQueue, Job, Reporter
from webui.library import Library
from webui.plugins.host import Host
from webui.request import Cells, GenerationRequest, GenerationResult, SavedPicture, invalid
from webui.saving import Saver, inside, show
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
IDLE_PAUSE = 30.0  # seconds between two looks at what nothing uses any more


@dataclass(frozen=True)
class EngineStatus:
    """Whether the first picture can start at once; ``message`` is for a person."""

    ready: bool
    message: str
    device: str = ""


@dataclass(frozen=True)
class Models:
    """What makes a request's pictures: a model, what is added to it, and any refiner the request names."""

    model: Model
    additions: Additions
    refiner: Model | None = None


class Worker:
    """Runs the queue's jobs on one device. Constructing it is cheap and imports no torch."""

    def __init__(
        self,
        settings: Settings,
        library: Library,
        sources: SourceStore,
        queue: FairQueue,
        plugins: Host,
        found: Finder,
    ) -> None:
        self.settings = settings
        self.library = library
        self.sources = sources
        self.queue = queue
        self.plugins = plugins
        self.found = found
        self.status = EngineStatus(False, "Starting")
        self.manager: ModelManager | None = None
        self._running: Job | None = None
        self._computing = threading.Lock()
        self._survival: Survival | None = None
        self._previews: Previews | None = None
        self.speeds = Speeds()
        self.saver = Saver(library, plugins)
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Cancel what runs, and wait for the thread, which ends once the queue is closed."""
        running = self._running
        if running is not None:
            running.cancel()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def checkpoints(self) -> dict[str, Checkpoint]:
        """All there are, by name. Reads the folders anew."""
        return self.found.all()

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
        if not self.status.ready or not self._computing.acquire(blocking=False):
            return None
        try:
            resident = self.manager.resident if self.manager else None
            if self.manager is None or resident is None or resident.family.facts.auto:
                return None
            from webui.diffusion.survival import Survival

            self._survival = self._survival or Survival()
            return self._survival(request, resident, self.manager.device, image)
        finally:
            self._computing.release()

    # The thread

    def _work(self) -> None:
        try:
            device = self._prepare()
        except Exception as error:
            log.exception("the engine cannot start")
            what = str(error) if isinstance(error, SettingsError) else f"{type(error).__name__}, see the log"
            self.status = EngineStatus(False, f"The engine cannot start: {what}")
            device = None
        while (next_thing := self.queue.take(self._release_idle, IDLE_PAUSE)) is not None:
            self._running = next_thing if isinstance(next_thing, Job) else None
            with self._computing:
                if isinstance(next_thing, Job):
                    self._turn(next_thing, device)
                else:
                    self._run(next_thing)
            self._running = None
        self.saver.settle()
        if self.manager is not None:
            self.manager.ahead.stop()
            self.manager.release()

    def _prepare(self) -> Device:
        """Import torch, choose the device, load the default model."""
        self._say("Importing torch")
        from webui.diffusion import devices

        device = devices.wished(self.settings)
        self._say("Importing diffusers", device)
        devices.import_diffusers(device)
        from webui.diffusion import generate  # noqa: F401  (its imports are what takes time)
        from webui.diffusion.manager import ModelManager

        self.manager = ModelManager(
            device, devices.allowed(device, self.settings), self.settings.allow_pickle
        )
        found = self.checkpoints()
        if name := checkpoints.default(found, self.settings.model):
            self._say(f"Loading {found[name].info.title}", device)
            try:
                with self._model(found[name]):
                    pass
            except WebuiError as error:  # another model may do; the log has it, and so will each job
                log.error("%s", error)
        self.status = EngineStatus(True, "Ready", str(device))
        log.info("ready on %s", device)
        return device

    def load(self, name: str) -> None:
        """Bring a model into memory, between two turns."""
        if (checkpoint := self.checkpoints().get(name)) and self.manager is not None:
            with self._model(checkpoint):
                pass

    def _run(self, errand: Errand) -> None:
        """Do what is no job; an error of it is in the log, and in the manager's timeline."""
        try:
            errand()
        except WebuiError as error:
            log.error("%s", error)
        except Exception:
            log.exception("an errand failed")

    def _release_idle(self) -> None:
        if self.manager is not None and self.settings.idle_release:
            self.manager.release_idle(self.settings.idle_release * 60)

    def _say(self, message: str, device: Device | None = None) -> None:
        self.status = EngineStatus(False, message, str(device or ""))

    def _turn(self, job: Job, device: Device | None) -> None:
        """Run a job's next request. The one place where a run's errors are caught: the worker lives on."""
        try:
            job.check()
            request = job.requests[job.turn]
            checkpoint = self.checkpoints().get(request.model)
            if checkpoint is None:
                raise InvalidField("model", f"{request.model!r} is no longer there", "Model")
            known = self._known(job, request, checkpoint) if job.reuse else None
            if known is not None:
                self._take(job, known)
            else:
                self._compute(job, request, checkpoint, device)
        except Cancelled:
            self.saver.settle()
            job.update(state="cancelled", stage="Cancelled", eta=None)
        except WebuiError as error:
            self.saver.settle()
            self._fail(job, error)
        except Exception as error:
            log.exception("job %s failed", job.id)
            self.saver.settle()
            self._fail(job, inside(error))

    def _known(self, job: Job, request: GenerationRequest, checkpoint: Checkpoint) -> SavedPicture | None:
        """The request's picture, if the library has it."""
        keys = self.keys(request, checkpoint, job.delivery.cells)
        if self.saver.saves(keys):
            self.saver.settle()
        found = (self.library.known(key, job.owner) for key in keys)
        return next((saved for saved in found if saved), None)

    def _take(self, job: Job, known: SavedPicture) -> None:
        """Let a picture of the library be the turn's."""
        self.saver.settle()
        show(job, job.turn, known)
        left = job.view.net_calls_total - job.calls[job.turn]
        job.update(reused=job.view.reused + 1, net_calls_total=left)
        self._next_turn(job)

    def _compute(
        self, job: Job, request: GenerationRequest, checkpoint: Checkpoint, device: Device | None
    ) -> None:
        """Run the request, or a batch of requests with it, and save their pictures."""
        if device is None or self.manager is None:
            raise GenerationError(self.status.message)
        stage = "Starting" if self.manager.holds(checkpoint) else f"Loading {request.model}"
        job.update(state="running", stage=stage, device=str(device))
        turns, results = self._made(job, request, checkpoint, device)
        keys = [self.key(result.request, checkpoint, alone=len(turns) == 1) for result in results]
        if self.manager.tiled:  # which shows in the pixels, and hangs on what room there was
            keys = [""] * len(keys)
        self.saver.save(job, turns, results, keys)
        self.speeds.learn(results)
        job.ahead.update(turns)
        self._end_turn(job, results)

    def _made(
        self, job: Job, request: GenerationRequest, checkpoint: Checkpoint, device: Device
    ) -> tuple[Sequence[int], list[GenerationResult]]:
        """The results of a request and of those made with it; out of memory, tried once more with less."""
        from webui.diffusion import devices, planning

        assert self.manager is not None
        before = job.view
        try:
            return self._tried(job, request, checkpoint, device, AS_USUAL)
        except Refused:
            raise
        except OutOfMemory as error:
            # As text: a log that kept the traceback would keep all that was computed.
            told = "".join(traceback.format_exception(error))
            log.warning("out of memory, so it is tried once more with less: %s", told)
        devices.free_memory(device)
        job.update(
            stage="Out of memory: trying again with less",
            net_calls=before.net_calls,
            net_calls_total=before.net_calls_total,
            preview=None,
        )
        try:
            return self._tried(job, request, checkpoint, device, self.manager.relief())
        except OutOfMemory as error:
            raise planning.hopeless(request) from error

    def _tried(
        self, job: Job, request: GenerationRequest, checkpoint: Checkpoint, device: Device, relief: Relief
    ) -> tuple[Sequence[int], list[GenerationResult]]:
        added = self._added(request, checkpoint)
        with (
            self._refining(request, relief, added) as refiner,
            self._model(checkpoint, request, relief, added) as model,
        ):
            following = self.queue.following(job)
            if following and self.manager and (upcoming := self.checkpoints().get(following.model)):
                self.manager.read_ahead(upcoming)
            return self._shared(job, request, checkpoint, Models(model, added, refiner), device)

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
        self, job: Job, request: GenerationRequest, checkpoint: Checkpoint, models: Models, device: Device
    ) -> tuple[Sequence[int], list[GenerationResult]]:
        """The results of a request, and of those of a grid that are made in a batch with it."""
        turns = self._companions(job, checkpoint, models)
        try:
            return turns, self._generate(job, turns, models, device)
        except (WebuiError, RuntimeError) as error:
            if len(turns) == 1 or isinstance(error, Cancelled):
                raise
            log.warning("cells are made alone from now on, as a batch of them failed: %s", error)
            self.speeds.refuse(request)
        return [job.turn], self._generate(job, [job.turn], models, device)

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

    def _generate(
        self, job: Job, turns: Sequence[int], models: Models, device: Device
    ) -> list[GenerationResult]:
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
            models.model, device, job.delivery, report, job.check, plugged, image, mask, job.reuse,
            models.refiner, partial(self._previews.of, wanted=job.delivery.preview_decoder),
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

    def _end_turn(self, job: Job, results: Sequence[GenerationResult]) -> None:
        seconds = job.view.seconds + sum(result.seconds for result in results)
        job.update(seconds=seconds, peak_memory=results[0].peak_memory, preview=None)
        if job.chained and job.turn + 1 < len(job.requests):
            job.link(self.sources.keep(results[0].pictures[-1].image, job.owner))
        self._next_turn(job)

    def _fail(self, job: Job, error: WebuiError) -> None:
        """Of a job that perseveres only this request."""
        failures = (*job.view.failures, Failure(job.turn, error))
        if job.persevere:
            job.update(failures=failures, preview=None)
            self._next_turn(job)
        else:
            job.update(state="failed", stage="Failed", failures=failures, error=error, eta=None)

    def _next_turn(self, job: Job) -> None:
        if not job.next_turn():
            self._end(job)
        elif job.cancelled:
            self.saver.settle()
            job.update(state="cancelled", stage="Cancelled", eta=None)
        else:
            job.update(state="queued", stage="Waiting for the next turn")
            self.queue.give_back(job)

    def _end(self, job: Job) -> None:
        """After the last turn. A job has failed if all of its requests have."""
        self.saver.settle()
        failures = job.view.failures
        if len(failures) == len(job.requests):
            job.update(state="failed", stage="Failed", error=failures[-1].error, eta=None)
        else:
            job.update(state="done", stage="Done", eta=None)
