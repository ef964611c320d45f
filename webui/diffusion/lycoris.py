"""LoRA's relatives: what a layer's weight becomes, by the tensors that a file holds for it.

W is a layer's weight (out, in, *kernel), s = alpha / rank, and w the weight in the prompt. Each kind says
what W' is, and W becomes W + w·(W' - W), so that with 0 it stays as it is; BOFT weakens each of its factors
instead.

LoRA    W' = W + s·B A                           arXiv:2106.09685, equation 3
LoHa    W' = W + s·(B₁A₁ ⊙ B₂A₂)                 arXiv:2108.06098 (FedPara), arXiv:2309.14859 (LyCORIS)
LoKr    W' = W + s·(C ⊗ B A)                     arXiv:2212.10650 (KronA), arXiv:2309.14859
Tucker  B A = T ×₁ B ×₂ A, T (r, r, *kernel)     arXiv:2108.06098; in these three, for convolutions
DoRA    W' = m V/‖V‖, V the W' of these three    arXiv:2402.09353, equation 5
full    W' = W + ΔW, of biases and norms too     arXiv:2309.14859
GLoRA   W' = W + s·(W A₁A₂ + B₁B₂)               arXiv:2306.07967
(IA)³   W' = W + m ⊙ W, m by row or by column    arXiv:2205.05638, section 3.3
OFT     W' = Rᵀ W, R's blocks (I + Q)(I - Q)⁻¹   arXiv:2306.07280
BOFT    W' = Rₘ ... R₁ W, each of shuffled rows  arXiv:2311.06243

The names of the tensors, the meaning of alpha and the order of the blocks are LyCORIS', with which the tests
compare; of a weight other than 1 DoRA and OFT's rescaling are as in A1111 and ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

Tensors = Mapping[str, torch.Tensor]  # of one layer, float32, by the last part of their names

EPSILON = torch.finfo(torch.float32).eps


def weight(old: torch.Tensor, tensors: Tensors, factor: float) -> torch.Tensor:
    """What a layer's weight ``old``, float32, becomes with ``factor`` times what a file makes of it.

    Raises:
        KeyError, RuntimeError, ValueError: tensors are missing, or do not fit the layer.
    """
    if "oft_blocks" in tensors and tensors["oft_blocks"].ndim == 4:
        new = _butterfly(old, tensors, factor)
    else:
        delta = KINDS[kind(tensors)](old, tensors)
        if len(delta) != len(old):
            raise ValueError(f"{tuple(delta.shape)} is for another layer than {tuple(old.shape)}")
        delta = delta.reshape(old.shape)
        if "dora_scale" in tensors:
            delta = _decomposed(old + delta, tensors["dora_scale"]) - old
        new = old + delta * factor
    if new.shape != old.shape:
        raise ValueError(f"{tuple(new.shape)} is for another layer than {tuple(old.shape)}")
    return new


def bias(old: torch.Tensor, tensors: Tensors, factor: float) -> torch.Tensor:
    """The same of its bias (out,), for which only whole differences have something."""
    delta = tensors["b_norm"] if "b_norm" in tensors else tensors["diff_b"]
    return old + delta.reshape(old.shape) * factor


def changes_bias(tensors: Tensors) -> bool:
    return "b_norm" in tensors or "diff_b" in tensors


def kind(tensors: Tensors) -> str:
    """Which of ``KINDS`` the tensors of a layer are of.

    Raises:
        KeyError: none.
    """
    marks = (mark for mark in KINDS if any(name.startswith(mark) for name in tensors))
    if (mark := next(marks, None)) is None:
        raise KeyError(", ".join(tensors))
    return mark


# ΔW of each kind


def _lora(_: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    up, down = tensors["lora_up.weight"], tensors["lora_down.weight"]
    core = tensors.get("lora_mid.weight")
    up = up.flatten(1)
    return _product(up if core is None else up.T, down, core) * _scale(tensors, len(down))


def _loha(_: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    first, second = (
        _product(tensors[f"hada_w{k}_a"], tensors[f"hada_w{k}_b"], tensors.get(f"hada_t{k}")) for k in (1, 2)
    )
    return first * second * _scale(tensors, len(tensors["hada_w1_b"]))


def _lokr(_: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """A kernel is counted with the inputs: kron() of matrices is then the same as of the whole."""
    parts, ranks = [], []
    for name in ("lokr_w1", "lokr_w2"):
        if name in tensors:
            parts.append(tensors[name])
        else:
            down = tensors[f"{name}_b"]
            parts.append(_product(tensors[f"{name}_a"], down, tensors.get(f"{name.replace('w', 't')}")))
            ranks.append(len(down))
    scale = _scale(tensors, ranks[-1]) if ranks else 1.0  # of two whole parts alpha says nothing
    return torch.kron(parts[0].flatten(1), parts[1].flatten(1)) * scale


def _glora(old: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """LyCORIS' older files have both pairs the other way round."""
    a, b = ([tensors[f"{side}1.weight"].flatten(1), tensors[f"{side}2.weight"].flatten(1)] for side in "ab")
    if len(b[0]) != len(old):
        a, b = a[::-1], b[::-1]
    through = torch.einsum("oi...,ij,jk->ok...", old, *a)
    return (through + (b[0] @ b[1]).reshape(old.shape)) * _scale(tensors, len(a[1]))


def _ia3(old: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    shape = [1] * old.ndim
    shape[1 if tensors["on_input"] else 0] = -1
    return old * tensors["weight"].reshape(shape)


def _oft(old: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """LyCORIS' first version saved the rotation itself, as ``oft_diag``."""
    rotation = tensors["oft_diag"] if "oft_diag" in tensors else _rotation(tensors, len(old))
    blocks = old.reshape(*rotation.shape[:2], *old.shape[1:])
    turned = torch.einsum("knm,kn...->km...", rotation, blocks).flatten(0, 1)
    return turned * tensors.get("rescale", 1.0) - old


def _full(_: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    return tensors["diff"]


def _norm(_: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    return tensors["w_norm"]


#: What the names of a kind's tensors begin with.
KINDS: Mapping[str, Callable[[torch.Tensor, Tensors], torch.Tensor]] = {
    "hada_": _loha,
    "lokr_": _lokr,
    "lora_": _lora,
    "oft_": _oft,
    "a1.": _glora,
    "on_input": _ia3,
    "w_norm": _norm,
    "diff": _full,
}


# What they share


def _product(up: torch.Tensor, down: torch.Tensor, core: torch.Tensor | None) -> torch.Tensor:
    """(out, in·kernel) of (out, r), (r, in·kernel); (out, in, *kernel) of (r, out), (r, in) and a core."""
    if core is None:
        return up @ down.flatten(1)
    return torch.einsum("ij...,ip,jr->pr...", core, up, down.flatten(1))


def _scale(tensors: Tensors, rank: int) -> float:
    """Without an alpha, or with 0, it is 1."""
    alpha = float(tensors.get("alpha", 0.0))
    return alpha / rank if alpha else 1.0


def _decomposed(whole: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Columns are as long as ``magnitude`` says: (out, 1, ...), or (1, in, ...) in LyCORIS' older files."""
    if magnitude.ndim < whole.ndim:
        magnitude = magnitude.reshape(-1, *[1] * (whole.ndim - 1))
    over = [axis for axis, size in enumerate(magnitude.shape) if size == 1]
    length: torch.Tensor = torch.linalg.vector_norm(whole, dim=over, keepdim=True)
    return whole * (magnitude / (length + EPSILON))


def _rotation(tensors: Tensors, rows: int) -> torch.Tensor:
    """Cayley's transform of each block (..., b, b); alpha bounds how far they turn together."""
    blocks = tensors["oft_blocks"]
    skew = blocks - blocks.mT
    bound, norm = float(tensors.get("alpha", 0.0)) * rows, float(skew.norm()) + 1e-8
    if 0 < bound < norm:
        skew = skew * bound / norm
    unit = torch.eye(blocks.shape[-1], device=blocks.device)
    rotation: torch.Tensor = (unit + skew) @ torch.linalg.inv(unit - skew)
    return rotation


def _butterfly(old: torch.Tensor, tensors: Tensors, factor: float) -> torch.Tensor:
    """Each of m rotations mixes rows that are 2ⁱ half blocks apart; ``factor`` weakens each by itself."""
    rotations = _rotation(tensors, len(old))
    size = rotations.shape[-1]
    unit = torch.eye(size, device=old.device).expand_as(rotations)
    rows = torch.arange(len(old), device=old.device)
    new = old
    for i, rotation in enumerate(torch.lerp(unit, rotations, factor)):
        order = rows.reshape(-1, 2, 2**i * size // 2).mT.flatten()  # whom each row of a block was before
        mixed = torch.einsum("kij,kj...->ki...", rotation, new[order].reshape(-1, size, *old.shape[1:]))
        new = mixed.reshape(old.shape)[order.argsort()]
    return old + (new * tensors.get("rescale", 1.0) - old)
