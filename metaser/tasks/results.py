"""What a model said of utterances beside what is true: words and numbers, no tensors."""

from __future__ import annotations

from dataclasses import dataclass

Reference = str | tuple[float | None, ...] | None
"""Label, transcript or numbers (a single number may be missing); None where the utterance has no label."""
Prediction = str | tuple[float, ...]
Probabilities = tuple[float, ...] | None
"""classification: in the order of `TaskSpec.labels`; None for the other kinds."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What the model said about one utterance in one task, beside what is true."""

    reference: Reference
    prediction: Prediction
    probabilities: Probabilities
    loss: float | None
    """As `TaskKind.losses` gives it; None where the utterance has no label."""
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
