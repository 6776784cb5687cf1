"""No number of an experiment or a cluster file is without end: what it counts is done, waited for or held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Le, Lt
from pydantic.fields import FieldInfo

from launch.cluster import ClusterConfig
from metaser.config.load import load_experiment
from metaser.config.schema import ExperimentConfig
from metaser.errors import ConfigError
from metaser.tasks.kinds import KINDS
from shards.record import Section

COMPUTED_WITH = {"weights", "max_grad_norm", "peak_tflops", "offset", "scale", "class_weights"}
"""Nothing is done so often or so long."""
LOOKED_AT = {"seed", "factors", "extra", "options", "sbatch"}
"""By a validator (`Section`'s own for seeds), or by the tool whose settings they are."""


def sections(kind: type[Section], seen: set[type[Section]]) -> Iterator[type[Section]]:
    """Yield a section and all that stand in it."""
    if kind in seen:
        return
    seen.add(kind)
    yield kind
    for field in kind.model_fields.values():
        for part in parts(field.annotation):
            if isinstance(part, type) and issubclass(part, Section):
                yield from sections(part, seen)


def parts(annotation: Any) -> Iterator[Any]:
    """Yield what an annotation is made of."""
    yield annotation
    if get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            yield from parts(argument)


def is_bounded(annotation: Any, metadata: tuple[Any, ...]) -> bool:
    """Return whether every number that the annotation allows has a greatest one."""
    if annotation in (int, float):
        found = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return any(isinstance(part, Le | Lt) for part in found)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return True
    if origin is Annotated:
        return is_bounded(arguments[0], (*metadata, *arguments[1:]))
    inner = metadata if origin in (Union, UnionType) else ()
    return all(is_bounded(argument, inner) for argument in arguments)


EVERYTHING = [
    section
    for whole in (ExperimentConfig, ClusterConfig, *(kind.config for kind in KINDS.values()))
    for section in sections(whole, set())
]


@pytest.mark.parametrize(
    "section", sorted({*EVERYTHING}, key=lambda section: section.__name__), ids=lambda s: s.__name__
)
def test_every_number_has_a_greatest_value(section: type[Section]) -> None:
    endless = [
        name
        for name, field in section.model_fields.items()
        if name not in COMPUTED_WITH | LOOKED_AT and not is_bounded(field.annotation, tuple(field.metadata))
    ]
    assert endless == []


def test_the_walk_finds_the_sections() -> None:
    assert len({*EVERYTHING}) > 25


EXPERIMENT = """
output_dir: run
data: {shards: packed}
tasks: [{kind: classification, name: emotion}, {kind: ctc, name: asr}]
stages: [{name: one, train: [heads], weights: {emotion: 1.0}, num_steps: 1}]
"""


@pytest.mark.parametrize(
    "name", ["model.spec_augment.num_time_masks", "model.spec_augment.num_feature_masks", "data.num_workers"]
)
def test_what_would_be_done_for_ever_is_refused_with_its_bound(name: str, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT)
    with pytest.raises(ConfigError, match=rf"{name}: Input should be less than or equal to 1000, got 922"):
        load_experiment(path, [f"{name}={2**63 - 1}"])
