"""What a report may claim of the utterances that it judges, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metaser.config.schema import ExperimentConfig
from metaser.tasks.kinds import kind_of
from metaser.tasks.spec import TaskSpec
from shards.config import LeaveOneOut, RandomSpeakers, SplitRule
from shards.errors import SplitError
from shards.kinship import Kinship

_CANNOT_TELL = "equal samples are found, but not a copy that was cut, re-encoded or made louder"


@dataclass(frozen=True)
class FoldClaims:
    """What a fold's `report.json` says in `protocol` and a report over all folds repeats."""

    speaker_overlap: bool | None
    num_with_text: int = 0
    num_texts_in_training: int = 0
    num_partners_in_training: int = 0


def pooled_claims(folds: Sequence[FoldClaims], config: ExperimentConfig) -> dict[str, Any]:
    """Return what the report over all folds of `config` says of judged and training utterances."""
    main_task, init_from = config.main_task, config.init_from
    states = [fold.speaker_overlap for fold in folds]
    num_texts, num_with_text = (
        sum(getattr(fold, name) for fold in folds) for name in ("num_texts_in_training", "num_with_text")
    )
    num_near = sum(fold.num_partners_in_training > 0 for fold in folds)
    notes = [_texts_note(num_texts, num_with_text, f"perhaps {main_task}")] if num_texts else []
    if init_from is not None:
        notes.append(f"every fold started from the weights of {init_from!r}; what made those, its own report says")
    for name, view in config.model.views.items():
        if view.given_fields:
            notes.append(f"the view {name!r} read {view.describe_given()}; of how many, each fold's report says")
    if num_near:
        notes.append(f"dialogue partners of the test speakers may have trained the models of {num_near} folds")
    return {
        **({} if init_from is None else {"init_from": init_from}),
        "speaker_overlap": True if True in states else None if None in states else False,
        "num_with_text": num_with_text,
        "num_texts_in_training": num_texts,
        "num_folds_with_partners_in_training": num_near,
        "notes": notes,
    }


def kinship_facts(kin: Kinship) -> dict[str, Any]:
    """Return what `report.json` says of a comparison with what the model was made from."""
    return {
        "speaker_overlap": kin.speaker_overlap,
        "num_utterances_trained_on": kin.num_recordings,
        "num_shared_speakers": len(kin.speakers),
        "num_equal_speaker_names": len(kin.names),
        "num_utterances_of_shared_files": kin.num_files,
        "num_judged_without_speaker": kin.num_without_speaker,
        "num_trained_without_speaker": kin.num_made_without_speaker,
        "num_partners_in_training": len(kin.partners),
        "num_with_text": kin.num_with_text,
        "num_texts_in_training": kin.num_texts,
        "share_of_texts_in_training": kin.num_texts / kin.num_with_text if kin.num_with_text else None,
    }


def kinship_notes(kin: Kinship, specs: Sequence[TaskSpec], main_task: str) -> list[str]:
    """Return what a reader of the numbers must know of what judged and training utterances have in common."""
    notes = []
    if kin.num_recordings:
        notes.append(
            f"{kin.num_recordings} of {kin.num_judged} recordings trained the model or chose its weights, so the "
            "numbers do not say what it makes of new ones"
        )
    if kin.speakers:
        notes.append(
            f"{len(kin.speakers)} speakers (first: {kin.speakers[0]!r}) trained the model or chose its weights as well"
        )
    if kin.names:
        notes.append(
            f"{len(kin.names)} speakers (first: {kin.names[0]!r}) are called like speakers of another corpus that the "
            "model was made from; whether they are the same people is unknown"
        )
    if kin.num_files:
        notes.append(f"{kin.num_files} of {kin.num_judged} {_of_files(kin)}")
    if kin.num_without_speaker or kin.num_made_without_speaker:
        notes.append(_unknown_note(kin))
    if kin.partners:
        notes.append(
            f"{len(kin.partners)} training speakers (first: {kin.partners[0]!r}) share a session, dialogue or file "
            "with judged ones: dialogue partners of theirs may have trained the model"
        )
    if kin.num_texts:
        flattered = "WER, CER and perhaps " if any(kind_of(spec).is_text for spec in specs) else "perhaps "
        notes.append(_texts_note(kin.num_texts, kin.num_with_text, f"{flattered}{main_task}"))
    return notes


def _texts_note(num_texts: int, num_with_text: int, flattered: str) -> str:
    return (
        f"{num_texts} of {num_with_text} utterances with a text ({num_texts / num_with_text:.0%}) say what training "
        f"utterances say, too, which flatters {flattered}: new words may be harder"
    )


def _of_files(kin: Kinship) -> str:
    if kin.same_shards:
        return "utterances are cut from files of which other parts trained the model or chose its weights"
    return (
        "utterances are cut from files with the names of files that the model was made from; whether they are the same "
        "is unknown"
    )


def _unknown_note(kin: Kinship) -> str:
    unknown = f"the speakers of {kin.num_without_speaker} of {kin.num_judged} utterances here and of "
    unknown += f"{kin.num_made_without_speaker} of {kin.num_made} that made the model are unknown"
    if kin.num_recordings or kin.num_files:
        return unknown
    return f"{unknown}, so that the same people may speak in both; no recording and no file is in both ({_CANNOT_TELL})"


def refuse_kinship(
    kin: Kinship, what: str, config: ExperimentConfig, *, remedy: str = "pass --allow-overlap to accept it"
) -> None:
    """Refuse to judge recordings or speakers that made the model, unless the experiment allows it.

    Raises:
        SplitError: saying how many.
    """
    if kin.speakers and not config.data.allow_speaker_overlap:
        raise SplitError(
            f"{what} must hold no speaker of the training set, but {len(kin.speakers)} are (first: "
            f"{kin.speakers[0]!r}); choose others, or {remedy}, which the report then says"
        )
    if kin.num_recordings and not config.data.allow_recording_overlap:
        raise SplitError(
            f"{what} must hold no recording that trained the model or chose its weights, but {kin.num_recordings} of "
            f"{kin.num_judged} did (equal samples, whatever corpus and speaker are called); choose others, or "
            f"{remedy}, which the report then says"
        )


def describe_rules(rules: Sequence[SplitRule]) -> str:
    """Return the split rules in few words."""
    return "; ".join(f"{'' if rule.corpus is None else f'{rule.corpus}: '}{_describe_rule(rule)}" for rule in rules)


def _describe_rule(rule: SplitRule) -> str:
    if isinstance(rule, LeaveOneOut):
        return f"leave_one_out by {rule.field}, fold {rule.fold}"
    if isinstance(rule, RandomSpeakers):
        return f"random_speakers, seed {rule.seed}"
    dev = f", {rule.num_dev_speakers} training speakers as dev" if rule.num_dev_speakers else ""
    return f"the corpus's own split{dev}"
