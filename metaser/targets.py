"""Metadata turned into what losses compare with; an absent label stays absent and contributes nothing.

Legend: B utterances, U target characters, F regression fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metaser.config.schema import ClassificationTask, CtcTask, RegressionTask, TaskConfig
from metaser.errors import TrainingError
from metaser.tasks import CTC_SPECIAL, CTC_UNKNOWN, TaskSpec, count_words, fold_text, loss_denominator
from shards.index import Codes, Index


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
    return tuple(_resolve(task, (trained_on or {}).get(task.name, training)) for task in tasks)


def _resolve(task: TaskConfig, training: Index) -> TaskSpec:
    if isinstance(task, CtcTask):
        characters = sorted({char for text in training.stream(task.field) if text for char in fold_text(text)})
        return TaskSpec(name=task.name, kind="ctc", fields=(task.field,), labels=(*CTC_SPECIAL, *characters))
    if isinstance(task, RegressionTask):
        return TaskSpec(
            name=task.name,
            kind="regression",
            fields=task.fields,
            labels=task.fields,
            offset=task.offset,
            scale=task.scale,
        )
    counts: Counter[str] = Counter()
    for value, count in training.codes(task.field).counts().items():
        counts[task.merge.get(str(value), str(value))] += count
    labels = task.listed or tuple(sorted(counts))
    if len(labels) < 2:
        raise TrainingError(
            f"task {task.name!r} needs at least two labels, but the {len(training)} training utterances have "
            f"{list(labels)} in field {task.field!r}; remove the task or list its labels"
        )
    return TaskSpec(
        name=task.name,
        kind="classification",
        fields=(task.field,),
        labels=labels,
        merge=task.merge,
        class_weights=_class_weights(task, labels, counts),
        label_smoothing=task.label_smoothing,
    )


def _class_weights(task: ClassificationTask, labels: tuple[str, ...], counts: Counter[str]) -> tuple[float, ...] | None:
    if task.class_weights != "balanced":
        return task.class_weights
    absent = [label for label in labels if not counts[label]]
    if absent:
        raise TrainingError(
            f"class_weights 'balanced' of task {task.name!r} needs training utterances of every label, but {absent} "
            f"have none (training has {count_words(counts) or 'no label'}); remove the labels, change data.splits, or "
            "give the weights as a list"
        )
    total = sum(counts[label] for label in labels)
    return tuple(total / (len(labels) * counts[label]) for label in labels)


@dataclass(frozen=True)
class TaskTarget:
    """One task's targets for a slot."""

    values: Tensor
    """classification: labels_B (-1: missing); ctc: tokens_BU; regression: values_BF (NaN: missing)."""
    lengths_B: Tensor
    """ctc: target characters (0: missing); otherwise the number of present values."""

    def to(self, device: torch.device) -> TaskTarget:
        """Return the target on `device`."""
        return TaskTarget(self.values.to(device, non_blocking=True), self.lengths_B.to(device, non_blocking=True))


class Targets:
    """The targets of every utterance of an index, looked up by position."""

    def __init__(self, specs: Sequence[TaskSpec], index: Index, *, is_cut: np.ndarray | None = None) -> None:
        """Look up what can be looked up at once.

        Args:
            specs: The tasks.
            index: The utterances.
            is_cut: Which of them are heard in part only: their text is not what is heard, and counts as missing.
        """
        self._specs = tuple(specs)
        self._index = index
        self._is_whole = np.ones(len(index), bool) if is_cut is None else ~is_cut
        self._values: dict[str, np.ndarray] = {}
        self._weights: dict[str, np.ndarray] = {}
        for spec in self._specs:
            if spec.kind == "ctc":
                texts = index.stream(spec.fields[0])
                has_words = np.fromiter((bool(text and fold_text(text)) for text in texts), bool, len(index))
                self._weights[spec.name] = (has_words & self._is_whole).astype(float)
            elif spec.kind == "classification":
                self._add_classes(spec, index.codes(spec.fields[0]))
            else:
                columns = [index.numbers(field) for field in spec.fields]
                values = (np.stack(columns, axis=1) - spec.offset) / spec.scale
                self._values[spec.name] = values.astype(np.float32)
                self._weights[spec.name] = (~np.isnan(values)).sum(axis=1).astype(float)

    def _add_classes(self, spec: TaskSpec, words: Codes) -> None:
        number_of = {label: number for number, label in enumerate(spec.labels)}
        classes = words.lookup((number_of.get(spec.label_of(word), -1) for word in words.words), -1)
        self._values[spec.name] = classes
        self._weights[spec.name] = np.asarray([*(spec.class_weights or (1.0,) * len(spec.labels)), 0.0])[classes]

    def present(self, task: str) -> np.ndarray:
        """Return which utterances have a label for `task`, shape (num_utterances,)."""
        return self._weights[task] > 0

    def weights(self, task: str, items: np.ndarray) -> np.ndarray:
        """Return what each utterance at `items` adds to the task's denominator, shape (num_items,).

        classification: its class's weight; ctc: 1; regression: the number of its values; 0 without a label.
        """
        weights: np.ndarray = self._weights[task][items]
        return weights

    def denominators(self, items: np.ndarray) -> dict[str, float]:
        """Return per task what the sum of losses over `items` is divided by."""
        return {name: loss_denominator(float(self.weights(name, items).sum())) for name in self._weights}

    def lookup(self, items: np.ndarray) -> dict[str, TaskTarget]:
        """Return the targets of the utterances at `items`."""
        return {spec.name: self._lookup(spec, items) for spec in self._specs}

    def _lookup(self, spec: TaskSpec, items: np.ndarray) -> TaskTarget:
        if spec.kind == "ctc":
            number_of = {char: number for number, char in enumerate(spec.labels)}
            stored = zip(self._index.take(items).values(spec.fields[0]), self._is_whole[items].tolist(), strict=True)
            texts = [fold_text(text or "") if is_whole else "" for text, is_whole in stored]
            rows = [[number_of.get(char, CTC_UNKNOWN) for char in text] for text in texts]
            tokens_BU = np.zeros((len(rows), max(1, *map(len, rows))), dtype=np.int64)
            for row, tokens in zip(tokens_BU, rows, strict=True):
                row[: len(tokens)] = tokens
            return TaskTarget(torch.from_numpy(tokens_BU), torch.tensor([len(row) for row in rows]))
        values = self._values[spec.name][items]
        lengths_B = (values >= 0).astype(np.int64) if spec.kind == "classification" else (~np.isnan(values)).sum(axis=1)
        return TaskTarget(torch.from_numpy(values), torch.from_numpy(lengths_B))
