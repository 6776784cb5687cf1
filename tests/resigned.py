"""A packed folder whose contents are changed and whose hashes are made anew, as another writer's would be right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def resign(folder: Path) -> None:
    """Make the sizes and hashes in the manifest those of the files beside it, and its own that of its fields."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for record in (manifest["index"], manifest["rejected"], *manifest["shards"]):
        data = (folder / record["name"]).read_bytes()
        record.update(num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the hash of its other fields, however wrong these are."""
    fields = {name: value for name, value in manifest.items() if name != "sha256"}
    canonical = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    fields["sha256"] = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    text = json.dumps(fields, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and its hash."""
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    write_manifest(folder, manifest)


def edit_table(folder: Path, edit: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Change the index and all hashes; `options` are those of the writer."""
    path = folder / "index.parquet"
    table = edit(pq.read_table(path))
    pq.write_table(table, path, **options)
    resign(folder)


def with_value(table: pa.Table, name: str, value: Any, row: int = 0, kind: pa.DataType | None = None) -> pa.Table:
    """Return a table with one value changed, its column of another type if it needs one."""
    values = table.column(name).to_pylist()
    values[row] = value
    number = table.schema.get_field_index(name)
    return table.set_column(
        number,
        pa.field(name, kind or table.schema.field(name).type),
        pa.array(values, kind or table.schema.field(name).type),
    )
