"""The worker: one thread that owns the device and runs the jobs of the queue, a request at a time.

It imports torch and diffusers and loads the default model in the background, so that the page is there at
once; jobs submitted meanwhile wait for it, and say so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from webui.diffusion.checkpoints import Checkpoint
from webui.errors import Cancelled, GenerationError, InvalidField, SettingsError, WebuiError
from webui.executor import Executor
from webui.flights import FlightStore
from webui.jobs import Errand, Failure, FairQueue, Job
from webui.library import Library
from webui.plugins.host import Host
from webui.request import GenerationRequest, GenerationResult, SavedPicture
from webui.saving import Saver, inside, show
from webui.sources import SourceStore

log = logging.getLogger(__name__)

IDLE_PAUSE = 30.0  # seconds between two looks at what nothing uses any more


@dataclass(frozen=True)
class EngineStatus:
    """Whether the first picture can start at once; ``message`` is for a person."""

    ready: bool
    message: str
    device: str = ""


class Worker:
    """Runs the queue's jobs on one executor."""

    def __init__(
        self,
        executor: Executor,
        queue: FairQueue,
        library: Library,
        sources: SourceStore,
        plugins: Host,
        flights: FlightStore,
    ) -> None:
        self.executor = executor
        self.queue = queue
        self.library = library
        self.sources = sources
        self.saver = Saver(library, plugins, flights)
        self.status = EngineStatus(False, "Starting")
        self.prepared = threading.Event()  # set once the start is over, well or not
        self._running: Job | None = None
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

    # The thread

    def _work(self) -> None:
        with self.executor.busy:
            self._prepare()
        self.prepared.set()
        while (next_thing := self.queue.take(self.executor.release_idle, IDLE_PAUSE)) is not None:
            self._running = next_thing if isinstance(next_thing, Job) else None
            with self.executor.busy:
                if isinstance(next_thing, Job):
                    self._turn(next_thing)
                else:
                    self._run(next_thing)
            self._running = None
        self.saver.settle()
        self.executor.stop()

    def _prepare(self) -> None:
        try:
            device = self.executor.start(self._say)
        except Exception as error:
            log.exception("the engine cannot start")
            what = str(error) if isinstance(error, SettingsError) else f"{type(error).__name__}, see the log"
            self._say(f"The engine cannot start: {what}")
        else:
            self.status = EngineStatus(True, "Ready", str(device))
            log.info("ready on %s", device)

    def _run(self, errand: Errand) -> None:
        """Do what is no job; an error of it is in the log, and in the manager's timeline."""
        try:
            errand()
        except WebuiError as error:
            log.error("%s", error)
        except Exception:
            log.exception("an errand failed")

    def _say(self, message: str, device: str = "") -> None:
        self.status = EngineStatus(False, message, device)

    def _turn(self, job: Job) -> None:
        """Run a job's next request. The one place where a run's errors are caught: the worker lives on."""
        try:
            job.check()
            request = job.requests[job.turn]
            checkpoint = self.executor.checkpoints().get(request.model)
            if checkpoint is None:
                raise InvalidField("model", f"{request.model!r} is no longer there", "Model")
            known = self._known(job, request, checkpoint) if job.reuse else None
            if known is not None:
                self._take(job, known)
            else:
                self._compute(job, request, checkpoint)
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
        keys = self.executor.keys(request, checkpoint, job.delivery.cells)
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

    def _compute(self, job: Job, request: GenerationRequest, checkpoint: Checkpoint) -> None:
        """Run the request, or a batch of requests with it, and save their pictures."""
        if not self.status.ready:
            raise GenerationError(self.status.message)
        stage = "Starting" if self.executor.holds(checkpoint) else f"Loading {request.model}"
        job.update(state="running", stage=stage, device=self.status.device)
        turns, results = self.executor.compute(job, request, checkpoint)
        self.saver.save(job, turns, results, self.executor.keys_of(results, checkpoint))
        job.ahead.update(turns)
        self._end_turn(job, results)

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
