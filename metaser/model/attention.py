"""Fused self-attention for every encoder family, including WavLM's gated relative position bias.

The projections are called as modules, so whatever wraps them (LoRA) works and receives gradients.

Legend: B utterances, L frames, D hidden, H heads, P distances.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class AttentionMask(NamedTuple):
    """What all layers of one forward share."""

    keys_B11L: Bool[Tensor, "B 1 1 L"]
    """True at frames that may be attended to."""
    bias_HLL: Float[Tensor, "H L L"] | None = None
    """WavLM's relative position bias, which every layer gates by its own input."""


class SelfAttention(nn.Module):
    """The projections of multi-head self-attention, named as transformers names them."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, frames_BLD: Float[Tensor, "B L D"], mask: AttentionMask) -> Float[Tensor, "B L D"]:
        """Return what the frames attend to."""
        return attend(self, frames_BLD, mask)


def attend(attention: Any, frames_BLD: Float[Tensor, "B L D"], mask: AttentionMask) -> Float[Tensor, "B L D"]:
    """Return multi-head self-attention over the frames (Vaswani et al. 2017), computed in one fused kernel.

    Args:
        attention: A `SelfAttention`, or another module that has its projections, `num_heads` and `dropout`, and in
            WavLM `gru_rel_pos_linear` and `gru_rel_pos_const`.
        frames_BLD: The attention's input.
        mask: Which frames may be attended to, and WavLM's position bias.
    """
    num_utterances, num_frames, _ = frames_BLD.shape

    def heads(projected_BLD: Tensor) -> Tensor:
        return projected_BLD.view(num_utterances, num_frames, attention.num_heads, -1).transpose(1, 2)

    query_BHLE = heads(attention.q_proj(frames_BLD))
    scores_mask = mask.keys_B11L
    if mask.bias_HLL is not None:
        # In one pass over B H L L values, and of the query's type, as the kernel wants it: autocast may have made that
        # bfloat16.
        dtype = query_BHLE.dtype
        keys_B11L = torch.zeros_like(mask.keys_B11L, dtype=dtype).masked_fill(~mask.keys_B11L, -torch.inf)
        scores_mask = torch.addcmul(keys_B11L, _gate(attention, frames_BLD).to(dtype), mask.bias_HLL.to(dtype))
    attended_BHLE = nn.functional.scaled_dot_product_attention(
        query_BHLE,
        heads(attention.k_proj(frames_BLD)),
        heads(attention.v_proj(frames_BLD)),
        attn_mask=scores_mask,
        dropout_p=attention.dropout if attention.training else 0.0,
    )
    output_BLD: Tensor = attention.out_proj(attended_BHLE.transpose(1, 2).flatten(2))
    return output_BLD


def relative_position_bias(attention: Any, num_frames: int) -> Float[Tensor, "H L L"]:
    """Return WavLM's ungated bias of every query (first L) towards every key, on the embedding's device.

    Args:
        attention: The attention of WavLM's first layer, the only one that holds `rel_attn_embed`, with `max_distance`.
        num_frames: L.
    """
    embedding = attention.rel_attn_embed
    # Only 2 L - 1 distances exist; row i of the bias is the window of them that starts at distance -i.
    distances_P = torch.arange(1 - num_frames, num_frames, device=embedding.weight.device)
    bias_PH = embedding(position_buckets(distances_P, embedding.num_embeddings, attention.max_distance))
    bias_HLL: Tensor = bias_PH.transpose(0, 1).unfold(1, num_frames, 1).flip(1)
    return bias_HLL


def position_buckets(distances_P: Int[Tensor, "P"], num_buckets: int, max_distance: int) -> Int[Tensor, "P"]:
    """Return the buckets of distances from a query to its keys (T5, Raffel et al. 2020; WavLM, section III.B).

    Half of them are for keys behind the query in time. Of each half, the first half has one distance each; the others
    widen with the logarithm of the distance up to `max_distance`, and the last one has all beyond.

    Args:
        distances_P: Position of the key less that of the query.
        num_buckets: At least 4.
        max_distance: In frames, more than a quarter of `num_buckets`.
    """
    num_per_side, num_exact = num_buckets // 2, num_buckets // 4
    size_P = distances_P.abs()
    share_P = (size_P.clamp(min=num_exact) / num_exact).log() / math.log(max_distance / num_exact)
    # Added before what is behind the point is cut off: so transformers rounds, and the checkpoints with it.
    wide_P = (num_exact + share_P * (num_per_side - num_exact)).long().clamp(max=num_per_side - 1)
    return torch.where(size_P < num_exact, size_P, wide_P) + num_per_side * (distances_P > 0)


def _gate(attention: Any, frames_BLD: Tensor) -> Float[Tensor, "B H L 1"]:
    """Return the factor of the position bias per head and query (WavLM, Chen et al. 2022, section III.B)."""
    heads_BLHE = frames_BLD.view(*frames_BLD.shape[:2], attention.num_heads, -1)
    projected_BLH8 = attention.gru_rel_pos_linear(heads_BLHE)
    gates_BLH2 = torch.sigmoid(projected_BLH8.view(*projected_BLH8.shape[:3], 2, 4).sum(-1))
    update_BHL1, reset_BHL1 = gates_BLH2.transpose(1, 2).chunk(2, dim=-1)
    factor_BHL1: Tensor = update_BHL1 * (reset_BHL1 * attention.gru_rel_pos_const - 1.0) + 2.0
    return factor_BHL1
