"""What a file is, told by the names, shapes and types of its tensors and by its metadata: no weight is read.

The names are those of the published files: CompVis' and Stability's ("LDM", which A1111 takes), ComfyUI's
"all in one" ones, and diffusers' own. A family is told by what its file is made of, and only then by sizes.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from webui.catalogue import relatives
from webui.catalogue.found import FAMILY_TITLES, Family, Identity
from webui.catalogue.headers import Header
from webui.request import TASKS, Task

PREFIX = "model.diffusion_model."
V = "v_prediction"
FLOW = "flow_prediction"
CONTEXTS: dict[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
# How many tensors the published nets have, and the width of the text they are told: others of a family
# need a configuration of their own.
PUBLISHED = {
    "sd1": {(686, 768)},
    "sd2": {(686, 1024)},
    "sdxl": {(1680, 2048)},
    "sdxl-refiner": {(1220, 1280)},
    "sd3": {(491, 4096), (665, 4096), (923, 4096)},  # medium, 3.5 medium, 3.5 large
    "flux": {(780, 4096), (776, 4096)},  # dev, schnell
}
#: Of other families: a name that only their net has, and what they are called.
OTHERS = {
    "distilled_guidance_layer.in_proj.weight": "Chroma",
    "single_stream_modulation.lin.weight": "Flux 2",
    "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias": "HunyuanVideo",
    "head.modulation": "Wan",
    "cap_embedder.0.weight": "Lumina or Z-Image",
    "double_layers.0.attn.w1q.weight": "AuraFlow",
    "blocks.0.cross_attn.q_linear.weight": "Sana or PixArt",
    "txt_in.text_norm.weight": "Qwen-Image",
    "transformer_blocks.0.img_mod.1.weight": "Qwen-Image",
    "clip_txt_mapper.weight": "Stable Cascade",
    "patchify_proj.weight": "LTX-Video",
    "blocks.0.attn.qkv_x.weight": "Mochi",
    "txtfusion.projector.weight": "Krea 2",
    "net.x_embedder.proj.1.weight": "Cosmos",
    "double_stream_blocks.0.block.adaLN_modulation.1.bias": "HiDream",
    "edm_mean": "Playground 2.5",
}
QUANTISED = "It is quantised in a way that is not supported here. Ask for it in float16 or bfloat16."
_PACKED = re.compile(r"\.(quant_map|quant_state\b.*|bitsandbytes__.*|qweight|scale_weight|weight_scale)$")


@dataclass(frozen=True)
class Beside:
    """What lies beside a file and says more of it.

    ``name`` is its own, without its ending; ``yaml`` the text of a NAME.yaml as A1111 reads it; ``config``
    whether there is a folder NAME.config with the configuration of its pipeline.
    """

    name: str = ""
    yaml: str = ""
    config: bool = False


def identify(header: Header, beside: Beside = Beside()) -> Identity:
    """Never fails: what is not known is of the kind "other", with a problem."""
    unknown = "It is no kind of model that is known here." if header.tensors else "It holds no weights."
    identity = Identity("other", problem=unknown)
    with contextlib.suppress(IndexError, ValueError):  # names of a known kind over shapes that are not
        identity = next(_guesses(header, beside), identity)
    if quantised(header):
        identity = replace(identity, tasks=(), config="", problem=QUANTISED)
    return replace(identity, precision=header.precision, zero_snr="ztsnr" in header.tensors)


def quantised(header: Header) -> bool:
    """Whether its weights are packed as bitsandbytes', GPTQ's or ComfyUI's scaled kinds are."""
    return "scaled_fp8" in header.tensors or any(map(_PACKED.search, header.tensors))


def _guesses(header: Header, beside: Beside) -> Iterator[Identity]:
    """What it may be, the surest first."""
    found = (guess(header, beside.name) for guess in relatives.KINDS)
    nets = (net(header, beside) for net in (_ldm, _sd3, _flux, _diffusers, _other_family))
    later = (guess(header, beside.name) for guess in relatives.LATER_KINDS)
    return (identity for identity in itertools.chain(found, nets, later) if identity)


# Nets, alone or in a checkpoint


def _ldm(header: Header, beside: Beside) -> Identity | None:
    """A UNet under CompVis' names: Stable Diffusion 1.x, 2.x and XL."""
    prefix = _prefix(header, "input_blocks.0.0.weight")
    if prefix is None:
        return None
    channels = header.shape(f"{prefix}input_blocks.0.0.weight")[1]
    context = _context(header, prefix)
    family = _unet_family(header, prefix, context)
    if f"{prefix}label_emb.weight" in header.tensors or channels == 7:
        return Identity(
            "checkpoint", "other", problem="It is an upscaler by diffusion, which is not supported."
        )
    if family == "sd2" and f"{prefix}label_emb.0.0.weight" in header.tensors:
        return Identity("checkpoint", "other", problem="It is an unCLIP model, which is not supported here.")
    tasks, problem = unet_tasks(family, channels)
    prediction, note = _prediction(header, family, channels, beside)
    if "edm_mean" in header.tensors:
        problem = "It is a Playground 2.5 model, whose sampling is not supported here."
    identity = Identity("checkpoint", family, "ldm", problem, prediction, tasks=tasks, note=note)
    config = "-".join(
        [family] + ["inpainting"] * (channels == 9) + ["base"] * _small_sd2(family, channels, prediction)
    )
    return _completed(identity, header, beside, prefix, context, config)


def _small_sd2(family: Family, channels: int, prediction: str) -> bool:
    return family == "sd2" and channels == 4 and prediction == "epsilon"


def unet_tasks(family: Family, channels: int) -> tuple[tuple[Task, ...], str]:
    """What a UNet that takes so many channels can do, and why it can do nothing."""
    if channels == 4:
        return (("img2img", "inpaint") if family == "sdxl-refiner" else TASKS), ""
    if channels == 9:
        return ("inpaint",), ""
    words = {8: "an instruct-pix2pix model", 5: "a depth-to-image model"}
    what = words.get(channels, f"a net that takes {channels} channels")
    return (), f"It is {what}, a task that is not known here."


def _unet_family(header: Header, prefix: str, context: int) -> Family:
    has = tuple(header.tensors)
    large = f"{prefix}label_emb.0.0.weight" in header.tensors and context != 1024
    if any(name.startswith("conditioner.embedders.1.") for name in has):
        return "sdxl"
    if any(name.startswith("conditioner.embedders.0.model.") for name in has):
        return "sdxl-refiner"
    if any(name.startswith("cond_stage_model.model.") for name in has):
        return "sd2"
    if any(name.startswith("cond_stage_model.transformer.") for name in has):
        return "sd1"
    return CONTEXTS.get(context) or ("sdxl" if large else "")


def _sd3(header: Header, beside: Beside) -> Identity | None:
    prefix = _prefix(header, "joint_blocks.0.x_block.attn.qkv.weight")
    if prefix is None:
        return None
    identity = Identity("checkpoint", "sd3", "comfy", "", FLOW, tasks=TASKS)
    blocks = 1 + max(
        int(name.split(".")[1]) for name in _below(header, prefix) if name.startswith("joint_blocks.")
    )
    config = {24: "sd3", 38: "sd35-large"}.get(blocks, "sd3")
    if f"{prefix}joint_blocks.0.x_block.attn2.qkv.weight" in header.tensors:
        config = "sd35-medium"
    width = header.shape(f"{prefix}context_embedder.weight")[-1]
    return _completed(identity, header, beside, prefix, width, config)


def _flux(header: Header, beside: Beside) -> Identity | None:
    prefix = _prefix(header, "double_blocks.0.img_attn.norm.key_norm.scale")
    if prefix is None or _other_name(header):
        return None
    guided = f"{prefix}guidance_in.in_layer.weight" in header.tensors
    channels = header.shape(f"{prefix}img_in.weight")[-1]
    special = {384: "Fill", 128: "Canny or Depth"}.get(channels)
    problem = f"It is a Flux {special} model, which is not supported here." if special else ""
    identity = Identity("checkpoint", "flux", "comfy", problem, FLOW, tasks=() if problem else TASKS)
    width = header.shape(f"{prefix}txt_in.weight")[-1]
    return _completed(identity, header, beside, prefix, width, "flux-dev" if guided else "flux-schnell")


def _diffusers(header: Header, beside: Beside) -> Identity | None:
    """A net alone, under diffusers' names, which needs a configuration beside it."""
    names = header.tensors
    family: Family
    if "down_blocks.0.resnets.0.norm1.weight" in names and "up_blocks.0.resnets.0.norm1.weight" in names:
        if not any(name.startswith("time_embedding.") for name in names):
            return None
        context = _context(header, "")
        family = CONTEXTS.get(context) or ("sdxl" if "add_embedding.linear_1.weight" in names else "")
    elif "single_transformer_blocks.0.proj_out.weight" in names and "context_embedder.weight" in names:
        family = "flux"
    elif "pos_embed.proj.weight" in names and "transformer_blocks.0.attn.add_k_proj.weight" in names:
        family = "sd3"
    else:
        return None
    identity = Identity("net", family, layout="diffusers", tasks=TASKS)
    return identity if beside.config else _alone(identity)


def _other_family(header: Header, _: Beside) -> Identity | None:
    if title := _other_name(header):
        return Identity("checkpoint", "other", problem=f"It is a model of another family, {title}.")
    if any(name.startswith(PREFIX) for name in header.tensors):
        return Identity("checkpoint", "other", problem="It is a model of a family that is not known here.")
    return None


def _other_name(header: Header) -> str:
    found = (
        title for name, title in OTHERS.items() if name in header.tensors or PREFIX + name in header.tensors
    )
    return next(found, "")


# What they share


def _prefix(header: Header, name: str) -> str | None:
    """Under which prefix the file has this name, if it has it at all."""
    return next((prefix for prefix in (PREFIX, "") if prefix + name in header.tensors), None)


def _below(header: Header, prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in header.tensors if name.startswith(prefix)]


def _context(header: Header, prefix: str) -> int:
    """The width of the text that a UNet is told: the keys of its first cross-attention. 0 without one."""
    found = (
        tensor.shape[-1]
        for name, tensor in header.tensors.items()
        if name.startswith(prefix) and name.endswith("attn2.to_k.weight")
    )
    return next(found, 0)


def _completed(
    identity: Identity, header: Header, beside: Beside, prefix: str, width: int, config: str
) -> Identity:
    """With the configuration it is loaded by; a checkpoint if VAE and text encoders are there too."""
    starts = {name.split(".", 1)[0] for name in header.tensors}
    with_vae = not starts.isdisjoint({"first_stage_model", "vae"})
    with_text = not starts.isdisjoint({"cond_stage_model", "conditioner", "text_encoders"})
    if not with_text:
        identity = replace(identity, kind="net", own_vae=with_vae)
    elif not with_vae and not identity.problem:
        identity = replace(identity, problem=f"Its VAE is missing. {_HOW}")
    if beside.config or identity.problem:
        return identity
    if (len(_below(header, prefix)), width) in PUBLISHED.get(identity.family, ()):
        return replace(identity, config=config)
    title = FAMILY_TITLES.get(identity.family, "a family that is known here")
    problem = (
        f"Its net has other sizes than the published {title}. If you have the configuration of its pipeline "
        f"(model_index.json and what belongs to it), put it beside the file in a folder {beside.name}.config."
    )
    return replace(identity, problem=problem)


_HOW = "Use a file that has all parts in one, or a folder in diffusers' layout."


def _alone(identity: Identity) -> Identity:
    title = FAMILY_TITLES.get(identity.family, "of a family that is not known here")
    problem = f"It is a denoising net alone ({title}) under diffusers' names. {_HOW}"
    return replace(identity, problem=problem, tasks=())


# What the net predicts


def _prediction(header: Header, family: Family, channels: int, beside: Beside) -> tuple[str, str]:
    """(what it predicts, what is assumed for want of better)."""
    if (said := _said(header, beside)) or beside.config:
        return said, ""  # else the configuration does
    if family == "sd2" and channels == 4:
        return _assumed_sd2(header, beside)
    if re.search(r"v[-_ ]?pred", beside.name.lower()):
        return V, "It is taken for a v-prediction model by its name. If colours are wrong, rename it."
    return "epsilon", ""


def _said(header: Header, beside: Beside) -> str:
    """By the keys trainers put in, by the YAML beside the file, or by the metadata; "" if nothing says it."""
    if "v_pred" in header.tensors:
        return V
    if found := re.search(r"^\s*parameterization:\s*['\"]?(\w+)", beside.yaml, re.MULTILINE):
        return V if found[1] in ("v", V) else "epsilon"
    metadata = header.metadata
    said = metadata.get("modelspec.prediction_type") or metadata.get("modelspec.predict_key") or ""
    if said:
        return V if said.lower().startswith("v") else "epsilon"
    if "v2-768-v" in metadata.get("modelspec.architecture", ""):
        return V
    return {"True": V, "False": "epsilon"}.get(metadata.get("ss_v_parameterization", ""), "")


def _assumed_sd2(header: Header, beside: Beside) -> tuple[str, str]:
    """Both kinds of 2.x have the same tensors."""
    words = f"{beside.name} {header.metadata.get('modelspec.architecture', '')}".lower()
    small = re.search(r"512|base", words) is not None and "768" not in words
    prediction = "epsilon" if small else V
    plain = "noise (the 512 kind)" if small else "v (the 768 kind)"
    return prediction, (
        f"Nothing in the file says what it predicts; {plain} is assumed. If its pictures are noise, put a "
        f"file {beside.name}.yaml beside it that says 'parameterization: \"{'v' if small else 'eps'}\"'."
    )
