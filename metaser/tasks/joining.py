"""Frames of overlapping windows as frames of the recording, each taken from the window that speaks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from shards.windows import Window


def join_frames(windows: Sequence[Window], parts: Sequence[Tensor | None], gap: Tensor, hop_samples: int) -> Tensor:
    """Return the frames (first dimension) of all windows in their order, and `gap` for silent ones between others."""
    import torch

    if len(parts) == 1 and parts[0] is not None:
        return parts[0]
    pieces: list[Tensor] = []
    is_after_silence = False
    for window, part in zip(windows, parts, strict=True):
        if part is not None:
            pieces += [gap] if pieces and is_after_silence else []
            pieces.append(part[own_frames(window, hop_samples)])
        is_after_silence = part is None
    return torch.cat(pieces)


def own_frames(window: Window, hop_samples: int) -> slice:
    """Return which frames of a window speak for the recording."""
    # Halves go up, not to the even number: two neighbours must cut between the same frames.
    first, last = (
        (2 * (cut - window.start) + hop_samples) // (2 * hop_samples) for cut in (window.own_start, window.own_end)
    )
    return slice(first, None if window.own_end == window.end else last)
