"""What WER and CER compare."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaser.tasks.text import fold_text, lacks_word_boundaries, score_text, score_words


@pytest.mark.parametrize(
    ("text", "compared"),
    [
        ("Ja, nein!", "ja nein"),
        ("  two\tblanks\u00a0here ", "two blanks here"),
        ("Don\u2019t  'quote' rock'n'roll, the dogs' \u02bctis", "don't quote rock'n'roll the dogs tis"),
        ("well-known \u2014 and/or", "well known and or"),
        ("STRASSE Stra\u00dfe", "strasse strasse"),
        ("u\u0308ber \ufb01n \uff21\uff22", "\u00fcber fin ab"),
        ("co\u00adoperate \u200bnow", "cooperate now"),
        ("5 % of $3", "5 of $3"),
        ("...", ""),
        ("\u4f60\u597d\uff0c \u4e16\u754c\u3002", "\u4f60\u597d\u4e16\u754c"),
        ("what \ufffd is", "what \ufffd is"),
    ],
)
def test_normalisation(text, compared):
    assert score_text(text) == compared


@given(st.text())
def test_what_ctc_learns_compares_like_the_transcript(text):
    assert score_text(fold_text(text)) == score_text(text)


@given(st.text())
def test_words_are_the_text_but_for_blanks(text):
    assert score_words(text).replace(" ", "") == score_text(text).replace(" ", "")
    assert bool(score_words(text)) == bool(score_text(text))


@given(st.text(alphabet="ab c'"))
def test_words_of_other_scripts_are_those_between_blanks(text):
    assert score_words(text) == score_text(text)
    assert not lacks_word_boundaries(text)


def test_scripts_without_blanks_between_words_count_characters():
    assert score_words("\u4f60\u597dok\u4e16 \u754c") == "\u4f60 \u597d ok \u4e16 \u754c"
    # Vowel signs and tone marks stay with their consonant.
    assert score_words("\u0e17\u0e35\u0e48") == "\u0e17\u0e35\u0e48"
    assert lacks_word_boundaries("ok \u3053\u3093\u306b\u3061\u306f")
    assert not lacks_word_boundaries("\uc548\ub155 \ud558\uc138\uc694")
