import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import index_of
from tones import Tone, pack_items, tone, utterance

from shards.errors import FilterError
from shards.filter import select_rows
from shards.indexload import load_index
from shards.schema import SourceUtterance


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    extras = ({"rating": 3}, {"rating": "high"}, {"clean": True})
    items = [
        SourceUtterance(utterance(f"x{number}", extra=extra), Tone(900 + number)) for number, extra in enumerate(extras)
    ]
    pack_items([*(tone(number) for number in range(12)), *items], folder)
    return load_index([folder])


def _keys(index, expression):
    selected = select_rows(index, expression)
    assert selected.shape == (len(index),)
    assert selected.dtype == bool
    return [key.removeprefix("tones/") for key, is_in in zip(index.values("key"), selected, strict=True) if is_in]


def _tones(*numbers):
    return [f"u{number:03d}" for number in numbers]


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, "1e400", "0x" + "f" * 300])
@pytest.mark.parametrize("form", ["duration_s < {}", "{} != age", "age in [1, {}]", "extra.rating == {}"])
def test_numbers_beyond_all_floats(index, form, number):
    with pytest.raises(FilterError, match=r"a filter compares with numbers up to 1\.8e"):
        select_rows(index, form.format(number))


@pytest.mark.parametrize("part", ["(duration_s)", "emotion and ", 'emotion == "', "not ", "1 < ", "x" * 99, "{1: 2}, "])
def test_a_long_filter_is_refused_in_few_words(index, part):
    with pytest.raises(FilterError) as refused:
        select_rows(index, part * 20_000)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("expression", "numbers"),
    [
        ('emotion == "anger"', (0, 2, 4, 6, 8, 10)),
        ("emotion in ['anger', 'fear'] and duration_s < 0.085", (0, 2)),
        ('gender in ("female",)', (0, 3, 6, 9)),
        ('gender not in ["female"]', (1, 4, 7, 10)),
        ('gender != "female"', (1, 4, 7, 10)),
        ("gender is None and speaker is not None", (2, 5, 8, 11)),
        ("gender == None and emotion != None", (2, 5, 8, 11)),
        ('speaker == "tones:s3"', (3, 7, 11)),
        ("22 < age <= 24.5", (3, 4)),
        ("24 >= age and age > -1", (0, 1, 2, 3, 4)),
        ('age_group == "thirties"', (10, 11)),
        ('extra.take == "a" and not (split == "train" or split == "dev")', (2, 8)),
        ('extra.take < "b"', (0, 2, 4, 6, 8, 10)),
        ('"tones/u003" == key', (3,)),
        ("age in [20, 31.0]", (0, 11)),
        (' \n corpus == "tones" and age == 20', (0,)),
        ("emotion in []", ()),
    ],
)
def test_expressions_select_what_they_say(index, expression, numbers):
    assert _keys(index, expression) == _tones(*numbers)


def test_a_field_may_be_compared_with_a_field(index):
    assert _keys(index, "age > duration_s") == _tones(*range(12))
    assert _keys(index, "key == source") == []


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("extra.snr > 9", [0, 3]),
        ("2 <= extra.snr < 10", [1]),
        ("extra.snr in [2.5, 10]", [0, 1]),
        ("extra.snr not in [10]", [1, 3]),
        ("extra.snr < extra.limit", [1]),
        ("extra.snr < duration_s", []),
        ('extra.snr == "10"', [0]),
        ("extra.big == 9007199254740993", [0]),
        ("extra.snr is None", [4]),
    ],
)
def test_a_column_of_text_is_compared_as_numbers_where_all_are_some(expression, rows):
    cells = [("10", "9"), ("2,5", "30"), ("NA", "1"), ("1e2", "7")]
    extras = [
        {"snr": snr, "limit": limit, "big": f"900719925474099{3 - row}"} for row, (snr, limit) in enumerate(cells)
    ]
    index = replace(index_of(extra=[json.dumps(extra) for extra in (*extras, {})]), extra_names=("snr", "limit", "big"))
    assert np.flatnonzero(select_rows(index, expression)).tolist() == rows


def test_a_value_that_is_no_number_is_named():
    index = replace(index_of(extra=['{"snr": "10"}', '{"snr": "loud"}']), extra_names=("snr",))
    with pytest.raises(
        FilterError, match=r"`extra\.snr` is text and `9` is a number; extra\.snr has 'loud', which is no"
    ):
        select_rows(index, "extra.snr > 9")
    with pytest.raises(FilterError, match=r"extra\.snr must be numbers, but one of its values is 'loud'"):
        index.numbers("extra.snr")
    assert index.take([0]).numbers("extra.snr").tolist() == [10.0]
    for name in ("emotion", "age_group"):
        with pytest.raises(FilterError, match=f"{name} must be a field of numbers"):
            index.numbers(name)


def test_absent_values_fail_every_comparison_but_not_its_negation(index):
    absent = ["x0", "x1", "x2"]
    for comparison in ("age < 99", "age >= 0", "age != 5", "age in [5]", "age not in [5]"):
        assert not set(_keys(index, comparison)) & set(absent)
    assert _keys(index, "not age < 99") == absent


def test_values_of_mixed_kinds_are_compared_with_their_like(index):
    assert _keys(index, "extra.rating >= 3") == ["x0"]
    assert _keys(index, 'extra.rating == "high"') == ["x1"]
    assert _keys(index, 'extra.rating != "low"') == ["x1"]
    assert _keys(index, "extra.clean == True") == ["x2"]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "filter must be an expression, but ''"),
        ("emotion ==", "'emotion ==' has invalid syntax"),
        ("emotion = 'anger'", "has .*invalid syntax"),
        ("emotion == 'anger'; 1", "invalid syntax"),
        ("emotion", "must consist of comparisons, got `emotion`"),
        ("emotoin == 'anger'", r"must be one of key, .*duration_s.*extra\.take.*; got 'emotoin'"),
        ("extra.tkae == 'a'", r"got 'extra\.tkae'"),
        ("emotion.upper == 'A'", r"must name a field, got `emotion\.upper`"),
        ("extra.take.real == 'A'", r"got `extra\.take\.real`"),
        ("len(emotion) == 5", r"got `len\(emotion\)`"),
        ("__import__('os').system('false') == 0", r"must name a field, got `__import__\('os'\)"),
        ("emotion == __import__('os')", r"got `__import__\('os'\)`"),
        ("emotion in __builtins__", "must be followed by a list of values, got `__builtins__`"),
        ("'a' in emotion", "need a field on the left, got `'a'`"),
        ("emotion in 'anger'", "must be followed by a list of values, got `'anger'`"),
        ("emotion in ['anger', None]", "text or numbers, got `None`"),
        ("emotion in [gender]", "text or numbers, got `gender`"),
        ("duration_s < '3'", "`duration_s` is a number and `'3'` is text"),
        ("3 < emotion", "`3` is a number and `emotion` is text"),
        ("age in ['old']", "`age` is a number and `'old'` is text"),
        ("emotion == duration_s", "`emotion` is text and `duration_s` is a number"),
        ("extra.take == 3", r"`extra\.take` is text and `3` is a number"),
        ("emotion is 'anger'", "`is` must be followed by None, got `'anger'`"),
        ("age < None", "None has no order, .* compares `age`"),
        ("1 < 2", "each comparison must name a field, got `1` and `2`"),
        ("age + 1 < 30", r"must name a field, got `age \+ 1`"),
        ("[x for x in y] == 3", "got `"),
        ("(lambda: 1) == 3", "got `"),
        ("emotion == b'anger'", "got `b'anger'`"),
        ("emotion == f'{key}'", "got `f"),
        ("not " * 5_000 + "age < 3", "filter must be"),
        ("(" * 500 + "age < 3" + ")" * 500, "filter must be"),
        ("age < 3\0", "filter must be"),
    ],
)
def test_anything_else_is_refused_with_the_offending_part(index, expression, message):
    with pytest.raises(FilterError, match=message):
        select_rows(index, expression)


# An expression and what it must mean, as a function of one row's (emotion, gender, age).
def _emotion_is(word):
    return f"emotion == {word!r}", lambda emotion, gender, age: emotion == word


def _gender_in(words):
    return f"gender in {words!r}", lambda emotion, gender, age: gender in words


def _age_below(bound):
    return f"age < {bound!r}", lambda emotion, gender, age: age is not None and age < bound


leaves = st.one_of(
    st.sampled_from(["anger", "neutral", "fear"]).map(_emotion_is),
    st.lists(st.sampled_from(["female", "male", "other"]), max_size=3).map(_gender_in),
    st.floats(-10, 40, allow_nan=False).map(_age_below),
)


def _combine(children):
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(lambda p: (f"({p[0][0]} and {p[1][0]})", lambda *row: p[0][1](*row) and p[1][1](*row))),
        pairs.map(lambda p: (f"({p[0][0]} or {p[1][0]})", lambda *row: p[0][1](*row) or p[1][1](*row))),
        children.map(lambda c: (f"(not {c[0]})", lambda *row: not c[1](*row))),
    )


@given(st.recursive(leaves, _combine, max_leaves=8))
def test_combinations_mean_what_they_mean_row_by_row(index, case):
    expression, meaning = case
    rows = zip(index.values("emotion"), index.values("gender"), index.values("age"), strict=True)
    assert select_rows(index, expression).tolist() == [meaning(*row) for row in rows]


@given(st.text(max_size=40))
def test_any_text_selects_or_is_refused(index, text):
    try:
        selected = select_rows(index, text)
    except FilterError:
        return
    assert selected.shape == (len(index),)
