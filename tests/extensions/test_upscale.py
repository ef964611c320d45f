"""Upscale: tiles that are as the whole, sizes that are refused, files that are read as what they are."""

import importlib
import importlib.machinery
import pickle
import sys
import types
from itertools import pairwise
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch.nn import functional

from tests.conftest import ROOT, pixels, request_for
from webui.errors import Cancelled, InvalidField, ModelError, NotANumber
from webui.images import read_infotext
from webui.plugins.host import Host

PLUGIN = "upscale"


def noise(width, height, seed=0):
    """A picture in which every pixel counts."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def nothing():
    pass


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """The plugin's own, by name."""
    host = Host(tmp_path_factory.mktemp("data"), [ROOT / "extensions"])
    assert host[PLUGIN].on, host[PLUGIN].trace

    class Modules:
        def __getattr__(self, name):
            return importlib.import_module(f"webui_plugins.upscale.{name}")

    return Modules()


# -- tiles -------------------------------------------------------------------------------------------


class Seer:
    """A random network that looks ``reach`` pixels far, and notes what it was given."""

    def __init__(self, reach, scale=2):
        self.scale, self.sizes = scale, []
        generator = torch.Generator().manual_seed(0)
        self.layers = [torch.randn(3, 3, 3, 3, generator=generator) / 3 for _ in range(reach - 1)]
        self.last = torch.randn(3 * scale * scale, 3, 3, 3, generator=generator) / 3

    def __call__(self, image):
        self.sizes.append(image.size)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double() / 255
        for layer in self.layers:
            x = torch.tanh(functional.conv2d(x, layer.double(), padding=1))
        x = functional.pixel_shuffle(
            functional.conv2d(x, self.last.double(), padding=1), self.scale
        ).sigmoid()
        return Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy())


SIZES = [(600, 300), (257, 256), (256, 600), (900, 513), (40, 30), (1, 1000)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_picture_in_tiles_is_that_of_the_whole(modules, size, scale):
    image = noise(*size)

    def nearest(tile):
        return tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)

    larger = modules.tiles.finish(modules.tiles.enlarged(image, scale, nearest), nothing)
    assert np.array_equal(np.asarray(larger), np.asarray(nearest(image)))


def test_it_is_also_while_the_network_looks_no_further_than_the_margin(modules):
    tiles, image = modules.tiles, noise(600, 300)
    net = Seer(tiles.MARGIN)
    whole = np.asarray(net(image)).astype(int)
    assert whole.std() > 20, "there is something to see"

    def off_by(margin):
        larger = tiles.finish(tiles.enlarged(image, 2, net, margin), nothing)
        return np.abs(np.asarray(larger).astype(int) - whole)

    assert off_by(tiles.MARGIN).max() <= 1  # of 255, where a rounding falls the other way
    assert off_by(tiles.MARGIN).mean() < 0.001
    assert off_by(0).max() > 10, "without a margin the seams are seen"


def test_the_network_never_sees_more_than_a_tile(modules):
    net = Seer(2)
    modules.tiles.finish(modules.tiles.enlarged(noise(1000, 700), 2, net), nothing)
    assert set(net.sizes) == {(256, 256)}
    assert len(net.sizes) == len(modules.tiles.starts(1000)) * len(modules.tiles.starts(700)) == 5 * 4


@pytest.mark.parametrize("length", [1, 255, 256, 257, 448, 449, 1000, 5000])
def test_tiles_cover_a_side_and_overlap_enough(modules, length):
    tiles = modules.tiles
    starts = tiles.starts(length)
    assert starts[0] == 0
    assert starts[-1] + tiles.TILE >= length
    for one, other in pairwise(starts):
        assert one + tiles.TILE - other >= 2 * tiles.MARGIN + tiles.BLEND


def test_it_stops_between_two_tiles(modules):
    net = Seer(2)

    def check():
        if len(net.sizes) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        modules.tiles.finish(modules.tiles.enlarged(noise(1000, 700), 2, net), check)
    assert len(net.sizes) == 3


def test_what_is_done_grows_to_all_of_it(modules):
    net = Seer(2)
    shares = list(modules.tiles.enlarged(noise(600, 300), 2, net))
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) == len(net.sizes)


# -- networks ----------------------------------------------------------------------------------------


def stand_in():
    """What of spandrel is used, over one convolution and a pixel shuffle: so that CI needs no spandrel."""
    module = types.ModuleType("spandrel")
    module.__spec__ = importlib.machinery.ModuleSpec("spandrel", None)

    class UnsupportedModelError(Exception):
        pass

    class ImageModelDescriptor:
        input_channels = output_channels = 3
        tiling = "supported"

        def __init__(self, weight):
            self.weight, self.scale = weight, int((weight.shape[0] / 3) ** 0.5)

        def to(self, device):
            self.weight = self.weight.to(device)
            return self

        def eval(self):
            return self

        def __call__(self, x):
            return functional.pixel_shuffle(functional.conv2d(x, self.weight, padding=1), self.scale)

    class ModelLoader:
        def load_from_state_dict(self, state):
            if set(state) != {"weight"}:
                raise UnsupportedModelError
            return ImageModelDescriptor(state["weight"])

    module.UnsupportedModelError, module.ImageModelDescriptor = UnsupportedModelError, ImageModelDescriptor
    module.ModelLoader, module.ModelTiling = ModelLoader, types.SimpleNamespace(SUPPORTED="supported")
    return module


def nearest_weight(scale):
    """Of a convolution whose shuffled output is each pixel, ``scale`` x ``scale`` times."""
    weight = torch.zeros(3 * scale * scale, 3, 3, 3)
    for channel in range(3):
        weight[channel * scale * scale : (channel + 1) * scale * scale, channel, 1, 1] = 1
    return weight


@pytest.fixture
def esrgan(tmp_path, monkeypatch):
    """A data folder with a network of scale 2 and a stand-in for spandrel."""
    monkeypatch.setitem(sys.modules, "spandrel", stand_in())
    folder = tmp_path / "models" / "ESRGAN"
    folder.mkdir(parents=True)
    save_file({"weight": nearest_weight(2)}, folder / "nearest x2.safetensors")
    return tmp_path


@pytest.fixture
def ways(modules, esrgan):
    """Of that folder, by name."""
    return modules.ways.ways(esrgan, modules.nets.Nets())


def test_networks_are_offered_only_with_spandrel(modules, esrgan, monkeypatch):
    assert list(modules.ways.ways(esrgan, modules.nets.Nets())) == [
        "Lanczos",
        "Lanczos, sharpened",
        "nearest x2",
    ]
    monkeypatch.setattr(modules.nets, "installed", lambda: False)
    assert list(modules.ways.ways(esrgan, modules.nets.Nets())) == ["Lanczos", "Lanczos, sharpened"]


def test_no_name_of_the_program_s_own_is_taken(modules, esrgan):
    for name in ("Latent", "Lanczos", "Bicubic", "Lanczos, sharpened"):
        save_file({"weight": nearest_weight(2)}, esrgan / "models" / "ESRGAN" / f"{name}.safetensors")
    found = modules.ways.ways(esrgan, modules.nets.Nets())
    assert list(found) == ["Lanczos", "Lanczos, sharpened", "nearest x2"]
    assert found["Lanczos"].path is None
    host = Host(esrgan, [ROOT / "extensions"])
    assert host[PLUGIN].on
    assert set(host.upscalers) == {"Lanczos, sharpened", "nearest x2"}


@pytest.mark.parametrize(
    ("factor", "passes"), [(1, 1), (1.5, 1), (2, 1), (2.5, 2), (4, 2), (8, 3)], ids=lambda value: f"{value}"
)
def test_a_network_runs_as_often_as_it_takes(ways, factor, passes):
    image = noise(40, 24)
    size = round(40 * factor), round(24 * factor)
    work = ways["nearest x2"].work(image, size)
    shares = []
    try:
        while True:
            shares.append(next(work))
    except StopIteration as end:
        larger = end.value
    assert larger.size == size
    assert len(shares) == passes
    nearest, lanczos = Image.Resampling.NEAREST, Image.Resampling.LANCZOS
    expected = image.resize(size, nearest)
    if factor < 2:
        expected = image.resize((80, 48), nearest).resize(size, lanczos)
    if factor == 2.5:  # the second pass makes what is wanted, and not more
        expected = image.resize((80, 48), nearest).resize((50, 30), lanczos).resize(size, nearest)
    assert np.array_equal(np.asarray(larger), np.asarray(expected))


def test_a_network_in_tiles_makes_what_it_makes_of_the_whole(modules, esrgan):
    torch.manual_seed(0)
    path = esrgan / "models" / "ESRGAN" / "random.safetensors"
    save_file({"weight": torch.rand(12, 3, 3, 3) / 12}, path)
    loader = modules.nets.Nets()
    image = noise(500, 300)
    larger = modules.tiles.finish(loader.work(path, image, (1000, 600)), nothing)
    whole = modules.nets.picture(loader._last.descriptor(modules.nets.tensor(image, "cpu")))
    assert np.abs(np.asarray(larger).astype(int) - np.asarray(whole)).max() <= 1


def test_the_real_spandrel_reads_an_esrgan_of_its_own(modules, tmp_path):
    spandrel = pytest.importorskip("spandrel", exc_type=Exception)
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(1)
    net = ESRGAN(num_filters=8, num_blocks=1, scale=2)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    path = tmp_path / "tiny.safetensors"
    save_file(net.state_dict(), path)
    image = noise(400, 300)
    loader = modules.nets.Nets()
    larger = modules.tiles.finish(loader.work(path, image, (800, 600)), nothing)
    with torch.inference_mode():
        whole = modules.nets.picture(net.eval()(modules.nets.tensor(image, "cpu")))
    assert isinstance(loader._last.descriptor, spandrel.ImageModelDescriptor)
    assert np.asarray(whole).std() > 5, "there is something to see"
    assert np.abs(np.asarray(larger).astype(int) - np.asarray(whole)).max() <= 1


def test_only_safetensors_are_looked_at_and_a_pickle_is_never_run(modules, esrgan):
    folder, sign = esrgan / "models" / "ESRGAN", esrgan / "run"

    class Evil:
        def __reduce__(self):
            return Path.touch, (sign,)

    for name in ("a.pth", "b.pt", "c.ckpt", "d.bin", "e.safetensors"):
        (folder / name).write_bytes(pickle.dumps(Evil()))
    (folder / "folder.safetensors").mkdir()
    (folder / "odd\nname.safetensors").write_bytes(b"")
    assert list(modules.nets.find(esrgan)) == ["e", "nearest x2"]
    with pytest.raises(ModelError, match=r"^e is damaged, or no .safetensors file"):
        modules.nets.load(folder / "e.safetensors", "cpu")
    assert not sign.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"<html>", "damaged"),
        (b"\xff" * 8 + b"{}", "damaged"),
        ({"other": torch.zeros(1)}, "no network that spandrel knows"),
    ],
)
def test_a_file_that_is_no_network_is_named(modules, esrgan, content, message):
    path = esrgan / "models" / "ESRGAN" / "bad.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file(content, path)
    with pytest.raises(ModelError, match=f"^bad .*{message}"):
        modules.nets.load(path, "cpu")


def test_a_network_that_computes_no_numbers_makes_no_picture(modules, esrgan):
    path = esrgan / "models" / "ESRGAN" / "nan.safetensors"
    save_file({"weight": nearest_weight(2) * float("nan")}, path)
    with pytest.raises(NotANumber):
        modules.tiles.finish(modules.nets.Nets().work(path, noise(8, 8), (16, 16)), nothing)


def test_a_spandrel_that_cannot_be_imported_is_told_with_the_way_out(modules, esrgan, monkeypatch):
    """As it is beside a torchvision that belongs to another torch."""
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ModelError, match=r"pip install spandrel==[0-9.]+ torchvision=="):
        modules.nets.load(esrgan / "models" / "ESRGAN" / "nearest x2.safetensors", "cpu")


# -- sizes -------------------------------------------------------------------------------------------


def test_a_picture_too_large_is_refused_with_the_numbers_before_work_begins(plugged_engine, modules, ways):
    request = request_for(width=2048, height=1536, plugins={"upscale.factor": 4.0})
    with pytest.raises(
        InvalidField, match=r"2048x1536 would become 8192x6144, which is 48\.0 megapixels; at most 16"
    ):
        plugged_engine.submit([request], "me")
    host = plugged_engine.plugins
    values = host.values(host[PLUGIN], request)
    given = {"settings": values, "data_dir": host.data_dir, "check": nothing}
    with pytest.raises(InvalidField, match="3000x2000 would become 12000x8000"):  # as a source's size may be
        host.ask(host[PLUGIN], "postprocess", image=Image.new("RGB", (3000, 2000)), request=request, **given)
    work = ways["nearest x2"].work(noise(5000, 4000), (5001, 4001))
    with pytest.raises(InvalidField, match=r"10000x8000, which is 76\.3 megapixels; at most 64"):
        next(work)


# -- pictures ----------------------------------------------------------------------------------------


def made(engine, **changes):
    view = engine.submit([request_for(seed=9, **changes)], "me").wait()
    assert view.state == "done", view.error
    (picture,) = view.saved
    return picture


@pytest.mark.parametrize("factor", [1.25, 2.0])
def test_a_finished_picture_is_enlarged_and_the_next_one_is_as_before(plugged_engine, engine, factor):
    plain = Image.open(made(engine).path)
    size = round(64 * factor), round(64 * factor)
    larger = made(plugged_engine, plugins={"upscale.factor": factor})
    assert np.array_equal(pixels(larger.path), pixels(plain.resize(size, Image.Resampling.LANCZOS)))
    assert (larger.width, larger.height) == size
    assert dict(larger.request.plugins) == {"upscale.factor": factor}
    sharp = made(plugged_engine, plugins={"upscale.factor": factor, "upscale.upscaler": "Lanczos, sharpened"})
    mask = ImageFilter.UnsharpMask(factor / 2, 100, 2)
    expected = plain.resize(size, Image.Resampling.LANCZOS).filter(mask)
    assert np.array_equal(pixels(sharp.path), pixels(expected))
    assert np.array_equal(pixels(made(plugged_engine).path), pixels(plain))


def test_it_is_an_upscaler_of_hires(plugged_engine, engine):
    hires = {"hires_scale": 2.0, "hires_strength": 0.5}
    lanczos = made(engine, hires_upscaler="Lanczos", **hires)
    sharp = made(plugged_engine, hires_upscaler="Lanczos, sharpened", **hires)
    assert pixels(sharp.path).shape == (128, 128, 3)
    assert not np.array_equal(pixels(sharp.path), pixels(lanczos.path))
    assert np.array_equal(
        pixels(made(plugged_engine, hires_upscaler="Lanczos", **hires).path), pixels(lanczos.path)
    )


def test_a_network_enlarges_pictures_and_hires_in_the_engine(make_engine, esrgan, engine):
    own = make_engine(plugins=[ROOT / "extensions"], data_dir=esrgan)
    larger = made(own, plugins={"upscale.factor": 2.0, "upscale.upscaler": "nearest x2"})
    plain = Image.open(made(engine).path)
    assert np.array_equal(pixels(larger.path), pixels(plain.resize((128, 128), Image.Resampling.NEAREST)))
    assert "nearest x2" in larger.infotext
    hires = {"hires_scale": 2.0, "hires_strength": 0.5}
    ours, theirs = (
        made(own, hires_upscaler="nearest x2", **hires),
        made(engine, hires_upscaler="Nearest", **hires),
    )
    assert np.array_equal(pixels(ours.path), pixels(theirs.path))


def test_another_file_of_the_same_name_is_another_picture(esrgan):
    host = Host(esrgan, [ROOT / "extensions"])
    path = esrgan / "models" / "ESRGAN" / "nearest x2.safetensors"
    request = request_for(plugins={"upscale.factor": 2.0, "upscale.upscaler": "nearest x2"})
    hires = request_for(hires_scale=2.0, hires_upscaler="nearest x2")
    before = [host.identity(each) for each in (request, hires)]
    assert all("nearest x2" in identity[0][2] for identity in before)
    assert [host.identity(each) for each in (request, hires)] == before
    save_file({"weight": nearest_weight(2) * 0.5}, path)
    assert all(host.identity(each) != old for each, old in zip((request, hires), before, strict=True))


def test_a_job_stops_while_its_picture_is_enlarged(make_engine, esrgan, monkeypatch):
    own = make_engine(plugins=[ROOT / "extensions"], data_dir=esrgan)
    made(own)
    tiles, jobs = importlib.import_module("webui_plugins.upscale.tiles"), []
    real = tiles.enlarged

    def cancelling(*arguments):
        jobs[0].cancel()
        return real(*arguments)

    monkeypatch.setattr(tiles, "enlarged", cancelling)
    request = request_for(plugins={"upscale.factor": 2.0, "upscale.upscaler": "nearest x2"})
    jobs.append(own.submit([request], "me"))
    view = jobs[0].wait()
    assert view.state == "cancelled"
    assert view.saved == ()
    assert own.plugins[PLUGIN].failures == 0


def test_everything_is_computed_where_the_model_is(plugged_engine):
    plugin = plugged_engine.plugins[PLUGIN]
    plugin.module.loader.device = "meta"
    plugged_engine.plugins.notify("model_loaded", name="x", seconds=1.0, device="cpu")
    assert plugin.module.loader.device == "cpu"


# -- the tab -----------------------------------------------------------------------------------------


@pytest.fixture
def page(modules, ways):
    with gr.Blocks():
        return importlib.import_module("webui_plugins.upscale.page").Page(ways)


def shown(page, steps):
    """The last of what each component was told."""
    last = {}
    for step in steps:
        last |= step
    return {name: last.get(getattr(page, name)) for name in ("stage", "result", "download", "start", "stop")}


def test_any_picture_is_enlarged_and_keeps_how_it_was_made(page, engine):
    picture = made(engine)
    steps = list(page.enlarge(str(picture.path), 2, "nearest x2"))
    assert len(steps) == 3, "at the start, after the tile, at the end"
    last = shown(page, steps)
    before, after = last["result"]
    expected = Image.open(picture.path).resize((128, 128), Image.Resampling.NEAREST)
    assert before == str(picture.path)
    assert np.array_equal(pixels(Path(after)), pixels(expected))
    assert read_infotext(after) == picture.infotext
    assert last["download"].value["path"] == after
    assert "128 × 128" in last["stage"]
    assert last["start"].interactive
    assert not last["stop"].interactive
    assert Path(after).name.endswith("-2x.png")


@pytest.mark.parametrize(
    ("width", "factor", "message"),
    [(8192, 8, "65536x64, which is 4.0"), (0, 2, "not a picture"), (None, 2, "Choose a picture")],
)
def test_what_cannot_be_enlarged_is_told(page, tmp_path, width, factor, message):
    path = tmp_path / "picture.png"
    if width:
        noise(width, 8).save(path)
    else:
        path.write_bytes(b"no picture")
    last = shown(page, page.enlarge(str(path) if width is not None else None, factor, "Lanczos"))
    if width == 8192:
        assert "65536 × 64" in last["stage"]
    else:
        assert message in last["stage"]
        assert last["result"] is None
    assert last["start"].interactive


def test_the_size_is_told_before(page, tmp_path, modules):
    noise(100, 50).save(tmp_path / "a.png")
    size, said, *_ = page.measure(str(tmp_path / "a.png"), 2)
    assert size == (100, 50)
    assert "100 × 50 becomes 200 × 100" in said
    assert "at most 64" in importlib.import_module("webui_plugins.upscale.page").sized((8192, 8192), 2)
    (tmp_path / "b.png").write_bytes(b"x")
    assert page.measure(str(tmp_path / "b.png"), 2)[0] is None
    assert page.measure(None, 2)[0] is None
