"""Device decisions, on machines described rather than owned."""

import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from webui.diffusion.devices import Machine, choose, look, set_threads
from webui.errors import SettingsError

EVERYTHING = Machine(cuda=2, xpu=1, mps=True, cpu_bf16=True, xformers=True)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (EVERYTHING, "cuda:0, float16, sdpa"),
        (Machine(cuda=1, rocm=True), "cuda:0, float16, sdpa"),
        (Machine(xpu=1, cpu_bf16=True), "xpu:0, float16, sdpa"),
        (Machine(mps=True), "mps, float16, sdpa"),
        (Machine(cpu_bf16=True), "cpu, bfloat16, sdpa"),
        (Machine(), "cpu, float32, sdpa"),
    ],
)
def test_the_best_device_is_chosen_by_the_stated_rule(machine, expected):
    assert str(choose(machine)) == expected


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"device": "cpu"}, "cpu, bfloat16, sdpa"),
        ({"device": "cpu", "dtype": "float32"}, "cpu, float32, sdpa"),
        ({"device": "cuda:1", "dtype": "bfloat16"}, "cuda:1, bfloat16, sdpa"),
        ({"device": "cuda", "attention": "xformers"}, "cuda:0, float16, xformers"),
        ({"device": "mps", "attention": "sliced"}, "mps, float16, sliced"),
    ],
)
def test_a_persons_wish_goes_before_the_rule(wish, expected):
    assert str(choose(EVERYTHING, **wish)) == expected


@pytest.mark.parametrize(
    ("machine", "wish", "message"),
    [
        (Machine(), {"device": "cuda"}, r"--device cuda: this machine has cpu \(1\)"),
        (EVERYTHING, {"device": "cuda:2"}, r"cuda \(2\)"),
        (EVERYTHING, {"device": "cpu", "dtype": "float16"}, "--dtype float16 is hundreds of times slower"),
        (EVERYTHING, {"device": "cpu", "attention": "xformers"}, "works on CUDA only"),
        (Machine(cuda=1, rocm=True, xformers=True), {"attention": "xformers"}, "works on CUDA only"),
        (Machine(cuda=1), {"attention": "xformers"}, "not installed"),
    ],
)
def test_what_the_machine_cannot_do_is_refused_by_name(machine, wish, message):
    with pytest.raises(SettingsError, match=message):
        choose(machine, **wish)


def test_channels_last_is_used_where_it_pays():
    assert choose(Machine(cuda=1)).channels_last
    assert choose(Machine(cpu_bf16=True)).channels_last
    assert not choose(Machine()).channels_last
    assert not choose(Machine(mps=True)).channels_last


def test_a_small_net_computes_with_one_thread_and_a_large_one_with_all(restored_threads):
    device = choose(Machine(threads=restored_threads + 1))
    set_threads(device, parameters=860_000_000)
    assert torch.get_num_threads() == restored_threads + 1
    set_threads(device, parameters=17_000_000)
    assert torch.get_num_threads() == 1


@pytest.fixture
def restored_threads():
    threads = torch.get_num_threads()
    yield threads
    torch.set_num_threads(threads)


def test_importing_diffusers_on_a_cpu_says_nothing_and_leaves_xformers_alone():
    """xformers is installed on Linux x86-64, and is used on CUDA alone."""
    code = (
        "import sys; from webui.diffusion.devices import *; import_diffusers(choose(look(), device='cpu'));"
        "sys.exit(any(m.startswith('xformers') and sys.modules[m] for m in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_this_machine_can_be_described_and_used():
    machine = look()
    device = choose(machine, device="cpu")
    assert device.dtype == ("bfloat16" if machine.cpu_bf16 else "float32")


def test_results_do_not_hang_on_where_a_matrix_lies_in_memory():
    """In a process of its own: MKL reads how it is to compute once."""
    code = """
from webui.diffusion import devices
devices.look()
import torch
torch.manual_seed(0)
x, weight = torch.randn(1, 32), torch.randn(48, 32)
expected = x @ weight.T
for shift in range(16):
    room = torch.empty(weight.numel() + 16)
    moved = room[shift : shift + weight.numel()].view(weight.shape).copy_(weight)
    assert torch.equal(x @ moved.T, expected), shift
"""
    bare = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=bare)
