"""The kinds of tasks that there are; a new one is a module beside this and a line here."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator, SerializeAsAny

from metaser.tasks.classification import Classification
from metaser.tasks.ctc import Ctc
from metaser.tasks.frames import FrameLabels
from metaser.tasks.kind import Metric, TaskKind
from metaser.tasks.regression import Regression
from metaser.tasks.spec import TaskConfig, TaskSpec

KINDS: dict[str, TaskKind[Any]] = {
    kind.name: kind
    for kind in (
        Classification(),
        Ctc(),
        Regression(),
        FrameLabels(),
    )
}
"""By name; tables show the metrics in this order."""


def kind_of(task: TaskSpec | TaskConfig) -> TaskKind[Any]:
    """Return the kind of a task."""
    return KINDS[task.kind]


def all_metrics() -> dict[str, Metric]:
    """Return the metrics of all kinds, in the order of a table's columns.

    Raises:
        ValueError: if two kinds have one of the same name, which would be chosen by as the other says.
    """
    pairs = [pair for kind in KINDS.values() for pair in kind.metrics.items()]
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"kinds of tasks must have metrics of different names, got {[name for name, _ in pairs]}")
    return found


def check_kind(name: object) -> None:
    """Refuse kinds that there are not.

    Raises:
        ValueError: naming those that there are.
    """
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {name!r}")


def _parse_task(value: Any) -> TaskConfig:
    if isinstance(value, TaskConfig):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"a task must be a mapping with a kind, which is one of {', '.join(KINDS)}")
    check_kind(value.get("kind"))
    return KINDS[value["kind"]].config.model_validate(value)


AnyTask = Annotated[SerializeAsAny[TaskConfig], PlainValidator(_parse_task)]
"""A task of an experiment, of whichever kind."""
