"""Pictures on their way to the disk, while the next ones are made."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from webui.errors import GenerationError, StorageError, WebuiError
from webui.flights import FlightStore
from webui.jobs import Failure, Job
from webui.library import Library
from webui.plugins.host import Host
from webui.request import GenerationResult, SavedPicture

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saving:
    """Of a job's turns."""

    job: Job
    turns: Sequence[int]
    keys: Sequence[str]
    done: Future[None]


class Saver:
    """Saves one batch at a time. Used by the worker's thread, but for :meth:`await_saved`."""

    def __init__(self, library: Library, plugins: Host, flights: FlightStore) -> None:
        self.library = library
        self.flights = flights
        self.plugins = plugins
        self._thread = ThreadPoolExecutor(1, "saver")
        self._saving: Saving | None = None

    def save(
        self, job: Job, turns: Sequence[int], results: Sequence[GenerationResult], keys: Sequence[str]
    ) -> None:
        """Save a batch and show it in the job; of a job that perseveres, while the caller goes on.

        Raises:
            StorageError: it could not be saved, of a job that does not persevere.
        """
        self.settle()
        if job.persevere:
            done = self._thread.submit(self._save, job, turns, results, keys)
            self._saving = Saving(job, turns, keys, done)
        else:
            self._save(job, turns, results, keys)

    def saves(self, keys: Collection[str]) -> bool:
        """Whether a picture known by one of these is on its way."""
        return self._saving is not None and not set(keys).isdisjoint(self._saving.keys)

    def await_saved(self, job: Job) -> None:
        """Wait until no picture of the job is on its way. Any thread may."""
        saving = self._saving
        if saving is not None and saving.job is job:
            wait([saving.done])

    def settle(self) -> None:
        """Wait for what is on its way. If it does not get there, its turns have failed."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        if error := saving.done.exception():
            if not isinstance(error, WebuiError):
                log.error("job %s: a picture could not be saved", saving.job.id, exc_info=error)
                error = inside(error)
            view = saving.job.view
            there = {turn for turn, _ in view.results}
            lost = (Failure(turn, error) for turn in saving.turns if turn not in there)
            saving.job.update(failures=(*view.failures, *lost))

    def _save(
        self, job: Job, turns: Sequence[int], results: Sequence[GenerationResult], keys: Sequence[str]
    ) -> None:
        for turn, result, key in zip(turns, results, keys, strict=True):
            for picture in result.pictures:
                if picture.beside and job.reuse:  # a cell is one picture
                    continue
                own = "" if picture.beside else key
                saved = self.library.save(picture, result, job.owner, job.delivery, own)
                if picture.index == 0 and not picture.beside and result.flight is not None:
                    self._keep(job, saved, result)
                show(job, turn, saved)
                self.plugins.notify("picture_saved", picture=saved)

    def _keep(self, job: Job, saved: SavedPicture, result: GenerationResult) -> None:
        """Keep the record of a saved picture. Without room for it the picture is there all the same."""
        try:
            self.flights.keep(saved.id, result.flight)
        except StorageError as error:
            log.error("job %s: %s", job.id, error)
            job.update(notes=(*job.view.notes, str(error)))


def show(job: Job, turn: int, saved: SavedPicture) -> None:
    """Let a picture be a turn's."""
    view = job.view
    job.update(saved=(*view.saved, saved), results=(*view.results, (turn, saved)))


def inside(error: BaseException) -> GenerationError:
    """What a person is told of an error that is not theirs."""
    what = f"Something went wrong inside ({type(error).__name__})"
    return GenerationError(f"{what}. The server's log says where.")
