"""What a user may have got wrong in experiment and data, found before the first step of the first stage."""

from __future__ import annotations

from dataclasses import dataclass

from metaser.config.schema import ExperimentConfig
from metaser.eval.coverage import check_labels
from metaser.tasks.spec import TaskSpec
from metaser.train.augment import check_stretched
from metaser.train.stage import StageData, experiment_specs, heard_samples, select_utterances, stage_data
from shards.index import Index
from shards.plan import check_longest, check_sizes
from shards.splits import SplitAssignment


@dataclass(frozen=True)
class CheckedData:
    """What an experiment makes of its shards."""

    specs: tuple[TaskSpec, ...]
    stages: tuple[StageData, ...]
    notes: list[str]
    """What a user should know before training; each a sentence without its full stop."""


def check_data(config: ExperimentConfig, index: Index, splits: SplitAssignment, *, num_processes: int) -> CheckedData:
    """Return what each stage trains on, if all stages can be trained and test can be judged.

    Raises:
        InputError: if labels, filters, clips or number of processes do not allow it.
    """
    specs = experiment_specs(config, index, splits)
    stages = tuple(stage_data(stage, specs, index, splits, config.data) for stage in config.stages)
    notes = check_labels(config, specs, index, splits)
    windowing, max_slot_s = config.data.windowing, config.data.max_slot_s
    for part in stages:
        for split in (part.training, part.dev):
            check_sizes(split.num_samples, num_processes=num_processes, max_slot_s=max_slot_s, windowing=windowing)
    test = index.take(splits.rows("test"))
    for stage in config.stages:
        judged = test.take(select_utterances(stage, specs, test))
        check_longest(judged.num_samples, windowing, max_slot_s=max_slot_s)
    for stage, part in zip(config.stages, stages, strict=True):
        check_stretched(stage.augment, heard_samples(part.training, config.data), max_slot_s)
    return CheckedData(specs, stages, notes)
