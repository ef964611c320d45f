"""The front door: settings -> plugins -> engine -> page -> server.

Run it with ``python app.py``; ``--help`` lists its flags. On a Hugging Face Space it runs unchanged.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from webui import flags
from webui.accounts import ask_for_line
from webui.errors import SettingsError
from webui.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from webui.engine import Engine


def main(arguments: list[str]) -> int:
    """Serve until stopped; return the exit status: 0 when stopped, 2 when a setting is wrong."""
    for number in (signal.SIGINT, signal.SIGTERM):  # until the server takes over
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        if "--hash-password" in arguments:
            print(ask_for_line())
        elif "--list-extensions" in arguments:
            print(listing(flags.load(arguments)))
        else:
            run(flags.load(arguments))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(settings: Settings) -> None:
    """Answer until stopped. Imports late: a wrong flag is answered at once, and Gradio reads the environment
    as it is imported."""
    from webui import server

    listening = server.listen(settings)
    engine, app = build(settings)
    server.serve(app, settings, engine, listening, functools.partial(print, flush=True))


def listing(settings: Settings) -> str:
    """What is known of the plugins once everything is built: some only fail then."""
    from webui.plugins import facts

    engine, _ = build(settings)
    return facts.listing(engine.plugins, settings.no_extensions)


def build(settings: Settings) -> tuple[Engine, FastAPI]:
    """Every room."""
    from webui import server

    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    server.silence(settings)

    from webui.engine import Engine
    from webui.library import Library
    from webui.plugins.host import Host
    from webui.ui import page

    plugins = Host(settings.data_dir, settings.plugin_folders)
    engine = Engine(settings, Library(settings.data_dir, settings.filename_pattern), plugins)
    demo, options = page.build(engine, settings)
    return engine, server.build_app(settings, engine, demo, options)


def leave(status: int) -> None:
    """End the process. A worker still within torch would be stopped there by Python, which then aborts."""
    if any(thread.name == "worker" for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
