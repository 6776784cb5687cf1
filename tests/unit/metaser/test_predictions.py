"""predictions.csv: every row as wide as the header, and the same values when read back."""

from __future__ import annotations

import csv
import io
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaser.errors import RunError
from metaser.eval.predictions import predictions_csv, read_predictions
from metaser.tasks.classification import ClassificationTask
from metaser.tasks.ctc import CtcTask
from metaser.tasks.regression import RegressionTask
from metaser.tasks.results import TaskResult, UtteranceResult
from metaser.tasks.spec import TaskSpec
from shards.shown import shown

LABELS = ("anger", 'quo"ted, label', "n\u00e9\rutral", "=1+1\x1b")
TASKS = (
    ClassificationTask(kind="classification", name="emotion", labels=LABELS),
    CtcTask(kind="ctc"),
    RegressionTask(kind="regression", fields=("valence", "arousal")),
)
SPECS = (
    TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=LABELS),
    TaskSpec(name="asr", kind="ctc", fields=("text",), labels=("<blank>", "<unk>", "a")),
    TaskSpec(name="affect", kind="regression", fields=("valence", "arousal"), labels=("valence", "arousal")),
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
HOSTILE = [
    *('=HYPERLINK("http://e")', "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", "'=1", "''@", "-", "'quoted", "-5", "1e5"),
    *("\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20A1", "'\uff1d1"),
    *("\x1b[2J", "a\x9bb", "\u202ea", "a\nb", "\\x1b", "\\", "\\\\x1b\x1b", "C:\\new", "\\u202e", "a|b", "=\x1b"),
]
words = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    | st.sampled_from(["a\rb", '"', ",", "\n", *HOSTILE])
    | st.text("=+-@'\t\r\n\\x1b\x1b\u202eu0", min_size=1)
)
label = st.sampled_from(LABELS)


def is_number(cell):
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return cell == ""


def answers(
    reference: st.SearchStrategy, prediction: st.SearchStrategy, shares: st.SearchStrategy
) -> st.SearchStrategy:
    return st.none() | st.builds(TaskResult, reference, prediction, shares, st.none())


shares = st.tuples(*[st.floats(0.001, 1)] * len(LABELS)).map(lambda some: tuple(share / sum(some) for share in some))
pairs = st.tuples(numbers | st.none(), numbers | st.none()).map(lambda pair: None if pair == (None, None) else pair)
utterances = st.builds(
    lambda speaker, gender, duration_s, emotion, asr, affect: UtteranceResult(
        "",
        "made",
        speaker,
        {"gender": gender, "corpus": "made"},
        duration_s,
        {name: task for name, task in (("emotion", emotion), ("asr", asr), ("affect", affect)) if task is not None},
    ),
    st.none() | words,
    st.none() | words,
    st.floats(0, 1e4),
    answers(st.none() | label, label, st.none() | shares),
    answers(st.none() | words, words, st.none()),
    answers(pairs, st.tuples(numbers, numbers), st.none()),
)


@settings(max_examples=25)
@given(st.lists(utterances, max_size=6))
def test_every_row_is_as_wide_as_the_header_and_reads_back(tmp_path_factory, made):
    results = [
        UtteranceResult(f"made/{number}", one.corpus, one.speaker, one.groups, one.duration_s, one.tasks)
        for number, one in enumerate(made)
    ]
    text = predictions_csv(results[::-1], SPECS)
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert len(rows) == len(results)
    assert {len(row) for row in rows} <= {len(header)}
    path = tmp_path_factory.mktemp("csv") / "predictions.csv"
    path.write_bytes(text.encode())
    specs, found = read_predictions(path, TASKS)
    answered = [spec for spec in SPECS if any(spec.name in result.tasks for result in results)]
    assert [(spec.name, spec.fields) for spec in specs] == [(spec.name, spec.fields) for spec in answered]
    for cell in (cell for row in rows for cell in row):
        assert cell[:1] not in "=+-@\t\r\uff1d\uff0b\uff0d\uff20" or is_number(cell)
        assert all(shown(part) == part for part in re.split("[\t\r\n]", cell))
    if not any(result.groups["gender"] for result in results):
        assert all(result.groups.get("gender") is None for result in found)
    assert found == results


def test_files_without_groups_and_durations_are_of_earlier_versions(tmp_path):
    path = tmp_path / "predictions.csv"
    shares = ",".join(f"emotion.probability.{name}" for name in ("anger", "fear"))
    head = f"key,corpus,speaker,emotion.reference,emotion.prediction,{shares}"
    path.write_text(f"{head}\na/1,a,,anger,fear,0.25,0.75\na/2,a,a:1,,,,\n")
    specs, (first, second) = read_predictions(path, TASKS)
    assert [(spec.name, spec.labels) for spec in specs] == [("emotion", ("anger", "fear"))]
    assert first.tasks == {"emotion": TaskResult("anger", "fear", (0.25, 0.75), None)}
    assert (first.speaker, second.speaker, second.tasks, first.groups) == (None, "a:1", {}, {"corpus": "a"})


@pytest.mark.parametrize("row", ["a/1,a", "a/1,a,,anger,fear,more", 'a/1,a,,"anger,fear'])
def test_ragged_or_cut_files_are_damaged(tmp_path, row):
    path = tmp_path / "predictions.csv"
    path.write_text(f"key,corpus,speaker,emotion.reference,emotion.prediction\n{row}")
    with pytest.raises(RunError, match=r"predictions\.csv is damaged"):
        read_predictions(path, TASKS)


def test_long_texts_are_read_back(tmp_path):
    said = "so " * 60_000
    results = [UtteranceResult("a", "a", None, {"corpus": "a"}, 1.0, {"asr": TaskResult(said, said, None, None)})]
    path = tmp_path / "predictions.csv"
    path.write_text(predictions_csv(results, [TaskSpec(name="asr", kind="ctc", fields=("text",), labels=("text",))]))
    _, (found,) = read_predictions(path, [CtcTask(kind="ctc")])
    assert found.tasks["asr"].reference == said
