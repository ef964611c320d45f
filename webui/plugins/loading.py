"""Finds plugins and loads them, each under a private package name; a faulty one is refused by name."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from webui import hookspecs
from webui.hookspecs import PROJECT, Setting
from webui.plugins import manifest
from webui.plugins.manifest import MODULE, Manifest, Refused

PACKAGE = "webui_plugins"  # of the loaded modules: no plugin can stand in for a real one

#: Hooks that are asked at the start; that make the request what it is, before it is queued; and that touch
#: a picture.
STARTING = ("settings", "schedulers", "upscalers", "axes", "tab", "router", "model_folders")
PREPARING = ("prepare_prompt", "prepare_request")
TOUCHING = ("patch", "attention", "start", "guide", "step_end", "postprocess")
HOOKS = tuple(name for name, each in inspect.getmembers(hookspecs) if hasattr(each, f"{PROJECT}_spec"))


@dataclass
class Plugin:
    """A folder with a plugin, and how it is doing. Changed by the host only."""

    folder: Path
    manifest: Manifest | None = None
    module: ModuleType | None = None
    hooks: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    load_seconds: float = 0.0
    refused: str = ""  # why it is not loaded, for a person
    broken: str = ""  # why it was disabled by the host
    off: bool = False  # by a person
    incomplete: bool = (
        False  # what it offers was not (all) taken up at the start, so it must wait for the next
    )
    trace: str = ""  # of its last error
    failures: int = 0  # in a row
    seconds: float = 0.0  # spent in its hooks about pictures
    pictures: int = 0  # it took part in

    @property
    def id(self) -> str:
        return self.manifest.id if self.manifest else self.folder.name

    @property
    def title(self) -> str:
        return self.manifest.title if self.manifest else self.folder.name

    @property
    def on(self) -> bool:
        return not (self.refused or self.broken or self.off or self.incomplete)

    @property
    def waits(self) -> bool:
        """Whether it is on from the next start."""
        return self.incomplete and not (self.refused or self.broken or self.off)

    @property
    def state(self) -> str:
        """In a person's words."""
        if self.refused:
            return f"Not loaded: {self.refused}"
        if self.broken:
            return f"Disabled: {self.broken}"
        if self.off:
            return "Off"
        return "On after a restart of the program" if self.waits else "On"


def find(folders: Iterable[Path]) -> Iterator[Plugin]:
    """Load every plugin below these folders, sorted by name, or that one of them is.

    Of two with one id the first is kept.
    """
    ids: set[str] = set()
    below = (path for folder in folders for path in sorted(_children(folder)))
    for path in below:
        plugin = Plugin(path)
        start = time.perf_counter()
        try:
            _load(plugin, ids)
        except Refused as error:
            plugin.refused = str(error)
        plugin.load_seconds = time.perf_counter() - start
        ids.add(plugin.id)
        yield plugin


def _children(folder: Path) -> Iterator[Path]:
    """Folders that mean to be plugins."""
    if (folder / manifest.FILE).exists():
        yield folder
    elif folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir() and not path.name.startswith((".", "_")):
                yield path


def _load(plugin: Plugin, ids: set[str]) -> None:
    """
    Raises:
        Refused: whatever is wrong with it.
    """
    if plugin.folder.is_symlink():
        raise Refused("its folder is a link; copy it here, or name its place with --plugins-dir")
    plugin.manifest = manifest.read(plugin.folder)
    if plugin.id in ids:
        raise Refused(f"there is another plugin with the id {plugin.id}")
    try:
        plugin.module = _imported(plugin)
    except Refused:
        raise
    except (Exception, SystemExit) as error:
        plugin.trace = traceback.format_exc()
        raise Refused(f"it fails as it is imported: {said(error)}") from error
    plugin.hooks = tuple(_hooks(plugin.module))


def _imported(plugin: Plugin) -> ModuleType:
    path = plugin.folder / MODULE
    if not path.is_file():
        raise Refused(f"it has no {MODULE}")
    package = sys.modules.setdefault(PACKAGE, ModuleType(PACKAGE))
    package.__path__ = []
    name = f"{PACKAGE}.{plugin.id.replace('-', '_')}"
    for old in [loaded for loaded in sys.modules if loaded == name or loaded.startswith(f"{name}.")]:
        del sys.modules[old]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(plugin.folder)])
    if spec is None or spec.loader is None:
        raise Refused(f"its {MODULE} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _hooks(module: ModuleType) -> Iterator[str]:
    """The names of its hooks.

    Raises:
        Refused: one is not known here, asks for what it does not get, or is not marked.
    """
    for name, each in vars(module).items():
        options = getattr(each, f"{PROJECT}_impl", None)
        if options is None:
            if name in HOOKS and inspect.isfunction(each) and each.__module__ == module.__name__:
                raise Refused(f"its function {name} has the name of a hook, and is not marked @hookimpl")
            continue
        name = options.get("specname") or name
        if options.get("wrapper") or options.get("hookwrapper"):
            raise Refused(f"its hook {name} is a wrapper; plugins here follow one another instead")
        if name not in HOOKS:
            near = difflib.get_close_matches(name, HOOKS, 1)
            raise Refused(f"there is no hook {name}" + (f"; did you mean {near[0]}?" if near else ""))
        known = inspect.signature(getattr(hookspecs, name)).parameters
        for argument in _wanted(each):
            if argument not in known:
                raise Refused(
                    f"its hook {name} asks for {argument!r}; there is {', '.join(known) or 'nothing'}"
                )
        yield name


def _wanted(hook: Any) -> list[str]:
    """The arguments that a hook names, as pluggy sees them: those with defaults are its own."""
    parameters = inspect.signature(hook).parameters.values()
    return [each.name for each in parameters if each.default is each.empty]


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
