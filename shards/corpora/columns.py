"""What a table's columns are: fields by their own names, by usual other names, or by what the user says."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shards.corpora.identities import tidy
from shards.corpora.tables import check_columns
from shards.errors import CorpusError
from shards.schema import METADATA_FIELDS, Note
from shards.shown import shown

_MAX_SHOWN = 300

PLACE_FIELDS = ("file", "key", "start", "end", "duration", "channel")
"""Columns that say which audio a row is about."""
_FIELDS = (*PLACE_FIELDS, *METADATA_FIELDS)
_ALIASES = {
    "file": """path, filename, file_name, filepath, file_path, wav, wav_path, wav_file, wavfile, wav_filename, audio,
        audio_path, audio_file, audiofile, audio_filepath, audio_filename, sound, recording""",
    "start": "begin, start_time, starttime, begin_time, start_sec, start_seconds, onset, segment_start, tmin",
    "end": "stop, end_time, endtime, stop_time, end_sec, end_seconds, segment_end, tmax",
    "duration": "dur, length, duration_sec, duration_seconds",
    "emotion": "label, emo, emotion_label, emotions, emo_label, emotion_class, emotion_category, emoclass",
    "speaker": """spk, speaker_id, speakerid, spk_id, spkid, spkr, spkr_id, spkrid, client_id, actor, actor_id,
        speaker_name, subject, subject_id, participant, participant_id""",
    "gender": "sex, speaker_gender, speaker_sex",
    "age": "speaker_age, age_years",
    "text": "sentence, transcript, transcription, utterance, transcript_text, sentence_text",
    "language": "lang, locale, language_code",
    "split": "subset, partition",
    "session": "session_id, sessionid",
    "dialogue": "dialog, dialogue_id, dialog_id, conversation, conversation_id, call_id",
    "turn": "turn_id",
    "valence": "emoval, val_rating",
    "arousal": "activation, emoact",
    "dominance": "emodom",
    "channel": "audio_channel, chan",
}
_BY_ALIAS = {alias.strip(): name for name, aliases in _ALIASES.items() for alias in aliases.split(",")}
_TIMES = ("start", "end", "duration")
_MILLISECONDS = re.compile(r"_(?:ms|msec|milliseconds?|millis)$")
_OTHER_UNIT = re.compile(
    "samples?|smp|frames?|frm|fr|idx|index|indices|pos|position|bytes?|ticks?|pts|hops?|blocks?|chunks?|points?"
    "|us|usec|microsec(onds?)?|microseconds?|ns|nsec|nanosec(onds?)?|nanoseconds?|min|mins|minutes?|h|hrs?|hours?"
)
"""What times may be counted in beside seconds and milliseconds."""
_TIME_WORDS = {
    **dict.fromkeys(("start", "begin", "beginning", "from", "onset", "offset", "first", "tmin"), "start"),
    **dict.fromkeys(("end", "stop", "to", "last", "until", "tmax"), "end"),
    **dict.fromkeys(("duration", "dur", "length", "len"), "duration"),
}
_MAX_HINTS = 300
_SECONDS = re.compile(r"_(?:s|secs?|seconds?)$")


@dataclass(frozen=True)
class Columns:
    """Each column's field, by its name in the table."""

    fields: Mapping[str, str]
    """Of columns that are a field."""
    extra: tuple[str, ...]
    """Columns that are none and are kept beside."""
    units_s: Mapping[str, float]
    """Seconds per unit of the fields that are times."""
    notes: tuple[Note, ...]
    file_duration: str | None = None
    """The column that says how long whole files are: a duration where no column is a start."""

    def column(self, field: str) -> str | None:
        """Return the column that is `field`, or None."""
        return next((column for column, found in self.fields.items() if found == field), None)


def columns_of(table: Path, names: Sequence[str], said: Mapping[str, str | None]) -> Columns:
    """Return what the columns called `names` are, `said` being what the user says of some.

    Raises:
        CorpusError: if no column or more than one is the audio file, a name stands twice, or `said` names no column
            or no field.
    """
    check_columns(table, names)
    _check_said(table, names, said)
    explicit = {name: said[_said_name(name, said)] for name in names if _said_name(name, said) in said}
    own = {name: name.lower() for name in names if name not in explicit and name.lower() in _FIELDS}
    fields = {name: field for name, field in explicit.items() if field is not None} | own
    _check_unique(table, [name for name in names if explicit.get(name, name) is not None], fields)
    if _is_emobox(names):
        # Its channel is how many there are, not which one.
        fields = {name: field for name, field in fields.items() if name != "channel"}
    aliases, ambiguous = _aliases([name for name in names if name and name not in explicit | own], fields)
    if "file" not in {*fields.values(), *aliases.values()}:
        raise _no_file(table, names, ambiguous)
    fields |= aliases
    units_s = {field: 0.001 for name, field in fields.items() if field in _TIMES and _MILLISECONDS.search(_plain(name))}
    durations = {name for name, field in fields.items() if field == "duration" and name not in explicit}
    file_duration = None if "start" in fields.values() else next(iter(durations), None)
    if file_duration is not None:
        fields = {name: field for name, field in fields.items() if field != "duration"}
    # Beside an end it is needed only where that is blank.
    beside = durations if "end" in fields.values() else set()
    extra = tuple(name for name in names if name and (name not in fields or name in beside) and name not in explicit)
    used = {name: field for name, field in aliases.items() if name in fields}
    notes = _notes(used, [name for name in extra if name not in fields], ambiguous, fields.values())
    return Columns(fields, extra, units_s, tuple(notes), file_duration)


def without(columns: Columns, table: Path, names: Sequence[str], reason: str) -> Columns:
    """Return `columns`, of which `names` are no fields after all, for `reason`."""
    fields = {name: field for name, field in columns.fields.items() if name not in names}
    meant = ", ".join(f"{name} for {columns.fields[name]}" for name in names)
    note = Note(f"columns of {table.name} are not taken, {meant}: {reason}", is_warning=True)
    return replace(columns, fields=fields, extra=(*columns.extra, *names), notes=(*columns.notes, note))


def metadata_columns(names: Sequence[str]) -> dict[str, str]:
    """Return which of `names` are metadata fields, by their own or, where only one is, by a usual other name."""
    own = {name: name for name in names if name in METADATA_FIELDS}
    aliases, _ = _aliases([name for name in names if name not in own], own)
    return own | {name: field for name, field in aliases.items() if field in METADATA_FIELDS}


def _said_name(name: str, said: Mapping[str, str | None]) -> str:
    """Return the spelling of the column `name` in `said`."""
    return next((key for key in said if tidy(key) == name), name)


def _check_said(table: Path, names: Sequence[str], said: Mapping[str, str | None]) -> None:
    unknown = [name for name in said if tidy(name) not in names]
    if unknown:
        raise CorpusError(
            f"--map must name columns of {table}, which has {', '.join(filter(None, names)) or 'none'}, got "
            f"{', '.join(unknown)}"
        )
    strange = [field for field in said.values() if field is not None and field not in _FIELDS]
    if strange:
        raise CorpusError(f"--map must name fields ({', '.join(_FIELDS)}), got {', '.join(strange)}")


def _check_unique(table: Path, names: Sequence[str], fields: Mapping[str, str]) -> None:
    meant = [fields.get(name, name) for name in names if name]
    repeated = sorted(name for name, count in Counter(meant).items() if count > 1)
    if repeated:
        raise CorpusError(
            f"{table} must name each column once, but repeats {', '.join(repeated)}; rename them, or leave one out "
            "with --map NAME="
        )


def _is_emobox(names: Sequence[str]) -> bool:
    return {"wav", "emo", "num_frame", "channel"} <= {*names}


def _plain(name: str) -> str:
    """Return a column's name as aliases are written: `Speaker ID` and `speakerId` are `speaker_id`."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", unicodedata.normalize("NFKC", name))
    return re.sub(r"[\W_]+", "_", parted).strip("_").lower()


def _aliases(names: Sequence[str], taken: Mapping[str, str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the columns that are a field by another name, and by field those of which only one could be."""
    plain = {name: _plain(name) for name in names}
    found: dict[str, list[str]] = defaultdict(list)
    for name, alias in plain.items():
        field = _field_of(alias, plain.values())
        if field is not None and field not in taken.values():
            found[field].append(name)
    single = {columns[0]: field for field, columns in found.items() if len(columns) == 1}
    return single, {field: columns for field, columns in found.items() if len(columns) > 1}


def _field_of(alias: str, others: Collection[str]) -> str | None:
    # Beside an onset an offset is the end; beside a duration it is where that begins.
    if re.fullmatch("offset(_.*)?", alias):
        alias = alias.replace("offset", "end" if any(other.startswith("onset") for other in others) else "start")
    for pattern in (None, _MILLISECONDS, _SECONDS):
        stem = alias if pattern is None else pattern.sub("", alias)
        field = stem if stem in _FIELDS else _BY_ALIAS.get(stem)
        if field is not None and (pattern is None or field in _TIMES):
            return field
    return None


def _no_file(table: Path, names: Sequence[str], ambiguous: Mapping[str, Sequence[str]]) -> CorpusError:
    candidates = ambiguous.get("file")
    if candidates:
        return CorpusError(
            f"{table} must have one column file, but each of {', '.join(candidates)} may be it; say which: "
            f"--map {candidates[0]}=file"
        )
    first_row = shown(", ".join(filter(None, names)), _MAX_SHOWN) or "empty"
    return CorpusError(
        f"{table} must have a column file, but its first row is {first_row}; name the audio's column file "
        "(path, filename, wav or audio will do, too), or say which it is: --map NAME=file"
    )


def _notes(
    used: Mapping[str, str], extra: Sequence[str], ambiguous: Mapping[str, Sequence[str]], taken: Collection[str]
) -> Iterator[Note]:
    if used:
        found = ", ".join(f"{name} as {field}" for name, field in used.items())
        first = next(iter(used))
        yield Note(f"columns are read by their usual names: {found} (--map {first}= leaves one out)")
    if not extra:
        return
    meant = {name: field for field, names in ambiguous.items() for name in names}
    # Seeking what a name may have meant takes a millisecond.
    near = {name: meant.get(name) or nearest_field(name) for name in extra[:_MAX_HINTS]}
    near |= {name: meant.get(name) for name in extra[_MAX_HINTS:]}
    # Without a start, a duration is only what the file itself says; with an end, what that says.
    settled = {*taken} if "start" in taken and "end" not in taken else {*taken, "duration"}
    uncounted = [name for name in extra if _time_in_other_units(name) not in (None, *settled)]
    if uncounted:
        yield Note(
            f"no part of a file is cut by {', '.join(uncounted)}, whose unit is not read; a part needs columns start "
            "and end in seconds, or start_ms and end_ms in milliseconds",
            is_warning=True,
        )
    hints = {name: field for name, field in near.items() if field is not None and field not in settled}
    hint = ""
    if hints:
        options = " ".join(f"--map {name}={field}" for name, field in hints.items())
        unit = ", where times are in seconds" if {*hints.values()} & {*_TIMES} else ""
        hint = f"; did you mean {', '.join(dict.fromkeys(hints.values()))}? ({options}{unit})"
    count = f"{len(extra)} column{'s are' if len(extra) > 1 else ' is'}"
    yield Note(f"{count} kept as extra: {_listed(extra)}{hint}", is_warning=bool(hints))


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MAX_HINTS} more" if len(names) > _MAX_HINTS else ""
    return f"{', '.join(names[:_MAX_HINTS])}{rest}"


def _time_in_other_units(name: str) -> str | None:
    """Return which time a column may hold in a unit that is not read: `start_sample`, `offset_us`; None for none."""
    units = [part for part in _parts(name) if _OTHER_UNIT.fullmatch(part)]
    if not units:
        return None
    return next((_TIME_WORDS[part] for part in _parts(name) if part in _TIME_WORDS), None)


def _parts(name: str) -> list[str]:
    return re.sub(r"(?<=[a-z])(?=[0-9])|(?<=[0-9])(?=[a-z])", "_", _plain(name)).split("_")


def nearest_field(name: str) -> str | None:
    """Return the field that a column's name may have meant, or None."""
    if _time_in_other_units(name) is not None:
        return None
    known = {**{field: field for field in _FIELDS}, **_BY_ALIAS}
    plain = _plain(name)
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.8)
    if near:
        return known[near[0]]
    parts = [part for part in plain.split("_") if part in known and part not in ("audio", "label", "length", "sound")]
    return known[parts[0]] if len(parts) == 1 else None
