"""Who may come in: accounts, sessions and a brake on guessing. Knows nothing of HTTP.

Passwords are kept as scrypt hashes (RFC 7914, with OWASP's parameters), sessions as keyed digests of
their tokens; neither can be turned back. All memory is bounded.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pydantic import SecretStr

from webui.errors import SettingsError

# OWASP Password Storage Cheat Sheet: N = 2^14, r = 8, p = 5 is as strong as its first choice and takes
# 16 MiB instead of 128.
N, R, P = 2**14, 8, 5
MAX_MEMORY = 64 * 2**20  # bytes that a hash in a file may ask for

SESSION_SECONDS = 7 * 86_400
MAX_SESSIONS = 10_000


def hash_password(password: str) -> str:
    """``scrypt$N$r$p$salt$hash``, salt and hash in base64."""
    salt = secrets.token_bytes(16)
    return "$".join(["scrypt", str(N), str(R), str(P), _text(salt), _text(_scrypt(password, salt, N, R, P))])


def matches(password: str, hashed: str) -> bool:
    """Whether ``hashed`` was made of ``password``; compared in constant time.

    Raises:
        ValueError: ``hashed`` is not what :func:`hash_password` makes.
    """
    salt, expected, parameters = _parse(hashed)
    return hmac.compare_digest(_scrypt(password, salt, *parameters), expected)


def _parse(hashed: str) -> tuple[bytes, bytes, tuple[int, int, int]]:
    try:
        name, n, r, p, salt, digest = hashed.split("$")
        parameters = int(n), int(r), int(p)
        if name != "scrypt" or not 0 < 128 * parameters[0] * parameters[1] <= MAX_MEMORY // 2:
            raise ValueError(name)
        return _bytes(salt), _bytes(digest), parameters
    except ValueError:  # binascii's error is one too
        raise ValueError("not a hash made by --hash-password") from None


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=MAX_MEMORY, dklen=32)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


class Accounts:
    """The people who may sign in: user name -> password hash."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)
        self._nobody = hash_password(secrets.token_hex())

    @classmethod
    def of(cls, auth: Iterable[SecretStr], auth_file: Path | None) -> Accounts | None:
        """The accounts of these settings; None if there are none.

        Raises:
            SettingsError: the file cannot be read, holds a plain password, or a name comes twice.
        """
        flags = (value.get_secret_value().partition(":") for value in auth)
        pairs = [(user.strip(), hash_password(password)) for user, _, password in flags]
        if auth_file:
            pairs += read_accounts(auth_file)
        hashes = dict(pairs)
        if len(hashes) < len(pairs):
            raise SettingsError("--auth: the same user name is there twice")
        return cls(hashes) if hashes else None

    def check(self, user: str, password: str) -> bool:
        """Whether this is the password of this user. Takes as long for a user who does not exist."""
        return matches(password, self._hashes.get(user, self._nobody)) and user in self._hashes


def read_accounts(path: Path) -> Iterable[tuple[str, str]]:
    """Yield (user, hash) of each line ``user:scrypt$...``; empty lines and ``#`` comments are skipped.

    Raises:
        SettingsError: naming the line, never quoting it.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise SettingsError("--auth-file: the file cannot be read as text") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, hashed = (part.strip() for part in line.partition(":"))
        try:
            _parse(hashed if user else "")
        except ValueError:
            raise SettingsError(
                f"--auth-file, line {number}: must be USER:scrypt$..., not a plain password. "
                "Make such a line with: python app.py --hash-password"
            ) from None
        yield user, hashed


def ask_for_line() -> str:
    """Ask at the terminal for a name and, twice, a password; the line for the accounts file."""
    user = input("User name: ").strip()
    password = getpass.getpass("Password: ")
    if not user or ":" in user or not password:
        raise SettingsError("--hash-password: a user name without a colon and a password are needed")
    if password != getpass.getpass("The same password again: "):
        raise SettingsError("--hash-password: the two passwords differ")
    return f"{user}:{hash_password(password)}"


class Sessions:
    """Who is signed in: tokens, kept only as digests under a key that dies with the process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._users: OrderedDict[bytes, tuple[str, float]] = OrderedDict()  # oldest first

    def open(self, user: str, token: str | None = None) -> str:
        """Sign ``user`` in under a new random 256-bit token (or one that the client already has)."""
        token = token or secrets.token_urlsafe(32)
        self._users[self._digest(token)] = (user, self._clock() + SESSION_SECONDS)
        if len(self._users) > MAX_SESSIONS:
            self._users.popitem(last=False)
        return token

    def user(self, token: str) -> str | None:
        user, until = self._users.get(self._digest(token), (None, 0.0))
        return user if self._clock() < until else None

    def close(self, token: str) -> None:
        self._users.pop(self._digest(token), None)

    def _digest(self, token: str) -> bytes:
        return hmac.digest(self._key, token.encode(), "sha256")


class Brake:
    """Slows guessing down: after ``free`` failures of a key, each one doubles its wait, to ``longest``.

    A try counts as a failure until :meth:`forgive` says otherwise, so that a hundred tries at the same
    moment are a hundred failures.
    """

    def __init__(
        self,
        free: int = 5,
        longest: float = 300.0,  # seconds
        keys: int = 10_000,  # remembered at most; the oldest is forgotten first
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free, self._longest, self._keys, self._clock = free, longest, keys, clock
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # (count, of the last one)

    def wait(self, key: str) -> float:
        """Seconds until ``key`` may try again."""
        count, last = self._failures.get(key, (0, 0.0))
        if count < self._free:
            return 0.0
        return max(0.0, last + min(2.0 ** (count - self._free), self._longest) - self._clock())

    def count(self, key: str) -> None:
        count, _ = self._failures.pop(key, (0, 0.0))
        self._failures[key] = (count + 1, self._clock())
        if len(self._failures) > self._keys:
            self._failures.popitem(last=False)

    def forgive(self, key: str) -> None:
        self._failures.pop(key, None)
