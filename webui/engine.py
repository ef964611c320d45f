"""The one way to a picture: requests go in by :meth:`Engine.submit`, a :class:`Job` comes back.

One worker thread owns the device. It imports torch and diffusers and loads the default model in the
background, so that the page is there at once; jobs submitted meanwhile wait for it, and say so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from webui import prompt_syntax
from webui.diffusion import checkpoints, schedulers
from webui.diffusion.checkpoints import Checkpoint
from webui.errors import Cancelled, GenerationError, InvalidField, NotFound, SettingsError, WebuiError
from webui.jobs import FairQueue, Job, Progress
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

if TYPE_CHECKING:
    from webui.diffusion.devices import Device
    from webui.diffusion.manager import ModelManager

log = logging.getLogger(__name__)

MAX_REQUESTS = 1000  # of one job
KEPT_JOBS = 200  # ended jobs that a reloaded page can still find
EMBEDDED_MODEL = "pocket-model"


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
        self.queue = FairQueue(settings.queue_size, settings.queue_per_owner, settings.patience)
        self._status = EngineStatus(False, "Starting")
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()
        self._running: Job | None = None
        self._manager: ModelManager | None = None
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

    # Jobs

    def submit(
        self,
        requests: Sequence[GenerationRequest],
        owner: str,
        delivery: Delivery | None = None,
        attended: bool = False,
    ) -> Job:
        """Enqueue requests as one job, in order.

        Args:
            owner: who asks; turns are taken round-robin between owners, and only an owner sees his jobs.
            delivery: previews and file format.
            attended: give up the place in the queue if nobody watches the job for ``--patience`` seconds.

        Raises:
            InvalidField, Unsupported: a request is wrong; names the field.
            QueueFull, Closing: no more jobs are taken now.
        """
        if not 1 <= len(requests) <= MAX_REQUESTS:
            raise invalid("batch_count", f"must be at least 1 and at most {MAX_REQUESTS}")
        found = self._checkpoints()
        job = Job([self._complete(r, found) for r in requests], owner, delivery or Delivery(), attended)
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

    def _complete(self, request: GenerationRequest, found: dict[str, Checkpoint]) -> GenerationRequest:
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
            job.update(state="failed", stage="Failed", error=error, eta=None)
        except Exception as error:
            log.exception("job %s failed", job.id)
            failure = GenerationError(
                f"Something went wrong inside ({type(error).__name__}). The server's log says where."
            )
            job.update(state="failed", stage="Failed", error=failure, eta=None)

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
        return generate(request, model, device, job.delivery, _Reporter(job), job.check)

    def _end_turn(self, job: Job, result: GenerationResult) -> None:
        job.turn += 1
        seconds = job.view.seconds + result.seconds
        job.update(seconds=seconds, peak_memory=result.peak_memory, preview=None)
        if job.turn == len(job.requests):
            job.update(state="done", stage="Done", eta=None)
        else:
            job.check()
            job.update(state="queued", stage="Waiting for the next turn")
            self.queue.give_back(job)


class _Reporter:
    """Turns the progress of one request into the job's snapshots, with an estimate of the time left."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._before = job.view  # as the requests before this one left it
        self._started: float | None = None  # at the first call of the net: loading is not progress

    def __call__(self, progress: Progress) -> None:
        view = self._job.view
        self._job.update(
            stage=progress.stage,
            net_calls=self._before.net_calls + progress.net_calls,
            net_calls_total=self._total(progress),
            eta=self._eta(progress),
            preview=progress.preview or view.preview,
        )

    def _total(self, progress: Progress) -> int:
        """Requests of one job are alike: those to come are reckoned as this one."""
        left = len(self._job.requests) - self._job.turn
        return self._before.net_calls + progress.net_calls_total * left

    def _eta(self, progress: Progress) -> float | None:
        now = time.perf_counter()
        if progress.net_calls < 2 or self._started is None:
            self._started = now
            return self._before.eta
        per_call = (now - self._started) / (progress.net_calls - 1)
        left = self._total(progress) - self._before.net_calls - progress.net_calls
        return per_call * left
