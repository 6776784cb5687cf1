"""What stands in shards, counted the way a corpus's users ask, and the proof that every byte is as it was packed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.config import RemoteConfig
from shards.errors import ShardError
from shards.index import Index, duplicate_rows, label_tables
from shards.indexfile import INDEX_SCHEMA
from shards.indexload import load_index
from shards.jsontext import JsonTextError, parse_json
from shards.manifest import MANIFEST_NAME, Manifest, as_written, read_manifest
from shards.remade import Remade
from shards.schema import METADATA_FIELDS, SPLITS
from shards.store import RangeReader, read_file
from shards.urls import join
from shards.verification import TarCheck, forms_problem, index_problems, rejected_sources

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
    """Compare everything that `folders` say of themselves, to the last byte, and return what does not agree.

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
    if len(opened) == len(folders) > 1:
        try:
            load_index(folders, remote)
        except ShardError as error:
            problems.append(str(error))
    total = sum(len(index) for _, _, index in opened)
    num_checked = 0
    ranges = RangeReader(remote)
    for folder, manifest, index in opened:
        rejected: set[str] = set()
        try:
            problems += _manifest_problems(folder, remote)
            rejected = rejected_sources(folder, manifest, remote)
        except ShardError as error:
            problems.append(str(error))
        try:
            problems += index_problems(index, manifest, join(folder, manifest.index.name))
        except ShardError as error:
            # Its rows cannot be read.
            problems.append(str(error))
            continue
        is_adopted = manifest.settings.shard_utterances == 0
        start, other_forms, remade = 0, list[str](), Remade.of(manifest)
        for place, record in zip(index.shard_places, manifest.shards, strict=True):
            rows = _rows_of(index.take(np.arange(start, start + record.num_utterances)))
            start += record.num_utterances
            check = TarCheck(place, record, rows, ranges, rejected if is_adopted else None, remade)
            try:
                problems += check.problems()
            except ShardError as error:
                problems.append(str(error))
            other_forms += check.other_forms
            num_checked += len(rows)
            if progress is not None:
                progress(num_checked, total)
        forms = forms_problem(other_forms)
        problems += [] if forms is None else [forms]
    return problems


def _manifest_problems(folder: str, remote: RemoteConfig | None) -> Iterator[str]:
    place = join(folder, MANIFEST_NAME)
    data = read_file(place, remote)
    try:
        is_as_written = data == as_written(parse_json(data))
    except JsonTextError:
        # A server's second answer need not be its first.
        is_as_written = False
    if not is_as_written:
        yield f"{place} must be written as packing writes it, but was reformatted, or changed since it was first read"


def _rows_of(index: Index) -> list[dict[str, Any]]:
    columns = [index.column(name).to_pylist() for name in INDEX_SCHEMA.names]
    return [dict(zip(INDEX_SCHEMA.names, row, strict=True)) for row in zip(*columns, strict=True)]
