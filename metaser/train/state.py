"""Where a training stands."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter

_Count = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass
class TrainState:
    """The position within one stage, and what selection has found so far."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    stage: Annotated[int, Field(ge=1, lt=2**53)]
    """1-based."""
    step: _Count = 0
    """Optimizer steps done in this stage."""
    evaluated_step: _Count = 0
    """The last step at which dev was evaluated."""
    best_step: _Count = 0
    """The step whose weights are selected so far; 0 before the first evaluation."""
    best_value: float | None = None
    """Of the metric that selects; None also where no value so far was a number."""
    num_skipped: _Count = 0
    """Steps left out because a loss or gradient was not finite."""
    num_skipped_in_a_row: _Count = 0
    """Without those that only told that the loss scale was too high."""
    num_overflows: _Count = 0
    """Steps left out, and counted in `num_skipped`, whose scaled gradients overflowed float16."""
    loss_scale: Annotated[float, Field(gt=0)] = 2.0**16
    """What float16 training multiplies the next step's loss by."""
    num_since_scaled: _Count = 0
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
    def from_dict(cls, values: Any) -> TrainState:
        """Return the state that `to_dict` came from.

        Raises:
            ValueError: if keys are unknown or missing, or values are of other types or of no possible training.
        """
        state = _validate(json.dumps(values))
        parts = ("evaluated_step", "best_step", "num_skipped")
        beyond = [name for name in parts if getattr(state, name) > state.step]
        counts = ("num_skipped_in_a_row", "num_overflows")
        beyond += [name for name in counts if getattr(state, name) > state.num_skipped]
        if beyond:
            raise ValueError(f"{beyond[0]} {getattr(state, beyond[0])} is more than there can be in step {state.step}")
        if len(set(state.bad_keys)) < len(state.bad_keys):
            raise ValueError("bad_keys must differ")
        return state


_validate = TypeAdapter(TrainState).validate_json
