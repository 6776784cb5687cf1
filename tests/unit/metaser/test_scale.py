from hypothesis import given
from hypothesis import strategies as st

from metaser.train.scale import HIGHEST_SCALE, LOWEST_SCALE, STEPS_TO_GROW, adapt_loss_scale
from metaser.train.state import TrainState


@given(st.integers(0, 24), st.lists(st.booleans(), max_size=60), st.integers(0, STEPS_TO_GROW - 1))
def test_the_scale_stays_a_power_of_two_within_its_bounds(exponent, overflows, num_since):
    state = TrainState(stage=1, loss_scale=2.0**exponent, num_since_scaled=num_since)
    for overflowed in overflows:
        before = state.loss_scale
        adapt_loss_scale(state, overflowed=overflowed)
        assert LOWEST_SCALE <= state.loss_scale <= HIGHEST_SCALE
        assert state.loss_scale in (before, before / 2, before * 2)
        assert not (overflowed and state.loss_scale > before)


def test_an_overflow_halves_and_many_good_steps_in_a_row_double():
    state = TrainState(stage=1)
    start = state.loss_scale
    adapt_loss_scale(state, overflowed=True)
    assert state.loss_scale == start / 2
    for _ in range(STEPS_TO_GROW - 1):
        adapt_loss_scale(state, overflowed=False)
    assert state.loss_scale == start / 2
    adapt_loss_scale(state, overflowed=False)
    assert (state.loss_scale, state.num_since_scaled) == (start, 0)


def test_an_overflow_makes_the_good_steps_count_from_zero():
    state = TrainState(stage=1, num_since_scaled=STEPS_TO_GROW - 1)
    adapt_loss_scale(state, overflowed=True)
    adapt_loss_scale(state, overflowed=False)
    assert (state.loss_scale, state.num_since_scaled) == (2.0**15, 1)


def test_a_checkpoint_from_before_loss_scaling_starts_with_the_first_scale():
    old = {"stage": 2, "step": 7, "evaluated_step": 6, "best_step": 6, "best_value": 0.5}
    assert TrainState.from_dict(old).loss_scale == TrainState(stage=2).loss_scale
