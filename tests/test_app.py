"""``python app.py`` as a person runs it: from the first line it prints to how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT

# As a person's shell: what the tests set for themselves, the program must see to itself.
PRIVATE = ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE")
QUICK = {name: value for name, value in os.environ.items() if name not in PRIVATE}


def run(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "app.py", *flags]
    return subprocess.run(
        command, cwd=ROOT, env={**QUICK, **variables}, capture_output=True, text=True, timeout=60, check=False
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(command: list[str], **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that has said where it answers."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**QUICK, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Open http://"), process.stderr and process.stderr.read()
        yield process, line.removeprefix("Open ").strip()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_at_once_and_a_signal_ends_it_cleanly(tmp_path, number):
    with started(["app.py", "--port", str(free_port()), "--data-dir", str(tmp_path)]) as (process, address):
        with urllib.request.urlopen(address, timeout=30) as page:
            assert page.status == 200
        stream = urllib.request.urlopen(f"{address}/gradio_api/heartbeat/abc", timeout=30)  # stays open
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        stream.close()
        assert (process.returncode, out, err) == (0, "", "")


def post(address: str, **body: object) -> None:
    data, kind = json.dumps(body).encode(), {"content-type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(address, data, kind), timeout=30).close()


def test_a_signal_in_the_middle_of_a_picture_ends_it_cleanly_too(tmp_path):
    with started(["app.py", "--port", str(free_port()), "--data-dir", str(tmp_path)]) as (process, address):
        config = json.load(urllib.request.urlopen(f"{address}/config", timeout=30))
        parts = {part["id"]: part["props"] for part in config["components"]}
        [generate] = (f for f in config["dependencies"] if f["api_name"] == "generate")
        fields = [parts[number] for number in generate["inputs"]]
        values = [500 if field.get("label") == "Steps" else field.get("value") for field in fields]
        api = f"{address}/gradio_api/queue"
        post(f"{api}/join", fn_index=generate["id"], data=values, session_hash="abc")
        with urllib.request.urlopen(f"{api}/data?session_hash=abc", timeout=60) as events:
            assert any(b"of 500" in line for line in events)  # it counts its steps
            process.terminate()
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")
        assert not [*tmp_path.rglob("*.png")]  # nothing half made


def test_variables_say_the_same_as_flags(tmp_path):
    port = free_port()
    variables = {"WEBUI_PORT": str(port), "WEBUI_DATA_DIR": str(tmp_path)}
    with started(["app.py"], **variables) as (_, address):
        assert address == f"http://127.0.0.1:{port}"
        assert (tmp_path / "outputs").is_dir()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--listen"], "--open"),
        (["--port", "0"], "--port"),
        (["--dtype", "float8"], "--dtype"),
        (["--nonsense"], "--nonsense"),
        (["--auth", "secretword"], "--auth: must look like USER:PASSWORD"),
        (["--filename-pattern", "[nothing]"], "[nothing]"),
    ],
)
def test_a_wrong_setting_is_answered_in_words_with_status_2(tmp_path, flags, said):
    done = run("--data-dir", str(tmp_path), *flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "secretword" not in done.stderr


def test_a_device_that_is_not_there_is_said_on_the_page_and_in_the_log(tmp_path):
    flags = ["app.py", "--port", str(free_port()), "--data-dir", str(tmp_path), "--device", "xpu:7"]
    with started(flags) as (process, address):
        assert process.stderr is not None
        while "this machine has" not in (line := process.stderr.readline()):
            assert line, "it ended without a word"
        status = json.load(urllib.request.urlopen(f"{address}/healthz", timeout=30))
        assert status["ready"] is False
        assert "--device xpu:7: this machine has cpu" in status["message"]


def test_help_and_version_are_there_and_quick_of_tongue():
    done = run("--help")
    assert done.returncode == 0
    for flag in ("--listen", "--data-dir", "--dtype", "--auth-file", "--open"):
        assert flag in done.stdout
    assert run("--version").stdout.strip()


def test_the_plugins_are_listed_as_the_page_has_them(tmp_path):
    shaky = tmp_path / "plugins" / "shaky"
    shaky.mkdir(parents=True)
    (shaky / "plugin.toml").write_text('id = "shaky"\nversion = "1"\napi = "1"\ndescription = "Shakes."')
    (shaky / "plugin.py").write_text(
        "from webui.hookspecs import Tab, hookimpl\n@hookimpl\ndef tab(): return Tab('Shaky', lambda: 1 / 0)"
    )
    flags = ["--list-extensions", "--data-dir", str(tmp_path), "--plugins-dir", str(shaky.parent)]
    done = run(*flags)
    assert done.returncode == 0
    for part in ("shaky 1", "Disabled: ", "ZeroDivisionError", "Shakes.", "Hooks: tab", "Loaded in: "):
        assert part in done.stdout
    safe = run(*flags, "--no-extensions")
    assert (safe.returncode, safe.stderr) == (0, "")
    assert safe.stdout.startswith("Safe mode: ")
    assert "shaky" not in safe.stdout


WATCHED = """
    import runpy, sys
    def watch(event, arguments):
        if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect"):
            where = arguments[1] if event == "socket.connect" else arguments[0]
            host = where[0] if isinstance(where, tuple) else where
            if str(host) not in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "None", ""):
                print("ASKED", event, where, file=sys.stderr, flush=True)
    sys.addaudithook(watch)
    sys.argv = ["app.py", *sys.argv[1:]]
    runpy.run_path("app.py", run_name="__main__")
"""


def test_no_other_host_is_asked_for_anything(tmp_path: Path):
    script = tmp_path / "watched.py"
    script.write_text(textwrap.dedent(WATCHED))
    flags = [str(script), "--port", str(free_port()), "--data-dir", str(tmp_path / "data")]
    with started(flags, PYTHONPATH=str(ROOT)) as (process, address):
        urllib.request.urlopen(address, timeout=30).close()
        while not json.load(urllib.request.urlopen(f"{address}/healthz", timeout=30))["ready"]:
            assert process.poll() is None
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert "ASKED" not in err
