"""What each stage trains on: its filter, its labels, the windows that it hears of long clips."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np

from metaser.config.schema import ExperimentConfig, StageConfig
from metaser.errors import ConfigError, TrainingError
from metaser.targets import Targets, resolve_tasks
from metaser.tasks.kinds import kind_of
from metaser.tasks.spec import TaskSpec
from shards.config import DataConfig
from shards.filter import select_rows
from shards.index import Index
from shards.indexload import load_index
from shards.splits import SplitAssignment, assign_splits

log = logging.getLogger(__name__)


def load_split_index(data: DataConfig) -> tuple[Index, SplitAssignment]:
    """Return the utterances of an experiment's shards, and who is in which split.

    Raises:
        InputError: if the shards cannot be read or split so.
    """
    index = load_index(data.shard_folders, data.remote)
    splits = assign_splits(
        index,
        data.splits,
        allow_speaker_overlap=data.allow_speaker_overlap,
        allow_recording_overlap=data.allow_recording_overlap,
    )
    return index, splits


def passes_filter(stage: StageConfig, index: Index) -> np.ndarray:
    """Return which utterances the stage's filter admits, shape (num_utterances,), bool."""
    return np.ones(len(index), dtype=bool) if stage.filter is None else select_rows(index, stage.filter)


def weighing_rows(config: ExperimentConfig, task: str, index: Index) -> np.ndarray:
    """Return which rows the filter of some stage that weighs `task` admits, shape (num_utterances,)."""
    admitted = np.zeros(len(index), dtype=bool)
    for stage in config.stages:
        if task in stage.weighted_tasks:
            admitted |= passes_filter(stage, index)
    return admitted


@dataclass(frozen=True)
class StageData:
    """The utterances of one stage, by split."""

    training: Index
    dev: Index


def heard_samples(index: Index, data: DataConfig) -> np.ndarray:
    """Return how much of each utterance one step hears: all of it, or a window."""
    return index.num_samples if data.windowing is None else data.windowing.heard(index.num_samples)


def is_cut(index: Index, data: DataConfig) -> np.ndarray:
    """Return which utterances are longer than a window."""
    cut: np.ndarray = heard_samples(index, data) < index.num_samples
    return cut


def select_utterances(
    stage: StageConfig, specs: tuple[TaskSpec, ...], index: Index, *, is_cut: np.ndarray | None = None
) -> np.ndarray:
    """Return the rows of `index` that `stage` uses: its filter, and a label for at least one weighted task.

    The text of what `is_cut` is no label.
    """
    selected = passes_filter(stage, index)
    targets = Targets(specs, index, is_cut=is_cut)
    labelled = np.zeros(len(index), dtype=bool)
    for name in stage.weighted_tasks:
        labelled |= targets.present(name)
    return np.flatnonzero(selected & labelled)


def training_rows(config: ExperimentConfig, index: Index, splits: SplitAssignment) -> np.ndarray:
    """Return the training rows that some stage's filter admits: what alphabets and label sets are made from."""
    admitted = np.zeros(len(index), dtype=bool)
    for stage in config.stages:
        admitted |= passes_filter(stage, index)
    training = splits.rows("train")
    rows: np.ndarray = training[admitted[training]]
    return rows


def experiment_specs(config: ExperimentConfig, index: Index, splits: SplitAssignment) -> tuple[TaskSpec, ...]:
    """Return the experiment's tasks with all that its training utterances decide.

    Raises:
        TrainingError: if a label set or balanced class weights cannot be made.
    """
    training = splits.rows("train")
    trained_on = {
        task.name: index.take(training[weighing_rows(config, task.name, index)[training]])
        for task in config.tasks
        if task.takes_all_labels
    }
    return resolve_tasks(config.tasks, index.take(training_rows(config, index, splits)), trained_on)


def stage_data(
    stage: StageConfig,
    specs: tuple[TaskSpec, ...],
    index: Index,
    splits: SplitAssignment,
    data: DataConfig | None = None,
) -> StageData:
    """Return the stage's training and dev utterances; `data` says which of them are heard in windows.

    Raises:
        TrainingError: if a part is empty, or a weighted task has no label in it at all, or one it does not know.
        ConfigError: if dev cannot yield the metric that the stage selects by.
    """
    parts = {}
    for split in ("train", "dev"):
        part = index.take(splits.rows(split))
        cut = is_cut(part, data) if data is not None and split == "train" else None
        chosen = part.take(select_utterances(stage, specs, part, is_cut=cut))
        if data is not None and split == "train":
            _report_cut(stage, specs, part, chosen, data)
        if not len(chosen):
            raise TrainingError(
                f"stage {stage.name!r} needs {split} utterances, but none of {len(part)} passes its filter "
                f"({stage.filter!r}) with a label for {list(stage.weighted_tasks)}; check data.splits and the filter"
            )
        parts[split] = chosen
    targets = Targets(specs, parts["train"], is_cut=None if data is None else is_cut(parts["train"], data))
    for spec in specs:
        if spec.name not in stage.weighted_tasks:
            continue
        _refuse_unknown_labels(spec, stage, parts["train"])
        if not targets.present(spec.name).any():
            raise TrainingError(
                f"task {spec.name!r} has weight {stage.weights[spec.name]:g} in stage {stage.name!r}, but none of its "
                f"{len(parts['train'])} training utterances has {' or '.join(spec.fields)}; set the weight to 0 or add "
                "the metadata"
            )
    _refuse_unknown_metric(specs, stage, Targets(specs, parts["dev"]))
    return StageData(parts["train"], parts["dev"])


def _report_cut(stage: StageConfig, specs: tuple[TaskSpec, ...], part: Index, chosen: Index, data: DataConfig) -> None:
    """Say what windows take from a stage: some labels, as a text, belong to the whole clip."""
    num_cut = int(is_cut(chosen, data).sum())
    num_left_out = len(select_utterances(stage, specs, part)) - len(chosen)
    if num_cut or num_left_out:
        texts = [spec.name for spec in specs if kind_of(spec).needs_whole_clip and spec.name in stage.weighted_tasks]
        log.info(
            "stage %s: %d of %d training utterances are longer than data.window_s %g and heard in windows%s%s",
            stage.name,
            num_cut,
            len(chosen),
            data.window_s,
            f"; they have no part in {', '.join(texts)}" if texts else "",
            f"; {num_left_out} more, with no label but those of the whole clip, are left out" if num_left_out else "",
        )


def _refuse_unknown_metric(specs: tuple[TaskSpec, ...], stage: StageConfig, dev: Targets) -> None:
    known = ["loss"]
    for spec in specs:
        if spec.name in stage.weighted_tasks and dev.present(spec.name).any():
            known += [f"{spec.name}.{metric}" for metric in ("loss", *kind_of(spec).metrics)]
    if stage.select not in known:
        raise ConfigError(
            f"stage {stage.name!r} must select by a metric that its dev set yields ({', '.join(known)}), got "
            f"{stage.select!r}; name one of these or give the dev set the labels it needs"
        )


def _refuse_unknown_labels(spec: TaskSpec, stage: StageConfig, training: Index) -> None:
    if not kind_of(spec).has_classes:
        return
    unknown: Counter[str] = Counter()
    for value, count in training.codes(spec.fields[0]).counts().items():
        if spec.label_of(value) not in spec.labels:
            unknown[spec.label_of(value)] += count
    if unknown:
        raise TrainingError(
            f"every {spec.fields[0]} that stage {stage.name!r} trains on must be a label of task {spec.name!r} "
            f"{list(spec.labels)}, but found {dict(unknown)}; add the labels, merge them with tasks.N.merge, or "
            "select with stages.N.filter"
        )
