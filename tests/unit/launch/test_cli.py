import errno
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from launch.cli import app
from launch.exits import App, exit_with_code
from metaser.errors import ConfigError
from shards.corpora.base import CORPORA
from shards.errors import InputError, ShardError

VERBS = ("demo", "pack", "inspect", "train", "tune", "evaluate", "crossval", "predict", "submit", "status", "stop")


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


def test_words_of_others_in_a_sentence_are_written_out(capsys):
    code, said = outcome(raising(InputError("speaker \x1b[2J\nerror: none\u202e\x9b1m")), capsys)
    assert (code, said) == (2, "error: speaker \\x1b[2J\\nerror: none\\u202e\\x9b1m\n")
    _, said = outcome(raising(ZeroDivisionError("\x1b[2J")), capsys)
    assert said.endswith("ZeroDivisionError: \\x1b[2J\n")


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
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout


def test_help_of_pack_names_every_corpus():
    # Lines may end behind a hyphen.
    shown = " ".join(command("pack", "--help").stdout.replace("│", " ").split()).replace("- ", "-")
    for name in CORPORA:
        assert re.search(rf"\b{name}\b", shown), name


EVIL = "--x\x1b[2J\nerror: all is well\u202e\x9b1m"
REFUSED = {
    "no verb": ([EVIL[2:]], "No such command"),
    "no such option": ([EVIL], "No such option"),
    **{f"no such option of {verb}": ([verb, EVIL], "No such option") for verb in VERBS},
    "missing argument": (["train"], "Missing argument"),
    "missing argument of predict": (["predict", EVIL[2:]], "Missing argument"),
    "missing option": (["submit", EVIL[2:]], "Missing option"),
    "too many arguments": (["stop", "a", EVIL[2:]], "unexpected extra argument"),
    "no number": (["pack", "csv", "a", "b", "--workers", EVIL], "Invalid value for '--workers'"),
    "a number out of range": (["pack", "csv", "a", "b", "--workers", "0"], "Invalid value for '--workers'"),
    "no float": (["predict", "a", "b", "--window", EVIL], "Invalid value for '--window'"),
    "no choice": (["pack", "csv", "a", "b", "--on-bad", EVIL], "Invalid value for '--on-bad'.*raise.*skip"),
    "no value": (["predict", "a", "b", "--window"], "requires an argument"),
    "a value for a flag": (["stop", "a", f"--wait={EVIL}"], "does not take a value"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_typer_refuses_is_one_sentence_in_which_no_argument_is_obeyed(case, capsys, monkeypatch):
    arguments, words = REFUSED[case]
    monkeypatch.setattr(sys, "argv", ["metaser", *arguments])
    code, said = outcome(app, capsys)
    assert code == 2
    assert re.fullmatch(rf"error: .*{words}.*; see `metaser( \w[\w-]*)? --help`\n", said)
    assert said.removesuffix("\n").isprintable()


def test_what_typer_refuses_is_told_by_the_whole_command():
    done = command("train", EVIL)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: No such option: --x")
    assert "\x1b" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_arguments_the_help_is_shown(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["metaser"])
    code, said = outcome(app, capsys)
    assert code == 2
    assert "Usage: metaser" in said
    assert "\n  predict " in said


def test_what_is_logged_without_a_handler_is_written_out(capsys):
    record = logging.makeLogRecord({"msg": "cache %s", "args": ("\x1b[2J\n",), "levelno": logging.WARNING})
    assert outcome(lambda: logging.lastResort.handle(record), capsys) == (0, "cache \\x1b[2J\\n\n")


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    program = (
        "import sys; from launch.exits import exit_with_code\n"
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


PRINTING = (
    "import sys, typer; from launch.exits import exit_with_code; from launch.words import say, tell\n"
    "from shards.errors import InputError\n"
    "app = typer.Typer()\n"
    "@app.command()\n"
    "def verb(): PROGRAM\n"
    "exit_with_code(app)"
)


def printing(program, redirection, **variables):
    """Return exit code, stdout and stderr of a verb of that program, with its streams redirected by a shell."""
    return subprocess.run(
        ["bash", "-c", f'exec "$@" {redirection}', "-", sys.executable, "-c", PRINTING.replace("PROGRAM", program)],
        capture_output=True,
        timeout=60,
        env={**os.environ, **variables},
    )


@pytest.mark.parametrize("program", ["tell('x')", "tell(*'x' * 99_999)", "print('x')", "sys.stdout.write('x')"])
def test_a_stdout_that_is_full_is_one_sentence(program):
    done = printing(program, ">/dev/full")
    assert done.returncode == 2
    assert done.stderr == (
        b"error: standard output must be writable, but is not: No space left on device; not all of the answer was "
        b"written\n"
    )


def test_an_error_is_told_whether_or_not_the_answer_before_it_was_read():
    for redirection in (">/dev/full", "> >(true)"):
        done = printing("import time; time.sleep(0.2); print('y'); raise InputError('x')", redirection)
        assert (done.returncode, done.stderr) == (2, b"error: x\n"), redirection


def test_a_stdout_that_is_closed_is_one_sentence():
    done = printing("tell('x')", ">&-")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard output must be open, but is closed; ")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_a_stderr_that_takes_nothing_does_not_stop_the_work(redirection):
    done = printing("say('x'); print('y', file=sys.stderr, flush=True); tell('z')", redirection)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"z\n", b"")
    done = printing("raise InputError('x')", redirection)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def test_a_broken_pipe_that_is_not_stdout_is_one_sentence(capsys, monkeypatch):
    code, said = outcome(raising(BrokenPipeError(32, "Broken pipe")), capsys)
    assert code == 2
    assert said.startswith("error: what MetaSER writes to must stay open until it is done, but was closed")
    # By a verb, too: typer itself ends quietly with 1.
    own = App(name="own")

    @own.command()
    def verb():
        reader, writer = os.pipe()
        os.close(reader)
        os.write(writer, b"x")

    monkeypatch.setattr(sys, "argv", ["own"])
    assert outcome(own, capsys) == (2, said)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE, errno.ELOOP, errno.EFBIG])
def test_what_the_system_refuses_is_one_sentence_wherever_it_comes_from(number, capsys):
    error = OSError(number, os.strerror(number), "a\x1b/b")
    code, said = outcome(raising(error), capsys)
    assert (code, said) == (2, f"error: 'a\\x1b/b' must be usable, but is not: {os.strerror(number)}\n")


def test_an_interrupt_is_no_traceback(capsys):
    assert outcome(raising(KeyboardInterrupt()), capsys) == (130, "")


def test_a_file_that_is_not_there_where_ours_must_be_is_our_mistake(capsys):
    code, said = outcome(raising(FileNotFoundError(2, "No such file or directory", "x")), capsys)
    assert (code, said.split("\n")[0]) == (1, "a bug in MetaSER, on rank 0:")


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("variables", [ASCII, {"LC_ALL": "C"}, {"LC_ALL": "POSIX", "LANG": "C"}])
def test_in_an_ascii_locale_names_are_as_elsewhere(tmp_path, variables):
    program = "tell(open(sys.argv[2], encoding='utf-8').read(), sys.argv[2])".replace("sys.argv[2]", "NAME")
    (tmp_path / "w\u00fctend.txt").write_text("\u00e9\U0001f600", encoding="utf-8")
    name = str(tmp_path / "w\u00fctend.txt")
    done = printing(program.replace("NAME", ascii(name)), "", **variables)
    assert done.stderr == b""
    assert done.stdout.decode() == f"\u00e9\U0001f600\n{name}\n"


def test_signs_that_a_stream_lacks_are_written_out():
    done = printing("tell('\\u00e9'); say('\\u00e9')", "", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\xe9\n", b"\\xe9\n")


def test_an_experiment_of_utf8_is_read_in_any_locale(tmp_path):
    config = tmp_path / "\u00e9.yaml"
    config.write_text(
        "output_dir: w\u00fct\ndata: {shards: y}\nmodel: {coattention: {form: none}}\n"
        "tasks: [{name: emotion, kind: classification}]\n"
        "stages: [{name: s, train: [heads], weights: {emotion: 1}, num_steps: 3}]\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "launch.cli", "train", str(config), "--print-config"]
    printed = [
        subprocess.run(command, capture_output=True, timeout=60, env={**os.environ, **variables})
        for variables in ({}, ASCII, {"PYTHONIOENCODING": "ascii"})
    ]
    assert [done.returncode for done in printed] == [0, 0, 0], printed
    assert len({done.stdout for done in printed}) == 1
    assert "output_dir: w\u00fct\n" in printed[0].stdout.decode()


@pytest.mark.parametrize("arguments", [("pack", "wds", ".", "."), ("inspect", "x"), ("predict", "x", "y.wav")])
def test_a_current_folder_that_is_gone_is_told(tmp_path, arguments):
    gone = tmp_path / "gone"
    gone.mkdir()
    started = f"import os; os.rmdir({str(gone)!r}); from launch.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", started, *arguments],
        cwd=gone,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
