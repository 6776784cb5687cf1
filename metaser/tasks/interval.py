"""The 95 % interval of UA (unweighted average recall) over speakers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from metaser.tasks.results import UtteranceResult
from metaser.tasks.spec import TaskSpec

MIN_SPEAKERS_FOR_INTERVAL = 5


def ua_interval_95(spec: TaskSpec, labelled: Sequence[UtteranceResult]) -> tuple[list[float] | None, str | None]:
    """Return the 95 % interval of UA over speakers, or None and the reason.

    Utterances of one speaker are not independent, so speakers are the sample: UA plus and minus Student's t times the
    standard error that leaving out one speaker at a time gives (the jackknife). Where every speaker has equally many
    utterances of every class, that is the t interval over the speakers' own UA. The error is never taken to be less
    than that of independent utterances, so that all speakers being right is not certainty.

    Args:
        spec: a classification task.
        labelled: utterances with the task's label, in any order.
    """
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
