"""What of the data a task's labels cover: nothing is left out, and no class is judged untrained, without a word.

Everything here comes from the index, so that it is said before the first step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import NonNegativeInt

from metaser.config.schema import ExperimentConfig
from metaser.errors import TrainingError
from metaser.stagedata import weighing_rows
from metaser.tasks.kinds import kind_of
from metaser.tasks.spec import TaskConfig, TaskSpec, count_words
from shards.index import Index
from shards.record import Section
from shards.schema import SPLITS
from shards.splits import SplitAssignment

_MAX_WORDS = 100
"""A field that anything may stand in can hold thousands."""
_HELD_APART = ("speaker", "session")
"""Fields whose values splits hold apart on purpose."""


class LeftOut(Section):
    """Utterances that say something in a task's field, but not one of its labels; they count as unlabelled."""

    num_utterances: NonNegativeInt
    """Those that say something, labels included."""
    num_left_out: NonNegativeInt
    words: dict[str, NonNegativeInt]
    """How often each word that is no label occurs, after `merge`; the most frequent ones."""

    @classmethod
    def of(cls, words: Counter[str], num_utterances: int, num_left_out: int) -> LeftOut:
        """Return the counts with as many words as are kept."""
        kept = sorted(words, key=lambda word: (-words[word], word))[:_MAX_WORDS]
        return cls(num_utterances=num_utterances, num_left_out=num_left_out, words={word: words[word] for word in kept})

    def describe(self, task: str) -> str:
        """Return the sentence for people, without its full stop."""
        return (
            f"{task}: {self.num_left_out} of {self.num_utterances} utterances are left out by labels: "
            f"{count_words(self.words)}"
        )


def label_counts(spec: TaskSpec, index: Index) -> Counter[str]:
    """Return how often each word of the task's field occurs, after `merge`, labels or not."""
    counts: Counter[str] = Counter()
    for value, count in index.codes(spec.fields[0]).counts().items():
        counts[spec.label_of(value)] += count
    return counts


def all_left_out(config: ExperimentConfig, specs: Sequence[TaskSpec], index: Index) -> dict[str, LeftOut]:
    """Return per classification task what its labels leave out of `index`.

    What a stage's filter excludes was not left out by labels, nor are speakers and sessions that training has not seen.
    """
    found = {}
    for spec in specs:
        if kind_of(spec).has_classes and spec.fields[0] not in _HELD_APART:
            counts = label_counts(spec, index.take(np.flatnonzero(weighing_rows(config, spec.name, index))))
            words = Counter({word: count for word, count in counts.items() if word not in spec.labels})
            found[spec.name] = LeftOut.of(words, counts.total(), words.total())
    return found


def add_left_out(parts: Sequence[Mapping[str, LeftOut]]) -> dict[str, LeftOut]:
    """Return what several disjoint parts leave out together."""
    names = sorted({name for part in parts for name in part})
    return {name: _sum_of([part[name] for part in parts if name in part]) for name in names}


def _sum_of(parts: Sequence[LeftOut]) -> LeftOut:
    words: Counter[str] = Counter()
    for part in parts:
        words.update(part.words)
    return LeftOut.of(words, sum(part.num_utterances for part in parts), sum(part.num_left_out for part in parts))


def check_labels(
    config: ExperimentConfig, specs: Sequence[TaskSpec], index: Index, splits: SplitAssignment
) -> list[str]:
    """Return what a user should know of labels and data before training; each a sentence without its full stop.

    Raises:
        TrainingError: if training has no utterance of a label that someone chose; of a field's own inventory
            (`TaskConfig.has_own_labels`) it is a note.
    """
    left_out = all_left_out(config, specs, index)
    notes = [part.describe(name) for name, part in left_out.items() if part.num_left_out]
    for task, spec in zip(config.tasks, specs, strict=True):
        if not kind_of(spec).has_classes:
            continue
        admitted = weighing_rows(config, task.name, index)
        if not admitted.any():
            continue
        counts = {}
        for split in SPLITS:
            rows = splits.rows(split)
            counts[split] = label_counts(spec, index.take(rows[admitted[rows]]))
        notes += _untrained(task, spec, counts)
        if task.name == config.main_task:
            notes += _absent(spec, counts)
    return notes


def _untrained(task: TaskConfig, spec: TaskSpec, counts: Mapping[str, Counter[str]]) -> list[str]:
    untrained = [label for label in spec.labels if not counts["train"][label]]
    if not untrained:
        return []
    judged = {
        split: {label: counts[split][label] for label in untrained if counts[split][label]} for split in ("dev", "test")
    }
    elsewhere = "; ".join(f"{split} has {count_words(words)}" for split, words in judged.items() if words)
    there = (
        f"training has {count_words(counts['train']) or 'no label'}; {elsewhere or 'dev and test have none, either'}"
    )
    if task.has_own_labels:
        raise TrainingError(
            f"training must have utterances of every label of task {task.name!r}, but has none of "
            f"{', '.join(untrained)} ({there}); remove the labels from tasks.N.labels, or change data.splits or "
            "stages.N.filter"
        )
    return [f"{task.name}: the model cannot learn {', '.join(untrained)} ({there})"]


def _absent(spec: TaskSpec, counts: Mapping[str, Counter[str]]) -> list[str]:
    notes = []
    for split in ("dev", "test"):
        present = [label for label in spec.labels if counts[split][label]]
        absent = [label for label in spec.labels if label not in present]
        if present and absent:
            num = sum(counts[split][label] for label in present)
            notes.append(
                f"{spec.name}: the {split} set ({num} utterances) has no {', '.join(absent)}; its UA is the mean over "
                f"{', '.join(present)}"
            )
    return notes
