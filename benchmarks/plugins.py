"""What plugins cost that are there and have nothing to do: all bundled ones at neutral settings.

python benchmarks/plugins.py [RUNS]
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import ENVIRONMENT, ROOT, alternating, table

sys.path.insert(0, str(ROOT))


def through_engine(folder: Path, plugins: list[Path]) -> Callable[[int], None]:
    from webui.engine import Engine
    from webui.library import Library
    from webui.plugins.host import Host
    from webui.request import Delivery, GenerationRequest
    from webui.settings import Settings

    settings = Settings(data_dir=folder, models_dir=[ROOT / "models"], device="cpu", dtype="float32")
    host = Host(settings.data_dir, plugins)
    assert all(plugin.on for plugin in host.plugins)
    print(f"{len(host.plugins)} plugins: {', '.join(plugin.id for plugin in host.plugins) or 'none'}")
    engine = Engine(settings, Library(settings.data_dir, settings.filename_pattern), host)
    engine.start()

    def picture(seed: int) -> None:
        request = GenerationRequest(
            prompt="a fox on a blue background", guidance_scale=4.0, width=128, height=128, seed=seed
        )
        view = engine.submit([request], "benchmark", Delivery(preview_every=0)).wait()
        assert view.state == "done", view.error

    picture(0)  # ready: diffusers cannot be imported in two threads at once
    return picture


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as folder:
        makers = {
            "no plugins": through_engine(Path(folder) / "none", []),
            "all bundled plugins, neutral": through_engine(Path(folder) / "all", [ROOT / "extensions"]),
        }
        seconds = alternating(makers, runs)
    table(f"One picture, 128 px, 20 steps, float32, {runs} alternating runs", "no plugins", seconds)


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    main()
