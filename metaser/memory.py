"""A lack of memory, however it comes, told in a sentence; and how much there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from metaser.config.schema import ExperimentConfig

_WORDS = ("can't allocate memory", "out of memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")
"""What only its words tell from other RuntimeErrors: torch's allocator on a CPU, CUDA and its libraries elsewhere."""


def is_lack_of_memory(error: BaseException) -> bool:
    """Return whether `error`, or the one that it was raised from, says that no more memory could be had."""
    if error.__cause__ is not None and is_lack_of_memory(error.__cause__):
        return True
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


@contextmanager
def refusing_lack_of_memory(refusal: Callable[[], Exception]) -> Iterator[None]:
    """Raise what `refusal` returns in place of a lack of memory inside; other errors pass."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        raise refusal() from error


def training_advice(config: ExperimentConfig) -> str:
    """Return what to change, with the present values, when a training lacks memory: the end of a sentence."""
    recompute = (
        "parallel.activation_checkpointing is true already"
        if config.parallel.activation_checkpointing
        else "parallel.activation_checkpointing=true, with which a started run can go on, may do, too"
    )
    return (
        f"lower data.max_micro_batch_s, now {config.data.max_micro_batch_s:g} (a micro-batch is never shorter than its "
        "longest clip, which data.window_s cuts), and, since a run keeps its micro-batches, choose another output_dir; "
        f"{recompute}; `metaser tune` finds what fits"
    )


def available_bytes() -> int:
    """Return how much more memory processes may take: what the system has, or the control groups of this process."""
    (system_kib,) = re.findall(
        r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE
    )
    return min([int(system_kib) * 1024, *_group_rooms()])


def data_bytes() -> int:
    """Return how much private memory this process has asked for: what RLIMIT_DATA counts."""
    (data_kib,) = re.findall(
        r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE
    )
    return int(data_kib) * 1024


def _group_rooms() -> Iterator[int]:
    """Yield what each control group (version 1 or 2) from this process's up leaves of its limit, which a job has."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            root, limit, usage, idle = Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
            usage, idle = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = root / place.lstrip("/")
        for folder in (group, *group.parents):
            # A group outside of the container that this process is in, or the root, which has no limit.
            with suppress(FileNotFoundError, PermissionError):
                most = (folder / limit).read_text(encoding="utf-8").strip()
                # Files that were read count as used, but make room at once.
                files = re.findall(
                    rf"^{idle} (\d+)$", (folder / "memory.stat").read_text(encoding="utf-8"), re.MULTILINE
                )
                if most != "max":
                    yield max(0, int(most) - int((folder / usage).read_text(encoding="utf-8")) + sum(map(int, files)))
            if folder == root:
                break
