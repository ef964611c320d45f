"""The plugins that take part in one request, on the worker: patched in, asked, and taken out again.

What they leave behind in the model is looked for afterwards, and told by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from webui.diffusion import denoiser
from webui.diffusion.model import Model
from webui.diffusion.preview import Reading
from webui.diffusion.prompts import Chunk
from webui.errors import PluginError
from webui.hookspecs import Parts, Prediction, StepEnd
from webui.plugins.host import Host
from webui.plugins.loading import Plugin
from webui.request import GenerationRequest

PARTS = ("unet", "transformer", "vae", "text_encoder")
PLAIN = (bool, int, float, str, tuple, type(None))
Marks = dict[str, tuple[Any, ...]]


class Plugged:
    """Made for one request and thrown away. Most requests have no plugins, and then this does nothing."""

    def __init__(self, host: Host, request: GenerationRequest) -> None:
        self.host = host
        self.request = request
        self.plugins = host.taking_part(request)
        self.leaking: list[Plugin] = []  # left something behind: the model must be loaded anew

    def having(self, hook: str) -> list[Plugin]:
        """Those that take part and have this hook, in the order in which they are asked."""
        return [plugin for plugin in self.host.asked(hook) if plugin in self.plugins]

    @property
    def versions(self) -> dict[str, str]:
        """Of those that take part, for the infotext."""
        plugins = (*self.plugins, *self.host.offering(self.request))
        return {plugin.id: plugin.manifest.version for plugin in plugins if plugin.manifest}

    def enlarge(self, image: Image.Image, check: Callable[[], None]) -> Image.Image:
        """To the size of the second pass, by the upscaler of the request."""
        plugin, upscaler = self.host.upscalers[self.request.hires_upscaler]
        size = self.request.final_size
        more = {"check": check} if "check" in inspect.signature(upscaler.enlarge).parameters else {}
        with self.host.guarded(plugin, f"upscaler {upscaler.name}"):
            larger = upscaler.enlarge(image, size, **more)
        if not isinstance(larger, Image.Image) or larger.size != size:
            raise self.host.failed(plugin, f"upscaler {upscaler.name} must return a picture of {size}")
        return larger.convert("RGB")

    # The model

    @contextmanager
    def around(self, model: Model) -> Iterator[Model]:
        """The model with the plugins' patches, undone at the end whatever happens.

        It has memories of its own: what a patched net or encoder computes must not be taken for the others'.
        """
        self.parts = parts = _parts(model)
        if not (self.having("patch") or self.having("attention")):
            yield model
            return
        for tower in model.encoder.towers:
            tower.encode([Chunk()])  # its first call installs transformers' own hooks
        with ExitStack() as stack:
            for plugin in self.having("patch"):
                stack.enter_context(self._patched(plugin, parts))
            for plugin in self.having("attention"):
                stack.enter_context(self._attending(plugin, parts))
            yield model.apart()

    @contextmanager
    def _patched(self, plugin: Plugin, parts: Parts) -> Iterator[None]:
        before = marks(parts)
        patch = self._ask(plugin, "patch", parts=parts, request=self.request)
        if patch is None:
            yield
            self._look(plugin, before, parts)
            return
        if not isinstance(patch, AbstractContextManager):
            raise self.host.failed(plugin, f"patch must return a context manager, not {_kind(patch)}")
        try:
            with self.host.guarded(plugin, "patch"):
                patch.__enter__()
            try:
                yield
            except BaseException as error:
                with suppress(PluginError):  # noted, but what happened first counts
                    self._undo(plugin, patch, error)
                raise
            else:
                self._undo(plugin, patch, None)
        finally:
            self._look(plugin, before, parts)

    def _undo(self, plugin: Plugin, patch: AbstractContextManager[Any], error: BaseException | None) -> None:
        """Leave the patch with the error that is on its way, if there is one, which it cannot swallow."""
        with self.host.guarded(plugin, "undoing patch"):
            try:
                patch.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
            except BaseException as raised:
                if raised is not error:
                    raise

    @contextmanager
    def _attending(self, plugin: Plugin, parts: Parts) -> Iterator[None]:
        modules = dict((parts.unet or parts.transformer).named_modules())
        before = {name: module.processor for name, module in modules.items() if _takes_processor(module)}
        try:
            for name, original in before.items():
                new = self._ask(
                    plugin, "attention", name=name, original=original, parts=parts, request=self.request
                )
                if new is not None and not callable(new):
                    raise self.host.failed(plugin, f"attention must return a processor, not {_kind(new)}")
                if new is not None:
                    modules[name].processor = new
            yield
        finally:
            for name, original in before.items():
                modules[name].processor = original

    def _look(self, plugin: Plugin, before: Marks, parts: Parts) -> None:
        """Whether the model is as it was."""
        if changed := difference(before, marks(parts)):
            self.leaking.append(plugin)
            self.host.failed(plugin, f"it left changes in the model: {changed}. The model is loaded anew")

    # The picture

    def start(
        self, noise: torch.Tensor, encode: Callable[[Image.Image], torch.Tensor], source: Image.Image | None
    ) -> torch.Tensor:
        """(B, C, h, w) to begin with."""
        for plugin in self.having("start"):
            given = self._ask(
                plugin, "start", noise=noise, request=self.request, encode=encode, source=source
            )
            noise = self._tensor(plugin, "start", given, noise)
        return noise

    def guide(
        self,
        seen: denoiser.Prediction,
        steps: int,
        scale: torch.Tensor,
        reading: Reading,
        predict: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """(B, C, h, w), guided."""
        prediction = Prediction(
            request=self.request,
            call=seen.call,
            calls=seen.calls,
            step=seen.step,
            steps=steps,
            timestep=seen.timestep,
            latents=seen.model_input,
            cond=seen.cond,
            uncond=seen.uncond,
            scale=scale,
            guided=seen.guided,
            predict=predict,
            prediction_type=reading.prediction_type,
            signal=reading.signal,
            noise=reading.noise,
            x0=lambda output: reading.x0(seen.model_input, output),
            output=lambda x0: reading.output(seen.model_input, x0),
        )
        for plugin in self.having("guide"):
            given = self._ask(plugin, "guide", prediction=prediction, parts=self.parts)
            guided = self._tensor(plugin, "guide", given, prediction.guided)
            prediction = replace(prediction, guided=guided)
        return prediction.guided

    def step_end(self, step: StepEnd) -> torch.Tensor:
        """(B, C, h, w), what the next step begins with."""
        for plugin in self.having("step_end"):
            given = self._ask(plugin, "step_end", step=step)
            step = replace(step, latents=self._tensor(plugin, "step_end", given, step.latents))
        return step.latents

    def finish(
        self, image: Image.Image, request: GenerationRequest, check: Callable[[], None]
    ) -> list[Image.Image]:
        """The picture, and what is kept beside it."""
        beside: list[Image.Image] = []
        for plugin in self.having("postprocess"):
            given = self._ask(
                plugin,
                "postprocess",
                image=image,
                request=request,
                data_dir=self.host.data_dir,
                check=check,
            )
            pictures = [image] if given is None else given if isinstance(given, list) else [given]
            if not pictures or not all(isinstance(each, Image.Image) for each in pictures):
                raise self.host.failed(plugin, f"postprocess must return pictures, not {_kind(given)}")
            image, *more = (each.convert("RGB") for each in pictures)
            beside += more
        return [image, *beside]

    def _ask(self, plugin: Plugin, hook: str, **arguments: Any) -> Any:
        settings = self.host.values(plugin, self.request)
        return self.host.ask(plugin, hook, settings=settings, **arguments)

    def _tensor(self, plugin: Plugin, hook: str, given: Any, like: torch.Tensor) -> torch.Tensor:
        if given is None:
            return like
        if not isinstance(given, torch.Tensor) or given.shape != like.shape:
            what = tuple(given.shape) if isinstance(given, torch.Tensor) else _kind(given)
            raise self.host.failed(
                plugin, f"{hook} must return a tensor of shape {tuple(like.shape)}, not {what}"
            )
        return given.to(like)


def _parts(model: Model) -> Parts:
    encoders = tuple(tower.text_encoder for tower in model.encoder.towers)
    unet, transformer = (
        model.net if model.family.facts.net == net else None for net in ("unet", "transformer")
    )
    return Parts(unet, model.vae, model.encoder.text_encoder, transformer, encoders)


def marks(parts: Parts) -> Marks:
    """What tells whether the modules are as they were. Weights by place and version: no value is read."""
    whole = {part: getattr(parts, part) for part in PARTS}
    whole |= {f"text_encoder_{n}": part for n, part in enumerate(parts.text_encoders[1:], 2)}
    return {
        f"{part}.{name}": tuple(_marks(module))
        for part, whole_part in whole.items()
        if whole_part is not None
        for name, module in whole_part.named_modules()
    }


def _marks(module: nn.Module) -> Iterator[Any]:
    yield type(module)
    for name, each in vars(module).items():
        if name.startswith("_") and isinstance(each, Mapping):  # hooks, parameters, buffers, children
            yield name
            for key, item in each.items():
                yield key
                yield item
                if isinstance(item, torch.Tensor):
                    yield (item.data_ptr(), item.dtype, item._version if not item.is_inference() else 0)
        elif isinstance(each, PLAIN) or callable(each):
            yield (name, each) if isinstance(each, PLAIN) else name
            yield None if isinstance(each, PLAIN) else each


def difference(before: Marks, after: Marks) -> str:
    """The first modules that are not the same, for a person; "" if all are."""
    changed = [name for name in before.keys() | after.keys() if not _same(before.get(name), after.get(name))]
    shown = ", ".join(sorted(name.rstrip(".") for name in changed)[:3])
    return shown + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _same(a: tuple[Any, ...] | None, b: tuple[Any, ...] | None) -> bool:
    if a is None or b is None or len(a) != len(b):
        return False
    return all(x is y or (isinstance(x, (*PLAIN, type)) and x == y) for x, y in zip(a, b, strict=True))


def _takes_processor(module: nn.Module) -> bool:
    return hasattr(module, "processor") and hasattr(module, "set_processor")


def _kind(given: Any) -> str:
    return type(given).__name__
