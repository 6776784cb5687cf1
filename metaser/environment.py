"""The record of every start of a run, `environment.json`: command, machine, code and packages."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter

from metaser.distributed import DistInfo
from metaser.provenance import git_state, installed_packages
from metaser.rundir import RunDir
from metaser.runfiles import read_json, write_whole
from metaser.sums import sealed_json
from shards.shown import shown


@dataclass(frozen=True)
class _Environment:
    """What `environment.json` holds; earlier versions wrote the list alone."""

    starts: list[dict[str, Any]]


_validate_environment = TypeAdapter(_Environment | list[dict[str, Any]]).validate_json


def append_start(run: RunDir, info: DistInfo, init_from: Mapping[str, Any] | None) -> None:
    """Add this start to the run's `environment.json`; `init_from` says which weights it took over, None if none.

    Raises:
        RunError: if what is there is damaged.
        OSError: if the disk refuses.
    """
    found = read_json(run.environment, _validate_environment) or []
    starts = found if isinstance(found, list) else found.starts
    starts.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": [shown(argument) for argument in sys.argv],
            "host": platform.node(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "num_processes": info.num_processes,
            "num_threads": torch.get_num_threads(),
            "cuda_devices": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
            "init_from": None if init_from is None else dict(init_from),
            "git": git_state(),
            "packages": installed_packages(),
        }
    )
    write_whole(run.environment, sealed_json({"starts": starts}))
