"""Perturbed-attention guidance (Ahn et al. 2024, arXiv:2403.17377).

In the middle of the net each place looks at all others by self-attention. With the identity in the place of
that attention map it sees itself alone, and the net predicts a picture whose structure falls apart.
Guidance leads away from it: guided + scale * (cond - perturbed). That is the same in noise, velocity or x0,
which differ by what both predictions share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from webui.errors import InvalidField
from webui.hookspecs import Prediction

if TYPE_CHECKING:
    import torch


def is_perturbed(name: str) -> bool:
    """Whether an attention layer is one of those: self-attention of the middle block, as in the paper."""
    return name.startswith("mid_block.") and name.endswith(".attn1")


class Perturbable:
    """A layer's attention processor as it was or, while ``perturbs``, with the identity as attention map."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.perturbs = False

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, places, channels) in and out."""
        if not self.perturbs:
            output: torch.Tensor = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )
            return output
        values: torch.Tensor = attn.to_v(hidden_states)  # identity @ values
        for layer in attn.to_out:
            values = layer(values)
        return values


def predict(prediction: Prediction, net: Any) -> torch.Tensor:
    """What the net predicts with the prompt and perturbed attention, (B, C, h, w).

    Raises:
        InvalidField: the net has no self-attention in its middle.
    """
    layers = [each for each in net.attn_processors.values() if isinstance(each, Perturbable)]
    if not layers:
        raise InvalidField("guidance.pag", "this model has no self-attention in its middle to perturb")
    try:
        for layer in layers:
            layer.perturbs = True
        return prediction.predict()
    finally:
        for layer in layers:
            layer.perturbs = False
