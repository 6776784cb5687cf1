"""Which utterances train, which choose the model, and which judge it: by speaker, or an error."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.config import LeaveOneOut, RandomSpeakers, SplitRule, StoredSplit
from shards.errors import SplitError
from shards.manifest import Index
from shards.schema import SPLITS


@dataclass(frozen=True)
class SplitAssignment:
    """The split of every utterance, and how it came about."""

    names: np.ndarray
    """Shape (num_utterances,), each of `train`, `dev`, `test`, in the index's order."""
    protocol: dict[str, Any]
    """What a report must say: the rule per corpus and whether speakers overlap."""

    def rows(self, split: str) -> np.ndarray:
        """Return the index rows of `split`, ascending.

        Raises:
            SplitError: if there is no such split.
        """
        if split not in SPLITS:
            raise SplitError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        return np.flatnonzero(self.names == split)


def assign_splits(index: Index, rules: Sequence[SplitRule], *, allow_speaker_overlap: bool = False) -> SplitAssignment:
    """Return the split of every utterance of `index`, corpus by corpus.

    Raises:
        SplitError: if a corpus has no rule, a rule does not fit its corpus, or two splits share a speaker and
            `allow_speaker_overlap` is false.
    """
    corpora = np.asarray(index.values("corpus"), dtype=object)
    speakers = np.asarray(index.values("speaker"), dtype=object)
    present = sorted(set(corpora.tolist()))
    by_corpus = {rule.corpus: rule for rule in rules}
    absent = sorted(name for name in by_corpus if name is not None and name not in present)
    if absent:
        raise SplitError(f"data.splits names corpora {absent} that the shards do not hold; they hold {present}")

    names = np.full(len(index), "", dtype=object)
    for corpus in present:
        rule = by_corpus.get(corpus, by_corpus.get(None))
        if rule is None:
            raise SplitError(f"data.splits has no rule for corpus {corpus!r}; add one with `corpus: {corpus}`")
        rows = np.flatnonzero(corpora == corpus)
        names[rows] = _apply(rule, corpus, index.take(rows))
    overlap = _shared_speakers(speakers, names)
    if overlap and not allow_speaker_overlap:
        raise SplitError(
            f"train, dev and test must not share speakers, but {len(overlap)} do (first: {overlap[0]!r}); change "
            "data.splits, or set data.allow_speaker_overlap to true and accept that every result says so"
        )
    protocol = {
        "splits": [rule.model_dump(mode="json") for rule in rules],
        "speaker_overlap": bool(overlap),
        "num_utterances": {split: int((names == split).sum()) for split in SPLITS},
        "num_speakers": {split: len(set(speakers[names == split]) - {None}) for split in SPLITS},
    }
    return SplitAssignment(names, protocol)


def _apply(rule: SplitRule, corpus: str, index: Index) -> list[str]:
    if isinstance(rule, StoredSplit):
        return _stored(rule, corpus, index)
    field = rule.field if isinstance(rule, LeaveOneOut) else "speaker"
    groups = index.values(field)
    if None in groups:
        raise SplitError(
            f"split policy {rule.policy!r} needs {field} for every utterance of corpus {corpus!r}, but "
            f"{groups.count(None)} of {len(groups)} have none; use the policy 'stored' or add the metadata"
        )
    if isinstance(rule, LeaveOneOut):
        held_out = _leave_one_out(rule, corpus, sorted(set(groups)))
    else:
        held_out = _draw_speakers(rule, corpus, index)
    return [held_out.get(group, "train") for group in groups]


def _stored(rule: StoredSplit, corpus: str, index: Index) -> list[str]:
    names = index.values("split")
    if None in names:
        raise SplitError(
            f"split policy 'stored' needs a split for every utterance, but {names.count(None)} of {len(names)} of "
            f"corpus {corpus!r} have none; use leave_one_out or random_speakers in data.splits"
        )
    if "dev" in names or not rule.num_dev_speakers:
        return names
    speakers = index.values("speaker")
    training = sorted({speaker for speaker, name in zip(speakers, names, strict=True) if name == "train" and speaker})
    if len(training) <= rule.num_dev_speakers:
        raise SplitError(
            f"num_dev_speakers must be below the number of training speakers of corpus {corpus!r} "
            f"({len(training)}), got {rule.num_dev_speakers}"
        )
    # Evenly spaced over the sorted names: corpora often sort by gender (AN4: f..., m...), and dev needs both.
    positions = np.linspace(0, len(training) - 1, rule.num_dev_speakers).round().astype(int)
    dev = {training[position] for position in positions}
    return ["dev" if speaker in dev else name for speaker, name in zip(speakers, names, strict=True)]


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


def _draw_speakers(rule: RandomSpeakers, corpus: str, index: Index) -> dict[str, str]:
    gender_of = dict(zip(index.values("speaker"), index.values("gender"), strict=True))
    num_held_out = rule.num_test_speakers + rule.num_dev_speakers
    if num_held_out >= len(gender_of):
        raise SplitError(
            f"{rule.num_test_speakers} test and {rule.num_dev_speakers} dev speakers leave none of the "
            f"{len(gender_of)} of corpus {corpus!r} to train on"
        )
    by_gender: dict[str, list[str]] = defaultdict(list)
    for speaker in sorted(gender_of):
        by_gender[gender_of[speaker] or ""].append(speaker)
    generator = random.Random(rule.seed)  # noqa: S311 (a repeatable draw, not a secret)
    for speakers in by_gender.values():
        generator.shuffle(speakers)
    in_turn = [
        speakers[position]
        for position in range(max(map(len, by_gender.values())))
        for speakers in by_gender.values()
        if position < len(speakers)
    ]
    names = ["test"] * rule.num_test_speakers + ["dev"] * rule.num_dev_speakers
    return dict(zip(in_turn, names, strict=False))


def _shared_speakers(speakers: np.ndarray, names: np.ndarray) -> list[str]:
    splits_of: dict[str, set[str]] = defaultdict(set)
    for speaker, name in zip(speakers, names, strict=True):
        if speaker is not None:
            splits_of[speaker].add(name)
    return sorted(speaker for speaker, splits in splits_of.items() if len(splits) > 1)
