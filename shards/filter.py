"""Filters over metadata, such as `emotion in ["anger", "neutral"] and duration_s < 20`.

An expression is parsed, checked against a list of allowed forms and evaluated over columns; nothing in it is ever
run as code.
"""

from __future__ import annotations

import ast
import math
import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shards.errors import FilterError
from shards.index import NUMBER_FIELDS, Index
from shards.indexcolumns import Codes
from shards.numbers import number_of
from shards.shown import shown

_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ABSENCE = (ast.Is, ast.Eq)
_PRESENCE = (ast.IsNot, ast.NotEq)
_MAX_SHOWN = 200
_HELP = 'write comparisons such as `emotion in ["anger", "neutral"] and duration_s < 20`'


def select_rows(index: Index, expression: str) -> np.ndarray:
    """Return which utterances satisfy `expression`, shape (num_utterances,), bool.

    A comparison with an absent value is False, whichever comparison it is; `is None` and `is not None` ask for absence.
    `and`, `or`, `not` and parentheses combine; `extra.NAME` reaches a corpus's own fields.

    Raises:
        FilterError: if the expression has any other form, names an unknown field or compares text with numbers.
    """
    try:
        return _truth(index, ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError as error:
        raise FilterError(f"filter must be an expression, but {_cut(expression)} has {error.msg}; {_HELP}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise FilterError(f"filter must be a simple text, but {_cut(expression)} fails: {error}; {_HELP}") from error


def _truth(index: Index, node: ast.expr) -> np.ndarray:
    match node:
        case ast.BoolOp(op=op, values=parts):
            combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return np.asarray(combine.reduce([_truth(index, part) for part in parts]))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_truth(index, operand)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            # `1 < age < 9` is two links, and holds where both do.
            links = zip([left, *comparators], ops, comparators, strict=False)
            return np.asarray(np.logical_and.reduce([_link(index, *link) for link in links]))
    raise FilterError(f"filter must consist of comparisons, got `{_told(node)}`; {_HELP}")


def _link(index: Index, left: ast.expr, op: ast.cmpop, right: ast.expr) -> np.ndarray:
    """Return where one comparison between neighbours holds."""
    if isinstance(op, ast.In | ast.NotIn):
        return _membership(index, left, isinstance(op, ast.In), right)
    if _is_none(right):
        return _presence(index, left, op)
    if type(op) not in _COMPARISONS:
        raise FilterError(f"`is` must be followed by None, got `{_told(right)}`; write == instead")
    compare = _COMPARISONS[type(op)]
    match _field_name(left), _field_name(right):
        case None, None:
            raise FilterError(f"each comparison must name a field, got `{_told(left)}` and `{_told(right)}`; {_HELP}")
        case str(name), None:
            constant = _constant(right)
            _check_kinds(index, left, _kinds(index, left), right, {_kind(constant)})
            return _where_value(index, name, lambda value: compare(value, constant), _kind(constant))
        case None, str(name):
            constant = _constant(left)
            _check_kinds(index, left, {_kind(constant)}, right, _kinds(index, right))
            return _where_value(index, name, lambda value: compare(constant, value), _kind(constant))
        case str(first), str(second):
            kinds = _kinds(index, left), _kinds(index, right)
            _check_kinds(index, left, kinds[0], right, kinds[1])
            kind = "a number" if all("a number" in found for found in kinds) else "text"
            return _where_pair(_codes(index, first, kind), _codes(index, second, kind), compare)
    raise AssertionError("a field's name is text or None")


def _holds(compare: Callable[[Any, Any], bool], left: Any, right: Any) -> bool:
    return _kind(left) == _kind(right) and compare(left, right)


def _where_value(index: Index, field: str, condition: Callable[[Any], Any], kind: str) -> np.ndarray:
    """Return the rows whose value is of `kind` and satisfies `condition`."""
    if field not in NUMBER_FIELDS:
        return _where_word(_codes(index, field, kind), lambda word: _kind(word) == kind and condition(word))
    values = index.numbers(field)
    found: np.ndarray = condition(values) & ~np.isnan(values)
    return found


def _codes(index: Index, field: str, kind: str) -> Codes:
    """Return a field's values; as numbers where these are asked for, and all that a table of text has are some."""
    codes = index.codes(field)
    if kind != "a number" or not field.startswith("extra.") or codes.without_number():
        return codes
    numbers = [number_of(word) for word in codes.words]
    absent = [number is None or math.isnan(number) for number in numbers]
    return Codes(np.where(codes.lookup(absent, True), -1, codes.numbers), tuple(numbers))


def _where_word(codes: Codes, condition: Callable[[Any], bool]) -> np.ndarray:
    """Return the rows whose value satisfies `condition`, which is asked once for each different value."""
    return codes.lookup((condition(word) for word in codes.words), False).astype(bool)


def _where_pair(left: Codes, right: Codes, compare: Callable[[Any, Any], bool]) -> np.ndarray:
    """Return the rows whose two values satisfy `compare`, which is asked once for each different pair."""
    width = len(right.words) + 1
    pairs, row_of = np.unique((left.numbers.astype(np.int64) + 1) * width + right.numbers + 1, return_inverse=True)
    truths = [
        a > 0 and b > 0 and _holds(compare, left.words[a - 1], right.words[b - 1])
        for a, b in (divmod(pair, width) for pair in pairs.tolist())
    ]
    return np.asarray(truths, dtype=bool)[row_of]


def _membership(index: Index, left: ast.expr, is_wanted: bool, right: ast.expr) -> np.ndarray:
    name = _required_field(left)
    if not isinstance(right, ast.List | ast.Tuple | ast.Set):
        raise FilterError(f"`in` must be followed by a list of values, got `{_told(right)}`; {_HELP}")
    choices = [_constant(item) for item in right.elts]
    for item, choice in zip(right.elts, choices, strict=True):
        _check_kinds(index, left, _kinds(index, left), item, {_kind(choice)})
    kind = "a number" if choices and all(_kind(choice) == "a number" for choice in choices) else "text"
    return _where_word(_codes(index, name, kind), lambda word: (word in choices) == is_wanted)


def _presence(index: Index, node: ast.expr, op: ast.cmpop) -> np.ndarray:
    if not isinstance(op, _ABSENCE + _PRESENCE):
        raise FilterError(f"None has no order, but the filter compares `{_told(node)}` with it; write `is None`")
    chosen: np.ndarray = (index.codes(_required_field(node)).numbers < 0) == isinstance(op, _ABSENCE)
    return chosen


def _required_field(node: ast.expr) -> str:
    name = _field_name(node)
    if name is None:
        raise FilterError(f"`in` and `None` need a field on the left, got `{_told(node)}`; {_HELP}")
    return name


def _field_name(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id="extra"), attr=name):
            return f"extra.{name}"
    return None


def _constant(node: ast.expr) -> str | float:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -_comparable(number)
        case ast.Constant(value=str() as word):
            return word
        case ast.Constant(value=int() | float() as number):
            return _comparable(number)
    raise FilterError(f"a filter compares fields with text or numbers, got `{_told(node)}`; {_HELP}")


def _comparable(number: float) -> float:
    """Return a number as it stands there; whole numbers beyond those of floats have no order beside these."""
    if abs(number) > sys.float_info.max:
        raise FilterError(f"a filter compares with numbers up to {sys.float_info.max:.1e}, got one that is larger")
    return number


def _cut(expression: str) -> str:
    return repr(shown(expression, _MAX_SHOWN))


def _told(node: ast.expr) -> str:
    return shown(ast.unparse(node), _MAX_SHOWN)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _kind(value: object) -> str:
    return "text" if isinstance(value, str) else "a number" if isinstance(value, int | float) else "a table"


def _kinds(index: Index, node: ast.expr) -> set[str]:
    """Return what a field may hold; a corpus's own fields tell only by their values, and text may be all numbers."""
    name = _field_name(node) or ""
    if name.startswith("extra."):
        codes = index.codes(name)
        kinds = {_kind(word) for word in codes.words}
        return kinds if not kinds or codes.without_number() else kinds | {"a number"}
    if name == "emotion_votes":
        return {"a table"}
    return {"a number" if name in NUMBER_FIELDS else "text"}


def _check_kinds(index: Index, left: ast.expr, left_kinds: set[str], right: ast.expr, right_kinds: set[str]) -> None:
    if left_kinds and right_kinds and not left_kinds & right_kinds:
        why = _no_number(index, left) + _no_number(index, right)
        raise FilterError(
            f"a filter must compare like with like, but `{_told(left)}` is {'/'.join(sorted(left_kinds))} and "
            f"`{_told(right)}` is {'/'.join(sorted(right_kinds))}{why}"
        )


def _no_number(index: Index, node: ast.expr) -> str:
    """Return what keeps a corpus's own field from being numbers."""
    name = _field_name(node) or ""
    found = index.codes(name).without_number() if name.startswith("extra.") else []
    return f"; {name} has {found[0]!r}, which is no number" if found else ""
