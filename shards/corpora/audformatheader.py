"""The header of a database in audformat, `db.yaml`: what its tables, splits and schemes are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator, ValidationError

from shards.errors import CorpusError
from shards.inputfile import read_regular
from shards.yamltext import MAX_YAML_BYTES, YamlTextError, parse_yaml

_MAX_SHOWN = 60


def _name(value: Any) -> str:
    if isinstance(value, str | bool | int | float | date):
        return str(value)
    raise ValueError("must be a name")


def _listed(value: Any) -> Any:
    return [] if value is None else value if isinstance(value, list) else [value]


def _filled(value: Any) -> Any:
    return {} if value is None else value


def _labels(value: Any) -> dict[str, dict[str, Any]] | str:
    if value is None or isinstance(value, list):
        return {}
    if isinstance(value, dict):
        described = {_name(label): known for label, known in value.items() if isinstance(known, dict)}
        return {label: {_name(name): _cell(cell) for name, cell in known.items()} for label, known in described.items()}
    if not isinstance(value, str):
        raise ValueError("must be labels or the name of a table of labels")
    return value


def _cell(value: Any) -> Any:
    """Return a value as a table holds it; YAML has others, such as objects that hold themselves."""
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


_Name = Annotated[str, BeforeValidator(_name)]


class _Part(BaseModel):
    """A part of the header; what else stands in it is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Scheme(_Part):
    labels: Annotated[dict[str, dict[str, Any]] | str, PlainValidator(_labels)] = {}
    """What is known of each label, or the name of the table that says it."""


class _Split(_Part):
    type: _Name | None = None


class _Column(_Part):
    scheme_id: _Name | None = None


class AudformatTable(_Part):
    """A table's description."""

    split_id: _Name | None = None
    columns: Annotated[dict[_Name, Annotated[_Column, BeforeValidator(_filled)]], BeforeValidator(_filled)] = {}


class AudformatHeader(_Part):
    """All of it that matters here."""

    tables: dict[_Name, Annotated[AudformatTable, BeforeValidator(_filled)]]
    name: _Name | None = None
    license: _Name | None = None
    languages: Annotated[list[_Name], BeforeValidator(_listed)] = []
    schemes: Annotated[dict[_Name, Annotated[_Scheme, BeforeValidator(_filled)]], BeforeValidator(_filled)] = {}
    splits: Annotated[dict[_Name, Annotated[_Split, BeforeValidator(_filled)]], BeforeValidator(_filled)] = {}

    def labels(self, column: str, table: AudformatTable) -> Mapping[str, Mapping[str, Any]] | str:
        """Return what the scheme of `column` knows of its labels, or the name of the table that says it."""
        scheme = self.schemes.get(table.columns[column].scheme_id or "")
        return {} if scheme is None else scheme.labels

    def split_word(self, table: AudformatTable) -> str | None:
        """Return what a table's split is called."""
        if table.split_id is None:
            return None
        split = self.splits.get(table.split_id)
        return (None if split is None else split.type) or table.split_id


def read_header(path: Path) -> AudformatHeader:
    """Return the header in `path`.

    Raises:
        CorpusError: if it is none.
    """
    try:
        # audformat writes it by PyYAML, that is, as YAML 1.1.
        content = parse_yaml(read_regular(path, max_bytes=MAX_YAML_BYTES), "1.1")
    except (OSError, YamlTextError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise CorpusError(f"{path} must be YAML that can be read, but {said}; restore it") from error
    if not isinstance(content, dict) or content.get("tables") is None:
        raise CorpusError(f"{path} must be the header of an audformat database, but names no tables")
    try:
        return AudformatHeader.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        reason = reason.partition(" or instance of")[0].replace("a valid dictionary", "an object")
        raise CorpusError(
            f"{path} must be the header of an audformat database, but {place} {reason}, got "
            f"{repr(first['input'])[:_MAX_SHOWN]}; restore it"
        ) from error
