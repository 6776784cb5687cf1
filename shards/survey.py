"""What stands in shards, counted the way a corpus's users ask, and the proof that every byte is as it was packed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.audio import decode_stored, pcm16, pcm_sha256
from shards.config import RemoteConfig
from shards.corpora.identities import composed
from shards.errors import AudioError, ShardError
from shards.index import Index, duplicate_rows, index_row, label_tables, load_index
from shards.indexfile import INDEX_SCHEMA
from shards.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardRecord,
    manifest_bytes,
    read_manifest,
)
from shards.schema import METADATA_FIELDS, READABLE_VERSIONS, SPLITS, Utterance
from shards.store import PIECE_BYTES, RangeReader, join, read_file

HISTOGRAM_EDGES_S = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0)
NO_SPLIT = "none"


@dataclass(frozen=True)
class DurationBin:
    """Utterances that last from `start_s` to less than `end_s`; `end_s` is None for the last bin."""

    start_s: float
    end_s: float | None
    num_utterances: int


@dataclass(frozen=True)
class Survey:
    """Everything `metaser inspect` shows; all counts are utterances unless named otherwise."""

    num_utterances: int
    num_shards: int
    duration_s: float
    shortest_s: float
    longest_s: float
    speakers: dict[str, int]
    num_speakers_by_gender: dict[str, int]
    labels: dict[str, dict[str, int]]
    """Field, value, count."""
    emotion_by_split: dict[str, dict[str, int]]
    """Emotion, split (`none` where the corpus has no own split), count."""
    duration_histogram: tuple[DurationBin, ...]
    missing: dict[str, int]
    """Metadata field, utterances without it; fields that all utterances have are left out."""
    duplicates: tuple[tuple[str, ...], ...]
    """Keys of utterances with identical audio."""
    num_rejected_by_kind: dict[str, int]
    warnings: tuple[str, ...]
    """What packing noticed."""


def survey(index: Index, manifests: Sequence[Manifest]) -> Survey:
    """Return the counts of `index`, which `manifests` belong to."""
    durations_s = index.duration_s
    rejected: Counter[str] = Counter()
    for manifest in manifests:
        rejected.update(manifest.num_rejected_by_kind)
    return Survey(
        num_utterances=len(index),
        num_shards=len(index.shard_places),
        duration_s=float(durations_s.sum()),
        shortest_s=float(durations_s.min()),
        longest_s=float(durations_s.max()),
        speakers=index.codes("speaker").counts(),
        num_speakers_by_gender=_count_speakers_by_gender(index),
        labels=label_tables(index),
        emotion_by_split=_emotion_by_split(index),
        duration_histogram=_histogram(durations_s),
        missing={name: count for name in METADATA_FIELDS if (count := index.column(name).null_count)},
        duplicates=tuple(tuple(index.take(np.asarray(rows)).values("key")) for rows in duplicate_rows(index)),
        num_rejected_by_kind=dict(sorted(rejected.items())),
        warnings=tuple(warning for manifest in manifests for warning in manifest.warnings),
    )


def _pairs(index: Index, first: str, second: str) -> dict[tuple[str | None, str | None], int]:
    """Return how many utterances have each pair of values of two fields."""
    left, right = index.codes(first), index.codes(second)
    width = len(right.words) + 1
    pairs, counts = np.unique((left.numbers.astype(np.int64) + 1) * width + right.numbers + 1, return_counts=True)
    words, other_words = (None, *left.words), (None, *right.words)
    return {
        (words[pair // width], other_words[pair % width]): count
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)
    }


def _count_speakers_by_gender(index: Index) -> dict[str, int]:
    people = _pairs(index, "speaker", "gender")
    genders = Counter(gender for speaker, gender in people if speaker is not None and gender is not None)
    return dict(sorted(genders.items()))


def _emotion_by_split(index: Index) -> dict[str, dict[str, int]]:
    counts = {(emotion, split or NO_SPLIT): n for (emotion, split), n in _pairs(index, "emotion", "split").items()}
    present = {split for _, split in counts}
    columns = [split for split in (*SPLITS, NO_SPLIT) if split in present]
    emotions = sorted({emotion for emotion, _ in counts if emotion is not None})
    return {emotion: {split: counts.get((emotion, split), 0) for split in columns} for emotion in emotions}


def _histogram(durations_s: np.ndarray) -> tuple[DurationBin, ...]:
    counts = np.bincount(np.digitize(durations_s, HISTOGRAM_EDGES_S) - 1, minlength=len(HISTOGRAM_EDGES_S))
    filled = np.flatnonzero(counts)
    ends_s = (*HISTOGRAM_EDGES_S[1:], None)
    return tuple(
        DurationBin(HISTOGRAM_EDGES_S[number], ends_s[number], int(counts[number]))
        for number in range(filled[0], filled[-1] + 1)
    )


# ---------------------------------------------------------------- verification


def verify(
    folders: Sequence[str | Path],
    progress: Callable[[int, int], None] | None = None,
    remote: RemoteConfig | None = None,
) -> list[str]:
    """Re-read every byte of `folders` and return what is not as it was packed, naming keys and files.

    Args:
        folders: Shard folders, paths or URLs.
        progress: Called with the number of utterances checked and that of all.
        remote: How URLs are read.
    """
    problems: list[str] = []
    opened: list[tuple[str, Manifest, Index]] = []
    for folder in map(str, folders):
        try:
            opened.append((folder, read_manifest(folder, remote), load_index([folder], remote)))
        except ShardError as error:
            # Without a sound manifest and index nothing says where the utterances lie.
            problems.append(str(error))
    total = sum(len(index) for _, _, index in opened)
    num_checked = 0
    ranges = RangeReader(remote)
    for folder, manifest, index in opened:
        problems += _verify_side_files(folder, manifest, remote)
        shards = index.numbers("shard")
        for number, record in enumerate(manifest.shards):
            rows = _rows_of(index.take(np.flatnonzero(shards == number)))
            try:
                problems += _verify_shard(index.shard_places[number], record, rows, ranges)
            except ShardError as error:
                problems.append(str(error))
            num_checked += len(rows)
            if progress is not None:
                progress(num_checked, total)
    return problems


def _verify_side_files(folder: str, manifest: Manifest, remote: RemoteConfig | None) -> Iterator[str]:
    if read_file(join(folder, MANIFEST_NAME), remote) != manifest_bytes(manifest):
        yield f"{join(folder, MANIFEST_NAME)} must be written as packing writes it, but was reformatted"
    try:
        read_file(join(folder, manifest.rejected.name), remote, sha256=manifest.rejected.sha256)
    except ShardError as error:
        yield str(error)


def _verify_shard(
    place: str, record: ShardRecord, rows: Sequence[dict[str, Any]], ranges: RangeReader
) -> Iterator[str]:
    is_explained = False
    for row in rows:
        found = [_audio_problem(ranges.read(place, row["audio_offset"], row["audio_bytes"], fresh=True), row)]
        if row["meta_offset"] is not None:  # adopted shards need not hold our JSON
            meta = ranges.read(place, row["meta_offset"], row["meta_bytes"], fresh=True)
            found.append(_meta_problem(meta, row))
        for problem in filter(None, found):
            is_explained = True
            yield f"utterance {row['key']!r} in {place}: {problem}"
    digest = hashlib.sha256()
    for start in range(0, record.num_bytes, PIECE_BYTES):
        digest.update(ranges.read(place, start, min(PIECE_BYTES, record.num_bytes - start), fresh=True))
    if digest.hexdigest() != record.sha256 and not is_explained:
        yield f"{place} must have sha256 {record.sha256}, but was changed outside its samples and metadata"


def _rows_of(index: Index) -> list[dict[str, Any]]:
    columns = [index.column(name).to_pylist() for name in INDEX_SCHEMA.names]
    return [dict(zip(INDEX_SCHEMA.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _audio_problem(data: bytes, row: dict[str, Any]) -> str | None:
    if row["audio_sha256"] is not None and hashlib.sha256(data).digest() != row["audio_sha256"]:
        return "its audio's bytes are not those that were packed"
    samples = np.empty(row["num_samples"], np.float32)
    try:
        decode_stored(data, samples)
    except AudioError as error:
        return f"audio does not decode ({error})"
    pcm = pcm16(samples)
    return None if pcm_sha256(pcm) == row["pcm_sha256"] else "audio does not decode to the samples that were packed"


def _meta_problem(data: bytes, row: dict[str, Any]) -> str | None:
    try:
        meta = json.loads(data)
        version, *audio = (meta.pop(name) for name in ("schema_version", "num_samples", "pcm_sha256"))
        utterance = Utterance.model_validate(meta)
        found = [index_row(form) for form in (utterance, composed(utterance))]
    except (ValueError, KeyError, AttributeError) as error:
        return f"metadata cannot be read ({type(error).__name__})"
    expected = {name: value for name, value in row.items() if name in found[0]}
    is_same = version in READABLE_VERSIONS and audio == [row["num_samples"], row["pcm_sha256"].hex()]
    return None if is_same and expected in found else "metadata differs from the index"
