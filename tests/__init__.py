"""How the tests run, before torch, diffusers and gradio are imported.

One thread (tests share the machine), no network, and no xformers, as the program itself runs on a CPU.
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_CBWR", "AUTO")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"
sys.modules.setdefault("xformers", None)  # type: ignore[arg-type]
