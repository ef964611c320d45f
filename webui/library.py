"""Pictures kept: files under ``outputs/`` by day, and a SQLite index that makes them findable.

The files are what counts, the index can be built anew from them. To keep a picture:

1. its bytes go to a hidden temporary file in the day's folder, and are forced to the disk;
2. its row is committed to the index, which reserves its name among all processes that save here;
3. the temporary file is linked to that name, which fails if there is such a file, and unlinked.

Killed at any moment this leaves at worst a temporary file, swept up later, or a row without a file, which
readers skip; never half a picture, and never a picture that the index does not know.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from webui import filenames, images, infotext
from webui.errors import InvalidField, NotFound, SettingsError, StorageError
from webui.request import Delivery, GenerationRequest, GenerationResult, Picture, SavedPicture

log = logging.getLogger(__name__)
T = TypeVar("T")

LEFTOVER_AGE = 600  # seconds after which a temporary file belongs to nobody any more

_ENDINGS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_VERSION = 2  # of the schema, in user_version
_SINCE_1 = "ALTER TABLE pictures ADD COLUMN cell_key TEXT NOT NULL DEFAULT ''"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS pictures (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,  -- path below outputs/, with forward slashes
    created TEXT NOT NULL,                     -- UTC, ISO 8601
    owner TEXT NOT NULL,
    request TEXT NOT NULL,                     -- JSON; makes exactly this picture
    infotext TEXT NOT NULL,
    model TEXT NOT NULL,
    model_hash TEXT NOT NULL,
    seed INTEGER NOT NULL,
    width INTEGER NOT NULL,                    -- pixels
    height INTEGER NOT NULL,
    seconds REAL,                              -- of computing its batch; unknown once rebuilt
    sha256 TEXT NOT NULL,                      -- of the file
    cell_key TEXT NOT NULL DEFAULT ''          -- what made it (webui.diffusion.identity), if it is lossless
);
CREATE INDEX IF NOT EXISTS pictures_of_owner ON pictures (owner, id);
CREATE INDEX IF NOT EXISTS pictures_of_key ON pictures (cell_key) WHERE cell_key != '';
CREATE VIRTUAL TABLE IF NOT EXISTS prompts USING fts5(
    prompt, negative_prompt, tokenize = "unicode61 categories 'L* M* N* Co So'"  -- So: emoji are words too
);
CREATE TRIGGER IF NOT EXISTS picture_kept AFTER INSERT ON pictures BEGIN
    INSERT INTO prompts (rowid, prompt, negative_prompt) VALUES (
        new.id, json_extract(new.request, '$.prompt'), json_extract(new.request, '$.negative_prompt'));
END;
CREATE TRIGGER IF NOT EXISTS picture_dropped AFTER DELETE ON pictures BEGIN
    DELETE FROM prompts WHERE rowid = old.id;
END;
"""


class Library:
    """The pictures of one data folder. Safe to use from several threads and processes at once."""

    def __init__(self, data_dir: Path, filename_pattern: str = filenames.DEFAULT_PATTERN) -> None:
        """
        Raises:
            SettingsError: the pattern has an unknown token, or the data folder cannot be used.
        """
        self._pattern = filenames.checked(filename_pattern)
        self._database = data_dir.resolve() / "library.sqlite3"
        self._mending = threading.Lock()
        #: Resolved: outputs/ itself may be a link to a larger disk, what is inside it may not lead out.
        self.outputs = (data_dir / "outputs").resolve()
        try:
            self.outputs.mkdir(parents=True, exist_ok=True)
            _sweep(self.outputs)
            self._with_index(lambda db: None)
        except (OSError, StorageError) as error:
            raise SettingsError(f"The data folder {data_dir} cannot be used: {error}") from error

    def save(
        self, picture: Picture, result: GenerationResult, owner: str, delivery: Delivery, key: str = ""
    ) -> SavedPicture:
        """Keep a finished picture, with its infotext inside.

        It becomes a PNG where its infotext does not fit into the format asked for. ``key``: what it can be
        found again by, with :meth:`known`; kept with lossless files only.

        Raises:
            StorageError: the disk is full or read-only; nothing is left behind.
        """
        now = datetime.now().astimezone()
        text = infotext.write(
            result.request,
            result.model,
            result.model_hash,
            picture.index,
            extra=result.additions,
            plugins=result.plugins,
        )
        format = delivery.image_format if images.holds(delivery.image_format, text) else "png"
        data = images.encode(picture.image, format, delivery.image_quality, text)
        row = _row(picture.request, text, owner, now, data) | {
            "model": result.model,
            "model_hash": result.model_hash,
            "width": picture.image.width,
            "height": picture.image.height,
            "seconds": result.seconds,
            "cell_key": key if format == "png" else "",
        }
        return self._keep(data, picture.request, row, format, now)

    def known(self, key: str, owner: str) -> SavedPicture | None:
        """A picture made by exactly what ``key`` stands for, if its file is there and unchanged.

        One's own if there is one. Another's is copied into one's own: whoever asks for exactly this picture
        knows all that it holds.

        Raises:
            StorageError: the copy could not be saved.
        """
        query = "SELECT * FROM pictures WHERE cell_key = ? AND cell_key != '' ORDER BY owner != ?, id DESC"
        rows = self._with_index(lambda db: list(db.execute(query, (key, owner))))
        row = next((row for row in rows if self._is_unchanged(row)), None)
        if row is None:
            return None
        path = self.outputs / row["name"]
        if row["owner"] == owner:
            return _saved(row, path)
        now = datetime.now().astimezone()
        copy = {**dict(row), "owner": owner, "created": _utc(now)}
        del copy["id"], copy["name"]
        request = GenerationRequest(**json.loads(row["request"]))
        return self._keep(path.read_bytes(), request, copy, "png", now)

    def has(self, key: str) -> bool:
        """Whether :meth:`known` would find a picture, as far as the index and the files' names tell."""
        query = "SELECT name FROM pictures WHERE cell_key = ? AND cell_key != ''"
        return self._with_index(lambda db: any(self._file(name) for (name,) in db.execute(query, (key,))))

    def _is_unchanged(self, row: sqlite3.Row) -> bool:
        path = self._file(row["name"])
        return path is not None and hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]

    def _keep(
        self, data: bytes, request: GenerationRequest, row: dict[str, Any], format: str, now: datetime
    ) -> SavedPicture:
        """Write a file into the day's folder and publish it."""
        tokens = filenames.tokens(request, row["model"], row["width"], row["height"], now)
        try:
            folder = self._folder(f"{now:%Y-%m-%d}")
            temporary = folder / f".{secrets.token_hex(8)}.part"
            try:
                _write(temporary, data)
                row = self._publish(temporary, row, tokens, _ENDINGS[format])
            finally:
                temporary.unlink(missing_ok=True)
            _force_names(folder)
        except OSError as error:
            raise StorageError(_reason(error)) from error
        return _saved(row, self.outputs / row["name"])

    def recent(self, owner: str, limit: int) -> list[SavedPicture]:
        """The owner's pictures, newest first, without those whose file is gone."""
        query = "SELECT * FROM pictures WHERE owner = ? ORDER BY id DESC"
        return self._with_index(lambda db: self._present(db.execute(query, (owner,)), limit))

    def find(self, owner: str, text: str, limit: int) -> list[SavedPicture]:
        """The owner's pictures whose prompts have words beginning with the text's words, newest first.

        Of a long text only the first 200 characters count. All pictures, if it holds no words.
        """
        words = filenames.words(text[:200])
        if not words:
            return self.recent(owner, limit)
        query = (
            "SELECT pictures.* FROM prompts JOIN pictures ON pictures.id = prompts.rowid"
            " WHERE prompts MATCH ? AND owner = ? ORDER BY pictures.id DESC"
        )
        terms = " ".join(f'"{word}"*' for word in words)
        return self._with_index(lambda db: self._present(db.execute(query, (terms, owner)), limit))

    def get(self, id: int, owner: str) -> SavedPicture:
        """One's own picture.

        Raises:
            NotFound: there is none, its file is gone, or it is another's.
        """
        query = "SELECT * FROM pictures WHERE id = ? AND owner = ?"
        exists = 0 < id < 2**63
        found = exists and self._with_index(lambda db: self._present(db.execute(query, (id, owner)), 1))
        if not found:
            raise NotFound("There is no such picture (any more).")
        return found[0]

    def rebuild(self) -> int:
        """Index the pictures under outputs/ that the index does not know, by their own infotext.

        Done by itself where the index is new, lost or damaged. A picture does not say whose it is: the
        owner is taken from the damaged index where that can still be read, else it is "".

        Returns: how many were added.
        """
        return self._with_index(self._adopt)

    # Files

    def _folder(self, day: str) -> Path:
        folder = self.outputs / day
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() != folder:
            raise StorageError("The picture could not be saved: the folder of the day leads out of outputs.")
        return folder

    def _publish(
        self, temporary: Path, row: dict[str, Any], tokens: dict[str, str], ending: str
    ) -> dict[str, Any]:
        """Give a written file its row and its name: the row, with both."""
        while True:
            kept = self._with_index(lambda db: self._reserve(db, temporary.parent.name, row, tokens, ending))
            try:
                _link(temporary, self.outputs / kept["name"])
                return kept
            except OSError as error:
                self._forget(kept["id"])
                if not isinstance(error, FileExistsError):
                    raise

    def _reserve(
        self, db: sqlite3.Connection, day: str, row: dict[str, Any], tokens: dict[str, str], ending: str
    ) -> dict[str, Any]:
        """Insert the row under the first free name of the day: the row, with its id and name."""
        db.execute("BEGIN IMMEDIATE")
        of_day = "SELECT 1 + count(*) FROM pictures WHERE name >= ? AND name < ?"
        (number,) = db.execute(of_day, (f"{day}/", f"{day}0")).fetchone()  # "0" is the sign after "/"
        stem = filenames.stem(self._pattern, tokens | {"number": f"{number:05}"})
        stems = itertools.chain([stem], (f"{stem}-{k}" for k in itertools.count(2)))
        kept = (row | {"name": f"{day}/{stem}{ending}"} for stem in stems)
        free = (one for one in kept if not os.path.lexists(self.outputs / one["name"]))
        return next(one | {"id": id} for one in free if (id := _insert(db, one)))

    def _forget(self, id: int) -> None:
        self._with_index(lambda db: db.execute("DELETE FROM pictures WHERE id = ?", (id,)))

    def _present(self, rows: Iterable[sqlite3.Row], limit: int) -> list[SavedPicture]:
        """The first ``limit`` rows whose file is there, as pictures."""
        saved = ((row, path) for row in rows if (path := self._file(row["name"])))
        return [_saved(row, path) for row, path in itertools.islice(saved, max(limit, 0))]

    def _file(self, name: str) -> Path | None:
        """The picture's file; None if it is gone, or a link leads out of outputs/."""
        path = self.outputs / name
        real = Path(os.path.realpath(path))
        return path if real.is_relative_to(self.outputs) and real.is_file() else None

    # The index

    def _with_index(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something with the index in one transaction; mend the index first if that proves necessary."""
        try:
            try:
                return self._attempt(work)
            except sqlite3.OperationalError:  # locked, full, read-only: not the file's fault
                raise
            except sqlite3.DatabaseError:
                self._mend()
                return self._attempt(work)
        except sqlite3.Error as error:
            raise StorageError(f"The index of the pictures cannot be used ({error}).") from error

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with closing(sqlite3.connect(self._database, timeout=30)) as db, db:
            db.row_factory = sqlite3.Row
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._create(db)
            elif version == 1:
                self._upgrade(db)
            elif version > _VERSION:
                raise StorageError("The index of the pictures was made by a newer version of this program.")
            return work(db)

    def _create(self, db: sqlite3.Connection) -> None:
        """The schema, and whatever pictures there are already. Harmless if another process is faster."""
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN EXCLUSIVE; {_SCHEMA}")
        self._adopt(db)
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.commit()

    def _upgrade(self, db: sqlite3.Connection) -> None:
        """From version 1. Harmless if another process is faster."""
        db.execute("BEGIN EXCLUSIVE")
        columns = {row["name"] for row in db.execute("PRAGMA table_info(pictures)")}
        if "cell_key" not in columns:
            db.execute(_SINCE_1)
        db.commit()
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.commit()

    def _adopt(self, db: sqlite3.Connection) -> int:
        known = {name for (name,) in db.execute("SELECT name FROM pictures")}
        added = 0
        for path in _pictures(self.outputs):
            name = path.relative_to(self.outputs).as_posix()
            if name not in known and (row := _read_back(path)):
                added += bool(_insert(db, row | {"name": name}))
        if added:
            log.info("%d pictures were added to the index from their own infotext", added)
        return added

    def _mend(self) -> None:
        """Move a damaged index aside, build a new one, and save from the old one whose pictures they are."""
        with self._mending:
            if self._is_sound():  # another thread was faster
                return
            aside = self._database.with_name(f"library.damaged-{datetime.now():%Y%m%d-%H%M%S}.sqlite3")
            log.warning("The index of the pictures is damaged. It is kept as %s and built anew.", aside.name)
            for suffix in ("", "-wal", "-shm"):
                part = Path(f"{self._database}{suffix}")
                if part.exists():
                    part.rename(f"{aside}{suffix}")
            owners = list(_owners(aside))
            self._attempt(lambda db: db.executemany("UPDATE pictures SET owner = ? WHERE name = ?", owners))

    def _is_sound(self) -> bool:
        try:
            return bool(self._attempt(lambda db: db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"))
        except sqlite3.DatabaseError:
            return False


# The index


def _row(request: GenerationRequest, text: str, owner: str, created: datetime, data: bytes) -> dict[str, Any]:
    """The columns of a picture that its request, text and file tell."""
    return {
        "created": _utc(created),
        "owner": owner,
        "request": request.model_dump_json(),
        "infotext": text,
        "seed": request.seed,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def _read_back(path: Path) -> dict[str, Any] | None:
    """The row of a file, from its own infotext; None if it has none that can be used."""
    text = images.read_infotext(path)
    if text is None:
        return None
    reading = infotext.read(text)
    try:
        request = reading.picture()
    except InvalidField as error:
        log.warning("%s is not in the index: its infotext cannot be used (%s)", path.name, error)
        return None
    width, height = images.read_size(path)
    created = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    row = _row(request, text, "", created, path.read_bytes())
    return row | {"model": request.model, "model_hash": reading.model_hash, "width": width, "height": height}


def _insert(db: sqlite3.Connection, row: dict[str, Any]) -> int | None:
    """Add a row; its id, or None if its name is taken."""
    columns, values = ", ".join(row), ", ".join(f":{name}" for name in row)
    query = f"INSERT INTO pictures ({columns}) VALUES ({values}) ON CONFLICT (name) DO NOTHING RETURNING id"
    added = db.execute(query, row).fetchone()
    return added["id"] if added else None


def _saved(row: sqlite3.Row | dict[str, Any], path: Path) -> SavedPicture:
    request = GenerationRequest(**json.loads(row["request"]))
    return SavedPicture(
        id=row["id"],
        name=row["name"],
        path=path,
        infotext=row["infotext"],
        request=request,
        width=row["width"],
        height=row["height"],
        seconds=dict(row).get("seconds"),
    )


def _owners(damaged: Path) -> Iterator[tuple[str, str]]:
    """(owner, name) of as many pictures as a damaged index still tells."""
    try:
        with closing(sqlite3.connect(damaged)) as db:
            yield from db.execute("SELECT owner, name FROM pictures")
    except sqlite3.DatabaseError:
        return


# Files


def _write(path: Path, data: bytes) -> None:
    """A new file, forced to the disk."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(source: Path, target: Path) -> None:
    """Give a file another name, and fail if that is taken. Without links (exFAT, some shares), rename it."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(source, target)


def _force_names(folder: Path) -> None:
    """Force a folder's list of names to the disk, where the system lets one."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError) -> str:
    """Why a picture could not be saved, without the path that ``str(error)`` holds."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "The picture could not be saved: the disk is full."
    return f"The picture could not be saved ({error.strerror or type(error).__name__})."


def _files(outputs: Path) -> Iterator[Path]:
    """All files below a folder; links are not followed."""
    for folder, _, names in os.walk(outputs):
        yield from (path for name in names if not (path := Path(folder, name)).is_symlink())


def _pictures(outputs: Path) -> list[Path]:
    """The picture files, oldest first."""
    endings = (*_ENDINGS.values(), ".jpeg")
    found = (path for path in _files(outputs) if path.suffix.lower() in endings and path.name[0] != ".")
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _sweep(outputs: Path) -> None:
    """Remove temporary files of processes that were killed."""
    for path in _files(outputs):
        if path.name[0] == "." and path.suffix == ".part":
            with suppress(FileNotFoundError):  # another process has just finished with it
                if time.time() - path.stat().st_mtime > LEFTOVER_AGE:
                    path.unlink()
