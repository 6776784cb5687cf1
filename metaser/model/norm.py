"""Layer norm in the type of the products around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """torch's, but under autocast of autocast's type, its statistics in float32.

    On a GPU autocast norms in float32 what the next product then rounds: twice the bytes.
    """

    def forward(self, frames: Tensor) -> Tensor:
        """Return the normed frames."""
        device = frames.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(frames)
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return nn.functional.layer_norm(
                frames.to(dtype), self.normalized_shape, self.weight.to(dtype), self.bias.to(dtype), self.eps
            )
