"""LoRAs and their relatives on every family: pictures equal to plain diffusers', wrong families refused."""

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import parts, relatives, single_file, tiny
from tests.conftest import pixels, request_for
from tests.test_relatives import alike
from webui.errors import InvalidField

LORAS = [("sd2", "kohya"), ("sdxl", "kohya"), ("sd3", "peft"), ("flux", "peft"), ("flux", "forest")]
FLUX = {  # Black Forest Labs' names, as sd-scripts writes them -> (into, out of)
    "double_blocks_0_img_attn_qkv": (32, 96),
    "double_blocks_0_txt_mlp_0": (32, 128),
    "single_blocks_0_modulation_lin": (32, 96),
}


def forest(path, layers):
    """A LoRA of Flux whose layers are those of its makers, which diffusers has in parts."""
    tensors = {}
    for name, (into, out) in layers.items():
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, into) * 0.3
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.randn(out, 4) * 0.3
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)


def as_published(tensors, pipe):
    """A file of LyCORIS under the names that kohya's trainer gives SDXL: CompVis' of the UNet's layers."""
    renamed = {}
    for part, prefix in (
        (pipe.unet, "lora_unet_"),
        (pipe.text_encoder, "lora_te1_"),
        (pipe.text_encoder_2, "lora_te2_"),
    ):
        for path, layer in part.named_modules():
            if prefix == "lora_unet_" and hasattr(layer, "weight"):
                path, old = single_file.unet_name(f"{path}.weight", part.config).removesuffix(".weight"), path
            else:
                path, old = f"text_model.{path.removeprefix('text_model.')}", path
            old, new = (f"{prefix}{each.replace('.', '_')}" for each in (old, path))
            renamed |= {
                name.replace(old, new): each for name, each in tensors.items() if name.startswith(f"{old}.")
            }
    assert len(renamed) == len(tensors)
    return renamed


@pytest.fixture(scope="module")
def pipes(engine, tmp_path_factory):
    """(the folder of all, family -> diffusers' own pipeline)."""
    at = tmp_path_factory.mktemp("families")
    (at / "Lora").mkdir()
    pipes = {}
    for family in ("sd1", "sd2", "sdxl", "sd3", "flux"):
        tiny.folder(family, at / family)
        pipes[family] = diffusers.DiffusionPipeline.from_pretrained(
            at / family, dtype=torch.float32, local_files_only=True
        )
        pipes[family].set_progress_bar_config(disable=True)
    for family, layout in LORAS:
        path = at / f"Lora/{family}-{layout}.safetensors"
        forest(path, FLUX) if layout == "forest" else parts.lora(pipes[family], path, 3, layout)
    forest(at / "Lora/flux-odd.safetensors", {"single_blocks_0_linear1": (32, 224)})
    return at, pipes


@pytest.fixture(scope="module")
def studio(make_engine, pipes):
    return make_engine(models_dir=[pipes[0]], model="sd1")


def wanted(family, prompt):
    return request_for(prompt=prompt, model=family, scheduler="Euler")


def plainly(pipe):
    if hasattr(pipe, "unet"):
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    options = {"num_inference_steps": 4, "guidance_scale": 4.0, "width": 64, "height": 64}
    return pixels(pipe("a fox", generator=torch.Generator().manual_seed(1), **options).images[0])


def drawn(studio, family, prompt):
    view = studio.submit([wanted(family, prompt)], "test").wait()
    assert view.error is None
    return pixels(view.saved[0].path)


@pytest.mark.parametrize(("family", "layout"), LORAS)
def test_a_lora_equals_plain_diffusers(studio, pipes, family, layout):
    at, known = pipes
    pipe = known[family]
    without = plainly(pipe)
    pipe.load_lora_weights(str(at / f"Lora/{family}-{layout}.safetensors"), adapter_name="x")
    pipe.set_adapters(["x"], [0.7])
    expected = plainly(pipe)
    pipe.unload_lora_weights()
    assert (expected != without).any()
    assert (drawn(studio, family, f"a fox<lora:{family}-{layout}:0.7>") == expected).all()
    assert (drawn(studio, family, "a fox") == without).all()


@pytest.mark.parametrize(("family", "kind"), [("sd2", "LoHa"), ("sdxl", "LoCon"), ("sdxl", "LoKr")])
def test_a_relative_is_as_with_lycoris_itself(studio, pipes, family, kind):
    at, known = pipes
    pipe = known[family]
    without = plainly(pipe)
    made = relatives.network(pipe, kind, 5, 0.8)
    path = at / f"Lora/{family}-{kind}.safetensors"
    with relatives.applied(made, pipe):
        expected = plainly(pipe)
        relatives.save(made, path)
    if family == "sdxl":
        save_file(as_published(load_file(path), pipe), path)
    picture = drawn(studio, family, f"a fox<lora:{family}-{kind}:0.8>")
    assert alike(picture, expected)
    assert not alike(picture, without)
    assert (drawn(studio, family, "a fox") == without).all()


@pytest.mark.parametrize("prefix", ["lycoris_", "transformer."])
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_lokr_of_a_transformer_is_laid_into_it(studio, pipes, family, prefix):
    """As SimpleTuner and ai-toolkit name its layers: by diffusers' paths."""
    at, known = pipes
    pipe = known[family]
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    path = f"{prefix}transformer_blocks.0.attn.to_q"
    name = path.replace(".", "_") if prefix == "lycoris_" else path
    tensors = {
        "lokr_w1": torch.randn(4, 4) * 0.3,
        "lokr_w2": torch.randn(*(n // 4 for n in layer.weight.shape)),
    }
    file = at / f"Lora/{family}-{prefix.strip('_.')}.safetensors"
    save_file({f"{name}.{end}": each for end, each in tensors.items()}, file)
    before = layer.weight.data
    layer.weight.data = before + torch.kron(*tensors.values()) * 0.5
    expected = plainly(pipe)
    layer.weight.data = before
    without = plainly(pipe)
    assert (drawn(studio, family, f"a fox<lora:{file.stem}:0.5>") == expected).all()
    assert (expected != without).any()


@pytest.mark.parametrize(("family", "block"), [("sd3", "joint"), ("flux", "double"), ("flux", "single")])
def test_layers_that_diffusers_has_in_parts_are_laid_into_all_of_them(studio, pipes, family, block):
    """A LoKr by the names of Stability and Black Forest Labs, on every such layer of a block."""
    at, known = pipes
    pipe = known[family]
    table = single_file.QKV["sd3" if block == "joint" else block]
    within = f"{'single_' * (block == 'single')}transformer_blocks.0"
    without, tensors, before = plainly(pipe), {}, {}
    for name, ours in table.items():
        try:
            parts_of = [pipe.transformer.get_submodule(f"{within}.{path.strip('.')}") for path in ours]
        except AttributeError:  # the second attention, which only SD 3.5 has
            continue
        rows, columns = sum(len(layer.weight) for layer in parts_of), parts_of[0].weight.shape[1]
        one, two = torch.randn(2, 4) * 0.3, torch.randn(rows // 2, columns // 4)
        path = f"lora_unet_{block}_blocks_0_{name.strip('.').replace('.', '_')}"
        tensors |= {f"{path}.lokr_w1": one, f"{path}.lokr_w2": two}
        changes = torch.kron(one, two).split([len(layer.weight) for layer in parts_of])
        for layer, change in zip(parts_of, changes, strict=True):
            before[layer] = layer.weight.data
            layer.weight.data = before[layer] + change * 0.5
    save_file(tensors, at / f"Lora/{block}.safetensors")
    expected = plainly(pipe)
    for layer, numbers in before.items():
        layer.weight.data = numbers
    assert (drawn(studio, family, f"a fox<lora:{block}:0.5>") == expected).all()
    assert (expected != without).any()
    assert (drawn(studio, family, "a fox") == without).all()


@pytest.mark.parametrize(
    ("name", "family", "said"),
    [
        ("flux-forest", "sdxl", "is made for Flux, and the model sdxl is Stable Diffusion XL"),
        ("flux-peft", "sd3", "is made for Flux, and the model sd3 is Stable Diffusion 3"),
        ("sdxl-kohya", "sd1", "is made for Stable Diffusion XL, and the model sd1 is Stable Diffusion 1.x"),
        ("sdxl-kohya", "flux", "is made for Stable Diffusion XL, and the model flux is Flux"),
    ],
)
def test_a_lora_of_another_family_is_refused_by_its_name(studio, name, family, said):
    with pytest.raises(InvalidField, match=f"^Prompt: {name} {said}"):
        studio.submit([wanted(family, f"a fox<lora:{name}:1>")], "test")


@pytest.mark.parametrize(
    ("name", "family"),
    [("sd2-kohya", "sdxl"), ("sd3-peft", "flux"), ("sd2-LoHa", "sd1"), ("flux-odd", "flux")],
)
def test_a_lora_that_turns_out_not_to_fit_fails_by_its_name(studio, pipes, name, family):
    known = pipes[1]
    if name == "sd2-LoHa":
        made = relatives.network(known["sd2"], "LoHa", 5)
        with relatives.applied(made, known["sd2"]):
            relatives.save(made, pipes[0] / "Lora/sd2-LoHa.safetensors")
    before = drawn(studio, family, "a fox")
    view = studio.submit([wanted(family, f"a fox<lora:{name}:1>")], "test").wait()
    assert str(view.error).startswith(f"Prompt: the LoRA {name} does not fit this model")
    assert (drawn(studio, family, "a fox") == before).all()
