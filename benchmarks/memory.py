"""Resident memory over many pictures in a row: it must stay flat. Prints the curve.

python benchmarks/memory.py [PICTURES]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from common import ROOT

sys.path.insert(0, str(ROOT))


def resident() -> float:
    """MiB of this process in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    from webui.engine import Engine
    from webui.library import Library
    from webui.request import GenerationRequest
    from webui.settings import Settings

    pictures = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), models_dir=[ROOT / "models"], device="cpu")
        engine = Engine(settings, Library(settings.data_dir, settings.filename_pattern))
        engine.start()
        print("| pictures | MiB |\n|---|---|")
        for count in range(1, pictures + 1):
            request = GenerationRequest(
                prompt=f"a fox number {count}", width=128, height=128, num_inference_steps=8
            )
            assert engine.submit([request], "benchmark").wait().state == "done"
            if count == 1 or count % (pictures // 20) == 0:
                print(f"| {count} | {resident():.1f} |", flush=True)
        engine.close()


if __name__ == "__main__":
    main()
