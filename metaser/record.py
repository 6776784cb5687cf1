"""What a run is made from, written when it starts: for its model card, and to compare it with other shards later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt, TypeAdapter

from metaser.config.schema import ExperimentConfig
from metaser.errors import RunError
from metaser.rundir import RunDir
from metaser.runfiles import read_json, reading, validated_json, write_whole, writing
from metaser.stagedata import select_utterances
from metaser.sums import sealed_json
from metaser.tasks.spec import TaskSpec
from shards.files import file_sha256
from shards.index import Index
from shards.inputfile import is_there
from shards.kinship import Material
from shards.manifest import read_manifest
from shards.schema import SPLITS
from shards.splits import SplitAssignment


@dataclass(frozen=True)
class FolderRecord:
    """A shard folder, as its manifest describes it."""

    folder: str
    index_sha256: str
    reader: str
    """Of the corpus, e.g. `emodb` or `csv`."""
    corpora: tuple[str, ...]
    """As its utterances name them."""
    licence: str
    citation: str


@dataclass(frozen=True)
class PartRecord:
    """The utterances of one corpus in one split that some stage's filter admits."""

    corpus: str
    split: str
    num_utterances: NonNegativeInt
    duration_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    num_speakers: NonNegativeInt
    num_without_speaker: NonNegativeInt
    languages: dict[str, NonNegativeInt]
    styles: dict[str, NonNegativeInt]


@dataclass(frozen=True)
class StartRecord:
    """The model whose weights a run started from."""

    source: str
    """As the experiment names it."""
    num_utterances: int | None = None
    """That made it; None if it has no record."""
    corpora: tuple[str, ...] = ()
    index_sha256: tuple[str, ...] = ()
    """Of its shard folders."""
    unknown: str | None = None
    """Why others may have made it as well, or None."""


@dataclass(frozen=True)
class DataRecord:
    """What `data.json` holds."""

    folders: tuple[FolderRecord, ...]
    parts: tuple[PartRecord, ...]
    protocol: dict[str, Any]
    """Of the splits: `SplitAssignment.protocol`."""
    start: StartRecord | None = None
    """None: the run started from no other model, or before this was written down."""
    trained_on_sha256: tuple[str, ...] = ()
    """Of `trained_on.parquet`; while it is replaced, of the old and of the new one. Empty in earlier versions."""


_validate = TypeAdapter(DataRecord).validate_json


@dataclass(frozen=True)
class _Protocol:
    """What is read back of a protocol."""

    speaker_overlap: bool | None
    num_utterances_without_speaker: dict[str, NonNegativeInt]
    num_recordings_in_two_splits: NonNegativeInt
    num_files_in_two_splits: NonNegativeInt


_validate_protocol = TypeAdapter(_Protocol).validate_json


def read_record(run: RunDir) -> DataRecord | None:
    """Return what the run is made from, None if it was started before this was written down.

    Raises:
        RunError: if the record is damaged.
    """
    record = read_json(run.data, _validate)
    if record is not None and record.protocol:
        validated_json(json.dumps(record.protocol).encode(), _validate_protocol, f"protocol in {run.data}")
    return record


def read_material(run: RunDir, record: DataRecord | None) -> Material:
    """Return what `trained_on.parquet` holds, compared with its checksum in the run's record.

    Raises:
        RunError: if it is another.
        ShardError: if it is damaged.
    """
    with reading(run.trained_on):
        digest = file_sha256(run.trained_on)
    if record is not None and record.trained_on_sha256 and digest not in record.trained_on_sha256:
        raise RunError(
            f"{run.trained_on} must have the sha256 that {run.data.name} beside it says, but has {digest[:12]}...; "
            "restore it or move both away"
        )
    return Material.read(run.trained_on)


def used_rows(
    config: ExperimentConfig, specs: tuple[TaskSpec, ...], index: Index, splits: SplitAssignment
) -> dict[str, np.ndarray]:
    """Return, per split, the rows that some stage admits: its filter, and a label for one of its weighted tasks."""
    found = {}
    for split in SPLITS:
        rows = splits.rows(split)
        part = index.take(rows)
        admitted = [select_utterances(stage, specs, part) for stage in config.stages]
        found[split] = rows[np.unique(np.concatenate(admitted))]
    return found


def material(index: Index, rows: Mapping[str, np.ndarray]) -> Material:
    """Return what moves and what chooses the weights, of `used_rows`."""
    return Material.of(index, {split: rows[split] for split in ("train", "dev")})


def write_record(
    run: RunDir,
    config: ExperimentConfig,
    specs: tuple[TaskSpec, ...],
    index: Index,
    splits: SplitAssignment,
    start: tuple[StartRecord, Material] | None = None,
) -> None:
    """Write `data.json` and `trained_on.parquet` into the run; what an earlier start trained on stays in the latter.

    Args:
        run: the run's folder.
        config: its experiment.
        specs: its tasks.
        index: of its shards.
        splits: of these.
        start: the model whose weights it takes now, and what made that; a run that goes on keeps what stands there.

    Raises:
        RunError: if the disk refuses.
        ShardError: if what an earlier start left is damaged.
    """
    rows = used_rows(config, specs, index, splits)
    folders = tuple(_folder_record(folder, config) for folder in config.data.shard_folders)
    parts = tuple(part for split in SPLITS for part in _parts(index.take(rows[split]), split))
    made = material(index, rows)
    earlier = read_record(run)
    started_from = None if earlier is None else earlier.start
    if start is not None:
        started_from, of_start = start
        made = made.joined(of_start)
    digests: tuple[str, ...] = ()
    if is_there(run.trained_on):
        made = made.joined(read_material(run, earlier))
        digests = (file_sha256(run.trained_on),)
    record = DataRecord(folders, parts, splits.protocol, started_from)
    draft = run.trained_on.with_name(f".{run.trained_on.name}.tmp")
    with writing(run.data):
        made.write(draft)
        new = file_sha256(draft)
        # Killed in between, both belong together all the same.
        for known in ((*digests, new), (new,)):
            write_whole(run.data, sealed_json(asdict(replace(record, trained_on_sha256=known))))
            if draft.exists():
                draft.replace(run.trained_on)


def _folder_record(folder: str, config: ExperimentConfig) -> FolderRecord:
    manifest = read_manifest(folder, config.data.remote)
    corpora = tuple(sorted(manifest.labels["corpus"]))
    return FolderRecord(folder, manifest.index.sha256, manifest.corpus, corpora, manifest.licence, manifest.citation)


def _parts(index: Index, split: str) -> Sequence[PartRecord]:
    corpora = index.codes("corpus")
    return [
        _part(index.take(np.flatnonzero(corpora.numbers == corpora.words.index(corpus))), corpus, split)
        for corpus in corpora.counts()
    ]


def _part(index: Index, corpus: str, split: str) -> PartRecord:
    speakers = index.codes("speaker")
    return PartRecord(
        corpus=corpus,
        split=split,
        num_utterances=len(index),
        duration_s=float(index.duration_s.sum()),
        num_speakers=len(speakers.counts()),
        num_without_speaker=int((speakers.numbers < 0).sum()),
        languages=index.codes("language").counts(),
        styles=index.codes("style").counts(),
    )


def is_own_folder(config: ExperimentConfig, record: DataRecord | None, folder: str) -> bool:
    """Return whether the run was trained on this very shard folder, or on a copy of it."""
    if Path(folder).resolve() in [Path(own).resolve() for own in config.data.shard_folders]:
        return True
    known = [] if record is None else [own.index_sha256 for own in record.folders]
    return bool(known) and read_manifest(folder, config.data.remote).index.sha256 in known
