"""The house keeps its shape: imports point down, and torch and gradio stay in their rooms."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A room imports only from rooms of lines above its own; rooms on one line do not import each other.
HOUSE = """
webui
webui.errors webui.a1111 webui.units
webui.request webui.settings
webui.infotext webui.images webui.filenames webui.jobs webui.prompt_syntax webui.accounts webui.flags
webui.preprocess
webui.sources webui.masks webui.strokes webui.residency webui.speeds webui.hub_offer webui.hub_process
webui.flight
webui.hub
webui.catalogue
webui.catalogue.auto
webui.catalogue.found
webui.catalogue.headers webui.catalogue.store webui.catalogue.walking
webui.catalogue.pickles webui.catalogue.relatives webui.catalogue.hashes webui.catalogue.notes
webui.catalogue.identify
webui.catalogue.folders
webui.catalogue.wholes
webui.catalogue.shelves
webui.library
webui.illustrated
webui.illustrated.checks webui.illustrated.colours webui.illustrated.script
webui.illustrated.reading webui.illustrated.words webui.illustrated.times webui.illustrated.arrays
webui.illustrated.path webui.illustrated.guidance webui.illustrated.bands
webui.diffusion
webui.diffusion.tiers webui.diffusion.dialects webui.diffusion.ahead
webui.diffusion.lycoris webui.diffusion.layers
webui.diffusion.devices webui.diffusion.schedulers webui.diffusion.preview webui.diffusion.memo
webui.diffusion.lineage webui.diffusion.ip_adapters webui.diffusion.inversion
webui.grid
webui.grid.values webui.grid.measures webui.grid.lettering
webui.grid.axes
webui.hookspecs
webui.plugins
webui.plugins.manifest webui.plugins.schema
webui.plugins.loading
webui.plugins.host
webui.plugins.axes webui.plugins.facts
webui.grid.plan
webui.grid.results
webui.grid.sheet webui.grid.page
webui.diffusion.checkpoints webui.diffusion.prompts webui.diffusion.noise webui.diffusion.identity
webui.diffusion.additions
webui.diffusion.towers webui.diffusion.denoiser webui.diffusion.pipelines
webui.diffusion.families
webui.diffusion.model
webui.diffusion.codec webui.diffusion.single_parts webui.diffusion.landing
webui.diffusion.loading webui.diffusion.offload
webui.diffusion.laying
webui.diffusion.store webui.diffusion.planning
webui.diffusion.manager webui.diffusion.references
webui.diffusion.survival webui.diffusion.plugged webui.diffusion.adapters
webui.diffusion.vaes webui.diffusion.taesd
webui.diffusion.control_nets
webui.diffusion.controls
webui.diffusion.attention
webui.diffusion.recorder
webui.diffusion.passes
webui.diffusion.auto
webui.diffusion.generate
webui.flights
webui.saving webui.executor
webui.worker
webui.engine
webui.guard webui.streams
webui.routes
webui.ui
webui.server
app
"""
LEVEL = {room: level for level, line in enumerate(HOUSE.split("\n")) for room in line.split()}
FILES = [ROOT / "app.py", *sorted((ROOT / "webui").rglob("*.py"))]


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(name: str) -> str:
    """The line of the house a module belongs to: ui/ is one room, whatever files it has."""
    while name not in LEVEL:
        name, dot, _ = name.rpartition(".")
        assert dot, f"{name} has no place in the house"
    return name


def imports(path: Path) -> set[str]:
    """Every module a file imports anywhere, also inside functions and for types only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide where the arrow points"
            assert node.module
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if is_module(n) else node.module for n in names}
    return found


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_point_down(path):
    here = room(module(path))
    for name in imports(path):
        if name.split(".")[0] in ("webui", "app"):
            there = room(name)
            allowed = LEVEL[there] < LEVEL[here] or there == here
            assert allowed, f"{module(path)} imports {name}, which is not above it"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_torch_and_gradio_stay_in_their_rooms(path):
    packages = {name.split(".")[0] for name in imports(path)}
    here = module(path)
    if not here.startswith("webui.diffusion") and here != "webui.hookspecs":  # which names torch's types
        assert not packages & {"torch", "diffusers", "transformers", "accelerate"}
    if not here.startswith(("webui.ui", "webui.server")):
        assert "gradio" not in packages


def test_a_page_never_sees_the_diffusion_rooms():
    for path in (ROOT / "webui/ui").rglob("*.py"):
        assert not [name for name in imports(path) if name.startswith("webui.diffusion")]


def test_nothing_a_page_needs_imports_torch():
    code = "import sys, app, webui.engine, webui.ui.page, webui.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_no_module_outgrows_a_sitting():
    lines = {module(path): sum(map(bool, path.read_text().splitlines())) for path in FILES}
    assert {name: count for name, count in lines.items() if count > 400} == {}
