from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import index_of

from shards.config import SamplingConfig
from shards.errors import FilterError, PlanError
from shards.plan import Schedule, stable_seed
from shards.sampling import draw_epoch, sampling_weights

weights_of_any_skew = (
    st.lists(st.floats(0, 50), min_size=1, max_size=200)
    .filter(lambda w: sum(w) > 0.1)
    .map(lambda w: np.asarray(w) * (len(w) / sum(w)))
)


@given(weights_of_any_skew, st.integers(0, 99))
def test_an_epoch_has_as_many_draws_as_utterances_and_each_its_share_rounded(weights, seed):
    rows = draw_epoch(weights, np.random.default_rng(seed))
    assert len(rows) == len(weights)
    counts = np.bincount(rows, minlength=len(weights))
    assert (counts >= np.floor(weights - 1e-9)).all()
    assert (counts <= np.ceil(weights + 1e-9)).all()


@given(st.integers(1, 500), st.integers(0, 9))
def test_equal_weights_are_exactly_one_pass(count, seed):
    assert sorted(draw_epoch(np.ones(count), np.random.default_rng(seed))) == list(range(count))


def test_over_many_epochs_everyone_gets_their_share():
    weights = np.asarray([0.25, 0.75, 2.0, 1.0])
    counts = Counter(row for seed in range(400) for row in draw_epoch(weights, np.random.default_rng(seed)).tolist())
    assert [counts[row] / 400 for row in range(4)] == pytest.approx(weights, abs=0.08)


def test_nothing_set_is_no_weights_at_all():
    assert sampling_weights(index_of(emotion=["anger", None]), SamplingConfig()) is None


def test_balancing_evens_out_a_field_and_leaves_utterances_without_it_alone():
    index = index_of(emotion=["anger"] * 6 + ["neutral"] * 2 + [None] * 4)
    weights = sampling_weights(index, SamplingConfig(balance="emotion"))
    assert weights.tolist() == pytest.approx([4 / 6] * 6 + [2.0] * 2 + [1.0] * 4)
    half = sampling_weights(index, SamplingConfig(balance="emotion", balance_power=0.5))
    assert half[6] / half[0] == pytest.approx(3**0.5)
    assert half.sum() == pytest.approx(12)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.1, 10), st.floats(0.1, 10))
def test_corpora_get_their_shares_of_the_draws(num_a, num_b, share_a, share_b):
    index = index_of(corpus=["a"] * num_a + ["b"] * num_b)
    weights = sampling_weights(index, SamplingConfig(corpora={"a": share_a, "b": share_b}))
    assert weights.sum() == pytest.approx(num_a + num_b)
    assert weights[:num_a].sum() / weights.sum() == pytest.approx(share_a / (share_a + share_b))


def test_weights_come_from_a_field_and_all_three_compose():
    index = index_of(
        corpus=["a", "a", "a", "b"],
        emotion=["anger", "anger", "neutral", "anger"],
        extra=['{"w": 3}', '{"w": 1.0}', '{"w": 2}', '{"w": 0}'],
    )
    index = type(index)(index.columns, index.shard_places, ("w",))
    assert sampling_weights(index, SamplingConfig(weight="extra.w")).tolist() == pytest.approx([2, 2 / 3, 4 / 3, 0])
    assert sampling_weights(index.take([0, 1, 2]), SamplingConfig(weight="extra.w", balance="emotion")).tolist() == (
        pytest.approx([9 / 8, 3 / 8, 12 / 8])
    )


def test_weights_may_be_text_of_a_table():
    index = index_of(extra=['{"w": "3"}', '{"w": "1,5"}', '{"w": "1.5"}', '{"w": "often"}', '{"w": "NA"}', "{}"])
    index = type(index)(index.columns, index.shard_places, ("w",))
    weights = sampling_weights(index.take([0, 1, 2]), SamplingConfig(weight="extra.w"))
    assert weights.tolist() == pytest.approx([1.5, 0.75, 0.75])
    for row, shown in ((3, "'often'"), (4, "'NA'"), (5, "no value")):
        with pytest.raises(PlanError, match=f"1 of 2 have none .the first has {shown}.; add the metadata"):
            sampling_weights(index.take([0, row]), SamplingConfig(weight="extra.w"))


@pytest.mark.parametrize(
    ("sampling", "error", "message"),
    [
        ({"corpora": {"a": 1}}, PlanError, r"names \['a'\] and the stage has \['a', 'b'\]"),
        ({"corpora": {"a": 1, "b": 1, "c": 1}}, PlanError, r"the stage has \['a', 'b'\]"),
        ({"weight": "age"}, PlanError, r"a number of at least 0 in age for every utterance, but 2 of 3 have none"),
        ({"weight": "emotion"}, PlanError, r"in emotion for every utterance, but 3 of 3"),
        ({"balance": "emotoin"}, FilterError, "got 'emotoin'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(sampling, error, message):
    index = index_of(corpus=["a", "a", "b"], age=[1.0, None, -1.0], emotion=["anger", "anger", "anger"])
    with pytest.raises(error, match=message):
        sampling_weights(index, SamplingConfig(**sampling))


def test_a_weighted_schedule_is_as_repeatable_and_seekable_as_any():
    num_samples = np.arange(1_000, 1_060)
    weights = np.linspace(0.1, 1.9, 60)

    def schedule():
        return Schedule(num_samples, batch_utterances=8, pool_utterances=24, seed=3, weights=weights)

    steps = [schedule().items(step).tolist() for step in range(16)]
    assert steps == [list(map(int, items)) for items in map(schedule().items, range(16))]
    assert steps[:8] != steps[8:]
    first = Counter(item for step in steps[:8] for item in step)
    assert sum(first.values()) == 60
    expected = draw_epoch(weights, np.random.Generator(np.random.PCG64(stable_seed("schedule", 3, 0))))
    assert first == Counter(expected.tolist())
