"""YAML and `a.b=c` overrides into the typed experiment; every problem at once, each with its path and value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from metaser.config.schema import ExperimentConfig
from metaser.errors import ConfigError
from shards.config import Section

AnySection = TypeVar("AnySection", bound=Section)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Return the experiment in the YAML file at `path` with `overrides` applied.

    Raises:
        ConfigError: if the file cannot be read or parsed, an override does not fit, or values are wrong.
    """
    return load_section(ExperimentConfig, path, overrides, name="CONFIG", whole="the experiment")


def load_section(
    kind: type[AnySection], path: str | Path, overrides: Sequence[str] = (), *, name: str, whole: str
) -> AnySection:
    """Return the section of type `kind` in the YAML file at `path` with `overrides` applied.

    Messages call the argument `name` and what the file describes `whole`.

    Raises:
        ConfigError: if the file cannot be read or parsed, an override does not fit, or values are wrong.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"{name} must be a readable YAML file, but {str(path)!r} is not: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} must be UTF-8 text, but {str(path)!r} is not: {error.reason}") from error
    return _validate(kind, text, str(path), overrides, name, whole)


def parse_experiment(text: str, where: str) -> ExperimentConfig:
    """Return the experiment in YAML text that stands in `where`.

    Raises:
        ConfigError: if it cannot be parsed or values are wrong.
    """
    return _validate(ExperimentConfig, text, where, (), "CONFIG", "the experiment")


def _validate(
    kind: type[AnySection], text: str, where: str, overrides: Sequence[str], name: str, whole: str
) -> AnySection:
    tree = _parse(text, where)
    if not isinstance(tree, dict):
        raise ConfigError(f"{name} must hold a mapping of sections, but {where!r} holds a {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where} has {error.error_count()} problem(s): {_describe(error, whole)}") from None


def dump_experiment(config: ExperimentConfig) -> str:
    """Return the whole tree, defaults included, as YAML that `load_experiment` reads back to an equal tree."""
    dumped: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return dumped


def _without_base_60(tag: str, pattern: re.Pattern[str]) -> re.Pattern[str]:
    is_number = tag.endswith((":int", ":float"))
    return re.compile(f"(?![-+0-9_]*:){pattern.pattern}", pattern.flags) if is_number else pattern


class _YamlLoader(yaml.SafeLoader):
    """Safe YAML in which `1e-5` is a number: YAML 1.1 wants a dot, and silently makes it a string.

    And `12:00:00` is text: YAML 1.1 silently makes it 43200, whatever unit is meant.
    """


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, _without_base_60(tag, pattern)) for tag, pattern in resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_YamlLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: what looks like a date or a number and is none.
        raise ConfigError(f"{where} must be YAML: {' '.join(str(error).split())}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"an override must look like a.b=value, got {override!r}")
    node: Any = tree
    *parents, last = path.split(".")
    for part in parents:
        node = node[_position(node, part, override)] if isinstance(node, list) else node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"override {override!r} does not fit: {part!r} holds {node!r}, not a section")
    node[_position(node, last, override) if isinstance(node, list) else last] = _parse(text, override)


def _position(items: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ConfigError(f"override {override!r} must name one of the items 0 to {len(items) - 1}, got {part!r}")
    return int(part)


def _describe(error: ValidationError, whole: str) -> str:
    problems = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or whole
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            problems.append(f"{where}: unknown key (value {problem['input']!r})")
        elif problem["type"] in ("missing", "value_error"):
            problems.append(f"{where}: {message}")
        else:
            problems.append(f"{where}: {message}, got {problem['input']!r}")
    return "; ".join(problems)
