"""From `python app.py` to a served page, over a bare one-button Gradio app. Alternating runs.

python benchmarks/startup.py [RUNS]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from common import free_port, serving, table

BARE = """
import sys, gradio as gr
with gr.Blocks() as demo:
    gr.Button("Go").click(lambda: None)
demo.launch(server_port=int(sys.argv[1]), quiet=True)
"""


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    seconds: dict[str, list[float]] = {"bare Gradio": [], "app.py": []}
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        for run in range(runs + 1):
            port = free_port()
            with serving([str(bare), str(port)], port) as plain:
                pass
            port = free_port()
            with serving(["app.py", "--port", str(port), "--data-dir", folder], port) as ours:
                pass
            if run:  # the first round warms the disk cache
                seconds["bare Gradio"].append(plain)
                seconds["app.py"].append(ours)
    table(f"Start to served page, {runs} alternating runs", "bare Gradio", seconds)


if __name__ == "__main__":
    main()
