"""What cannot be packed: which metadata, audio and durations are rejected, and the sentences that say so."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from shards.errors import CorpusError, ShardError
from shards.files import canonical_json
from shards.indexfile import LONG_WORDS, MAX_META_BYTES
from shards.indexwrite import index_row
from shards.jsontext import MAX_DIGITS
from shards.limits import MAX_CLIP_S
from shards.schema import AGES_YEARS, MAX_TEXT_BYTES, MAX_WORD_BYTES, RATE_HZ, Note, Rejection, RowCount, Utterance
from shards.shown import shown

_NUM_SHOWN_REASONS = 12
_MAX_SHOWN = 300

OnBad = Literal["raise", "skip"]


def check_max_duration(max_duration_s: float) -> None:
    """Refuse what is no duration of a clip.

    Raises:
        CorpusError: if it is not positive, or longer than an index may say.
    """
    if not 0 < max_duration_s <= MAX_CLIP_S:
        raise CorpusError(f"--max-duration must be a number of seconds up to {MAX_CLIP_S}, got {max_duration_s}")


def rejection_error(rejection: Rejection) -> CorpusError:
    """Return what `--on-bad raise` says of a rejection."""
    return CorpusError(
        f"{rejection.source}: {rejection.reason.rstrip('.')} ({rejection.kind}); correct it, or pass --on-bad skip to "
        "leave such utterances out"
    )


def with_relative_paths(rejection: Rejection, source: Path | None) -> Rejection:
    """Return `rejection` with paths relative to the corpus, so that bytes repeat wherever the corpus lies."""
    if source is None:
        return rejection
    folder = source if source.is_dir() else source.parent
    if not folder.name:
        return rejection
    prefix = f"{folder}{os.sep}"
    return Rejection(rejection.source.replace(prefix, ""), rejection.reason.replace(prefix, ""), rejection.kind)


def no_utterances_error(corpus: str, source: Path | None, rejections: Sequence[Rejection]) -> CorpusError:
    """Return the error of a corpus without any usable utterance."""
    where = f"corpus {corpus!r}" if source is None else f"corpus {corpus!r} in {source}"
    if not rejections:
        return CorpusError(f"there must be at least one utterance to pack, but {where} has none; check SOURCE")
    counts = sorted(Counter(rejection.kind for rejection in rejections).items())
    return CorpusError(
        f"there must be at least one usable utterance, but all of {where} were rejected "
        f"({', '.join(f'{kind}: {count}' for kind, count in counts)}); the first was {rejections[0].source}: "
        f"{rejections[0].reason}"
    )


def rejections_error(rejections: Sequence[Rejection]) -> CorpusError:
    """Return what `--on-bad raise` says of all that cannot be used: each reason, how often, and where first."""
    if len(rejections) == 1:
        return rejection_error(rejections[0])
    by_reason: dict[tuple[str, str], list[Rejection]] = defaultdict(list)
    for rejection in rejections:
        by_reason[rejection.kind, rejection.reason].append(rejection)
    kinds = Counter(rejection.kind for rejection in rejections)
    # The first of every kind before the second of any.
    order = {kind: iter(range(len(rejections))) for kind in kinds}
    ranked = sorted(by_reason.values(), key=lambda found: next(order[found[0].kind]))
    shown = "; ".join(_reason_and_count(found) for found in ranked[:_NUM_SHOWN_REASONS])
    more = f"; and {len(ranked) - _NUM_SHOWN_REASONS} more" if len(ranked) > _NUM_SHOWN_REASONS else ""
    counts = ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()))
    return CorpusError(
        f"{len(rejections)} utterances cannot be used ({counts}): {shown}{more}; correct them, or pass --on-bad skip "
        "to leave such utterances out"
    )


def _reason_and_count(rejections: Sequence[Rejection]) -> str:
    first = rejections[0]
    times = f", {len(rejections)} times" if len(rejections) > 1 else ""
    return f"{first.source}: {first.reason.rstrip('.')} ({first.kind}{times})"


def account_of_rows(row_counts: Sequence[RowCount], num_packed: int, num_rejected: int) -> list[Note]:
    """Return the sentence that accounts for every row of a corpus that says how many it has, none of another.

    Raises:
        ShardError: if a row is neither packed nor rejected.
    """
    if not row_counts:
        return []
    num_announced = sum(count.number for count in row_counts)
    by_unit: Counter[str] = Counter()
    for count in row_counts:
        by_unit[count.unit] += count.number
    found = " and ".join(f"{number} {unit}" for unit, number in by_unit.items())
    if num_packed + num_rejected != num_announced:
        raise ShardError(
            f"each of {found} must be packed or rejected, but {num_packed} were packed and {num_rejected} rejected; "
            "this is a fault of MetaSER, so please report it with the table"
        )
    return [Note(f"{found}: {num_packed} packed, {num_rejected} rejected")]


_ABOUT_AUDIO_BYTES = 1024
"""More than what is said of an utterance's audio takes beside its metadata."""


def metadata_objection(name: str, utterance: Utterance) -> Rejection | None:
    """Return why an index cannot hold an utterance's metadata, or None."""
    try:
        num_bytes = len(canonical_json(utterance.model_dump()))
    except ValueError as error:
        reason = f"metadata must be Unicode text and finite numbers, but {shown(str(error), _MAX_SHOWN)}"
        return Rejection(name, reason, "bad metadata")
    if num_bytes > MAX_META_BYTES - _ABOUT_AUDIO_BYTES:
        reason = f"metadata must take at most {MAX_META_BYTES - _ABOUT_AUDIO_BYTES} bytes as JSON, got {num_bytes}"
        return Rejection(name, reason, "bad metadata")
    # Where all is short, no field is long, speaker and session with the corpus before them included.
    row = index_row(utterance) if num_bytes > MAX_WORD_BYTES // 2 else {}
    for field_name, value in row.items():
        most = MAX_TEXT_BYTES if field_name in LONG_WORDS else MAX_WORD_BYTES
        num_bytes = len(value.encode()) if isinstance(value, str) else 0
        if num_bytes > most:
            reason = f"{field_name} must have at most {most} bytes, got {num_bytes}: {shown(value, 40)}"
            return Rejection(name, reason, "bad metadata")
    for extra_name, number in utterance.extra.items():
        if isinstance(number, int) and abs(number) >= 10**MAX_DIGITS:
            reason = f"whole numbers must have at most {MAX_DIGITS} digits, but {shown(extra_name, 40)} has more"
            return Rejection(name, reason, "bad number")
    if utterance.emotion_votes is not None and min(utterance.emotion_votes.values(), default=0.0) < 0:
        return Rejection(name, f"votes must be 0 or more, got {min(utterance.emotion_votes.values()):g}", "bad number")
    if utterance.age is not None and not AGES_YEARS[0] <= utterance.age <= AGES_YEARS[1]:
        reason = f"age must be {AGES_YEARS[0]} to {AGES_YEARS[1]} years, got {utterance.age:g}"
        return Rejection(name, reason, "bad number")
    return None


def audio_objection(name: str, num_samples: int, is_audible: bool, max_duration_s: float) -> Rejection | None:
    """Return why decoded audio cannot be used, or None."""
    duration_s = num_samples / RATE_HZ
    if num_samples == 0:
        return Rejection(name, "holds less than one sample at 16 kHz", "unusable audio")
    if duration_s > max_duration_s:
        return Rejection(name, f"lasts {duration_s:.2f} s, longer than --max-duration {max_duration_s:g}", "too long")
    if not is_audible:
        return Rejection(name, f"all {num_samples} samples are zero", "silence")
    return None
