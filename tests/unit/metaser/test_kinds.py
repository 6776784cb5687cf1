"""Kinds of tasks: nothing else asks for one, words need no torch, and a new one is a file and a line."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from tables import index_of
from typing_extensions import override

from metaser.config.load import dump_experiment, parse_experiment
from metaser.errors import ConfigError
from metaser.eval.metrics import evaluate_results, selected_value
from metaser.eval.predictions import predictions_csv, read_predictions
from metaser.targets import Targets, resolve_tasks
from metaser.tasks.kind import Metric, TaskTarget, TaskTargets
from metaser.tasks.kinds import KINDS, check_kind
from metaser.tasks.regression import Regression
from metaser.tasks.results import TaskResult, UtteranceResult
from metaser.tasks.spec import TaskConfig, TaskSpec
from shards.index import Index

REPOSITORY = Path(__file__).parents[3]
EXPERIMENT = """
output_dir: run
data: {shards: packed}
model: {coattention: {form: none}}
tasks: [TASK]
main_task: it
stages: [{name: one, train: [heads], weights: {it: 1.0}, num_steps: 1}]
"""


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the strings of a module that are no docstrings."""
    tree = ast.parse(path.read_text())
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.lineno, node.value


def test_only_a_kinds_own_module_knows_its_name() -> None:
    modules = [*REPOSITORY.glob("metaser/**/*.py"), *REPOSITORY.glob("launch/**/*.py")]
    outside = [path for path in modules if REPOSITORY / "metaser" / "tasks" not in path.parents]
    assert len(outside) > 50
    asking = [f"{path}:{line}" for path in outside for line, word in words_of(path) if word in KINDS]
    asking += [
        f"{path}:{number}"
        for path in outside
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if any(f"{type(kind).config.__name__}" in line for kind in KINDS.values())
    ]
    assert not asking


def test_words_need_no_torch() -> None:
    code = "import sys, metaser.tasks.kinds, metaser.eval.predictions; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_is_a_module_with_one_line_in_the_registry(name: str) -> None:
    kind = KINDS[name]
    assert kind.name == name and kind.curve in kind.metrics
    assert kind.config.model_fields["kind"].annotation == Literal[name]
    registry = (REPOSITORY / "metaser" / "tasks" / "kinds.py").read_text()
    assert registry.count(f"{type(kind).__name__}(),") == 1


@pytest.mark.parametrize("task", ["{name: it}", "{kind: rank, name: it}", "{kind: 3}", "it", "[]", "null"])
def test_a_kind_that_there_is_not_is_named(task: str) -> None:
    with pytest.raises(ConfigError, match=r"tasks\.0: .*one of classification, ctc, regression, frames"):
        parse_experiment(EXPERIMENT.replace("TASK", task), "it")
    with pytest.raises(ValueError, match="kind must be one of"):
        check_kind("rank")


def test_a_problem_inside_a_task_is_told_with_its_place() -> None:
    with pytest.raises(
        ConfigError, match=r"has 2 problem\(s\): tasks\.0\.label_smoothing: .*; tasks\.0\.tone: unknown"
    ):
        task = "{kind: classification, name: it, label_smoothing: 2, tone: 1}"
        parse_experiment(EXPERIMENT.replace("TASK", task), "it")


# ---------------------------------------------------------------- a kind from outside: signs by hinge loss


class SignTask(TaskConfig):
    """Say whether a number is positive."""

    kind: Literal["sign"]
    name: str
    field: str

    @property
    @override
    def metadata_fields(self) -> tuple[str, ...]:
        return (self.field,)


class Signs(TaskTargets):
    """1, -1, or 0 where there is no number."""

    def __init__(self, spec: TaskSpec, index: Index) -> None:
        self._signs = np.nan_to_num(np.sign(index.numbers(spec.fields[0]))).astype(np.float32)
        self.weights = np.abs(self._signs)

    @override
    def lookup(self, items: np.ndarray) -> TaskTarget:
        signs = torch.from_numpy(self._signs[items])
        return TaskTarget(signs, signs.abs().long())


class Sign(Regression):
    """As long as a kind that shares little with others is."""

    name = "sign"
    config = SignTask  # type: ignore[assignment]
    metrics: ClassVar = {"hits": Metric("hits", higher_is_better=True)}
    curve = "hits"

    @override
    def resolve(self, task: SignTask, training: Index) -> TaskSpec:  # type: ignore[override]
        return TaskSpec(name=task.name, kind="sign", fields=(task.field,), labels=(task.field,))

    @override
    def targets(self, spec: TaskSpec, index: Index, is_whole: np.ndarray) -> TaskTargets:
        return Signs(spec, index)

    @override
    def losses(
        self, spec: TaskSpec, logits: torch.Tensor, num_frames_B: torch.Tensor, target: TaskTarget
    ) -> torch.Tensor:
        return torch.where(target.lengths_B > 0, (1 - target.values * logits[:, 0]).clamp(min=0), 0.0)

    @override
    def measure(self, spec: TaskSpec, pairs: Sequence[TaskResult]) -> dict[str, Any]:
        hits = [pair.prediction[0] * float(pair.reference[0] or 0) > 0 for pair in pairs]  # type: ignore[index,operator,arg-type]
        return {"hits": sum(hits) / len(hits)}


def test_a_kind_from_outside_is_one_object(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(KINDS, "sign", Sign())
    config = parse_experiment(EXPERIMENT.replace("TASK", "{kind: sign, name: it, field: valence}"), "it")
    assert parse_experiment(dump_experiment(config), "it") == config
    index = index_of(valence=[2.0, None, -3.0, 1.0])
    (spec,) = resolve_tasks(config.tasks, index)
    targets = Targets([spec], index)
    assert targets.denominators(np.arange(4)) == {"it": 3.0}
    results = [
        UtteranceResult(
            f"made/{n}", "made", None, {"corpus": "made"}, 1.0, {"it": TaskResult((true,), (said,), None, 0.5)}
        )
        for n, (true, said) in enumerate(((2.0, 1.5), (-3.0, 1.0)))
    ]
    measured = evaluate_results([spec], results, weights={"it": 1.0})
    assert selected_value(measured, "it.hits") == (0.5, True)
    (tmp_path / "predictions.csv").write_text(predictions_csv(results, [spec]))
    (read_spec,), read = read_predictions(tmp_path / "predictions.csv", config.tasks)
    assert (read_spec.kind, [result.tasks["it"].prediction for result in read]) == ("sign", [(1.5,), (1.0,)])
