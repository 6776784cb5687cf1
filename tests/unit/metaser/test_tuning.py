"""The search for settings: what it tries, what it takes, when it ends; and the heaviest micro-batches."""

import math
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from metaser.train.trial import heaviest
from metaser.train.tuning import CLEARLY_FASTER, PARTS, Outcome, Search, Settings, Space, next_candidate, recommended
from shards.plan import Schedule, step_micro_batches

GIVEN = Settings(False, False, 160.0, 1)
TOO_MUCH = Outcome(problem="out of memory")


VALUES = st.fixed_dictionaries(
    {
        "lowest_s": st.floats(0.3, 40),
        "ratio": st.floats(0.5, 100),
        "given": st.tuples(st.booleans(), st.booleans(), st.floats(0.3, 500), st.integers(0, 8)),
        "fitting": st.floats(0, 100),
        "gain": st.sampled_from([1.0, 1.5, 4.0]),
        "speeds": st.dictionaries(st.integers(0, 50), st.floats(0.1, 1000), min_size=1),
    }
)


def machine_of(values):
    """Return a space and how a machine answers: up to a size that fits, more with checkpointing, any speeds."""
    lowest_s = values["lowest_s"]
    space = Space.between(lowest_s, lowest_s * values["ratio"], Settings(*values["given"]))

    def measure(settings, left_s):
        fits_s = lowest_s * values["fitting"] * (values["gain"] if settings.activation_checkpointing else 1)
        if settings.max_micro_batch_s > fits_s:
            return TOO_MUCH
        return Outcome(values["speeds"].get(hash(settings) % 50, 1.0), 1.0, 1.0, 4)

    return space, measure


@given(VALUES)
def test_what_did_not_fit_is_never_taken_and_what_is_taken_is_about_the_fastest(values):
    space, measure = machine_of(values)
    search = Search(space, math.inf)
    assert dict(search.run(measure)) == search.measured
    assert not search.left_out and next_candidate(space, search.measured) is None
    best = recommended(search.measured)
    fitting = {settings: outcome for settings, outcome in search.measured.items() if outcome.fits}
    assert (best is None) == (not fitting)
    if best is not None:
        fastest = max(outcome.audio_s_per_s for outcome in fitting.values())
        assert fitting[best].audio_s_per_s * CLEARLY_FASTER >= fastest
    sizes = [settings.max_micro_batch_s for settings in search.measured]
    assert all(size == space.given.max_micro_batch_s or size in space.micro_batches_s for size in sizes)
    # Memory runs out at most once on the way up, and once with checkpointing, before what else is tried.
    plain = [replace(GIVEN, max_micro_batch_s=size, num_workers=space.given.num_workers) for size in sizes]
    assert sum(search.measured.get(settings) is TOO_MUCH for settings in dict.fromkeys(plain)) <= 2


@given(VALUES, st.floats(1, 100), st.floats(0.1, 50))
def test_nothing_is_begun_when_the_time_is_over_and_what_is_left_out_is_told(values, seconds, each_s):
    space, answer = machine_of(values)
    now_s = 0.0
    begun_s = []

    def measure(settings, left_s):
        nonlocal now_s
        begun_s.append(now_s)
        taken_s = min(each_s, left_s)
        now_s += taken_s
        return answer(settings, left_s) if taken_s == each_s else None

    search = Search(space, seconds)
    trials = list(search.run(measure, clock=lambda: now_s))
    assert len(trials) >= 1
    assert all(begun < seconds for begun in begun_s[1:])
    # Once anything fits, the time is kept to the end.
    first = next((number for number, (_, outcome) in enumerate(trials) if outcome.fits), len(trials))
    assert now_s <= max(seconds, (first + 1) * each_s) + 1e-6
    assert bool(search.left_out) == (next_candidate(space, search.measured) is not None)
    assert set(search.left_out) <= set(PARTS)


def run(space, speed):
    search = Search(space, math.inf)
    tried = [settings for settings, _ in search.run(lambda settings, left_s: speed(settings))]
    return tried, recommended(search.measured)


def by_size(fits_s, recomputed_fits_s, recomputed=0.75):
    """Return a machine on which twice the micro-batch is 1.5 times as fast, and computing twice costs."""

    def speed(settings):
        if settings.max_micro_batch_s > (recomputed_fits_s if settings.activation_checkpointing else fits_s):
            return TOO_MUCH
        factor = recomputed if settings.activation_checkpointing else 1.0
        return Outcome(factor * settings.max_micro_batch_s**0.585 * (1.3 if settings.compile_layers else 1.0), 1.0, 1.0)

    return speed


SPACE = Space((10.0, 20.0, 40.0, 80.0), (0, 1), GIVEN)


def test_checkpointing_is_tried_only_where_it_allows_a_larger_micro_batch_and_taken_only_if_that_is_faster():
    tried, best = run(SPACE, by_size(1000, 1000))
    assert not any(settings.activation_checkpointing for settings in tried)
    assert best == Settings(True, False, 80.0, 0)
    tried, best = run(SPACE, by_size(20, 80))
    assert [settings.max_micro_batch_s for settings in tried if settings.activation_checkpointing][:2] == [40.0, 80.0]
    assert best == Settings(True, True, 80.0, 0)
    _, best = run(SPACE, by_size(20, 80, recomputed=0.5))
    assert best == Settings(True, False, 20.0, 0)


def test_checkpointing_is_taken_where_nothing_else_fits():
    _, best = run(SPACE, by_size(5, 10))
    assert best == Settings(True, True, 10.0, 0)
    assert run(SPACE, by_size(5, 5))[1] is None


def test_micro_batches_stop_growing_where_nothing_is_gained():
    space = Space(tuple(10.0 * 2**number for number in range(12)), (1,), GIVEN)
    tried, best = run(space, lambda settings: Outcome(min(settings.max_micro_batch_s, 40), 1.0, 1.0))
    assert max(settings.max_micro_batch_s for settings in tried) == 160.0
    assert best == Settings(False, False, 40.0, 1)


def test_the_given_settings_are_measured_too_as_far_as_they_differ():
    odd = Settings(False, True, 33.0, 1)
    tried, _ = run(replace(SPACE, given=odd), by_size(1000, 1000))
    assert tried[-1] == odd
    tried, _ = run(replace(SPACE, given=replace(odd, max_micro_batch_s=5.0)), by_size(1000, 1000))
    assert all(settings.max_micro_batch_s >= 10 for settings in tried)


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=60),
    st.integers(1, 20),
    st.floats(1, 5),
    st.integers(0, 5),
)
def test_no_step_has_a_heavier_micro_batch_than_the_heaviest(lengths, batch_utterances, room, seed):
    num_samples = np.array(lengths)
    max_samples = int(max(lengths) * room)
    found = heaviest(num_samples, batch_utterances=batch_utterances, max_samples=max_samples)
    sizes = [len(items) * int(num_samples[items].max()) for items in found]
    assert max(sizes) <= max_samples and all(len(items) <= batch_utterances for items in found)
    assert num_samples[found[0]].max() == max(lengths)
    schedule = Schedule(num_samples, batch_utterances=batch_utterances, pool_utterances=40, seed=seed)
    for step in range(2 * schedule.steps_per_epoch):
        for part in step_micro_batches(schedule, step, rank=0, num_processes=1, max_micro_batch_samples=max_samples):
            assert len(part.items) * int(num_samples[part.items].max()) <= max(sizes)
