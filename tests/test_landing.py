"""Weights come into memory by one copy each, converted and laid out, and equal to what diffusers makes."""

import shutil

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from webui.diffusion import checkpoints, devices, loading
from webui.diffusion.landing import Landing, land
from webui.errors import ModelError

COPIES = ("_to_copy", "clone", "copy_", "contiguous")


class Copied(TorchDispatchMode):
    """Bytes of weights, of more than one dimension, that are written by copies meanwhile."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in COPIES and result.ndim > 1 and not result.is_meta:
            self.bytes += result.nbytes
        return result


@pytest.fixture(scope="module")
def device():
    chosen = devices.choose(devices.Machine(cpu_bf16=True), "cpu", "bfloat16", speed="auto")
    assert chosen.channels_last
    devices.import_diffusers(chosen)
    return chosen


@pytest.fixture(scope="module")
def folder(tmp_path_factory, device):
    """Tiny SD 1.x in float16, as most checkpoints are published."""
    at = tiny.folder("sd1", tmp_path_factory.mktemp("landing") / "sd1")
    for file in at.glob("*/*.safetensors"):
        halves = {name: tensor.half() for name, tensor in safetensors.torch.load_file(file).items()}
        safetensors.torch.save_file(halves, file, {"format": "pt"})
    return at


def checkpoint(folder):
    return checkpoints.find([folder.parent])[folder.name]


def test_each_weight_is_copied_once(folder, device):
    part = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.bfloat16)
    size = sum(p.nbytes for p in part.parameters() if p.ndim > 1)
    landing = Landing(device)
    with landing.instead(), Copied() as copied:
        landed = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.bfloat16)
    assert landing.filled(landed)
    assert not landing.filled(part)
    assert copied.bytes == size
    with Copied() as copied:  # what it takes without
        plain = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.bfloat16)
        plain.to(memory_format=torch.channels_last)
    assert copied.bytes > 1.2 * size


def test_what_lands_equals_what_diffusers_loads_and_lays_out(folder, device):
    parts = loading.load(checkpoint(folder), device).parts
    plain = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.bfloat16)
    plain.to(memory_format=torch.channels_last)
    own = parts["unet"].state_dict()
    assert own.keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(own[name], tensor)
        assert own[name].stride() == tensor.stride()
        assert own[name].dtype == torch.bfloat16
    assert not any(p.requires_grad for p in parts["unet"].parameters())


def test_diffusers_is_left_as_it_was(folder, device):
    from diffusers.loaders import single_file_model
    from diffusers.models import model_loading_utils

    modules = model_loading_utils, single_file_model
    before = model_loading_utils.load_model_dict_into_meta
    with Landing(device).instead():
        assert all(module.load_model_dict_into_meta is not before for module in modules)
    assert all(module.load_model_dict_into_meta is before for module in modules)
    with pytest.raises(OSError, match="nothing"), Landing(device).instead():
        UNet2DConditionModel.from_pretrained(folder / "nothing")
    assert all(module.load_model_dict_into_meta is before for module in modules)


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (4, 3, 3, 3), (4, 3, 1, 1)])
def test_a_tensor_lands_as_torch_converts_it(given, wanted, shape):
    source = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(given)
    landed, sound = land(source, wanted, by_channels=len(shape) == 4, copies=True)
    assert sound
    assert torch.equal(landed, source.to(wanted))
    assert landed.data_ptr() != source.data_ptr()
    assert len(shape) < 4 or landed.is_contiguous(memory_format=torch.channels_last)


def test_what_goes_on_to_another_device_is_not_copied_before():
    source = torch.randn(4, 3)
    assert land(source, torch.float32, by_channels=False, copies=False)[0] is source


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_seen_as_it_lands(value):
    source = torch.ones(300, 300)
    source[123, 45] = value
    assert not land(source, torch.bfloat16, by_channels=False, copies=True)[1]
    large = torch.full((300, 300), 1e5)  # which is none in half precision
    assert not land(large, torch.float16, by_channels=False, copies=True)[1]
    assert not land(large.bfloat16(), torch.float16, by_channels=False, copies=True)[1]
    assert land(large, torch.bfloat16, by_channels=False, copies=True)[1]
    eight = torch.full((300, 300), float("nan")).to(torch.float8_e4m3fn)  # which has no infinity
    assert not land(eight, torch.bfloat16, by_channels=False, copies=True)[1]
    huge = torch.full((300, 300), 60_000.0, dtype=torch.float16)  # whose sum is too large for it
    assert land(huge, torch.float16, by_channels=False, copies=True)[1]


def test_a_file_that_lacks_a_weight_is_called_damaged(folder, device, tmp_path):
    short = shutil.copytree(folder, tmp_path / "short")
    file = next((short / "vae").glob("*.safetensors"))
    held = safetensors.torch.load_file(file)
    del held["decoder.conv_in.weight"]
    safetensors.torch.save_file(held, file, {"format": "pt"})
    with pytest.raises(ModelError, match="damaged or missing"):
        loading.load(checkpoint(short), device)


def test_a_weight_of_another_shape_is_called_damaged(folder, device, tmp_path):
    wrong = shutil.copytree(folder, tmp_path / "wrong")
    file = next((wrong / "vae").glob("*.safetensors"))
    held = safetensors.torch.load_file(file)
    held["decoder.conv_in.weight"] = held["decoder.conv_in.weight"][:1].clone()
    safetensors.torch.save_file(held, file, {"format": "pt"})
    with pytest.raises(ModelError, match="damaged or missing"):
        loading.load(checkpoint(wrong), device)


def test_a_part_with_rows_of_one_number_has_a_fingerprint():
    part = torch.nn.Module()
    part.positions = torch.nn.Parameter(torch.arange(24.0).view(1, 4, 6))
    assert loading.fingerprint(part) == loading.fingerprint(part)
