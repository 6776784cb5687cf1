"""A run that starts from another run's weights: what fits is taken by name, everything else is fresh and said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from metaser.errors import ModelError
from metaser.model.encoders.families import encoder_class
from metaser.model.exported import WEIGHTS, find_export, read_export
from metaser.model.metaser import Blueprint, MetaSERConfig, MetaSERModel
from metaser.tasks.kinds import kind_of
from metaser.tasks.spec import TaskSpec

_PER_TASK = ("task_scalars", "gate_vectors", "gate_scalars")
"""ARI's parameters with a row for each task."""


@dataclass(frozen=True)
class InitialWeights:
    """What a run took from another model before its first step."""

    source: str
    """As the experiment names it."""
    weights: str
    """The file that was read."""
    sha256: str
    loaded: dict[str, int]
    """Number of tensors by part of the model."""
    fresh: dict[str, str]
    """Why a part starts fresh."""
    unused: dict[str, int]
    """Tensors of the source that have no place here, by its parts."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return asdict(self)

    def __str__(self) -> str:
        """Return one sentence for the log."""
        loaded, fresh, unused = (
            ", ".join(f"{part} ({note})" for part, note in notes.items()) or "nothing"
            for notes in (self.loaded, self.fresh, self.unused)
        )
        return f"weights of {self.source} (tensors): loaded {loaded}; fresh: {fresh}; not used: {unused}"


def load_initial_weights(model: MetaSERModel, source: str) -> InitialWeights:
    """Fill `model` with what fits of the run's or exported model's weights in `source`.

    The encoder must fit as a whole. Other parts fit where their form is the same, a head where its labels are, too.

    Raises:
        ModelError: if there is no model, it is damaged, or its encoder has another form.
    """
    export = read_export(find_export(source, setting="init_from"), MetaSERConfig, MetaSERModel)
    form = export.config
    tensors = {_bare(name): value for name, value in export.tensors.items()}
    _check_encoder(model.config.encoder, form.encoder, source)
    ours, theirs = model.config.blueprint(), form.blueprint()
    targets: dict[str, dict[str, Tensor]] = {}
    for name, value in model.state_dict().items():
        targets.setdefault(model.group_of(name), {})[_bare(name)] = value
    fresh = _fresh_parts(ours, theirs) | _fresh_views(model.config.views, form.views)
    loaded: Counter[str] = Counter()
    for part, places in targets.items():
        if part in fresh:
            continue
        unfit = _unfit(places, tensors)
        if part == "encoder" and unfit:
            raise ModelError(f"init_from must be a model with the encoder of model.encoder, but in {source!r} {unfit}")
        if unfit:
            fresh[part] = unfit
            continue
        for name, place in places.items():
            _fill(place, tensors[name], _rows(name, ours.tasks, theirs.tasks))
        loaded[part] = len(places)
    common = [task.name for task in ours.tasks if task.name in {other.name for other in theirs.tasks}]
    if "ari" in loaded and len(common) < len(ours.tasks):
        fresh["ari of other tasks"] = f"{source} has those of {', '.join(common) or 'none'}"
    unused = Counter(model.group_of(name) for name in tensors if model.group_of(name) not in loaded)
    return InitialWeights(
        source=source,
        weights=str(export.folder / WEIGHTS),
        sha256=export.sha256,
        loaded=dict(loaded),
        fresh={part: why for part, why in fresh.items() if part in targets or part == "ari of other tasks"},
        unused=dict(unused),
    )


def _check_encoder(ours: dict[str, Any], theirs: dict[str, Any], source: str) -> None:
    pairs = [("kind", ours["kind"], theirs["kind"])]
    if ours["kind"] == theirs["kind"]:
        here, there = (encoder_class(ours["kind"]).form_of(form) for form in (ours, theirs))
        pairs += [(name, here.get(name), there.get(name)) for name in here | there]
    differences = [f"{name} is {there!r} there and {here!r} here" for name, here, there in pairs if here != there]
    if differences:
        raise ModelError(
            f"init_from must be a model with the encoder of model.encoder, but in {source!r} "
            f"{'; '.join(differences)}; choose the same encoder"
        )


def _fresh_views(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, str]:
    """Return the views whose weights there are of another form or, as with another tokenizer, of another meaning."""
    return {
        f"views.{name}": "another encoder, or none, there"
        for name, view in ours.items()
        if name not in theirs or _form_of(view) != _form_of(theirs[name])
    }


def _form_of(architecture: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    kind = architecture["kind"]
    return kind, encoder_class(kind).form_of(architecture)


def _fresh_parts(ours: Blueprint, theirs: Blueprint) -> dict[str, str]:
    """Return the parts whose form differs, and how."""
    fresh = {}
    if ours.model.ari.form != theirs.model.ari.form:
        fresh["ari"] = f"form {theirs.model.ari.form} there, {ours.model.ari.form} here"
    if ours.model.adapters != theirs.model.adapters:
        fresh["adapters"] = "others there, or none"
    if _coattention_form(ours) != _coattention_form(theirs):
        fresh["coattention"] = "other form, width, pooling or tasks there"
    others = {task.name: task for task in theirs.tasks}
    for task in ours.tasks:
        why = _head_difference(task, others.get(task.name))
        if why is None and (task.name == ours.main_task) != (task.name == theirs.main_task):
            why = "main task of one of the two only"
        if why is None and task.name == ours.main_task and "coattention" in fresh:
            why = "it reads co-attention, which is fresh"
        if why is not None:
            fresh[f"heads.{task.name}"] = why
    return fresh


def _coattention_form(blueprint: Blueprint) -> tuple[object, ...]:
    tasks = [blueprint.main_task, *(task.name for task in blueprint.others)]
    streams = (blueprint.main_task, *blueprint.model.other_streams(blueprint.main_task, tasks))
    form = blueprint.model.coattention
    return (form.form, form.width, form.num_heads, blueprint.model.pooling, streams)


def _head_difference(ours: TaskSpec, theirs: TaskSpec | None) -> str | None:
    if theirs is None:
        return "no such task there"
    if ours.kind != theirs.kind:
        return f"a {theirs.kind} task there"
    if ours.labels != theirs.labels:
        return kind_of(ours).describe_difference(theirs)
    if (ours.offset, ours.scale) != (theirs.offset, theirs.scale):
        return "another offset or scale there"
    return None


def _unfit(places: dict[str, Tensor], tensors: dict[str, Tensor]) -> str | None:
    for name, place in places.items():
        if name not in tensors:
            return f"{name} is missing"
        if tensors[name].shape != place.shape and not name.endswith(_PER_TASK):
            return f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(place.shape)}"
    return None


def _rows(name: str, ours: Sequence[TaskSpec], theirs: Sequence[TaskSpec]) -> list[tuple[int, int]] | None:
    """Return which row of the source each row here is filled from, None for a tensor that is not by task."""
    if not name.endswith(_PER_TASK):
        return None
    places = {task.name: row for row, task in enumerate(theirs)}
    return [(row, places[task.name]) for row, task in enumerate(ours) if task.name in places]


@torch.no_grad()
def _fill(place: Tensor, value: Tensor, rows: list[tuple[int, int]] | None) -> None:
    if rows is None:
        place.copy_(value)
        return
    for here, there in rows:
        place[here].copy_(value[there])


def _bare(name: str) -> str:
    """Return a parameter's name as it is without LoRA beside it."""
    return name.replace(".base_layer.", ".")
