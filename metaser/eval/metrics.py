"""From per-utterance results to the numbers a task is judged by; plain Python in and out, no model.

All rates are fractions. Sums are exact (`math.fsum`), so no number depends on the order in which utterances arrive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metaser.errors import ConfigError, TrainingError
from metaser.eval.text import lacks_word_boundaries, score_text, score_words
from metaser.tasks import TaskSpec, fold_text, loss_denominator

HEADLINE_METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("wa", "ua", "macro_f1"),
    "ctc": ("wer", "cer"),
    "regression": ("ccc", "mse"),
}
"""The numbers a table shows for each kind of task."""
METRIC_TITLES = {
    "wa": "WA",
    "ua": "UA",
    "macro_f1": "macro-F1",
    "wer": "WER",
    "cer": "CER",
    "ccc": "CCC",
    "mse": "MSE",
}
"""What a table calls them, in the order of its columns."""

MIN_SPEAKERS_FOR_INTERVAL = 5

_HIGHER_IS_BETTER = {
    "ua": True,
    "wa": True,
    "macro_f1": True,
    "ccc": True,
    "wer": False,
    "cer": False,
    "mse": False,
    "loss": False,
}


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What the model said about one utterance in one task, beside what is true."""

    reference: str | tuple[float | None, ...] | None
    """Label, transcript or numbers (a single number may be missing); None where the utterance has no label."""
    prediction: str | tuple[float, ...]
    probabilities: tuple[float, ...] | None
    """classification: in the order of `TaskSpec.labels`; None for the other kinds."""
    loss: float | None
    """As `metaser.train.objective.utterance_losses` gives it; None where the utterance has no label."""
    loss_weight: float = 1.0
    """What the utterance adds to the denominator of the task's loss, as in training (`Targets.weights`)."""


@dataclass(frozen=True, slots=True)
class UtteranceResult:
    """All tasks' results of one utterance, and what it may be grouped by."""

    key: str
    corpus: str
    speaker: str | None
    groups: dict[str, str | None]
    """E.g. gender, age_group, language, corpus; None where the metadata does not say."""
    duration_s: float
    tasks: dict[str, TaskResult]
    """One entry per task that the model answered, labelled or not."""


def task_metrics(spec: TaskSpec, results: Sequence[UtteranceResult]) -> dict[str, Any] | None:
    """Return one task's metrics over the utterances that have its label, or None when none has.

    Every kind has `num_utterances` and `loss` (what training would call the loss of one step over these utterances;
    None without losses). Beside them:

    - classification: `wa` (accuracy), `ua` and `macro_f1` (means over `classes`, the labels that occur in the
      reference), `recall` of each of these, and `confusion`, whose rows (reference) and columns (prediction) are
      all `labels`.
    - ctc: `wer` and `cer` of normalised text (`metaser.eval.text`), errors of the whole set over its length; an empty
      transcript is no label. `num_empty_references` counts those of which nothing is left, which both leave out (None
      with `wer_reason` if that is all), and `num_without_word_boundaries` those in which WER counts characters.
    - regression: `ccc_by_field` (Lin's concordance correlation), `ccc` (their mean), `mse` over all present numbers.
      The coefficient of a field whose reference never varies is None, and `ccc_reason` says so.

    Raises:
        TrainingError: if a loss is not finite.
    """
    labelled = [result for result in results if _has_label(spec, result.tasks.get(spec.name))]
    if not labelled:
        return None
    pairs = [result.tasks[spec.name] for result in labelled]
    measure = {"classification": _classification, "ctc": _ctc, "regression": _regression}[spec.kind]
    return {"num_utterances": len(pairs), "loss": _mean_loss(spec, labelled), **measure(spec, pairs)}


def ua_interval_95(spec: TaskSpec, results: Sequence[UtteranceResult]) -> tuple[list[float] | None, str | None]:
    """Return the 95 % interval of UA over speakers, or None and the reason.

    Utterances of one speaker are not independent, so speakers are the sample: UA plus and minus Student's t times the
    standard error that leaving out one speaker at a time gives (the jackknife). Where every speaker has equally many
    utterances of every class, that is the t interval over the speakers' own UA. The error is never taken to be less
    than that of independent utterances, so that all speakers being right is not certainty.

    Args:
        spec: a classification task.
        results: utterances of any order; those without the task's label are left out.
    """
    labelled = [result for result in results if _has_label(spec, result.tasks.get(spec.name))]
    num_unknown = sum(result.speaker is None for result in labelled)
    if num_unknown:
        return None, f"{num_unknown} of {len(labelled)} utterances have no speaker"
    total_SC, correct_SC = _counts_by_speaker(spec, labelled)
    num_speakers = len(total_SC)
    if num_speakers < MIN_SPEAKERS_FOR_INTERVAL:
        return None, f"it needs at least {MIN_SPEAKERS_FOR_INTERVAL} speakers, there are {num_speakers}"
    num_speakers_C = (total_SC > 0).sum(axis=0)
    lonely = [label for label, count in zip(spec.labels, num_speakers_C.tolist(), strict=True) if count == 1]
    if lonely:
        return None, f"only one speaker has utterances of {', '.join(lonely)}"

    present_C = num_speakers_C > 0
    return list(interval_over_speakers(total_SC[:, present_C], correct_SC[:, present_C])), None


def interval_over_speakers(total_SC: np.ndarray, correct_SC: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of UA.

    Args:
        total_SC: utterances of each speaker and class; of each class, two speakers must have some.
        correct_SC: how many of them are recognised.
    """
    from scipy.special import stdtrit

    total_C, correct_C = total_SC.sum(axis=0), correct_SC.sum(axis=0)
    ua = float((correct_C / total_C).mean())
    error = max(_jackknife_error(total_SC, correct_SC), _independent_error(total_C, correct_C))
    reach = float(stdtrit(len(total_SC) - 1, 0.975)) * error
    return max(0.0, ua - reach), min(1.0, ua + reach)


def _counts_by_speaker(spec: TaskSpec, labelled: Sequence[UtteranceResult]) -> tuple[np.ndarray, np.ndarray]:
    """Return how many utterances each speaker has of each class, and how many of them are recognised."""
    speakers = sorted({(result.corpus, str(result.speaker)) for result in labelled})
    row_of = {speaker: row for row, speaker in enumerate(speakers)}
    column_of = {label: column for column, label in enumerate(spec.labels)}
    total_SC = np.zeros((len(speakers), len(spec.labels)))
    correct_SC = np.zeros_like(total_SC)
    for result in labelled:
        task = result.tasks[spec.name]
        cell = row_of[result.corpus, str(result.speaker)], column_of[str(task.reference)]
        total_SC[cell] += 1
        correct_SC[cell] += task.prediction == task.reference
    return total_SC, correct_SC


def _jackknife_error(total_SC: np.ndarray, correct_SC: np.ndarray) -> float:
    """Return UA's standard error over speakers; every class must have two."""
    without_S = ((correct_SC.sum(axis=0) - correct_SC) / (total_SC.sum(axis=0) - total_SC)).mean(axis=1)
    num_speakers = len(without_S)
    return math.sqrt((num_speakers - 1) / num_speakers * float(((without_S - without_S.mean()) ** 2).sum()))


def _independent_error(total_C: np.ndarray, correct_C: np.ndarray) -> float:
    """Return UA's standard error if all utterances were independent, each recall moved towards a half by Laplace."""
    recall_C = (correct_C + 1) / (total_C + 2)
    return math.sqrt(float((recall_C * (1 - recall_C) / total_C).sum())) / len(total_C)


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
    for task, numbers in metrics.get("tasks", {}).items():
        values |= {f"{task}.{name}": numbers[name] for name in _HIGHER_IS_BETTER if name in numbers}
    if values.get(select) is None:
        known = ", ".join(name for name, value in values.items() if value is not None)
        raise ConfigError(
            f"select must name a metric that the dev set yields ({known or 'none: it has no labels'}), got {select!r}; "
            "name one of these or give the dev set the labels it needs"
        )
    return float(values[select]), _HIGHER_IS_BETTER[select.rpartition(".")[2]]


def _has_label(spec: TaskSpec, task: TaskResult | None) -> bool:
    if task is None or task.reference is None:
        return False
    if isinstance(task.reference, tuple):
        return any(number is not None for number in task.reference)
    return spec.kind != "ctc" or bool(fold_text(task.reference))


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


def _classification(spec: TaskSpec, pairs: Sequence[TaskResult]) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    references = [str(task.reference) for task in pairs]
    predictions = [str(task.prediction) for task in pairs]
    labels = list(spec.labels)
    present = set(references)
    classes = [label for label in labels if label in present]
    _, recall, f1, _ = precision_recall_fscore_support(references, predictions, labels=classes, zero_division=0)
    confusion = confusion_matrix(references, predictions, labels=labels)
    return {
        "wa": float(np.trace(confusion)) / len(pairs),
        "ua": float(np.mean(recall)),
        "macro_f1": float(np.mean(f1)),
        "recall": {label: float(share) for label, share in zip(classes, recall, strict=True)},
        "classes": classes,
        "labels": labels,
        "confusion": confusion.tolist(),
    }


def _ctc(spec: TaskSpec, pairs: Sequence[TaskResult]) -> dict[str, Any]:
    import jiwer

    texts = [(str(task.reference), str(task.prediction)) for task in pairs]
    judged = [(true, said) for true, said in texts if score_text(true)]
    counts = {
        "num_empty_references": len(texts) - len(judged),
        "num_without_word_boundaries": sum(lacks_word_boundaries(true) for true, _ in judged),
    }
    if not judged:
        return {"wer": None, "cer": None, "wer_reason": "no transcript has more than punctuation", **counts}
    references, predictions = ([pair[side] for pair in judged] for side in (0, 1))
    return {
        "wer": float(jiwer.wer([*map(score_words, references)], [*map(score_words, predictions)])),
        "cer": float(jiwer.cer([*map(score_text, references)], [*map(score_text, predictions)])),
        **counts,
    }


def _regression(spec: TaskSpec, pairs: Sequence[TaskResult]) -> dict[str, Any]:
    ccc_by_field: dict[str, float | None] = {}
    squared_errors: list[float] = []
    for column, field in enumerate(spec.fields):
        present = [
            (float(task.reference[column]), float(task.prediction[column]))  # type: ignore[arg-type]
            for task in pairs
            if task.reference is not None and task.reference[column] is not None
        ]
        ccc_by_field[field] = _concordance(present)
        squared_errors += [(predicted - true) ** 2 for true, predicted in present]
    defined = [value for value in ccc_by_field.values() if value is not None]
    undefined = [field for field, value in ccc_by_field.items() if value is None]
    metrics: dict[str, Any] = {
        "ccc": math.fsum(defined) / len(defined) if defined else None,
        "ccc_by_field": ccc_by_field,
        "mse": math.fsum(squared_errors) / len(squared_errors),
    }
    if undefined:
        metrics["ccc_reason"] = f"fewer than two different reference values in {', '.join(undefined)}"
    return metrics


def _concordance(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Lin 1989, population moments; pairs are (reference, prediction)."""
    if len({true for true, _ in pairs}) < 2:
        return None
    num = len(pairs)
    mean_true = math.fsum(true for true, _ in pairs) / num
    mean_predicted = math.fsum(predicted for _, predicted in pairs) / num
    covariance = math.fsum((true - mean_true) * (predicted - mean_predicted) for true, predicted in pairs) / num
    spread = math.fsum((true - mean_true) ** 2 + (predicted - mean_predicted) ** 2 for true, predicted in pairs) / num
    return 2 * covariance / (spread + (mean_true - mean_predicted) ** 2)


def rounded(value: float | None) -> str:
    """Return a metric as tables show it."""
    return "-" if value is None else f"{value:.3f}"
