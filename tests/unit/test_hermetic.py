"""Whatever the machine has, the tests see the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FOREIGN_PROGRAMS = ("squeue", "sinfo", "sbatch", "scontrol", "qsub", "bsub", "ffmpeg", "ffprobe", "mpirun")
FOREIGN_VARIABLES = {
    **{"SLURM_JOB_ID": "1", "SBATCH_PARTITION": "gpu", "SUBMITIT_EXECUTOR": "local", "PBS_JOBID": "1"},
    **{"LSB_JOBID": "1", "JOB_ID": "1", "OMPI_COMM_WORLD_RANK": "3", "PMI_RANK": "3"},
    **{"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"},
    **{"ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cuda"},
    **{"HF_HOME": "/nowhere", "HF_TOKEN": "secret", "TRANSFORMERS_CACHE": "/nowhere", "TORCH_HOME": "/nowhere"},
    **{"XDG_CACHE_HOME": "/nowhere", "XDG_CONFIG_HOME": "/nowhere", "MPLCONFIGDIR": "/nowhere"},
    **{"FSSPEC_S3_KEY": "wrong", "AWS_PROFILE": "wrong", "https_proxy": "http://nowhere:1"},
    **{"NO_COLOR": "1", "FORCE_COLOR": "1", "LANG": "C", "PYTHONSTARTUP": "/nowhere.py"},
    **{"METASER_GRACE_S": "1", "TORCH_LOGS": "+dynamo"},
}
PROBE = """
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest
from huggingface_hub import constants

SEEN = "import json, os, shutil, sys\\nprint(json.dumps([dict(os.environ), [*map(shutil.which, sys.argv[1:])]]))"
PROGRAMS = PROGRAMS_HERE
VARIABLES = VARIABLES_HERE

def seen():
    done = subprocess.run([sys.executable, "-c", SEEN, *PROGRAMS], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)

def test_nothing_foreign():
    variables, paths = seen()
    assert variables == dict(os.environ)
    assert not VARIABLES & set(variables)
    assert paths == [None] * len(PROGRAMS) == [shutil.which(name) for name in PROGRAMS]
    with pytest.raises(FileNotFoundError):
        subprocess.run(["squeue"])
    home = Path.home()
    assert "foreign" not in str(home) and not list(home.iterdir())
    assert Path(constants.HF_HUB_CACHE).is_relative_to(home) and constants.HF_HUB_OFFLINE
    subprocess.run(["sh", "-c", "ls /"], check=True)

@pytest.mark.ffmpeg
def test_ffmpeg():
    variables, paths = seen()
    assert {Path(path).name for path in paths if path} == {"ffmpeg", "ffprobe"}
    assert not VARIABLES & set(variables)

@pytest.mark.cluster
def test_cluster():
    variables, paths = seen()
    assert all(paths)
    assert variables["SLURM_CONF"] == "/foreign.conf"
    assert not VARIABLES & set(variables)
"""


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A machine with much on it: a file of tests, and the environment to run it in."""
    programs, home = tmp_path / "programs", tmp_path / "foreign"
    programs.mkdir()
    (home / ".cache/huggingface/accelerate").mkdir(parents=True)
    (home / ".cache/huggingface/accelerate/default_config.yaml").write_text("mixed_precision: fp16\n")
    for name in FOREIGN_PROGRAMS:
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    probe = tmp_path / "test_probe.py"
    text = PROBE.replace("PROGRAMS_HERE", repr(FOREIGN_PROGRAMS)).replace(
        "VARIABLES_HERE", repr(set(FOREIGN_VARIABLES))
    )
    probe.write_text(text)
    path = f"{programs}:{os.environ['PATH']}"
    places = {"HOME": str(home), "PATH": path, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "SLURM_CONF": "/foreign.conf"}
    return probe, FOREIGN_VARIABLES | places


def run(probe: Path, environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-c", str(TESTS.parent / "pyproject.toml")]
    command += ["-p", "no:cacheprovider", "--rootdir", str(probe.parent), *arguments, str(probe)]
    done = subprocess.run(command, env=environment, cwd=probe.parent, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout or done.stdout.startswith("bringing up nodes"), done.stdout


def test_the_default_tests_see_nothing_of_the_machine(foreign: tuple[Path, dict[str, str]]) -> None:
    run(*foreign)


@pytest.mark.parametrize("mark", ["ffmpeg", "cluster"])
def test_what_a_test_is_about_is_shown_also_in_a_worker(foreign: tuple[Path, dict[str, str]], mark: str) -> None:
    run(*foreign, "-n", "1", "-m", mark)


@pytest.mark.ffmpeg
def test_a_test_of_ffmpeg_has_it() -> None:
    done = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True)
    assert done.stdout.startswith("ffmpeg version")
