"""What an utterance is, and how its parts are named inside a shard.

An utterance is a key, audio, and whatever metadata its corpus knows. Absent metadata is `None`, never a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import quote

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from shards.errors import CorpusError
from shards.shown import shown

SCHEMA_VERSION = 2
"""Version 2 added to the index the digest of the stored audio, and keeps digests as 32 bytes."""
READABLE_VERSIONS = (1, 2)
RATE_HZ = 16_000
"""Every shard stores audio at this rate, mono, 16 bit."""

AUDIO_SUFFIX = "flac"
META_SUFFIX = "json"
MAX_KEY_PART_BYTES = 90
MAX_WORD_BYTES = 4096
"""Of a key, a name or a label, in UTF-8."""
MAX_TEXT_BYTES = 1 << 20
"""Of a text, a source, all votes or all of `extra`."""
MAX_FILE_BYTES = 1 << 50
"""Of a tar, an index or a list of rejections, as a manifest may state it."""
_MAX_REASON_CHARS = 1 << 18
AGES_YEARS = (0, 150)
MIN_TAR_BYTES = 1024
"""That an utterance takes in a tar: a header and its audio, each in blocks of 512."""

SPLITS = ("train", "dev", "test")
Split = Literal["train", "dev", "test"]


class Utterance(BaseModel):
    """One utterance's identity and metadata.

    `speaker` is the corpus's own id here; the index qualifies it as `corpus:speaker`, so that two corpora's "03"
    are two people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    """Unique and stable, `corpus/...`, made by `make_key`."""
    corpus: str
    source: str | None = None
    """The original name (relative path or id) before percent-encoding."""
    text: str | None = None
    language: str | None = None
    """BCP 47, e.g. `de`."""
    emotion: str | None = None
    emotion_votes: dict[str, float] | None = None
    """Share or number of annotators per label."""
    valence: float | None = None
    arousal: float | None = None
    dominance: float | None = None
    gender: str | None = None
    """`female` or `male`, or the corpus's own further word."""
    speaker: str | None = None
    age: float | None = None
    """Years."""
    style: str | None = None
    """`scripted` or `improvised`."""
    intensity: str | None = None
    session: str | None = None
    dialogue: str | None = None
    turn: str | None = None
    split: Split | None = None
    """The corpus's own split, where it has one."""
    extra: dict[str, str | float | int | bool] = Field(default_factory=dict)


METADATA_FIELDS = tuple(name for name in Utterance.model_fields if name not in ("key", "corpus", "source", "extra"))
"""Fields that tasks, filters and splits may read."""

LABEL_FIELDS = ("corpus", "emotion", "gender", "style", "language", "intensity", "session", "split", "age_group")
"""Fields whose values are few enough to count one by one."""


class AudioSource(Protocol):
    """Where an utterance's samples come from; must be picklable, because packing runs in several processes."""

    def load(self) -> tuple[np.ndarray, int]:
        """Return float32 samples, shape `(T,)` or `(T, channels)` in [-1, 1], and their rate in Hz.

        Raises:
            AudioError: if the audio is unreadable, truncated or empty.
        """
        ...


@dataclass(frozen=True)
class StatedDuration:
    """How long a corpus says that a file is; rounded, so that a file may differ by less than the tolerance."""

    duration_s: float
    tolerance_s: float

    def agrees(self, duration_s: float) -> bool:
        """Return whether a duration may be the one that is stated."""
        return abs(duration_s - self.duration_s) < self.tolerance_s


@dataclass(frozen=True)
class SourceUtterance:
    """An utterance and its audio as they lie in the original corpus."""

    utterance: Utterance
    audio: AudioSource
    stated: StatedDuration | None = None
    """Of the whole file, where the corpus says it of that."""


def visible(text: str) -> str:
    """Return `text` with escapes for all that a terminal would obey or not show.

    A file's name may be no Unicode at all (Latin-1 from an old disk), a cell may hold anything.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


@dataclass(frozen=True)
class Rejection:
    """Something in a corpus that is not an utterance: a row without audio, audio without a row, an unknown label."""

    source: str
    """File or row as the user knows it."""
    reason: str
    """One sentence with the value in it."""
    kind: str
    """A short category to count by, e.g. `unknown label`."""

    def __post_init__(self) -> None:
        for name in ("source", "reason", "kind"):
            # A list of rejections whose lines are longer than this twice is not read.
            object.__setattr__(self, name, visible(getattr(self, name))[:_MAX_REASON_CHARS])


@dataclass(frozen=True)
class Note:
    """A sentence about how a corpus was read, without its full stop."""

    text: str
    is_warning: bool = False
    """Whether something may be wrong, not only decided."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", visible(self.text))


@dataclass(frozen=True)
class RowCount:
    """How many utterances a corpus's own table or folder announces: so many must be packed or rejected."""

    number: int
    unit: str = "rows"


def make_key(corpus: str, *parts: str) -> str:
    """Return a key of `[A-Za-z0-9_/-]` and percent-encoded rest, so that no name can collide or escape.

    Dots are encoded too: WebDataset cuts a member name at its first dot, which would merge `Ses01F.impro01` and
    `Ses01F.impro02`.

    Raises:
        CorpusError: if a part is empty, no Unicode text, or longer than 90 bytes after encoding.
    """
    encoded = []
    for part in (corpus, *parts):
        try:
            safe = quote(part, safe="").replace(".", "%2E").replace("~", "%7E")
        except UnicodeEncodeError:
            raise CorpusError(f"each part of an utterance key must be Unicode text, got {part!a}; rename it") from None
        if not 0 < len(safe) <= MAX_KEY_PART_BYTES:
            raise CorpusError(
                f"each part of an utterance key must have 1 to {MAX_KEY_PART_BYTES} bytes, but "
                f"{shown(repr(part), 120)} of corpus {shown(repr(corpus), 120)} encodes to {len(safe)}; rename it or "
                "give a shorter id"
            )
        encoded.append(safe)
    return "/".join(encoded)


_KEY_PATTERN = re.compile(r"(?:[A-Za-z0-9_%-]{1,90}/)+[A-Za-z0-9_%-]{1,90}")


def is_key(text: str) -> bool:
    """Return whether `text` is a well-formed utterance key."""
    return _KEY_PATTERN.fullmatch(text) is not None
