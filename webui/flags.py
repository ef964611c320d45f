"""The command line: made from :class:`webui.settings.Settings`, and :func:`load`, which reads it all.

Nothing slow is imported here, so that a typing mistake is answered at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import ValidationError

from webui import __version__
from webui.errors import SettingsError
from webui.settings import DEFAULT_PORT, ENTERING, FILES, GROUPS, OTHER, Flag, Settings

WIDTH = 98  # of the help, in characters


def load(arguments: Sequence[str]) -> Settings:
    """Read the command line ``arguments`` (without the program's name), the variables and the file.

    Raises:
        SettingsError: a value is wrong; the message names the flag, variable or key it came from.
        SystemExit: ``--help`` or ``--version`` was asked for, and printed.
    """
    given = vars(_parser().parse_args(arguments))
    for action in ("hash_password", "list_extensions"):  # app.py sees to them
        given.pop(action, None)
    file = _config_file(given.pop("config", None), given.get("data_dir"))

    class Located(Settings, toml_file=file):
        """Settings that also read the file just found."""

    try:
        return Located(**given)
    except ValidationError as error:
        raise SettingsError(_plain(error, given, file)) from None
    except (OSError, ValueError) as error:  # the file cannot be read, or is not TOML
        raise SettingsError(f"{file}: {error}") from None


def _config_file(given: str | None, data_dir: str | None) -> Path | None:
    named = given or os.environ.get("WEBUI_CONFIG")
    if named:
        if not Path(named).is_file():
            raise SettingsError(f"--config: there is no file {named}")
        return Path(named)
    usual = Path(data_dir or os.environ.get("WEBUI_DATA_DIR") or ".") / "webui.toml"
    return usual if usual.is_file() else None


def _plain(error: ValidationError, given: Mapping[str, Any], file: Path | None) -> str:
    """The first problem, with the place where the person wrote the value. Never the value itself."""
    first = error.errors(include_url=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ").partition(", unable to")[0]
    message = message.replace("Input should be", "must be").replace("a valid integer", "a whole number")
    if not first["loc"]:
        return message
    name = "allowed_hosts" if first["loc"][0] == "WEBUI_ALLOW_HOST" else str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return f"{name} in {file}: there is no such setting"
    flag = dict(_flags())[name]
    if name in given:
        place = _spelling(name, flag)
    elif (variable := _variable(name, flag)) in os.environ:
        place = variable
    else:
        place = f"{name} in {file}"
    return f"{place}: {message}"


def _flags() -> Iterator[tuple[str, Flag]]:
    for name, info in Settings.model_fields.items():
        for note in info.metadata:
            if isinstance(note, Flag):
                yield name, note


def _spelling(name: str, flag: Flag) -> str:
    return flag.name or "--" + name.replace("_", "-")


def _variable(name: str, flag: Flag) -> str:
    return "WEBUI_" + _spelling(name, flag).removeprefix("--").replace("-", "_").upper()


def _epilog() -> str:
    """How variables, the file and AUTOMATIC1111's flags map to the flags above."""
    pairs = [
        (other, _spelling(name, flag), value)
        for name, flag in _flags()
        for other, value in [*((o, "") for o in flag.also), *flag.means.items()]
    ]
    known = ", ".join(f"{other} = {' '.join((ours, value)).strip()}" for other, ours, value in pairs)
    paragraphs = (
        "Each flag is also a variable, such as WEBUI_PORT=7861 or WEBUI_LISTEN=1, and a key of webui.toml, "
        "such as port = 7861. A variable with several values separates them by a comma (WEBUI_ALLOW_HOST), "
        f"'{os.pathsep}' (WEBUI_MODELS_DIR) or a new line (WEBUI_AUTH). A flag wins over a variable, a "
        "variable over the file.",
        f"AUTOMATIC1111's flags that mean the same are understood: {known}.",
    )
    return "\n\n".join(_fill(text) for text in paragraphs)


def _fill(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message.removeprefix("argument "))

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        known, unknown = self.parse_known_args(arguments)
        if unknown:
            close = difflib.get_close_matches(unknown[0], self._option_string_actions, 1)
            hint = f"Did you mean {close[0]}?" if close else "--help lists those there are."
            raise SettingsError(f"There is no flag {unknown[0].partition('=')[0]}. {hint}")
        return known


ACTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (  # flags that are no settings
    (
        ENTERING,
        "--hash-password",
        {"action": "store_true", "help": "Ask for a password, print a line for --auth-file, and stop."},
    ),
    (
        FILES,
        "--config",
        {"metavar": "FILE", "help": "A settings file. Default: webui.toml in the data folder."},
    ),
    (
        FILES,
        "--list-extensions",
        {"action": "store_true", "help": "Print what is known of each plugin, and stop."},
    ),
    (
        OTHER,
        "--version",
        {"action": "version", "version": __version__, "help": "Print the version and stop."},
    ),
    (OTHER, "--help", {"action": "help", "help": "Print this and stop."}),
)


def _parser() -> _Parser:
    parser = _Parser(
        prog="python app.py",
        usage="python app.py [flags]",
        description=_fill(
            "A browser studio for Stable Diffusion. Without flags it answers only this computer, at "
            f"http://127.0.0.1:{DEFAULT_PORT}, with the small model that comes along."
        ),
        epilog=_epilog(),
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=28, width=WIDTH),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for name, flag in _flags():
        _add(groups[flag.group], name, flag)
    for title, name, options in ACTIONS:
        groups[title].add_argument(name, **options)
    return parser


def _add(group: argparse._ArgumentGroup, name: str, flag: Flag) -> None:
    """One setting as a flag; every value stays text for pydantic to check."""
    info = Settings.model_fields[name]
    choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else None
    repeated = get_origin(info.annotation) is tuple
    if info.annotation is bool:
        group.add_argument(_spelling(name, flag), dest=name, action="store_true", help=flag.help)
    else:
        _add_value(group, name, flag, choices, repeated)
    for other, value in flag.means.items():
        group.add_argument(other, dest=name, action="store_const", const=value, help=argparse.SUPPRESS)


def _add_value(
    group: argparse._ArgumentGroup, name: str, flag: Flag, choices: tuple[Any, ...] | None, repeated: bool
) -> None:
    info = Settings.model_fields[name]
    default = info.default if isinstance(info.default, str | int | float) and info.default != "" else None
    group.add_argument(
        _spelling(name, flag),
        dest=name,
        action="append" if repeated else "store",
        metavar=flag.shown or "{" + ",".join(choices or ()) + "}",
        help=flag.help if default is None or name == "port" else f"{flag.help} Default: {default}.",
    )
    for other, convert in flag.also.items():
        action = "extend" if repeated else "store"
        group.add_argument(other, dest=name, action=action, type=convert, help=argparse.SUPPRESS)
