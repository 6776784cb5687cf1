"""Audio decoded and prepared as a whole, which packing does part by part."""

from __future__ import annotations

import numpy as np
import soxr

from shards.audio import to_mono
from shards.decoding import Whole, decode_to
from shards.schema import RATE_HZ


def decode(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Return all samples that `decode_to` gives, shape `(T,)` or `(T, channels)`, and their rate in Hz."""
    whole = Whole()
    decode_to(data, name, whole)
    return whole.samples, whole.rate_hz


def prepare(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Return decoded samples as shards store them: mono, at `RATE_HZ`."""
    mono = to_mono(samples)
    return mono if rate_hz == RATE_HZ else soxr.resample(mono, rate_hz, RATE_HZ, quality="HQ")
