"""The one program that asks the Hugging Face Hub: a child of the server, which itself stays offline.

It is started by a person's click (:mod:`webui.hub`), reads one order as a line of JSON, answers in lines of
JSON, and ends when its standard input does. The token is in its environment alone; nothing that it says
holds a token, an address or a path.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

INDEX = "model_index.json"
LARGEST_INDEX = 2**18  # bytes
CHUNK = 2**20  # bytes
TIMEOUT = httpx2.Timeout(30.0, connect=10.0)  # seconds without a sign of the hub
TRIES = 5  # of one place in a file, a cut line each
PAUSE = 1.0  # seconds before the next
CUT = (httpx2.TimeoutException, httpx2.RemoteProtocolError, httpx2.NetworkError)
SAID_EVERY = 0.25  # seconds

UNREACHABLE = "The hub cannot be reached. Is this computer online?"
SILENT = "The hub does not answer. What has come is kept: try again later."
CHANGED = "{} came damaged, or has changed on the hub meanwhile. Look it up again, and it is fetched anew."


class Refused(Exception):
    """In a person's words."""


def main() -> None:
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        say(listing(order) if order["do"] == "look" else fetch(order))
    except Refused as error:
        say({"error": str(error)})
    except HfHubHTTPError as error:
        say({"error": _plain(error, order["repo"])})
    except httpx2.ConnectError:
        say({"error": UNREACHABLE})
    except httpx2.HTTPError:
        say({"error": SILENT})
    except OSError as error:
        say({"error": _of_disk(error)})


def say(message: Mapping[str, Any]) -> None:
    print(json.dumps(message), flush=True)  # noqa: T201


def listing(order: Mapping[str, Any]) -> dict[str, Any]:
    """Every file of a repository at its newest commit, and its model_index.json, if it has one."""
    api = HfApi(endpoint=order["endpoint"], token=token())
    info = api.model_info(order["repo"], revision=order["revision"], files_metadata=True, timeout=30)
    files: list[dict[str, Any]] = [
        {"path": file.rfilename, "bytes": file.size or 0, "sha256": file.lfs.sha256 if file.lfs else ""}
        for file in info.siblings or ()
    ]
    has_index = any(file["path"] == INDEX and file["bytes"] <= LARGEST_INDEX for file in files)
    index = get(order, info.sha or "main", INDEX).content if has_index else b"{}"
    return {"revision": info.sha, "files": files, "index": index.decode("utf-8", "replace")}


def fetch(order: Mapping[str, Any]) -> dict[str, Any]:
    """The files of an order into its folder, each from where it was left off; each checked at the end."""
    before = 0
    for file in order["files"]:
        path = Path(order["folder"], file["saved_as"])
        path.parent.mkdir(parents=True, exist_ok=True)
        spoken = 0.0
        for size in _growing(order, file, path):
            if time.monotonic() - spoken > SAID_EVERY:
                spoken = time.monotonic()
                say({"bytes": before + size})
        _check(path, file)
        before += file["bytes"]
        say({"bytes": before})
    return {"done": True}


def _growing(order: Mapping[str, Any], file: Mapping[str, Any], path: Path) -> Iterator[int]:
    """Fetch one file; its size so far, again and again. A cut line is taken up where it was cut."""
    left, size = TRIES, path.stat().st_size if path.exists() else 0
    while size < file["bytes"]:
        try:
            for more in _rest(order, file, path, size):
                left, size = TRIES, more
                yield size
        except CUT:
            left -= 1
            if not left:
                raise
            time.sleep(PAUSE)
            continue
        if size < file["bytes"]:
            raise Refused(CHANGED.format(file["path"]))
    path.touch()


def _rest(order: Mapping[str, Any], file: Mapping[str, Any], path: Path, size: int) -> Iterator[int]:
    url = _url(order, order["revision"], file["path"])
    headers = _headers() | {"accept-encoding": "identity"} | ({"range": f"bytes={size}-"} if size else {})
    with get_session().stream(
        "GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True
    ) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        whole = response.status_code == 200  # though a rest was asked for
        size = 0 if whole else size
        with path.open("wb" if whole else "ab") as out:
            for chunk in response.iter_bytes(CHUNK):
                size += len(chunk)
                if size > file["bytes"]:
                    raise Refused(CHANGED.format(file["path"]))
                out.write(chunk)
                out.flush()
                yield size


def _check(path: Path, file: Mapping[str, Any]) -> None:
    """
    Raises:
        Refused: what came is not what was listed; it is deleted.
    """
    with path.open("rb") as content:
        right = path.stat().st_size == file["bytes"] and (
            not file["sha256"] or hashlib.file_digest(content, "sha256").hexdigest() == file["sha256"]
        )
    if not right:
        path.unlink()
        raise Refused(CHANGED.format(file["path"]))


def get(order: Mapping[str, Any], revision: str, path: str) -> Any:
    """A small file."""
    response = get_session().get(
        _url(order, revision, path), headers=_headers(), timeout=TIMEOUT, follow_redirects=True
    )
    hf_raise_for_status(response)
    return response


def token() -> str | bool:
    """Of the environment, no other; False: none."""
    return os.environ.get("HF_TOKEN", "").strip() or False


def _url(order: Mapping[str, Any], revision: str, path: str) -> str:
    return hf_hub_url(order["repo"], path, revision=revision, endpoint=order["endpoint"])


def _headers() -> dict[str, str]:
    return build_hf_headers(token=token())


def _plain(error: HfHubHTTPError, repo: str) -> str:
    """The hub answers 401 for what does not exist too, so as not to say what does."""
    status = error.response.status_code if error.response is not None else 0
    if isinstance(error, GatedRepoError):
        who = "the account of the token in HF_TOKEN" if token() else "your account, and set HF_TOKEN"
        return f"{repo} has terms to agree to first: do so on its page of the hub, with {who}."
    if status == 401 and "Invalid" in (error.response.headers.get("X-Error-Message") or ""):
        return "The hub does not accept the token in HF_TOKEN."
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        means = "the token in HF_TOKEN may not read it" if token() else "it needs a token: set HF_TOKEN"
        return f"The hub has no model {repo}, or {means}."
    if status == 404:
        return f"The hub has no such version or file of {repo}."
    if status == 429:
        return "The hub asks for patience: too many requests. Try again in some minutes."
    return f"The hub has a fault of its own ({status}). Try again later."


def _of_disk(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The disk is full. What has come is kept: make room, and try again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Nothing can be written into the models folder."
    return f"The file could not be written ({os.strerror(error.errno) if error.errno else 'unknown reason'})."


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
