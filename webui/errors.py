"""Every error this program raises on purpose.

::

    WebuiError                    500
    ├── InvalidField              422   a request is wrong; names the field
    │   └── Unsupported           422   each field is fine, together they are impossible
    ├── NotFound                  404   no such job, picture or model (for this owner)
    ├── NotAllowed                403   signed in, but not for this
    ├── QueueFull                 429   try again later
    ├── Cancelled                 499   a person stopped the job; not a fault
    ├── Closing                   503   the server is shutting down
    ├── ModelError                500   a checkpoint cannot be used; says why
    ├── GenerationError           500   the run failed; says at which stage
    │   ├── OutOfMemory           507
    │   ├── NotANumber            500   the net or the VAE produced NaN
    │   └── PluginError           500   a plugin failed; says which, and where
    ├── StorageError              507   a picture could not be saved
    └── HubError                  502   the Hugging Face Hub did not give what was asked for
    SettingsError                 ---   a flag, variable or file is wrong; only before the start

Messages are written for the person at the page: they name the field, never a path of the server and
never a secret. They are caught in three places only: the worker, ``ui/`` and the server.
"""

from __future__ import annotations


class WebuiError(Exception):
    """Base of all errors meant for a person's eyes; ``str(error)`` is the whole message."""

    status = 500


class InvalidField(WebuiError):
    """A field of a request is out of its range or of the wrong kind.

    ``field`` is its name inside (``guidance_scale``), ``label`` what the page calls it (``CFG scale``).
    """

    status = 422

    def __init__(self, field: str, message: str, label: str | None = None) -> None:
        super().__init__(f"{label or field}: {message}")
        self.field = field
        self.message = message


class Unsupported(InvalidField):
    """A combination that cannot be computed, such as a sigma schedule the scheduler does not take."""


class NotFound(WebuiError):
    status = 404


class NotAllowed(WebuiError):
    status = 403


class QueueFull(WebuiError):
    status = 429


class Cancelled(WebuiError):
    status = 499


class Closing(WebuiError):
    status = 503


class ModelError(WebuiError):
    pass


class GenerationError(WebuiError):
    pass


class OutOfMemory(GenerationError):
    status = 507


class NotANumber(GenerationError):
    pass


class PluginError(GenerationError):
    """``plugin`` is its id."""

    def __init__(self, plugin: str, message: str) -> None:
        super().__init__(f"The plugin {plugin} failed: {message}")
        self.plugin = plugin


class StorageError(WebuiError):
    status = 507


class HubError(WebuiError):
    status = 502


class SettingsError(Exception):
    """A start-up setting is wrong. Printed by ``app.py``; the program then exits with status 2."""
