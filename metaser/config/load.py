"""YAML and `a.b=c` overrides into the typed experiment; every problem at once, each with its path and value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from metaser.config.schema import ExperimentConfig
from metaser.errors import ConfigError
from metaser.sums import is_sound_yaml
from shards.inputfile import read_regular
from shards.jsontext import MAX_DEPTH
from shards.record import Section
from shards.shown import shown
from shards.yamltext import MAX_YAML_BYTES, YamlTextError, dump_yaml, parse_yaml

_MAX_PROBLEMS = 10
_MAX_SHOWN = 200

AnySection = TypeVar("AnySection", bound=Section)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Return the experiment in the YAML file at `path` with `overrides` applied.

    Raises:
        ConfigError: as in `load_section`.
    """
    return load_section(ExperimentConfig, path, overrides, name="CONFIG", whole="the experiment")


def load_section(
    kind: type[AnySection], path: str | Path, overrides: Sequence[str] = (), *, name: str, whole: str
) -> AnySection:
    """Return the section of type `kind` in the YAML file at `path` with `overrides` applied.

    Messages call the argument `name` and what the file describes `whole`.

    Raises:
        ConfigError: if the file cannot be read or parsed, is not as it was sealed, an override does not fit, or values
            are wrong.
    """
    try:
        data = read_regular(path, max_bytes=MAX_YAML_BYTES)
    except OSError as error:
        raise ConfigError(f"{name} must be a readable YAML file, but {str(path)!r} is not: {error.strerror}") from error
    if not is_sound_yaml(data):
        raise ConfigError(
            f"{name} must be what its first line is the sha256 of, but {str(path)!r} is not: it is damaged or was "
            "changed; restore it, or delete that line if it was changed on purpose"
        )
    return _validate(kind, data, str(path), overrides, name, whole)


def parse_experiment(text: str, where: str) -> ExperimentConfig:
    """Return the experiment in YAML text that stands in `where`.

    Raises:
        ConfigError: if it cannot be parsed or values are wrong.
    """
    return _validate(ExperimentConfig, text, where, (), "CONFIG", "the experiment")


def _validate(
    kind: type[AnySection], text: str | bytes, where: str, overrides: Sequence[str], name: str, whole: str
) -> AnySection:
    tree = _parse(text, where)
    if not isinstance(tree, dict):
        held = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(f"{name} must hold a mapping of sections, but {where!r} holds {held}")
    for override in overrides:
        _apply_override(tree, override)
    try:
        section = kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where} has {error.error_count()} problem(s): {_describe(error, whole)}") from None
    for path, value in _booleans_as_numbers(tree, section):
        raise ConfigError(
            f"{where} has a problem: {shown(path, _MAX_SHOWN)} must be a number, got {str(value).lower()}"
        )
    return section


def _booleans_as_numbers(tree: Any, made: Any, path: str = "") -> Iterator[tuple[str, bool]]:
    """Yield where `tree` has true or false and the section that was made of it a number: 1 or 0."""
    if isinstance(tree, bool) and isinstance(made, int | float) and not isinstance(made, bool):
        yield path.removeprefix("."), tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            found = made.get(name) if isinstance(made, dict) else getattr(made, str(name), None)
            yield from _booleans_as_numbers(value, found, f"{path}.{name}")
    elif isinstance(tree, list) and isinstance(made, list | tuple):
        for number, (value, found) in enumerate(zip(tree, made, strict=False)):
            yield from _booleans_as_numbers(value, found, f"{path}.{number}")


def dump_experiment(config: ExperimentConfig) -> str:
    """Return the whole tree, defaults included, as YAML that `load_experiment` reads back to an equal tree."""
    return dump_yaml(config.model_dump(mode="json"))


def _parse(text: str | bytes, where: str) -> Any:
    try:
        return parse_yaml(text)
    except YamlTextError as error:
        raise ConfigError(f"{shown(where, _MAX_SHOWN)} must be YAML: {error}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    told = repr(shown(override, _MAX_SHOWN))
    if not equals or not path:
        raise ConfigError(f"an override must look like a.b=value, got {told}")
    node: Any = tree
    *parents, last = path.split(".")
    if len(parents) >= MAX_DEPTH:
        raise ConfigError(f"an override must have at most {MAX_DEPTH} names, but {told} has {len(parents) + 1}")
    for part in parents:
        node = node[_position(node, part, told)] if isinstance(node, list) else node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"override {told} does not fit: {_quoted(part)} holds {_quoted(node)}, not a section")
    node[_position(node, last, told) if isinstance(node, list) else last] = _parse(text, override)


def _position(items: list[Any], part: str, told: str) -> int:
    # Longer numbers are no places, and Python refuses to read very long ones.
    if not part.isdecimal() or len(part) > len(str(len(items))) or int(part) >= len(items):
        raise ConfigError(f"override {told} must name one of the items 0 to {len(items) - 1}, got {_quoted(part)}")
    return int(part)


_RENAMED = {"data.max_slot_s": "data.max_micro_batch_s"}
"""Keys of earlier versions."""


def _describe(error: ValidationError, whole: str) -> str:
    problems = []
    for problem in error.errors(include_url=False)[:_MAX_PROBLEMS]:
        where = shown(".".join(str(part) for part in problem["loc"]), _MAX_SHOWN) or whole
        message = _without_middle(problem["msg"].removeprefix("Value error, "))
        if problem["type"] == "extra_forbidden" and where in _RENAMED:
            problems.append(f"{where} is called {_RENAMED[where]} now (value {_quoted(problem['input'])})")
        elif problem["type"] == "extra_forbidden":
            problems.append(f"{where}: unknown key (value {_quoted(problem['input'])})")
        elif problem["type"] in ("missing", "value_error"):
            problems.append(f"{where}: {message}")
        else:
            problems.append(f"{where}: {message}, got {_quoted(problem['input'])}")
    further = error.error_count() - len(problems)
    return "; ".join([*problems, f"and {further} more"] if further else problems)


def _without_middle(message: str) -> str:
    """Return what must hold and what came instead, which stand at the ends, without all of the names between them."""
    return message if len(message) <= 4 * _MAX_SHOWN else f"{message[: 2 * _MAX_SHOWN]} ... {message[-_MAX_SHOWN:]}"


def _quoted(value: Any) -> str:
    return shown(repr(value), _MAX_SHOWN)
