"""Which utterances train, which choose the model, and which judge it: by speaker, or an error."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.config import LeaveOneOut, RandomSpeakers, SplitRule, StoredSplit
from shards.errors import SplitError
from shards.index import Index, duplicate_rows
from shards.indexcolumns import Codes
from shards.schema import SPLITS

_TRAIN = SPLITS.index("train")


@dataclass(frozen=True)
class SplitAssignment:
    """The split of every utterance, and how it came about."""

    numbers: np.ndarray
    """Positions in `SPLITS`, int8, shape (num_utterances,), in the index's order."""
    protocol: dict[str, Any]
    """What a report must say: the rule per corpus and whether speakers overlap (None: some are unknown)."""
    recordings_across: list[list[int]]
    """Rows with identical audio that stand in more than one split, group by group."""

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


def assign_splits(
    index: Index,
    rules: Sequence[SplitRule],
    *,
    allow_speaker_overlap: bool = False,
    allow_recording_overlap: bool = False,
) -> SplitAssignment:
    """Return the split of every utterance of `index`, corpus by corpus.

    Raises:
        SplitError: if a corpus has no rule, a rule does not fit its corpus, two splits share a speaker and
            `allow_speaker_overlap` is false, or two splits share a recording, or a file of which one person may speak
            in both, and `allow_recording_overlap` is false.
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
    speakers = index.codes("speaker")
    splits_of = _splits_of_speakers(speakers, numbers)
    overlap = sorted(speaker for speaker, splits in splits_of.items() if len(splits) > 1)
    if overlap and not allow_speaker_overlap:
        raise SplitError(
            f"train, dev and test must not share speakers, but {len(overlap)} do (first: {overlap[0]!r}); change "
            "data.splits, or set data.allow_speaker_overlap to true and accept that every result says so"
        )
    recordings = _recordings_across(index, numbers)
    files = _files_across(index, numbers)
    if not allow_recording_overlap:
        _refuse_recordings(index, numbers, recordings)
        _refuse_files(files)
    protocol = {
        "splits": [rule.model_dump(mode="json") for rule in rules],
        # Equal samples are the same mouth, whatever the metadata call it.
        "speaker_overlap": True if overlap or recordings else None if (speakers.numbers < 0).any() else False,
        "num_utterances": _count_by_split(numbers),
        "num_speakers": _count_speakers(splits_of, numbers),
        "num_utterances_without_speaker": _count_by_split(numbers[speakers.numbers < 0]),
        "num_recordings_in_two_splits": len(recordings),
        "num_files_in_two_splits": len(files),
    }
    return SplitAssignment(numbers, protocol, recordings)


def describe_splits(protocol: Mapping[str, Any]) -> str:
    """Return who stands in which split, and whether they are the same people, in one line."""
    parts = []
    for split in SPLITS:
        speakers, unknown = protocol["num_speakers"][split], protocol["num_utterances_without_speaker"][split]
        who = "speakers unknown" if speakers is None else f"{speakers} speakers"
        more = f", of {unknown} utterances unknown" if unknown and speakers is not None else ""
        parts.append(f"{split} {protocol['num_utterances'][split]} utterances ({who}{more})")
    return f"{', '.join(parts)}; {describe_overlap(protocol['speaker_overlap'])}"


def describe_overlap(speaker_overlap: bool | None) -> str:
    """Return in words whether train, dev and test share speakers; None: unknown."""
    if speaker_overlap is None:
        return "whether they share speakers is unknown"
    return "they share speakers" if speaker_overlap else "no speaker in two of them"


def _count_by_split(numbers: np.ndarray) -> dict[str, int]:
    return {split: int((numbers == number).sum()) for number, split in enumerate(SPLITS)}


def _count_speakers(splits_of: Mapping[str, set[int]], numbers: np.ndarray) -> dict[str, int | None]:
    """Return the number of known speakers by split; None where there are utterances, but nobody is known."""
    counts: dict[str, int | None] = {}
    for number, split in enumerate(SPLITS):
        known = sum(number in splits for splits in splits_of.values())
        counts[split] = None if not known and bool((numbers == number).any()) else known
    return counts


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
        held_out = _leave_one_out(rule, corpus, index, list(groups.counts()))
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


def _leave_one_out(rule: LeaveOneOut, corpus: str, index: Index, groups: list[str]) -> dict[str, str]:
    if rule.fold >= len(groups):
        raise SplitError(
            f"fold must be below the number of {rule.field}s of corpus {corpus!r} ({len(groups)}), got {rule.fold}"
        )
    if rule.num_dev_groups + 1 >= len(groups):
        raise SplitError(
            f"leaving out one {rule.field} for test and {rule.num_dev_groups} for dev leaves none of the "
            f"{len(groups)} of corpus {corpus!r} to train on"
        )
    test = groups[rule.fold]
    partners = _partners(index, test) if rule.field == "speaker" and rule.partners == "dev" else []
    if len(partners) + 1 >= len(groups):
        raise SplitError(
            f"whoever shares a session or dialogue with the test speaker {test!r} must not train, but all "
            f"{len(partners)} others of corpus {corpus!r} do; hold out sessions (`field: session`), or set "
            "`partners: train` in data.splits and accept that every result says so"
        )
    others = [groups[(rule.fold + offset) % len(groups)] for offset in range(1, len(groups))]
    dev = [*partners, *(group for group in others if group not in partners)][: max(rule.num_dev_groups, len(partners))]
    return {test: "test", **dict.fromkeys(dev, "dev")}


def _partners(index: Index, speaker: str) -> list[str]:
    """Return who else speaks in a session or dialogue of `speaker`, sorted."""
    speakers = index.codes("speaker")
    own = speakers.numbers == speakers.words.index(speaker)
    is_near = np.zeros(len(index), dtype=bool)
    for field in ("session", "dialogue"):
        places = index.codes(field).numbers
        is_near |= (places >= 0) & np.isin(places, places[own])
    found = {speakers.words[number] for number in np.unique(speakers.numbers[is_near & (speakers.numbers >= 0)])}
    return sorted(found - {speaker})


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


def _recordings_across(index: Index, numbers: np.ndarray) -> list[list[int]]:
    return [rows for rows in duplicate_rows(index) if len(set(numbers[rows].tolist())) > 1]


def _refuse_recordings(index: Index, numbers: np.ndarray, groups: Sequence[Sequence[int]]) -> None:
    if not groups:
        return
    rows = np.asarray(groups[0])
    first = " = ".join(
        f"{key!r} in {SPLITS[number]}"
        for key, number in zip(index.take(rows).values("key"), numbers[rows].tolist(), strict=True)
    )
    raise SplitError(
        f"one recording must stand in one of train, dev and test only, but {len(groups)} stand in several (first: "
        f"{first}); leave the copies out, change data.splits, or set data.allow_recording_overlap to true and accept "
        "that every result says so"
    )


def _refuse_files(files: Mapping[str, bool]) -> None:
    leaking = sorted(file for file, is_one_person in files.items() if is_one_person)
    if leaking:
        raise SplitError(
            "segments of one file must stand in one of train, dev and test only, unless their speakers are known to "
            f"differ, but those of {len(leaking)} files stand in several (first: {leaking[0]!r}); change data.splits, "
            "name the speakers, or set data.allow_recording_overlap to true and accept that every result says so"
        )


def _files_across(index: Index, numbers: np.ndarray) -> dict[str, bool]:
    """Return the files whose segments stand in several splits, and whether one person may speak in two of these."""
    rows = index.repeated_rows("source", plain_paths)
    part = index.take(rows)
    files = file_names(part).dictionary_encode()
    # Hours of segments have few speakers.
    found = np.unique(np.stack([files.indices.to_numpy(), numbers[rows], part.codes("speaker").numbers]), axis=1)
    speakers_of: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for file, split, speaker in found.T.tolist():
        speakers_of[file][split].add(speaker)
    return {
        files.dictionary[file].as_py(): _may_be_one(list(by_split.values()))
        for file, by_split in speakers_of.items()
        if len(by_split) > 1
    }


def _may_be_one(groups: Sequence[set[int]]) -> bool:
    """Return whether one person may speak in two of several groups of numbers; negative: unknown."""
    everyone = set[int]().union(*groups)
    return -1 in everyone or len(everyone) < sum(map(len, groups))


def plain_paths(paths: pa.Array) -> pa.Array:
    """Return paths without `./`, which names the same file in another way."""
    return pc.replace_substring_regex(paths, r"(^|/)(?:\./)+", r"\1")


def file_names(index: Index) -> pa.Array:
    """Return the file that each utterance was cut from, as `corpus:path`; absent where the index does not say."""
    return index.qualified(plain_paths(index.column("source")))
