"""Frames of an utterance to one vector, ignoring the padding.

Legend: B utterances, L frames, D width of a frame, E width of the vector.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

_ATTENTION_WIDTH = 128
_VARIANCE_FLOOR = 1e-6


def masked_softmax(scores_BL: Float[Tensor, "B L"], frame_mask_BL: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Return the softmax over the true frames in float32; padded frames get exactly 0.

    Args:
        scores_BL: One score per frame.
        frame_mask_BL: True for the frames of the utterance, False for padding.
    """
    lowest = torch.finfo(torch.float32).min
    return scores_BL.float().masked_fill(~frame_mask_BL, lowest).softmax(dim=1)


def masked_mean(frames_BLD: Float[Tensor, "B L D"], frame_mask_BL: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """Return the mean over the true frames in float32.

    Args:
        frames_BLD: Frames; the padded ones may hold anything.
        frame_mask_BL: True for the frames of the utterance, False for padding.
    """
    total_BD = frames_BLD.float().masked_fill(~frame_mask_BL[..., None], 0.0).sum(dim=1)
    num_frames_B1 = frame_mask_BL.sum(dim=1, keepdim=True).clamp(min=1)
    return total_BD / num_frames_B1


class MeanPooling(nn.Module):
    """The mean frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output_width = width

    def forward(self, frames_BLD: Float[Tensor, "B L D"], frame_mask_BL: Bool[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        """Return the masked mean; E = D."""
        return masked_mean(frames_BLD, frame_mask_BL)


class AttentiveStatistics(nn.Module):
    """Attention-weighted mean and standard deviation (Okabe, Koshinaka, Shinoda 2018, equations 1 to 6)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output_width = 2 * width
        self.hidden = nn.Linear(width, _ATTENTION_WIDTH)
        # The softmax over frames ignores a constant, so a bias here would never learn.
        self.score = nn.Linear(_ATTENTION_WIDTH, 1, bias=False)

    def forward(self, frames_BLD: Float[Tensor, "B L D"], frame_mask_BL: Bool[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        """Return mean and standard deviation side by side; E = 2 D."""
        scores_BL = self.score(torch.tanh(self.hidden(frames_BLD))).squeeze(-1)
        weights_BL1 = masked_softmax(scores_BL, frame_mask_BL)[..., None]
        frames_BLD = frames_BLD.float().masked_fill(~frame_mask_BL[..., None], 0.0)
        mean_BD = (weights_BL1 * frames_BLD).sum(dim=1)
        # The two-pass form cannot become negative; the floor keeps the root's gradient finite for a single frame.
        variance_BD = (weights_BL1 * (frames_BLD - mean_BD[:, None]).square()).sum(dim=1)
        return torch.cat([mean_BD, (variance_BD + _VARIANCE_FLOOR).sqrt()], dim=1)


Pooling = MeanPooling | AttentiveStatistics


def build_pooling(kind: Literal["mean", "attentive_statistics"], width: int) -> Pooling:
    """Return the pooling of that kind for frames of `width` values."""
    return MeanPooling(width) if kind == "mean" else AttentiveStatistics(width)
