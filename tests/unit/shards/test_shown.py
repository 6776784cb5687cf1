import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.shown import shown


@given(st.text(st.characters(categories=None)))
def test_nothing_that_a_terminal_obeys_is_left(text):
    result = shown(text)
    assert {unicodedata.category(sign) for sign in result.translate(_JOINERS)}.isdisjoint(
        ("Cc", "Cf", "Cs", "Zl", "Zp")
    )
    assert len(result.splitlines()) <= 1
    assert result.encode().decode() == result


_JOINERS = {ord("\u200c"): None, ord("\u200d"): None}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Wut, tiefe Wut", "Wut, tiefe Wut"),
        ("\x1b[2Jred", "\\x1b[2Jred"),
        ("a\nb\r\tc\x85d", "a\\nb\\r\\tc\\x85d"),
        ("a\u2028b\u202ec\ufeff", "a\\u2028b\\u202ec\\ufeff"),
        ("\ud800", "\\ud800"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
    ],
)
def test_words_stay_and_commands_are_written_out(text, right):
    assert shown(text) == right


def test_it_is_cut_after_a_number_of_signs():
    assert shown("abcdefgh", 6) == "abc..."
    assert shown("abcdef", 6) == "abcdef"
