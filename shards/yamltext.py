"""YAML that others wrote: one document of plain values, of bounded depth and size, in which no name stands twice.

What PyYAML does beyond that is off: it repeats a few hundred bytes into gigabytes, lets the last of two values win, and
takes `010` for 8, `1:30` for 90 and `no` for false.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, NoReturn

import yaml

from shards.jsontext import MAX_DEPTH, MAX_DIGITS
from shards.shown import shown

MAX_YAML_BYTES = 4 << 20
"""Read from a file of YAML; PyYAML reads about 0.3 MB a second."""
MAX_NODES = 150_000
"""Names and values of one text; 7 s on a busy core. A header that describes 10,000 speakers has 80,000."""
MAX_REPEATED = 10_000
"""Names and values that aliases (`*x`) may add by repeating what stands elsewhere."""

_TAG = "tag:yaml.org,2002:"
_MAX_SHOWN = 60


class YamlTextError(ValueError):
    """Text is no YAML that is read here; the message says why, and in which line."""


def parse_yaml(text: str | bytes, kind: Literal["core", "words", "1.1"] = "core") -> Any:
    """Return the value that `text` (bytes as UTF-8) holds; None if it is empty.

    Args:
        text: one document.
        kind: `core`: numbers, `true`, `false` and `null` as in YAML 1.2, all else is text. `words`: everything is text.
            `1.1`: as in YAML 1.1, which other programs write.

    Raises:
        YamlTextError: if it is no YAML, several documents, deeper than `MAX_DEPTH` or larger than `MAX_NODES`, names
            something twice, repeats more than `MAX_REPEATED`, or has values other than texts, numbers, lists and
            mappings.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return _LOADERS[kind](text).get_single_data()
    except YamlTextError:
        raise
    except UnicodeDecodeError as error:
        raise YamlTextError(f"byte {error.start} is not UTF-8") from None
    except yaml.reader.ReaderError as error:
        line = str(text)[: error.position].count("\n") + 1
        raise YamlTextError(f"line {line}: it holds U+{error.character:04X}, which YAML does not allow") from None
    except yaml.MarkedYAMLError as error:
        raise YamlTextError(_described(error)) from None
    except (ValueError, OverflowError) as error:
        # Of an escape such as \UFFFFFFFF, PyYAML lets Python's own errors through.
        raise YamlTextError(str(error)) from None


def dump_yaml(value: Any) -> str:
    """Return plain values as YAML that `parse_yaml` reads back to equal ones, without what a terminal obeys."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)
    if any(shown(line) != line for line in text.split("\n")):
        text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=1 << 20)
    return text


def _described(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    if error.context == "expected a single document in the stream":
        words = "a second document begins, but one is read"
    else:
        words = ", ".join(" ".join(part.split()) for part in (error.context, error.problem) if part)
    return shown(words if mark is None else f"line {mark.line + 1}: {words}", 300)


def _line(node: yaml.Node) -> int:
    line: int = node.start_mark.line
    return line + 1


# ---------------------------------------------------------------- bounds


class _Bounded(yaml.SafeLoader):
    """A loader that counts what it composes before any value is made of it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_nodes = 0
        self._num_repeated = 0
        self._depth = 0
        self._deepest = 0
        self._sizes: dict[str, tuple[int, int]] = {}
        """Number of nodes and of levels behind each anchor."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self._repeat(str(event.anchor), line)
            return super().compose_node(parent, index)
        before, deepest = self._num_nodes, self._deepest
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise YamlTextError(f"line {line}: it has more than {MAX_NODES} names and values, the most that are read")
        self._depth += 1
        self._deepest = self._depth
        self._check_depth(self._depth, line)
        node = super().compose_node(parent, index)
        if event.anchor is not None:
            self._sizes[event.anchor] = self._num_nodes - before, self._deepest - self._depth + 1
        self._deepest = max(deepest, self._deepest)
        self._depth -= 1
        return node

    def _repeat(self, anchor: str, line: int) -> None:
        """Count what the alias of `anchor` repeats."""
        if anchor in self.anchors and anchor not in self._sizes:
            raise YamlTextError(f"line {line}: what is called {shown(anchor, _MAX_SHOWN)!r} holds itself")
        num_nodes, levels = self._sizes.get(anchor, (0, 0))
        self._num_nodes += num_nodes
        self._num_repeated += num_nodes
        if self._num_repeated > MAX_REPEATED:
            raise YamlTextError(
                f"line {line}: aliases such as *{shown(anchor, _MAX_SHOWN)} repeat more than {MAX_REPEATED} names and "
                "values, the most that are read"
            )
        self._deepest = max(self._deepest, self._depth + levels)
        self._check_depth(self._depth + levels, line)

    def _check_depth(self, depth: int, line: int) -> None:
        if depth > MAX_DEPTH:
            raise YamlTextError(f"line {line}: it is deeper than {MAX_DEPTH} lists and mappings inside each other")

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        if not node.value.isascii():
            try:
                # JSON, which is YAML, writes what lies beyond U+FFFF as two halves.
                node.value = node.value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
            except UnicodeDecodeError:
                raise YamlTextError(f"line {_line(node)}: it holds half a character (a lone surrogate)") from None
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise YamlTextError(f"line {_line(key)}: a name must be a text or a number, not a list or a mapping")
            is_plain = key.tag in (f"{_TAG}merge", f"{_TAG}value")
            name = (key.tag, key.value) if is_plain else self.construct_object(key)
            first = lines.setdefault(name, _line(key))
            if key is not node.value[len(lines) - 1][0]:
                word = shown(key.value, _MAX_SHOWN)
                raise YamlTextError(f"line {_line(key)}: {word} stands there twice, first in line {first}; leave one")
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        try:
            if node.tag == f"{_TAG}int" and len(node.value) > MAX_DIGITS:
                raise ValueError(f"a number of {len(node.value)} digits is too long, at most {MAX_DIGITS} are read")
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
                raise ValueError(f"a number of more than {MAX_DIGITS} digits is too long")
            return value
        # Of what is no boolean and no date, PyYAML lets Python's own errors through.
        except (ValueError, KeyError, AttributeError, OverflowError) as error:
            said = str(error) if isinstance(error, ValueError) else f"it is no {node.tag.removeprefix(_TAG)}"
            told = shown(node.value, _MAX_SHOWN)
            raise YamlTextError(f"line {_line(node)}: {told!r} cannot be read: {said}") from None


# ---------------------------------------------------------------- values


def _refuse_tag(loader: Any, node: yaml.Node) -> NoReturn:
    tag = shown(node.tag.replace(_TAG, "!!"), _MAX_SHOWN)
    raise YamlTextError(f"line {_line(node)}: the tag {tag} is not read; leave it out")


_Bounded.add_constructor(None, _refuse_tag)


class _Words(_Bounded):
    """Every scalar is text."""


_Words.yaml_implicit_resolvers = {}
_Words.yaml_constructors = {
    tag: _Bounded.yaml_constructors[tag] for tag in (None, f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map")
}


class _Core(_Words):
    """The core schema of YAML 1.2, and YAML 1.1's `<<`, which merges mappings."""


def _whole(text: str) -> int:
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _real(text: str) -> float:
    value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if value == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
        raise ValueError("it is nearer to 0 than any number that can be computed with")
    return value


_CORE: tuple[tuple[str, str, str, Callable[[str], Any]], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN\0", lambda text: None),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789", _whole),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
        _real,
    ),
)
"""Tag, pattern, first signs (0: nothing) and value."""


def _constructor(tag: str, pattern: re.Pattern[str], value: Callable[[str], Any]) -> Callable[[Any, Any], Any]:
    def construct(loader: Any, node: Any) -> Any:
        text = loader.construct_scalar(node)
        if not pattern.fullmatch(text):
            raise ValueError(f"it is no {tag} of YAML 1.2")
        return value(text)

    return construct


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something else than text; repeats instead of aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _text, _firsts, _value in _CORE:
    _pattern = re.compile(f"(?:{_text})\\Z")
    _first_signs = ["" if sign == "\0" else sign for sign in _firsts]
    _Core.add_implicit_resolver(f"{_TAG}{_tag}", _pattern, _first_signs)
    _Core.add_constructor(f"{_TAG}{_tag}", _constructor(_tag, _pattern, _value))
    _Dumper.add_implicit_resolver(f"{_TAG}{_tag}", _pattern, _first_signs)
_Core.add_implicit_resolver(f"{_TAG}merge", re.compile(r"<<\Z"), ["<"])

_LOADERS: dict[str, type[_Bounded]] = {"core": _Core, "words": _Words, "1.1": _Bounded}
