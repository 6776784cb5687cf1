"""A part of a file that libsndfile decodes from its beginning to its end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stream:
    """Bytes for libsndfile, and how many samples must come out of them."""

    data: bytes
    num_stated: int | None = None
    """Fewer mean that something is missing; None believes libsndfile."""
    num_samples: int | None = None
    """More are not the stream's own; None takes all that come."""
    num_most: int | None = None
    """More mean that the stated number is wrong."""
