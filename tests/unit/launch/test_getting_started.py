"""Each command of docs/getting-started.md is one that there is; those that pack and inspect are run on small files."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from corpustrees import write, write_audio
from startingpage import COMMANDS, RUNNABLE
from typer.testing import CliRunner

from launch.cli import app

PACKING = [command for command in RUNNABLE if command[0] in ("pack", "inspect")]
TABLES = {
    "mine.csv": "file,emotion,speaker\na.wav,angry,anna\nb.wav,sad,ben\n",
    "mapped.csv": "recording_name,mood,internal\na.wav,angry,1\nb.wav,sad,2\n",
    "own.csv": "file,emotion\na.wav,Joyful\nb.wav,Schadenfreude\nc.wav,xxx\n",
    "labels.yaml": "joyful: happiness\nSchadenfreude: contempt\n",
    "calls.csv": "file,channel,emotion,speaker\ncall.wav,0,happy,agent\ncall.wav,1,angry,customer\n",
    "long.csv": "file,emotion\na.wav,happy\n",
    "left.csv": "file,emotion\ncall.wav,happy\n",
    "messy.csv": "file,age\na.wav,old\nb.wav,31\nb.wav,31\ngone.wav,30\n",
    "hf/metadata.csv": "file_name,label\na.wav,happy\n",
    "mine.jsonl": '{"audio_filepath": "a.wav", "offset": 0.01, "duration": 0.05, "text": "hello"}\n',
    "data/emodb/fold_1/emodb_train_fold_1.jsonl": '{"key": "emodb-a", "wav": "downloads/a.wav", "emo": "happy"}\n',
    "database/db.yaml": "name: small\ntables:\n  files: {type: filewise, columns: {emotion: {}}}\n",
    "database/db.files.csv": "file,emotion\na.wav,anger\n",
    "db.segments.csv": "file,start,end,emotion\na.wav,0 days 00:00:00,0 days 00:00:00.05,anger\na.wav,NaT,NaT,fear\n",
}
AUDIO = (
    *("a.wav", "b.wav", "c.wav", "hf/a.wav", "database/a.wav", "downloads/a.wav"),
    *("sorted/anger/1.wav", "sorted/Freude/2.wav"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder that holds what the page's commands name."""
    folder = tmp_path_factory.mktemp("page")
    for name, content in TABLES.items():
        write(folder / name, content)
    write(folder / "gbk.csv", "file,speaker,text\na.wav,王,你今天怎么样\n", "gbk")
    for name in AUDIO:
        write_audio(folder / name)
    write_audio(folder / "call.wav", channels=2)
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
