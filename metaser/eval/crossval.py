"""Cross-validation: which folds an experiment has, what is left of them to train, and one report over all.

A fold is one value of `fold` in the first split rule that has one (`leave_one_out`): fold k tests on the k-th group.
The folds lie in `NAME/fold0`, `NAME/fold1`, ...; the report over them in `NAME/report`.
"""

from __future__ import annotations

import fcntl
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt, TypeAdapter

from metaser.config.load import dump_experiment, parse_experiment
from metaser.config.schema import ExperimentConfig
from metaser.errors import ConfigError, RunError
from metaser.eval.claims import FoldClaims, pooled_claims
from metaser.eval.coverage import LeftOut, add_left_out
from metaser.eval.figures import confusion_figure
from metaser.eval.predictions import read_covered, read_predictions
from metaser.eval.report import build_report, write_report
from metaser.lines import check_metrics
from metaser.progress import is_finished
from metaser.rundir import CONFUSION, RunDir, refuse_output_dir
from metaser.runfiles import read_json, reading, validated_json, write_whole, writing
from metaser.runlock import lock_holder
from metaser.sums import sealed_json
from metaser.tasks.kinds import kind_of
from metaser.tasks.results import UtteranceResult
from metaser.tasks.spec import TaskSpec
from shards.config import LeaveOneOut
from shards.index import Index
from shards.indexload import load_index
from shards.inputfile import is_there
from shards.splits import SplitAssignment, assign_splits


@dataclass(frozen=True)
class CrossValidation:
    """The folds of one experiment."""

    root: Path
    config: ExperimentConfig
    rule: int
    """Position in `data.splits` of the rule whose `fold` changes."""
    groups: tuple[str, ...]
    """The group that each fold tests on."""

    def run(self, fold: int) -> RunDir:
        """Return the folder of `fold`."""
        return RunDir(self.root).fold(fold)

    def experiment(self, fold: int) -> ExperimentConfig:
        """Return the experiment of `fold`, whose run lies in its own folder."""
        tree = self.config.model_dump(mode="json")
        tree["data"]["splits"][self.rule]["fold"] = fold
        tree["output_dir"] = str(self.run(fold).root)
        return ExperimentConfig.model_validate(tree)

    @property
    def missing(self) -> list[int]:
        """The folds that are not trained and evaluated yet."""
        return [fold for fold in range(len(self.groups)) if not is_finished(self.run(fold))]


def plan_folds(config: ExperimentConfig) -> CrossValidation:
    """Return the folds of an experiment, counted in its shards.

    Raises:
        ConfigError: if no split rule has folds, or the rule's groups are not those of one corpus.
        SplitError: if the rules do not fit the shards.
        ShardError: if the shards cannot be read.
        RunError: if something other than a folder lies where the folds shall.
    """
    rules = config.data.splits
    position = next((i for i, rule in enumerate(rules) if isinstance(rule, LeaveOneOut)), None)
    if position is None:
        raise ConfigError(
            "cross-validation needs a rule with a `fold` in data.splits (policy leave_one_out), "
            f"got {', '.join(rule.policy for rule in rules)}"
        )
    rule = rules[position]
    assert isinstance(rule, LeaveOneOut)  # noqa: S101 (for mypy; that is how the position was found)
    index = load_index(config.data.shard_folders, config.data.remote)
    corpora = index.codes("corpus")
    named = {other.corpus for other in rules}
    judged = [name for name in corpora.counts() if name == rule.corpus or (rule.corpus is None and name not in named)]
    if len(judged) != 1:
        raise ConfigError(
            f"the rule with the fold (data.splits.{position}) must apply to one corpus, but applies to "
            f"{', '.join(judged) or 'none'} of {', '.join(corpora.counts())}; name that one as its `corpus`"
        )
    rows = np.flatnonzero(corpora.numbers == corpora.words.index(judged[0]))
    root = Path(config.output_dir)
    # An experiment may be that of its first fold, folder included.
    root = root.parent if RunDir(root).is_named_as_fold() else root
    refuse_output_dir(RunDir(root))
    plan = CrossValidation(root, config, position, tuple(index.take(rows).codes(rule.field).counts()))
    # What the first fold cannot be split by, none can.
    fold_splits(plan.experiment(0), index)
    return plan


def fold_splits(config: ExperimentConfig, index: Index) -> SplitAssignment:
    """Return who is trained on, and who is judged, in the fold that is the experiment `config`."""
    return assign_splits(
        index,
        config.data.splits,
        allow_speaker_overlap=config.data.allow_speaker_overlap,
        allow_recording_overlap=config.data.allow_recording_overlap,
    )


def check_crossval(plan: CrossValidation, *, is_queued: bool = False) -> None:
    """Refuse a folder that holds a run, or another cross-validation of which a fold has started or `is_queued`.

    Before that its plan may change: a mistake that every fold refuses must not tie the folder to it.

    Raises:
        RunError: saying which of them.
    """
    run = RunDir(plan.root)
    if not refuse_output_dir(run):
        return
    with reading(plan.root):
        is_crossval = run.is_crossval()
        is_run = run.is_run() or is_there(run.submissions) or (not is_crossval and lock_holder(run) is not None)
    if is_run:
        raise RunError(
            f"a cross-validation must have a folder of its own, but {str(plan.root)!r} holds a run; choose another "
            "output_dir"
        )
    if not is_crossval or _comparable(read_crossval(plan.root)) == _comparable(plan):
        return
    if is_queued or any(fold.is_run() for fold in fold_runs(plan.root).values()):
        raise RunError(
            f"{str(plan.root)!r} must hold the same cross-validation to go on with it, but holds one of another "
            "experiment or other shards; choose another output_dir"
        )


def start_crossval(plan: CrossValidation) -> None:
    """Write the plan into its folder, for the folds to find it; `check_crossval` must have allowed it.

    Raises:
        RunError: if the folder cannot be written.
    """
    text = sealed_json({"rule": plan.rule, "groups": plan.groups, "experiment": dump_experiment(plan.config)})
    try:
        plan.root.mkdir(parents=True, exist_ok=True)
        write_whole(RunDir(plan.root).crossval, text)
    except OSError as error:
        raise RunError(f"output_dir must be writable, but {str(plan.root)!r} is not: {error.strerror}") from error


def _comparable(plan: CrossValidation) -> tuple[object, ...]:
    config = plan.experiment(0).model_dump(mode="json", exclude={"output_dir", "parallel"})
    return config, plan.rule, plan.groups


def fold_runs(root: Path) -> dict[int, RunDir]:
    """Return the folds that have a folder, in order.

    Raises:
        RunError: if the folder cannot be read.
    """
    with reading(root):
        return RunDir(root).folds()


@dataclass(frozen=True)
class _Plan:
    """What `crossval.json` holds."""

    rule: NonNegativeInt
    groups: Annotated[tuple[str, ...], Field(min_length=1)]
    experiment: str


_validate_plan = TypeAdapter(_Plan).validate_json


def read_crossval(root: Path) -> CrossValidation:
    """Return the cross-validation in this folder.

    Raises:
        RunError: if there is none, or its plan is damaged.
        ConfigError: if the experiment in the plan is.
    """
    path = RunDir(root).crossval
    plan = read_json(path, _validate_plan)
    if plan is None:
        raise RunError(f"{str(root)!r} must hold a cross-validation, but has no {path.name}")
    config = parse_experiment(plan.experiment, str(path))
    rules = config.data.splits
    if plan.rule >= len(rules) or not isinstance(rules[plan.rule], LeaveOneOut):
        raise RunError(f"{path} is damaged: rule must be the position of a leave_one_out rule, got {plan.rule}")
    return CrossValidation(root, config, plan.rule, plan.groups)


@dataclass(frozen=True)
class FoldReport:
    """What a cross-validation takes from a fold's `report.json`."""

    tasks: dict[str, dict[str, Any]]
    protocol: FoldClaims
    left_out: dict[str, LeftOut] = field(default_factory=dict)


_validate_report = TypeAdapter(FoldReport).validate_json


def read_fold_report(run: RunDir) -> FoldReport:
    """Return the report of a finished fold.

    Raises:
        RunError: if it is damaged.
    """
    path = run.report_json
    data = read_covered(path)
    if data is None:
        raise RunError(f"a finished fold must have its report, but {path} is gone; train the fold again")
    report = validated_json(data, _validate_report, str(path))
    try:
        for task, metrics in report.tasks.items():
            check_metrics(task, metrics)
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}; evaluate the fold again with `metaser evaluate`") from None
    return report


# ---------------------------------------------------------------- one report over all folds


def write_crossval(plan: CrossValidation) -> dict[str, Any]:
    """Pool the folds' predictions of all tasks, write `NAME/report/`, and return what its report.json holds.

    To the keys of a run's report come `folds` (per fold its group and metrics), `mean` and `std` (sample standard
    deviation) of the metrics over the folds; these three are of the main task.

    Raises:
        RunError: if a fold is missing.
    """
    if plan.missing:
        raise RunError(
            f"every fold must be finished before all are pooled, but {len(plan.missing)} of {len(plan.groups)} are "
            f"not: {', '.join(map(str, plan.missing))}"
        )
    config = plan.config
    reports = [read_fold_report(plan.run(fold)) for fold in range(len(plan.groups))]
    specs, results = _pool(plan)
    spec = next(spec for spec in specs if spec.name == config.main_task)
    pooled = build_report(
        specs,
        config.main_task,
        results,
        split="test",
        protocol={
            "cross_validation": f"data.splits.{plan.rule}.fold = 0 to {len(plan.groups) - 1}",
            **pooled_claims([report.protocol for report in reports], config),
        },
        run={"folder": plan.root.name, "seed": config.seed},
        left_out=add_left_out([report.left_out for report in reports]),
    )
    metrics = kind_of(spec).metrics
    folds: list[dict[str, Any]] = [
        {
            "fold": number,
            "group": group,
            **{name: report.tasks.get(spec.name, {}).get(name) for name in ("num_utterances", *metrics)},
        }
        for number, (group, report) in enumerate(zip(plan.groups, reports, strict=True))
    ]
    values = {name: [fold[name] for fold in folds if fold[name] is not None] for name in metrics}
    pooled["folds"] = folds
    pooled["mean"] = {name: statistics.fmean(found) if found else None for name, found in values.items()}
    pooled["std"] = {name: statistics.stdev(found) if len(found) > 1 else None for name, found in values.items()}
    root = RunDir(plan.root)
    with writing(plan.root), root.lock.open("ab") as lock:
        # Folds that end together, maybe on two nodes, both write.
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_report(root.report, pooled, results, specs)
        if "confusion" in pooled["tasks"].get(spec.name, {}):
            title = f"{spec.name}, {len(folds)} folds"
            confusion_figure(spec.labels, pooled["tasks"][spec.name]["confusion"], root.report / CONFUSION, title)
    return pooled


def _pool(plan: CrossValidation) -> tuple[list[TaskSpec], list[UtteranceResult]]:
    """Return the tasks with the labels of all folds, and every fold's utterances.

    Folds may know different labels where these come from training (speakers): a class that a fold's model does not
    have, it gives the probability 0.
    """
    parts = [read_predictions(plan.run(fold).predictions, plan.config.tasks) for fold in range(len(plan.groups))]
    pooled: dict[str, TaskSpec] = {}
    for specs, _ in parts:
        for spec in specs:
            pooled[spec.name] = _joined(pooled.get(spec.name, spec), spec)
    if plan.config.main_task not in pooled:
        raise RunError(f"some fold must have answers of task {plan.config.main_task!r}, but none of {len(parts)} has")
    results = [_with_labels(result, specs, pooled) for specs, found in parts for result in found]
    return [pooled[task.name] for task in plan.config.tasks if task.name in pooled], results


def _joined(one: TaskSpec, other: TaskSpec) -> TaskSpec:
    if one.labels == other.labels:
        return one
    return one.model_copy(update={"labels": tuple(sorted({*one.labels, *other.labels}))})


def _with_labels(result: UtteranceResult, specs: Sequence[TaskSpec], pooled: Mapping[str, TaskSpec]) -> UtteranceResult:
    changed = {}
    for spec in specs:
        task = result.tasks.get(spec.name)
        if task is not None and task.probabilities is not None and spec.labels != pooled[spec.name].labels:
            share_of = dict(zip(spec.labels, task.probabilities, strict=True))
            shares = tuple(share_of.get(label, 0.0) for label in pooled[spec.name].labels)
            changed[spec.name] = replace(task, probabilities=shares)
    return replace(result, tasks=result.tasks | changed) if changed else result
