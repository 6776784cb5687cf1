"""Choosing one of several labels, by cross-entropy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat, model_validator
from typing_extensions import override

from metaser.errors import TrainingError
from metaser.tasks.interval import ua_interval_95
from metaser.tasks.kind import Metric, TaskKind, TaskTarget, TaskTargets
from metaser.tasks.results import Prediction, Probabilities, TaskResult, UtteranceResult
from metaser.tasks.spec import TaskConfig, TaskSpec, count_words
from shards.labels import AGE_GROUPS, FOUR_EMOTIONS, GENDERS, STYLES

if TYPE_CHECKING:
    from torch import Tensor

    from shards.index import Index

_BUILT_IN_LABELS: dict[str, tuple[str, ...]] = {
    "emotion": FOUR_EMOTIONS,
    "gender": GENDERS,
    "style": STYLES,
    "age_group": AGE_GROUPS,
    "intensity": ("normal", "strong"),
}


class ClassificationTask(TaskConfig):
    """Choose one of `labels`."""

    kind: Literal["classification"]
    name: str
    field: str = ""
    """Metadata field; empty means the task's name."""
    labels: Literal["all"] | tuple[str, ...] = ()
    """In the order of the logits, any words. `all`: the sorted values of the training utterances of the stages that
    weigh the task. Empty: the built-in inventory of this field, or (`speaker`, `language`, `session`, `extra.*`) the
    sorted values of the training set."""
    merge: dict[str, str] = Field(default_factory=dict)
    """Metadata values that count as one of the labels: `{excitement: happiness}` is IEMOCAP's usual four-class set."""
    class_weights: Literal["balanced"] | tuple[PositiveFloat, ...] | None = None
    """`balanced` weighs by inverse frequency in the training set."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: dict[str, object]) -> dict[str, object]:
        filled = dict(values)
        filled["field"] = values.get("field") or values.get("name", "")
        if not values.get("labels"):
            filled["labels"] = _BUILT_IN_LABELS.get(str(filled["field"]), ())
        return filled

    @property
    @override
    def metadata_fields(self) -> tuple[str, ...]:
        return (self.field,)

    @property
    def listed(self) -> tuple[str, ...]:
        """The labels as far as the experiment says them; empty where the data does."""
        return () if self.labels == "all" else self.labels

    @property
    @override
    def has_own_labels(self) -> bool:
        return self.listed not in ((), _BUILT_IN_LABELS.get(self.field))

    @property
    @override
    def takes_all_labels(self) -> bool:
        return self.labels == "all"

    @model_validator(mode="after")
    def _check(self) -> ClassificationTask:
        labels = self.listed
        if len(set(labels)) != len(labels) or len(labels) == 1:
            raise ValueError(f"labels must be at least two different words, or `all`, got {list(labels)}")
        strange = sorted(set(self.merge.values()) - set(labels)) if labels else []
        if strange:
            raise ValueError(f"merge must lead to labels, which are {list(labels)}, but leads to {strange}")
        both = sorted(set(self.merge) & {*labels, *self.merge.values()})
        if both:
            raise ValueError(f"merge must rename values that are no labels, but {both} are; remove them from one place")
        if isinstance(self.class_weights, tuple) and not labels:
            raise ValueError("class_weights as a list follows the order of labels, which must be a list, too")
        if isinstance(self.class_weights, tuple) and len(self.class_weights) != len(labels):
            raise ValueError(f"class_weights has {len(self.class_weights)} values for {len(labels)} labels")
        return self


class _Classes(TaskTargets):
    """Class numbers, -1 where the label is missing or unknown."""

    def __init__(self, spec: TaskSpec, index: Index) -> None:
        words = index.codes(spec.fields[0])
        number_of = {label: number for number, label in enumerate(spec.labels)}
        self._classes = words.lookup((number_of.get(spec.label_of(word), -1) for word in words.words), -1)
        self.weights = np.asarray([*(spec.class_weights or (1.0,) * len(spec.labels)), 0.0])[self._classes]

    def lookup(self, items: np.ndarray) -> TaskTarget:
        import torch

        classes = self._classes[items]
        return TaskTarget(torch.from_numpy(classes), torch.from_numpy((classes >= 0).astype(np.int64)))


class Classification(TaskKind[ClassificationTask]):
    """Softmax over the labels; targets are labels_B (-1: missing)."""

    name = "classification"
    config = ClassificationTask
    metrics: ClassVar = {"wa": Metric("WA", True), "ua": Metric("UA", True), "macro_f1": Metric("macro-F1", True)}
    curve = "ua"
    has_classes = True

    @override
    def check(self, spec: TaskSpec) -> None:
        super().check(spec)
        if not 0 <= spec.label_smoothing < 1:
            raise ValueError(
                f"task {spec.name!r} must have label_smoothing from 0 to below 1, got {spec.label_smoothing}"
            )

    @override
    def resolve(self, task: ClassificationTask, training: Index) -> TaskSpec:
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
            kind=self.name,
            fields=(task.field,),
            labels=labels,
            merge=task.merge,
            class_weights=_class_weights(task, labels, counts),
            label_smoothing=task.label_smoothing,
        )

    @override
    def targets(self, spec: TaskSpec, index: Index, is_whole: np.ndarray) -> TaskTargets:
        return _Classes(spec, index)

    @override
    def losses(self, spec: TaskSpec, logits: Tensor, num_frames_B: Tensor, target: TaskTarget) -> Tensor:
        """Return class-weighted cross-entropies."""
        from torch.nn import functional

        weights = None if spec.class_weights is None else logits.new_tensor(spec.class_weights)
        return functional.cross_entropy(
            logits,
            target.values,
            weight=weights,
            ignore_index=-1,
            label_smoothing=spec.label_smoothing,
            reduction="none",
        )

    @override
    def predictions(
        self,
        spec: TaskSpec,
        logits: Tensor,
        num_frames_B: Tensor,
    ) -> list[tuple[Prediction, Probabilities]]:
        """Return the likeliest label and the probabilities in label order."""
        probabilities_BC = logits.float().softmax(dim=-1)
        return [
            (spec.labels[number], tuple(row))
            for number, row in zip(probabilities_BC.argmax(dim=-1).tolist(), probabilities_BC.tolist(), strict=True)
        ]

    @override
    def averaged(self, spec: TaskSpec, logits_WC: Tensor) -> Tensor:
        """Return log-probabilities, whose mean, renormalised, is the windows' geometric mean."""
        return logits_WC.log_softmax(dim=-1)

    @override
    def measure(self, spec: TaskSpec, pairs: Sequence[TaskResult]) -> dict[str, Any]:
        """Return accuracy, and means over the classes that occur in the reference, with what they are made of.

        `wa` is the accuracy, `ua` and `macro_f1` are means over `classes`, the labels that occur in the reference,
        `recall` is that of each of these, and `confusion` has all `labels` as rows (reference) and columns
        (prediction).
        """
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

    @override
    def interval(
        self, spec: TaskSpec, labelled: Sequence[UtteranceResult]
    ) -> tuple[list[float] | None, str | None] | None:
        return ua_interval_95(spec, labelled)

    @override
    def shares(self, spec: TaskSpec) -> tuple[str, ...]:
        return spec.labels

    @override
    def parse(
        self,
        spec: TaskSpec,
        references: Sequence[str | None],
        predictions: Sequence[str],
        probabilities: Probabilities,
    ) -> TaskResult:
        for word in (references[0], predictions[0]):
            if word is not None and word not in spec.labels:
                raise ValueError(f"{word!r} is no label of {spec.name}")
        return TaskResult(references[0], predictions[0], probabilities, None)

    @override
    def answer(self, spec: TaskSpec, prediction: Prediction, probabilities: Probabilities) -> dict[str, Any]:
        return {"label": prediction, "probabilities": dict(zip(spec.labels, probabilities or (), strict=True))}

    @override
    def answer_columns(self, spec: TaskSpec) -> list[str]:
        # A class may be called so, too.
        return ["label", *("probability.label" if label == "label" else label for label in spec.labels)]

    @override
    def answer_cells(self, answer: Mapping[str, Any]) -> list[Any]:
        return [answer["label"], *answer["probabilities"].values()]

    @override
    def brief(self, answer: Mapping[str, Any]) -> str:
        return f"{answer['label']} {answer['probabilities'][answer['label']]:.2f}"

    @override
    def wide(self, answer: Mapping[str, Any]) -> dict[str, str]:
        return {"": answer["label"], **{label: f"{share:.3f}" for label, share in answer["probabilities"].items()}}


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
