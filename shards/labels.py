"""Emotion inventories in a fixed order, and each corpus's own words mapped to them.

The inventory's order never comes from the data, so that two runs and two corpora agree on what column 2 means.
"""

import re
import unicodedata

from shards.emotionwords import KNOWN_WORDS, folded
from shards.errors import CorpusError

EMOTIONS = (
    "anger",
    "boredom",
    "calm",
    "contempt",
    "disgust",
    "excitement",
    "fear",
    "frustration",
    "happiness",
    "neutral",
    "other",
    "sadness",
    "surprise",
)
"""The inventory, alphabetical. Own recordings may have any further word."""

FOUR_EMOTIONS = ("anger", "happiness", "neutral", "sadness")
GENDERS = ("female", "male")
STYLES = ("improvised", "scripted")
AGE_GROUPS = ("child", "teen", "twenties", "thirties", "forties", "fifties", "senior")
AGE_GROUP_BOUNDS_YEARS = (13, 20, 30, 40, 50, 60)
"""Upper bounds (exclusive) of all age groups but the last."""

_GENDER_WORDS = {
    "female": """
        f, w, fem, woman, frau, weiblich, femme, féminin, mujer, femenino, femmina, donna, feminino, mulher, vrouw,
        kobieta, kadın, female_feminine, 女, 女性, ж, женский, женщина, 여성, 여
    """,
    "male": """
        m, masc, man, mann, männlich, homme, masculin, hombre, masculino, maschio, uomo, homem, mężczyzna, erkek,
        male_masculine, 男, 男性, м, мужской, мужчина, 남성, 남
    """,
}
_LANGUAGE_CODE = re.compile(r"([A-Za-z]{2,3})((?:[-_][A-Za-z0-9]{1,8})*)")
_GENDERS_BY_WORD = {
    folded(word.strip()): gender for gender, words in _GENDER_WORDS.items() for word in (gender, *words.split(","))
}


def known_emotion(word: str) -> str | None:
    """Return the inventory's word for `word`, in any spelling and language that `emotionwords` has; None if in none."""
    return KNOWN_WORDS.get(folded(word))


def own_emotion(word: str) -> str:
    """Return a word that is in no inventory in its one spelling: NFC, lower case, single blanks."""
    return " ".join(unicodedata.normalize("NFC", word).lower().split())


def canonical_emotion(word: str) -> str:
    """Return the inventory's word for `word` of a corpus whose emotions are the inventory's.

    Raises:
        CorpusError: if the word is in no inventory.
    """
    emotion = known_emotion(word)
    if emotion is None:
        raise CorpusError(f"emotion must be one of {', '.join(EMOTIONS)}, got {word!r}")
    return emotion


def canonical_gender(word: str) -> str:
    """Return `female` or `male` for the usual words; any other word lower-cased.

    Raises:
        CorpusError: if the word is blank.
    """
    lowered = word.strip().lower()
    if not lowered:
        raise CorpusError("gender must not be blank; leave it out where it is unknown")
    return _GENDERS_BY_WORD.get(folded(word), lowered)


def language_code(word: str) -> str | None:
    """Return a language's code in its one spelling (`de`, `pt-BR`); None if `word` has not the form of one (BCP 47)."""
    found = _LANGUAGE_CODE.fullmatch(word.strip())
    return None if found is None else found[1].lower() + found[2].replace("_", "-")
