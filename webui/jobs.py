"""Jobs and the fair queue they wait in. Threads only; knows nothing of pictures or models.

A :class:`Job` is a list of requests by one owner. The worker takes one *request* at a time, round-robin
between owners, so that a job of a hundred pictures does not keep the next person waiting for all of
them. Whoever looks at a job (page, script) watches frozen :class:`JobView` snapshots: the newest wins,
and a slow or vanished watcher never slows the worker.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from webui.errors import Cancelled, Closing, QueueFull, WebuiError
from webui.request import Delivery, GenerationRequest, SavedPicture

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")
Errand = Callable[[], None]


@dataclass(frozen=True)
class Failure:
    """A request of a job that went on without it."""

    turn: int  # index of the request in the job
    error: WebuiError


@dataclass(frozen=True)
class JobView:
    """What a watcher sees of a job at one moment."""

    id: str
    state: State = "queued"
    place: int = 0  # turns before this job's next one, itself included; 0 while it runs or has ended
    stage: str = "Waiting in the queue"  # in a person's words
    pictures_total: int = 0
    net_calls: int = 0  # of the whole job, so far
    net_calls_total: int = 0  # of the whole job, as known so far
    eta: float | None = None  # seconds
    preview: bytes | None = None  # JPEG of the predicted final picture
    saved: tuple[SavedPicture, ...] = ()
    error: WebuiError | None = None
    failures: tuple[Failure, ...] = ()  # of a job that perseveres
    results: tuple[tuple[int, SavedPicture], ...] = ()  # (index of the request, its picture), as they came
    reused: int = 0  # of the pictures, those that were there already
    turn: int = 0  # index of the request that runs or is next
    seconds: float = 0.0  # of computing
    peak_memory: int | None = None  # bytes
    device: str = ""
    notes: tuple[str, ...] = ()  # what else a person should know, such as that a record could not be kept

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def pictures_per_second(self) -> float | None:
        return len(self.saved) / self.seconds if self.saved and self.seconds else None


class Job:
    """Requests by one owner, in order. Made by :meth:`webui.engine.Engine.submit`."""

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        owner: str,
        delivery: Delivery,
        attended: bool = False,
        chained: bool = False,
        persevere: bool = False,
        reuse: bool = False,
        calls: Sequence[int] = (),
        asked: Sequence[GenerationRequest] = (),
    ) -> None:
        self.id = secrets.token_urlsafe(12)
        self.requests = tuple(requests)
        self.owner = owner
        self.delivery = delivery
        self.attended = attended  # given up while queued if nobody watches any more
        self.chained = chained  # each request starts from the picture before it (loopback)
        self.persevere = persevere  # a request that fails is noted, and the next one runs
        self.reuse = reuse  # a picture that is in the library already is taken from there
        self.calls = tuple(calls) or (0,) * len(self.requests)  # expected of each request
        self.asked = tuple(asked) or self.requests  # as they came in, before plugins prepared them
        self.turn = 0  # index of the request that runs next
        self.ahead: set[int] = set()  # later requests that are done already, in a batch with an earlier one
        self._cancel = threading.Event()
        self._ended = threading.Event()
        self._changed = threading.Condition()
        self._version = 0
        self._watchers = 0
        self._left_at = time.monotonic()
        self._view = JobView(
            self.id,
            pictures_total=sum(r.num_images_per_prompt for r in self.requests),
            net_calls_total=sum(self.calls),
        )

    def next_turn(self) -> bool:
        """Go on to the next request that is not done; False if there is none."""
        self.turn += 1
        while self.turn in self.ahead:
            self.turn += 1
        self.update(turn=self.turn)
        return self.turn < len(self.requests)

    def calls_after(self, turns: Collection[int]) -> int:
        """Calls of the net that are expected after these turns, the present one among them."""
        left = range(self.turn + 1, len(self.requests))
        return sum(self.calls[turn] for turn in left if turn not in self.ahead and turn not in turns)

    def link(self, image: str) -> None:
        """Let the next request start from this picture, named by its content."""
        following = self.requests[self.turn + 1].replace(image=image)
        self.requests = (*self.requests[: self.turn + 1], following, *self.requests[self.turn + 2 :])

    @property
    def view(self) -> JobView:
        return self._view

    @property
    def cancelled(self) -> bool:
        return self._cancel.is_set()

    def check(self) -> None:
        """Raise :class:`Cancelled` if a person asked for it."""
        if self._cancel.is_set():
            raise Cancelled("Cancelled.")

    def cancel(self) -> None:
        """Ask to stop. Takes effect at the worker's next check; never blocks."""
        self._cancel.set()

    def update(self, **changes: object) -> None:
        """Publish a new snapshot. Called by the worker and the queue."""
        with self._changed:
            self._view = replace(self._view, **changes)  # type: ignore[arg-type]
            self._version += 1
            self._changed.notify_all()
            if self._view.ended:
                self._ended.set()

    def watch(self, timeout: float | None = None, pause: float = 0.0) -> Generator[JobView, None, None]:
        """Yield the newest snapshot after each change, and lastly the ended one.

        Snapshots that a slow caller missed are skipped, as are those within ``pause`` seconds of the one
        before, but never the last. With ``timeout`` (seconds) the present snapshot is also repeated when
        nothing has changed for that long, so that a caller can look up.
        """
        with self._watching():
            seen = -1
            while True:
                with self._changed:
                    self._changed.wait_for(lambda seen=seen: self._version != seen, timeout)  # type: ignore[misc]
                    seen, view = self._version, self._view
                yield view
                if view.ended:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._view.ended, pause)

    def wait(self) -> JobView:
        """Block until the job has ended, and wake for nothing else."""
        with self._watching():
            self._ended.wait()
        return self._view

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Somebody looks at the job."""
        with self._changed:
            self._watchers += 1
        try:
            yield
        finally:
            with self._changed:
                self._watchers -= 1
                self._left_at = time.monotonic()

    def unwatched_for(self) -> float:
        """Seconds since the last watcher left; 0 while somebody watches."""
        with self._changed:
            return 0.0 if self._watchers else time.monotonic() - self._left_at


@dataclass
class FairQueue:
    """Jobs in waiting, bounded, round-robin between owners.

    ``patience``: seconds after which a waiting *attended* job that nobody watches any more gives up its
    place (its page was closed before it began). A job that has begun is finished in any case.
    """

    limit: int = 64
    limit_per_owner: int = 16
    patience: float = 60.0
    _line: OrderedDict[str, deque[Job]] = field(default_factory=OrderedDict)
    _errands: deque[Errand] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closed: bool = False

    def put(self, job: Job) -> None:
        """Add a new job at the end of its owner's line.

        Raises:
            QueueFull: the queue, or this owner's share of it, is full.
            Closing: the server is shutting down.
        """
        with self._changed:
            if self._closed:
                raise Closing("The server is shutting down.")
            self._drop_abandoned()
            if len(self) >= self.limit:
                raise QueueFull(f"The queue is full ({self.limit} jobs). Try again in a while.")
            if len(self._line.get(job.owner, ())) >= self.limit_per_owner:
                raise QueueFull(
                    f"You already have {self.limit_per_owner} jobs waiting. Let one finish first."
                )
            self._line.setdefault(job.owner, deque()).append(job)
            self._publish_places()
            self._changed.notify()

    def give_back(self, job: Job) -> None:
        """Return a job that has more requests: first in its owner's line, which is now last in turn."""
        with self._changed:
            self._line.setdefault(job.owner, deque()).appendleft(job)
            self._publish_places()
            self._changed.notify()

    def post(self, errand: Errand) -> None:
        """Have the worker do something between two turns. It goes before the jobs that wait."""
        with self._changed:
            self._errands.append(errand)
            self._changed.notify()

    def following(self, job: Job) -> GenerationRequest | None:
        """The request whose turn is after ``job``'s present one, as far as is known now; nothing is taken."""
        with self._changed:
            upcoming = next((jobs[0] for jobs in self._line.values()), None)
        if upcoming is not None:
            return upcoming.requests[upcoming.turn]
        return job.requests[job.turn + 1] if job.turn + 1 < len(job.requests) else None

    def take(self, idle: Errand | None = None, pause: float | None = None) -> Job | Errand | None:
        """The job whose turn it is, or an errand; waits for one. None once the queue is closed.

        ``idle`` is the errand where nothing has come for ``pause`` seconds.
        """
        with self._changed:
            while True:
                self._drop_abandoned()
                if self._closed:
                    return None
                if self._errands:
                    return self._errands.popleft()
                if self._line:
                    owner, jobs = self._line.popitem(last=False)
                    job = jobs.popleft()
                    if jobs:
                        self._line[owner] = jobs  # now last in turn
                    job.update(place=0)
                    self._publish_places()
                    return job
                if not self._changed.wait(pause) and idle is not None:
                    return idle

    def remove(self, job: Job) -> bool:
        """Take a waiting job out; False if it is not waiting (it runs, or has ended)."""
        with self._changed:
            return self._remove(job)

    def close(self) -> list[Job]:
        """Wake the worker with None and return what was still waiting."""
        with self._changed:
            self._closed = True
            waiting = [job for jobs in self._line.values() for job in jobs]
            self._line.clear()
            self._changed.notify_all()
            return waiting

    def tidy(self) -> None:
        """Drop jobs nobody waits for; watchers call this now and then."""
        with self._changed:
            self._drop_abandoned()

    def __len__(self) -> int:
        return sum(len(jobs) for jobs in self._line.values())

    def _remove(self, job: Job) -> bool:
        jobs = self._line.get(job.owner)
        if jobs is None or job not in jobs:
            return False
        jobs.remove(job)
        if not jobs:
            del self._line[job.owner]
        self._publish_places()
        return True

    def _drop_abandoned(self) -> None:
        waiting = [job for jobs in self._line.values() for job in jobs]
        for job in waiting:
            if job.attended and job.turn == 0 and job.unwatched_for() > self.patience:
                self._remove(job)
                job.update(state="cancelled", place=0, stage="Given up: its page was closed")

    def _publish_places(self) -> None:
        """A place counts the turns until the job's next one: i in its own line, i or i + 1 in each other."""
        lines = list(self._line.values())
        for position, jobs in enumerate(lines):
            for i, job in enumerate(jobs):
                ahead = sum(
                    min(len(other), i + 1 if q < position else i)
                    for q, other in enumerate(lines)
                    if q != position
                )
                if job.view.place != ahead + i + 1:
                    job.update(place=ahead + i + 1)


@dataclass(frozen=True)
class Progress:
    """What :func:`webui.diffusion.generate.generate` reports while it runs one request."""

    stage: str
    net_calls: int  # of this request, so far
    net_calls_total: int  # of this request
    preview: bytes | None = None  # JPEG; None: as before


class Reporter:
    """Turns the progress of one call of a pipeline into the job's snapshots, and estimates the time left.

    ``turns``: the requests that the call makes; one of its calls of the net counts for each of them.
    """

    def __init__(self, job: Job, turns: Collection[int]) -> None:
        self._job = job
        self._turns = turns
        self._before = job.view  # as the requests before this one left it
        self._started: float | None = None  # at the first call of the net: loading is not progress

    def __call__(self, progress: Progress) -> None:
        view, cells = self._job.view, len(self._turns)
        done = self._before.net_calls + cells * progress.net_calls
        here = cells * (progress.net_calls_total - progress.net_calls)
        left = here + self._job.calls_after(self._turns)
        self._job.update(
            stage=progress.stage,
            net_calls=done,
            net_calls_total=done + left,
            eta=self._eta(progress, left),
            preview=progress.preview or view.preview,
        )

    def _eta(self, progress: Progress, left: int) -> float | None:
        now = time.perf_counter()
        if progress.net_calls < 2 or self._started is None:
            self._started = now
            return self._before.eta
        per_call = (now - self._started) / (progress.net_calls - 1)
        return per_call * left / len(self._turns)
