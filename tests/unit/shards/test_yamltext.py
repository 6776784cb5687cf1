import math
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shards.shown import shown
from shards.yamltext import MAX_REPEATED, YamlTextError, dump_yaml, parse_yaml

SIGNS = "ab01.:~-+_eExoXnN \n\t[]{}&*!'\"#,<=|>%@`\\\u00e9\u202e\x85\ufeff\U0001f600"
TEXTS = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.text(SIGNS, max_size=9)
    | st.sampled_from(
        ["010", "0o10", "0x1F", "1e5", "1:30", "1_0", "no", "Null", "~", "", "2020-01-01", ".inf", "<<", "="]
    )
)
SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


@given(VALUES)
def test_what_is_written_is_read_back_equal(value):
    assert parse_yaml(dump_yaml(value)) == value


@given(TEXTS)
def test_nothing_that_a_terminal_obeys_is_written(text):
    assert all(shown(line) == line for line in dump_yaml({"a": text}).split("\n"))


@given(st.text(SIGNS, max_size=40), st.sampled_from(["core", "words", "1.1"]))
def test_any_text_is_a_value_or_one_sentence(text, kind):
    try:
        parse_yaml(text, kind)
    except YamlTextError as error:
        assert shown(str(error)) == str(error)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("1e-5", 1e-5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1:30", "1:30"),
        ("12:00:00", "12:00:00"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("no", "no"),
        ("On", "On"),
        ("y", "y"),
        ("True", True),
        ("2020-01-01", "2020-01-01"),
        ("~", None),
        ("", None),
        ("-.INF", -math.inf),
        ("!!str 12", "12"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ("\ufeff7", 7),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def test_as_words_everything_is_text_and_as_yaml_1_1_what_others_write():
    text = "a: 010\nb: no\nc: ~\nd: 1990-01-01"
    assert parse_yaml(text, "words") == {"a": "010", "b": "no", "c": "~", "d": "1990-01-01"}
    assert parse_yaml(text, "1.1") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: a stands there twice, first in line 1"),
        ("x:\n- y: {1: a,\n  01: b}", "line 3: 01 stands there twice, first in line 2"),
        ("a: &b {x: 1}\nc:\n  <<: *b\n  <<: *b", "line 4: << stands there twice, first in line 3"),
        ("a: &x [*x]", "line 1: what is called 'x' holds itself"),
        ("a:\n" + "[" * 65, "line 2: it is deeper than 64"),
        ("a: &x " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 40 + "*x" + "]" * 40, "line 2: it is deeper than 64"),
        ("---\na: 1\n---\nb: 2", "line 3: a second document begins"),
        (
            "a: 1\nb: !!python/object/apply:os.system [ls]",
            "line 2: the tag !!python/object/apply:os",
        ),
        ("a: !!binary YQ==", "line 1: the tag !!binary is not read"),
        ("a: !!int x", "line 1: 'x' cannot be read"),
        ("a: !!bool yes", "line 1: 'yes' cannot be read"),
        ("a: 1\nb: \x1b[2J", "line 2: it holds U+001B"),
        ('a: "\\ud800"', "line 1: it holds half a character"),
        ("a:\n\t- 1", "line 2: while scanning"),
        ("? [1, 2]\n: 3", "line 1: a name must be a text or a number"),
        ("a: *x", "line 1: found undefined alias"),
        (f"a: {'9' * 101}", "a number of 101 digits is too long"),
        (f"a: 0x{'9' * 5000}", "a number of 5002 digits is too long"),
        (f"a: 0x{'f' * 98}", "a number of more than 100 digits is too long"),
        (b"a: \xff", "byte 3 is not UTF-8"),
    ],
)
def test_what_is_refused_names_its_line(text, words):
    with pytest.raises(YamlTextError) as caught:
        parse_yaml(text)
    assert words in str(caught.value)


def test_mappings_may_be_merged_and_changed():
    text = "a: &b {x: 1, y: 1}\nc: {<<: *b, x: 2}\nd: {<<: [*b, {z: 3}]}"
    assert parse_yaml(text) == {"a": {"x": 1, "y": 1}, "c": {"x": 2, "y": 1}, "d": {"x": 1, "y": 1, "z": 3}}


@given(st.integers(2, 12), st.integers(2, 40), st.booleans(), st.sampled_from(["core", "words", "1.1"]))
def test_aliases_repeat_up_to_a_bound(num_levels, width, as_mapping, kind):
    lines, size, repeated = [f"a0: &a0 [{', '.join('x' * width)}]"], width + 1, 0
    for level in range(1, num_levels):
        aliases = [f"*a{level - 1}"] * width
        inside = ", ".join(f"k{i}: {alias}" for i, alias in enumerate(aliases)) if as_mapping else ", ".join(aliases)
        lines.append(f"a{level}: &a{level} " + (f"{{{inside}}}" if as_mapping else f"[{inside}]"))
        repeated += width * size
        size = 1 + width * size + width * as_mapping
    started = time.monotonic()
    if repeated <= MAX_REPEATED:
        assert parse_yaml("\n".join(lines), kind)
    else:
        with pytest.raises(YamlTextError, match=rf"line \d+: aliases .* repeat more than {MAX_REPEATED}"):
            parse_yaml("\n".join(lines), kind)
    assert time.monotonic() - started < 5


def test_the_number_of_values_is_bounded(monkeypatch):
    monkeypatch.setattr("shards.yamltext.MAX_NODES", 100)
    assert len(parse_yaml("[x" + ",x" * 98 + "]")) == 99
    with pytest.raises(YamlTextError, match="more than 100 names and values"):
        parse_yaml("[x" + ",x" * 99 + "]")
