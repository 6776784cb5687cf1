"""How the files of a run are read and written, with one sentence for what fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError

from metaser.errors import RunError
from metaser.sums import SEAL, is_as_sealed, is_sealed
from shards.files import whole_file
from shards.inputfile import read_regular
from shards.jsontext import JsonTextError, parse_json
from shards.shown import shown

MAX_JSON_BYTES = 1 << 28
"""Of a JSON file of a run: `environment.json` keeps the changed code of every start."""
Parsed = TypeVar("Parsed")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence that `path` cannot be written.

    Raises:
        RunError: if the disk refuses (full, read-only).
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path} cannot be written: {error}; earlier checkpoints are complete, free the disk and start again to "
            "continue"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path`; readers see what was there or all of it."""
    with whole_file(path) as file:
        file.write(text.encode())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one sentence that `path` cannot be read; that it does not exist is left to the caller.

    Raises:
        RunError: if the system refuses.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"{path} must be readable, but is not: {error.strerror}") from error


def read_bytes(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> bytes | None:
    """Return what the regular file at `path` holds, None if there is no such file.

    Raises:
        RunError: if it cannot be read, is no regular file, or is longer than `max_bytes`.
    """
    with reading(path):
        try:
            return read_regular(path, max_bytes=max_bytes)
        except FileNotFoundError:
            return None


def read_json(path: Path, validate: Callable[..., Parsed]) -> Parsed | None:
    """Return what the JSON file at `path` holds, None if there is no such file.

    `validate` is the `validate_json` of a pydantic `TypeAdapter`. An object that is sealed must be as it was sealed;
    those of earlier versions are not.

    Raises:
        RunError: if it cannot be read or does not hold what it must.
    """
    data = read_bytes(path)
    return None if data is None else parse_sealed(data, validate, path)


def parse_sealed(data: bytes, validate: Callable[..., Parsed], path: Path) -> Parsed:
    """Return the JSON in `data`, the content of `path`, as `read_json` does.

    Raises:
        RunError: if it does not hold what it must.
    """
    if not is_as_sealed(data):
        try:
            values = parse_json(data)
        except JsonTextError as error:
            raise RunError(f"{path} is damaged: {error}; restore it or move it away") from None
        if is_sealed(values):
            raise RunError(f"{path} is damaged: it is not what its {SEAL} is of; restore it or move it away")
    return validated_json(data, validate, str(path))


def validated_json(data: bytes, validate: Callable[..., Parsed], where: str) -> Parsed:
    """Return the JSON in `data`, which stands in `where`; no value is taken for one of another type.

    Raises:
        RunError: if it is damaged.
    """
    try:
        return validate(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{part}: " for part in first["loc"])
        raise RunError(
            f"{where} is damaged: {shown(place, 100)}{shown(first['msg'], 200)}, got "
            f"{shown(repr(first['input']), 60)}; restore it or move it away"
        ) from None
