"""What a user may have got wrong in experiment and data, found before the first step of the first stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from metaser.config.schema import ExperimentConfig
from metaser.errors import ConfigError, TrainingError
from metaser.eval.coverage import check_labels
from metaser.eval.crossval import CrossValidation, fold_splits
from metaser.eval.start import check_start, read_start
from metaser.given import check_given
from metaser.model.exported import find_export
from metaser.stagedata import StageData, experiment_specs, heard_samples, select_utterances, stage_data
from metaser.tasks.spec import TaskSpec
from metaser.train.augment import check_stretched
from shards.errors import InputError
from shards.index import Index
from shards.indexload import load_index
from shards.plan import check_longest, check_sizes
from shards.schema import RATE_HZ
from shards.splits import SplitAssignment


@dataclass(frozen=True)
class CheckedData:
    """What an experiment makes of its shards."""

    specs: tuple[TaskSpec, ...]
    stages: tuple[StageData, ...]
    test: Index
    """What the stages are judged by in the end."""
    notes: list[str]
    """What a user should know before training; each a sentence without its full stop."""


def check_data(config: ExperimentConfig, index: Index, splits: SplitAssignment, *, num_processes: int) -> CheckedData:
    """Return what each stage trains on, if all stages can be trained and test can be judged.

    Raises:
        InputError: if labels, filters, clips or number of processes do not allow it.
    """
    specs = experiment_specs(config, index, splits)
    stages = tuple(stage_data(stage, specs, index, splits, config.data) for stage in config.stages)
    check_given(config.model, [stage.training for stage in stages])
    notes = check_labels(config, specs, index, splits)
    windowing, max_micro_batch_s = config.data.windowing, config.data.max_micro_batch_s
    for part in stages:
        for split in (part.training, part.dev):
            check_sizes(
                split.num_samples, num_processes=num_processes, max_micro_batch_s=max_micro_batch_s, windowing=windowing
            )
    test = index.take(splits.rows("test"))
    chosen = [select_utterances(stage, specs, test) for stage in config.stages]
    judged = test.take(np.unique(np.concatenate(chosen)))
    check_longest(judged.num_samples, windowing, max_micro_batch_s=max_micro_batch_s)
    for stage, part in zip(config.stages, stages, strict=True):
        check_stretched(stage.augment, heard_samples(part.training, config.data), max_micro_batch_s)
    return CheckedData(specs, stages, judged, notes)


def check_heard(config: ExperimentConfig, data: CheckedData, longest_samples: int | None) -> None:
    """Check that the model hears every clip, or window of it, whole: also where speed perturbation slows it down.

    Args:
        config: The experiment.
        data: Its utterances.
        longest_samples: `MetaSERModel.longest_samples`.

    Raises:
        ConfigError: A window is longer.
        TrainingError: A clip is.
    """
    if longest_samples is None:
        return
    limit = f"{longest_samples / RATE_HZ:g} s that the model hears at once"
    if config.data.windowing is not None and config.data.windowing.length > longest_samples:
        raise ConfigError(f"data.window_s must be at most the {limit}, got {config.data.window_s:g}; shorten it")
    parts = [part for stage in data.stages for part in (stage.training, stage.dev)]
    longest = max(int(heard_samples(part, config.data).max(initial=0)) for part in (*parts, data.test))
    if longest > longest_samples:
        raise TrainingError(
            f"the longest clip must last at most the {limit}, got {longest / RATE_HZ:.7g} s; set data.window_s to hear "
            "longer clips in windows, or filter by duration_s"
        )
    for stage, part in zip(config.stages, data.stages, strict=True):
        speed = stage.augment.speed
        if speed.probability == 0:
            continue
        longest, slowest = int(heard_samples(part.training, config.data).max()), min(speed.factors)
        # 1 / 0.9 rounds up: 27 s would become more than 30.
        if longest / Fraction(str(slowest)) > longest_samples:
            raise TrainingError(
                f"the longest clip at the slowest speed of augment.speed.factors must last at most the {limit}, got "
                f"{longest / RATE_HZ:.7g} s / {slowest:g} = {longest / RATE_HZ / slowest:.7g} s in stage "
                f"{stage.name!r}; set data.window_s to {slowest * longest_samples / RATE_HZ:g} or less, filter by "
                "duration_s or leave the factor out"
            )


def check_folds(plan: CrossValidation) -> list[str]:
    """Do for every fold the checks that its training would begin with; return what a user should know before.

    Raises:
        ConfigError: if a fold cannot be trained, naming all such folds and why.
    """
    index = load_index(plan.config.data.shard_folders, plan.config.data.remote)
    start = None
    if plan.config.init_from is not None:
        find_export(plan.config.init_from, setting="init_from")
        start = read_start(plan.config.init_from)
    folds_of: dict[str, list[int]] = defaultdict(list)
    failing: dict[str, list[int]] = defaultdict(list)
    for fold in range(len(plan.groups)):
        config = plan.experiment(fold)
        try:
            splits = fold_splits(config, index)
            data = check_data(config, index, splits, num_processes=config.parallel.expected_num_processes or 1)
            if start is not None and not plan.run(fold).is_run():
                check_start(start, config, index, splits)
            for note in data.notes:
                folds_of[note].append(fold)
        except InputError as error:
            failing[str(error)].append(fold)
    if failing:
        num_failing = sum(map(len, failing.values()))
        reasons = "; ".join(f"{_name_folds(plan, folds)}: {reason}" for reason, folds in failing.items())
        raise ConfigError(
            f"every fold must be able to train before the first starts, but {num_failing} of {len(plan.groups)} are "
            f"not: {reasons}"
        )
    return [f"{_name_folds(plan, folds)}: {note}" for note, folds in folds_of.items()]


def _name_folds(plan: CrossValidation, folds: Sequence[int]) -> str:
    if len(folds) == len(plan.groups):
        return "every fold"
    names = ", ".join(f"{fold} ({plan.groups[fold]})" for fold in folds)
    return f"fold {names}" if len(folds) == 1 else f"folds {names}"
