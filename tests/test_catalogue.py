"""The catalogue: files told by their headers, shelves that notice changes, hashes and notes that last."""

import json
import os
import pickle
import shutil
import struct
import threading
from pathlib import Path

import pytest

from tests import layouts, single_file, tiny
from tests.conftest import POCKET
from webui.catalogue import headers, relatives
from webui.catalogue.headers import Header, Tensor
from webui.catalogue.identify import Beside, identify
from webui.catalogue.notes import Note
from webui.catalogue.shelves import Catalogue
from webui.errors import InvalidField

# Headers


def raw(content: object, weights: int = 0) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + bytes(weights)


def entry(start: int, stop: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape or [(stop - start) // 4], "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "It is empty"),
        (b"\x07\x00", "no .safetensors file"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\n<HTML>", "web page"),
        (b'{"error": "Access to model is restricted"}', "server's error message"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "pointer of Git LFS"),
        ((2**60).to_bytes(8, "little") + b"{}", r"claims to be 1,152,921,504,606,846,976 bytes"),
        (raw({"a": entry(0, 8)}, 8)[:30], "not even its header is whole"),
        (raw({"a": entry(0, 8)}, 7), "weights at its end are missing"),
        (raw({"a": entry(0, 8)}, 9), "something after its last tensor"),
        (raw(b"{" + b"[" * 100_000), "not the JSON it should be"),
        (raw(b'{"a": \xff}'), "not the JSON it should be"),
        (raw(b'{"a": 1, "a": 2}'), "names something twice"),
        (raw({"a": 1}), "describes 'a' wrongly"),
        (raw({"a": {**entry(0, 4), "shape": [-1]}}, 4), "describes 'a' wrongly"),
        (raw({"a": {**entry(0, 4), "shape": [True]}}, 4), "describes 'a' wrongly"),
        (raw({"a": entry(0, 8, [3])}, 8), "bytes of 'a' do not fit its shape"),
        (raw({"a": entry(8, 0, [2])}, 8), "do not fit"),
        (raw({"a": entry(0, 8), "b": entry(4, 12)}, 12), "'b' overlaps"),
        (raw({"a": entry(0, 8), "b": entry(12, 16)}, 16), "gap before 'b'"),
        (b"GGUF\x03\x00\x00\x00" + bytes(40), "GGUF"),
        (b"PK\x03\x04" + bytes(60), "It is a pickle"),
        (b"\x80\x02}q\x00." + bytes(60), "It is a pickle"),
        (b"\xff" * 64, "claims to be"),
        (b"\x00" * 64, "no kind that is known"),
    ],
)
def test_a_damaged_file_is_told_what_it_is_in_a_sentence(tmp_path, content, sentence):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(headers.Unreadable, match=sentence) as caught:
        headers.read(tmp_path / "a.safetensors")
    assert str(tmp_path) not in str(caught.value)
    assert str(caught.value).endswith((".", "so."))


def test_a_sound_file_gives_names_shapes_types_and_metadata():
    header = headers.read(POCKET / "unet" / "diffusion_pytorch_model.safetensors")
    assert header.tensors["conv_in.weight"] == Tensor("F16", (64, 4, 3, 3))
    assert header.metadata == {"format": "pt"}
    assert header.precision == "float16"


def test_no_weight_is_read(tmp_path):
    path = layouts.write(tmp_path / "a.safetensors", Header({"a": Tensor("F32", (2**38,))}))  # a terabyte
    assert headers.read(path).shape("a") == (2**38,)


# What a file is


def judged(header: Header) -> str:
    """What diffusers says, by its own table, of what we call something."""
    import torch
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    state = {name: torch.empty(shape, device="meta") for name, (_, shape) in header.tensors.items()}
    return str(infer_diffusers_model_type(state))


@pytest.mark.parametrize(
    ("config", "family", "prediction", "judge"),
    [
        ("sd1", "sd1", "epsilon", "v1"),
        ("sd1-inpainting", "sd1", "epsilon", "inpainting"),
        ("sd2", "sd2", "v_prediction", "v2"),
        ("sd2-inpainting", "sd2", "epsilon", "inpainting_v2"),
        ("sdxl", "sdxl", "epsilon", "xl_base"),
        ("sdxl-inpainting", "sdxl", "epsilon", "xl_inpaint"),
        ("sdxl-refiner", "sdxl-refiner", "epsilon", "xl_refiner"),
        ("sd3", "sd3", "flow_prediction", "sd3"),
        ("sd35-medium", "sd3", "flow_prediction", "sd35_medium"),
        ("sd35-large", "sd3", "flow_prediction", "sd35_large"),
        ("flux-dev", "flux", "flow_prediction", "flux-dev"),
        ("flux-schnell", "flux", "flow_prediction", "flux-schnell"),
    ],
)
def test_a_published_checkpoint_is_known_by_its_header_as_diffusers_knows_it(
    config, family, prediction, judge
):
    header = layouts.header(layouts.whole(config))
    found = identify(header, Beside("some-name"))
    assert (found.kind, found.family, found.prediction, found.config) == (
        "checkpoint", family, prediction, config,
    )  # fmt: skip
    assert found.problem == ""
    assert found.precision == "float16"
    only = {"sd1-inpainting", "sd2-inpainting", "sdxl-inpainting"}
    assert found.tasks == (
        ("inpaint",)
        if config in only
        else ("img2img", "inpaint")
        if config == "sdxl-refiner"
        else ("txt2img", "img2img", "inpaint")
    )
    assert judged(header) == judge


@pytest.mark.parametrize("prefix", ["", single_file.PREFIX])
@pytest.mark.parametrize(
    ("config", "family"),
    [
        ("sd1", "sd1"), ("sd2", "sd2"), ("sdxl", "sdxl"), ("sdxl-refiner", "sdxl-refiner"), ("sd3", "sd3"),
        ("sd35-large", "sd3"), ("flux-dev", "flux"), ("flux-schnell", "flux"),
    ],
)  # fmt: skip
def test_a_net_alone_is_one_under_any_prefix(config, family, prefix):
    found = identify(layouts.header({prefix + name: each for name, each in layouts.net(config).items()}))
    assert (found.kind, found.family, found.own_vae, found.problem) == ("net", family, False, "")
    assert found.config.startswith(config)


@pytest.mark.parametrize(
    ("config", "family"),
    [("sd1", "sd1"), ("sd2", "sd2"), ("sdxl", "sdxl"), ("sd3", "sd3"), ("flux-dev", "flux")],
)
def test_a_net_under_the_names_of_diffusers_is_known(config, family):
    name = "unet" if config.startswith(("sd1", "sd2", "sdxl")) else "transformer"
    found = identify(layouts.header(layouts.part(config, name)))
    assert (found.kind, found.family) == ("net", family)


def without(state: dict, *starts: str) -> dict:
    return {name: each for name, each in state.items() if not name.startswith(starts)}


def test_what_a_checkpoint_lacks_is_named():
    state = layouts.whole("sd1")
    assert "VAE is missing" in identify(layouts.header(without(state, "first_stage"))).problem
    for lone in (without(state, "cond_stage"), without(layouts.whole("sd3"), "text_encoders")):
        found = identify(layouts.header(lone))
        assert (found.kind, found.own_vae) == ("net", True)


def test_a_checkpoint_of_other_sizes_needs_its_configuration_beside_it():
    state = {name: each for name, each in layouts.whole("sdxl").items() if "input_blocks.8.1" not in name}
    lone = identify(layouts.header(state), Beside("small"))
    assert "other sizes" in lone.problem
    assert "small.config" in lone.problem
    assert identify(layouts.header(state), Beside("small", config=True)).problem == ""


@pytest.mark.parametrize(
    ("name", "beside", "extra", "metadata", "prediction"),
    [
        ("a", "", (), {}, "v_prediction"),
        ("v2-1_512-ema", "", (), {}, "epsilon"),
        ("sd2-base", "", (), {}, "epsilon"),
        ("a", 'model:\n  params:\n    parameterization: "v"\n', (), {}, "v_prediction"),
        ("a", "model:\n  params:\n    parameterization: eps\n", (), {}, "epsilon"),
        ("a", "", (), {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ("512", "", ("v_pred",), {}, "v_prediction"),
        ("512", "", (), {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ("512", "", (), {"ss_v_parameterization": "True"}, "v_prediction"),
    ],
)
def test_what_sd2_predicts_is_said_by_what_is_there_or_assumed_aloud(
    name, beside, extra, metadata, prediction
):
    state = {**layouts.whole("sd2"), **dict.fromkeys(extra, ())}
    found = identify(layouts.header(state, **metadata), Beside(name, beside))
    assert found.prediction == prediction
    assert bool(found.note) == (not (beside or extra or metadata))
    assert found.config == ("sd2" if prediction == "v_prediction" else "sd2-base")


def test_keys_of_trainers_say_v_prediction_and_zero_snr_of_sdxl():
    state = {**layouts.whole("sdxl"), "v_pred": (), "ztsnr": ()}
    found = identify(layouts.header(state))
    assert (found.family, found.prediction, found.zero_snr) == ("sdxl", "v_prediction", True)
    assert found.config == "sdxl"


@pytest.mark.parametrize(
    ("channels", "word"), [(8, "instruct-pix2pix"), (5, "depth-to-image"), (6, "6 channels")]
)
def test_a_checkpoint_of_another_task_says_which(channels, word):
    state = {**layouts.whole("sd1"), f"{single_file.PREFIX}input_blocks.0.0.weight": (320, channels, 3, 3)}
    found = identify(layouts.header(state))
    assert (found.kind, found.tasks) == ("checkpoint", ())
    assert word in found.problem


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (
            ["double_blocks.0.img_attn.norm.key_norm.scale", "distilled_guidance_layer.in_proj.weight"],
            "Chroma",
        ),
        (["double_blocks.0.img_attn.norm.key_norm.scale", "single_stream_modulation.lin.weight"], "Flux 2"),
        (["head.modulation", "blocks.0.self_attn.q.weight"], "Wan"),
    ],
)
def test_a_model_of_another_family_is_named(names, title):
    for prefix in ("", single_file.PREFIX):
        found = identify(layouts.header({prefix + name: (8, 8) for name in names}))
        assert (found.kind, found.family) == ("checkpoint", "other")
        assert title in found.problem


def test_quantised_weights_are_no_checkpoint_that_can_be_used():
    state = {**layouts.whole("flux-dev"), "scaled_fp8": (1,)}
    found = identify(layouts.header(state, "F8_E4M3"))
    assert (found.kind, found.family, found.precision) == ("checkpoint", "flux", "float8_e4m3fn")
    assert "quantised" in found.problem


# What goes with a checkpoint

KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
PEFT = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
RELATIVES = {
    "kohya, 1.x": ({f"{KOHYA}.lora_down.weight": (8, 768), f"{KOHYA}.alpha": ()}, "lora", "sd1"),
    "kohya, 2.x": ({f"{KOHYA}.lora_down.weight": (8, 1024)}, "lora", "sd2"),
    "kohya, XL": ({f"{KOHYA}.lora_down.weight": (8, 2048)}, "lora", "sdxl"),
    "kohya, XL's text alone": (
        {"lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (8, 768)},
        "lora",
        "sdxl",
    ),
    "kohya, text of 1.x": (
        {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (8, 768)},
        "lora",
        "sd1",
    ),
    "kohya, Flux": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (8, 3072)}, "lora", "flux"),
    "kohya, SD3": ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (8, 1536)}, "lora", "sd3"),
    "peft, 1.x": ({f"{PEFT}.lora_A.weight": (8, 768)}, "lora", "sd1"),
    "peft, Flux": (
        {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (8, 3072)},
        "lora",
        "flux",
    ),
    "peft, Flux's first blocks": (
        {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (8, 3072)},
        "lora",
        "flux",
    ),
    "peft, SD3": ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (8, 1536)}, "lora", "sd3"),
    "diffusers' first": (
        {f"{PEFT.replace('to_k', 'processor.to_k_lora')}.down.weight": (4, 768)},
        "lora",
        "sd1",
    ),
    "LoHa": ({f"{KOHYA}.hada_w1_a": (640, 8), f"{KOHYA}.hada_w1_b": (8, 2048)}, "lora", "sdxl"),
    "LoKr": ({f"{KOHYA}.lokr_w1": (8, 16), f"{KOHYA}.lokr_w2": (80, 48)}, "lora", "sd1"),
    "LoKr, second in parts": (
        {f"{KOHYA}.lokr_w1": (8, 16), f"{KOHYA}.lokr_w2_a": (80, 4), f"{KOHYA}.lokr_w2_b": (4, 64)},
        "lora",
        "sd2",
    ),
    "DoRA": ({f"{KOHYA}.lora_down.weight": (8, 768), f"{KOHYA}.dora_scale": (640, 1)}, "lora", "sd1"),
    "whole differences": ({f"{KOHYA}.diff": (640, 768)}, "lora", "sd1"),
    "Wan's": ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": (8, 1536)}, "lora", "other"),
    "textual inversion, 1.x": ({"emb_params": (4, 768)}, "embedding", "sd1"),
    "textual inversion, 2.x": ({"emb_params": (4, 1024)}, "embedding", "sd2"),
    "textual inversion, XL": ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "embedding", "sdxl"),
    "textual inversion, diffusers": ({"<cat-toy>": (768,)}, "embedding", "sd1"),
    "ControlNet, diffusers XL": (
        {"controlnet_down_blocks.0.weight": (320, 320, 1, 1), "add_embedding.linear_1.weight": (1280, 2816)},
        "controlnet",
        "sdxl",
    ),
    "ControlNet, 1.x": (
        {
            "control_model.zero_convs.0.0.weight": (320, 320, 1, 1),
            "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        },
        "controlnet",
        "sd1",
    ),
    "T2I-Adapter": (
        {"body.0.block1.weight": (320, 320, 3, 3), "conv_in.weight": (320, 192, 3, 3)},
        "controlnet",
        "sd1",
    ),
    "XLabs'": (
        {
            "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
            "pos_embed_input.weight": (3072, 64),
            "controlnet_blocks.0.weight": (3072, 3072),
        },
        "controlnet",
        "flux",
    ),
    "Control-LoRA": ({"lora_controlnet": (), "input_blocks.1.0.up": (1, 1)}, "controlnet", ""),
    "IP-Adapter, 1.x": (
        {"image_proj.norm.weight": (768,), "ip_adapter.1.to_k_ip.weight": (320, 768)},
        "ip-adapter",
        "sd1",
    ),
    "IP-Adapter, XL": (
        {"image_proj.norm.weight": (2048,), "ip_adapter.1.to_k_ip.weight": (640, 2048)},
        "ip-adapter",
        "sdxl",
    ),
    "TAESD": ({"1.weight": (64, 4, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)}, "preview", "sd1"),
    "ESRGAN, old": (
        {"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)},
        "upscaler",
        "",
    ),
    "ESRGAN, new": (
        {
            "params_ema.conv_first.weight": (64, 3, 3, 3),
            "params_ema.body.0.rdb1.conv1.weight": (32, 64, 3, 3),
        },
        "upscaler",
        "",
    ),
    "CLIP vision": ({"vision_model.embeddings.class_embedding": (1024,)}, "other", ""),
    "nothing known": ({"a.b": (3, 4, 5)}, "other", ""),
    "no weights": ({}, "other", ""),
}


@pytest.mark.parametrize("case", RELATIVES)
def test_what_goes_with_a_checkpoint_is_known_by_names_and_sizes(case):
    shapes, kind, family = RELATIVES[case]
    found = identify(layouts.header(shapes))
    assert (found.kind, found.family) == (kind, family)
    assert bool(found.problem) == (kind == "other" or case in ("T2I-Adapter", "Control-LoRA", "XLabs'"))


@pytest.mark.parametrize(
    ("config", "name", "kind", "family"),
    [("sd1", "any", "vae", ""), ("sd1", "sdxl_vae", "vae", "sdxl"), ("flux-dev", "ae", "vae", "flux"),
     ("sd3", "any", "vae", "")],
)  # fmt: skip
def test_a_vae_is_one_under_any_names(config, name, kind, family):
    state = layouts.part(config, "vae")
    ldm = single_file.vae(state, 4)
    for each in (state, ldm, {f"first_stage_model.{name}": shape for name, shape in ldm.items()}):
        found = identify(layouts.header(each), Beside(name))
        assert (found.kind, found.family, found.problem) == (kind, family, "")
        assert found.width == (16 if config in ("sd3", "flux-dev") else 4)


@pytest.mark.parametrize(
    ("config", "part", "title", "width"),
    [
        ("sd1", "text_encoder", "CLIP", 768),
        ("sdxl", "text_encoder_2", "CLIP", 1280),
        ("sd2", "text_encoder", "CLIP", 1024),
        ("sd3", "text_encoder_3", "T5", 4096),
    ],
)
def test_a_text_encoder_says_what_it_is_and_how_wide(config, part, title, width):
    state = layouts.part(config, part)
    under = {f"text_model.{name}": shape for name, shape in state.items()}
    for each in (state, under) if title != "T5" else (state,):
        found = identify(layouts.header(each))
        assert (found.kind, found.layout, found.width) == ("text encoder", title, width)
        assert found.note == "It reads prompts for nets that lie alone."
    single = identify(layouts.header(single_file.open_clip(state) if title == "CLIP" else state))
    assert bool(single.problem) == (title == "CLIP")


def test_real_controlnets_are_known():
    import diffusers
    import torch

    with torch.device("meta"):
        nets = {
            "sd1": diffusers.ControlNetModel(cross_attention_dim=768),
            "sd2": diffusers.ControlNetModel(cross_attention_dim=1024),
            "sd3": diffusers.SD3ControlNetModel(num_layers=1),
            "flux": diffusers.FluxControlNetModel(num_layers=1, num_single_layers=1),
        }
        union = diffusers.ControlNetUnionModel(addition_embed_type="text_time", addition_time_embed_dim=8,
                                               projection_class_embeddings_input_dim=64)  # fmt: skip
    for family, net in nets.items():
        found = identify(layouts.header(net.state_dict()))
        assert (found.kind, found.family, found.problem) == ("controlnet", family, "")
    found = identify(layouts.header(union.state_dict()))
    assert (found.kind, found.family) == ("controlnet", "sdxl")
    assert "a union ControlNet" in found.problem


@pytest.mark.parametrize(
    ("title", "family", "said"),
    [
        ("SD3ControlNetModel", "sd3", ""),
        ("FluxControlNetModel", "flux", ""),
        ("ControlNetUnionModel", "", "a union ControlNet"),
    ],
)
def test_a_folder_of_a_controlnet_says_its_family(tmp_path, title, family, said):
    folder = tmp_path / "ControlNet" / "edges"
    layouts.write(folder / "diffusion_pytorch_model.safetensors", layouts.header({"any": (2, 2)}))
    (folder / "config.json").write_text(json.dumps({"_class_name": title}))
    found = Catalogue([tmp_path]).of("controlnet")["edges"]
    assert found.family == family
    assert said in found.problem
    assert bool(said) == bool(found.problem)


def test_names_of_a_known_kind_over_shapes_that_are_not_are_no_error():
    for name in ("input_blocks.0.0.weight", "decoder.conv_in.weight", "emb_params", "joint_blocks.x.weight"):
        assert identify(layouts.header({name: ()})).kind == "other"


def test_a_familys_name_in_the_metadata_helps_where_sizes_do_not():
    header = layouts.header(
        {"lora_unet_x.lora_down.weight": (8, 320)}, ss_base_model_version="sdxl_base_v1-0"
    )
    assert identify(header).family == "sdxl"


@pytest.mark.parametrize(
    ("metadata", "card", "words"),
    [
        ({}, "", ()),
        ({"modelspec.trigger_phrase": "ink style, ink"}, "", ("ink style", "ink")),
        ({"ss_tag_frequency": json.dumps({"10_a": {"cat": 20, "hat": 12, "sun": 3}})}, "", ("cat", "hat")),
        ({"modelspec.trigger_phrase": "a"}, '{"activation text": "mine, his"}', ("mine", "his")),
        ({"ss_tag_frequency": "{broken"}, "[broken", ()),
        ({"ss_tag_frequency": "[1, 2]"}, '{"activation text": 5}', ()),
    ],
)
def test_trigger_words_come_from_the_card_or_the_trainer(metadata, card, words):
    assert relatives.trigger_words(metadata, card) == words


# Shelves

LORA = layouts.header({f"{KOHYA}.lora_down.weight": (8, 768)})


@pytest.fixture(scope="module")
def kinds() -> dict[str, Header]:
    return {
        "Stable-diffusion/real": layouts.header(layouts.whole("sd1")),
        "checkpoints/xl": layouts.header(layouts.whole("sdxl")),
        "Lora/ink": LORA,
        "VAE/clear": layouts.header(layouts.part("sd1", "vae")),
        "embeddings/cat": layouts.header({"emb_params": (4, 768)}),
        "ESRGAN/large": layouts.header({"conv_first.weight": (64, 3, 3, 3)}),
    }


def shelve(root: Path, kinds: dict[str, Header]) -> Path:
    for name, header in kinds.items():
        layouts.write(root / f"{name}.safetensors", header)
    return root


def listed(catalogue: Catalogue) -> dict[str, str]:
    return {found.name: found.kind for found in catalogue.all()}


def test_files_in_a1111s_and_comfyuis_folders_are_listed_as_what_they_are(tmp_path, kinds):
    catalogue = Catalogue([shelve(tmp_path, kinds)])
    shutil.copytree(POCKET, tmp_path / "deep" / "deeper" / "pocket")
    assert listed(catalogue) == {
        "real": "checkpoint", "xl": "checkpoint", "ink": "lora", "clear": "vae", "cat": "embedding",
        "large": "upscaler", "pocket": "checkpoint",
    }  # fmt: skip
    assert [found.problem for found in catalogue.all()] == [""] * 7
    assert catalogue.of("checkpoint")["pocket"].folder
    assert not catalogue.of("checkpoint")["real"].folder


@pytest.mark.parametrize("family", tiny.MAKERS)
def test_a_folder_of_any_family_is_a_checkpoint(family, tmp_path):
    tiny.folder(family, tmp_path / "mine")
    (found,) = Catalogue([tmp_path]).all()
    assert (found.kind, found.family, found.problem) == ("checkpoint", family, "")
    flow = family in ("sd3", "flux")
    assert found.prediction == (
        "flow_prediction" if flow else "v_prediction" if family == "sd2" else "epsilon"
    )
    assert found.precision == "float32"


def test_of_a_folder_with_variants_the_plain_weights_are_meant_else_those_of_half_precision(tmp_path):
    folder = tiny.folder("sd1", tmp_path / "models" / "mine")
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    half = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(plain, half)
    shutil.copy(plain, folder / "unet" / "diffusion_pytorch_model.ema.safetensors")

    def loaded() -> list[str]:
        (found,) = Catalogue([tmp_path / "models"]).all()
        return [name for name, _, _ in found.signature if name.startswith("unet/")]

    assert loaded() == ["unet/diffusion_pytorch_model.safetensors"]
    plain.unlink()
    assert loaded() == ["unet/diffusion_pytorch_model.fp16.safetensors"]
    half.unlink()
    assert "lacks .safetensors weights of unet" in Catalogue([tmp_path / "models"]).all()[0].problem


def test_a_kind_in_a_folder_for_another_is_what_it_is_and_says_so(tmp_path):
    layouts.write(tmp_path / "Stable-diffusion" / "ink.safetensors", LORA)
    (found,) = Catalogue([tmp_path]).all()
    assert (found.kind, found.problem) == ("lora", "")
    assert found.note == "It lies in a folder for another kind; it is a LoRA."
    with pytest.raises(InvalidField, match=r"^Model: 'ink' is not a model: it is a LoRA$"):
        Catalogue([tmp_path]).get("checkpoint", "ink", "model")


def test_what_is_missing_is_refused_with_what_may_have_been_meant(tmp_path):
    layouts.write(tmp_path / "ink drawing.safetensors", LORA)
    catalogue = Catalogue([tmp_path])
    with pytest.raises(InvalidField, match="there is no LoRA named 'inkdrawing'; there is ink drawing"):
        catalogue.get("lora", "inkdrawing", "prompt")
    assert catalogue.get("lora", "ink drawing", "prompt").family == "sd1"


def test_files_that_appear_change_or_vanish_are_noticed(tmp_path):
    catalogue = Catalogue([tmp_path / "models"])
    assert catalogue.all() == []
    path = layouts.write(tmp_path / "models" / "a.safetensors", LORA)
    (before,) = catalogue.all()
    assert catalogue.all()[0] is before
    layouts.write(path, layouts.header({"emb_params": (4, 768)}))
    assert listed(catalogue) == {"a": "embedding"}
    path.write_bytes(b"<html>")
    assert "web page" in catalogue.all()[0].problem
    path.unlink()
    assert catalogue.all() == []


def test_what_lies_beside_a_file_is_read_again_when_it_changes(tmp_path):
    layouts.write(tmp_path / "a.safetensors", layouts.header(layouts.whole("sd2")))
    catalogue = Catalogue([tmp_path])
    assert catalogue.all()[0].prediction == "v_prediction"
    (tmp_path / "a.yaml").write_text("parameterization: eps")
    assert catalogue.all()[0].prediction == "epsilon"
    (tmp_path / "a.json").write_text('{"activation text": "mine"}')
    assert catalogue.all()[0].words == ("mine",)


def test_a_header_is_read_once_and_remembered_between_starts(tmp_path, monkeypatch):
    for number in range(30):
        layouts.write(tmp_path / "Lora" / f"{number}.safetensors", LORA)
    read, opened = headers.read, []
    monkeypatch.setattr(headers, "read", lambda path: opened.append(path) or read(path))
    first = Catalogue([tmp_path], tmp_path / "data").all()
    assert len(opened) == 30
    again = Catalogue([tmp_path], tmp_path / "data")
    assert again.all() == again.all() == first
    assert len(opened) == 30
    os.utime(tmp_path / "Lora" / "3.safetensors")
    again.all()
    assert [path.stem for path in opened[30:]] == ["3"]


@pytest.mark.parametrize("content", ["{broken", "[]", '{"PATH": {"stamp": 5}}', '{"PATH": 7}'])
def test_a_damaged_memory_is_begun_anew(tmp_path, content):
    path = layouts.write(tmp_path / "models" / "a.safetensors", LORA)
    memory = tmp_path / "cache" / "headers.json"
    memory.parent.mkdir()
    memory.write_text(content.replace("PATH", str(path)))
    assert listed(Catalogue([tmp_path / "models"], tmp_path)) == {"a": "lora"}
    assert str(path) in json.loads(memory.read_text())


def test_two_of_one_name_are_told_apart_whatever_they_are(tmp_path):
    for place in ("one/Lora/a", "two/Lora/a", "one/Lora/deep/a", "one/embeddings/a"):
        header = LORA if "Lora" in place else layouts.header({"emb_params": (4, 768)})
        layouts.write(tmp_path / f"{place}.safetensors", header)
    (tmp_path / "one" / "Lora" / "a.ckpt").write_bytes(b"PK\x03\x04")
    catalogue = Catalogue([tmp_path / "one", tmp_path / "two"])
    names = {found.name: found.path for found in catalogue.all() if found.kind == "lora"}
    assert len(names) == 4
    assert "a" in names
    assert names["a (deep)"] == tmp_path / "one/Lora/deep/a.safetensors"
    assert catalogue.of("embedding").keys() == {"a"}


def test_hidden_and_half_downloaded_files_are_left_out(tmp_path):
    for name in (".a.safetensors", "a.safetensors.part", "b.safetensors.incomplete", ".cache/c.safetensors"):
        layouts.write(tmp_path / name, LORA)
    (tmp_path / "notes.txt").write_text("a")
    assert Catalogue([tmp_path]).all() == []


def test_a_link_is_followed_within_the_folders_and_refused_out_of_them(tmp_path):
    inside = layouts.write(tmp_path / "models" / "Lora" / "a.safetensors", LORA)
    outside = layouts.write(tmp_path / "secret" / "b.safetensors", LORA)
    (tmp_path / "models" / "within.safetensors").symlink_to(inside)
    (tmp_path / "models" / "without.safetensors").symlink_to(outside)
    (tmp_path / "models" / "folder").symlink_to(outside.parent)
    (tmp_path / "models" / "nowhere.safetensors").symlink_to(tmp_path / "gone")
    (tmp_path / "models" / "Lora" / "round").symlink_to(tmp_path / "models")
    (tmp_path / "models" / "Lora" / "again").symlink_to(tmp_path / "models" / "Lora")
    found = {found.name: found.problem for found in Catalogue([tmp_path / "models"]).all()}
    assert found.keys() == {"a", "within", "without", "folder", "nowhere"}
    assert found["a"] == found["within"] == ""
    assert "outside the models folders" in found["without"]
    assert "outside the models folders" in found["folder"]
    assert "b" not in found
    both = Catalogue([tmp_path / "models", tmp_path / "secret"])
    assert {each.name: each.problem for each in both.all()}["without"] == ""


def test_a_folder_within_another_is_gone_through_once_and_a_linked_model_has_two_names(tmp_path):
    folder = tiny.folder("sd1", tmp_path / "models" / "deep" / "painter")
    layouts.write(tmp_path / "models" / "deep" / "a.safetensors", LORA)
    (tmp_path / "models" / "twin").symlink_to(folder)
    catalogue = Catalogue([tmp_path / "models", tmp_path / "models" / "deep"])
    assert listed(catalogue) == {"a": "lora", "painter": "checkpoint", "twin": "checkpoint"}


def test_the_newest_snapshot_of_the_hugging_face_cache_is_listed(tmp_path):
    repository = tmp_path / "hub" / "models--someone--drawings"
    blob = repository / "blobs" / "0a1b"
    layouts.write(blob, LORA)
    for commit in ("aaaa", "bbbb"):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / f"{commit}.safetensors").symlink_to(Path("..") / ".." / "blobs" / "0a1b")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("aaaa")
    tiny.folder("sd1", tmp_path / "hub" / "models--someone--painter" / "snapshots" / "cccc")
    catalogue = Catalogue([tmp_path / "models"], hub=tmp_path / "hub")
    assert listed(catalogue) == {"aaaa": "lora", "painter": "checkpoint"}
    assert [found.problem for found in catalogue.all()] == ["", ""]
    (repository / "refs" / "main").unlink()
    os.utime(repository / "snapshots" / "bbbb")
    assert "bbbb" in listed(catalogue)


def test_parts_and_namesakes_in_the_hugging_face_cache_are_told_apart(tmp_path):
    import diffusers

    hub = tmp_path / "hub"
    for owner in ("ann", "bob"):
        tiny.folder("sd1", hub / f"models--{owner}--painter" / "snapshots" / "cccc")
    net = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4, num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )  # fmt: skip
    net.save_pretrained(hub / "models--ann--taesd" / "snapshots" / "dddd")
    found = Catalogue([], hub=hub).all()
    assert {each.name: each.kind for each in found} == {
        "painter": "checkpoint", "painter (bob)": "checkpoint", "taesd": "preview",
    }  # fmt: skip
    assert [each.problem for each in found] == [""] * 3


def test_a_folder_named_itself_may_be_a_model_or_a_shelf_of_one_kind(tmp_path):
    tiny.folder("sd1", tmp_path / "painter")
    assert listed(Catalogue([tmp_path / "painter"])) == {"painter": "checkpoint"}
    layouts.write(tmp_path / "Lora" / "a.safetensors", LORA)
    (tmp_path / "Lora" / "broken.safetensors").write_bytes(b"")
    (tmp_path / "Lora" / "config.json").write_text("{}")  # a stray one hides nothing
    assert listed(Catalogue([tmp_path / "Lora"])) == {"a": "lora", "broken": "lora"}


def test_a_folder_that_cannot_be_read_or_is_no_folder_is_passed_by(tmp_path):
    (tmp_path / "file").write_text("a")
    shut = tmp_path / "models" / "shut"
    shut.mkdir(parents=True)
    shut.chmod(0)
    try:
        assert Catalogue([tmp_path / "file", tmp_path / "models", tmp_path / "gone"]).all() == []
    finally:
        shut.chmod(0o700)


def test_a_name_that_cannot_be_shown_is_listed_with_a_problem(tmp_path):
    layouts.write(tmp_path / "a\nb.safetensors", LORA)
    (tmp_path / os.fsdecode(b"\xff.safetensors")).write_bytes(b"")
    found = Catalogue([tmp_path], tmp_path / "data").all()
    assert sorted(each.name for each in found) == ["?", "a?b"]
    assert all(each.problem for each in found)


def test_a_data_folder_that_cannot_be_written_is_only_slower(tmp_path):
    layouts.write(tmp_path / "models" / "a.safetensors", LORA)
    (tmp_path / "data").write_text("a file where a folder should be")
    catalogue = Catalogue([tmp_path / "models"], tmp_path / "data")
    assert listed(catalogue) == {"a": "lora"}
    assert catalogue.sha256(catalogue.all()[0])


def test_a_file_that_reads_prompts_with_t5_needs_nothing_more(tmp_path):
    layouts.write(
        tmp_path / "Stable-diffusion" / "a.safetensors", layouts.header(layouts.whole("sd3", t5=True))
    )
    assert Catalogue([tmp_path]).all()[0].problem == ""


# Pickles, where a person has allowed them


class Bomb:
    """A pickle that writes a file when it is opened as usual."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_an_allowed_pickle_is_known_by_its_names_and_nothing_in_it_is_run(tmp_path, zipped, wrapped):
    import torch
    from safetensors.torch import load_file

    file = single_file.write(POCKET, tmp_path / "models" / "mine.safetensors")
    state = load_file(file)
    file.unlink()
    state |= {"callbacks": Bomb(tmp_path / "exploded"), "global_step": 7}
    content = {"state_dict": state, "loop": Bomb(tmp_path / "exploded")} if wrapped else state
    torch.save(content, file.with_suffix(".ckpt"), _use_new_zipfile_serialization=zipped)
    assert "pickle" in Catalogue([tmp_path / "models"], tmp_path).all()[0].problem
    (found,) = Catalogue([tmp_path / "models"], tmp_path, allow_pickle=True).all()
    assert (found.kind, found.family, found.precision, found.problem) == ("checkpoint", "sd1", "float16", "")
    assert not (tmp_path / "exploded").exists()
    torch.load(file.with_suffix(".ckpt"), weights_only=False)
    assert (tmp_path / "exploded").exists()  # so it would have been


def test_allowed_pickles_that_are_no_models_are_told_what_they_are(tmp_path):
    import torch

    lora = {f"{KOHYA}.lora_down.weight": torch.zeros(8, 768)}
    torch.save(lora, tmp_path / "lora.pt")
    torch.save({"string_to_param": {"*": torch.zeros(4, 768)}, "name": "a"}, tmp_path / "word.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "bomb.ckpt").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    (tmp_path / "noise.ckpt").write_bytes(b"\x80\x04" + bytes(range(200)))
    (tmp_path / "page.ckpt").write_bytes(b"<html>")
    found = {each.name: each for each in Catalogue([tmp_path], allow_pickle=True).all()}
    assert {name: each.kind for name, each in found.items()} == {
        "lora": "lora", "word": "embedding", "list": "other", "bomb": "checkpoint", "noise": "checkpoint",
        "page": "checkpoint",
    }  # fmt: skip
    assert "only whole models are taken" in found["lora"].problem
    assert "no weights by name" in found["list"].problem
    assert "damaged" in found["noise"].problem
    assert "web page" in found["page"].problem
    assert found["bomb"].problem
    assert not (tmp_path / "exploded").exists()


def test_a_folder_of_pickled_weights_is_usable_only_where_they_are_allowed(tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "models" / "mine"
    shutil.copytree(POCKET, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    assert "lacks .safetensors weights of unet" in Catalogue([folder.parent]).all()[0].problem
    (found,) = Catalogue([folder.parent], allow_pickle=True).all()
    assert found.problem == ""
    assert [name for name, _, _ in found.signature][1] == "unet/diffusion_pytorch_model.bin"


# Hashes and notes


def test_a_hash_is_reckoned_once_for_a_size_and_time(tmp_path, monkeypatch):
    import hashlib

    from webui.catalogue import hashes

    path = tmp_path / "models" / "a.safetensors"
    layouts.write(path, LORA)
    catalogue = Catalogue([tmp_path / "models"], tmp_path)
    (found,) = catalogue.all()
    assert catalogue.known_sha256(found) == ""
    assert catalogue.sha256(found) == hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(hashes, "digest", None)
    again = Catalogue([tmp_path / "models"], tmp_path)
    assert again.sha256(found) == again.known_sha256(found) == catalogue.sha256(found)
    os.utime(path, ns=(1, 1))
    assert again.known_sha256(again.all()[0]) == ""


def test_hashes_are_reckoned_in_the_background(tmp_path):
    for name in "abc":
        layouts.write(tmp_path / "models" / f"{name}.safetensors", LORA)
    (tmp_path / "models" / "bad.safetensors").write_bytes(b"")
    catalogue = Catalogue([tmp_path / "models"])
    catalogue.start()
    for thread in [each for each in threading.enumerate() if each.name == "hashes"]:  # it may have ended
        thread.join()
    known = {found.name: bool(catalogue.known_sha256(found)) for found in catalogue.all()}
    assert known == {"a": True, "b": True, "c": True, "bad": False}


def test_reckoning_a_large_file_is_given_up_at_the_end(tmp_path):
    layouts.write(tmp_path / "a.safetensors", Header({"emb_params": Tensor("F32", (2**30, 64))}))  # 256 GiB
    catalogue = Catalogue([tmp_path])
    catalogue.start()
    catalogue.close()
    assert catalogue.known_sha256(catalogue.all()[0]) == ""


def test_notes_last_and_are_kept_by_kind_and_name(tmp_path):
    notes = Catalogue([], tmp_path).notes
    assert notes.get("lora", "ink") == Note()
    notes.change("lora", "ink", favourite=True, text="for drawings", thumbnail="2026/a.png")
    again = Catalogue([], tmp_path).notes
    assert again.get("lora", "ink") == Note(True, "for drawings", "2026/a.png")
    assert again.get("checkpoint", "ink") == Note()
    assert again.favourites("lora") == {"ink"}
    again.change("lora", "ink", favourite=False, text="", thumbnail="")
    assert json.loads((tmp_path / "models.json").read_text()) == {}


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a//b.png", "a\\..\\b", "c:/a.png"])
def test_a_thumbnail_outside_the_outputs_is_refused_and_not_believed(tmp_path, path):
    catalogue = Catalogue([], tmp_path)
    with pytest.raises(ValueError, match="below the outputs"):
        catalogue.notes.change("lora", "ink", thumbnail=path)
    (tmp_path / "models.json").write_text(json.dumps({"lora/ink": {"thumbnail": path, "favourite": 1}}))
    assert Catalogue([], tmp_path).notes.get("lora", "ink") == Note()
