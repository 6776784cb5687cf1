"""Words of others in Markdown: read as it is by a program that makes HTML of it, they are the same words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaser.markdown import code, plain, table

MARKED = "|<>`\\[]*~&#!:/.@w()_=-+"
words = st.text(st.sampled_from(MARKED + "ab1 \n\x1b\u202e")) | st.text()


def read(text: str) -> str:
    """Return what CommonMark reads of a text in which nothing but backslashes has a meaning."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


@given(words)
def test_a_line_of_plain_words_says_the_same_and_marks_nothing(text):
    line = plain(text)
    unescaped = re.sub(r"\\.", "", line)
    assert not re.search(r"[|<>`\[\]*~]|&[#\w]", unescaped)
    assert line.isprintable() or not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u202e]", line)
    assert read(line) == read(plain(read(line)))


@pytest.mark.parametrize(
    "address",
    [
        "http://evil.example/",
        "HTTPS://evil.example",
        "ftp://e",
        "www.evil.example",
        "WWW.e",
        "a@evil.example",
        "x.y+z@e",
    ],
)
def test_addresses_are_no_links(address):
    line = plain(f"said {address} so")
    assert read(line) == f"said {address} so"
    assert not re.search(r"\w://|www\.|[\w+]@", line, re.IGNORECASE)


@given(st.lists(st.lists(words, min_size=2, max_size=2), max_size=4))
def test_a_table_has_as_many_cells_in_every_line(rows):
    for line in table(["one", "two"], rows):
        assert len(re.sub(r"\\.", "", line).split("|")) == 4


@given(words)
def test_code_ends_where_it_ends(text):
    line = code(text)
    fence = re.match("`+", line)[0]
    assert line.endswith(fence)
    assert fence not in re.findall("`+", line[len(fence) : -len(fence)])
