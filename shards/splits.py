"""Which utterances train, which choose the model, and which judge it: by speaker, or an error."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.config import LeaveOneOut, RandomSpeakers, SplitRule, StoredSplit
from shards.errors import SplitError
from shards.index import Codes, Index, duplicate_rows
from shards.schema import SPLITS

_TRAIN = SPLITS.index("train")


@dataclass(frozen=True)
class SplitAssignment:
    """The split of every utterance, and how it came about."""

    numbers: np.ndarray
    """Positions in `SPLITS`, int8, shape (num_utterances,), in the index's order."""
    protocol: dict[str, Any]
    """What a report must say: the rule per corpus and whether speakers overlap."""

    @property
    def names(self) -> np.ndarray:
        """The splits as words, shape (num_utterances,)."""
        names: np.ndarray = np.asarray(SPLITS)[self.numbers]
        return names

    def rows(self, split: str) -> np.ndarray:
        """Return the index rows of `split`, ascending.

        Raises:
            SplitError: if there is no such split.
        """
        if split not in SPLITS:
            raise SplitError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        return np.flatnonzero(self.numbers == SPLITS.index(split))


def assign_splits(index: Index, rules: Sequence[SplitRule], *, allow_speaker_overlap: bool = False) -> SplitAssignment:
    """Return the split of every utterance of `index`, corpus by corpus.

    Raises:
        SplitError: if a corpus has no rule, a rule does not fit its corpus, or two splits share a speaker and
            `allow_speaker_overlap` is false.
    """
    corpora = index.codes("corpus")
    present = list(corpora.counts())
    by_corpus = {rule.corpus: rule for rule in rules}
    absent = sorted(name for name in by_corpus if name is not None and name not in present)
    if absent:
        raise SplitError(f"data.splits names corpora {absent} that the shards do not hold; they hold {present}")

    numbers = np.full(len(index), _TRAIN, dtype=np.int8)
    for corpus in present:
        rule = by_corpus.get(corpus, by_corpus.get(None))
        if rule is None:
            raise SplitError(f"data.splits has no rule for corpus {corpus!r}; add one with `corpus: {corpus}`")
        rows = np.flatnonzero(corpora.numbers == corpora.words.index(corpus))
        numbers[rows] = _apply(rule, corpus, index.take(rows))
    splits_of = _splits_of_speakers(index.codes("speaker"), numbers)
    overlap = sorted(speaker for speaker, splits in splits_of.items() if len(splits) > 1)
    if overlap and not allow_speaker_overlap:
        raise SplitError(
            f"train, dev and test must not share speakers, but {len(overlap)} do (first: {overlap[0]!r}); change "
            "data.splits, or set data.allow_speaker_overlap to true and accept that every result says so"
        )
    protocol = {
        "splits": [rule.model_dump(mode="json") for rule in rules],
        "speaker_overlap": bool(overlap),
        "num_utterances": {split: int((numbers == number).sum()) for number, split in enumerate(SPLITS)},
        "num_speakers": {
            split: sum(number in splits for splits in splits_of.values()) for number, split in enumerate(SPLITS)
        },
    }
    return SplitAssignment(numbers, protocol)


def _apply(rule: SplitRule, corpus: str, index: Index) -> np.ndarray:
    if isinstance(rule, StoredSplit):
        return _stored(rule, corpus, index)
    field = rule.field if isinstance(rule, LeaveOneOut) else "speaker"
    groups = index.codes(field)
    num_absent = int((groups.numbers < 0).sum())
    if num_absent:
        raise SplitError(
            f"split policy {rule.policy!r} needs {field} for every utterance of corpus {corpus!r}, but "
            f"{num_absent} of {len(index)} have none; use the policy 'stored' or add the metadata"
        )
    if isinstance(rule, LeaveOneOut):
        held_out = _leave_one_out(rule, corpus, list(groups.counts()))
    else:
        held_out = _draw_speakers(rule, corpus, groups, index.codes("gender"))
    return _by_group(groups, held_out)


def _by_group(groups: Codes, split_of: Mapping[str, str]) -> np.ndarray:
    """Return the split of each row by its group; groups that are not named train."""
    return groups.lookup((SPLITS.index(split_of.get(group, "train")) for group in groups.words), _TRAIN)


def _stored(rule: StoredSplit, corpus: str, index: Index) -> np.ndarray:
    names = index.codes("split")
    num_absent = int((names.numbers < 0).sum())
    if num_absent:
        raise SplitError(
            f"split policy 'stored' needs a split for every utterance, but {num_absent} of {len(index)} of "
            f"corpus {corpus!r} have none; use leave_one_out or random_speakers in data.splits"
        )
    stored = names.lookup(map(SPLITS.index, names.words), _TRAIN)
    if "dev" in names.counts() or not rule.num_dev_speakers:
        return stored
    speakers = index.codes("speaker")
    is_training = stored == _TRAIN
    training = list(Codes(speakers.numbers[is_training], speakers.words).counts())
    if len(training) <= rule.num_dev_speakers:
        raise SplitError(
            f"num_dev_speakers must be below the number of training speakers of corpus {corpus!r} "
            f"({len(training)}), got {rule.num_dev_speakers}"
        )
    # Evenly spaced over the sorted names: corpora often sort by gender (AN4: f..., m...), and dev needs both.
    positions = np.linspace(0, len(training) - 1, rule.num_dev_speakers).round().astype(int)
    dev = _by_group(speakers, {training[position]: "dev" for position in positions})
    return np.where(dev == _TRAIN, stored, dev)


def _leave_one_out(rule: LeaveOneOut, corpus: str, groups: list[str]) -> dict[str, str]:
    if rule.fold >= len(groups):
        raise SplitError(
            f"fold must be below the number of {rule.field}s of corpus {corpus!r} ({len(groups)}), got {rule.fold}"
        )
    if rule.num_dev_groups + 1 >= len(groups):
        raise SplitError(
            f"leaving out one {rule.field} for test and {rule.num_dev_groups} for dev leaves none of the "
            f"{len(groups)} of corpus {corpus!r} to train on"
        )
    held_out = {groups[rule.fold]: "test"}
    for offset in range(1, rule.num_dev_groups + 1):
        held_out[groups[(rule.fold + offset) % len(groups)]] = "dev"
    return held_out


def _draw_speakers(rule: RandomSpeakers, corpus: str, speakers: Codes, genders: Codes) -> dict[str, str]:
    numbers, first_rows = np.unique(speakers.numbers, return_index=True)
    gender_of = {
        speakers.words[number]: "" if gender < 0 else genders.words[gender]
        for number, gender in zip(numbers.tolist(), genders.numbers[first_rows].tolist(), strict=True)
    }
    num_held_out = rule.num_test_speakers + rule.num_dev_speakers
    if num_held_out >= len(gender_of):
        raise SplitError(
            f"{rule.num_test_speakers} test and {rule.num_dev_speakers} dev speakers leave none of the "
            f"{len(gender_of)} of corpus {corpus!r} to train on"
        )
    by_gender: dict[str, list[str]] = defaultdict(list)
    for speaker in sorted(gender_of):
        by_gender[gender_of[speaker]].append(speaker)
    generator = random.Random(rule.seed)  # noqa: S311 (a repeatable draw, not a secret)
    for people in by_gender.values():
        generator.shuffle(people)
    in_turn = [
        people[position]
        for position in range(max(map(len, by_gender.values())))
        for people in by_gender.values()
        if position < len(people)
    ]
    names = ["test"] * rule.num_test_speakers + ["dev"] * rule.num_dev_speakers
    return dict(zip(in_turn, names, strict=False))


def _splits_of_speakers(speakers: Codes, splits: np.ndarray) -> dict[str, set[int]]:
    known = speakers.numbers >= 0
    pairs = np.unique(speakers.numbers[known].astype(np.int64) * len(SPLITS) + splits[known])
    splits_of: dict[str, set[int]] = defaultdict(set)
    for pair in pairs.tolist():
        splits_of[speakers.words[pair // len(SPLITS)]].add(pair % len(SPLITS))
    return splits_of


def duplicates_across(index: Index, splits: SplitAssignment) -> list[list[int]]:
    """Return groups of rows with identical audio that stand in more than one split."""
    return [rows for rows in duplicate_rows(index) if len({int(splits.numbers[row]) for row in rows}) > 1]
