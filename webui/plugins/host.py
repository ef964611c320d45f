"""The host of the plugins: asks them, times them, and names the one that fails.

Constructing it loads them; nothing here imports torch or gradio. A host without folders has no plugins.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pluggy

from webui import hookspecs
from webui.diffusion import schedulers
from webui.errors import InvalidField, PluginError, StorageError, Unsupported, WebuiError
from webui.hookspecs import PROJECT, Scheduler, Setting, Upscaler, Values
from webui.plugins import loading, schema
from webui.plugins.loading import PREPARING, STARTING, TOUCHING, Plugin, said
from webui.request import HIRES_UPSCALERS, GenerationRequest, Scalar, invalid

Offer = TypeVar("Offer", Scheduler, Upscaler)

log = logging.getLogger(__name__)

IN_A_ROW = 3  # failures after which a plugin is disabled until a person enables it again
SLOW = 2.0  # seconds of loading that are worth a word: the page waits for them
SWITCHES = "plugins.json"  # in the data folder: which are off


class Host:
    """All plugins of the program, loaded or refused, in the order in which they are asked."""

    def __init__(self, data_dir: Path, folders: Iterable[Path] = ()) -> None:
        self.data_dir = data_dir
        self.plugins: tuple[Plugin, ...] = tuple(sorted(loading.find(folders), key=lambda each: each.id))
        self._lock = threading.Lock()
        off = self._switched_off()
        asked = pluggy.PluginManager(PROJECT)
        asked.add_hookspecs(hookspecs)
        for plugin in reversed(self.plugins):  # pluggy asks the last one first
            if not plugin.refused:
                plugin.off = plugin.id in off
                plugin.incomplete = plugin.off and bool(set(plugin.hooks) & set(STARTING))
                asked.register(plugin.module, plugin.id)
        self._by_id = {plugin.id: plugin for plugin in self.plugins if not plugin.refused}
        self._order = {
            name: [(self._by_id[impl.plugin_name], impl) for impl in reversed(caller.get_hookimpls())]
            for name, caller in vars(asked.hook).items()
            if name in loading.HOOKS
        }
        for plugin, given in list(self.ask_all("settings", data_dir=data_dir)):
            self._settle_settings(plugin, given)
        self.schedulers = self._offers("schedulers", Scheduler, [row.name for row in schedulers.TABLE])
        for plugin, scheduler in self.schedulers.values():
            schedulers.offer(scheduler.name, partial(self._built, plugin, scheduler), scheduler.calls)
        self._folders = list(self._model_folders())
        self.upscalers = self._offers("upscalers", Upscaler, HIRES_UPSCALERS, data_dir=data_dir)
        for plugin in self.plugins:
            if plugin.refused or plugin.broken:
                log.warning("plugin %s: %s", plugin.id, plugin.state)
            if plugin.load_seconds > SLOW:
                log.warning("plugin %s took %.1f s to load", plugin.id, plugin.load_seconds)

    def __getitem__(self, id: str) -> Plugin:
        """A loaded plugin.

        Raises:
            KeyError: there is none.
        """
        return self._by_id[id]

    def _built(self, plugin: Plugin, scheduler: Scheduler, config: Mapping[str, Any]) -> Any:
        with self.guarded(plugin, f"scheduler {scheduler.name}"):
            return scheduler.build(config)

    @property
    def folders(self) -> list[Path]:
        """Where plugins that are on have checkpoints."""
        return [folder for plugin, folders in self._folders if plugin.on for folder in folders]

    def _model_folders(self) -> Iterator[tuple[Plugin, list[Path]]]:
        for plugin, given in self.ask_all("model_folders", data_dir=self.data_dir):
            try:
                yield plugin, [Path(folder) for folder in given or ()]
            except TypeError as error:
                self.disable(plugin, f"model_folders must return folders: {error}")

    def _offers(
        self, hook: str, kind: type[Offer], own: Collection[str], **arguments: Any
    ) -> dict[str, tuple[Plugin, Offer]]:
        """What plugins offer, by name. One that offers something else, or a name twice, is disabled."""
        offers: dict[str, tuple[Plugin, Offer]] = {}
        for plugin, given in self.ask_all(hook, **arguments):
            several = given or ()
            for each in several if isinstance(several, Sequence) else [several]:
                if not isinstance(each, kind):
                    self.disable(
                        plugin, f"{hook} must give {kind.__name__} objects, not {type(each).__name__}"
                    )
                elif each.name in offers or each.name in own:
                    self.disable(plugin, f"there is something named {each.name} in {hook} already")
                else:
                    offers[each.name] = plugin, each
        return offers

    # Asking

    def asked(self, hook: str) -> list[Plugin]:
        """The plugins that are on and have this hook, in order."""
        return [plugin for plugin, _ in self._order.get(hook, ()) if plugin.on]

    def ask_all(self, hook: str, **arguments: Any) -> Iterator[tuple[Plugin, Any]]:
        """Ask each plugin at the start. One that fails is disabled, and the others are asked."""
        for plugin in self.asked(hook):
            with self.starting(plugin):
                given = self.ask(plugin, hook, **arguments)
            if plugin.on:
                yield plugin, given

    @contextmanager
    def starting(self, plugin: Plugin) -> Iterator[None]:
        """Run a plugin's code at the start, as part of loading it; if it fails, the plugin is disabled."""
        spent = plugin.seconds
        try:
            yield
        except WebuiError as error:
            self.disable(plugin, str(error))
        finally:
            plugin.load_seconds += plugin.seconds - spent
            plugin.seconds = spent

    def ask(self, plugin: Plugin, hook: str, **arguments: Any) -> Any:
        """Ask one plugin, with the arguments that it wants.

        Raises:
            PluginError: it failed.
            WebuiError: what it raised on purpose.
        """
        impl = next(impl for each, impl in self._order[hook] if each is plugin)
        with self.guarded(plugin, hook):
            given = impl.function(*(arguments[name] for name in impl.argnames))
        if not set(plugin.hooks) & set(TOUCHING):  # the others have to get through a whole picture
            plugin.failures = 0
        return given

    @contextmanager
    def guarded(self, plugin: Plugin, where: str) -> Iterator[None]:
        """Run a plugin's code: timed, and whatever it raises is its failure.

        Raises:
            PluginError: it failed.
            WebuiError: what it raised on purpose.
        """
        start = time.perf_counter()
        try:
            yield
        except WebuiError:
            raise
        except (Exception, SystemExit) as error:
            raise self.failed(plugin, f"{said(error)} (in {where})", error) from error
        finally:
            plugin.seconds += time.perf_counter() - start

    def notify(self, hook: str, **arguments: Any) -> None:
        """Ask each plugin; what fails is noted, and harms nobody."""
        for plugin in self.asked(hook):
            try:
                self.ask(plugin, hook, **arguments)
            except WebuiError as error:
                log.warning("%s", error)

    def failed(self, plugin: Plugin, message: str, error: BaseException | None = None) -> PluginError:
        """Note a failure; after :data:`IN_A_ROW` of them the plugin is disabled."""
        with self._lock:
            plugin.failures += 1
            if plugin.failures >= IN_A_ROW:
                plugin.broken = f"it failed {plugin.failures} times in a row: {message}"
        return self.noted(plugin, message, error)

    def noted(self, plugin: Plugin, message: str, error: BaseException | None = None) -> PluginError:
        """Keep an error for the person who looks for it."""
        plugin.trace = "".join(traceback.format_exception(error)) if error else message
        log.error("plugin %s: %s", plugin.id, message, exc_info=error)
        return PluginError(plugin.id, message)

    def succeeded(self, plugins: Iterable[Plugin], pictures: int = 1) -> None:
        """They took part in pictures that are finished, or ready to be made."""
        with self._lock:
            for plugin in plugins:
                plugin.failures = 0
                plugin.pictures += pictures

    # Switching

    def disable(self, plugin: Plugin, reason: str) -> None:
        """For a fault at the start, until a person enables it and starts anew."""
        plugin.broken, plugin.incomplete = reason, True
        log.error("plugin %s is disabled: %s", plugin.id, reason)

    def switch(self, id: str, on: bool) -> None:
        """A person's wish, which is remembered. It is done at once, unless the plugin is incomplete.

        Raises:
            KeyError: there is no such plugin, or it was refused.
            StorageError: it is done, and cannot be remembered.
        """
        with self._lock:
            plugin = self._by_id[id]
            plugin.off = not on
            if on:
                plugin.broken, plugin.failures = "", 0
            self._remember({each.id for each in self._by_id.values() if each.off})

    def _remember(self, off: set[str]) -> None:
        path = self.data_dir / SWITCHES
        partial = path.with_suffix(".part")
        try:
            partial.write_text(json.dumps({"off": sorted(off)}), "utf-8")
            partial.replace(path)
        except OSError as error:
            message = "It is done, but not for the next start: the server's disk refuses."
            raise StorageError(message) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _switched_off(self) -> set[str]:
        try:
            off = json.loads((self.data_dir / SWITCHES).read_text("utf-8"))["off"]
            return {id for id in off if isinstance(id, str)}
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("which plugins are off cannot be read (%s): all are on", error)
            return set()

    # Settings

    def settings(self) -> Iterator[tuple[Plugin, Setting]]:
        """Of all plugins that are not refused, also of those that are off."""
        for plugin in self._by_id.values():
            for setting in plugin.settings:
                yield plugin, setting

    def _settle_settings(self, plugin: Plugin, given: Any) -> None:
        try:
            plugin.settings = schema.check(given or ())
        except (TypeError, ValueError, InvalidField) as error:
            self.disable(plugin, str(error))

    def values(self, plugin: Plugin, request: GenerationRequest) -> Values:
        """The plugin's settings for this request."""
        return Values(
            {setting.name: setting.default for setting in plugin.settings} | _own(plugin.id, request.plugins)
        )

    def settled(self, request: GenerationRequest) -> GenerationRequest:
        """With plugins' settings checked, of their own types, and without those that are neutral.

        Raises:
            InvalidField: one is wrong, or its plugin is not here or not on.
        """
        return request.replace(plugins=self.chosen(dict(request.plugins)))

    def chosen(self, values: Mapping[str, Any]) -> dict[str, Scalar]:
        """Of these values of settings, by "ID.setting", those that are not neutral; of their own types.

        Raises:
            InvalidField: one is wrong, or its plugin is not here or not on.
        """
        found: dict[str, Scalar] = {}
        for id in dict.fromkeys(name.partition(".")[0] for name in values):
            given = _own(id, values.items())
            plugin = self._by_id.get(id)
            if plugin is None:
                raise InvalidField(f"{id}.{next(iter(given), '')}", "there is no such plugin here")
            if plugin.incomplete and not plugin.settings:  # they are not known
                raise InvalidField(f"{id}.{next(iter(given), '')}", f"the plugin {plugin.title} is not on")
            chosen = schema.chosen(plugin.settings, given, id)
            if chosen and not plugin.on:
                raise InvalidField(f"{id}.{next(iter(chosen))}", f"the plugin {plugin.title} is not on")
            found |= {f"{id}.{name}": value for name, value in chosen.items()}
        return found

    # What comes in

    def prepare(self, request: GenerationRequest) -> list[GenerationRequest]:
        """What plugins make of a complete request: usually one.

        Where the prompts of a batch's pictures then differ, it is a request for each picture.

        Raises:
            InvalidField: a setting is wrong, or a plugin says so.
            PluginError: a plugin failed.
        """
        request = self.settled(request)
        if not any(self.asked(hook) for hook in PREPARING):
            return [request]
        requests = [each for one in self._several(request) for each in self._prompted(one)]
        for each in requests:
            only = [self._by_id[id] for id, _ in each.prepared if id in self._by_id]
            only = [plugin for plugin in only if not set(plugin.hooks) & set(TOUCHING)]
            self.succeeded(only, each.num_images_per_prompt)
        return requests

    def _several(self, request: GenerationRequest) -> list[GenerationRequest]:
        requests = [request]
        for plugin in self.asked("prepare_request"):
            requests = [made for each in requests for made in self._made(plugin, each)]
        return requests

    def _made(self, plugin: Plugin, request: GenerationRequest) -> list[GenerationRequest]:
        settings = self.values(plugin, request)
        made = self.ask(plugin, "prepare_request", request=request, settings=settings, data_dir=self.data_dir)
        if made is None:
            return [request]
        several = list(made) if isinstance(made, Sequence) else [made]
        if not several or not all(isinstance(each, GenerationRequest) for each in several):
            raise self.failed(plugin, "prepare_request must return a request, or several")
        return [self._noted(plugin, request, self.settled(each)) for each in several]

    def _prompted(self, request: GenerationRequest) -> list[GenerationRequest]:
        """With prompts prepared: one request, or one for each picture."""
        pictures = [request.picture(k) for k in range(request.num_images_per_prompt)]
        prepared = [self._with_prompts(picture) for picture in pictures]
        same = {(each.prompt, each.negative_prompt) for each in prepared}
        if len(same) > 1:
            return prepared
        names = ("prompt", "negative_prompt", "template", "negative_template", "prepared", "plugins")
        return [request.replace(**{name: getattr(prepared[0], name) for name in names})]

    def _with_prompts(self, picture: GenerationRequest) -> GenerationRequest:
        for plugin in self.asked("prepare_prompt"):
            settings, before = self.values(plugin, picture), picture
            for field in ("prompt", "negative_prompt"):
                text = self.ask(
                    plugin,
                    "prepare_prompt",
                    prompt=getattr(picture, field),
                    field=field,
                    seed=picture.seed,
                    settings=settings,
                    data_dir=self.data_dir,
                )
                if text is None:
                    continue
                if not isinstance(text, str):
                    raise self.failed(plugin, f"prepare_prompt must return text, not {type(text).__name__}")
                picture = picture.replace(**{field: text})
            picture = self._noted(plugin, before, picture)
            if not set(plugin.hooks) & set(TOUCHING):
                plugin.failures = 0
        return picture

    def _noted(
        self, plugin: Plugin, before: GenerationRequest, after: GenerationRequest
    ) -> GenerationRequest:
        """With the words that were typed, and the plugin that changed them.

        The settings of a plugin that does nothing else have done their work: the request is then complete
        without the plugin, and doing it again does not do them again.
        """
        assert plugin.manifest is not None
        own = {f"{plugin.id}.{name}": value for name, value in _own(plugin.id, after.plugins).items()}
        spent = own if not set(plugin.hooks) & set(TOUCHING) else {}
        if before == after and not spent:
            return after
        kept = {name: value for name, value in after.plugins if name not in spent}
        changes: dict[str, Any] = {
            "plugins": kept,
            "prepared": dict(after.prepared) | own | {plugin.id: plugin.manifest.version},
        }
        for field, template in (("prompt", "template"), ("negative_prompt", "negative_template")):
            if getattr(before, field) != getattr(after, field) and not getattr(after, template):
                changes[template] = getattr(before, field)
        return after.replace(**changes)

    # What takes part

    def taking_part(self, request: GenerationRequest) -> list[Plugin]:
        """The plugins that may touch the request's pictures, sorted by id."""
        return [
            plugin
            for plugin in self._by_id.values()
            if plugin.on
            and set(plugin.hooks) & set(TOUCHING)
            and (not plugin.settings or _own(plugin.id, request.plugins))
        ]

    def offering(self, request: GenerationRequest) -> list[Plugin]:
        """The plugins whose scheduler or upscaler the request names.

        Raises:
            InvalidField: one of them is not on.
        """
        plugins = []
        for field, offers in (("scheduler", self.schedulers), ("hires_upscaler", self.upscalers)):
            name = getattr(request, field)
            if name in offers and (field == "scheduler" or request.hires):
                plugin = offers[name][0]
                if not plugin.on:
                    raise invalid(field, f"{name} belongs to the plugin {plugin.title}, which is not on")
                plugins.append(plugin)
        return plugins

    def identity(self, request: GenerationRequest) -> list[Any] | None:
        """What of the plugins decides the pixels, as JSON takes it; None if that cannot be told."""
        parts = []
        for plugin in (*self.taking_part(request), *self.offering(request)):
            assert plugin.manifest is not None
            if not plugin.manifest.deterministic:
                return None
            more = None
            if "cell_key" in plugin.hooks:
                values = self.values(plugin, request)
                more = self.ask(plugin, "cell_key", request=request, settings=values, data_dir=self.data_dir)
            parts.append([plugin.id, plugin.manifest.version, more])
        try:
            json.dumps(parts)
        except (TypeError, ValueError) as error:
            raise self.failed(plugin, f"cell_key must return what JSON takes: {error}") from error
        return parts


def single(requests: Sequence[GenerationRequest]) -> GenerationRequest:
    """
    Raises:
        Unsupported: they are several, where one picture is wanted.
    """
    if len(requests) > 1:
        message = f"makes {len(requests)} pictures of one here; a grid, a loopback or a list takes one each"
        raise Unsupported("prompt", message, "Prompt")
    return requests[0]


def _own(id: str, values: Iterable[tuple[str, Scalar]]) -> dict[str, Scalar]:
    """Setting -> value, of one plugin."""
    named = ((name.partition("."), value) for name, value in values)
    return {setting: value for (owner, _, setting), value in named if owner == id}
