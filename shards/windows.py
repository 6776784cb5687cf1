"""A long recording as overlapping windows, each of which a model can hear at once.

Windows begin at whole frames of 20 ms, so that a window's frames are frames of the recording, and no window is shorter
than the others by a frame or more: the last one is moved back instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from shards.schema import RATE_HZ

FRAME_SAMPLES = RATE_HZ // 50
_OVERLAP_FRACTION = 0.25
_SILENT_RANGE = 1 / 32_768
"""One step of 16 bits: resampling a constant leaves about a thousandth of it."""


class Window(NamedTuple):
    """A part of a recording, in samples at 16 kHz."""

    start: int
    end: int
    own_start: int
    """From here to `own_end` this window speaks for the recording: neighbours share at the middle of their overlap."""
    own_end: int

    @property
    def own_samples(self) -> int:
        """How much of the recording this window speaks for."""
        return self.own_end - self.own_start


@dataclass(frozen=True)
class Windowing:
    """How long windows are, in samples at 16 kHz, and how far one begins after the other."""

    length: int
    hop: int

    @classmethod
    def of_seconds(cls, window_s: float, overlap_s: float | None = None) -> Windowing:
        """Return windows of `window_s` that overlap by `overlap_s` (rounded up to whole frames; None: a quarter)."""
        length = round(window_s * RATE_HZ)
        overlap = round((_OVERLAP_FRACTION * window_s if overlap_s is None else overlap_s) * RATE_HZ)
        return cls(length, max(FRAME_SAMPLES, (length - overlap) // FRAME_SAMPLES * FRAME_SAMPLES))

    def cut(self, num_samples: int) -> tuple[Window, ...]:
        """Return the windows of a recording: itself, if it is not longer than one."""
        if num_samples <= self.length:
            return (Window(0, num_samples, 0, num_samples),)
        spare = num_samples - self.length
        starts = [*range(0, spare, self.hop), -(-spare // FRAME_SAMPLES) * FRAME_SAMPLES]
        ends = [*(start + self.length for start in starts[:-1]), num_samples]
        shares = [0, *((start + end) // 2 for start, end in zip(starts[1:], ends[:-1], strict=True)), num_samples]
        return tuple(Window(*window) for window in zip(starts, ends, shares[:-1], shares[1:], strict=True))

    def heard(self, num_samples: np.ndarray) -> np.ndarray:
        """Return how much of each recording one window holds."""
        heard: np.ndarray = np.minimum(num_samples, self.length)
        return heard


def is_silent(samples: Float32[np.ndarray, " T"]) -> bool:
    """Return whether no two samples differ by more than one step of 16 bits."""
    return bool(np.ptp(samples) <= _SILENT_RANGE)
