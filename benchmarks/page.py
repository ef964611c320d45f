"""From an address to a page that can be used, over a bare one-button Gradio app. Alternating turns.

Chromium, each time as somebody new: nothing is in its cache. "busy" is what its main thread computes, until a
second after.

python benchmarks/page.py [TURNS]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from common import free_port, serving, table
from playwright.sync_api import Browser, sync_playwright
from startup import BARE

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SETTLES = 1000  # ms


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    usable: dict[str, list[float]] = {"bare Gradio": [], "app.py": []}
    busy: dict[str, list[float]] = {name: [] for name in usable}
    ports = {name: free_port() for name in usable}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        app = ["app.py", "--port", str(ports["app.py"]), "--data-dir", folder]
        with (
            serving([str(bare), str(ports["bare Gradio"])], ports["bare Gradio"]),
            serving(app, ports["app.py"]),
        ):
            path = next(filter(None, map(shutil.which, BROWSERS)))
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
            for turn in range(-1, turns):  # the first is for the servers, and for the model to be there
                for name, sign in {"bare Gradio": "Go", "app.py": "Ready on"}.items():
                    seconds = opened(browser, f"http://127.0.0.1:{ports[name]}", sign)
                    if turn >= 0:
                        usable[name].append(seconds[0])
                        busy[name].append(seconds[1])
            browser.close()
    table(f"Opening the page until it can be used, {turns} alternating turns", "bare Gradio", usable)
    table("The browser's main thread meanwhile", "bare Gradio", busy)


def opened(browser: Browser, address: str, sign: str) -> tuple[float, float]:
    """Seconds until the page says ``sign``, and seconds that its main thread was busy."""
    context = browser.new_context(viewport={"width": 1366, "height": 900})
    page = context.new_page()
    tools = context.new_cdp_session(page)
    tools.send("Performance.enable")
    start = time.perf_counter()
    page.goto(address)
    page.get_by_text(sign).wait_for(timeout=120_000)
    seconds = time.perf_counter() - start
    page.wait_for_timeout(SETTLES)
    told = {metric["name"]: metric["value"] for metric in tools.send("Performance.getMetrics")["metrics"]}
    context.close()
    return seconds, told["TaskDuration"]


if __name__ == "__main__":
    main()
