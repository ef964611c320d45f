"""Starting and stopping the programs that are measured, and printing ratios."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    **os.environ,
    "OMP_WAIT_POLICY": "PASSIVE",
    "MKL_CBWR": "AUTO",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_served(url: str, process: subprocess.Popen[bytes], patience: float = 120) -> float:
    """Seconds from now until ``url`` answers 200."""
    start = time.perf_counter()
    while time.perf_counter() - start < patience:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=patience) as answer:
                if answer.status == 200:
                    return time.perf_counter() - start
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.005)
    raise SystemExit(f"{url} did not answer in {patience} s")


@contextmanager
def serving(command: Sequence[str], port: int, path: str = "/") -> Iterator[float]:
    """Run a server until the block ends; gives the seconds it took until the page was served."""
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    try:
        yield wait_until_served(f"http://127.0.0.1:{port}{path}", process)
    finally:
        process.terminate()
        process.wait(30)


def alternating(makers: Mapping[str, Callable[[int], None]], runs: int) -> dict[str, list[float]]:
    """Seconds of each maker, called in turns with the number of the turn; two turns to warm up first."""
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for run in range(-2, runs):
        for name, make in makers.items():
            start = time.perf_counter()
            make(run + 2)
            if run >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def table(name: str, baseline: str, seconds: dict[str, list[float]]) -> None:
    """Print the medians and, run by run, the ratio to the baseline."""
    print(f"\n{name}\n")
    print("| what | median s | min | max | ratio |\n|---|---|---|---|---|")
    for what, runs in seconds.items():
        ratio = median(a / b for a, b in zip(runs, seconds[baseline], strict=True))
        print(f"| {what} | {median(runs):.3f} | {min(runs):.3f} | {max(runs):.3f} | {ratio:.3f} |")
