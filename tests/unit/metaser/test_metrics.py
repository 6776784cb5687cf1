"""Metrics against scikit-learn, by hand, and by their symmetries."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix
from uacoverage import WORLDS, coverage

from metaser.errors import ConfigError, TrainingError
from metaser.eval.metrics import add_interval, evaluate_results, selected_value, task_metrics
from metaser.tasks.results import TaskResult, UtteranceResult
from metaser.tasks.spec import TaskSpec

LABELS = ("anger", "happiness", "neutral", "sadness")
EMOTION = TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=LABELS)
ASR = TaskSpec(name="asr", kind="ctc", fields=("text",), labels=("<blank>", "<unk>", "a", "b"))
AFFECT = TaskSpec(name="affect", kind="regression", fields=("valence", "arousal"), labels=("valence", "arousal"))


def utterance(number: int, name: str, task: TaskResult, speaker: str | None = "one") -> UtteranceResult:
    return UtteranceResult(
        key=f"made/{number:04d}", corpus="made", speaker=speaker, groups={}, duration_s=1.0, tasks={name: task}
    )


def ua_interval(results: Sequence[UtteranceResult]) -> tuple[list[float] | None, str | None]:
    metrics: dict[str, Any] = {}
    add_interval(metrics, EMOTION, results)
    return metrics["ua_interval_95"], metrics.get("ua_interval_reason")


def emotion_results(
    pairs: Sequence[tuple[str | None, str]], speakers: Sequence[str | None] | None = None
) -> list[UtteranceResult]:
    return [
        utterance(
            number,
            "emotion",
            TaskResult(reference=true, prediction=said, probabilities=None, loss=None if true is None else 0.5),
            "one" if speakers is None else speakers[number],
        )
        for number, (true, said) in enumerate(pairs)
    ]


def text_results(pairs: Sequence[tuple[str | None, str]]) -> list[UtteranceResult]:
    return [
        utterance(number, "asr", TaskResult(reference=true, prediction=said, probabilities=None, loss=2.0))
        for number, (true, said) in enumerate(pairs)
    ]


def affect_results(
    pairs: Sequence[tuple[tuple[float | None, float | None] | None, tuple[float, float]]],
) -> list[UtteranceResult]:
    return [
        utterance(number, "affect", TaskResult(reference=true, prediction=said, probabilities=None, loss=1.0))
        for number, (true, said) in enumerate(pairs)
    ]


label_pairs = st.lists(st.tuples(st.sampled_from(LABELS[:3]), st.sampled_from(LABELS)), min_size=1, max_size=40)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
@given(label_pairs)
def test_classification_agrees_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    metrics = task_metrics(EMOTION, emotion_results(pairs))
    assert metrics is not None
    references, predictions = zip(*pairs, strict=True)
    assert metrics["ua"] == pytest.approx(balanced_accuracy_score(references, predictions))
    assert metrics["wa"] == pytest.approx(accuracy_score(references, predictions))
    assert metrics["confusion"] == confusion_matrix(references, predictions, labels=list(LABELS)).tolist()
    assert metrics["classes"] == [label for label in LABELS if label in references]
    assert list(metrics["recall"]) == metrics["classes"]
    assert metrics["ua"] == pytest.approx(np.mean(list(metrics["recall"].values())))


def test_classification_by_hand() -> None:
    pairs = [("anger", "anger")] * 3 + [("anger", "neutral")] + [("neutral", "neutral"), ("neutral", "sadness")]
    metrics = task_metrics(EMOTION, emotion_results([*pairs, (None, "anger")]))
    assert metrics is not None
    assert metrics["num_utterances"] == 6
    assert metrics["loss"] == 0.5
    assert metrics["wa"] == pytest.approx(4 / 6)
    assert metrics["recall"] == {"anger": 0.75, "neutral": 0.5}
    assert metrics["ua"] == pytest.approx(0.625)
    # anger: precision 1, recall 3/4; neutral: precision 1/2, recall 1/2; sadness, only predicted, is no class.
    assert metrics["macro_f1"] == pytest.approx((6 / 7 + 1 / 2) / 2)


@given(label_pairs, st.randoms(use_true_random=False))
def test_order_does_not_matter(pairs: list[tuple[str, str]], shuffler: random.Random) -> None:
    speakers = [f"speaker{number % 7}" for number in range(len(pairs))]
    results = emotion_results(pairs, speakers)
    shuffled = shuffler.sample(results, len(results))
    assert task_metrics(EMOTION, results) == task_metrics(EMOTION, shuffled)
    assert ua_interval(results) == ua_interval(shuffled)


number = st.floats(-5, 5).map(lambda value: round(value, 3))


@given(st.lists(st.tuples(st.tuples(number, number), st.tuples(number, number)), min_size=1), st.randoms())
def test_regression_does_not_depend_on_order(pairs: list[tuple], shuffler: random.Random) -> None:
    results = affect_results(pairs)
    assert task_metrics(AFFECT, results) == task_metrics(AFFECT, shuffler.sample(results, len(results)))


def test_no_label_no_metrics() -> None:
    assert task_metrics(EMOTION, emotion_results([(None, "anger")])) is None
    assert task_metrics(ASR, text_results([(None, "a"), (" ", "a")])) is None
    assert task_metrics(AFFECT, affect_results([((None, None), (0.0, 0.0)), (None, (0.0, 0.0))])) is None
    assert task_metrics(ASR, emotion_results([("anger", "anger")])) is None


def test_loss_that_is_not_finite_names_the_utterance() -> None:
    broken = utterance(7, "asr", TaskResult(reference="a", prediction="a", probabilities=None, loss=math.inf))
    with pytest.raises(TrainingError, match=r"task 'asr' must be finite, got inf on made/0007"):
        task_metrics(ASR, [broken])


# ---------------------------------------------------------------- interval


@pytest.mark.parametrize("num_speakers", [5, 6, 10, 20])
@pytest.mark.parametrize("world", WORLDS)
def test_interval_holds_the_true_ua_as_often_as_it_says(world: str, num_speakers: int) -> None:
    # Over many draws 0.92 to 1 (docs/results.md); resampling speakers gives 0.77 to 0.88 for five and for six.
    assert coverage(WORLDS[world], num_speakers, 500) >= 0.91


def test_interval_of_even_speakers_is_students_over_their_ua() -> None:
    right = {"s0": 9, "s1": 5, "s2": 8, "s3": 6, "s4": 10, "s5": 7}
    pairs = [
        (label, label if row < count else "sadness")
        for count in right.values()
        for row in range(10)
        for label in LABELS[:2]
    ]
    speakers = [speaker for speaker in right for _ in range(20)]
    bounds, reason = ua_interval(emotion_results(pairs, speakers))
    assert reason is None
    values = np.array(list(right.values())) / 10
    assert bounds == pytest.approx(stats.t.interval(0.95, 5, values.mean(), stats.sem(values)))


def test_interval_of_perfect_predictions_is_no_certainty() -> None:
    lower_bounds = []
    for count in (6, 60):
        pairs = [(label, label) for label in LABELS for _ in range(count)]
        results = emotion_results(pairs, [f"speaker{number % 6}" for number in range(len(pairs))])
        bounds, _ = ua_interval(results)
        assert bounds is not None and bounds[1] == 1.0
        lower_bounds.append(bounds[0])
    assert 0.8 < lower_bounds[0] < 0.95 < lower_bounds[1] < 1


def test_interval_depends_on_the_speakers() -> None:
    # Two speakers of eight are always wrong.
    pairs = [
        ("anger" if row < 4 else "neutral", "anger" if row < 4 else "neutral") for row in range(8) for _ in range(50)
    ]
    pairs = [(true, "sadness") if row // 50 in (0, 4) else (true, said) for row, (true, said) in enumerate(pairs)]
    by_speaker, reason = ua_interval(emotion_results(pairs, [f"speaker{row // 50}" for row in range(400)]))
    assert reason is None and by_speaker is not None
    assert 0.2 <= by_speaker[0] <= 0.5 and by_speaker[1] == 1.0
    # Were utterances independent (each its own speaker), the interval would be many times narrower.
    by_utterance, _ = ua_interval(emotion_results(pairs, [f"speaker{row}" for row in range(400)]))
    assert by_utterance is not None
    assert 0.70 < by_utterance[0] < 0.75 < by_utterance[1] < 0.80


@given(label_pairs)
def test_interval_holds_the_ua_and_lies_between_zero_and_one(pairs: list[tuple[str, str]]) -> None:
    results = emotion_results(pairs, [f"s{row % 6}" for row in range(len(pairs))])
    bounds, reason = ua_interval(results)
    assert (bounds is None) == (reason is not None)
    if bounds is not None:
        metrics = task_metrics(EMOTION, results)
        assert metrics is not None
        assert 0 <= bounds[0] <= metrics["ua"] + 1e-12 and metrics["ua"] - 1e-12 <= bounds[1] <= 1


def test_interval_needs_five_known_speakers_and_two_of_each_class() -> None:
    pairs = [("anger", "anger")] * 8
    four = emotion_results(pairs, [f"speaker{row % 4}" for row in range(8)])
    assert ua_interval(four) == (None, "it needs at least 5 speakers, there are 4")
    some = emotion_results(pairs, [None, None, *(f"speaker{row}" for row in range(6))])
    assert ua_interval(some) == (None, "2 of 8 utterances have no speaker")
    pairs = [*pairs, ("sadness", "anger"), ("sadness", "anger")]
    one = emotion_results(pairs, [*(f"speaker{row}" for row in range(8)), "speaker1", "speaker1"])
    assert ua_interval(one) == (None, "only one speaker has utterances of sadness")


# ---------------------------------------------------------------- ctc


words = st.text(alphabet="abÄß ", min_size=1).filter(str.strip)


@given(st.lists(words, min_size=1, max_size=10))
def test_equal_text_has_no_errors(texts: list[str]) -> None:
    metrics = task_metrics(ASR, text_results([(text, f" {text.upper()} ") for text in texts]))
    assert metrics is not None
    assert metrics["wer"] == metrics["cer"] == 0


def test_error_rates_are_of_the_whole_set() -> None:
    metrics = task_metrics(ASR, text_results([("one two three", "one two tree"), ("Four", ""), (None, "x"), ("", "y")]))
    assert metrics is not None
    assert metrics["num_utterances"] == 2
    assert metrics["wer"] == pytest.approx(2 / 4)
    assert metrics["cer"] == pytest.approx((1 + 4) / (13 + 4))


# ---------------------------------------------------------------- regression


def test_concordance_by_hand() -> None:
    # Means 2 and 3, variances 2/3, covariance 2/3: CCC = (4/3) / (4/3 + 1).
    pairs = [((1.0, None), (2.0, 9.0)), ((2.0, None), (3.0, 9.0)), ((3.0, 5.0), (4.0, 6.0))]
    metrics = task_metrics(AFFECT, affect_results([*pairs, (None, (0.0, 0.0))]))
    assert metrics is not None
    assert metrics["ccc_by_field"] == {"valence": pytest.approx(4 / 7), "arousal": None}
    assert metrics["ccc"] == pytest.approx(4 / 7)
    assert metrics["ccc_reason"] == "fewer than two different reference values in arousal"
    assert metrics["mse"] == pytest.approx(1.0)
    assert metrics["num_utterances"] == 3


def test_concordance_of_equal_and_of_constant_predictions() -> None:
    truth = [(0.1 * row, -0.2 * row) for row in range(5)]
    perfect = task_metrics(AFFECT, affect_results([(pair, pair) for pair in truth]))
    constant = task_metrics(AFFECT, affect_results([(pair, (0.3, 0.3)) for pair in truth]))
    assert perfect is not None and constant is not None
    assert perfect["ccc"] == pytest.approx(1.0) and perfect["mse"] == 0
    assert constant["ccc"] == pytest.approx(0.0)
    assert "ccc_reason" not in perfect


# ---------------------------------------------------------------- choosing


def test_weighted_loss_counts_weighted_tasks_with_labels() -> None:
    results = emotion_results([("anger", "anger"), (None, "anger")])
    measured = evaluate_results([EMOTION, ASR], results, weights={"emotion": 3.0, "asr": 1.0})
    assert measured["loss"] == 1.5
    assert list(measured["tasks"]) == ["emotion"]
    assert evaluate_results([EMOTION], results, weights=None)["loss"] is None
    assert evaluate_results([EMOTION], results, weights={"emotion": 0.0})["loss"] is None


@pytest.mark.parametrize(
    ("select", "value", "higher"),
    [("loss", 1.5, False), ("emotion.ua", 1.0, True), ("emotion.wa", 1.0, True), ("emotion.loss", 0.5, False)],
)
def test_selected_value(select: str, value: float, higher: bool) -> None:
    measured = evaluate_results([EMOTION], emotion_results([("anger", "anger")]), weights={"emotion": 3.0})
    assert selected_value(measured, select) == (value, higher)


def test_error_rates_are_better_when_low() -> None:
    measured = evaluate_results([ASR], text_results([("ab", "a")]), weights={"asr": 1.0})
    assert selected_value(measured, "asr.cer") == (0.5, False)
    assert selected_value(measured, "asr.wer") == (1.0, False)


@pytest.mark.parametrize("select", ["emotion.cer", "gender.ua", "ua", "emotion.confusion"])
def test_unknown_selection_names_what_there_is(select: str) -> None:
    measured = evaluate_results([EMOTION], emotion_results([("anger", "anger")]), weights={"emotion": 1.0})
    message = rf"yields \(loss, emotion\.wa, emotion\.ua, emotion\.macro_f1, emotion\.loss\), got '{select}'"
    with pytest.raises(ConfigError, match=message):
        selected_value(measured, select)


def test_selection_of_an_undefined_number_is_refused() -> None:
    measured = evaluate_results([AFFECT], affect_results([((1.0, 1.0), (1.0, 1.0))]), weights={"affect": 1.0})
    with pytest.raises(ConfigError, match=r"yields \(loss, affect\.mse, affect\.loss\), got 'affect\.ccc'"):
        selected_value(measured, "affect.ccc")
