import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.jsontext import MAX_DEPTH, MAX_DIGITS, JsonTextError, dump_json, parse_json
from shards.shown import shown

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(_values, st.booleans())
def test_what_is_json_is_read_as_json_reads_it(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "it names c twice"),
        ('{"\x7f\\u001b[2J": 1, "\x7f\\u001b[2J": 2}', r"it names \\x7f\\x1b\[2J twice"),
        ("[" * 100_000, "deeper than 64"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "deeper than 64"),
        ("[NaN]", "NaN"),
        ("-Infinity", "-Infinity"),
        ("1e999", "1e999"),
        ("1" * (MAX_DIGITS + 1), "101 digits"),
        ("9" * 1_000_000, "1000000 digits"),
        ('["\\udc00"]', "half a character"),
        ('{"\\ud800": 1}', "half a character"),
        ('["\ud800"]', "half a character"),
        (b'"\xff"', "byte 1 is not UTF-8"),
        ("[] []", "Extra data"),
    ],
)
def test_what_is_refused_says_why(text, words):
    with pytest.raises(JsonTextError, match=words):
        parse_json(text)


def test_brackets_in_strings_are_no_depth():
    text = json.dumps(["[{" * 100, '\\"[[' * 100])
    assert parse_json(text) == json.loads(text)
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)


def test_nan_is_read_only_where_it_is_asked_for():
    assert str(parse_json("[NaN]", allow_nan=True)) == "[nan]"
    with pytest.raises(JsonTextError, match="Infinity"):
        parse_json("[Infinity]", allow_nan=True)


@given(_values)
def test_what_is_written_reads_back_and_holds_nothing_that_a_terminal_obeys(value):
    text = dump_json(value)
    assert json.loads(text) == value
    assert shown(text) == text
    assert json.loads(dump_json(value, indent=1, sort_keys=True)) == value


def test_numbers_that_are_not_finite_are_not_written():
    with pytest.raises(ValueError, match="Out of range"):
        dump_json({"a": float("nan")})
