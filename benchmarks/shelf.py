"""The page over a thousand files: how long it takes to open, to list them, to search, sort and scroll.

    python benchmarks/shelf.py [--files 1000] [--runs 5]

The files have the headers of published models and LoRAs; their weights are holes. Figures are seconds in
headless Chromium, each run with a page of its own; the first run, and it alone, reads the headers.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import ROOT, free_port, serving

FLAGS = ["--no-sandbox", "--disable-gpu"]
LORAS = 8  # one in so many files is a checkpoint

# What a page does, and the seconds until the browser has drawn what came of it.
TIMED = """async ([part, value]) => {
    const drawn = () => new Promise((on) => requestAnimationFrame(() => setTimeout(on)));
    const field = document.querySelector(`#models-shelf [data-part="${part}"]`);
    const begun = performance.now();
    if (field) {
        field.value = value;
        field.dispatchEvent(new Event("input"));
        await drawn();
    }
    for (let i = 1; i <= 20 && !field; i++) {
        window.scrollTo(0, document.body.scrollHeight * i / 20);
        await drawn();
    }
    return (performance.now() - begun) / 1000;
}"""


def stock(folder: Path, count: int) -> None:
    """So many files: checkpoints of 1.x and XL, else LoRAs of 192 layers, in ten folders each."""
    sys.path.insert(0, str(ROOT))
    from tests import layouts

    places = itertools.product(range(4), range(6), (1, 2), "qkvo", (("down", (8, 768)), ("up", (768, 8))))
    block_name = "lora_unet_down_blocks_{}_attentions_0_transformer_blocks_{}"
    shapes = {
        f"{block_name.format(block, depth)}_attn{attn}_to_{part}.lora_{way}.weight": size
        for block, depth, attn, part, (way, size) in places
    }
    told = {"ss_base_model_version": "sd_v1", "ss_tag_frequency": '{"a": {"ink": 9, "brush": 7}}'}
    loras, sd1, sdxl = (
        layouts.header(shapes, **told),
        *map(layouts.header, map(layouts.whole, ("sd1", "sdxl"))),
    )
    for i in range(count):
        title = f"Lora/{i % 10}/style-{i}" if i % LORAS else f"Stable-diffusion/{i % 10}/model-{i}"
        header = loras if i % LORAS else (sd1, sdxl)[i // LORAS % 2]
        layouts.write(folder / f"{title}.safetensors", header)


def visit(browser: Any, address: str, count: int) -> dict[str, float]:
    """One person's visit, in seconds of each thing."""
    page = browser.new_page(viewport={"width": 1366, "height": 900})
    page.set_default_timeout(120_000)
    took, begun = {}, time.perf_counter()
    page.goto(address)
    page.get_by_text("Ready on cpu").wait_for()
    took["the page is ready"] = time.perf_counter() - begun
    begun = time.perf_counter()
    page.get_by_role("tab", name="Models", exact=True).click()
    page.wait_for_function(f"document.querySelectorAll('#models-shelf li').length >= {count}")
    took["the tab lists all"] = time.perf_counter() - begun
    page.wait_for_timeout(500)
    begun = time.perf_counter()
    page.locator("#models-shelf [data-do=refresh]").click()
    page.wait_for_function("!document.querySelector('#models-shelf [data-do=refresh]').disabled")
    took["refreshed"] = time.perf_counter() - begun
    took["searched"] = page.evaluate(TIMED, ["search", "style-9"])
    took["all shown again"] = page.evaluate(TIMED, ["search", ""])
    took["sorted by name"] = page.evaluate(TIMED, ["sort", "name"])
    took["scrolled in 20 steps"] = page.evaluate(TIMED, ["", ""])
    page.close()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        models = Path(temporary) / "models"
        stock(models, given.files)
        port = free_port()
        command = ["app.py", "--port", str(port), "--device", "cpu", "--log-level", "error"]
        folders = ["--models-dir", str(models), "--data-dir", temporary]
        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        with serving([*command, *folders], port) as served:
            print(f"served after {served:.2f} s")
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
            visits = [visit(browser, f"http://127.0.0.1:{port}", given.files) for _ in range(given.runs)]
            browser.close()
    print("\n| what | first s | median s after |\n|---|---|---|")
    for what in visits[0]:
        print(f"| {what} | {visits[0][what]:.2f} | {median(each[what] for each in visits[1:]):.3f} |")


if __name__ == "__main__":
    main()
