"""Where a training stands."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """The position within one stage, and what selection has found so far."""

    stage: int
    """1-based."""
    step: int = 0
    """Optimizer steps done in this stage."""
    evaluated_step: int = 0
    """The last step at which dev was evaluated."""
    best_step: int = 0
    """The step whose weights are selected so far; 0 before the first evaluation."""
    best_value: float | None = None
    num_skipped: int = 0
    """Steps left out because a loss or gradient was not finite."""
    num_skipped_in_a_row: int = 0
    """Without those that only told that the loss scale was too high."""
    num_overflows: int = 0
    """Steps left out, and counted in `num_skipped`, whose scaled gradients overflowed float16."""
    loss_scale: float = 2.0**16
    """What float16 training multiplies the next step's loss by."""
    num_since_scaled: int = 0
    """Updates since `loss_scale` last changed."""
    bad_keys: list[str] = field(default_factory=list)
    """Utterances that could not be decoded."""

    @property
    def num_updates(self) -> int:
        """Steps of this stage that changed the weights."""
        return self.step - self.num_skipped

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        """Return the state that `to_dict` came from.

        Raises:
            TypeError: if keys are unknown or missing.
        """
        return cls(**values)
