"""Two systems on the same utterances: their difference, its interval, its test, and what the test set could have shown.

Utterances of one speaker are not independent, so speakers are the sample, as in `metaser.tasks.interval`. A system may
be several models (seeds): its metric is the mean of theirs, and the interval says what other speakers would change, not
what other seeds would.

Legend: M models of a system, S speakers, C classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Counts = Float[np.ndarray, "_ S C 3"]
"""Of each model, speaker and class: utterances of it, those of them that are recognised, and how often it is said."""

_MAX_EXACT_SPEAKERS = 12
"""Up to so many, all ways to exchange the systems are tried; beyond, `_NUM_EXCHANGES` at random."""
_NUM_EXCHANGES = 4095
_POWER = 0.8
MIN_SPEAKERS = 4


def _ua(total_C: np.ndarray, right_C: np.ndarray, _said_C: np.ndarray) -> np.ndarray:
    recall_C = np.divide(right_C, total_C, out=np.zeros_like(right_C), where=total_C > 0)
    return np.asarray(recall_C.sum(-1) / (total_C > 0).sum(-1))


def _wa(total_C: np.ndarray, right_C: np.ndarray, _said_C: np.ndarray) -> np.ndarray:
    return np.asarray(right_C.sum(-1) / total_C.sum(-1))


def _macro_f1(total_C: np.ndarray, right_C: np.ndarray, said_C: np.ndarray) -> np.ndarray:
    f1_C = np.divide(2 * right_C, total_C + said_C, out=np.zeros_like(right_C), where=total_C + said_C > 0)
    return np.asarray(f1_C.sum(-1) / (total_C > 0).sum(-1))


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "ua": _ua,
    "wa": _wa,
    "macro_f1": _macro_f1,
}
"""As in reports, of counts by class in the last dimension."""


@dataclass(frozen=True)
class Answers:
    """What the models of one system said of utterances, by key: all of the same utterances."""

    references: Mapping[str, str]
    predictions: Sequence[Mapping[str, str]]
    """One for each model."""


@dataclass(frozen=True)
class Difference:
    """A system's metric less that of another on the same utterances."""

    difference: float
    interval_95: tuple[float, float] | None
    """Over speakers; None where there are too few."""
    p_value: float | None
    """Two-sided, of exchanging the systems speaker by speaker."""
    smallest_p: float | None
    """That this test could have given with so many speakers."""
    detectable: float | None
    """The difference that would have been significant at 5 % with a probability of 80 %."""
    reason: str | None = None
    """Why something is None."""


def count_by_speaker(answers: Answers, speaker_of: Mapping[str, str], labels: Sequence[str]) -> Counts:
    """Return the counts that every metric is made of, speakers in sorted order."""
    row_of = {speaker: row for row, speaker in enumerate(sorted(set(speaker_of.values())))}
    column_of = {label: column for column, label in enumerate(labels)}
    counts = np.zeros((len(answers.predictions), len(row_of), len(labels), 3))
    for model, said in enumerate(answers.predictions):
        for key, reference in answers.references.items():
            row, column = row_of[speaker_of[key]], column_of[reference]
            counts[model, row, column, 0] += 1
            counts[model, row, column, 1] += said[key] == reference
            counts[model, row, column_of[said[key]], 2] += 1
    return counts


def metric_of_answers(answers: Answers, model: int, labels: Sequence[str], metric: str) -> float:
    """Return a metric of one model of a system over all utterances."""
    alone = Answers(answers.references, [answers.predictions[model]])
    return metric_of(count_by_speaker(alone, dict.fromkeys(answers.references, ""), labels), metric)


def metric_of(counts: Counts, metric: str) -> float:
    """Return the mean over models of a metric over all speakers."""
    return float(_over_models(counts.sum(axis=1), metric))


def compare(ours: Counts, theirs: Counts, metric: str, *, seed: int = 0) -> Difference:
    """Return how much larger a metric of `ours` is than of `theirs`.

    The interval is the difference plus and minus Student's t times the standard error that leaving out one speaker at a
    time gives. The error is never taken to be less than that of independent utterances (UA and WA), so that no speaker
    making a difference is not certainty. The test exchanges the two systems' answers of whole speakers.

    Args:
        ours: Counts of our models, of any number of them.
        theirs: Counts of theirs, over the same speakers and classes.
        metric: One of `METRICS`.
        seed: Of the exchanges, where not all are tried.
    """
    from scipy.special import stdtrit

    difference = metric_of(ours, metric) - metric_of(theirs, metric)
    num_speakers = ours.shape[1]
    if num_speakers < MIN_SPEAKERS:
        reason = f"it needs at least {MIN_SPEAKERS} speakers, there are {num_speakers}"
        return Difference(difference, None, None, None, None, reason)
    p_value, smallest = _exchange_test(ours, theirs, metric, difference, seed)
    if lonely := int(((ours[0, :, :, 0] > 0).sum(axis=0) == 1).sum()):
        reason = f"{lonely} of the classes are those of one speaker alone"
        return Difference(difference, None, p_value, smallest, None, reason)
    error = max(_jackknife_error(ours, theirs, metric), _independent_error(ours, theirs, metric))
    t = float(stdtrit(num_speakers - 1, 0.975))
    detectable = (t + float(stdtrit(num_speakers - 1, _POWER))) * error
    return Difference(difference, (difference - t * error, difference + t * error), p_value, smallest, detectable)


def _over_models(counts: np.ndarray, metric: str) -> np.ndarray:
    """Return the metric of counts `M ... C 3`, averaged over M."""
    return np.asarray(METRICS[metric](counts[..., 0], counts[..., 1], counts[..., 2]).mean(axis=0))


def _jackknife_error(ours: Counts, theirs: Counts, metric: str) -> float:
    without_S = _over_models(ours.sum(axis=1, keepdims=True) - ours, metric) - _over_models(
        theirs.sum(axis=1, keepdims=True) - theirs, metric
    )
    num_speakers = len(without_S)
    return math.sqrt((num_speakers - 1) / num_speakers * float(((without_S - without_S.mean()) ** 2).sum()))


def _independent_error(ours: Counts, theirs: Counts, metric: str) -> float:
    """Return a lower bound of the standard error from how often the systems may disagree at least.

    Of a class of n utterances, systems that recognise a and b of them disagree on |a - b| at least; two more are added,
    as Laplace does.
    """
    total_C = ours[0, :, :, 0].sum(axis=0)
    present_C = total_C > 0
    n = total_C[present_C]
    apart = np.abs((ours[..., 1].sum(axis=1).mean(axis=0) - theirs[..., 1].sum(axis=1).mean(axis=0))[present_C])
    share = (apart + 1) / (n + 2)
    if metric == "wa":
        all_n, all_apart = n.sum(), apart.sum()
        share_all = (all_apart + 1) / (all_n + 2)
        return math.sqrt(float(max(share_all - (all_apart / all_n) ** 2, 0.0) / all_n))
    if metric != "ua":
        return 0.0
    return math.sqrt(float((np.maximum(share - (apart / n) ** 2, 0.0) / n).sum())) / len(n)


def _exchange_test(ours: Counts, theirs: Counts, metric: str, difference: float, seed: int) -> tuple[float, float]:
    """Return the two-sided p value, and the smallest that there can be."""
    num_speakers = ours.shape[1]
    if num_speakers <= _MAX_EXACT_SPEAKERS:
        ways = np.asarray(list(itertools.product((False, True), repeat=num_speakers)))
    else:
        drawn = np.random.default_rng(seed).random((_NUM_EXCHANGES, num_speakers)) < 0.5
        ways = np.concatenate([np.zeros((1, num_speakers), bool), drawn])
    sums = ours.sum(axis=1), theirs.sum(axis=1)
    if ours.shape[0] == theirs.shape[0]:
        moved = np.einsum("ws,mscx->mwcx", ways.astype(float), theirs - ours)
        exchanged = _over_models(sums[0][:, None] + moved, metric) - _over_models(sums[1][:, None] - moved, metric)
    else:
        # Systems of differently many models exchange the mean of theirs.
        mean_ours, mean_theirs = ours.mean(axis=0, keepdims=True), theirs.mean(axis=0, keepdims=True)
        moved = np.einsum("ws,mscx->mwcx", ways.astype(float), mean_theirs - mean_ours)
        exchanged = _over_models(mean_ours.sum(axis=1)[:, None] + moved, metric) - _over_models(
            mean_theirs.sum(axis=1)[:, None] - moved, metric
        )
        difference = float(exchanged[0])
    p_value = float((np.abs(exchanged) >= abs(difference) - 1e-12).mean())
    return p_value, 2 / len(ways)
