"""The one way to a picture: requests go in by :meth:`Engine.submit`, a :class:`Job` comes back.

The engine is the desk: it completes and checks requests, knows whose job is whose, and hands jobs to the
queue. A :class:`~webui.worker.Worker` takes them from there.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from webui import masks, prompt_syntax
from webui.catalogue.found import Found, Kind
from webui.catalogue.shelves import Catalogue, hub_cache
from webui.diffusion import additions, checkpoints, lineage, schedulers
from webui.diffusion.checkpoints import Checkpoint, Finder
from webui.errors import (
    InvalidField,
    NotFound,
    Unsupported,
)
from webui.executor import PICTURES, Executor
from webui.flight import FlightRecord
from webui.flights import FlightStore
from webui.jobs import FairQueue, Job
from webui.library import Library
from webui.plugins import host
from webui.plugins.host import Host
from webui.preprocess import preprocessed
from webui.request import (
    HIRES_UPSCALERS,
    RANDOM_SEED,
    Cells,
    Delivery,
    GenerationRequest,
    ModelInfo,
    SchedulerInfo,
    drawn,
    invalid,
)
from webui.residency import Residency
from webui.settings import Settings
from webui.sources import SourceStore
from webui.worker import EngineStatus, Worker

if TYPE_CHECKING:
    from PIL.Image import Image

    from webui.diffusion.manager import ModelManager

log = logging.getLogger(__name__)

MAX_REQUESTS = 10_000  # of one job
KEPT_JOBS = 200  # ended jobs that a reloaded page can still find
TASK_WORDS = {"txt2img": "text to image", "img2img": "image to image", "inpaint": "inpainting"}


class Engine:
    """Wires the rooms together. Constructing it is cheap and imports no torch; :meth:`start` does."""

    def __init__(
        self,
        settings: Settings,
        library: Library,
        plugins: Host | None = None,
    ) -> None:
        self.settings = settings
        self.library = library
        self.sources = SourceStore(settings.data_dir)
        self.queue = FairQueue(settings.queue_size, settings.queue_per_owner, settings.patience)
        self.plugins = plugins or Host(settings.data_dir)
        self.catalogue = Catalogue(
            settings.models_dir,
            settings.data_dir,
            lambda: self.plugins.folders,
            hub_cache(),
            settings.allow_pickle,
        )
        found = Finder(self.catalogue)
        self._executor = Executor(settings, library, self.sources, self.plugins, found, self.queue.following)
        self._flights = FlightStore(settings.data_dir)
        self._worker = Worker(self._executor, self.queue, library, self.sources, self.plugins, self._flights)
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def status(self) -> EngineStatus:
        return self._worker.status

    @property
    def manager(self) -> ModelManager | None:
        """The model manager, once torch is there."""
        return self._executor.manager

    def start(self) -> None:
        """Start the worker: torch, the device, the default model, then jobs; and the models' hashes."""
        self._worker.start()
        self.catalogue.start()

    def prepared(self, timeout: float | None = None) -> bool:
        """Wait for the end of the start: :attr:`status` says how it went. False if ``timeout`` s are over."""
        return self._worker.prepared.wait(timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Cancel what runs and waits, and wait for the worker (at most ``timeout`` seconds)."""
        for job in self.queue.close():
            job.update(state="cancelled", place=0, stage="The server was shut down")
        self._worker.close(timeout)
        self.catalogue.close()

    # What there is

    def models(self, listed: Sequence[Found] | None = None) -> list[ModelInfo]:
        """The checkpoints a person can choose, the default one first.

        Reads the folders anew, unless it is told what the catalogue has just ``listed``.
        """
        found = self._executor.checkpoints(listed)
        default = checkpoints.default(found, self.settings.model)
        return [found[name].info for name in sorted(found, key=lambda name: name != default)]

    def names(self, kind: Kind) -> list[str]:
        """Those of a kind that can be used, as requests and tags name them."""
        return [name for name, found in self.catalogue.of(kind).items() if not found.problem]

    def schedulers(self) -> list[SchedulerInfo]:
        off = {name for name, (plugin, _) in self.plugins.schedulers.items() if not plugin.on}
        return [info for info in schedulers.infos() if info.name not in off]

    def misfits(self, model: str) -> list[str]:
        """The schedulers that cannot run a model."""
        found = self._checkpoints().get(model)
        if found is None:
            return []
        config = found.scheduler_config
        return [info.name for info in self.schedulers() if not schedulers.fits(info.name, config)]

    def upscalers(self) -> list[str]:
        """What a request's ``hires_upscaler`` may be."""
        return [
            *HIRES_UPSCALERS,
            *(name for name, (plugin, _) in self.plugins.upscalers.items() if plugin.on),
        ]

    def count_tokens(self, text: str, model: str, negative: bool = False) -> tuple[int, int] | None:
        """(tokens of ``text``, room in the chunks it takes), or None unless that model is resident."""
        resident = self.manager.resident if self.manager else None
        if resident is None or model not in ("", resident.name):
            return None
        encoder, finder = resident.encoder, self._executor.found
        if names := additions.named(finder, text):
            known = [finder.latest["embedding", name] for name in names]
            with suppress(InvalidField):  # said when it is to be drawn; until then they are words
                encoder = encoder.learning(known)
        return encoder.count_tokens(text, compose=not negative)

    # What is in memory

    def residency(self) -> Residency:
        """What is on the device and in RAM, why, and what was loaded and evicted lately. Never waits."""
        return self.manager.residency() if self.manager else Residency(self.status.device, "none")

    def load(self, model: str) -> None:
        """Bring a model into memory once the turn that runs has ended; :meth:`residency` tells when it is.

        Raises:
            NotFound: there is no such model.
        """
        if model not in self._checkpoints():
            raise NotFound(f"There is no model named {model!r}.")
        self.queue.post(lambda: self._executor.load(model))

    def release(self, key: str = "") -> None:
        """Give a part's memory back at once, a model's, or with "" all that no running job needs.

        Raises:
            NotAllowed: a running job needs it.
            NotFound: it is not in memory.
        """
        if self.manager is not None:
            self.manager.release(key)

    def pin(self, key: str, pinned: bool) -> None:
        """Keep a part or a model in memory whatever else needs room; or no longer.

        Raises:
            NotFound: it is not in memory.
        """
        if self.manager is not None:
            self.manager.pin(key, pinned)

    def survival(self, request: GenerationRequest, owner: str) -> Image | None:
        """What is left of the request's source at its first step, RGB; None while the device is busy.

        Shown by the resident model's VAE, whichever model the request names: nothing is loaded for it.

        Raises:
            InvalidField: the source is not (any longer) there, or the scheduler is not known.
        """
        request = request.replace(scheduler=schedulers.resolve(request.scheduler))
        return self._executor.survival(request, self.sources.open(request.image, owner))

    def shown_to_control(self, request: GenerationRequest, owner: str) -> Image:
        """What the request's preprocessor makes of the ControlNet's picture, RGB, of the request's size.

        Raises:
            InvalidField: the picture is not (any longer) there.
        """
        picture = self.sources.open(request.control_image or request.image, owner, "control_image")
        size = request.width, request.height
        placed = masks.resized(picture.convert("RGB"), size, request.resize_mode)
        return preprocessed(placed, request.control_preprocessor)

    def check(self, request: GenerationRequest, owner: str) -> None:
        """
        Raises:
            InvalidField, Unsupported: what is asked cannot be computed; names the field.
        """
        host.single(self._complete(request, self._checkpoints(), owner))

    def known(self, requests: Sequence[GenerationRequest], owner: str, cells: Cells = "auto") -> list[bool]:
        """Which of these single pictures need not be computed: the library has them, bit for bit.

        ``cells``: those made together count too, see :class:`Delivery`.

        All False while the engine is not ready: what computes is part of what a picture is known by.
        """
        found = self._checkpoints()
        complete = (host.single(self._complete(request, found, owner)) for request in requests)
        keys = (self._executor.keys(request, found[request.model], cells) for request in complete)
        return [any(map(self.library.has, each)) for each in keys]

    def seconds_per_call(self, request: GenerationRequest) -> float | None:
        """What a call of the net takes for pictures of this size on this machine, as measured last.

        Of a size not measured yet, reckoned by its pixels; None before the first picture.
        """
        return self._executor.speeds.seconds_per_call(request)

    def flight(self, picture_id: int, owner: str) -> FlightRecord:
        """What was recorded while one's own picture was made; see :attr:`Delivery.record`.

        Raises:
            NotFound: there is no such picture, it is another's, or nothing was recorded or kept of it.
        """
        return self._flights.of(self.library.get(picture_id, owner))

    def flight_file(self, picture_id: int, owner: str) -> Path:
        """Its file, a NumPy archive. Raises as :meth:`flight`."""
        self.flight(picture_id, owner)
        return self._flights.path(picture_id)

    # Jobs

    def submit(
        self,
        requests: Sequence[GenerationRequest],
        owner: str,
        delivery: Delivery | None = None,
        attended: bool = False,
        chained: bool = False,
        persevere: bool = False,
        reuse: bool = False,
    ) -> Job:
        """Enqueue requests as one job, in order.

        Args:
            owner: who asks; turns are taken round-robin between owners, and only an owner sees his jobs.
            delivery: previews and file format.
            attended: give up the place in the queue if nobody watches the job for ``--patience`` seconds.
            chained: each request after the first takes the picture before it as its image (loopback).
            persevere: a request that fails is noted in :attr:`JobView.failures`, and the next one runs.
            reuse: take pictures that the library has already from there (see :meth:`known`); the rest are
                saved as PNG, so that they can be found again.

        Raises:
            InvalidField, Unsupported: a request is wrong; names the field.
            QueueFull, Closing: no more jobs are taken now.
        """
        if not 1 <= len(requests) <= MAX_REQUESTS:
            raise invalid("batch_count", f"must be at least 1 and at most {MAX_REQUESTS}")
        found = self._checkpoints()
        if chained:
            _check_chain(requests)
        several = [self._complete(request, found, owner) for request in requests]
        if chained or persevere or reuse:  # who asks for these counts on a turn for each
            several = [[host.single(each)] for each in several]
        complete = [request for each in several for request in each]
        if len(complete) > MAX_REQUESTS:
            raise invalid(
                "batch_count", f"is {len(complete)} with what plugins make of it: {MAX_REQUESTS} at most"
            )
        delivery = delivery or Delivery()
        if delivery.record:
            for each in complete:
                lineage.check_recorded(found[each.model].family, reuse)
        job = Job(
            complete,
            owner,
            delivery.replace(image_format="png") if reuse else delivery,
            attended,
            chained,
            persevere,
            reuse,
            [lineage.calls(each, found[each.model].family) for each in complete],
            requests,
        )
        with self._lock:
            self.queue.put(job)
            self._jobs[job.id] = job
            self._forget_old_jobs()
        return job

    def job(self, job_id: str, owner: str) -> Job:
        """One's own job.

        Raises:
            NotFound: there is none, or it is another's.
        """
        with self._lock:
            job = self._jobs.get(job_id)
        if job is None or job.owner != owner:
            raise NotFound("There is no such job (any more).")
        return job

    def latest(self, owner: str) -> Job | None:
        """The owner's newest job that has not ended, else the newest ended one, else None."""
        with self._lock:
            own = [job for job in reversed(self._jobs.values()) if job.owner == owner]
        return next((job for job in own if not job.view.ended), own[0] if own else None)

    def unfinished(self, owner: str) -> list[Job]:
        """The owner's jobs that have not ended, in the order in which they get their turns."""
        with self._lock:
            return [job for job in self._jobs.values() if job.owner == owner and not job.view.ended]

    def cancel(self, job_id: str, owner: str) -> None:
        """Stop one's own job: at once while it waits, else at the next check, in a step or in the decode.

        Raises:
            NotFound: there is none, or it is another's.
        """
        job = self.job(job_id, owner)
        job.cancel()
        if self.queue.remove(job):
            self._worker.saver.await_saved(job)
            job.update(state="cancelled", place=0, stage="Cancelled")

    def _complete(
        self, request: GenerationRequest, found: dict[str, Checkpoint], owner: str
    ) -> list[GenerationRequest]:
        """Fill in what a request may leave open, let plugins prepare it, refuse what cannot be computed."""
        model = request.model or checkpoints.default(found, self.settings.model)
        if model not in found:
            raise self._missing(model)
        request = request.replace(
            model=model,
            scheduler=schedulers.resolve(request.scheduler),
            seed=drawn(request.seed),
            variation_seed=drawn(request.variation_seed) if request.variation_strength else RANDOM_SEED,
        )
        requests = self.plugins.prepare(request)
        for each in requests:
            self._check(each, found, owner)
        return requests

    def _check(self, request: GenerationRequest, found: dict[str, Checkpoint], owner: str) -> None:
        """
        Raises:
            InvalidField, Unsupported: it cannot be computed.
        """
        if request.model not in found:
            raise self._missing(request.model)
        self.plugins.offering(request)
        if request.hires_upscaler not in self.upscalers():
            raise invalid("hires_upscaler", f"must be one of {', '.join(self.upscalers())}")
        _check_task(request, found[request.model].info)
        lineage.check(request, found[request.model].family)
        if request.refiner:
            _check_refiner(request, found)
        for field in PICTURES:
            if (digest := getattr(request, field)) and not self.sources.has(digest, owner):
                raise invalid(field, "is no longer here; choose it again")
        schedulers.check(request, found[request.model].scheduler_config)
        prompt_syntax.check(request.prompt, "prompt")
        prompt_syntax.check(request.negative_prompt, "negative_prompt")
        additions.find(request, self._executor.found, found[request.model].info)

    def _missing(self, model: str) -> InvalidField:
        """Why there is no such model: that it is something else, cannot be used, or is called otherwise."""
        if not model:
            return invalid("model", "no model is installed")
        try:
            self.catalogue.get("checkpoint", model, "model")
        except InvalidField as error:
            return error
        return invalid("model", f"{model!r} cannot be used; the server's log says why")

    def _checkpoints(self) -> dict[str, Checkpoint]:
        return self._executor.checkpoints()

    def _forget_old_jobs(self) -> None:
        ended = [id for id, job in self._jobs.items() if job.view.ended]
        for id in ended[: max(0, len(ended) - KEPT_JOBS)]:
            del self._jobs[id]


def _check_refiner(request: GenerationRequest, found: dict[str, Checkpoint]) -> None:
    """
    Raises:
        InvalidField, Unsupported: the refiner is not there, or cannot go on with what the model has begun.
    """
    model, refiner = found[request.model], found.get(request.refiner)
    if refiner is None:
        raise invalid("refiner", f"there is no model named {request.refiner!r}")
    lineage.check_refiner(model.info, refiner.info)
    one, other = (schedulers.prediction_type(each.scheduler_config) for each in (model, refiner))
    if one != other:
        raise invalid("refiner", f"predicts {other} and the model {one}: they cannot share", Unsupported)


def _check_chain(requests: Sequence[GenerationRequest]) -> None:
    """
    Raises:
        Unsupported: a loopback cannot go through these requests.
    """
    if any(request.num_images_per_prompt > 1 for request in requests):
        raise invalid("num_images_per_prompt", "must be 1: a loopback goes on with one picture", Unsupported)
    if any(request.task != "img2img" for request in requests):
        raise invalid("mask_image", "a loopback is for image to image, without a mask", Unsupported)


def _check_task(request: GenerationRequest, info: ModelInfo) -> None:
    """
    Raises:
        Unsupported: the model's net cannot do what is asked.
    """
    if request.task in info.tasks:
        return
    does = " and ".join(TASK_WORDS[task] for task in info.tasks)
    raise invalid(
        "model",
        f"{info.title} is made for {does} only; choose another model for {TASK_WORDS[request.task]}",
        Unsupported,
    )
