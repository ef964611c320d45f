"""The fair queue and its jobs, without a model."""

import threading

import pytest

from webui.errors import Cancelled, Closing, QueueFull
from webui.jobs import FairQueue, Job
from webui.request import Delivery, GenerationRequest


def a_job(owner: str, requests: int = 1, attended: bool = False) -> Job:
    return Job([GenerationRequest()] * requests, owner, Delivery(), attended)


def order_of_turns(queue: FairQueue) -> list[str]:
    """Take every turn, as the worker does, and say whose it was."""
    owners = []
    while len(queue):
        job = queue.take()
        assert job is not None
        owners.append(job.owner)
        job.turn += 1
        if job.turn < len(job.requests):
            queue.give_back(job)
    return owners


def test_owners_take_turns_however_many_jobs_each_has():
    queue = FairQueue()
    for owner in ["a", "a", "a", "b", "c", "c"]:
        queue.put(a_job(owner))
    assert order_of_turns(queue) == ["a", "b", "c", "a", "c", "a"]


def test_a_job_of_many_pictures_lets_others_in_between():
    queue = FairQueue()
    queue.put(a_job("a", requests=4))
    queue.put(a_job("b", requests=2))
    assert order_of_turns(queue) == ["a", "b", "a", "b", "a", "a"]


def test_one_owners_jobs_keep_their_order():
    queue = FairQueue()
    jobs = [a_job("a", requests=2), a_job("a")]
    for job in jobs:
        queue.put(job)
    first = queue.take()
    assert first is jobs[0]
    queue.give_back(first)
    assert queue.take() is jobs[0]
    assert queue.take() is jobs[1]


def test_the_place_shown_is_the_number_of_turns_until_ones_own():
    queue = FairQueue()
    jobs = [a_job(owner) for owner in ["a", "a", "b", "c", "c", "c", "b"]]
    for job in jobs:
        queue.put(job)
    places = {job: job.view.place for job in jobs}
    taken = [queue.take() for _ in jobs]
    assert [places[job] for job in taken] == [1, 2, 3, 4, 5, 6, 7]


def test_places_move_up_as_turns_are_taken_and_jobs_leave():
    queue = FairQueue()
    jobs = [a_job(owner) for owner in "abc"]
    for job in jobs:
        queue.put(job)
    assert queue.take() is jobs[0]
    assert (jobs[0].view.place, jobs[1].view.place, jobs[2].view.place) == (0, 1, 2)
    assert queue.remove(jobs[1])
    assert jobs[2].view.place == 1


def test_the_queue_is_bounded_in_all_and_for_each_owner():
    queue = FairQueue(limit=4, limit_per_owner=2)
    queue.put(a_job("a"))
    queue.put(a_job("a"))
    with pytest.raises(QueueFull, match="You already have 2"):
        queue.put(a_job("a"))
    queue.put(a_job("b"))
    queue.put(a_job("c"))
    with pytest.raises(QueueFull, match="queue is full"):
        queue.put(a_job("d"))


def test_a_job_whose_page_is_gone_gives_up_its_place():
    queue = FairQueue(patience=0)
    gone, watched, script = a_job("a", attended=True), a_job("b", attended=True), a_job("c")
    watching = watched.watch()
    next(watching)
    for job in (gone, watched, script):
        queue.put(job)
    queue.tidy()
    assert gone.view.state == "cancelled"
    assert "closed" in gone.view.stage
    assert [queue.take(), queue.take()] == [watched, script]


def test_a_job_that_has_begun_is_kept_when_its_page_closes():
    queue = FairQueue(patience=0)
    job = a_job("a", requests=2, attended=True)
    job.turn = 1
    queue.give_back(job)
    queue.tidy()
    assert queue.take() is job


def test_a_slow_watcher_sees_the_newest_snapshot_and_never_blocks_the_worker():
    job = a_job("a")
    watching = job.watch()
    next(watching)
    for step in range(100):
        job.update(net_calls=step)
    assert next(watching).net_calls == 99
    job.update(state="done")
    assert next(watching).state == "done"
    with pytest.raises(StopIteration):
        next(watching)


def test_a_watcher_that_looks_up_now_and_then_gets_the_same_snapshot_again():
    job = a_job("a")
    watching = job.watch(timeout=0)
    assert next(watching) is next(watching)


def test_a_calm_watcher_skips_what_comes_too_fast_but_never_the_end():
    job = a_job("a")
    watching = job.watch(pause=3600)
    next(watching)
    worker = threading.Thread(target=lambda: [job.update(net_calls=1), job.update(state="done")])
    worker.start()
    assert [view.state for view in watching] == ["done"]
    worker.join(5)


def test_watchers_are_counted_until_they_leave():
    job = a_job("a", attended=True)
    watching = job.watch()
    next(watching)
    assert job.unwatched_for() == 0
    watching.close()
    assert job.unwatched_for() > 0


def test_every_watcher_of_a_job_sees_its_end():
    job = a_job("a")
    seen: list[str] = []
    started = [threading.Event() for _ in range(3)]

    def watch(event: threading.Event) -> None:
        for view in job.watch():
            event.set()
            last = view.state
        seen.append(last)

    threads = [threading.Thread(target=watch, args=[event]) for event in started]
    for thread in threads:
        thread.start()
    for event in started:
        assert event.wait(5)
    job.update(state="done")
    for thread in threads:
        thread.join(5)
    assert seen == ["done"] * 3


def test_a_cancelled_job_says_so_at_the_next_check():
    job = a_job("a")
    job.check()
    job.cancel()
    with pytest.raises(Cancelled):
        job.check()


def test_a_closed_queue_wakes_the_worker_and_takes_no_more_jobs():
    queue = FairQueue()
    took: list[Job | None] = []
    worker = threading.Thread(target=lambda: took.append(queue.take()))
    worker.start()
    assert queue.close() == []
    worker.join(5)
    assert took == [None]
    with pytest.raises(Closing):
        queue.put(a_job("a"))
