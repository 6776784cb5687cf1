"""JSON that others wrote: of bounded depth, without NaN, lone surrogates or names that stand twice."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

from shards.shown import shown

MAX_DEPTH = 64
"""Objects and lists inside each other; what MetaSER writes has fewer than ten."""
MAX_DIGITS = 100
"""Of a whole number; longer ones take a time that grows with the square of their length."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])', re.DOTALL)


class JsonTextError(ValueError):
    """Text is no JSON that is read here; the message says why."""


class RepeatedNameError(JsonTextError):
    """An object names something twice."""


def parse_json(text: str | bytes, *, allow_nan: bool = False) -> Any:
    """Return the value that `text` (bytes as UTF-8) holds.

    With `allow_nan`, `NaN` is read as Python and pandas write it where a number is missing.

    Raises:
        JsonTextError: if it is no JSON, is deeper than `MAX_DEPTH`, names something twice in one object, or holds a
            number that is not finite or longer than `MAX_DIGITS`, or a lone surrogate.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=unique,
            parse_constant=_nan_or_raise if allow_nan else _refuse_constant,
            parse_int=_whole,
            parse_float=_finite,
        )
    except JsonTextError:
        raise
    except UnicodeDecodeError as error:
        raise JsonTextError(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise JsonTextError(f"it is deeper than {MAX_DEPTH} lists and objects inside each other") from None
    except ValueError as error:
        raise JsonTextError(str(error)) from None
    # Where the text has few brackets, it cannot be deep.
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise JsonTextError(f"it is deeper than {MAX_DEPTH} lists and objects inside each other")
    if _has_surrogate(value):
        raise JsonTextError("it holds half a character (a lone surrogate)")
    return value


def dump_json(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Return a value as JSON in which nothing stands that a terminal obeys.

    Raises:
        ValueError: if a number in it is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=sort_keys, allow_nan=False)
    if any(shown(line) != line for line in text.split("\n")):
        text = json.dumps(value, indent=indent, sort_keys=sort_keys, allow_nan=False).replace("\x7f", "\\u007f")
    return text


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of names and values.

    Raises:
        RepeatedNameError: if a name stands there twice, so that one value would be lost.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated = sorted(name for name, count in counts.items() if count > 1)
        raise RepeatedNameError(f"it names {shown(', '.join(repeated), 100)} twice")
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise JsonTextError(f"it holds {word}, which is no number of JSON")


def _nan_or_raise(word: str) -> float:
    return float(word) if word == "NaN" else _refuse_constant(word)


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise JsonTextError(f"it holds a number of {len(digits)} digits, but at most {MAX_DIGITS} are read")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise JsonTextError(f"it holds the number {digits[:40]}, which is too large")
    return value


def _depth(text: str) -> int:
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        if match[1]:
            depth += 1
            deepest = max(deepest, depth)
        elif match[2]:
            depth -= 1
    return deepest


def _has_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    if isinstance(value, list):
        return any(map(_has_surrogate, value))
    if isinstance(value, dict):
        return any(_has_surrogate(name) or _has_surrogate(item) for name, item in value.items())
    return False
