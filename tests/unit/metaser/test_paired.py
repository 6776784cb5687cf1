"""Differences between two systems on the same utterances: their value, their interval and their test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from metaser.eval.paired import (
    METRICS,
    MIN_SPEAKERS,
    Answers,
    compare,
    count_by_speaker,
    metric_of,
    metric_of_answers,
)

LABELS = ("anger", "happiness", "neutral", "sadness")
words = st.sampled_from(LABELS)
utterances = st.lists(st.tuples(st.integers(0, 5), words, words, words), min_size=1, max_size=60)


def answers_of(rows, *columns):
    keys = [f"u{number:03d}" for number in range(len(rows))]
    references = {key: row[1] for key, row in zip(keys, rows, strict=True)}
    said = [{key: row[column] for key, row in zip(keys, rows, strict=True)} for column in columns]
    return Answers(references, said), {key: f"s{row[0]}" for key, row in zip(keys, rows, strict=True)}


@given(utterances)
@settings(deadline=None)
def test_metrics_of_counts_are_those_of_scikit_learn(rows):
    answers, speaker_of = answers_of(rows, 2)
    counts = count_by_speaker(answers, speaker_of, LABELS)
    true, said = [row[1] for row in rows], [row[2] for row in rows]
    present = sorted(set(true))
    expected = {
        "ua": balanced_accuracy_score(true, said),
        "wa": accuracy_score(true, said),
        "macro_f1": f1_score(true, said, labels=present, average="macro", zero_division=0),
    }
    for metric in METRICS:
        assert metric_of(counts, metric) == pytest.approx(expected[metric])
        assert metric_of_answers(answers, 0, LABELS, metric) == pytest.approx(expected[metric])


@given(utterances, st.sampled_from(sorted(METRICS)))
@settings(deadline=None, max_examples=50)
def test_a_comparison_turned_round_changes_its_sign_and_nothing_else(rows, metric):
    (ours, speaker_of), (theirs, _) = answers_of(rows, 2), answers_of(rows, 3)
    one, other = (count_by_speaker(answers, speaker_of, LABELS) for answers in (ours, theirs))
    found, turned = compare(one, other, metric), compare(other, one, metric)
    assert found.difference == pytest.approx(-turned.difference)
    assert (found.p_value, found.detectable) == pytest.approx((turned.p_value, turned.detectable))
    assert found.reason == turned.reason
    if found.interval_95 is not None:
        assert found.interval_95 == pytest.approx(tuple(-bound for bound in reversed(turned.interval_95)))
        assert found.interval_95[0] <= found.difference <= found.interval_95[1]


@given(utterances)
@settings(deadline=None, max_examples=50)
def test_a_system_beside_itself_differs_by_nothing_and_never_for_certain(rows):
    answers, speaker_of = answers_of(rows, 2)
    counts = count_by_speaker(answers, speaker_of, LABELS)
    found = compare(counts, counts, "ua")
    assert found.difference == 0
    assert found.p_value in (None, 1.0)
    if found.interval_95 is not None:
        assert found.interval_95[0] < 0 < found.interval_95[1]
        assert found.detectable > 0


def test_the_p_value_is_that_of_all_exchanges_by_brute_force():
    generator = np.random.default_rng(0)
    rows = [(number % 5, *generator.choice(LABELS, 3)) for number in range(60)]
    (ours, speaker_of), (theirs, _) = answers_of(rows, 2), answers_of(rows, 3)
    one, other = (count_by_speaker(answers, speaker_of, LABELS) for answers in (ours, theirs))
    found = compare(one, other, "ua")
    true = [row[1] for row in rows]
    differences = []
    for way in range(2**5):
        said = [[row[3], row[2]] if way >> row[0] & 1 else [row[2], row[3]] for row in rows]
        ua = [balanced_accuracy_score(true, [pair[side] for pair in said]) for side in (0, 1)]
        differences.append(abs(ua[0] - ua[1]))
    assert found.p_value == pytest.approx(np.mean([each >= differences[0] - 1e-9 for each in differences]))
    assert found.smallest_p == 2 / 2**5


def test_more_models_of_a_system_are_averaged():
    generator = np.random.default_rng(1)
    rows = [(number % 6, *generator.choice(LABELS, 4)) for number in range(80)]
    both, speaker_of = answers_of(rows, 2, 3)
    other, _ = answers_of(rows, 4)
    counts = count_by_speaker(both, speaker_of, LABELS)
    theirs = count_by_speaker(other, speaker_of, LABELS)
    true = [row[1] for row in rows]
    uas = [balanced_accuracy_score(true, [row[column] for row in rows]) for column in (2, 3, 4)]
    assert compare(counts, theirs, "ua").difference == pytest.approx(np.mean(uas[:2]) - uas[2])


def test_few_speakers_and_classes_of_one_speaker_say_why_there_is_no_interval():
    rows = [(number % 3, LABELS[number % 4], LABELS[number % 2], LABELS[0]) for number in range(24)]
    (ours, speaker_of), (theirs, _) = answers_of(rows, 2), answers_of(rows, 3)
    found = compare(*(count_by_speaker(answers, speaker_of, LABELS) for answers in (ours, theirs)), "ua")
    assert (found.interval_95, found.p_value, found.detectable) == (None, None, None)
    assert found.reason == f"it needs at least {MIN_SPEAKERS} speakers, there are 3"
    rows = [(0 if number % 4 == 3 else number % 5, LABELS[number % 4], LABELS[0], LABELS[1]) for number in range(40)]
    (ours, speaker_of), (theirs, _) = answers_of(rows, 2), answers_of(rows, 3)
    found = compare(*(count_by_speaker(answers, speaker_of, LABELS) for answers in (ours, theirs)), "ua")
    assert found.interval_95 is None
    assert found.p_value is not None
    assert found.reason == "1 of the classes are those of one speaker alone"


def drawn(generator, num_speakers, *, difference, spread, num_models=1):
    """Return counts of two systems with as many speakers, whose logits of being right differ by `difference`.

    By how much more or less with each speaker, `spread` says. Utterances are as hard for one system as for the other.
    """
    counts = np.zeros((2, num_models, num_speakers, len(LABELS), 3))
    for speaker in range(num_speakers):
        voice, gap = generator.normal(0, 0.7), generator.normal(difference, spread)
        for label in range(len(LABELS)):
            hard = generator.normal(0, 1.5, 1 + generator.poisson(7))
            luck = generator.random(len(hard))
            for system, side in enumerate((0.5, -0.5)):
                chance = 1 / (1 + np.exp(-(0.9 + voice + side * gap + hard)))
                for model in range(num_models):
                    same = generator.random(len(hard)) < 0.7
                    right = np.where(same, luck, generator.random(len(hard))) < chance
                    counts[system, model, speaker, label, :2] += len(right), right.sum()
                    said = counts[system, model, speaker, :, 2]
                    said[label] += right.sum()
                    np.add.at(said, generator.integers(0, len(LABELS), int((~right).sum())), 1)
    return counts


def rates(num_speakers, *, spread, difference=0.0, truth=0.0, num_draws=500):
    """Return how often the interval holds the true difference, and how often the test finds one at 5 %."""
    generator = np.random.default_rng(num_speakers)
    held, found = 0, 0
    for _ in range(num_draws):
        comparison = compare(*drawn(generator, num_speakers, difference=difference, spread=spread), "ua")
        low, high = comparison.interval_95
        held += low <= truth <= high
        found += comparison.p_value <= 0.05
    return held / num_draws, found / num_draws


NOISE = 3 * math.sqrt(0.05 * 0.95 / 500)
"""Three standard errors of a share of 5 % in 500 draws."""


@pytest.mark.parametrize(("num_speakers", "spread"), [(4, 0.0), (6, 0.7), (10, 0.7)])
def test_intervals_hold_the_truth_and_the_test_errs_as_often_as_they_say(num_speakers, spread):
    held, found = rates(num_speakers, spread=spread)
    assert held >= 0.95 - NOISE
    assert found <= 0.05 + NOISE
    # Four speakers can be exchanged in 16 ways, two of which are as extreme as none: 0.125 at least.
    assert (found == 0) == (num_speakers == 4)


@pytest.mark.reliability
@pytest.mark.parametrize("num_speakers", [4, 5, 6, 8, 10, 20])
@pytest.mark.parametrize("spread", [0.0, 0.3, 0.7, 1.2])
def test_they_do_with_any_number_of_speakers(num_speakers, spread):
    held, found = rates(num_speakers, spread=spread)
    assert held >= 0.95 - NOISE
    assert found <= 0.05 + NOISE


@pytest.mark.reliability
def test_the_interval_holds_a_difference_that_there_is():
    generator = np.random.default_rng(0)
    large = [metric_of(side, "ua") for side in drawn(generator, 20_000, difference=0.8, spread=0.5)]
    held, _ = rates(10, spread=0.5, difference=0.8, truth=large[0] - large[1])
    assert held >= 0.95 - NOISE
