"""A task as an experiment wants it (`TaskConfig`), and with everything the data decides filled in (`TaskSpec`).

A `TaskSpec` is what the model is built for and what is stored in its config.json.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from shards.record import Section


class TaskConfig(Section):
    """One task as an experiment wants it; its kind's own class adds what that kind needs."""

    kind: str
    name: str

    @property
    def metadata_fields(self) -> tuple[str, ...]:
        """The metadata fields that the task reads."""
        raise NotImplementedError

    @property
    def has_own_labels(self) -> bool:
        """Whether someone chose these labels, as opposed to the inventory that the field has anyway."""
        return False

    @property
    def takes_all_labels(self) -> bool:
        """Whether the training utterances of the stages that weigh the task decide its labels."""
        return False


class TaskSpec(Section):
    """One task as the model knows it."""

    name: str
    kind: str
    fields: tuple[str, ...]
    """Metadata fields it reads: several for regression, one for the other kinds."""
    labels: tuple[str, ...]
    """What the outputs mean, in their order: classes; ctc: `<blank>`, `<unk>`, then the alphabet; regression and
    frames: the fields."""
    merge: dict[str, str] = Field(default_factory=dict)
    """classification: metadata values that count as another one."""
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    offset: float = 0.0
    scale: float = 1.0

    @property
    def num_outputs(self) -> int:
        """Width of the head's output."""
        return len(self.labels)

    def label_of(self, value: object) -> str:
        """Return the label that a metadata value stands for, whether or not the model has it."""
        return self.merge.get(str(value), str(value))


def count_words(counts: Mapping[str, int], at_most: int = 12) -> str:
    """Return `surprise 30, fear 10`: words by how often they occur, the rest as a number."""
    found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = [f"and {len(found) - at_most} more"] if len(found) > at_most else []
    return ", ".join([*(f"{word} {count}" for word, count in found[:at_most]), *rest])


def loss_denominator(total_weight: float) -> float:
    """Return what a task's summed losses are divided by: the weight of the labels present, 1 where none is."""
    return total_weight if total_weight > 0 else 1.0
