"""A stream: frames with their mask, be it a task's (ARI's output) or a view's, each with its own rate and width.

Legend: B utterances, L frames, D width of a frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_LEAST_WEIGHT = 1e-4
"""Frames that do not count at all keep a finite score."""


class Stream(NamedTuple):
    """The frames of one task or view."""

    frames_BLD: Float[Tensor, "B L D"]
    """The padded ones may hold anything."""
    mask_BL: Bool[Tensor, "B L"]
    """True for the frames of the utterance, False for padding."""
    weight_BL: Float[Tensor, "B L"] | None = None
    """How much each frame counts, from 0 to 1; None counts all alike."""

    def log_weights(self) -> Float[Tensor, "B L"]:
        """Return what attention adds to the frames' scores: -inf at padding, else the logarithm of the weight."""
        weight_BL = self.mask_BL.float() if self.weight_BL is None else self.weight_BL.float() + _LEAST_WEIGHT
        return torch.log(weight_BL).masked_fill(~self.mask_BL, -torch.inf)
