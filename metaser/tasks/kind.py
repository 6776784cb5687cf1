"""What a kind of task must say, from metadata to table cell; everything else of MetaSER asks here.

Words and numbers come first: a kind is loaded without torch, which its tensor methods import themselves.

Legend: B utterances, L frames, C outputs of a task, W windows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from metaser.tasks.results import Prediction, Probabilities, Reference, TaskResult, UtteranceResult
from metaser.tasks.spec import TaskConfig, TaskSpec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

    from shards.index import Index
    from shards.windows import Window

Config = TypeVar("Config", bound=TaskConfig)


@dataclass(frozen=True)
class Metric:
    """A number that a task is judged by."""

    title: str
    """What a table calls it."""
    higher_is_better: bool


@dataclass(frozen=True)
class TaskTarget:
    """One task's targets for a batch; what they hold is between the kind's `targets` and its `losses`."""

    values: Tensor
    lengths_B: Tensor
    """How much of an utterance's target is present: characters, numbers; 0 where the label is missing."""

    def to(self, device: torch.device) -> TaskTarget:
        """Return the target on `device`."""
        return TaskTarget(self.values.to(device, non_blocking=True), self.lengths_B.to(device, non_blocking=True))


class TaskTargets(ABC):
    """One task's targets of all utterances of an index."""

    weights: np.ndarray
    """What each utterance adds to the denominator of the task's loss, shape (num_utterances,); 0 without a label."""

    @abstractmethod
    def lookup(self, items: np.ndarray) -> TaskTarget:
        """Return the targets of the utterances at `items`."""


class TaskKind(ABC, Generic[Config]):
    """A kind of task: what it learns from, what its outputs mean and how they are judged and shown."""

    name: ClassVar[str]
    """As `tasks.N.kind` says it."""
    config: ClassVar[type[TaskConfig]]
    metrics: ClassVar[Mapping[str, Metric]]
    """The numbers that a table shows, in the order of its columns."""
    curve: ClassVar[str]
    """The one of them that learning curves show."""
    per_frame: ClassVar[bool] = False
    """Whether a model answers for every frame (`B L C`) instead of once an utterance (`B C`)."""
    needs_whole_clip: ClassVar[bool] = False
    """Whether a label belongs to the whole clip, so that a window of it has none."""
    is_text: ClassVar[bool] = False
    """Whether words are recognised, which the same sentences in training flatter."""
    has_classes: ClassVar[bool] = False
    """Whether it chooses one of `TaskSpec.labels`, which need not be all the words that stand in the data."""

    # ------------------------------------------------------------ what is learned

    @abstractmethod
    def resolve(self, task: Config, training: Index) -> TaskSpec:
        """Fill in what the training utterances decide.

        Raises:
            TrainingError: if they cannot.
        """

    def check(self, spec: TaskSpec) -> None:
        """Refuse a specification, as an exported model may hold it, that makes no task.

        Raises:
            ValueError: saying what is wrong.
        """
        if len(spec.fields) > 1:
            raise ValueError(f"task {spec.name!r} must have one field, got {spec.fields}")

    @abstractmethod
    def targets(self, spec: TaskSpec, index: Index, is_whole: np.ndarray) -> TaskTargets:
        """Return the targets of all utterances.

        Args:
            spec: The task.
            index: The utterances.
            is_whole: Which of them are heard from end to end, shape (num_utterances,).
        """

    @abstractmethod
    def losses(
        self, spec: TaskSpec, logits: Tensor, num_frames_B: Int[Tensor, "B"], target: TaskTarget
    ) -> Float[Tensor, "B"]:
        """Return each utterance's loss from logits in float32, not normalised; 0 where the label is missing."""

    def num_too_long(self, num_frames_B: Int[Tensor, "B"], target: TaskTarget) -> Tensor | int:
        """Return how many targets do not fit the frames of their clip, and are therefore not learned."""
        return 0

    # ------------------------------------------------------------ what is answered

    def numbers(self, spec: TaskSpec, logits: Tensor) -> Tensor:
        """Return the numbers that answers are made of, which must be finite."""
        return logits

    @abstractmethod
    def predictions(
        self, spec: TaskSpec, logits: Tensor, num_frames_B: Int[Tensor, "B"]
    ) -> list[tuple[Prediction, Probabilities]]:
        """Return each utterance's prediction from logits, or from what `condense` made of them."""

    def references(
        self,
        spec: TaskSpec,
        utterances: Index,
        target: TaskTarget,
        num_frames_B: Int[Tensor, "B"],
    ) -> list[Reference]:
        """Return what is true of each utterance; of one without a label, anything."""
        return [None if value is None else spec.label_of(value) for value in utterances.values(spec.fields[0])]

    def condense(self, logits: Tensor) -> Tensor:
        """Return what need be kept of a window's logits until all windows are joined; the first dimension stays."""
        return logits

    def join(
        self,
        spec: TaskSpec,
        windows: Sequence[Window],
        parts: Sequence[Tensor | None],
        hop_samples: int,
    ) -> Tensor:
        """Return what all windows of one recording say of it together; one window's part as it is.

        Args:
            spec: The task.
            windows: In their order.
            parts: Logits of each window without a batch dimension, or what `condense` made of them; None of a silent
                one. At least one is not.
            hop_samples: Samples from one frame of the model to the next.
        """
        import torch

        heard = [(window, part) for window, part in zip(windows, parts, strict=True) if part is not None]
        if len(heard) == 1:
            return heard[0][1]
        logits_WC = self.averaged(spec, torch.stack([part for _, part in heard]).double())
        weights_W = torch.tensor([window.own_samples for window, _ in heard], dtype=torch.float64)
        mean_C: Tensor = (weights_W / weights_W.sum()) @ logits_WC
        return mean_C.float()

    def averaged(self, spec: TaskSpec, logits_WC: Float[Tensor, "W C"]) -> Float[Tensor, "W C"]:
        """Return that of the windows' logits of which the mean is taken."""
        return logits_WC

    # ------------------------------------------------------------ how it is judged

    def is_label(self, reference: Reference) -> bool:
        """Return whether there is something to compare with."""
        return reference is not None

    @abstractmethod
    def measure(self, spec: TaskSpec, pairs: Sequence[TaskResult]) -> dict[str, Any]:
        """Return `metrics` and what explains them, over one or more utterances with a label."""

    def interval(
        self,
        spec: TaskSpec,
        labelled: Sequence[UtteranceResult],
    ) -> tuple[list[float] | None, str | None] | None:
        """Return the 95 % interval of UA over speakers, or None and the reason; None for kinds that have no UA."""
        return None

    # ------------------------------------------------------------ how it is shown

    def describe_outputs(self, spec: TaskSpec) -> str:
        """Return what the outputs mean, for a model card."""
        return ", ".join(spec.labels)

    def describe_difference(self, theirs: TaskSpec) -> str:
        """Return how the outputs of another model's task of this kind differ, which are not the same."""
        return f"labels {', '.join(theirs.labels)} there"

    def columns(self, spec: TaskSpec) -> list[str]:
        """Return the names before `.reference` and `.prediction` in predictions.csv."""
        return [spec.name]

    def shares(self, spec: TaskSpec) -> tuple[str, ...]:
        """Return what probabilities are given for, in their order."""
        return ()

    def cells(self, result: TaskResult) -> list[str | None]:
        """Return reference and prediction of each of `columns` as predictions.csv holds them."""
        return [None if result.reference is None else str(result.reference), str(result.prediction)]

    def parse(
        self,
        spec: TaskSpec,
        references: Sequence[str | None],
        predictions: Sequence[str],
        probabilities: Probabilities,
    ) -> TaskResult:
        """Return the result that predictions.csv holds; its loss is not there.

        Raises:
            ValueError: if the cells hold none.
        """
        return TaskResult(references[0], predictions[0], probabilities, None)

    @abstractmethod
    def answer(self, spec: TaskSpec, prediction: Prediction, probabilities: Probabilities) -> dict[str, Any]:
        """Return the answer as `metaser predict` gives it, by name."""

    @abstractmethod
    def answer_columns(self, spec: TaskSpec) -> list[str]:
        """Return the names of the columns of `answer_cells`."""

    def answer_cells(self, answer: Mapping[str, Any]) -> list[Any]:
        """Return an answer as a row of a CSV file holds it."""
        return list(answer.values())

    @abstractmethod
    def brief(self, answer: Mapping[str, Any]) -> str:
        """Return an answer in one cell of a table for people."""

    def wide(self, answer: Mapping[str, Any]) -> dict[str, str]:
        """Return the main task's answer in cells of their own by title, for kinds that answer once an utterance."""
        return {"": self.brief(answer)}


def exact(value: float) -> str:
    """Return the shortest text that is read as the same number."""
    return repr(float(value)).removesuffix(".0")


def finite(text: str) -> float:
    """Return the number in `text`.

    Raises:
        ValueError: if it is none, or not finite.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"a number must be finite, got {text!r}")
    return number
