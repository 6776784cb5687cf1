"""The cluster's values as options of `submit` and `crossval`, one for each field of `ClusterConfig`."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from launch.cluster import ClusterConfig

_FURTHER_NAMES = {"time_min": "--time"}
_METAVARS = {"time_min": "MINUTES|H:MM:SS|D-HH:MM", "sbatch": "NAME=VALUE"}

Verb = Callable[..., None]


def with_cluster_options(verb: Verb) -> Verb:
    """Give `verb` an option for every value of a cluster; it gets those that were given as `changes` of the file."""

    @functools.wraps(verb)
    def command(**given: Any) -> None:
        changes = tuple(change for name in ClusterConfig.model_fields for change in _changes(name, given.pop(name)))
        verb(**given, changes=changes)

    own = inspect.signature(verb, eval_str=True)
    parameters = [parameter for parameter in own.parameters.values() if parameter.name != "changes"]
    parameters += [_option(name, field) for name, field in ClusterConfig.model_fields.items()]
    command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    dashed = f"--{name.replace('_', '-')}"
    names = [dashed, _FURTHER_NAMES[name]] if name in _FURTHER_NAMES else [dashed]
    kind: Any = str | None
    if field.annotation is bool:
        kind, names = bool | None, [f"{dashed}/--no-{name.replace('_', '-')}"]
    elif _is_collection(field):
        kind = list[str] | None
    metavar = None if field.annotation is bool else _METAVARS.get(name, _word(field))
    about = typer.Option(*names, metavar=metavar, help=_help(field), show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, about])


def _help(field: FieldInfo) -> str:
    text = " ".join((field.description or "").split())
    return f"{text} It may be given several times." if _is_collection(field) else text


def _is_collection(field: FieldInfo) -> bool:
    return get_origin(field.annotation) in (tuple, dict)


def _types(field: FieldInfo) -> tuple[Any, ...]:
    kinds = get_args(field.annotation) or (field.annotation,)
    return tuple(get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds)


def _word(field: FieldInfo) -> str:
    return "TEXT" if str in _types(field) or _is_collection(field) else "NUMBER"


def _changes(name: str, value: str | bool | list[str] | None) -> Iterator[str]:
    """Yield the `a.b=c` for what was given of the field `name`."""
    if value is None or value == []:
        return
    field = ClusterConfig.model_fields[name]
    if isinstance(value, list) and get_origin(field.annotation) is dict:
        yield from (f"{name}.{entry}" for entry in value)
    elif isinstance(value, str) and str not in _types(field) and name != "time_min":
        yield f"{name}={value}"
    else:
        # In quotes, because YAML would read a partition `01` as a number.
        yield f"{name}={json.dumps(value)}"
