"""The names and shapes in a pickled checkpoint, told without running anything that it names.

A pickle is a program for a small machine; what makes it dangerous is that it may name any function of any
package and have it called. Here every name stands for something inert, but for the few that describe tensors,
and of those only type and shape are taken. Read only where a person has allowed pickles at all.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from webui.catalogue.headers import MAX_HEADER, Header, Tensor, Unreadable

STORAGES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
FAULTS = (  # of a pickle, as the documents of Python say, and of the archive round it
    pickle.UnpicklingError, zipfile.BadZipFile, ArithmeticError, AttributeError, EOFError, ImportError,
    LookupError, NotImplementedError, RecursionError, RuntimeError, StopIteration, TypeError, ValueError,
)  # fmt: skip
OLD_PARTS = 4  # of the form before zip: magic, version, system, and what was saved


def read(path: Path) -> Header:
    """
    Raises:
        Unreadable: it is damaged, or holds no tensors by name.
        OSError: it cannot be read at all.
    """
    try:
        content = _content(path)
    except FAULTS as error:
        raise Unreadable("It is damaged: what it holds cannot be told.") from error
    tensors = _tensors(content)
    if not tensors:
        raise Unreadable("It is a pickle that holds no weights by name.")
    return Header(tensors)


def _content(path: Path) -> Any:
    """What was saved, its tensors as :class:`Tensor` and all else inert."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return [_Reader(file).load() for _ in range(OLD_PARTS)][-1]
        with zipfile.ZipFile(file) as archive:
            entry = next(each for each in archive.infolist() if each.filename.endswith("/data.pkl"))
            if entry.file_size > MAX_HEADER:
                raise ValueError(entry.file_size)
            with archive.open(entry) as inner:
                return _Reader(inner).load()


def _tensors(content: Any) -> dict[str, Tensor]:
    """By name: of what is saved itself, below "state_dict", or of a textual inversion."""
    while isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if isinstance(content, Mapping) and isinstance(words := content.get("string_to_param"), Mapping):
        content = {"emb_params": next(iter(words.values()), None)}
    pairs = content.items() if isinstance(content, Mapping) else ()
    return {name: each for name, each in pairs if isinstance(name, str) and isinstance(each, Tensor)}


class _Inert:
    """In the place of whatever a pickle names: it can be made, called, filled, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return self

    def __setstate__(self, _: Any) -> None: ...
    def __setitem__(self, _: Any, __: Any) -> None: ...
    def append(self, _: Any) -> None: ...
    def extend(self, _: Any) -> None: ...


def _rebuilt(storage: Any, _: Any, size: Any, *__: Any) -> Tensor:
    return Tensor(storage if isinstance(storage, str) else "", tuple(int(side) for side in size))


def _parameter(data: Any, *_: Any) -> Any:
    return data


KNOWN: Mapping[tuple[str, str], Callable[..., Any] | str] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class _Reader(pickle.Unpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        return KNOWN.get((module, name), _Inert)

    def persistent_load(self, reference: Any) -> Any:
        """torch's reference to a storage: ("storage", its type, key, device, length)."""
        return reference[1] if isinstance(reference, tuple) and len(reference) > 1 else ""
