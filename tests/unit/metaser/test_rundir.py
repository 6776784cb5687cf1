"""One module spells the paths of a run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from metaser.rundir import RunDir, step_draft, step_drafts, step_folder, step_paths

ROOT = Path(__file__).parents[3]
HOME = ROOT / "metaser/rundir.py"
MODULES = sorted(path for name in ("metaser", "launch") for path in (ROOT / name).rglob("*.py") if path != HOME)
IS_FILE = re.compile(r"[\w.{}-]*\.(yaml|json|jsonl|parquet|log|csv|md|png|lock|stop)|\.(lock|stop)")
ELSEWHERE = {
    # Drawn and found by modules that know a report's or a model's folder, not a run's.
    "metaser/model/exported.py": {"best"},
}


def docstrings(tree: ast.AST) -> set[ast.AST]:
    return {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def texts(node: ast.AST) -> Iterator[str]:
    """Yield what a text or an f-string spells, the latter's values left out."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def path_parts(tree: ast.AST) -> Iterator[str]:
    """Yield what stands behind a / or in a pattern."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            yield from texts(node.right)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in (
            "glob",
            "joinpath",
            "with_name",
            "compile",
        ):
            for argument in node.args:
                yield from texts(argument)


def spelled(path: Path) -> set[str]:
    """Return the parts of paths and the names of files that a module spells; of patterns, their beginnings."""
    return {re.split(r"[*(]", part)[0] for part in path_parts(ast.parse(path.read_text()))} - {""} | file_names(path)


def file_names(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    prose = docstrings(tree)
    found = {text for node in ast.walk(tree) if node not in prose for text in texts(node)}
    return {text for text in found if IS_FILE.fullmatch(text)}


def test_the_names_of_a_run_are_found() -> None:
    assert {
        *("config.yaml", "metrics.jsonl", "report.json", "predictions.csv", ".lock", ".stop", "report.md"),
        *("tensorboard", "best", "report", "keys", "jobs", "profile", "stage", "fold", "step-"),
    } <= spelled(HOME)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_one_module_spells_the_paths_of_a_run(module: Path) -> None:
    found = spelled(module) & spelled(HOME)
    assert found - ELSEWHERE.get(str(module.relative_to(ROOT)), set()) == set()


def test_checkpoints_are_found_by_their_names(tmp_path: Path) -> None:
    for step in (5, 1_234_567):
        step_folder(tmp_path, step).mkdir()
    step_draft(tmp_path, 7).mkdir()
    for name in ("step-5", "step-000005-backup", "other"):
        (tmp_path / name).mkdir()
    assert step_paths(tmp_path) == {5: tmp_path / "step-000005", 1_234_567: tmp_path / "step-1234567"}
    assert list(step_drafts(tmp_path)) == [tmp_path / ".step-000007.tmp"]


def test_folds_are_found_by_their_numbers(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for number in (10, 2):
        run.fold(number).root.mkdir()
    (tmp_path / "fold3").touch()
    (tmp_path / "fold02").mkdir()
    assert run.folds() == {2: run.fold(2), 10: run.fold(10)}
    assert run.fold(2).is_named_as_fold() and not run.is_named_as_fold()
