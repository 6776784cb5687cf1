"""Hides from the tests what happens to be on the machine: programs, variables, caches, the home of who runs them.

The lists say what a test and the processes that it starts may see. What stands on none of them is absent for them, so
that no list of schedulers, launchers and libraries has to be complete.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

PROGRAMS = (
    *("awk", "basename", "bash", "cat", "chmod", "cp", "cut", "date", "df", "dirname", "env"),
    *("expr", "false", "find", "git", "grep", "head", "hostname", "id", "kill", "ln", "ls"),
    *("mkdir", "mktemp", "mount", "mv", "nproc", "ps", "readlink", "realpath", "rm", "sed"),
    *("seq", "setsid", "sh", "sleep", "sort", "tail", "tee", "timeout", "touch", "tr", "true", "uname"),
    *("unshare", "wc", "xargs"),
    # torch.compile and DeepSpeed build with these.
    *("as", "c++", "cc", "g++", "gcc", "ld", "ninja", "nvcc", "nvidia-smi"),
)
"""What is found on the PATH, where the machine has it."""
VARIABLES = (
    *("LD_LIBRARY_PATH", "METASER_IEMOCAP", "PYTHONPATH", "TMPDIR"),
    *("ATEN_CPU_CAPABILITY", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA"),
)
PREFIX = "PYTEST_"
"""Variables that begin so stay, too."""
SETTINGS = {
    "COLUMNS": "80",
    "GIT_CONFIG_NOSYSTEM": "1",
    "HF_HUB_OFFLINE": "1",
    "LC_ALL": "C.UTF-8",
    "LINES": "24",
    "LOGNAME": "tester",
    "MPLBACKEND": "agg",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TZ": "UTC",
    "USER": "tester",
}
CLUSTER_VARIABLES = ("LOGNAME", "PATH", "SLURM_CONF", "USER")

_OUTSIDE = "PYTEST_OUTSIDE"


def hide() -> None:
    """Leave in `os.environ` what the lists name, with a HOME that is empty and a PATH of links."""
    folder = Path(tempfile.mkdtemp(prefix="metaser-tests-"))
    atexit.register(_remove, folder, os.getpid())
    for name in ("bin", "home"):
        (folder / name).mkdir()
    # A worker of pytest-xdist starts in an environment that hides the outside already.
    outside = {name: os.environ[name] for name in CLUSTER_VARIABLES if name in os.environ}
    kept = {name: value for name, value in os.environ.items() if name in VARIABLES or name.startswith(PREFIX)}
    places = {
        "HOME": str(folder / "home"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
        "PATH": str(folder / "bin"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
    os.environ.clear()
    os.environ.update({"OMP_NUM_THREADS": "1", _OUTSIDE: json.dumps(outside)} | kept | SETTINGS | places)
    show(PROGRAMS)


def show(programs: Iterable[str]) -> None:
    """Let the tests find those of `programs` that the machine has."""
    path = json.loads(os.environ[_OUTSIDE]).get("PATH")
    for name in programs:
        found = shutil.which(name, path=path)
        if found is not None:
            Path(os.environ["PATH"], name).symlink_to(found)


def show_cluster() -> None:
    """Let the tests use the machine's SLURM, with all programs, as who runs them."""
    for name in CLUSTER_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(json.loads(os.environ[_OUTSIDE]))


def _remove(folder: Path, owner: int) -> None:
    # Forked processes come here, too.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
