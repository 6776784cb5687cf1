"""Decoded clips padded into the batch the model sees.

Legend: B utterances, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class Batch:
    """One micro-batch's audio. Labels are looked up by `items`; they never travel through reader processes."""

    items_B: Int[Tensor, "B"]
    """Positions in the schedule's list of utterances."""
    wave_BT: Float[Tensor, "B T"]
    """Zero-padded samples in [-1, 1]."""
    num_samples_B: Int[Tensor, "B"]
    valid_B: Bool[Tensor, "B"]
    """False for a dummy and for a clip that could not be decoded: contributes nothing."""
    problems: tuple[str, ...] = ()
    """One sentence per clip that could not be decoded."""

    def share_memory(self) -> Batch:
        """Return the batch in memory that another process can see.

        Raises:
            RuntimeError: if the system has none.
        """
        for tensor in (self.items_B, self.wave_BT, self.num_samples_B, self.valid_B):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        return self

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`."""
        return Batch(
            self.items_B.to(device, non_blocking=True),
            self.wave_BT.to(device, non_blocking=True),
            self.num_samples_B.to(device, non_blocking=True),
            self.valid_B.to(device, non_blocking=True),
            self.problems,
        )

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory."""
        return Batch(
            self.items_B.pin_memory(),
            self.wave_BT.pin_memory(),
            self.num_samples_B.pin_memory(),
            self.valid_B.pin_memory(),
            self.problems,
        )


def as_batch(
    items: np.ndarray, wave_BT: np.ndarray, lengths: Sequence[int], valid: Sequence[bool], problems: Sequence[str] = ()
) -> Batch:
    """Return arrays as a batch, `wave_BT` without a copy."""
    return Batch(
        items_B=torch.from_numpy(np.asarray(items, dtype=np.int64)),
        wave_BT=torch.from_numpy(wave_BT),
        num_samples_B=torch.tensor(list(lengths), dtype=torch.int64),
        valid_B=torch.tensor(list(valid), dtype=torch.bool),
        problems=tuple(problems),
    )
