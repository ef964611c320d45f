"""Sources: kept by content, found again by their hash, and never by somebody else."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from webui.errors import InvalidField, StorageError
from webui.sources import LEFTOVER_AGE, SourceStore


@pytest.fixture
def store(tmp_path: Path) -> SourceStore:
    return SourceStore(tmp_path)


def noise(mode: str = "RGB", size: tuple[int, int] = (33, 21)) -> Image.Image:
    return Image.effect_noise(size, 60).convert(mode)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_comes_back_pixel_for_pixel(store, mode):
    picture = noise(mode)
    opened = store.open(store.keep(picture, "ann"), "ann")
    assert (opened.mode, opened.size) == (mode, picture.size)
    assert np.array_equal(np.asarray(opened), np.asarray(picture))


def test_the_same_picture_has_one_name_and_one_file_however_often_it_is_kept(store, tmp_path):
    picture = noise()
    assert store.keep(picture, "ann") == store.keep(picture.copy(), "ann")
    assert len(files(tmp_path)) == 1
    assert SourceStore(tmp_path).has(store.keep(picture, "ann"), "ann")


def test_a_name_tells_size_and_mode_apart(store):
    black = [
        Image.new("L", (4, 6)),
        Image.new("L", (6, 4)),
        Image.new("RGB", (4, 2)),
        Image.new("RGB", (2, 4)),
    ]
    assert len({picture.tobytes() for picture in black}) == 1  # their bytes alone would not
    assert len({store.keep(picture, "ann") for picture in black}) == 4


def test_a_hash_opens_nothing_for_anybody_else(store):
    digest = store.keep(noise(), "ann")
    for owner in ("bob", "", "Ann", "ann/", "../ann"):
        assert not store.has(digest, owner)
        with pytest.raises(InvalidField, match="no longer here"):
            store.open(digest, owner)


@pytest.mark.parametrize("owner", ["../../etc", "a/b", "C:\\x", "\0", "ü" * 300, ""])
def test_an_owner_is_never_part_of_a_path(store, tmp_path, owner):
    assert store.has(store.keep(noise(), owner), owner)
    assert [path.relative_to(tmp_path).parts[0] for path in files(tmp_path)] == ["sources"]


@pytest.mark.parametrize(
    "digest", ["", "../../x", "0" * 64, "A" * 64, "0" * 63, "0" * 64 + "\n", "/etc/passwd"]
)
def test_what_is_no_hash_of_a_picture_here_opens_nothing(store, digest):
    assert not store.has(digest, "ann")
    with pytest.raises(InvalidField, match="Mask: is no longer here") as refusal:
        store.open(digest, "ann", "mask_image")
    assert refusal.value.field == "mask_image"


@pytest.mark.parametrize(
    "harm", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"GIF89a"]
)
def test_a_damaged_source_is_told_and_choosing_it_again_mends_it(store, tmp_path, harm):
    picture = noise(size=(200, 200))
    digest = store.keep(picture, "ann")
    (path,) = files(tmp_path)
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(InvalidField, match="choose it again") as refusal:
        store.open(digest, "ann")
    assert str(tmp_path) not in str(refusal.value)
    assert store.keep(picture, "ann") == digest
    assert np.array_equal(np.asarray(store.open(digest, "ann")), np.asarray(picture))


def test_a_source_that_cannot_be_read_just_now_is_not_thrown_away(store, tmp_path, monkeypatch):
    digest = store.keep(noise(), "ann")

    def too_many_files(*arguments: object, **options: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", too_many_files)
        with pytest.raises(StorageError):
            store.open(digest, "ann")
    assert store.open(digest, "ann").size == (33, 21)


def test_a_full_disk_is_told_and_leaves_nothing_behind(store, tmp_path, monkeypatch):
    def full(self: Image.Image, path: Path, *arguments: object, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(StorageError) as error:
            store.keep(noise(), "ann")
    assert files(tmp_path) == []
    assert str(tmp_path) not in str(error.value)
    assert store.has(store.keep(noise(), "ann"), "ann")


def test_a_data_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "sources").write_text("a file where the folder should be")
    with pytest.raises(StorageError):
        SourceStore(tmp_path).keep(noise(), "ann")


def test_many_may_keep_and_open_the_same_picture_at_once(store, tmp_path):
    picture = noise(size=(300, 300))

    def work(_: int) -> bool:
        return np.array_equal(np.asarray(store.open(store.keep(picture, "ann"), "ann")), np.asarray(picture))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))
    assert len(files(tmp_path)) == 1


def test_what_a_killed_process_left_is_swept_up_but_not_what_another_is_writing(store, tmp_path):
    store.keep(noise(), "ann")
    folder = files(tmp_path)[0].parent
    for name, age in ((".dead.part", LEFTOVER_AGE + 60), (".alive.part", 0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    SourceStore(tmp_path)
    assert sorted(path.suffix for path in files(tmp_path)) == [".part", ".png"]
    assert (folder / ".alive.part").exists()


def test_nothing_of_the_picture_but_its_pixels_is_stored(store, tmp_path):
    picture = noise()
    picture.info |= {"comment": "secret words", "icc_profile": b"secret profile"}
    store.keep(picture, "ann")
    (path,) = files(tmp_path)
    assert b"secret" not in path.read_bytes()
    with Image.open(path) as stored:
        assert stored.info == {}
