"""Metadata turned into what losses compare with; an absent label stays absent and contributes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from metaser.tasks.kind import TaskTarget
from metaser.tasks.kinds import kind_of
from metaser.tasks.spec import TaskConfig, TaskSpec, loss_denominator
from shards.index import Index


def resolve_tasks(
    tasks: Sequence[TaskConfig], training: Index, trained_on: Mapping[str, Index] | None = None
) -> tuple[TaskSpec, ...]:
    """Fill in what the training utterances decide: alphabets, open label sets, class weights.

    Args:
        tasks: what the experiment wants.
        training: the training utterances that any stage's filter admits.
        trained_on: by task, those that decide in place of `training`.

    Raises:
        TrainingError: if a label set or balanced class weights cannot be made.
    """
    return tuple(kind_of(task).resolve(task, (trained_on or {}).get(task.name, training)) for task in tasks)


class Targets:
    """The targets of every utterance of an index, looked up by position."""

    def __init__(self, specs: Sequence[TaskSpec], index: Index, *, is_cut: np.ndarray | None = None) -> None:
        """Look up what can be looked up at once.

        Args:
            specs: The tasks.
            index: The utterances.
            is_cut: Which of them are heard in part only: a label of the whole clip counts as missing there.
        """
        is_whole = np.ones(len(index), bool) if is_cut is None else ~is_cut
        self._of_task = {spec.name: kind_of(spec).targets(spec, index, is_whole) for spec in specs}

    def present(self, task: str) -> np.ndarray:
        """Return which utterances have a label for `task`, shape (num_utterances,)."""
        return self._of_task[task].weights > 0

    def weights(self, task: str, items: np.ndarray) -> np.ndarray:
        """Return what each utterance at `items` adds to the task's denominator, shape (num_items,).

        classification: its class's weight; ctc and frames: 1; regression: the number of its values; 0 without a label.
        """
        weights: np.ndarray = self._of_task[task].weights[items]
        return weights

    def denominators(self, items: np.ndarray) -> dict[str, float]:
        """Return each task's loss denominator: the sum of `weights` over the utterances at `items`, or 1 if it is 0."""
        return {name: loss_denominator(float(self.weights(name, items).sum())) for name in self._of_task}

    def lookup(self, items: np.ndarray) -> dict[str, TaskTarget]:
        """Return the targets of the utterances at `items`."""
        return {name: targets.lookup(items) for name, targets in self._of_task.items()}
