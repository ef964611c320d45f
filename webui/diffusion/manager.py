"""What is resident: one model at a time, loaded when first asked for, shared by everything that runs.

Weights stay; pipelines and schedulers are made per run and thrown away. A model is loaded again when its
files have changed. :meth:`ModelManager.release` gives the memory back to the system.
"""

from __future__ import annotations

import logging
import threading
import time

from webui.diffusion import checkpoints, devices
from webui.diffusion.checkpoints import Checkpoint
from webui.diffusion.devices import Device
from webui.diffusion.model import Model
from webui.diffusion.preview import LatentPreview
from webui.diffusion.prompts import Encoder

log = logging.getLogger(__name__)


class ModelManager:
    """Keeps one :class:`Model` on the device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._lock = threading.Lock()
        self._resident: Model | None = None

    @property
    def resident(self) -> Model | None:
        return self._resident

    def get(self, checkpoint: Checkpoint) -> Model:
        """The model, loaded if it is not resident or has changed on disk; the one before is freed first.

        Raises:
            ModelError: it cannot be loaded; nothing is resident then.
        """
        with self._lock:
            resident = self._resident
            if resident and (resident.name, resident.signature) == (checkpoint.name, checkpoint.signature):
                return resident
            del resident
            self._release()
            self._resident = self._load(checkpoint)
            return self._resident

    def release(self) -> None:
        """Drop the resident model and return its memory to the system."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        if self._resident is not None:
            self._resident = None
            devices.free_memory(self.device)

    def _load(self, checkpoint: Checkpoint) -> Model:
        start = time.perf_counter()
        weights = checkpoints.load(checkpoint, self.device)
        devices.set_threads(self.device, sum(p.numel() for p in weights.net.parameters()))
        model = Model(
            name=checkpoint.name,
            sha256=weights.sha256,
            signature=checkpoint.signature,
            scheduler_config=checkpoint.scheduler_config,
            net=weights.net,
            vae=weights.vae,
            encoder=Encoder(weights.tokenizer, weights.text_encoder),
            preview=LatentPreview.fit(weights.vae),
        )
        log.info("model %s loaded in %.1f s (%s)", model.name, time.perf_counter() - start, self.device)
        return model
