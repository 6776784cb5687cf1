"""What a job asks of a SLURM cluster: `configs/cluster/*.yaml` as one typed section."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from shards.config import Count, PathText, usable_path
from shards.errors import InputError
from shards.record import Section
from shards.shown import shown


class ClusterError(InputError):
    """The cluster cannot or must not be used as asked."""


_TIME = re.compile(r"(?:(?P<d>\d+)-(?P<h>\d+)(?::(?P<m>\d+)(?::(?P<s>\d+))?)?|(?:(?P<H>\d+):)?(?P<M>\d+):(?P<S>\d+))")


def _minutes(value: Any) -> Any:
    """Return in minutes, rounded up, a time in SLURM's words: `M:SS`, `H:MM:SS`, `D-HH`, `D-HH:MM`, `D-HH:MM:SS`."""
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    days, hours, minutes, seconds = (sum(int(found[name] or 0) for name in names) for names in ("d", "hH", "mM", "sS"))
    return (24 * days + hours) * 60 + minutes + (seconds + 59) // 60


def _one_line(text: str) -> str:
    """Refuse what would begin another line of the sbatch file, or could not be seen in it."""
    if shown(text) != text:
        raise ValueError(f"must be one line without control characters, got {shown(text, SHOWN_CHARS)!r}")
    return text


def _word(text: str) -> str:
    if not _one_line(text) or text != text.strip() or text.startswith("-"):
        raise ValueError(
            f"must be a word that begins with neither - nor a blank, got {text[:SHOWN_CHARS]!r}; leave it out for none"
        )
    return text


def _variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text) or text in _ALL_VARIABLES:
        raise ValueError(f"must be the name of one variable, got {shown(text, SHOWN_CHARS)!r}")
    return text


def _mount(text: str) -> str:
    outside, separator, inside = text.partition(":")
    if "," in text or shown(inside) != inside or inside != inside.strip() or (separator and not inside):
        raise ValueError(f"must be PATH or PATH:PATH_INSIDE without commas, got {shown(text, SHOWN_CHARS)!r}")
    return f"{usable_path(outside)}{separator}{inside}"


SHOWN_CHARS = 200
"""Characters of a value in a sentence."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ALL_VARIABLES = ("ALL", "NIL", "NONE")
"""What sbatch's `--export` takes for every variable, or for none."""
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

Word = Annotated[str, AfterValidator(_word)]


class ClusterConfig(Section):
    """Where a training runs: `configs/cluster/*.yaml`. What it computes is the experiment's matter."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    nodes: Count = 1
    """Machines of one job."""
    gpus_per_node: int = Field(default=0, ge=0, lt=2**31)
    """One training process per GPU."""
    tasks_per_node: Count | None = None
    """Training processes on each node, where there are no GPUs; with GPUs it follows from these."""
    cpus_per_task: Count = 1
    """The training process and its `data.num_workers` readers."""
    mem_gb: Annotated[float, Field(gt=0, le=10**6)] | None = None
    """Of each node; None takes the partition's default."""
    time_min: Annotated[Count, BeforeValidator(_minutes)]
    """After so many minutes the job is stopped, requeued and goes on; as text also H:MM:SS or D-HH:MM."""
    partition: Word | None = None
    """A partition of the cluster's; None takes its default one, here and below."""
    account: Word | None = None
    """Who pays."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Word | None = None
    """Node features, as in `--constraint`."""
    grace_s: Count = 300
    """The warning comes so long before the time is over. A step and a save must fit in."""
    modules: tuple[Word, ...] = ()
    """Loaded by `module load` before the training starts."""
    container_image: PathText | None = None
    """Image for srun's `--container-image` (the Pyxis plugin); MetaSER must be installed in it under the same path."""
    container_mounts: tuple[Annotated[str, AfterValidator(_mount)], ...] = ()
    """What the container sees beside the working directory and the run: folders with shards or encoders, as `PATH` or
    `PATH:PATH_INSIDE`."""
    environment_file: PathText | None = None
    """A shell file sourced by the job: NCCL's settings, for example `slurm/env.sh`."""
    pass_environment: tuple[Annotated[str, AfterValidator(_variable)], ...] = ()
    """Variables of the submitting shell that reach the job, beside `PASSED_VARIABLES`."""
    max_requeues: int = Field(default=100, ge=0, lt=2**31)
    """How often a job may start again by itself."""
    max_parallel_folds: Count = 16
    """Folds of one cross-validation that run at the same time."""
    check_node_names: bool = True
    """Refuse to submit when a node's name does not resolve on this host; false where login nodes know none of them."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further options of sbatch by their long names, e.g. `{exclude: node7}`; not those that follow from the above."""

    @model_validator(mode="after")
    def _check(self) -> ClusterConfig:
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise ValueError(
                f"tasks_per_node must be left out where there are GPUs (one task each: {self.gpus_per_node}), "
                f"got {self.tasks_per_node}"
            )
        if self.grace_s >= 60 * self.time_min:
            raise ValueError(f"grace_s must be shorter than time_min ({60 * self.time_min} s), got {self.grace_s}")
        problems = [problem for name, value in self.sbatch.items() if (problem := self._conflict(name, value))]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _conflict(self, name: str, value: str | int | bool) -> str | None:
        """Return why the entry `name` of `sbatch` must go, None if it may stay."""
        plain = name.lstrip("-").replace("_", "-")
        told = shown(repr(value), SHOWN_CHARS)
        if len(plain) == 1:
            ours = _SHORT_NAMES.get(plain)
        else:
            # sbatch takes any beginning of a name that no other option shares.
            ours = next((long for long in _SET_BY if plain and long.startswith(plain.lower())), None)
        if ours == "gres" and "gpu" not in str(value):
            return None
        if ours in ("mem-per-cpu", "mem-per-gpu") and self.mem_gb is None:
            return None
        if ours is not None:
            return f"sbatch.{name} must be left out, because MetaSER sets it: {_SET_BY[ours]}, got {told}"
        if len(plain) < 2 or not _OPTION.fullmatch(name):
            named = repr(shown(name, SHOWN_CHARS))
            return f"sbatch must have options of sbatch by their long names, such as exclude, got {named}"
        if shown(str(value)) != str(value):
            return f"sbatch.{name} must be one line without control characters, got {told}"
        return None

    @property
    def num_tasks_per_node(self) -> int:
        """Training processes on each node."""
        return self.gpus_per_node or self.tasks_per_node or 1

    @property
    def num_tasks(self) -> int:
        """Training processes in all."""
        return self.nodes * self.num_tasks_per_node


_SET_BY = {
    "nodes": "use nodes",
    "ntasks-per-node": "use gpus_per_node or tasks_per_node",
    "ntasks": "use nodes and gpus_per_node or tasks_per_node",
    "ntasks-per-gpu": "there is one for each GPU of gpus_per_node",
    "gpus-per-node": "use gpus_per_node",
    "gpus": "use gpus_per_node",
    "gpus-per-task": "use gpus_per_node",
    "gres": "use gpus_per_node",
    "cpus-per-task": "use cpus_per_task",
    "cpus-per-gpu": "use cpus_per_task",
    "mem": "use mem_gb",
    "mem-per-cpu": "use mem_gb",
    "mem-per-gpu": "use mem_gb",
    "time": "use time_min",
    "partition": "use partition",
    "account": "use account",
    "qos": "use qos",
    "constraint": "use constraint",
    "signal": "use grace_s",
    "requeue": "use max_requeues",
    "no-requeue": "use max_requeues",
    "array": "use max_parallel_folds",
    "export": "use pass_environment",
    "export-file": "use environment_file",
    "job-name": "it follows from the experiment's output_dir",
    "output": "it follows from the experiment's output_dir",
    "error": "it follows from the experiment's output_dir",
    "open-mode": "a requeued job's logs are appended to",
    "chdir": "it is the folder in which you submit",
    "parsable": "it reads what sbatch prints",
    "wait": "use --follow",
    "wrap": "it is the training",
    "test-only": "use --dry-run",
}
"""Options of sbatch that the cluster's other values decide, each with what to do instead."""
_SHORT_NAMES = {
    **{"N": "nodes", "n": "ntasks", "G": "gpus", "c": "cpus-per-task", "t": "time", "p": "partition", "A": "account"},
    **{"q": "qos", "C": "constraint", "a": "array", "J": "job-name", "o": "output", "e": "error", "D": "chdir"},
    "W": "wait",
}

PASSED_VARIABLES = (
    *(
        "HOME",
        "USER",
        "LOGNAME",
        "PATH",
        "LANG",
        "LC_ALL",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
    ),
    *("MODULEPATH", "MODULESHOME", "LMOD_CMD", "OMP_NUM_THREADS", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE"),
)
"""All that a job sees of the submitting shell: where programs and caches lie, and nothing that may be a secret."""


def load_cluster(path: str | Path, changes: Sequence[str] = ()) -> ClusterConfig:
    """Return the cluster described in the YAML file at `path`, with `changes` such as `nodes=4` applied.

    Raises:
        ConfigError: if it cannot be read or values are wrong.
    """
    from metaser.config.load import load_section

    return load_section(ClusterConfig, path, changes, name="--cluster", whole="the cluster")
