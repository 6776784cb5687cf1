"""Emotion inventories in a fixed order, and each corpus's own words mapped to them.

Class order comes from here, never from the data, so that two runs and two corpora agree on what column 2 means.
"""

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
"""Every emotion word used in shards, alphabetical."""

FOUR_EMOTIONS = ("anger", "happiness", "neutral", "sadness")
GENDERS = ("female", "male")
STYLES = ("improvised", "scripted")
AGE_GROUPS = ("child", "teen", "twenties", "thirties", "forties", "fifties", "senior")
AGE_GROUP_BOUNDS_YEARS = (13, 20, 30, 40, 50, 60)
"""Upper bounds (exclusive) of all age groups but the last."""

_SYNONYMS = {
    "angry": "anger",
    "ang": "anger",
    "bored": "boredom",
    "disgusted": "disgust",
    "excited": "excitement",
    "exc": "excitement",
    "fearful": "fear",
    "frustrated": "frustration",
    "happy": "happiness",
    "hap": "happiness",
    "joy": "happiness",
    "neu": "neutral",
    "sad": "sadness",
    "surprised": "surprise",
}


def canonical_emotion(word: str) -> str:
    """Return the inventory's word for `word` (case-insensitive, common synonyms understood).

    Raises:
        CorpusError: if the word is in no inventory.
    """
    lowered = word.strip().lower()
    emotion = _SYNONYMS.get(lowered, lowered)
    if emotion not in EMOTIONS:
        raise CorpusError(f"emotion must be one of {', '.join(EMOTIONS)}, got {word!r}")
    return emotion


def canonical_gender(word: str) -> str:
    """Return `female` or `male` for the usual spellings; any other word lower-cased.

    Raises:
        CorpusError: if the word is blank.
    """
    lowered = word.strip().lower()
    if not lowered:
        raise CorpusError("gender must not be blank; leave it out where it is unknown")
    return {"f": "female", "m": "male", "w": "female", "woman": "female", "man": "male"}.get(lowered, lowered)


def age_group(age_years: float) -> str:
    """Return the age group of `AGE_GROUPS` that `age_years` falls into."""
    for group, bound in zip(AGE_GROUPS, AGE_GROUP_BOUNDS_YEARS, strict=False):
        if age_years < bound:
            return group
    return AGE_GROUPS[-1]
