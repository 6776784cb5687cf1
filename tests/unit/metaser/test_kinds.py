"""Kinds of tasks: nothing else asks for one, words need no torch, and a new one is a file and a line."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from metaser.config.load import parse_experiment
from metaser.errors import ConfigError
from metaser.tasks.kinds import KINDS, all_metrics, check_kind
from metaser.tasks.spec import TaskSpec

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
    assert not is_loaded("torch", by="metaser, metaser.tasks.kinds, metaser.eval.predictions")


def test_predicting_needs_no_torchaudio() -> None:
    # As find_spec and import see a package that is not installed.
    absent = "import sys; sys.modules['torchaudio'] = None; import metaser.predict, launch.verbs.predict"
    subprocess.run([sys.executable, "-c", absent], cwd=REPOSITORY, check=True)


def is_loaded(module: str, *, by: str) -> bool:
    code = f"import sys, {by}; print({module!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout == "True\n"


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


def test_metrics_of_two_kinds_have_different_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "other", type("Other", (type(KINDS["frames"]),), {"name": "other"})())
    with pytest.raises(ValueError, match="metrics of different names"):
        all_metrics()


@pytest.mark.parametrize("task", ["{kind: ctc, name: it}", "{kind: frames, name: it, field: extra.x}"])
def test_a_main_task_answers_once_an_utterance(task: str) -> None:
    with pytest.raises(ConfigError, match="main_task must answer once an utterance, but 'it' of kind"):
        parse_experiment(EXPERIMENT.replace("TASK", task), "it")


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("ctc", {"labels": ("a", "b")}, "labels that begin with"),
        ("classification", {"labels": ("a", "b"), "label_smoothing": 7.0}, "label_smoothing from 0 to below 1"),
        ("frames", {"labels": ("a", "b")}, "one label"),
    ],
)
def test_specifications_that_make_no_task_are_refused(kind: str, changes: dict[str, object], words: str) -> None:
    spec = TaskSpec.model_validate({"name": "it", "kind": kind, "fields": ("text",), "labels": ("text",), **changes})
    with pytest.raises(ValueError, match=words):
        KINDS[kind].check(spec)
