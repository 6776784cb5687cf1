"""Who this process is among those that train together: the only reader of RANK and its relatives."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from metaser.errors import TrainingError


@dataclass(frozen=True)
class DistInfo:
    """This process's place in the job."""

    rank: int
    num_processes: int
    local_rank: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0


def dist_info(environment: Mapping[str, str] = os.environ, *, expected_num_processes: int | None = None) -> DistInfo:
    """Return this process's place, as a launcher (accelerate, torchrun, a SLURM job) has told it.

    Raises:
        TrainingError: if the variables are incomplete, or the number of processes is not the expected one.
    """
    given = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if set(given.values()) == {None}:
        info = DistInfo(rank=0, num_processes=1, local_rank=0)
    else:
        try:
            info = DistInfo(
                rank=int(given["RANK"] or ""),
                num_processes=int(given["WORLD_SIZE"] or ""),
                local_rank=int(given["LOCAL_RANK"] or ""),
            )
        except ValueError:
            raise TrainingError(
                f"RANK, WORLD_SIZE and LOCAL_RANK must be set together to integers, got {given}"
            ) from None
    if not 0 <= info.rank < info.num_processes:
        raise TrainingError(f"RANK must be below WORLD_SIZE, got {info.rank} and {info.num_processes}")
    if not 0 <= info.local_rank < info.num_processes:
        raise TrainingError(f"LOCAL_RANK must be below WORLD_SIZE, got {info.local_rank} and {info.num_processes}")
    if given["RANK"] is not None:
        _check_meeting_point(environment)
    if expected_num_processes is not None and info.num_processes != expected_num_processes:
        raise TrainingError(
            f"parallel.expected_num_processes is {expected_num_processes}, but {info.num_processes} were started; "
            "without a GPU, `accelerate launch` needs --multi_gpu beside --num_processes to start more than one"
        )
    return info


def _check_meeting_point(environment: Mapping[str, str]) -> None:
    """Refuse what would make torch wait for ever or train one model per node."""
    host, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT", "")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise TrainingError(
            "a launcher that sets RANK, WORLD_SIZE or LOCAL_RANK must set MASTER_ADDR to a host and MASTER_PORT to a "
            f"port, got {host!r} and {port!r}; unset all of them to train with one process"
        )
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise TrainingError(f"MASTER_ADDR must resolve to an address, but {host!r} does not: {error}") from None


def export_dist_info(info: DistInfo) -> None:
    """Tell libraries that ask the environment (DeepSpeed) what `dist_info` found out."""
    place = {"RANK": info.rank, "WORLD_SIZE": info.num_processes, "LOCAL_RANK": info.local_rank}
    os.environ.update({name: str(value) for name, value in place.items()})
