"""Tables as programs and people write them, made by seed with what their rows truly are, and the reader held to it.

`python tests/mutatedtables.py 1000` reads a thousand of them; the default suite reads a sample.
"""

from __future__ import annotations

import csv
import io
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from shards.corpora.base import corpus_reader
from shards.corpora.options import ReadOptions
from shards.errors import CorpusError
from shards.schema import Rejection, RowCount, SourceUtterance

NUM_FILES = 30
SPEAKERS = ("anna", "Ben", "s1", "s2", "7", "Jürgen", "None Such")
ALPHABETS = {
    "ascii": ("Well, yes", "no", "it is; really", "one|two", "a\tb", "first\nsecond", "  padded  "),
    "western": ("Heute könnte es sein", "süß, oder?", "Größe", "Jürgen fährt über Köln"),
    "chinese": ("你今天怎么样", "我很生气，别烦我", "太好了"),
    "japanese": ("今日は元気ですか", "とても悲しいです"),
    "russian": ("Сегодня вечером я мог бы сказать", "Мне очень грустно, правда"),
    "mixed": ("naïve 世界", "ß; 你好", "“quoted”"),
}
QUOTED = ('"Nein', 'Ja"', '"Ist das wahr?" fragte er.', '"Nein"', 'er sagte "ja"', '5" lang', '"')
ENCODINGS = {
    "ascii": ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1"),
    "western": ("utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "cp850", "mac-roman"),
    "chinese": ("utf-8", "utf-8-sig", "utf-16", "gbk", "gb18030"),
    "japanese": ("utf-8", "utf-16", "shift_jis", "euc-jp", "iso2022_jp"),
    "russian": ("utf-8", "utf-8-sig", "utf-16", "cp1251", "koi8-r"),
    "mixed": ("utf-8", "utf-8-sig", "utf-16", "utf-32"),
}
MISSING = ("nan", "NaN", "None", "null", "NA", "N/A", "-", "?", "unknown")
EMOTIONS = {
    "anger": "anger",
    "Angry": "anger",
    "HAP": "happiness",
    "Wut": "anger",
    "freude": "happiness",
    "Joyful": "joyful",
}
NAMES = {
    "file": ("file", "File", "path", "filename", "wav"),
    "emotion": ("emotion", "label", "EMOTION"),
    "speaker": ("speaker", "spk", "client_id", "Speaker ID"),
    "text": ("text", "sentence", "transcript"),
    "arousal": ("arousal", "Arousal"),
    "note": ("note",),
}


@dataclass
class Case:
    """One table and what it truly holds."""

    data: bytes
    suffix: str
    options: ReadOptions
    packed: list[dict[str, object]] = field(default_factory=list)
    """Fields of the rows that are utterances, in order."""
    num_rejected: int = 0
    may_be_refused: bool = False
    """Whether nothing in the bytes tells for sure what they mean."""
    recipe: str = ""


def make(seed: int) -> Case:
    """Return the table of this seed."""
    draw = random.Random(seed)
    alphabet = draw.choice(list(ALPHABETS))
    encoding = draw.choice(ENCODINGS[alphabet])
    separator = draw.choice(",;\t|")
    style = (
        draw.choice(("minimal", "all", "nonnumeric", "literal"))
        if separator == "\t"
        else draw.choice(("minimal", "all"))
    )
    names = {name: draw.choice(spellings) for name, spellings in NAMES.items()}
    columns = ["file", *draw.sample(["emotion", "speaker", "text", "arousal", "note"], draw.randint(1, 5))]
    draw.shuffle(columns)
    records = [_record(draw, number, alphabet, style) for number in draw.sample(range(NUM_FILES), draw.randint(1, 12))]
    _damage(draw, records)
    # A row of blanks is none.
    records = [record for record in records if "damage" in record or any(record[name].strip() for name in columns)]
    ending = draw.choice(("\n", "\r\n", "\r"))
    lines = [_written([names[name] for name in columns], separator, style)]
    lines += [_line(draw, record, columns, separator, style) for record in records]
    trailing = separator if draw.random() < 0.15 else ""
    lines = [line + trailing for line in lines]
    for extra in draw.choices(("", "# a remark", separator * (len(columns) - 1)), k=draw.choice((0, 0, 1, 3))):
        lines.insert(draw.randint(1, len(lines)), extra)
    declared = draw.random() < 0.1
    text = ending.join([*([f"sep={separator}"] if declared else []), *lines]) + draw.choice(("", ending))
    legacy = not encoding.startswith("utf")
    is_given = legacy and draw.random() < 0.5
    is_torn = style == "literal" and any(record.get("damage") == "ragged" for record in records)
    case = Case(
        data=text.encode(encoding),
        suffix=".tsv" if separator == "\t" and draw.random() < 0.7 else ".csv",
        options=ReadOptions(encoding=encoding) if is_given else ReadOptions(),
        may_be_refused=(legacy and not is_given) or encoding == "utf-16-be" or is_torn,
        recipe=f"seed {seed}: {encoding}{' given' if is_given else ''}, {separator!r}, {style}, {ending!r}, {columns}",
    )
    _judge(case, records, columns)
    return case


def _record(draw: random.Random, number: int, alphabet: str, style: str) -> dict[str, str]:
    texts = [*ALPHABETS[alphabet], *ALPHABETS["ascii"]]
    if style == "literal":
        texts = [text for text in (*texts, *QUOTED) if not set(text) & set("\t\n")]
    record = {
        "file": f"{number}.wav",
        "emotion": draw.choice(list(EMOTIONS)),
        "speaker": draw.choice([name for name in SPEAKERS if alphabet in ("western", "mixed") or name.isascii()]),
        "text": draw.choice(texts),
        "arousal": draw.choice(("0.5", "3", "1,5", "")),
        "note": draw.choice(("x", "", "nan")),
    }
    for name in ("emotion", "speaker", "arousal"):
        if draw.random() < 0.1:
            record[name] = draw.choice(MISSING)
    return record


def _damage(draw: random.Random, records: list[dict[str, str]]) -> None:
    for record in list(records):
        kind = draw.choice(("", "", "", "", "", "no file", "number", "ragged", "twice", "nul"))
        if kind == "no file":
            record["file"] = draw.choice(("gone.wav", "", "nan"))
        elif kind == "number":
            record["arousal"] = "much"
        elif kind == "twice":
            records.append({**record, **draw.choice(({}, {"emotion": "fear"}))})
        elif kind:
            record["damage"] = kind


def _line(draw: random.Random, record: dict[str, str], columns: list[str], separator: str, style: str) -> str:
    cells = [record[name] for name in columns]
    if record.get("damage") == "nul":
        cells[columns.index("file")] += "\0"
    line = _written(cells, separator, style)
    return line + separator + "more" if record.get("damage") == "ragged" else line


def _written(cells: list[str], separator: str, style: str) -> str:
    if style == "literal":
        return separator.join(cells)
    quoting = {"minimal": csv.QUOTE_MINIMAL, "all": csv.QUOTE_ALL, "nonnumeric": csv.QUOTE_NONNUMERIC}[style]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator, quoting=quoting, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n")


def _judge(case: Case, records: list[dict[str, str]], columns: list[str]) -> None:
    seen = set()
    for record in records:
        is_number = "arousal" not in columns or record["arousal"] != "much"
        is_good = record["file"] not in ("gone.wav", "", "nan") and is_number and "damage" not in record
        if not is_good or record["file"] in seen:
            case.num_rejected += 1
            continue
        seen.add(record["file"])
        case.packed.append({name: _true_value(name, record[name]) for name in columns})


def _true_value(name: str, cell: str) -> object:
    word = cell.strip()
    if name in ("emotion", "speaker", "arousal") and word in (*MISSING, ""):
        return None
    if name == "emotion":
        return EMOTIONS.get(word, word)
    if name == "arousal":
        return float(word.replace(",", "."))
    return word or None


def outcome(case: Case, folder: Path) -> str:
    """Read a case's table; return what came of it.

    Raises:
        AssertionError: if a row is lost, a value is wrong, or a plain table is refused.
    """
    path = folder / f"mine{case.suffix}"
    path.write_bytes(case.data)
    try:
        found = list(corpus_reader("csv", case.options).read(path, 0))
    except CorpusError as error:
        assert case.may_be_refused, f"{case.recipe}: refused with {error}"
        assert "\n" not in str(error), f"{case.recipe}: {error!r} has several lines"
        return "refused"
    packed = [item.utterance for item in found if isinstance(item, SourceUtterance)]
    rejected = [item for item in found if isinstance(item, Rejection)]
    (count,) = [item.number for item in found if isinstance(item, RowCount)]
    truth = len(case.packed) + case.num_rejected
    assert len(packed) + len(rejected) == count == truth, (
        f"{case.recipe}: {len(packed)}, {rejected}, {count} for {truth}"
    )
    for utterance, expected in zip(packed, case.packed, strict=True):
        got = {name: _value(utterance, name) for name in expected}
        assert got == expected, f"{case.recipe}: {got} for {expected}"
    return "rejections" if rejected else "packed"


def _value(utterance: object, name: str) -> object:
    if name == "file":
        return utterance.source
    return utterance.extra.get("note") if name == "note" else getattr(utterance, name)


def prepared(folder: Path) -> Path:
    """Return `folder` with the audio that tables name; readers look at names only."""
    for number in range(NUM_FILES):
        (folder / f"{number}.wav").touch()
    return folder


def main(count: int) -> None:
    """Read `count` tables and print what came of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = prepared(Path(name))
        print(dict(Counter(outcome(make(seed), folder) for seed in range(count))))


if __name__ == "__main__":
    main(int(sys.argv[1]))
