"""Flight records on the disk: what is kept comes back, what is no record is refused, and whose it is."""

import errno
import io
import os
import random
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest

from tests.conftest import request_for
from tests.flights import record
from webui import flight, flights
from webui.errors import NotFound, StorageError, Unsupported
from webui.flight import FlightRecord
from webui.flights import FlightStore
from webui.request import Delivery

RECORDED = Delivery(record=True)


def assert_same(one: FlightRecord, other: FlightRecord) -> None:
    for name in (field.name for field in fields(FlightRecord)):
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, np.ndarray):
            assert isinstance(b, np.ndarray), name
            assert a.dtype == b.dtype, name
            assert np.array_equal(a, b), name
        else:
            assert a == b, name


def repacked(data: bytes, **changed: bytes | None) -> bytes:
    """An archive with some of its files replaced, or left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        held = {name: old.read(name) for name in old.namelist()}
        held |= {f"{name}.npy": content for name, content in changed.items()}
        for name, content in held.items():
            if content is not None:
                new.writestr(name, content)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def about(text: str) -> bytes:
    return npy(np.frombuffer(text.encode(), np.uint8))


@pytest.fixture(scope="module")
def packed() -> bytes:
    return record(size=(64, 64), calls=2).to_bytes()


@pytest.fixture
def store(tmp_path) -> FlightStore:
    return FlightStore(tmp_path)


def left_in(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# As bytes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance_scale": 1.0},
        {"attended": False, "size": (80, 64)},
        {"guesses": None, "notes": ("The guesses are not decoded.",), "scheduler_config": {}},
        {"request": request_for(prompt="a fox 🦊\n(red:1.2)", plugins={"guidance.rescale": 0.5})},
    ],
)
def test_a_record_comes_back_from_its_bytes(changes):
    wanted = record(**{"calls": 3, "size": (64, 64), **changes})
    assert_same(FlightRecord.from_bytes(wanted.to_bytes()), wanted)


def test_an_array_laid_out_by_columns_comes_back_too():
    wanted = record(calls=2, size=(64, 64))
    by_column = replace(wanted, latents=np.asfortranarray(wanted.latents))
    assert_same(FlightRecord.from_bytes(by_column.to_bytes()), wanted)


def test_other_programs_can_read_the_arrays(packed):
    with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
        assert np.array_equal(archive["latents"], record(size=(64, 64), calls=2).latents)


def test_a_damaged_record_is_never_taken_for_another(packed):
    whole = record(size=(64, 64), calls=2)
    draw = random.Random(5)
    refused = 0
    for _ in range(400):
        place = draw.randrange(len(packed))
        damaged = bytearray(packed)
        damaged[place] ^= 1 << draw.randrange(8)
        try:
            assert_same(FlightRecord.from_bytes(bytes(damaged)), whole)  # a date, say: nothing that counts
        except ValueError:
            refused += 1
    assert refused > 300
    for _ in range(50):
        with pytest.raises(ValueError, match="flight record"):
            FlightRecord.from_bytes(packed[: draw.randrange(len(packed))])


@pytest.mark.parametrize(
    "foreign",
    [
        b"",
        b"\x89PNG\r\n\x1a\n and so on",
        npy(np.zeros(4)),
        repacked(record(size=(64, 64), calls=2).to_bytes(), about=None),
        repacked(record(size=(64, 64), calls=2).to_bytes(), latents=None),
        repacked(record(size=(64, 64), calls=2).to_bytes(), about=about("[1, 2]")),
        repacked(record(size=(64, 64), calls=2).to_bytes(), about=about('{"version": 99}')),
        repacked(record(size=(64, 64), calls=2).to_bytes(), about=about('{"version": 1, "request": {}}')),
        repacked(record(size=(64, 64), calls=2).to_bytes(), more=npy(np.zeros(3, np.uint8))),
        repacked(record(size=(64, 64), calls=2).to_bytes(), final=npy(np.array([{}]), allow_pickle=True)),
        repacked(record(size=(64, 64), calls=2).to_bytes(), final=npy(np.zeros((4, 8, 8)))),
        repacked(record(size=(64, 64), calls=2).to_bytes(), final=npy(np.zeros((4, 8, 9), np.float32))),
        repacked(record(size=(64, 64), calls=2).to_bytes(), padding=npy(np.zeros((2, 4, 5), np.float32))),
        repacked(record(size=(64, 64), calls=2).to_bytes(), picture=npy(np.zeros((64, 64), np.uint8))),
        repacked(
            record(size=(64, 64), calls=2).to_bytes(), final=npy(np.full((4, 8, 8), np.nan, np.float32))
        ),
    ],
)
def test_what_is_no_record_is_refused(foreign):
    with pytest.raises(ValueError, match="flight record"):
        FlightRecord.from_bytes(foreign)


@pytest.mark.parametrize(
    "changes",
    [
        {"request": request_for().model_dump() | {"width": 7}},
        {"tokens": ("a</w>",)},
        {"tokens": (1,) * 8},
        {"prediction_type": "guess"},
        {"wall": float("nan")},
        {"model": None},
        {"seconds": ["net"]},
        {"steps": None},
        {"padding": None},
    ],
)
def test_a_record_that_contradicts_itself_is_refused(changes):
    with pytest.raises(ValueError, match="flight record"):
        FlightRecord.from_bytes(replace(record(size=(64, 64), calls=2), **changes).to_bytes())


def test_a_record_too_large_is_refused_unread(packed, monkeypatch):
    monkeypatch.setattr(flight, "MAX_BYTES", 50_000)
    with pytest.raises(ValueError, match="too large"):
        FlightRecord.from_bytes(packed)


def test_a_header_that_claims_more_than_there_is_allocates_nothing(packed):
    claimed = npy(np.zeros((4, 8, 8), np.float32)).replace(b"(4, 8, 8)", b"(4, 8, 9)")
    huge = npy(np.zeros(1, np.float32)).replace(b"(1,)        ", b"(999999999,)")
    for forged in (claimed, huge):
        with pytest.raises(ValueError, match="flight record"):
            FlightRecord.from_bytes(repacked(packed, final=forged))


def test_a_file_that_unpacks_to_more_than_it_says_is_refused(packed, monkeypatch):
    """Its directory says 300 bytes, and it inflates to 100 MB: no more than the 300 are ever unpacked."""
    bomb = bytearray(repacked(packed, final=bytes(100_000_000)))
    said = (100_000_000).to_bytes(4, "little")
    place = bomb.rindex(said)  # in the directory at the end
    bomb[place : place + 4] = (300).to_bytes(4, "little")
    largest = []
    read = zipfile.ZipExtFile._read1
    monkeypatch.setattr(
        zipfile.ZipExtFile,
        "_read1",
        lambda self, n: largest.append(n) or read(self, n),
    )
    with pytest.raises(ValueError, match="flight record"):
        FlightRecord.from_bytes(bytes(bomb))
    assert max(largest) < 1_000_000


# In the data folder


def test_a_kept_record_comes_back_and_nothing_else_is_left(store, tmp_path):
    wanted = record(size=(64, 64), calls=2)
    assert not store.has(7)
    store.keep(7, wanted)
    assert store.has(7)
    assert_same(store.open(7), wanted)
    assert left_in(tmp_path) == ["7.npz"]
    assert store.path(7).read_bytes() == wanted.to_bytes()


def test_a_record_that_is_not_there_is_not_found(store):
    with pytest.raises(NotFound, match=r"There is no flight record of this picture \(any more\)\."):
        store.open(7)


def test_a_damaged_file_is_not_found_and_removed(store, tmp_path):
    store.keep(7, record(size=(64, 64), calls=2))
    store.path(7).write_bytes(b"half a rec")
    with pytest.raises(NotFound):
        store.open(7)
    assert left_in(tmp_path) == []


def test_the_oldest_records_go_first(store, tmp_path, monkeypatch):
    monkeypatch.setattr(flights, "KEPT", 3)
    small = record(size=(64, 64), calls=1)
    for id in (5, 2, 9, 4):
        store.keep(id, small)
        os.utime(store.path(id), ns=(id, id))  # 2 was kept long before 5
        assert store.has(id)
    assert left_in(tmp_path) == ["4.npz", "5.npz", "9.npz"]


def test_records_take_no_more_room_than_they_may(store, tmp_path, monkeypatch):
    small = record(size=(64, 64), calls=1)
    monkeypatch.setattr(flights, "KEPT_BYTES", 5 * len(small.to_bytes()) // 2)
    for id in (1, 2, 3):
        store.keep(id, small)
        os.utime(store.path(id), ns=(id, id))
    assert left_in(tmp_path) == ["2.npz", "3.npz"]


def test_a_full_disk_is_said_and_leaves_nothing(store, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(flights.os, "fdopen", full)
    with pytest.raises(StorageError, match="No space left on device") as told:
        store.keep(7, record(size=(64, 64), calls=1))
    assert str(tmp_path) not in str(told.value)
    assert left_in(tmp_path) == []


# Through the engine


def test_only_the_owner_sees_a_record(engine):
    saved = engine.submit([request_for()], "ann", RECORDED).wait().saved[0]
    own = engine.flight(saved.id, "ann")
    assert own.request == saved.request
    assert_same(FlightRecord.from_bytes(engine.flight_file(saved.id, "ann").read_bytes()), own)
    for look in (engine.flight, engine.flight_file):
        with pytest.raises(NotFound):
            look(saved.id, "bob")
        with pytest.raises(NotFound):
            look(saved.id + 1, "ann")


def test_a_picture_that_was_not_recorded_has_none(engine):
    saved = engine.submit([request_for()], "ann").wait().saved[0]
    with pytest.raises(NotFound, match="no flight record"):
        engine.flight(saved.id, "ann")


def test_a_record_of_another_picture_of_that_number_is_not_shown(engine):
    """An index that was lost and built anew counts its pictures anew."""
    one, other = engine.submit([request_for(), request_for(seed=2)], "ann", RECORDED).wait().saved
    engine.flight_file(one.id, "ann").replace(engine.flight_file(other.id, "ann"))
    with pytest.raises(NotFound, match="no flight record"):
        engine.flight(other.id, "ann")


def test_each_of_two_jobs_gets_its_own(engine):
    jobs = {
        owner: engine.submit(
            [request_for(prompt=f"a {owner}", seed=seed) for seed in (1, 2)], owner, RECORDED
        )
        for owner in ("fox", "owl")
    }
    for owner, job in jobs.items():
        for saved in job.wait().saved:
            own = engine.flight(saved.id, owner)
            assert own.request == saved.request
            assert f"{owner}</w>" in own.tokens


def test_a_record_that_cannot_be_kept_loses_no_picture(engine, monkeypatch):
    def full(*_: object) -> None:
        raise StorageError("The flight record could not be kept (No space left on device).")

    monkeypatch.setattr(FlightStore, "keep", full)
    view = engine.submit([request_for()], "ann", RECORDED).wait()
    assert view.state == "done"
    assert view.notes == ("The flight record could not be kept (No space left on device).",)
    assert view.saved[0].path.is_file()


def test_cells_of_a_comparison_are_not_recorded(engine):
    with pytest.raises(Unsupported, match="not recorded"):
        engine.submit([request_for()], "ann", RECORDED, reuse=True)
