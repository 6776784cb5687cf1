import re
import subprocess
import sys

import pytest
import typer

from launch.cli import exit_with_code
from metaser.errors import ConfigError
from shards.corpora.base import CORPORA
from shards.errors import InputError, ShardError


def outcome(action, capsys):
    with pytest.raises(SystemExit) as left:
        exit_with_code(action)
    return left.value.code, capsys.readouterr().err


def raising(error):
    def action():
        raise error

    return action


def test_success_is_0_and_silent(capsys):
    assert outcome(lambda: None, capsys) == (0, "")


@pytest.mark.parametrize("kind", [InputError, ShardError, ConfigError])
def test_the_callers_mistake_is_2_and_one_sentence(kind, capsys):
    assert outcome(raising(kind("must be 3, got 4")), capsys) == (2, "error: must be 3, got 4\n")


def test_our_mistake_is_1_with_rank_and_traceback(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    code, said = outcome(raising(ZeroDivisionError("oops")), capsys)
    assert code == 1
    assert said.startswith("a bug in MetaSER, on rank 3:\nTraceback")
    assert said.endswith("ZeroDivisionError: oops\n")


def test_a_verbs_own_exit_code_is_kept(capsys):
    app = typer.Typer()

    @app.command()
    def verb():
        raise typer.Exit(2)

    def action():
        sys.argv[1:] = []
        app()

    before = sys.argv[1:]
    try:
        assert outcome(action, capsys) == (2, "")
    finally:
        sys.argv[1:] = before


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments], capture_output=True, text=True, timeout=60, **options
    )


def test_help_names_every_verb_and_imports_nothing_heavy():
    program = (
        "import sys; sys.argv = ['metaser', '--help']\n"
        "from launch.cli import app\n"
        "try: app()\n"
        "finally: print(sorted({'torch', 'transformers', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("[]\n"), done.stderr
    for verb in ("demo", "pack", "inspect", "train", "evaluate", "crossval", "predict", "submit", "status", "stop"):
        assert f"\n  {verb} " in done.stdout


def test_help_of_pack_names_every_corpus():
    # Lines may end behind a hyphen.
    shown = " ".join(command("pack", "--help").stdout.replace("│", " ").split()).replace("- ", "-")
    for name in CORPORA:
        assert re.search(rf"\b{name}\b", shown), name


def test_what_typer_refuses_is_2_without_a_traceback():
    done = command("train")
    assert done.returncode == 2
    assert "Missing argument" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    program = (
        "import sys; from launch.cli import exit_with_code\n"
        "exit_with_code(lambda: [print('x' * 999, flush=True) for _ in range(99_999)])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.read(999) == "x" * 999
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0


def test_the_resolved_experiment_can_be_printed_and_read_again(tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(
        "output_dir: x\ndata: {shards: y}\nmodel: {coattention: {form: none}}\n"
        "tasks: [{name: emotion, kind: classification}]\n"
        "stages: [{name: s, train: [heads], weights: {emotion: 1}, num_steps: 3}]\n"
    )
    printed = command("train", str(config), "stages.0.num_steps=9", "--print-config")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert "num_steps: 9" in printed.stdout
    config.write_text(printed.stdout)
    assert command("train", str(config), "--print-config").stdout == printed.stdout
    assert not (tmp_path / "x").exists()
