"""Transcripts: what CTC learns, and what WER and CER compare, one normalisation that every report states."""

from __future__ import annotations

import re
import unicodedata

TEXT_NORMALISATION = (
    "case-folded, Unicode NFKC, punctuation to blanks but apostrophes inside words, single blanks; in scripts without "
    "blanks between words (Chinese characters, kana, Thai, Lao, Burmese, Khmer) WER counts characters; transcripts of "
    "punctuation alone are left out"
)
"""For `protocol.text_normalisation` of a report."""

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u02b9\u2032\uff07`\u00b4", "'"))
_OUTER_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")
_UNSPACED = (
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # kana and iteration marks
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
)
_BLANK_INSIDE = re.compile(rf"(?<=[{_UNSPACED}]) (?=[{_UNSPACED}])")
_HAS_UNSPACED = re.compile(rf"[{_UNSPACED}]")


def fold_text(text: str) -> str:
    """Return `text` case-folded with single blanks: what CTC learns."""
    return " ".join(text.casefold().split())


def score_text(text: str) -> str:
    """Return what is compared of a transcript; of `fold_text(text)`, which CTC learns, it is the same."""
    folded = fold_text(unicodedata.normalize("NFKC", fold_text(text).translate(_APOSTROPHES)))
    words = " ".join(_OUTER_APOSTROPHE.sub(" ", "".join(map(_compared, folded))).split())
    # A blank there is no boundary of words.
    return _BLANK_INSIDE.sub("", words)


def _compared(char: str) -> str:
    """Return `char`, a blank for punctuation, nothing for invisible formatting; U+FFFD, an unknown one, stays."""
    category = unicodedata.category(char)
    if category == "Cf":
        return ""
    return " " if category[0] in "PZC" and char != "'" else char


def score_words(text: str) -> str:
    """Return `score_text(text)` with blanks between what WER counts as words."""
    spaced = "".join(f" {char}" if _starts_word(char) else char for char in _blank_after(score_text(text)))
    return " ".join(spaced.split())


def _starts_word(char: str) -> bool:
    # Vowel signs and tones belong to the character before.
    return bool(_HAS_UNSPACED.match(char)) and unicodedata.category(char)[0] != "M"


def _blank_after(text: str) -> str:
    """Return `text` with a blank where a script without word boundaries gives way to another."""
    return re.sub(rf"(?<=[{_UNSPACED}])(?=[^{_UNSPACED} ])", " ", text)


def lacks_word_boundaries(text: str) -> bool:
    """Return whether WER counts characters somewhere in `text`."""
    return bool(_HAS_UNSPACED.search(score_text(text)))
