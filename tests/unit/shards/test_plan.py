import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import PlanError
from shards.plan import (
    MicroBatch,
    Schedule,
    check_sizes,
    cut_micro_batches,
    evaluation_micro_batches,
    random_windows,
    stable_seed,
    step_micro_batches,
)
from shards.windows import Windowing

lengths = st.lists(st.integers(1_000, 160_000), min_size=1, max_size=120).map(np.asarray)
worlds = st.integers(1, 16)
batches = st.integers(1, 40)
MAX_MICRO_BATCH = 200_000


@given(lengths, batches, worlds, st.integers(0, 3))
def test_every_utterance_once_per_epoch_on_any_number_of_processes(num_samples, batch, num_processes, epoch):
    schedule = Schedule(num_samples, batch_utterances=batch, pool_utterances=3 * batch, seed=1)
    seen = []
    for step in range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch):
        per_rank = [
            step_micro_batches(
                schedule, step, rank=rank, num_processes=num_processes, max_micro_batch_samples=MAX_MICRO_BATCH
            )
            for rank in range(num_processes)
        ]
        assert len({len(micro_batches) for micro_batches in per_rank}) == 1, "every rank must do equally many rounds"
        items = [
            item
            for micro_batches in per_rank
            for micro_batch in micro_batches
            if not micro_batch.is_dummy
            for item in micro_batch.items
        ]
        assert sorted(items) == sorted(schedule.items(step))
        seen += items
        for micro_batches in per_rank:
            for micro_batch in micro_batches:
                assert len(micro_batch.items) * num_samples[micro_batch.items].max() <= MAX_MICRO_BATCH
    assert sorted(seen) == list(range(len(num_samples)))
    assert schedule.steps_per_epoch == math.ceil(len(num_samples) / batch)


@given(lengths, batches, st.integers(0, 200))
def test_seeking_gives_what_reading_on_would_have_given(num_samples, batch, step):
    read_on = Schedule(num_samples, batch_utterances=batch, pool_utterances=batch, seed=5)
    for earlier in range(max(0, step - 3), step):
        read_on.items(earlier)
    seeking = Schedule(num_samples, batch_utterances=batch, pool_utterances=batch, seed=5)
    assert read_on.items(step).tolist() == seeking.items(step).tolist()


def test_epochs_and_seeds_differ():
    num_samples = np.arange(1_000, 1_200)

    def order(seed, epoch):
        schedule = Schedule(num_samples, batch_utterances=8, pool_utterances=50, seed=seed)
        return [
            tuple(schedule.items(epoch * schedule.steps_per_epoch + step)) for step in range(schedule.steps_per_epoch)
        ]

    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) == order(0, 0)


def test_the_plan_is_the_same_on_every_machine():
    schedule = Schedule(np.arange(1_000, 1_010), batch_utterances=3, pool_utterances=10, seed=7)
    assert stable_seed("schedule", 7, 0) == 653711539007556121
    assert [schedule.items(step).tolist() for step in range(4)] == [[6, 7, 8], [0, 1, 2], [3, 4, 5], [9]]


@given(lengths.map(np.sort), worlds)
def test_micro_batches_minimise_the_largest_padded_length(num_samples, num_processes):
    rounds = cut_micro_batches(num_samples, num_processes, 10**9)
    assert len(rounds) == 1
    worst = max(len(micro_batch) * num_samples[micro_batch[-1]] for micro_batch in rounds[0] if len(micro_batch))
    # No partition into that many contiguous micro-batches can beat the greedy one at a bound one sample lower.
    end, needed = len(num_samples), 0
    while end > 0:
        fits = (worst - 1) // num_samples[end - 1]
        if fits == 0:
            return
        end, needed = end - min(end, fits), needed + 1
    assert needed > num_processes


@given(lengths, worlds)
def test_evaluation_sees_every_utterance_once_in_micro_batches_that_do_not_depend_on_the_processes(
    num_samples, num_processes
):
    def micro_batches_of(world):
        per_rank = [
            list(
                evaluation_micro_batches(
                    num_samples, rank=rank, num_processes=world, max_micro_batch_samples=MAX_MICRO_BATCH
                )
            )
            for rank in range(world)
        ]
        assert len({len(micro_batches) for micro_batches in per_rank}) == 1
        return sorted(
            tuple(micro_batch.items)
            for micro_batches in per_rank
            for micro_batch in micro_batches
            if not micro_batch.is_dummy
        )

    micro_batches = micro_batches_of(num_processes)
    assert sorted(item for micro_batch in micro_batches for item in micro_batch) == list(range(len(num_samples)))
    assert micro_batches == micro_batches_of(1)


def iemocap_like_samples():
    """5,531 lengths: log-normal, mean 4.5 s, 99th percentile 15 s."""
    generator = np.random.default_rng(0)
    return (16_000 * np.clip(np.exp(generator.normal(1.328, 0.5935, 5_531)), 0.5, 34)).astype(int)


@pytest.mark.parametrize(("clips_per_micro_batch", "max_padding", "max_straggler"), [(32, 0.05, 1.03), (4, 0.01, 1.05)])
def test_padding_and_waiting_on_iemocap_like_lengths_are_small(clips_per_micro_batch, max_padding, max_straggler):
    num_samples = iemocap_like_samples()
    schedule = Schedule(num_samples, batch_utterances=8 * clips_per_micro_batch, pool_utterances=1_600, seed=0)
    padded = largest = 0
    for step in range(schedule.steps_per_epoch):
        lengths = num_samples[schedule.items(step)]
        (micro_batches,) = cut_micro_batches(lengths, 8, 10**9)
        costs = [len(micro_batch) * int(lengths[micro_batch[-1]]) for micro_batch in micro_batches]
        padded += sum(costs)
        largest += 8 * max(costs)
    assert 1 - num_samples.sum() / padded <= max_padding
    assert largest / padded <= max_straggler


def test_batches_keep_some_randomness():
    """Of clips that share a step of 32, a sixth do so again in the next epoch (by chance: 0.6 %)."""
    schedule = Schedule(iemocap_like_samples(), batch_utterances=32, pool_utterances=1_600, seed=0)
    steps = schedule.steps_per_epoch

    def step_of_clips(epoch):
        where = np.empty(5_531, int)
        for step in range(epoch * steps, (epoch + 1) * steps):
            where[schedule.items(step)] = step
        return where

    first, second = step_of_clips(0), step_of_clips(1)
    together = [second[first == step] for step in range(steps)]
    pairs = sum(len(clips) * (len(clips) - 1) for clips in together)
    again = sum((clips[:, None] == clips).sum() - len(clips) for clips in together)
    assert again / pairs < 0.2


sizes = st.builds(
    lambda count, skew, seed: np.random.default_rng(seed).lognormal(10.5, skew, count).clip(800, 480_000).astype(int),
    st.integers(1, 10_000),
    st.floats(0, 2),
    st.integers(0, 2**32 - 1),
)


@settings(max_examples=25)
@given(sizes, st.integers(1, 256), worlds, st.integers(0, 2), st.data())
def test_any_size_and_skew_is_read_once_and_any_step_continues_it(num_samples, batch, num_processes, epoch, data):
    schedule, resumed = (
        Schedule(num_samples, batch_utterances=batch, pool_utterances=1_600, seed=11) for _ in range(2)
    )
    first, end = epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch
    steps = [schedule.items(step) for step in range(first, end)]
    assert np.array_equal(np.sort(np.concatenate(steps)), np.arange(len(num_samples)))
    assert all(len(items) <= batch for items in steps)
    k = data.draw(st.integers(first, end - 1))
    assert all(np.array_equal(resumed.items(step), steps[step - first]) for step in range(k, min(k + 50, end)))
    per_rank = [
        step_micro_batches(resumed, k, rank=rank, num_processes=num_processes, max_micro_batch_samples=480_000)
        for rank in range(num_processes)
    ]
    assert len({len(micro_batches) for micro_batches in per_rank}) == 1
    real = [
        micro_batch.items for micro_batches in per_rank for micro_batch in micro_batches if not micro_batch.is_dummy
    ]
    assert np.array_equal(np.sort(np.concatenate(real)), np.sort(steps[k - first]))
    assert all(len(items) * num_samples[items].max() <= 480_000 for items in real)


def test_bad_sizes_are_refused():
    with pytest.raises(PlanError, match="only 2 are selected; start at most 2 processes"):
        check_sizes([1_000, 1_000], num_processes=3, max_micro_batch_s=10)
    with pytest.raises(PlanError, match=r"longest clip \(2.00 s\), got 1"):
        check_sizes([32_000], num_processes=1, max_micro_batch_s=1)
    with pytest.raises(PlanError, match="at least one utterance, got none"):
        Schedule(np.asarray([], dtype=int), batch_utterances=1, pool_utterances=1, seed=0)
    with pytest.raises(PlanError, match="32000 samples exceed 16000"):
        cut_micro_batches(np.asarray([32_000]), 1, 16_000)


@given(lengths, worlds, st.integers(16_000, 100_000))
def test_evaluation_sees_every_window_of_an_utterance_once_and_in_order_on_one_rank(num_samples, num_processes, length):
    windowing = Windowing(length, 3_200)
    seen = {}
    counts = set()
    for rank in range(num_processes):
        micro_batches = list(
            evaluation_micro_batches(
                num_samples,
                rank=rank,
                num_processes=num_processes,
                max_micro_batch_samples=MAX_MICRO_BATCH,
                windowing=windowing,
            )
        )
        counts.add(len(micro_batches))
        here = {}
        for micro_batch in micro_batches:
            if micro_batch.is_dummy:
                continue
            windows = (
                [(0, num_samples[item]) for item in micro_batch.items]
                if micro_batch.windows is None
                else micro_batch.windows
            )
            assert len(windows) * max(end - start for start, end in windows) <= MAX_MICRO_BATCH
            for item, window in zip(micro_batch.items.tolist(), windows, strict=True):
                here.setdefault(item, []).append(window)
        assert not here.keys() & seen.keys()
        seen |= here
    assert len(counts) == 1
    assert sorted(seen) == list(range(len(num_samples)))
    for item, windows in seen.items():
        assert windows == [(window.start, window.end) for window in windowing.cut(int(num_samples[item]))]


@given(lengths, st.integers(0, 3), st.integers(0, 3))
def test_a_random_window_depends_on_seed_epoch_and_key_alone(num_samples, seed, epoch):
    windowing = Windowing(32_000, 16_000)
    keys = [f"u{number}" for number in range(len(num_samples))]

    def drawn(items, epoch):
        micro_batch = random_windows(
            MicroBatch(np.asarray(items)),
            num_samples,
            [keys[item] for item in items],
            windowing,
            seed=seed,
            epoch=epoch,
        )
        return list(micro_batch.windows)

    everything = drawn(range(len(num_samples)), epoch)
    assert everything == [drawn([item], epoch)[0] for item in range(len(num_samples))]
    for (start, end), length in zip(everything, num_samples.tolist(), strict=True):
        assert 0 <= start < end <= length
        assert end - start == min(length, 32_000)
    if (num_samples > 64_000).sum() > 3:
        assert everything != drawn(range(len(num_samples)), epoch + 1)


def test_a_clip_that_fits_no_micro_batch_is_refused_unless_it_is_cut():
    long = np.asarray([16_000, 9_600_000])
    with pytest.raises(PlanError, match=r"longest clip \(600.00 s\), got 160; set data.window_s to hear longer"):
        check_sizes(long, num_processes=1, max_micro_batch_s=160)
    check_sizes(long, num_processes=1, max_micro_batch_s=160, windowing=Windowing.of_seconds(20.0))


def test_a_clip_longer_than_a_micro_batch_is_evaluated_alone():
    micro_batches = evaluation_micro_batches(
        np.asarray([30, 5, 90, 5]), rank=0, num_processes=1, max_micro_batch_samples=20
    )
    assert [sorted(micro_batch.items.tolist()) for micro_batch in micro_batches] == [[2], [0], [1, 3]]
