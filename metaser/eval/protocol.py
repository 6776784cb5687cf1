"""Which weights are judged on which utterances, and where the result goes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaser.config.schema import ExperimentConfig
from metaser.distributed import DistInfo
from metaser.errors import RunError
from metaser.eval.evaluate import evaluate
from metaser.eval.figures import ari_figure, confusion_figure, curves_figure
from metaser.eval.metrics import UtteranceResult
from metaser.eval.report import build_report, write_report
from metaser.model.metaser import MetaSERModel, MetaSEROutput
from metaser.rundir import RunDir, writing
from metaser.tracking import read_metrics
from metaser.train.engine import Processes
from metaser.train.stage import select_utterances
from shards.batch import Batch
from shards.config import SplitRule, StoredSplit
from shards.errors import SplitError
from shards.index import Index, load_index
from shards.splits import SplitAssignment, assign_splits, duplicates_across

log = logging.getLogger(__name__)


def evaluate_run_split(
    run: RunDir,
    config: ExperimentConfig,
    index: Index,
    splits: SplitAssignment,
    processes: Processes,
    *,
    split: str = "test",
    folder: Path | None = None,
    at_boundary: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """Judge the run's best model on `split` and write the report to `folder` (default: `report/`).

    Each task is judged on what any stage's filter admits, the main task on what the last stage's does.
    `at_boundary` is called between batches. Returns the report on every process; None, with a message, if the split is
    empty.

    Raises:
        RunError: if the run has no best model yet.
    """
    if not (run.best / "config.json").is_file():
        raise RunError(f"run {str(run.root)!r} has no best model yet; its last stage must be evaluated on dev first")
    model = MetaSERModel.from_pretrained(run.best)
    specs = model.task_specs
    of_split = index.take(splits.rows(split))
    by_stage = [select_utterances(stage, specs, of_split) for stage in config.stages]
    part = of_split.take(np.unique(np.concatenate(by_stage)))
    if not len(part):
        log.warning("no %s utterances to evaluate on", split)
        return None
    model.to(processes.device)  # type: ignore[arg-type]
    use_bf16 = config.parallel.precision == "bf16"

    def forward(batch: Batch) -> MetaSEROutput:
        with torch.autocast(processes.device.type, dtype=torch.bfloat16, enabled=use_bf16):
            output: MetaSEROutput = model(batch.wave_BT, batch.num_samples_B)
        return output

    results = evaluate(
        forward,
        specs,
        part,
        config.data,
        processes,
        at_boundary=at_boundary,
        hop_samples=model.encoder.hop_samples,
    )
    main_keys = set(of_split.take(by_stage[-1]).values("key"))
    results = [result if result.key in main_keys else _without_task(result, config.main_task) for result in results]
    report = build_report(
        specs,
        config.main_task,
        results,
        split=split,
        protocol={
            **splits.protocol,
            "num_recordings_in_two_splits": len(duplicates_across(index, splits)),
        },
        run={"folder": run.root.name, "seed": config.seed},
    )
    target = folder or run.report

    def write() -> None:
        with writing(target):
            write_report(target, report, results, specs)
            write_figures(target, run, model, report)

    processes.on_main(write)
    return report


def evaluate_run(
    run: RunDir, config: ExperimentConfig, info: DistInfo, *, shards: str | None = None, split: str = "test"
) -> dict[str, Any]:
    """Judge the run's best model on `split` of its own or other shards.

    The run's own test split goes to `report/report.json`; anything else to `report/NAME/`, which leaves that alone.

    Raises:
        SplitError: if the split is empty, or unknown.
        RunError: if the run has no best model yet.
    """
    folders = config.data.shard_folders if shards is None else (shards,)
    index = load_index(folders, config.data.remote)
    rules = config.data.splits if shards is None else _rules_for(config, index)
    splits = assign_splits(index, rules, allow_speaker_overlap=config.data.allow_speaker_overlap)
    if shards is not None:
        _compare_with_training(config, splits, index, split)
    own_test = shards is None and split == "test"
    name = split if shards is None else f"{Path(shards).name}-{split}"
    # However it was trained, the model fits one device to be judged.
    parallel = config.parallel.model_copy(update={"strategy": "auto", "offload": "none", "extra": {}})
    processes = Processes(parallel, info)
    target = run.report if own_test else run.report / name
    try:
        report = evaluate_run_split(run, config, index, splits, processes, split=split, folder=target)
    finally:
        processes.close()
    if report is None:
        raise SplitError(
            f"split {split!r} of {', '.join(map(str, folders))} must hold utterances that pass a stage's filter, "
            f"got none; the splits hold {splits.protocol['num_utterances']}"
        )
    return report


def _without_task(result: UtteranceResult, task: str) -> UtteranceResult:
    return replace(result, tasks={name: value for name, value in result.tasks.items() if name != task})


def _compare_with_training(config: ExperimentConfig, splits: SplitAssignment, index: Index, split: str) -> None:
    """Note in the protocol whether the other shards' speakers were trained on.

    Raises:
        SplitError: if so, and the experiment does not allow it.
    """
    own = load_index(config.data.shard_folders, config.data.remote)
    rules, allowed = config.data.splits, config.data.allow_speaker_overlap
    trained_on = assign_splits(own, rules, allow_speaker_overlap=allowed).rows("train")
    shared = sorted(
        (set(own.take(trained_on).values("speaker")) & set(index.take(splits.rows(split)).values("speaker"))) - {None}
    )
    if shared and not allowed:
        raise SplitError(
            f"split {split!r} must hold no speaker of the training set, but {len(shared)} are (first: {shared[0]!r}); "
            "set data.allow_speaker_overlap in the experiment to accept it"
        )
    splits.protocol["speaker_overlap"] = bool(shared) or splits.protocol["speaker_overlap"]


def _rules_for(config: ExperimentConfig, index: Index) -> tuple[SplitRule, ...]:
    """Return the run's split rules without those of corpora that `index` does not hold."""
    present = set(index.values("corpus"))
    return tuple(rule for rule in config.data.splits if rule.corpus is None or rule.corpus in present) or (
        StoredSplit(),
    )


def write_figures(folder: Path, run: RunDir, model: MetaSERModel, report: dict[str, Any]) -> None:
    """Write the confusion matrix, the loss curves and the ARI coefficients as PNG into `folder`."""
    main = report["tasks"].get(model.config.main_task, {})
    if "confusion" in main:
        labels = next(spec.labels for spec in model.task_specs if spec.name == model.config.main_task)
        confusion_figure(
            labels, main["confusion"], folder / "confusion.png", f"{model.config.main_task}, {report['split']}"
        )
    curves_figure(read_metrics(run.metrics), folder / "curves.png")
    for name, coefficients in model.ari.coefficients().items():
        values = coefficients.detach().cpu().numpy()
        rows = list(model.ari.task_names) if name == "task" else [f"layer {row + 1}" for row in range(len(values))]
        ari_figure(rows, [f"h{column}" for column in range(values.shape[1])], values, folder / f"ari_{name}.png")
