"""Loss scaling for float16, whose smallest number a gradient easily undercuts: one for every strategy.

The loss is multiplied by a power of two and the gradients are divided by it, which itself changes no digit. Too large a
factor lets gradients overflow: such a step is left out and the factor halved. torch and DeepSpeed have scalers too, but
neither can continue what the other has begun, and DeepSpeed's for autocast (0.19) unscales what is already clipped.
"""

from __future__ import annotations

from metaser.train.state import TrainState

LOWEST_SCALE = 1.0
HIGHEST_SCALE = 2.0**24
STEPS_TO_GROW = 2000
"""So many updates in a row without an overflow double the scale."""


def adapt_loss_scale(state: TrainState, *, overflowed: bool) -> None:
    """Set the scale of the next step after one that updated the weights, or whose gradients overflowed."""
    if overflowed:
        state.loss_scale = max(LOWEST_SCALE, state.loss_scale / 2)
        state.num_since_scaled = 0
        return
    state.num_since_scaled += 1
    if state.num_since_scaled == STEPS_TO_GROW:
        state.loss_scale = min(HIGHEST_SCALE, state.loss_scale * 2)
        state.num_since_scaled = 0
