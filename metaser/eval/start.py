"""What made the model that a run starts from (`init_from`): it made the run's own model, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaser.config.load import load_experiment
from metaser.config.schema import ExperimentConfig
from metaser.errors import ConfigError
from metaser.eval.claims import refuse_kinship
from metaser.record import DataRecord, StartRecord, read_material, read_record
from metaser.rundir import RunDir
from shards.index import Index
from shards.inputfile import is_there
from shards.kinship import START, Kinship, Material, kinship
from shards.splits import SplitAssignment


@dataclass(frozen=True)
class Start:
    """The model that a run starts from."""

    record: StartRecord
    made: Material
    """All that moved or chose its weights, as far as it is known; of the split `START`."""


def read_start(source: str) -> Start:
    """Return what the run in `source`, or around the exported model there, was made from.

    Raises:
        RunError: if its record is damaged.
        ShardError: likewise.
    """
    run = _run_of(Path(source))
    record = None if run is None else read_record(run)
    if run is None or record is None or not is_there(run.trained_on):
        return Start(StartRecord(source, unknown="it has no record of that"), Material.nothing())
    made = read_material(run, record).as_split(START)
    digests = tuple(folder.index_sha256 for folder in record.folders)
    earlier = _start_of(run, record)
    if earlier is not None:
        digests += earlier.index_sha256
    corpora = tuple(sorted({corpus for folder in record.folders for corpus in folder.corpora}))
    unknown = None if earlier is None or earlier.unknown is None else f"it started from {earlier.source!r} itself"
    return Start(StartRecord(source, len(made), corpora, digests, unknown), made)


def _run_of(folder: Path) -> RunDir | None:
    for root in (folder, folder.resolve().parent):
        run = RunDir(root)
        if is_there(run.data) and (root == folder or folder.resolve() == run.best.resolve()):
            return run
    return None


def _start_of(run: RunDir, record: DataRecord) -> StartRecord | None:
    try:
        return known_start(load_experiment(run.config), record)
    except ConfigError:
        # An experiment of another version; what it started from is not known.
        return record.start or StartRecord("?", unknown="its experiment cannot be read")


def known_start(config: ExperimentConfig, record: DataRecord | None) -> StartRecord | None:
    """Return what a run says of the model it started from; None if it started from none."""
    if config.init_from is None:
        return None
    if record is None or record.start is None:
        return StartRecord(config.init_from, unknown="the run was started before that was recorded")
    return record.start


def is_same_shards(start: StartRecord, record: DataRecord) -> bool:
    """Return whether the source was made from these shards alone, so that other names are other people."""
    return set(start.index_sha256) <= {folder.index_sha256 for folder in record.folders}


def check_start(start: Start, config: ExperimentConfig, index: Index, splits: SplitAssignment) -> None:
    """Refuse test utterances that made the model a run starts from, unless the experiment accepts that.

    Raises:
        SplitError: if there are any.
    """
    rows = splits.rows("test")
    judged = Material.of(index.take(rows), {"test": np.arange(len(rows))})
    refuse_kinship(
        kinship(start.made, judged, same_shards=True),
        f"split 'test' of a run that starts from {start.record.source!r}",
        config,
        remedy="accept it with data.allow_speaker_overlap=true data.allow_recording_overlap=true",
    )


def start_facts(start: StartRecord, kin: Kinship, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what `report.json` says where a run started from another model.

    Args:
        start: the source.
        kin: the judged utterances compared with what made it.
        facts: what is said of all that made the model.
    """
    states = (facts["speaker_overlap"], kin.speaker_overlap)
    is_unsure = None in states or start.unknown is not None
    return {
        "init_from": start.source,
        "speaker_overlap": True if True in states else None if is_unsure else False,
    }


def start_notes(start: StartRecord, kin: Kinship) -> list[str]:
    """Return what a reader of the numbers must know of the source; `kin` is as in `start_facts`."""
    notes = [describe_start(start)]
    if kin.names:
        notes.append(
            f"{len(kin.names)} speakers (first: {kin.names[0]!r}) are called like speakers of other corpora that made "
            f"{start.source!r}; whether they are the same people is unknown"
        )
    return notes


def describe_start(start: StartRecord) -> str:
    """Return a sentence for reports and cards, without its full stop."""
    said = f"the run started from the weights of {start.source!r}"
    if start.num_utterances is not None:
        said += f", which {start.num_utterances} utterances of {', '.join(start.corpora) or 'no corpus'} made"
        said += " and which count as trained on"
    if start.unknown is not None:
        said += f"; whether others, perhaps these speakers, made it as well is unknown: {start.unknown}"
    return said
