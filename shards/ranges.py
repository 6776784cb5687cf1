"""Byte ranges of a micro-batch, and what their bytes must be: what a reader process is told. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shards.index import Index
from shards.plan import MicroBatch


class ClipRange(NamedTuple):
    """Where one clip's bytes lie, and what they must be."""

    key: str
    place: str
    """Path or URL of the shard."""
    offset: int
    num_bytes: int
    num_samples: int
    audio_sha256: bytes | None
    """Of the stored bytes; schema version 1 has none, and its clips are proven by the samples' digest instead."""
    pcm_sha256: bytes | None
    window: tuple[int, int] | None = None
    """First sample that is heard, and the one behind the last; None: all are."""

    @property
    def num_heard(self) -> int:
        """How many samples the model gets."""
        return self.num_samples if self.window is None else self.window[1] - self.window[0]


@dataclass(frozen=True)
class MicroBatchRequest:
    """All that a reader process needs to know of one micro-batch."""

    items: np.ndarray
    clips: tuple[ClipRange, ...]
    is_dummy: bool

    def describe(self) -> str:
        """Return which utterances in which shards these are."""
        first, more = self.clips[0], len(self.clips) - 1
        others = f" and {more} more" if more else ""
        return f"utterance {first.key!r}{others} in {', '.join(sorted({clip.place for clip in self.clips}))}"


def micro_batch_request(index: Index, micro_batch: MicroBatch) -> MicroBatchRequest:
    """Return the byte ranges of `micro_batch`, whose items are rows of `index`."""
    part = index.take(micro_batch.items)
    audio_digests = part.values("audio_sha256")
    # The other digest is needed only where this one is missing, and in a large corpus it is 32 bytes times millions.
    pcm_digests = part.values("pcm_sha256") if None in audio_digests else [None] * len(part)
    columns = (
        part.values("key"),
        [index.shard_places[shard] for shard in part.numbers("shard").tolist()],
        part.numbers("audio_offset").tolist(),
        part.numbers("audio_bytes").tolist(),
        part.numbers("num_samples").tolist(),
        audio_digests,
        pcm_digests,
        [None] * len(part) if micro_batch.windows is None else micro_batch.windows,
    )
    return MicroBatchRequest(
        micro_batch.items, tuple(ClipRange(*row) for row in zip(*columns, strict=True)), micro_batch.is_dummy
    )
