"""Tables and lists of a user's own: each row is packed or rejected, and what was not damaged is packed as it was."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuzz.area import ACCEPTED, REFUSED, Area, Plan, Run, check_sentence, need, refused
from fuzz.areas.audio import packed_keys
from fuzz.common import choose, make_common, sound
from fuzz.mutate import NUMBERS, WORDS, damaged_bytes, damaged_tree, json_bytes

NUM_FILES = 30
_HEADER = """\
name: small
source: internal
usage: unrestricted
languages: [deu]
license: CC0-1.0
schemes:
  emotion: {dtype: str, labels: [anger, sadness]}
  speaker: {dtype: int, labels: {3: {gender: male, age: 31}, 8: {gender: female, age: 34}}}
splits:
  train: {type: train}
tables:
  emotion.train:
    type: segmented
    split_id: train
    columns:
      emotion: {scheme_id: emotion, rater_id: gold}
  files:
    type: filewise
    columns:
      speaker: {scheme_id: speaker}
      transcription: {}
"""
_SEGMENTS = "file,start,end,emotion\n" + "".join(
    f"{number}.wav,0 days 00:00:00,0 days 00:00:00.1,{('anger', 'sadness')[number % 2]}\n" for number in range(6)
)
_FILES = "file,speaker,transcription\n" + "".join(
    f"{number}.wav,{(3, 8)[number % 2]},Wort {number}\n" for number in range(6)
)


class Tables(Area):
    """CSV, TSV, JSON Lines, Parquet and audformat."""

    name = "tables"

    def prepare(self) -> None:
        import soundfile as sf

        make_common(with_run=False)
        for number in range(NUM_FILES):
            sf.write(self.base / f"{number}.wav", sound(number, 1700), 16_000)

    def make(self, draw: random.Random, work: Path) -> Plan:
        kinds: dict[str, Callable[[random.Random, Path], Plan]] = {
            "delimited": self._delimited,
            "jsonl": _json_lines,
            "parquet": _parquet,
            "audformat": _audformat,
        }
        kind = choose(draw, [("delimited", 4), ("jsonl", 3), ("parquet", 3), ("audformat", 3)])
        plan = kinds[kind](draw, work)
        return {"pack": draw.random() < 0.15, **plan}

    def _delimited(self, draw: random.Random, work: Path) -> Plan:
        import mutatedtables

        seed = draw.randrange(1 << 40)
        case = mutatedtables.make(seed)
        is_whole = draw.random() < 0.4
        data = case.data if is_whole else damaged_bytes(draw, case.data)
        (work / f"mine{case.suffix}").write_bytes(data)
        # What the whole table holds, its own tests know.
        return {"corpus": "csv", "source": f"mine{case.suffix}", "seed": seed if is_whole else None}

    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        for path in self._recordings:
            (work / path.name).symlink_to(path)
        if plan["pack"]:
            return self._packed(work, plan, run)
        if plan.get("seed") is not None:
            return self._as_known(work, plan["seed"])
        return self._read(work, plan)

    @cached_property
    def _recordings(self) -> list[Path]:
        return [path.absolute() for path in sorted(self.base.glob("*.wav"))]

    def _as_known(self, work: Path, seed: int) -> str:
        import mutatedtables

        try:
            outcome = mutatedtables.outcome(mutatedtables.make(seed), work)
        except AssertionError as error:
            need(False, str(error))
        return REFUSED if outcome == "refused" else ACCEPTED

    def _read(self, work: Path, plan: Plan) -> str:
        from shards.corpora.base import corpus_reader
        from shards.errors import InputError
        from shards.schema import Rejection, RowCount, SourceUtterance

        try:
            found = list(corpus_reader(plan["corpus"]).read(work / plan["source"], 0))
        except InputError as error:
            check_sentence(str(error))
            return REFUSED
        items = {item.utterance.source: item.utterance for item in found if isinstance(item, SourceUtterance)}
        rejections = [item for item in found if isinstance(item, Rejection)]
        announced = sum(item.number for item in found if isinstance(item, RowCount))
        count = sum(isinstance(item, SourceUtterance) for item in found)
        need(
            count + len(rejections) == announced, f"{announced} rows, {count} utterances, {len(rejections)} rejections"
        )
        for name, words in plan.get("healthy", {}).items():
            utterance = items.get(name)
            need(utterance is not None, f"the healthy row {name} is not among {sorted(items)}; {rejections[:3]}")
            for field, value in words.items():
                got = getattr(utterance, field)
                need(got == value, f"{field} of the healthy row {name} is {got!r}")
        return ACCEPTED

    def _packed(self, work: Path, plan: Plan, run: Run) -> str:
        out = work / "out"
        said = run(["pack", plan["corpus"], work / plan["source"], out, "--on-bad", "skip", "--workers", "1"])
        if refused(said):
            return REFUSED
        verified = run(["inspect", out, "--verify", "--json"])
        need(verified.code == 0, f"packed, but not verified: {verified.err[-500:]!r}")
        keys = packed_keys(out)
        for name in plan.get("healthy", {}):
            need(any(Path(name).stem == key.split("/")[1].split("_")[0] for key in keys), f"{name} is not among {keys}")
        return ACCEPTED


def _record(number: int) -> dict[str, Any]:
    emotion = ("anger", "happiness", "sadness")[number % 3]
    return {
        "file": f"{number}.wav",
        "emotion": emotion,
        "speaker": f"s{number % 4}",
        "text": f"so {number}",
        "age": 20 + number,
    }


def _healthy(numbers: list[int]) -> dict[str, dict[str, Any]]:
    return {f"{number}.wav": {"emotion": _record(number)["emotion"], "text": f"so {number}"} for number in numbers}


def _json_lines(draw: random.Random, work: Path) -> Plan:
    count = draw.randrange(2, 9)
    lines = [json_bytes(_record(number)) for number in range(count)]
    bad = draw.randrange(count)
    kind = choose(draw, [("tree", 6), ("line", 3), ("file", 2)])
    healthy: dict[str, Any] = {}
    if kind == "tree":
        lines[bad] = json_bytes(damaged_tree(draw, _record(bad)))
    elif kind == "line":
        lines[bad] = damaged_bytes(draw, lines[bad]).replace(b"\n", b" ").replace(b"\r", b" ")
    data = b"\n".join(lines) + draw.choice((b"", b"\n"))
    if kind == "file":
        data = damaged_bytes(draw, data)
    else:
        # A damaged line may name another one's file.
        healthy = _healthy(
            [number for number in range(count) if number != bad and b"%d.wav" % number not in lines[bad]]
        )
    (work / "mine.jsonl").write_bytes(data)
    return {"corpus": "jsonl", "source": "mine.jsonl", "kind": kind, "healthy": healthy}


def _parquet(draw: random.Random, work: Path) -> Plan:
    records = [_record(number) for number in range(draw.randrange(2, 9))]
    kind = choose(draw, [("cells", 5), ("column", 3), ("bytes", 3)])
    table = pa.Table.from_pylist(records)
    healthy: dict[str, Any] = {}
    if kind == "cells":
        row, name = draw.randrange(len(records)), draw.choice(("file", "emotion", "speaker", "text", "age"))
        values: list[Any] = [record[name] for record in records]
        values[row] = draw.choice(NUMBERS if name == "age" else WORDS)
        with contextlib.suppress(pa.ArrowException, OverflowError, UnicodeError):
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
    elif kind == "column":
        values = [draw.choice(([1], {"a": 1}, None, b"x", 1.5, "x", True)) for _ in range(1)] * len(records)
        name = draw.choice((*table.column_names, *WORDS[:30]))
        table = table.append_column(name, pa.array(values))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    data = damaged_bytes(draw, buffer.getvalue()) if kind == "bytes" else buffer.getvalue()
    (work / "mine.parquet").write_bytes(data)
    return {"corpus": "csv", "source": "mine.parquet", "kind": kind, "healthy": healthy}


def _audformat(draw: random.Random, work: Path) -> Plan:
    import yaml

    kind = choose(draw, [("header bytes", 3), ("header tree", 5), ("table", 4)])
    header, tables = _HEADER.encode(), {"db.emotion.train.csv": _SEGMENTS.encode(), "db.files.csv": _FILES.encode()}
    if kind == "header bytes":
        header = damaged_bytes(draw, header)
    elif kind == "header tree":
        header = yaml.safe_dump(damaged_tree(draw, yaml.safe_load(_HEADER)), allow_unicode=True).encode(
            "utf-8", "replace"
        )
    else:
        name = draw.choice(sorted(tables))
        tables[name] = damaged_bytes(draw, tables[name])
    for name, data in {"db.yaml": header, **tables}.items():
        (work / name).write_bytes(data)
    return {"corpus": "audformat", "source": ".", "kind": kind}
