"""Rules of the package layout that import-linter cannot see."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from metaser.config.load import dump_experiment, load_experiment
from metaser.rundir import RunDir
from metaser.sums import sealed_yaml

ROOT = Path(__file__).parents[3]
PACKAGES = ("launch", "metaser", "shards")
CORPUS_MODULES = sorted(f"shards.corpora.{path.stem}" for path in (ROOT / "shards/corpora").glob("[a-z]*.py"))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def dependency_modules() -> set[str]:
    """Top-level modules of every distribution that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    named = {re.split(r"[^A-Za-z0-9._-]", entry)[0] for group in groups for entry in group} - {project["name"]}
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in named}
    return {
        module
        for module, distributions in packages_distributions().items()
        if any(re.sub(r"[-_.]+", "-", name).lower() in normal for name in distributions)
    }


def test_nothing_directly_in_launch_is_named_like_an_importable_library() -> None:
    # `accelerate launch launch/train.py` puts launch/ first on sys.path.
    dependencies = dependency_modules()
    assert {"torch", "numpy", "yaml"} <= dependencies
    modules = (path for path in (ROOT / "launch").iterdir() if path.is_dir() or path.suffix == ".py")
    names = {path.stem for path in modules} - {"__init__", "__pycache__"}
    assert names & (set(sys.stdlib_module_names) | dependencies) == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_init_files_hold_only_a_docstring(package: str) -> None:
    paths = sorted((ROOT / package).rglob("__init__.py"))
    assert paths
    for path in paths:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path} has no docstring"
        if path != ROOT / "metaser/__init__.py":
            assert len(tree.body) == 1, f"{path} holds more than a docstring"


def test_the_model_is_offered_where_people_look_for_it_and_loaded_when_it_is_asked_for() -> None:
    late = "from metaser import MetaSERModel; print(MetaSERModel.__name__)"
    done = run_python(f"import sys, metaser; print('torch' in sys.modules); {late}")
    assert done.stdout.split() == ["False", "MetaSERModel"]
    assert "has no attribute 'Nothing'" in run_python("import metaser; metaser.Nothing").stderr


@pytest.mark.parametrize(
    "module",
    [
        "launch.cli",
        "launch.job",
        "launch.sbatch",
        "launch.slurm",
        "launch.submission",
        "launch.train",
        "launch.verbs.crossval",
        "launch.verbs.inspect",
        "launch.verbs.pack",
        "launch.verbs.status",
        "launch.verbs.stop",
        "launch.verbs.submit",
        "shards.pack",
        "shards.survey",
        *CORPUS_MODULES,
    ],
)
def test_importing_loads_no_torch(module: str) -> None:
    result = run_python(f"import sys, {module}; print([name for name in sys.modules if name.startswith('torch')])")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['metaser', '--help']\n"
        "from launch.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "finally:\n"
        "    print('torch loaded:', 'torch' in sys.modules, file=sys.stderr)\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "torch loaded: False" in result.stderr
    for verb in ("train", "tune", "pack", "inspect", "evaluate", "crossval", "predict", "submit", "status", "stop"):
        assert verb in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--dry-run",), 0, ""),
        # Refused by the comparison with what the run was started with, before anything starts.
        (("--local", "seed=5"), 2, "but these changed: seed from 0 to 5"),
    ],
)
def test_submitting_a_started_run_loads_no_torch(
    tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    run = RunDir(tmp_path / "run")
    experiment = load_experiment(ROOT / "configs/experiment/demo.yaml", [f"output_dir={run.root}"])
    run.root.mkdir()
    run.config.write_text(sealed_yaml(dump_experiment(experiment)))
    given = ["metaser", "submit", "configs/experiment/demo.yaml", f"output_dir={run.root}", *arguments]
    given += ["--cluster", "configs/cluster/local_test.yaml"]
    program = (
        f"import sys; sys.argv = {given}\n"
        "from launch.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print('torch loaded:', 'torch' in sys.modules, file=sys.stderr)\n"
    )
    done = run_python(program)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "torch loaded: False" in done.stderr


def test_test_files_have_names_of_their_own() -> None:
    # pytest imports them as top-level modules, so that a second one of a name would not be collected.
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def text_files_opened(path: Path) -> list[str]:
    """Return the calls that read or write text in whatever encoding the locale has."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        modes = [*node.args[:2], *([given["mode"]] if "mode" in given else [])]
        is_binary = any(isinstance(mode, ast.Constant) and "b" in str(mode.value)[:3] for mode in modes)
        is_text = {
            "read_text": len(node.args) < 1,
            "write_text": len(node.args) < 2,
            "open": not is_binary and ast.unparse(node.func) not in ("os.open", "tarfile.open"),
            "fdopen": not is_binary,
            "FileHandler": True,
            "TextIOWrapper": True,
            "run": "text" in given,
            "Popen": "text" in given,
        }
        if is_text.get(name, False) and "encoding" not in given:
            found.append(f"{path.name}:{node.lineno} {ast.unparse(node)[:60]}")
    return found


@pytest.mark.parametrize("folder", [*PACKAGES, "slurm"])
def test_every_text_file_is_opened_as_utf8(folder: str) -> None:
    assert [call for path in sorted((ROOT / folder).rglob("*.py")) for call in text_files_opened(path)] == []
