"""Shard folders: the manifest and the index, with their hashes wrong or made right again, and the tars behind them."""

from __future__ import annotations

import hashlib
import io
import json
import random
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuzz.area import ACCEPTED, REFUSED, Area, Plan, Run, need, parsed_json, refused
from fuzz.common import SHARDS, choose, copy_folder, make_common, replace_file
from fuzz.mutate import NUMBERS, WORDS, damaged_bytes, damaged_tree, doubled_name, holds_raw, json_bytes, near

_PROVEN = ("shards", "index", "rejected", "labels", "extra_names", "num_rejected_by_kind")
"""What the manifest says of the data; the rest is words about them."""
_FORM: dict[str, Any] = {"indent": 1, "ensure_ascii": False, "sort_keys": True}


def resigned(tree: Any) -> bytes:
    """Return a manifest with the hash over itself made right."""
    if isinstance(tree, dict) and not holds_raw(tree):
        tree.pop("sha256", None)
        canonical = json.dumps(tree, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        tree["sha256"] = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    return json_bytes(tree, **_FORM) + b"\n"


class _ShardFolder(Area):
    """`inspect --verify` (and without) on a damaged copy."""

    def prepare(self) -> None:
        make_common(with_run=False)

    def _entry(self, draw: random.Random) -> str:
        return choose(draw, [("verify", 3), ("inspect", 1)])

    @cached_property
    def _right(self) -> dict[str, Any]:
        from fuzz.area import run_here

        found: dict[str, Any] = parsed_json(run_here(["inspect", SHARDS, "--json"]).out)
        return found

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((SHARDS / "manifest.json").read_bytes())
        return found

    @cached_property
    def _table(self) -> pa.Table:
        return pq.read_table(SHARDS / "index.parquet")

    def _inspected(self, work: Path, plan: Plan, run: Run) -> dict[str, Any] | None:
        """Return what is said of the copy, None if it is refused."""
        verify = ["--verify"] if plan["entry"] == "verify" else []
        said = run(["inspect", work / "shards", "--json", *verify])
        if refused(said):
            return None
        found: dict[str, Any] = parsed_json(said.out)
        found["verified"] = False
        return found


class ManifestFile(_ShardFolder):
    """`manifest.json`."""

    name = "manifest"

    def make(self, draw: random.Random, work: Path) -> Plan:
        folder = copy_folder(SHARDS, work / "shards")
        path = folder / "manifest.json"
        kind = choose(draw, [("bytes", 3), ("unsigned", 2), ("resigned", 5), ("twice", 1), ("replaced", 1)])
        if kind == "bytes":
            path.write_bytes(damaged_bytes(draw, path.read_bytes()))
        elif kind == "unsigned":
            path.write_bytes(json_bytes(damaged_tree(draw, self._manifest), **_FORM) + b"\n")
        elif kind == "resigned":
            path.write_bytes(resigned(damaged_tree(draw, self._manifest)))
        elif kind == "twice":
            path.write_text(doubled_name(draw, path.read_text()))
        else:
            kind = replace_file(draw, draw.choice(sorted(folder.iterdir())))
        return {"kind": kind, "entry": self._entry(draw)}

    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        found = self._inspected(work, plan, run)
        if found is None:
            return REFUSED
        path = work / "shards" / "manifest.json"
        if plan["kind"] != "resigned":
            if plan["entry"] == "verify":
                need(path.read_bytes() == (SHARDS / "manifest.json").read_bytes(), f"changed bytes verified: {plan}")
            need(found == self._right, f"other counts after {plan}")
            return ACCEPTED
        if plan["entry"] == "verify":
            said = json.loads(path.read_bytes())
            for name in _PROVEN:
                need(_equal(said.get(name), self._manifest[name]), f"verified with {name} {str(said.get(name))[:300]}")
            about = ("warnings",)
            for name, value in self._right.items():
                need(name in about or found[name] == value, f"verified, but {name} is {str(found[name])[:200]}")
        return ACCEPTED


def _equal(found: Any, right: Any) -> bool:
    """Return whether two values say the same; a number may stand there as text, which readers take."""
    if isinstance(right, dict) and isinstance(found, dict):
        return found.keys() == right.keys() and all(_equal(found[name], right[name]) for name in right)
    if isinstance(right, list) and isinstance(found, list):
        return len(found) == len(right) and all(map(_equal, found, right))
    if isinstance(right, int | float) and isinstance(found, str):
        return float(found) == right
    return bool(found == right)


class IndexFile(_ShardFolder):
    """`index.parquet`, and the bytes of the tars that it describes."""

    name = "index"

    def make(self, draw: random.Random, work: Path) -> Plan:
        folder = copy_folder(SHARDS, work / "shards")
        path = folder / "index.parquet"
        kind = choose(draw, [("bytes", 1), ("resigned bytes", 2), ("table", 8), ("other bytes", 2), ("tar", 1)])
        if kind == "tar":
            path = draw.choice(sorted(folder.glob("*.tar")))
            data = path.read_bytes()
            path.write_bytes(damaged_bytes(draw, data) if draw.random() < 0.5 else _flipped_bit(draw, data))
        elif kind == "other bytes":
            path = draw.choice([path, folder / "rejected.jsonl"])
            path.write_bytes(_flipped_bit(draw, path.read_bytes()) or b"\0")
        elif kind == "table":
            table, recipe = _damaged_table(draw, self._table)
            kind = f"table, {recipe}"
            self._write_signed(draw, folder, _parquet(draw, table), len(table))
        else:
            data = damaged_bytes(draw, path.read_bytes())
            if kind == "bytes":
                path.write_bytes(data)
            else:
                self._write_signed(draw, folder, data, len(self._table))
        return {"kind": kind, "entry": self._entry(draw)}

    def _write_signed(self, draw: random.Random, folder: Path, data: bytes, num_rows: int) -> None:
        (folder / "index.parquet").write_bytes(data)
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["index"] |= {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if draw.random() < 0.7:
            manifest["index"]["num_utterances"] = num_rows
        if draw.random() < 0.3:
            manifest["labels"] = _labels(data) or manifest["labels"]
        (folder / "manifest.json").write_bytes(resigned(manifest))

    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        found = self._inspected(work, plan, run)
        if found is None:
            return REFUSED
        if plan["entry"] == "verify":
            table = pq.read_table(work / "shards" / "index.parquet")
            need(_rows(table) == _rows(self._table), f"verified with other rows after {plan}")
            for path in SHARDS.iterdir():
                if path.suffix == ".tar" or path.name == "rejected.jsonl":
                    same = (work / "shards" / path.name).read_bytes() == path.read_bytes()
                    need(same, f"verified with other bytes in {path.name} after {plan}")
        return ACCEPTED


def _flipped_bit(draw: random.Random, data: bytes) -> bytes:
    if not data:
        return b"\0"
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows by key; the order of rows and columns and a column of nothing say nothing."""
    rows = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
    return sorted(rows, key=lambda row: str(row.get("key")))


def _labels(data: bytes) -> dict[str, dict[str, int]] | None:
    from shards.errors import InputError
    from shards.index import Index, label_tables

    try:
        found = label_tables(Index.of_table(pq.read_table(io.BytesIO(data))))
        # Words of a column whose type was changed are no words.
        return json.loads(json.dumps(found))
    except (pa.ArrowException, InputError, OSError, LookupError, TypeError, ValueError, AttributeError):
        return None


def _damaged_table(draw: random.Random, table: pa.Table) -> tuple[pa.Table, str]:
    kind = choose(draw, [("cell", 8), ("rows", 5), ("column", 3), ("type", 2), ("offsets", 2)])
    if kind == "rows":
        return _other_rows(draw, table)
    name = draw.choice(table.column_names)
    at = table.column_names.index(name)
    values = table.column(name).to_pylist()
    row = draw.randrange(len(values))
    if kind == "cell":
        values[row] = value = _other_value(draw, values[row])
        try:
            return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), (
                f"{name} of row {row} is {str(value)[:60]!r}"
            )
        except (pa.ArrowException, OverflowError, TypeError, ValueError, UnicodeError):
            return table.drop_columns([name]), f"without {name}"
    if kind == "offsets":
        # A row that points at what belongs to another one.
        other = draw.randrange(len(values))
        groups = (("audio_offset", "audio_bytes"), ("meta_offset", "meta_bytes"), ("audio_sha256",), ("pcm_sha256",))
        names = draw.choice((*groups, ("shard",), ("meta_offset", "meta_bytes", "emotion"), ("key",), ("num_samples",)))
        for name in names:
            at = table.column_names.index(name)
            values = table.column(name).to_pylist()
            values[row] = values[other] if draw.random() < 0.7 else None
            table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
        return table, f"{names} of row {row} as in row {other}"
    if kind == "type":
        field = table.schema.field(at)
        for wanted in draw.sample(
            [pa.string(), pa.float32(), pa.int8(), pa.uint64(), pa.binary(), pa.large_string()], 6
        ):
            try:
                return table.set_column(
                    at, field.with_type(wanted), table.column(name).cast(wanted)
                ), f"{name} as {wanted}"
            except pa.ArrowException:
                continue
    recipe = draw.choice(("dropped", "renamed", "twice", "all null", "moved", "more"))
    if recipe == "dropped":
        return table.drop_columns([name]), f"{name} dropped"
    if recipe == "renamed":
        return table.rename_columns(
            [f"{old}x" if old == name else old for old in table.column_names]
        ), f"{name} renamed"
    if recipe == "twice":
        return table.append_column(table.schema.field(at), table.column(at)), f"{name} twice"
    if recipe == "all null":
        field = table.schema.field(at)
        return table.set_column(at, field, pa.nulls(len(table), field.type)), f"{name} all null"
    if recipe == "moved":
        return table.select(table.column_names[::-1]), "columns in another order"
    return table.append_column("more", pa.array([[1]] * len(table))), "one more column"


def _other_rows(draw: random.Random, table: pa.Table) -> tuple[pa.Table, str]:
    count = len(table)
    recipe = draw.choice(("none", "twice", "one twice", "fewer", "one missing", "shuffled", "reversed", "first only"))
    orders = {
        "none": [],
        "twice": [*range(count), *range(count)],
        "one twice": [*range(count), draw.randrange(count)],
        "fewer": sorted(draw.sample(range(count), draw.randrange(1, count))),
        "one missing": [row for row in range(count) if row != draw.randrange(count)],
        "shuffled": draw.sample(range(count), count),
        "reversed": list(range(count))[::-1],
        "first only": [0],
    }
    return table.take(pa.array(orders[recipe], pa.int64())), f"rows: {recipe}"


def _other_value(draw: random.Random, value: Any) -> Any:
    if isinstance(value, bytes):
        return draw.choice((None, bytes(32), _flipped_bit(draw, value)))
    if isinstance(value, int | float):
        return draw.choice((None, near(draw, value), draw.choice(NUMBERS), float("nan")))
    return draw.choice((None, near(draw, value), draw.choice(WORDS), "{}", "[]", '{"a": 1', '{"a": NaN}'))


def _parquet(draw: random.Random, table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    form = draw.choice(
        ({}, {"row_group_size": 5}, {"compression": "gzip"}, {"use_dictionary": False}, {"version": "1.0"})
    )
    pq.write_table(table, buffer, **form)
    return buffer.getvalue()
