"""The one way to a picture: requests go in by :meth:`Engine.submit`, a :class:`Job` comes back.

One worker thread owns the device. It imports torch and diffusers and loads the default model in the
background, so that the page is there at once; jobs submitted meanwhile wait for it, and say so.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from webui import prompt_syntax
from webui.diffusion import checkpoints, schedulers
from webui.diffusion.checkpoints import Checkpoint
from webui.errors import (
    Cancelled,
    GenerationError,
    InvalidField,
    NotFound,
    SettingsError,
    Unsupported,
    WebuiError,
)
from webui.jobs import Failure, FairQueue, Job, Reporter
from webui.library import Library
from webui.request import (
    RANDOM_SEED,
    Delivery,
    GenerationRequest,
    GenerationResult,
    ModelInfo,
    SchedulerInfo,
    drawn,
    invalid,
)
from webui.settings import Settings
from webui.sources import SourceStore

if TYPE_CHECKING:
    from PIL.Image import Image

    from webui.diffusion.devices import Device
    from webui.diffusion.manager import ModelManager
    from webui.diffusion.survival import Survival

log = logging.getLogger(__name__)

MAX_REQUESTS = 1000  # of one job
KEPT_JOBS = 200  # ended jobs that a reloaded page can still find
EMBEDDED_MODEL = "pocket-model"
TASK_WORDS = {"txt2img": "text to image", "img2img": "image to image", "inpaint": "inpainting"}
PICTURES = ("image", "mask_image")  # fields that name a stored picture


@dataclass(frozen=True)
class EngineStatus:
    """Whether the first picture can start at once; ``message`` is for a person."""

    ready: bool
    message: str
    device: str = ""


class Engine:
    """Wires the rooms together. Constructing it is cheap and imports no torch; :meth:`start` does."""

    def __init__(self, settings: Settings, library: Library) -> None:
        self.settings = settings
        self.library = library
        self.sources = SourceStore(settings.data_dir)
        self.queue = FairQueue(settings.queue_size, settings.queue_per_owner, settings.patience)
        self._status = EngineStatus(False, "Starting")
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()
        self._running: Job | None = None
        self._manager: ModelManager | None = None
        self._device_lock = threading.Lock()  # held while something computes
        self._survival: Survival | None = None
        self._worker = threading.Thread(target=self._work, name="worker", daemon=True)

    @property
    def status(self) -> EngineStatus:
        return self._status

    @property
    def manager(self) -> ModelManager | None:
        """The model manager, once torch is there."""
        return self._manager

    def start(self) -> None:
        """Start the worker thread: torch, the device, the default model, then jobs."""
        self._worker.start()

    def close(self, timeout: float = 10.0) -> None:
        """Cancel what runs and waits, and wait for the worker (at most ``timeout`` seconds)."""
        for job in self.queue.close():
            job.update(state="cancelled", place=0, stage="The server was shut down")
        running = self._running
        if running is not None:
            running.cancel()
        if self._worker.is_alive():
            self._worker.join(timeout)

    # What there is

    def models(self) -> list[ModelInfo]:
        """The checkpoints a person can choose, the default one first. Reads the folders anew."""
        found = self._checkpoints()
        default = self._default(found)
        return [found[name].info for name in sorted(found, key=lambda name: name != default)]

    def schedulers(self) -> list[SchedulerInfo]:
        return schedulers.infos()

    def count_tokens(self, text: str, model: str, negative: bool = False) -> tuple[int, int] | None:
        """(tokens of ``text``, room in the chunks it takes), or None unless that model is resident."""
        resident = self._manager.resident if self._manager else None
        if resident is None or model not in ("", resident.name):
            return None
        return resident.encoder.count_tokens(text, compose=not negative)

    def survival(self, request: GenerationRequest, owner: str) -> Image | None:
        """What is left of the request's source at its first step, RGB; None while the device is busy.

        Shown by the resident model's VAE, whichever model the request names: nothing is loaded for it.

        Raises:
            InvalidField: the source is not (any longer) there, or the scheduler is not known.
        """
        from webui.diffusion.survival import Survival

        request = request.replace(scheduler=schedulers.resolve(request.scheduler))
        image = self.sources.open(request.image, owner)
        if not self.status.ready or not self._device_lock.acquire(blocking=False):
            return None
        try:
            if self._manager is None or self._manager.resident is None:
                return None
            self._survival = self._survival or Survival()
            return self._survival(request, self._manager.resident, self._manager.device, image)
        finally:
            self._device_lock.release()

    # Jobs

    def submit(
        self,
        requests: Sequence[GenerationRequest],
        owner: str,
        delivery: Delivery | None = None,
        attended: bool = False,
        chained: bool = False,
        persevere: bool = False,
    ) -> Job:
        """Enqueue requests as one job, in order.

        Args:
            owner: who asks; turns are taken round-robin between owners, and only an owner sees his jobs.
            delivery: previews and file format.
            attended: give up the place in the queue if nobody watches the job for ``--patience`` seconds.
            chained: each request after the first takes the picture before it as its image (loopback).
            persevere: a request that fails is noted in :attr:`JobView.failures`, and the next one runs.

        Raises:
            InvalidField, Unsupported: a request is wrong; names the field.
            QueueFull, Closing: no more jobs are taken now.
        """
        if not 1 <= len(requests) <= MAX_REQUESTS:
            raise invalid("batch_count", f"must be at least 1 and at most {MAX_REQUESTS}")
        found = self._checkpoints()
        if chained:
            _check_chain(requests)
        complete = [self._complete(request, found, owner) for request in requests]
        job = Job(complete, owner, delivery or Delivery(), attended, chained, persevere)
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
            job.update(state="cancelled", place=0, stage="Cancelled")

    def _complete(
        self, request: GenerationRequest, found: dict[str, Checkpoint], owner: str
    ) -> GenerationRequest:
        """Fill in what a request may leave open, and refuse what cannot be computed."""
        model = request.model or self._default(found)
        if model not in found:
            raise invalid("model", f"there is no model named {model!r}" if model else "no model is installed")
        request = request.replace(
            model=model,
            scheduler=schedulers.resolve(request.scheduler),
            seed=drawn(request.seed),
            variation_seed=drawn(request.variation_seed) if request.variation_strength else RANDOM_SEED,
        )
        _check_task(request, found[model].info)
        for field in PICTURES:
            if (digest := getattr(request, field)) and not self.sources.has(digest, owner):
                raise invalid(field, "is no longer here; choose it again")
        schedulers.check(request, found[model].scheduler_config)
        prompt_syntax.check(request.prompt, "prompt")
        prompt_syntax.check(request.negative_prompt, "negative_prompt")
        return request

    def _checkpoints(self) -> dict[str, Checkpoint]:
        return checkpoints.find(self.settings.models_dir)

    def _default(self, found: dict[str, Checkpoint]) -> str:
        names = [self.settings.model, EMBEDDED_MODEL, *found]
        return next((name for name in names if name in found), "")

    def _forget_old_jobs(self) -> None:
        ended = [id for id, job in self._jobs.items() if job.view.ended]
        for id in ended[: max(0, len(ended) - KEPT_JOBS)]:
            del self._jobs[id]

    # The worker

    def _work(self) -> None:
        try:
            device = self._prepare()
        except Exception as error:
            log.exception("the engine cannot start")
            what = str(error) if isinstance(error, SettingsError) else f"{type(error).__name__}, see the log"
            self._status = EngineStatus(False, f"The engine cannot start: {what}")
            device = None
        while (job := self.queue.take()) is not None:
            self._running = job
            with self._device_lock:
                self._turn(job, device)
            self._running = None
        if self._manager is not None:
            self._manager.release()

    def _prepare(self) -> Device:
        """Import torch, choose the device, load the default model."""
        self._say("Importing torch")
        from webui.diffusion import devices

        settings = self.settings
        device = devices.choose(devices.look(), settings.device, settings.dtype, settings.attention)
        self._say("Importing diffusers", device)
        devices.import_diffusers(device)
        from webui.diffusion import generate  # noqa: F401  (its imports are what takes time)
        from webui.diffusion.manager import ModelManager

        self._manager = ModelManager(device)
        found = self._checkpoints()
        if name := self._default(found):
            self._say(f"Loading {found[name].info.title}", device)
            try:
                self._manager.get(found[name])
            except WebuiError as error:  # another model may do; the log has it, and so will each job
                log.error("%s", error)
        self._status = EngineStatus(True, "Ready", str(device))
        log.info("ready on %s", device)
        return device

    def _say(self, message: str, device: Device | None = None) -> None:
        self._status = EngineStatus(False, message, str(device or ""))

    def _turn(self, job: Job, device: Device | None) -> None:
        """Run a job's next request. The one place where a run's errors are caught: the worker lives on."""
        try:
            result = self._run(job, device)
            for picture in result.pictures:
                saved = self.library.save(picture, result, job.owner, job.delivery)
                job.update(saved=(*job.view.saved, saved))
            self._end_turn(job, result)
        except Cancelled:
            job.update(state="cancelled", stage="Cancelled", eta=None)
        except WebuiError as error:
            self._fail(job, error)
        except Exception as error:
            log.exception("job %s failed", job.id)
            self._fail(
                job,
                GenerationError(
                    f"Something went wrong inside ({type(error).__name__}). The server's log says where."
                ),
            )

    def _run(self, job: Job, device: Device | None) -> GenerationResult:
        from webui.diffusion.generate import generate

        job.check()
        if device is None or self._manager is None:
            raise GenerationError(self.status.message)
        request = job.requests[job.turn]
        resident = self._manager.resident
        stage = "Starting" if resident and resident.name == request.model else f"Loading {request.model}"
        job.update(state="running", stage=stage, device=str(device))
        checkpoint = self._checkpoints().get(request.model)
        if checkpoint is None:
            raise InvalidField("model", f"{request.model!r} is no longer there", "Model")
        model = self._manager.get(checkpoint)
        pictures = {
            field: self.sources.open(digest, job.owner, field)
            for field in PICTURES
            if (digest := getattr(request, field))
        }
        return generate(
            request,
            model,
            device,
            job.delivery,
            Reporter(job),
            job.check,
            image=pictures.get("image"),
            mask=pictures.get("mask_image"),
        )

    def _end_turn(self, job: Job, result: GenerationResult) -> None:
        seconds = job.view.seconds + result.seconds
        job.update(seconds=seconds, peak_memory=result.peak_memory, preview=None)
        if job.chained and job.turn + 1 < len(job.requests):
            job.link(self.sources.keep(result.pictures[-1].image, job.owner))
        self._next_turn(job)

    def _fail(self, job: Job, error: WebuiError) -> None:
        """Of a job that perseveres only this request, unless all of them have failed."""
        failures = (*job.view.failures, Failure(job.turn, error))
        if job.persevere and len(failures) < len(job.requests):
            job.update(failures=failures, preview=None)
            self._next_turn(job)
        else:
            job.update(state="failed", stage="Failed", failures=failures, error=error, eta=None)

    def _next_turn(self, job: Job) -> None:
        job.turn += 1
        if job.turn == len(job.requests):
            job.update(state="done", stage="Done", eta=None)
        elif job.cancelled:
            job.update(state="cancelled", stage="Cancelled", eta=None)
        else:
            job.update(state="queued", stage="Waiting for the next turn")
            self.queue.give_back(job)


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
