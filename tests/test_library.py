"""Pictures kept: no half files, no lost ones, nobody else's; whatever happens to disk, process and index."""

import errno
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image
from sd_parsers import ParserManager

from webui import filenames, images
from webui.errors import NotFound, SettingsError, StorageError
from webui.library import LEFTOVER_AGE, Library
from webui.request import Delivery, GenerationRequest, GenerationResult, Picture, SavedPicture

HASH = "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa"
ROOT = Path(__file__).parent.parent
PNG = Delivery()


def result_of(side: int = 64, **changes: object) -> GenerationResult:
    """A batch as the engine would hand it over, with noise for pictures."""
    fields = {"prompt": "a red fox", "seed": 7, "model": "pocket-model", "width": side, "height": side}
    request = GenerationRequest(**{**fields, **changes})
    image = Image.effect_noise((side, side), 60).convert("RGB")
    pictures = tuple(Picture(image, request.picture(k), k) for k in range(request.num_images_per_prompt))
    return GenerationResult(request, pictures, "pocket-model", HASH, 20, 1.5, None, "cpu, float32, sdpa")


def save(library: Library, owner: str = "ann", delivery: Delivery = PNG, **changes: object) -> SavedPicture:
    result = result_of(**changes)
    return library.save(result.pictures[0], result, owner, delivery)


def rows(library: Library, data_dir: Path) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(data_dir / "library.sqlite3")) as db:
        db.row_factory = sqlite3.Row
        return db.execute("SELECT * FROM pictures ORDER BY id").fetchall()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path)


# Saved and found


def test_a_saved_picture_is_there_whole_and_says_how_it_was_made(library, tmp_path):
    result = result_of(num_images_per_prompt=2, guidance_scale=5.5)
    saved = library.save(result.pictures[1], result, "ann", PNG)
    day = f"{datetime.now():%Y-%m-%d}"
    assert saved.name == f"{day}/00001-8-a-red-fox.png"
    assert saved.path == tmp_path / "outputs" / saved.name
    assert saved.request == result.request.picture(1)
    assert images.read_infotext(saved.path) == saved.infotext
    assert Image.open(saved.path).tobytes() == result.pictures[1].image.tobytes()
    assert library.get(saved.id, "ann") == saved
    assert left_in(library.outputs) == ["00001-8-a-red-fox.png"]


def test_the_index_holds_what_is_known_of_a_picture(library, tmp_path):
    saved = save(library)
    (row,) = rows(library, tmp_path)
    assert row["sha256"] == hashlib.sha256(saved.path.read_bytes()).hexdigest()
    known = {
        name: row[name] for name in ("owner", "model", "model_hash", "seed", "width", "height", "seconds")
    }
    assert known == {
        "owner": "ann",
        "model": "pocket-model",
        "model_hash": HASH,
        "seed": 7,
        "width": 64,
        "height": 64,
        "seconds": 1.5,
    }
    assert abs(datetime.now().astimezone() - datetime.fromisoformat(row["created"])).total_seconds() < 60


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_sd_parsers_reads_what_we_save(library, format):
    saved = save(
        library,
        delivery=Delivery(image_format=format),
        prompt="a red fox, (watercolor:1.2)\nin snow 🦊",
        negative_prompt="blurry, grey",
        scheduler="Euler a",
        sigma_schedule="Karras",
        num_inference_steps=12,
        guidance_scale=6.5,
        seed=2**32 - 1,
    )
    found = ParserManager().parse(saved.path)
    (sampler,) = found.samplers
    assert [p.value for p in sampler.prompts] == ["a red fox, (watercolor:1.2)\nin snow 🦊"]
    assert [p.value for p in sampler.negative_prompts] == ["blurry, grey"]
    assert (sampler.name, sampler.model.name, sampler.model.hash) == ("Euler a", "pocket-model", HASH[:10])
    assert sampler.parameters == {
        "steps": "12",
        "scheduler": "Karras",
        "cfg_scale": "6.5",
        "seed": "4294967295",
    }
    assert found.metadata["Size"] == "64x64"


def test_pictures_come_newest_first_and_only_ones_own(library):
    mine = [save(library, seed=seed) for seed in range(4)]
    save(library, owner="bob", seed=9)
    assert library.recent("ann", 3) == mine[:0:-1]
    assert [picture.request.seed for picture in library.recent("bob", 9)] == [9]
    assert library.recent("eve", 9) == library.recent("ann", 0) == []


def test_a_picture_whose_file_is_gone_is_skipped(library):
    first, second, third = (save(library, seed=seed) for seed in range(3))
    second.path.unlink()
    assert library.recent("ann", 2) == [third, first]
    with pytest.raises(NotFound):
        library.get(second.id, "ann")
    shutil.rmtree(library.outputs)
    assert library.recent("ann", 2) == []
    assert save(library).path.exists()


@pytest.mark.parametrize("id", [0, -1, 2, 2**70])
def test_what_is_not_there_or_anothers_is_not_found(library, id):
    save(library)
    for owner, wanted in (("ann", id), ("bob", 1), ("", 1)):
        with pytest.raises(NotFound):
            library.get(wanted, owner)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("fox", [2, 1]),
        ("FOX wat", [1]),
        ("blurry", [3]),
        ("🦊", [2]),
        ("café", [3]),
        ("cafe", [3]),
        ("red fish", []),
        ("", [3, 2, 1]),
        ('"*', [3, 2, 1]),
        ('fox" OR prompt:* NEAR(', []),
        ("fox " * 50 + "dog" * 50_000, [2, 1]),  # 50,000 words would keep SQLite busy for minutes
        ("a\0z", []),
    ],
)
def test_pictures_are_found_by_the_words_of_their_prompts(library, text, seeds):
    save(library, prompt="a red fox, (watercolour:1.2)", seed=1)
    save(library, prompt="a fox 🦊", seed=2)
    save(library, prompt="a Café", negative_prompt="blurry", seed=3)
    save(library, prompt="a red fox, watercolour", owner="bob", seed=4)
    assert [picture.request.seed for picture in library.find("ann", text, 9)] == seeds
    assert len(library.find("ann", text, 1)) == min(len(seeds), 1)


def test_a_text_too_long_for_a_jpeg_is_kept_in_a_png(library):
    jpeg = Delivery(image_format="jpeg")
    saved = save(library, delivery=jpeg, prompt="x" * 20_000, negative_prompt="y" * 20_000)
    assert saved.path.suffix == ".png"
    assert images.read_infotext(saved.path) == saved.infotext
    assert save(library, delivery=jpeg).path.suffix == ".jpg"


# Names


@pytest.mark.parametrize("pattern", ["[sed]", "a/b", "a\\b", "[seed", "seed]", "", "[Seed]", "[seed/]"])
def test_a_pattern_that_cannot_be_meant_is_refused_at_the_start(pattern, tmp_path):
    with pytest.raises(SettingsError, match="filename-pattern"):
        Library(tmp_path, pattern)


def test_every_token_of_a_pattern_stands_for_something(tmp_path):
    library = Library(tmp_path, filenames.TOKENS.replace(" ", "_"))
    name = Path(save(library, guidance_scale=6.5, scheduler="DPM++ 2M").name).stem
    today = f"{datetime.now():%Y-%m-%d}"
    assert name.startswith(f"00001_7_a-red-fox_pocket-model_DPM++ 2M_20_6.5_64_64_{today}_")
    assert name.rpartition("_")[2].isdigit()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\Windows\\x", "C-Windows-x"),
        ("%2e%2e/\t\nx", "2e-2e-x"),
        ("abc\u202egnp.exe", "abc-gnp-exe"),
        ("<lora:ink:0.8> ((fox:1.2)), [cat]", "fox-cat"),
        ("<script>alert(1)</script>", "alert-1"),
        ("कुत्ता 🦊 狐狸", "कुत्ता-🦊-狐狸"),
        ("one two three four five six seven eight nine", "one-two-three-four-five-six-seven-eight"),
    ],
)
def test_a_prompt_cannot_lead_a_file_name_astray(library, prompt, words):
    saved = save(library, prompt=prompt)
    assert Path(saved.name).stem == f"00001-7-{words}"
    assert saved.path.parent.parent == library.outputs


@pytest.mark.parametrize(
    ("model", "stem"),
    [
        ("CON", "_CON"),
        ("nul.tar", "_nul.tar"),
        ("COM1 .x", "_COM1 .x"),
        ("LPT¹", "_LPT¹"),
        ("console", "console"),
        ("...hidden. ", "hidden"),
        ("..", "picture"),
        ("a/b\\c:d\0e\x1ff\u200fg", "a_b_c_d_e_f_g"),
        ("e\u0301", "é"),
        ("", "picture"),
    ],
)
def test_a_name_is_one_that_every_system_takes(model, stem):
    assert filenames.stem("[model]", {"model": model}) == stem


@pytest.mark.parametrize("sign", ["a", "é", "狐", "🦊"])
def test_a_long_name_is_cut_between_characters(library, sign):
    saved = save(library, prompt=sign * 20_000)
    stem = Path(saved.name).stem
    assert 146 < len(stem.encode()) <= 150
    assert stem == "00001-7-" + sign * ((150 - 8) // len(sign.encode()))


def test_nothing_is_ever_overwritten(tmp_path):
    library = Library(tmp_path, "same")
    day = library.outputs / f"{datetime.now():%Y-%m-%d}"
    day.mkdir()
    (day / "same.png").write_text("mine")
    (day / "same-2.png").symlink_to("nowhere")
    names = [Path(save(library, seed=seed).name).name for seed in range(3)]
    assert names == ["same-3.png", "same-4.png", "same-5.png"]
    assert (day / "same.png").read_text() == "mine"


def test_a_file_that_appears_at_the_last_moment_is_not_overwritten(tmp_path, monkeypatch):
    """Another program may take the name between our look and our link."""
    library, link = Library(tmp_path, "same"), os.link

    def late(source: Path, target: Path) -> None:
        if target.name == "same.png" and not target.exists():
            target.write_text("mine")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    saved = save(library)
    assert saved.path.name == "same-2.png"
    assert saved.path.with_name("same.png").read_text() == "mine"
    assert library.recent("ann", 9) == [saved]


def test_numbers_go_on_after_pictures_were_deleted(library):
    for seed in range(3):
        save(library, seed=seed).path.unlink()
    assert Path(save(library).name).name.startswith("00004-")


def test_where_the_disk_knows_no_links_pictures_are_saved_all_the_same(tmp_path, monkeypatch):
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    library = Library(tmp_path, "same")
    assert [save(library, seed=seed).path.name for seed in range(2)] == ["same.png", "same-2.png"]
    assert left_in(library.outputs) == ["same-2.png", "same.png"]


# Many at once


def test_threads_save_and_look_at_the_same_time(library):
    def work(k: int) -> str:
        saved = save(library, owner=f"owner {k % 3}", seed=k)
        library.recent(saved.request.prompt, 5)
        return saved.name

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(work, range(40)))
    assert len(set(names)) == len(left_in(library.outputs)) == 40
    assert sorted(int(Path(name).name[:5]) for name in names) == list(range(1, 41))
    assert sum(len(library.recent(f"owner {k}", 99)) for k in range(3)) == 40


SAVER = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_library import Library, save
library = Library(Path(sys.argv[1]), "same")
for seed in range(10):
    print(save(library, seed=seed).name)
"""


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": "."}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)


def told_by(script: str, *arguments: object) -> list[str]:
    process = start(script, *arguments)
    told = process.communicate()[0].splitlines()
    assert process.returncode == 0
    return told


def test_processes_that_start_and_save_at_the_same_time_keep_every_picture(tmp_path):
    savers = [start(SAVER, tmp_path) for _ in range(2)]
    names = [name for saver in savers for name in saver.communicate()[0].splitlines()]
    assert len(set(names)) == 20
    assert len(left_in(tmp_path / "outputs")) == len(Library(tmp_path).recent("ann", 99)) == 20


KILLED = """
import itertools, os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_library import Library, save
library = Library(Path(sys.argv[1]))

def killed(prepare):
    child = os.fork()
    if child == 0:
        prepare()
        save(library, side=256)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0

def at_event(number):
    seen = itertools.count()
    def hook(name, arguments):
        if name == "open" or name.startswith(("os.", "sqlite3.")):
            if next(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def in_the_midst_of_writing():
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

assert killed(in_the_midst_of_writing)
print(next(number for number in itertools.count() if not killed(lambda: at_event(number))))
"""


def test_a_process_killed_while_saving_leaves_no_half_picture_and_a_sound_index(tmp_path):
    """Killed by the system in the midst of the write, then before each thing a save asks of the system."""
    (kills,) = told_by(KILLED, tmp_path)
    assert int(kills) > 8
    library = Library(tmp_path)
    for path in library.outputs.rglob("*.png"):
        with Image.open(path) as image:
            image.load()
    with closing(sqlite3.connect(tmp_path / "library.sqlite3")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    pictures = {path.relative_to(library.outputs).as_posix() for path in library.outputs.rglob("*.png")}
    assert len(pictures) > 2  # the one that was let live, and those killed after their link
    assert {picture.name for picture in library.recent("ann", 99)} == pictures


def test_what_a_killed_process_left_is_swept_up_but_not_what_another_is_writing(tmp_path):
    day = tmp_path / "outputs" / "2026-01-01"
    day.mkdir(parents=True)
    for name, age in ((".dead.part", LEFTOVER_AGE + 60), (".alive.part", 0)):
        (day / name).write_text("half")
        modified = datetime.now().timestamp() - age
        os.utime(day / name, (modified, modified))
    Library(tmp_path)
    assert left_in(day) == [".alive.part"]


# Trouble with the disk

FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_library import Library, StorageError, left_in, save
library = Library(Path(sys.argv[1]))
first = save(library)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
for side in (512, 64):
    try:
        print(save(library, side=side).name)
    except StorageError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
save(library, side=512)
print(*left_in(library.outputs), len(library.recent("ann", 9)), sep="|")
"""


def test_a_full_disk_is_told_leaves_nothing_behind_and_later_saves_work(tmp_path):
    """The system itself refuses to let any file grow beyond 100,000 bytes, in the midst of a write."""
    refused, small, left = told_by(FULL, tmp_path, 100_000)
    assert refused == "The picture could not be saved: the disk is full."
    assert small.endswith("-7-a-red-fox.png")
    assert len(left.split("|")) == 3 + 1
    assert left.endswith("|3")


def test_a_disk_too_full_for_the_index_leaves_nothing_behind(tmp_path):
    """Pictures of 13 KB would fit under 30,000 bytes, but the index and its log are larger already."""
    first, second, left = told_by(FULL, tmp_path, 30_000)
    assert first == "The picture could not be saved: the disk is full."
    assert second.startswith("The index of the pictures cannot be used")
    assert len(left.split("|")) == 2 + 1
    assert left.endswith("|2")


def test_no_message_shows_a_path(library, tmp_path):
    shutil.rmtree(library.outputs)
    library.outputs.write_text("a file where the folder was")
    with pytest.raises(StorageError) as error:
        save(library)
    assert str(tmp_path) not in str(error.value)


def test_a_data_folder_that_cannot_be_used_is_told_at_the_start(tmp_path):
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(SettingsError, match="data folder"):
        Library(tmp_path)


def test_a_link_to_elsewhere_is_not_followed(library, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    first, second = save(library, seed=1), save(library, seed=2)
    first.path.rename(elsewhere / "x.png")
    first.path.symlink_to(elsewhere / "x.png")
    assert library.recent("ann", 9) == [second]
    day = second.path.parent
    day.rename(elsewhere / "day")
    day.symlink_to(elsewhere / "day")
    assert library.recent("ann", 9) == []
    with pytest.raises(StorageError, match="leads out"):
        save(library)
    assert len(left_in(elsewhere)) == 2 + 1


def test_the_outputs_folder_itself_may_be_a_link_to_a_larger_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "outputs").symlink_to(tmp_path / "disk")
    library = Library(tmp_path / "data")
    assert save(library) == library.recent("ann", 1)[0]
    assert len(left_in(tmp_path / "disk")) == 1


# Trouble with the index


def cut(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def scribble_over_the_head(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"not a database any more" * 100)


def scribble_over_the_rest(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


@pytest.mark.parametrize("harm", [cut, scribble_over_the_head, scribble_over_the_rest])
@pytest.mark.parametrize("running", [True, False])
def test_a_damaged_index_is_set_aside_and_built_anew(
    tmp_path, caplog, harm: Callable[[Path], None], running: bool
):
    library = Library(tmp_path)
    formats = ("png", "jpeg", "webp")
    before = [save(library, num_images_per_prompt=2, delivery=Delivery(image_format=f)) for f in formats]
    harm(tmp_path / "library.sqlite3")
    if not running:
        library = Library(tmp_path)
    after = save(library, owner="ann", seed=9)
    found = library.recent("", 9) + library.recent("ann", 9)
    assert {p.name: p.request for p in found} == {p.name: p.request for p in [*before, after]}
    assert after in library.recent("ann", 9)
    assert [path.read_bytes()[:1] != b"" for path in tmp_path.glob("library.damaged-*.sqlite3")] == [True]
    assert "damaged" in caplog.text


def test_whose_the_pictures_were_is_saved_from_a_damaged_index(tmp_path):
    """Only the words of the prompts are damaged, and that shows when someone searches."""
    library = Library(tmp_path)
    before = save(library)
    with closing(sqlite3.connect(tmp_path / "library.sqlite3")) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'prompts_data'").fetchone()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(tmp_path / "library.sqlite3", "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    assert [p.request for p in library.find("ann", "fox", 9)] == [before.request]


@pytest.mark.parametrize("running", [True, False])
def test_a_lost_index_is_built_anew_from_the_pictures(tmp_path, running):
    library = Library(tmp_path)
    before = [save(library, seed=seed, prompt="a fox \nNegative prompt: x") for seed in range(3)]
    for path in tmp_path.glob("library.sqlite3*"):
        path.unlink()
    if not running:
        library = Library(tmp_path)
    found = library.recent("", 9)
    assert [(p.name, p.request, p.infotext) for p in found] == [
        (p.name, p.request, p.infotext) for p in reversed(before)
    ]
    assert [p.request.seed for p in library.find("", "fox", 9)] == [2, 1, 0]


def test_a_rebuilt_row_has_the_size_of_the_picture_and_not_of_the_part_computed(library, tmp_path):
    """With "Only masked" a picture has the size of its source, which its infotext does not tell."""
    result = result_of(image="a" * 64, mask_image="b" * 64, inpaint_area="Only masked")
    picture = replace(result.pictures[0], image=Image.new("RGB", (301, 203)))
    saved = library.save(picture, result, "ann", PNG)
    for path in tmp_path.glob("library.sqlite3*"):
        path.unlink()
    (found,) = library.recent("", 9)
    assert (found.width, found.height) == (saved.width, saved.height) == (301, 203)
    assert found.request == saved.request


def test_rebuilding_adds_what_is_new_and_forgets_nothing(library):
    kept = save(library)
    shutil.copy(kept.path, kept.path.with_name("copied.png"))
    (kept.path.parent / "foreign.png").write_bytes(images.encode(Image.new("RGB", (8, 8)), "png", 90, ""))
    (kept.path.parent / "wrong.png").write_bytes(
        images.encode(Image.new("RGB", (8, 8)), "png", 90, "x\nSteps: 0, Seed: 1, Sampler: e")
    )
    (kept.path.parent / "broken.png").write_bytes(kept.path.read_bytes()[:20])
    (kept.path.parent / "link.png").symlink_to(kept.path)
    assert (library.rebuild(), library.rebuild()) == (1, 0)
    assert library.recent("ann", 9) == [kept]
    assert [Path(p.name).name for p in library.recent("", 9)] == ["copied.png"]


def test_an_index_of_a_newer_version_is_left_alone(library, tmp_path):
    with closing(sqlite3.connect(tmp_path / "library.sqlite3")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(SettingsError, match="newer version"):
        Library(tmp_path)
    with pytest.raises(StorageError, match="newer version"):
        library.recent("ann", 1)
