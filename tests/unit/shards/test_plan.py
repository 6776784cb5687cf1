import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import PlanError
from shards.plan import Schedule, check_sizes, cut_slots, evaluation_slots, stable_seed, step_slots

lengths = st.lists(st.integers(1_000, 160_000), min_size=1, max_size=120).map(np.asarray)
worlds = st.integers(1, 16)
batches = st.integers(1, 40)
MAX_SLOT = 200_000


@given(lengths, batches, worlds, st.integers(0, 3))
def test_every_utterance_once_per_epoch_on_any_number_of_processes(num_samples, batch, num_processes, epoch):
    schedule = Schedule(num_samples, batch_utterances=batch, pool_utterances=3 * batch, seed=1)
    seen = []
    for step in range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch):
        per_rank = [
            step_slots(schedule, step, rank=rank, num_processes=num_processes, max_slot_samples=MAX_SLOT)
            for rank in range(num_processes)
        ]
        assert len({len(slots) for slots in per_rank}) == 1, "every rank must do equally many rounds"
        items = [item for slots in per_rank for slot in slots if not slot.is_dummy for item in slot.items]
        assert sorted(items) == sorted(schedule.items(step))
        seen += items
        for slots in per_rank:
            for slot in slots:
                assert len(slot.items) * num_samples[slot.items].max() <= MAX_SLOT
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
def test_slots_minimise_the_largest_padded_length(num_samples, num_processes):
    rounds = cut_slots(num_samples, num_processes, 10**9)
    assert len(rounds) == 1
    worst = max(len(slot) * num_samples[slot[-1]] for slot in rounds[0] if len(slot))
    # No partition into that many contiguous slots can beat the greedy one at a bound one sample lower.
    end, needed = len(num_samples), 0
    while end > 0:
        fits = (worst - 1) // num_samples[end - 1]
        if fits == 0:
            return
        end, needed = end - min(end, fits), needed + 1
    assert needed > num_processes


@given(lengths, worlds)
def test_evaluation_sees_every_utterance_once_in_slots_that_do_not_depend_on_the_processes(num_samples, num_processes):
    def slots_of(world):
        per_rank = [
            list(evaluation_slots(num_samples, rank=rank, num_processes=world, max_slot_samples=MAX_SLOT))
            for rank in range(world)
        ]
        assert len({len(slots) for slots in per_rank}) == 1
        return sorted(tuple(slot.items) for slots in per_rank for slot in slots if not slot.is_dummy)

    slots = slots_of(num_processes)
    assert sorted(item for slot in slots for item in slot) == list(range(len(num_samples)))
    assert slots == slots_of(1)


def test_padding_on_iemocap_like_lengths_is_small():
    generator = np.random.default_rng(0)
    num_samples = (16_000 * np.clip(np.exp(generator.normal(1.25, 0.7, 5_531)), 0.6, 34)).astype(int)
    schedule = Schedule(num_samples, batch_utterances=256, pool_utterances=1_600, seed=0)
    padded = largest = 0
    for step in range(schedule.steps_per_epoch):
        (slots,) = cut_slots(num_samples[schedule.items(step)], 8, 10**9)
        costs = [len(slot) * int(num_samples[schedule.items(step)][slot[-1]]) for slot in slots]
        padded += sum(costs)
        largest += 8 * max(costs)
    assert 1 - num_samples.sum() / padded < 0.08
    assert largest / padded < 1.06


def test_bad_sizes_are_refused():
    with pytest.raises(PlanError, match="only 2 are selected; start at most 2 processes"):
        check_sizes([1_000, 1_000], num_processes=3, max_slot_s=10, rate_hz=16_000)
    with pytest.raises(PlanError, match=r"longest clip \(2.00 s\), got 1"):
        check_sizes([32_000], num_processes=1, max_slot_s=1, rate_hz=16_000)
    with pytest.raises(PlanError, match="at least one utterance, got none"):
        Schedule(np.asarray([], dtype=int), batch_utterances=1, pool_utterances=1, seed=0)
    with pytest.raises(PlanError, match="32000 samples exceed 16000"):
        cut_slots(np.asarray([32_000]), 1, 16_000)
