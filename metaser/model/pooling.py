"""A stream's frames to one vector, ignoring the padding.

Legend: B utterances, L frames, D width of a frame, E width of the vector.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metaser.model.streams import Stream

_ATTENTION_WIDTH = 128
_VARIANCE_FLOOR = 1e-6
_WEIGHT_FLOOR = 1e-4
"""Of the sum of an utterance's frames' weights: one whose frames all count nothing has a vector all the same."""


def masked_softmax(scores_BL: Float[Tensor, "B L"], stream: Stream) -> Float[Tensor, "B L"]:
    """Return the softmax of one score per frame over the stream's true frames in float32; padded frames get exactly 0.

    A frame's weight multiplies its share.
    """
    lowest = torch.finfo(torch.float32).min
    scores_BL = scores_BL.float()
    if stream.weight_BL is not None:
        scores_BL = scores_BL + stream.log_weights().clamp(min=lowest)
    return scores_BL.masked_fill(~stream.mask_BL, lowest).softmax(dim=1)


def masked_mean(stream: Stream) -> Float[Tensor, "B D"]:
    """Return the mean over the true frames in float32, each counted by its weight."""
    frames_BLD, mask_BL, weight_BL = stream
    if weight_BL is None:
        total_BD = frames_BLD.float().masked_fill(~mask_BL[..., None], 0.0).sum(dim=1)
        return total_BD / mask_BL.sum(dim=1, keepdim=True).clamp(min=1)
    weight_BL = weight_BL.float().masked_fill(~mask_BL, 0.0)
    total_BD = (weight_BL[..., None] * frames_BLD.float().masked_fill(~mask_BL[..., None], 0.0)).sum(dim=1)
    return total_BD / weight_BL.sum(dim=1, keepdim=True).clamp(min=_WEIGHT_FLOOR)


class MeanPooling(nn.Module):
    """The mean frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output_width = width

    def forward(self, stream: Stream) -> Float[Tensor, "B E"]:
        """Return the masked mean; E = D."""
        return masked_mean(stream)


class AttentiveStatistics(nn.Module):
    """Attention-weighted mean and standard deviation (Okabe, Koshinaka, Shinoda 2018, equations 1 to 6)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output_width = 2 * width
        self.hidden = nn.Linear(width, _ATTENTION_WIDTH)
        # The softmax over frames ignores a constant, so a bias here would never learn.
        self.score = nn.Linear(_ATTENTION_WIDTH, 1, bias=False)

    def forward(self, stream: Stream) -> Float[Tensor, "B E"]:
        """Return mean and standard deviation side by side; E = 2 D."""
        scores_BL = self.score(torch.tanh(self.hidden(stream.frames_BLD))).squeeze(-1)
        weights_BL1 = masked_softmax(scores_BL, stream)[..., None]
        frames_BLD = stream.frames_BLD.float().masked_fill(~stream.mask_BL[..., None], 0.0)
        mean_BD = (weights_BL1 * frames_BLD).sum(dim=1)
        # The two-pass form cannot become negative; the floor keeps the root's gradient finite for a single frame.
        variance_BD = (weights_BL1 * (frames_BLD - mean_BD[:, None]).square()).sum(dim=1)
        return torch.cat([mean_BD, (variance_BD + _VARIANCE_FLOOR).sqrt()], dim=1)


Pooling = MeanPooling | AttentiveStatistics


def build_pooling(kind: Literal["mean", "attentive_statistics"], width: int) -> Pooling:
    """Return the pooling of that kind for frames of `width` values."""
    return MeanPooling(width) if kind == "mean" else AttentiveStatistics(width)
