"""Predicting numbers by squared error; Lin's concordance correlation is the metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveFloat
from typing_extensions import override

from metaser.tasks.kind import Metric, TaskKind, TaskTarget, TaskTargets, exact, finite
from metaser.tasks.results import Prediction, Probabilities, Reference, TaskResult
from metaser.tasks.spec import TaskConfig, TaskSpec

if TYPE_CHECKING:
    from torch import Tensor

    from shards.index import Index


class RegressionTask(TaskConfig):
    """Predict numbers by squared error; CCC is the metric."""

    kind: Literal["regression"]
    name: str = "affect"
    fields: tuple[str, ...] = ("valence", "arousal", "dominance")
    offset: float = 0.0
    scale: PositiveFloat = 1.0
    """The model sees (value - offset) / scale."""

    @property
    @override
    def metadata_fields(self) -> tuple[str, ...]:
        return self.fields


class _Numbers(TaskTargets):
    """Scaled numbers, NaN where one is missing."""

    def __init__(self, spec: TaskSpec, index: Index) -> None:
        columns = [index.numbers(field) for field in spec.fields]
        values = (np.stack(columns, axis=1) - spec.offset) / spec.scale
        self._values = values.astype(np.float32)
        self.weights = (~np.isnan(values)).sum(axis=1).astype(float)

    def lookup(self, items: np.ndarray) -> TaskTarget:
        import torch

        values = self._values[items]
        return TaskTarget(torch.from_numpy(values), torch.from_numpy((~np.isnan(values)).sum(axis=1)))


class Regression(TaskKind[RegressionTask]):
    """Linear outputs; targets are values_BF (NaN: missing) of F fields."""

    name = "regression"
    config = RegressionTask
    metrics: ClassVar = {"ccc": Metric("CCC", True), "mse": Metric("MSE", False)}
    curve = "ccc"

    @override
    def resolve(self, task: RegressionTask, training: Index) -> TaskSpec:
        return TaskSpec(
            name=task.name,
            kind=self.name,
            fields=task.fields,
            labels=task.fields,
            offset=task.offset,
            scale=task.scale,
        )

    @override
    def check(self, spec: TaskSpec) -> None:
        if spec.labels != spec.fields:
            raise ValueError(f"task {spec.name!r} must have its fields as labels, got {spec.fields} and {spec.labels}")

    @override
    def targets(self, spec: TaskSpec, index: Index, is_whole: np.ndarray) -> TaskTargets:
        return _Numbers(spec, index)

    @override
    def losses(self, spec: TaskSpec, logits: Tensor, num_frames_B: Tensor, target: TaskTarget) -> Tensor:
        """Return the sums of squared errors of the fields that are present."""
        import torch

        present_BF = ~torch.isnan(target.values)
        errors_BF = torch.where(present_BF, logits - torch.nan_to_num(target.values), torch.zeros_like(logits))
        return errors_BF.square().sum(dim=1)

    @override
    def numbers(self, spec: TaskSpec, logits: Tensor) -> Tensor:
        return logits.float() * spec.scale + spec.offset

    @override
    def predictions(
        self,
        spec: TaskSpec,
        logits: Tensor,
        num_frames_B: Tensor,
    ) -> list[tuple[Prediction, Probabilities]]:
        return [(tuple(row), None) for row in self.numbers(spec, logits).tolist()]

    @override
    def references(
        self,
        spec: TaskSpec,
        utterances: Index,
        target: TaskTarget,
        num_frames_B: Tensor,
    ) -> list[Reference]:
        return [tuple(row) for row in zip(*(utterances.values(field) for field in spec.fields), strict=True)]

    @override
    def is_label(self, reference: Reference) -> bool:
        return isinstance(reference, tuple) and any(number is not None for number in reference)

    @override
    def measure(self, spec: TaskSpec, pairs: Sequence[TaskResult]) -> dict[str, Any]:
        """Return `ccc_by_field`, `ccc` (their mean) and `mse` over all numbers that are present.

        The coefficient of a field whose reference never varies is None, and `ccc_reason` says so.
        """
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

    @override
    def columns(self, spec: TaskSpec) -> list[str]:
        return [f"{spec.name}.{field}" for field in spec.fields]

    @override
    def cells(self, result: TaskResult) -> list[str | None]:
        said = result.prediction if isinstance(result.prediction, tuple) else ()
        true = result.reference if isinstance(result.reference, tuple) else (None,) * len(said)
        return [None if value is None else exact(value) for pair in zip(true, said, strict=True) for value in pair]

    @override
    def parse(
        self,
        spec: TaskSpec,
        references: Sequence[str | None],
        predictions: Sequence[str],
        probabilities: Probabilities,
    ) -> TaskResult:
        numbers = tuple(None if value is None else finite(value) for value in references)
        is_labelled = any(number is not None for number in numbers)
        return TaskResult(numbers if is_labelled else None, tuple(map(finite, predictions)), None, None)

    @override
    def answer(self, spec: TaskSpec, prediction: Prediction, probabilities: Probabilities) -> dict[str, Any]:
        return dict(zip(spec.labels, prediction, strict=True))

    @override
    def answer_columns(self, spec: TaskSpec) -> list[str]:
        return list(spec.labels)

    @override
    def brief(self, answer: Mapping[str, Any]) -> str:
        return " ".join(f"{value:.2f}" for value in answer.values())

    @override
    def wide(self, answer: Mapping[str, Any]) -> dict[str, str]:
        return {name: f"{value:.3f}" for name, value in answer.items()}


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
