"""Every command that README, docs and configurations show is there; what can run here runs, in its page's order."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from docscommands import (
    CONFIGS,
    PAGES,
    REPOSITORY,
    Command,
    blocks,
    check_command,
    check_options,
    commands,
    inline_commands,
    kind_of,
)
from startingpage import write_inputs
from tinyruns import metaser

from metaser.config.load import load_experiment

ELSEWHERE = {
    r"demo( |$)": "three minutes; its parts, packing and training, run here",
    r"crossval configs/experiment/emodb\.yaml$": "EMO-DB, an hour",
    r"train configs/experiment/emodb_an4\.yaml$": "EMO-DB and AN4, half an hour",
    r"evaluate runs/emodb_an4/fold0 ": "that run",
    r"ablate configs/experiment/emodb_an4_whisper\.yaml ": "EMO-DB, AN4 and Whisper, hours",
    r"train mine\.yaml .*microsoft/wavlm-large": "the hub; tests/distributed/test_starting_page.py has a stand-in",
    r"submit ": "a SLURM; tests/slurm",
}
"""Concrete commands that do not run here, and what they need."""
FEW = ("num_steps", "eval_every_steps", "save_every_steps")
NUM_SPEAKERS, EVERY = 5, 5
"""Of the embedded corpus's speakers, and of their utterances, these stand in the table of own recordings."""


def shell(page: Path) -> list[Command]:
    return [command for block in blocks(page) if kind_of(block) == "shell" for command in commands(block)]


def runnable(page: Path) -> list[Command]:
    return [
        command
        for command in shell(page)
        if command.words[0] == "metaser" and command.is_concrete and not is_elsewhere(command)
    ]


def is_elsewhere(command: Command) -> bool:
    return any(re.match(start, " ".join(command.words[1:])) for start in ELSEWHERE)


# ---------------------------------------------------------------- all of them are there


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The experiment that getting-started.md writes."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "mine.yaml").write_text(own_experiment())
    return folder


def own_experiment() -> str:
    page = REPOSITORY / "docs/getting-started.md"
    (text,) = [block.text for block in blocks(page) if block.text.startswith("# Emotion only")]
    return text


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_command_is_one_that_there_is(page, files) -> None:
    for command in shell(page):
        check_command(command, files)
    if page.suffix == ".md":
        for program, *words in inline_commands(page):
            if program == "metaser":
                check_options(words)


@pytest.mark.parametrize("page", CONFIGS, ids=lambda page: page.stem)
def test_what_the_head_of_an_experiment_proposes_to_change_can_be_changed(page) -> None:
    for block in blocks(page):
        if kind_of(block) == "overrides":
            load_experiment(page, shlex.split(block.text))


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_block_is_understood(page) -> None:
    assert [f"{block}: {block.text}" for block in blocks(page) if kind_of(block) is None] == []


def test_blocks_and_commands_are_found() -> None:
    found = {str(page.relative_to(REPOSITORY)): len(shell(page)) for page in PAGES}
    assert found["README.md"] > 20 and found["docs/getting-started.md"] > 40 and found["slurm/README.md"] > 8
    assert sum(map(len, map(shell, CONFIGS))) > 8
    kinds = {kind_of(block) for page in [*PAGES, *CONFIGS] for block in blocks(page)}
    assert kinds == {"shell", "python", "overrides", "yaml", "table", "files"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("metaser train configs/experiment/demo.yaml --resum auto", "--resum"),
        ("metaser trian CONFIG", "trian"),
        ("metaser train CONFIG [--resume auto|sometimes]", "sometimes"),
        ("metaser train configs/experiment/nothing.yaml", "nothing.yaml is not there"),
        ("metaser train configs/experiment/demo.yaml stages.0.steps=9", "steps"),
        ("accelerate launch --num_process 8 launch/train.py CONFIG", ""),
        ("torchrun --nproc_per_node 8 launch/train.py configs/experiment/demo.yaml sead=1", "sead"),
        ("sbatch slurm/trian.sbatch CONFIG", "trian.sbatch is not there"),
        ("make tset", "tset"),
        ("python bench/reader.py --amount 3", "--amount"),
        ('python -m pytest -m "slow"', "slow"),
        ("mataser train CONFIG", "no such program"),
    ],
)
def test_what_is_not_there_is_found(tmp_path, line, why) -> None:
    page = REPOSITORY / "docs" / "page.md"
    block = type(blocks(PAGES[0])[0])(page, 1, line)
    (command,) = commands(block)
    with pytest.raises(BaseException, match=re.escape(why)):
        check_command(command, tmp_path)


# ---------------------------------------------------------------- some of them run


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with what the pages' commands name, made from the embedded corpus."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    run(folder, "pack", "demo", "-", "runs/demo/shards")
    run(folder, "train", "configs/experiment/demo.yaml")
    write_inputs(folder)
    (folder / "mine.yaml").write_text(own_experiment())
    write_recordings(folder)
    return folder


def write_recordings(folder: Path) -> None:
    """Write a table of own recordings, as README.md shows it, and the single files that pages name."""
    shards = folder / "runs/demo/shards"
    tars = [shard["name"] for shard in json.loads((shards / "manifest.json").read_text())["shards"]]
    rows = pq.read_table(shards / "index.parquet").to_pylist()
    speakers = sorted({row["speaker"] for row in rows})[:NUM_SPEAKERS]
    (folder / "wav").mkdir()
    with (folder / "mine.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "emotion", "speaker", "gender", "text"))
        for number, row in enumerate([row for row in rows if row["speaker"] in speakers][::EVERY]):
            tar = (shards / tars[row["shard"]]).read_bytes()
            samples, rate_hz = soundfile.read(io.BytesIO(tar[row["audio_offset"] :][: row["audio_bytes"]]))
            soundfile.write(folder / f"wav/{number:03d}.wav", samples, rate_hz)
            table.writerow((f"wav/{number:03d}.wav", *(row[name] for name in ("emotion", "speaker", "gender", "text"))))
    for name in ("some.wav", "new.wav", "other.mp3", "meeting.flac"):
        soundfile.write(folder / name, samples, rate_hz)
    for number, name in enumerate(("a.wav", "b.wav", "c.wav")):
        # Long enough to be heard by a model, too.
        shutil.copyfile(folder / f"wav/{number:03d}.wav", folder / name)
    soundfile.write(folder / "call.wav", np.stack([samples, samples[::-1]], axis=1), rate_hz)


def shortened(folder: Path, words: list[str]) -> list[str]:
    """Return a training's words with stages of one step."""
    stages = load_experiment(folder / words[0], []).stages
    few = [f"stages.{stage}.{name}=1" for stage in range(len(stages)) for name in FEW]
    return [*words, *(change for change in few if change.split("=")[0] not in " ".join(words))]


def run(folder: Path, verb: str, *words: str) -> None:
    """Run a command as a shell in `folder` would; trainings are cut short."""
    given = [path for word in words for path in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    if verb == "train":
        given = shortened(folder, given)
    done = metaser(verb, *given, folder=folder, before=partial(os.chdir, folder))
    assert done.returncode == 0, f"metaser {verb} {' '.join(given)}: {done.stderr}"


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "slurm/README.md"),
        *(
            pytest.param(name, marks=pytest.mark.reliability)
            for name in ("docs/getting-started.md", "docs/benchmarks.md")
        ),
    ],
)
def test_what_can_run_here_runs(world, monkeypatch, name) -> None:
    monkeypatch.chdir(world)
    for command in runnable(REPOSITORY / name):
        run(world, *command.words[1:])


def test_every_concrete_command_runs_somewhere() -> None:
    """What this page's test does not run is named with what it needs, and every name is needed."""
    ran = {"README.md", "slurm/README.md", "docs/getting-started.md", "docs/benchmarks.md"}
    assert {str(page.relative_to(REPOSITORY)) for page in PAGES if runnable(page)} == ran
    left_out = [command for page in PAGES for command in shell(page) if is_elsewhere(command)]
    for start in ELSEWHERE:
        assert any(re.match(start, " ".join(command.words[1:])) for command in left_out), start
