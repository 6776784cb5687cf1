"""Lines of `metrics.jsonl` and of key logs: objects with `stage` and `step`, each sealed over all that precede it.

A line ends with `"seal"`, the first 16 digits of the sha256 of the seal before it and of its own bytes up to there (in
hexadecimal): no changed sign is believed, and no line that is missing, doubled or moved, except at the end, where a
killed training may have left any number of lines. Lines of earlier versions have no seals; sealed lines that follow
them cover them, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from metaser.errors import RunError
from metaser.runfiles import validated_json
from shards.shown import shown

Line = dict[str, Any]
Stage = Annotated[int, Field(gt=0, lt=2**31)]
Step = Annotated[int, Field(ge=0, lt=2**53)]
_MAX_DIGITS = 20


class Chain:
    """Seals lines one after another, or compares their seals."""

    def __init__(self, *, is_at_start: bool = True) -> None:
        """Begin with the first line of a file, or with any other, whose seal is then taken as it is."""
        self._last = b""
        self._is_known = is_at_start
        self._must_be_sealed = False

    @classmethod
    def after(cls, data: bytes, where: str) -> Chain:
        """Return the chain that goes on after the whole lines in `data`, which stands in `where`.

        Raises:
            RunError: as `check` does.
        """
        chain = cls()
        for line in data.split(b"\n")[:-1]:
            chain.check(line, where)
        return chain

    def sealed(self, line: bytes) -> bytes:
        """Return the next line, an object that is not empty, with its seal."""
        self._last = _seal(self._last, line[:-1])
        return line[:-1] + _ENDING % self._last

    def check(self, line: bytes, where: str) -> None:
        """Compare the seal of the next line, which stands in `where`.

        Raises:
            RunError: if it is another, or is gone.
        """
        found = _SEALED.fullmatch(line, len(line) - _ENDING_BYTES)
        if found is None and (self._must_be_sealed or b'"seal"' in line or _DIGEST.search(line)):
            raise RunError(f"{where} is damaged: it must end with its seal, but does not; restore it or move it away")
        seal = _seal(self._last, line if found is None else line[:-_ENDING_BYTES])
        if found is not None:
            if self._is_known and found[1] != seal:
                raise RunError(
                    f"{where} is damaged: it is not what its seal is of, or not the line that followed the one before "
                    "it; restore it or move it away"
                )
            seal, self._must_be_sealed, self._is_known = found[1], True, True
        self._last = seal


_ENDING = b', "seal": "%s"}'
_SEALED = re.compile(rb', "seal": "([0-9a-f]{16})"\}')
_DIGEST = re.compile(rb'"[0-9a-f]{16}"\}\Z')
"""What a line ends with if the name before it is damaged."""
_ENDING_BYTES = len(_ENDING % (b"0" * 16))


def _seal(before: bytes, line: bytes) -> bytes:
    return hashlib.sha256(before + line).hexdigest()[:16].encode()


def read_lines(lines: Iterable[tuple[bytes, str]], chain: Chain) -> Iterator[Line]:
    """Yield the values of lines, each given with where it stands, without their seals.

    Raises:
        RunError: if a line is damaged, or not the one that followed the one before it.
    """
    for data, where in lines:
        chain.check(data, where)
        line = parse_line(data, where)
        line.pop("seal", None)
        yield line


@dataclass(frozen=True)
class _Evaluation:
    loss: float | None = None
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Line:
    """What is read back of a line; the rest is for people and TensorBoard."""

    stage: Stage
    step: Step
    loss: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    dev: _Evaluation | None = None


_validate_line = TypeAdapter(_Line).validate_json
_validate_object = TypeAdapter(Line).validate_json


def parse_line(data: bytes, where: str) -> Line:
    """Return the object in a line, which stands in `where`; its seal is one of its values.

    Raises:
        RunError: if it is damaged.
    """
    parsed = validated_json(data, _validate_line, where)
    # Faster than Python's own by half.
    line = validated_json(data, _validate_object, where)
    try:
        for task, metrics in parsed.dev.tasks.items() if parsed.dev is not None else ():
            check_metrics(task, metrics)
        _check_digits(line)
    except ValueError as error:
        raise RunError(f"{where} is damaged: {error}; restore it or move it away") from None
    return line


def check_metrics(task: str, metrics: dict[str, Any]) -> None:
    """Refuse metrics that are no numbers.

    Raises:
        ValueError: naming the first.
    """
    for name, value in metrics.items():
        is_right = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        if name == "ua_interval_95" and isinstance(value, list):
            is_right = len(value) == 2 and all(isinstance(bound, int | float) for bound in value)
        elif name.endswith("_reason"):
            is_right = value is None or isinstance(value, str)
        elif isinstance(value, dict | list):
            # Not read back.
            continue
        if not is_right:
            raise ValueError(f"{shown(name, 40)} of {shown(task, 40)} must be a number, got {shown(repr(value), 60)}")


def _check_digits(value: Any) -> None:
    """Refuse whole numbers that no float holds: TensorBoard and figures take floats."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_digits(item)
    elif isinstance(value, int) and abs(value) >= 10**_MAX_DIGITS:
        raise ValueError(f"it holds a number of more than {_MAX_DIGITS} digits")
