"""Settings: one declaration each, read from flags, ``WEBUI_*`` variables and ``webui.toml``; then frozen.

A flag wins over a variable, a variable over the file, the file over the default. Each field of
:class:`Settings` carries a :class:`Flag`, from which :mod:`webui.flags` makes the command line and its
help; reading the rest is pydantic-settings' work.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from webui import a1111

DEFAULT_PORT = 7860
SHIPPED_MODELS = Path(__file__).resolve().parents[1] / "models"
EXTENSIONS = Path(__file__).resolve().parents[1] / "extensions"

ANSWERING = "Where it answers"
ENTERING = "Who may come in"
FILES = "Files"
COMPUTING = "Computing"
QUEUEING = "The queue"
OTHER = "Other"
GROUPS = (ANSWERING, ENTERING, FILES, COMPUTING, QUEUEING, OTHER)  # of flags, in the help


@dataclass(frozen=True)
class Flag:
    """How a setting is written on the command line.

    ``also``: AUTOMATIC1111's flags for the same thing, each with what turns its value into ours (into a
    list where ours can be repeated). ``means``: its flags without a value that stand for one of ours.
    """

    group: str
    help: str
    shown: str | None = None  # what stands for the value in the help
    name: str = ""  # the flag itself, where it differs from the field
    also: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    means: Mapping[str, str] = field(default_factory=dict)


def _split(separator: str) -> Callable[[Any], Any]:
    """A variable holds several values in one text; flags and the file give a list."""

    def split(value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(separator) if part.strip()]
        return value

    return split


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address (brackets round version 6 allowed), not a name."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str:
    host = host.strip().lower()
    if not host or any(sign in host for sign in "/@*, ") or (":" in host and not is_address(host)):
        raise ValueError("must be a name alone, such as pictures.example.org, without http:// and port")
    return host


def _account(value: SecretStr) -> SecretStr:
    user, _, password = value.get_secret_value().partition(":")
    if not user.strip() or not password:
        raise ValueError("must look like USER:PASSWORD")
    return value


def _device(value: str) -> str:
    kind, colon, index = value.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps", "xpu") or (colon and not index.isdecimal()):
        raise ValueError("must be auto, cpu, cuda, mps or xpu, or one of several such as cuda:1")
    return value


def _root_path(value: str) -> str:
    if any(sign in value for sign in " ?#:"):
        raise ValueError("must be a path such as /studio")
    return f"/{value.strip('/')}" if value.strip("/") else ""


def _on_space() -> bool:
    return os.environ.get("SYSTEM") == "spaces" and bool(os.environ.get("SPACE_ID"))


def _with_space_host(hosts: tuple[str, ...]) -> tuple[str, ...]:
    own = os.environ.get("SPACE_HOST", "").lower()
    return (*hosts, own) if _on_space() and own else hosts


def _with_shipped(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    return folders if SHIPPED_MODELS in folders else (*folders, SHIPPED_MODELS)


Place = Annotated[Path, AfterValidator(lambda path: path.expanduser().resolve())]


class Settings(BaseSettings):
    """Everything decided before the start. Made by :func:`webui.flags.load`, or by keywords in a test.

    Raises:
        pydantic.ValidationError: a value is wrong; ``load`` makes a :class:`SettingsError` of it.
    """

    model_config = SettingsConfigDict(
        env_prefix="WEBUI_",
        env_ignore_empty=True,
        populate_by_name=True,
        validate_default=True,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    on_space: bool = Field(default_factory=_on_space)  # a Hugging Face Space; no flag

    listen: Annotated[
        bool,
        Flag(
            ANSWERING,
            "Answer other computers too, as --host 0.0.0.0 does. This needs an account, or --open.",
        ),
    ] = False
    host: Annotated[
        str,
        Field(default_factory=lambda data: "0.0.0.0" if data["listen"] or data["on_space"] else "127.0.0.1"),
        Flag(
            ANSWERING,
            "The address to answer on. The default, 127.0.0.1, answers only this computer.",
            "ADDRESS",
            also={"--server-name": str},
        ),
    ]
    port: Annotated[
        int,
        Field(ge=1, le=65535),
        Flag(ANSWERING, f"The port to answer on. Without it: {DEFAULT_PORT}, or the next free one.", "N"),
    ] = DEFAULT_PORT
    share: Annotated[
        bool,
        Flag(
            ANSWERING,
            "Also open a public https address through Gradio's tunnel. This needs an account, or --open, "
            "and is the only thing here that uses the internet.",
        ),
    ] = False
    root_path: Annotated[
        str,
        AfterValidator(_root_path),
        Flag(
            ANSWERING,
            "The path under which a reverse proxy shows the page, such as /studio.",
            "PATH",
            also={"--subpath": str},
        ),
    ] = ""
    allowed_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(_host_name)], ...],
        NoDecode,
        BeforeValidator(_split(",")),
        AfterValidator(_with_space_host),
        Flag(
            ANSWERING,
            "A name by which browsers reach this server, such as your reverse proxy's. Can be repeated; "
            ".example.org stands for every name below example.org.",
            "NAME",
            name="--allow-host",
        ),
    ] = Field((), validation_alias="WEBUI_ALLOW_HOST")

    auth: Annotated[
        tuple[Annotated[SecretStr, AfterValidator(_account)], ...],
        NoDecode,
        BeforeValidator(_split("\n")),
        Flag(
            ENTERING,
            "An account. With one, nothing is shown without signing in. Can be repeated. "
            "Other programs can read flags: prefer the variable, or --auth-file.",
            "USER:PASSWORD",
            also={"--gradio-auth": lambda accounts: accounts.split(",")},
        ),
    ] = ()
    auth_file: Annotated[
        Place | None,
        Flag(
            ENTERING,
            "A file of accounts, one on each line, as --hash-password prints them.",
            "FILE",
            also={"--gradio-auth-path": str},
        ),
    ] = None
    admin: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(_split(",")),
        Flag(
            ENTERING,
            "The account that may switch plugins on and off, download models, and say which are kept in "
            "memory. Can be repeated. Without accounts, who sits at this computer may, while no other "
            "computer can connect.",
            "USER",
        ),
    ] = ()
    open: Annotated[
        bool,
        Field(default_factory=_on_space),
        Flag(ENTERING, "Let in everyone who reaches the server. Has no effect when there are accounts."),
    ]

    data_dir: Annotated[
        Place,
        Flag(
            FILES,
            "The folder for pictures (outputs/), their index and the cache. Default: where you are now.",
            "FOLDER",
        ),
    ] = Path()
    models_dir: Annotated[
        tuple[Place, ...],
        NoDecode,
        BeforeValidator(_split(os.pathsep)),
        AfterValidator(_with_shipped),
        Flag(
            FILES,
            "A folder with models of any kind, in folders as you like. Can be repeated. The program's own "
            "models/ is always looked into.",
            "FOLDER",
            also=dict.fromkeys(a1111.FOLDERS, lambda folder: [folder]),
        ),
    ] = ()
    allow_pickle: Annotated[
        bool,
        Flag(
            FILES,
            "Also open models saved as pickles (.ckpt, .pt, .bin), tensors only. Only for files you trust: "
            "the format was made to run programs.",
        ),
    ] = False
    plugins_dir: Annotated[
        tuple[Place, ...],
        NoDecode,
        BeforeValidator(_split(os.pathsep)),
        Flag(
            FILES,
            "A folder with plugins of your own, each in a folder. Can be repeated. They are programs, and "
            "may do whatever you may. The program's own extensions/ is always looked into.",
            "FOLDER",
        ),
    ] = ()
    no_extensions: Annotated[
        bool,
        Flag(
            FILES, "Load no plugins, not even the program's own.", means={"--disable-all-extensions": "true"}
        ),
    ] = False
    filename_pattern: Annotated[
        str,
        Field(min_length=1, max_length=200),
        Flag(FILES, "How pictures are named under outputs/.", "PATTERN"),
    ] = "[number]-[seed]-[prompt_words]"

    model: Annotated[
        str,
        Flag(
            COMPUTING,
            "The model to begin with. Default: the small one that comes along.",
            "NAME",
            also={"--ckpt": a1111.model_name},
        ),
    ] = ""
    device: Annotated[
        str,
        AfterValidator(_device),
        Flag(
            COMPUTING,
            "What computes: auto, cpu, cuda (also AMD's ROCm), mps or xpu; cuda:1 is the second of several.",
            "NAME",
            also={"--use-cpu": a1111.cpu, "--device-id": "cuda:{}".format},
        ),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Flag(
            COMPUTING,
            "The numbers it computes with. float32 is slower, and exact.",
            also={"--precision": a1111.precision},
            means={"--no-half": "float32"},
        ),
    ] = "auto"
    attention: Annotated[
        Literal["auto", "sdpa", "xformers", "sliced"],
        Flag(
            COMPUTING,
            "How attention is computed. sliced is slower, and needs less memory.",
            means={
                "--xformers": "xformers",
                "--opt-sdp-attention": "sdpa",
                "--opt-sdp-no-mem-attention": "sdpa",
                "--opt-split-attention": "sliced",
            },
        ),
    ] = "auto"

    offload: Annotated[
        Literal["auto", "none", "model", "group", "fp8"],
        Flag(
            COMPUTING,
            "What waits in RAM while it does not compute, where a model does not fit the device: nothing, "
            "parts of it (model), layers (group, slow). auto: as little as fits. fp8 keeps the net's "
            "weights in 8 bits, and changes pictures a little.",
            means={"--medvram": "model", "--medvram-sdxl": "model", "--lowvram": "group"},
        ),
    ] = "auto"
    vram_budget: Annotated[
        float | None,
        Field(gt=0),
        Flag(COMPUTING, "How much of the device's memory may be taken. Default: what is free of it.", "GB"),
    ] = None
    ram_budget: Annotated[
        float | None,
        Field(gt=0),
        Flag(
            COMPUTING,
            "How much RAM models and the work on them may take. Default: up to three quarters on a CPU; "
            "else half of that, for models that wait there.",
            "GB",
        ),
    ] = None
    idle_release: Annotated[
        float,
        Field(ge=0),
        Flag(
            COMPUTING,
            "After how long without use a model that nobody pinned leaves memory. 0: never.",
            "MINUTES",
        ),
    ] = 60.0
    speed: Annotated[
        Literal["auto", "plain", "max"],
        Flag(
            COMPUTING,
            "plain: nothing that makes it faster. auto: what was measured to help, and changes at most last "
            "bits. max: on CUDA also compile the net, which takes minutes at each new size.",
        ),
    ] = "auto"

    cells: Annotated[
        Literal["auto", "exact", "together"],
        Flag(
            COMPUTING,
            "Whether alike cells of a grid share a batch where that is faster (together), or are made alone, "
            "and so equal single pictures to the last bit (exact). auto: exact on a CPU, else together.",
        ),
    ] = "auto"

    queue_size: Annotated[
        int, Field(ge=1, le=10_000), Flag(QUEUEING, "How many jobs may wait at once.", "N")
    ] = 64
    queue_per_owner: Annotated[
        int, Field(ge=1, le=10_000), Flag(QUEUEING, "How many of them may be one person's.", "N")
    ] = 16
    patience: Annotated[
        float,
        Field(ge=0, le=86_400),
        Flag(QUEUEING, "After how long a waiting job is dropped whose page was closed.", "SECONDS"),
    ] = 60.0

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Flag(OTHER, "How much the terminal shows.", also={"--loglevel": str.lower}),
    ] = "warning"

    @property
    def outputs_dir(self) -> Path:
        return self.data_dir / "outputs"

    @property
    def cache_dir(self) -> Path:
        return self.data_dir / "cache"

    @property
    def plugin_folders(self) -> tuple[Path, ...]:
        """Where plugins are, the program's own first."""
        return () if self.no_extensions else (EXTENSIONS, *self.plugins_dir)

    def is_admin(self, user: str | None) -> bool:
        """Whether a person, signed in under this name or not at all (None), may change the program."""
        if self.auth or self.auth_file:
            return user in self.admin
        return self.loopback and not self.share

    @property
    def loopback(self) -> bool:
        """Whether only this computer can connect."""
        if is_address(self.host):
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        return self.host == "localhost"

    @model_validator(mode="after")
    def _reachable_on_purpose(self) -> Self:
        reachable = self.share or not self.loopback
        if reachable and not (self.auth or self.auth_file or self.open):
            raise ValueError(
                f"{'--share' if self.share else '--listen'} lets others reach this server, so say who may "
                "use it: give an account with --auth-file FILE, --auth USER:PASSWORD or the variable "
                "WEBUI_AUTH, or let everyone in with --open."
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
