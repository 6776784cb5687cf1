"""From per-utterance results to the numbers a task is judged by; plain Python in and out, no model.

All rates are fractions. Sums are exact (`math.fsum`), so no number depends on the order in which utterances arrive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from metaser.errors import ConfigError, TrainingError
from metaser.tasks.kinds import all_metrics, kind_of
from metaser.tasks.results import UtteranceResult
from metaser.tasks.spec import TaskSpec, loss_denominator


def task_metrics(spec: TaskSpec, results: Sequence[UtteranceResult]) -> dict[str, Any] | None:
    """Return one task's metrics over the utterances that have its label, or None when none has.

    Every kind has `num_utterances` and `loss` (what training would call the loss of one step over these utterances;
    None without losses); beside them stands what the kind's `measure` returns.

    Raises:
        TrainingError: if a loss is not finite.
    """
    labelled = _labelled(spec, results)
    if not labelled:
        return None
    pairs = [result.tasks[spec.name] for result in labelled]
    measured = kind_of(spec).measure(spec, pairs)
    return {"num_utterances": len(pairs), "loss": _mean_loss(spec, labelled), **measured}


def add_interval(metrics: dict[str, Any], spec: TaskSpec, results: Sequence[UtteranceResult]) -> None:
    """Add `ua_interval_95`, and where that is None `ua_interval_reason`, to the metrics of a task that has UA."""
    interval = kind_of(spec).interval(spec, _labelled(spec, results))
    if interval is not None:
        metrics["ua_interval_95"], reason = interval
        if reason is not None:
            metrics["ua_interval_reason"] = reason


def _labelled(spec: TaskSpec, results: Sequence[UtteranceResult]) -> list[UtteranceResult]:
    kind = kind_of(spec)
    found = ((result, result.tasks.get(spec.name)) for result in results)
    return [result for result, task in found if task is not None and kind.is_label(task.reference)]


def evaluate_results(
    specs: Sequence[TaskSpec], results: Sequence[UtteranceResult], *, weights: Mapping[str, float] | None
) -> dict[str, Any]:
    """Return `{"tasks": {name: metrics}, "loss": weighted sum of the tasks' losses}`.

    Tasks without a label are left out of both. The loss is None without `weights` or when no weighted task has a label.
    """
    measured = {spec.name: task_metrics(spec, results) for spec in specs}
    tasks = {name: metrics for name, metrics in measured.items() if metrics is not None}
    terms = [
        weight * tasks[name]["loss"]
        for name, weight in (weights or {}).items()
        if weight > 0 and name in tasks and tasks[name]["loss"] is not None
    ]
    return {"tasks": tasks, "loss": math.fsum(terms) if terms else None}


def selected_value(metrics: Mapping[str, Any], select: str) -> tuple[float, bool]:
    """Return the value in `evaluate_results`' metrics that `select` names, and whether higher is better.

    Args:
        metrics: what `evaluate_results` returned.
        select: `loss`, or `TASK.METRIC` such as `emotion.ua`.

    Raises:
        ConfigError: if there is no such value.
    """
    values: dict[str, Any] = {"loss": metrics.get("loss")}
    metric_of = all_metrics()
    for task, numbers in metrics.get("tasks", {}).items():
        values |= {f"{task}.{name}": numbers[name] for name in (*metric_of, "loss") if name in numbers}
    if values.get(select) is None:
        known = ", ".join(name for name, value in values.items() if value is not None)
        raise ConfigError(
            f"select must name a metric that the dev set yields ({known or 'none: it has no labels'}), got {select!r}; "
            "name one of these or give the dev set the labels it needs"
        )
    metric = metric_of.get(select.rpartition(".")[2])
    return float(values[select]), metric is not None and metric.higher_is_better


def _mean_loss(spec: TaskSpec, labelled: Sequence[UtteranceResult]) -> float | None:
    losses, weights = [], []
    for result in labelled:
        task = result.tasks[spec.name]
        if task.loss is None:
            continue
        if not math.isfinite(task.loss):
            raise TrainingError(
                f"the loss of task {spec.name!r} must be finite, got {task.loss} on {result.key}; the weights have "
                "diverged: lower the learning rate or go back to an earlier checkpoint"
            )
        losses.append(task.loss)
        weights.append(task.loss_weight)
    return math.fsum(losses) / loss_denominator(math.fsum(weights)) if losses else None


def rounded(value: float | None) -> str:
    """Return a metric as tables show it."""
    return "-" if value is None else f"{value:.3f}"
