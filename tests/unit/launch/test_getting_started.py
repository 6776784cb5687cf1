"""Each command of docs/getting-started.md is one that there is; those that pack and inspect are run on small files."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from startingpage import COMMANDS, RUNNABLE, write_inputs
from typer.testing import CliRunner

from launch.cli import app

PACKING = [command for command in RUNNABLE if command[0] in ("pack", "inspect")]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder that holds what the page's commands name."""
    folder = tmp_path_factory.mktemp("page")
    write_inputs(folder)
    return folder


def test_the_page_shows_every_way_in() -> None:
    ways = {command[1] for command in PACKING if command[0] == "pack"}
    assert ways == {"csv", "folder", "audiofolder", "jsonl", "audformat"}
    assert len(PACKING) > 12


def test_packing_and_inspecting_as_on_the_page(place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    runner = CliRunner()
    packed = set()
    for command in PACKING:
        if command[0] == "pack":
            command = [*command, "--workers", "1"]
            packed.add(command[3])
        elif command[1] not in packed:
            continue  # what the demo packs, or a run's shards
        done = runner.invoke(app, command)
        assert done.exit_code == 0, f"{' '.join(command)}: {done.output} {done.exception}"
    assert len(packed) > 10


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_and_option_of_the_page_is_there(command) -> None:
    verb = typer.main.get_command(app).commands[command[0]]
    options = {name for parameter in verb.params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.split("=")[0].strip("[]") for word in command if word.lstrip("[").startswith("--")}
    assert used <= options
