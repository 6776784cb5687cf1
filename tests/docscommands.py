"""The commands that README, docs and the heads of configurations show, and whether each is one that there is."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import typer
import yaml

from launch.cli import app
from metaser.config.load import load_experiment

REPOSITORY = Path(__file__).parents[1]
PAGES = [
    REPOSITORY / name
    for name in ("README.md", "CONTRIBUTING.md", "slurm/README.md", *sorted(map(str, REPOSITORY.glob("docs/**/*.md"))))
]
CONFIGS = sorted(REPOSITORY.glob("configs/*/*.yaml"))
PLACEHOLDERS = {"CONFIG": "configs/experiment/demo.yaml", "N": "1", "S": "1", "H:MM:SS": "1:00:00", "a.b=c": "seed=1"}
IS_TEMPLATE = re.compile(r"[A-Z]{4,}|\[|^\.\.\.$|^(RUN|JOB|X\.yaml|DIR)$")
_ALTERNATIVES = re.compile(r"[\w-]+(\|[\w-]+)+")
_OURS = re.compile(r"(configs|slurm|bench|tests|launch|\.ci)/[\w./-]+")


@dataclass(frozen=True)
class Block:
    """Lines of a page that are set as code, without a blank one among them."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        """Return where it stands."""
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command line of a page."""

    block: Block
    words: tuple[str, ...]

    @property
    def is_concrete(self) -> bool:
        """Whether it holds no placeholder."""
        return not any(IS_TEMPLATE.search(word) for word in self.words)

    def __str__(self) -> str:
        """Return where it stands, and the command."""
        return f"{self.block}: {shlex.join(self.words)}"


def blocks(page: Path) -> list[Block]:
    """Return what a page sets as code: fenced, or indented behind a blank line; of YAML, what its comments indent."""
    lines = page.read_text("utf-8").splitlines()
    if page.suffix == ".yaml":
        # A command is followed by two blanks and what it does.
        heads = [line[4:] if line.startswith("#   ") else "" for line in lines]
        return list(_paragraphs(page, [re.sub(r"(?<=\S) {2,}.*", "", line) for line in heads]))
    found: list[Block] = []
    code = ["" for _ in lines]
    fence: int | None = None
    is_indented = False
    for number, line in enumerate(lines):
        if line.startswith("```"):
            if fence is not None:
                found.append(Block(page, fence + 2, "\n".join(lines[fence + 1 : number])))
            fence, is_indented = (number if fence is None else None), False
        elif fence is None:
            begins = number > 0 and not lines[number - 1].strip()
            is_indented = not line.strip() if is_indented and not line.startswith("    ") else line.startswith("    ")
            is_indented = is_indented and (begins or bool(code[number - 1]) or not line.strip())
            code[number] = line[4:] if is_indented else ""
    assert fence is None, f"{page} ends within a fence"
    return [*found, *_paragraphs(page, code)]


def _paragraphs(page: Path, code: list[str]) -> Iterator[Block]:
    found: list[str] = []
    for number, line in enumerate([*code, ""], 1):
        if line.strip():
            found.append(line)
        elif found:
            yield Block(page, number - len(found), "\n".join(found))
            found = []


def kind_of(block: Block) -> str | None:
    """Return what the block is: shell, python, overrides, yaml, table or files; None if it is none of these."""
    try:
        ast.parse(block.text)
    except SyntaxError:
        pass
    else:
        return "python"
    if any(_first_word(line) in PROGRAMS for line in block.text.splitlines()):
        return "shell"
    if re.match(r"[\w.]+=", block.text) and all(re.match(r"[\w.]+=", word) for word in shlex.split(block.text)):
        return "overrides"
    try:
        if isinstance(yaml.safe_load(block.text), dict | list):
            return "yaml"
    except yaml.YAMLError:
        pass
    lines = block.text.splitlines()
    if lines[0].startswith("file,"):
        return "table"
    if re.match(r"[\w./-]+(/|\.\w+)(\s|$)", lines[0]):
        return "files"
    return None


def _first_word(line: str) -> str:
    words = re.sub(r"^\s*\$ ", "", line).split()
    return next((word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)), "")


def commands(block: Block) -> list[Command]:
    """Return the commands of a block of shell; what stands below one behind a `$` is its answer."""
    lines = block.text.splitlines()
    if lines[0].startswith("#!"):
        return []
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    found, text = [], ""
    for line in lines:
        text += line
        if text.endswith("\\"):
            text = f"{text[:-1]} "
            continue
        try:
            words = shlex.split(text, comments=True)
        except ValueError:
            # A quoted word goes on in the next line.
            text += "\n"
            continue
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            del words[0]
        if words:
            found.append(Command(block, tuple(words)))
        text = ""
    assert not text, f"{block} ends within a command"
    return found


def inline_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of what a page's prose names as a command of ours."""
    for text in re.findall(r"(?<!`)`((?:metaser|make) [^`\n]+)`(?!`)", page.read_text("utf-8")):
        yield shlex.split(text)


# ---------------------------------------------------------------- whether there is such a command


def check_command(command: Command, folder: Path) -> None:
    """Fail if a program, verb, option, choice, file or value of the experiment that it names is not there.

    What pages write into files of their own (`mine.yaml`) is looked for in `folder`.
    """
    for word in command.words:
        for found in _OURS.finditer(word):
            path = found[0].rstrip(".")
            if found.start() == 0 and not IS_TEMPLATE.search(path) and not path.endswith("X.yaml"):
                assert (REPOSITORY / path).exists(), f"{command}: {path} is not there"
    check = PROGRAMS.get(command.words[0])
    assert check is not None, f"{command}: no such program is known here; say in {Path(__file__).name} how to check it"
    check(command, list(command.words[1:]), folder)


def check_options(words: list[str]) -> None:
    """Fail if there is no such verb, or it has not the options; what it needs besides may be left out."""
    verb = typer.main.get_command(app).commands[words[0]]
    options = {name for parameter in verb.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.split("=")[0] for word in words if word.startswith("--")} - {"--help"} <= options, words


def _filled(words: list[str], number: int) -> list[str]:
    """Return a template's words with placeholders replaced, of alternatives the one of this `number`."""
    found = []
    for word in words:
        word = word.lstrip("[").rstrip("]")
        if not word or set(word) == {"."}:
            continue
        word = word.removesuffix("...")
        if _ALTERNATIVES.fullmatch(word):
            choices = word.split("|")
            word = choices[min(number, len(choices) - 1)]
        found.append(PLACEHOLDERS.get(word, word))
    return found


def _check_metaser(command: Command, words: list[str], folder: Path) -> None:
    verb = words[0]
    parser = typer.main.get_command(app).commands[verb]
    for number in range(3):
        with parser.make_context(verb, _filled(words[1:], number)) as context:
            given = context.params
    if command.is_concrete and verb in ("train", "submit", "crossval"):
        _load(given["config"], given["overrides"] or [], folder)


def _load(config: str, overrides: list[str], folder: Path) -> None:
    path = folder / config if (folder / config).exists() else REPOSITORY / config
    load_experiment(path, overrides)


def _check_training(command: Command, script: str, words: list[str], folder: Path) -> None:
    assert script == "launch/train.py", command
    _check_metaser(command, ["train", *words], folder)


def _check_accelerate(command: Command, words: list[str], folder: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch", command
    given = launch_command_parser().parse_args(words[1:])
    _check_training(command, given.training_script, given.training_script_args, folder)


def _check_torchrun(command: Command, words: list[str], folder: Path) -> None:
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(words)
    _check_training(command, given.training_script, given.training_script_args, folder)


def _check_sbatch(command: Command, words: list[str], folder: Path) -> None:
    position = next(number for number, word in enumerate(words) if not word.startswith("-"))
    assert words[position] in ("slurm/train.sbatch", "slurm/crossval.sbatch"), command
    _check_metaser(command, ["train", *words[position + 1 :]], folder)


def _check_make(command: Command, words: list[str], folder: Path) -> None:
    text = (REPOSITORY / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony and words[0] in phony[1].split(), command
    for word in words[1:]:
        assert re.search(rf"^{word.split('=')[0]} \?=", text, re.MULTILINE), command


def _check_python(command: Command, words: list[str], folder: Path) -> None:
    match words:
        case ["-c", code]:
            ast.parse(code)
        case ["-m", "venv", _]:
            pass
        case ["-m", "pytest", "-m", marks]:
            options = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
            known = {mark.partition(":")[0] for mark in options["markers"]}
            assert set(re.findall(r"\w+", marks)) - {"and", "or", "not"} <= known, command
        case ["-m", module, *_]:
            assert (REPOSITORY / f"{module.replace('.', '/')}.py").exists(), command
        case [script, *options]:
            path = REPOSITORY / script
            text = (path / "__main__.py" if path.is_dir() else path).read_text()
            for option in (word.strip("[]") for word in options):
                if option.startswith("--"):
                    name = option.removeprefix("--").replace("-", "_")
                    assert (
                        f'"{option}"' in text
                        or re.search(rf"^\s+{name}: Annotated", text, re.M)
                        or (re.search(rf"\({name}: Annotated", text))
                    ), command


def _check_pip(command: Command, words: list[str], folder: Path) -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"\[(\w+)\]", " ".join(words)):
        assert named in extras, command


def _check_tensorboard(command: Command, words: list[str], folder: Path) -> None:
    assert words[0] == "--logdir" and len(words) == 2, command


def _check_shell(command: Command, words: list[str], folder: Path) -> None:
    """Of what others made, or a person must do: only that a shell would take it."""
    done = subprocess.run(["bash", "-n", "-c", command.block.text], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)


PROGRAMS: dict[str, Callable[[Command, list[str], Path], None]] = {
    "metaser": _check_metaser,
    "make": _check_make,
    "python": _check_python,
    "python3": _check_python,
    "accelerate": _check_accelerate,
    "torchrun": _check_torchrun,
    "sbatch": _check_sbatch,
    ".venv/bin/pip": _check_pip,
    "tensorboard": _check_tensorboard,
    **dict.fromkeys((".ci/run", "exec", "export", "for", "scontrol", "source", "ssh", "sudo"), _check_shell),
}
