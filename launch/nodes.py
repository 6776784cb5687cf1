"""Names of a cluster's nodes: the first of SLURM's list, and whether one leads anywhere. Needs no SLURM command."""

from __future__ import annotations

import re
import socket

from launch.cluster import SHOWN_CHARS, ClusterError
from shards.shown import shown

_FIRST_NODE = re.compile(r"(?:[\w.-]+|\[\d+[\d,-]*\])+(?=,|$)")
_FIRST_NUMBER = re.compile(r"\[(\d+)[^]]*\]")


def first_node(nodes: str) -> str:
    """Return the first of SLURM's list of nodes, e.g. `gpu01` of `gpu[01-03,07],login1`; no command is needed.

    Raises:
        ClusterError: if this is no such list.
    """
    if not (found := _FIRST_NODE.match(nodes)):
        raise ClusterError(f"SLURM_JOB_NODELIST must name nodes such as gpu[01-03,07], got {nodes!r}")
    return _FIRST_NUMBER.sub(r"\1", found[0])


def check_resolves(name: str, remedy: str) -> None:
    """Refuse a node's name that means nothing here; `remedy` says what to do then.

    Raises:
        ClusterError: if it does not resolve.
    """
    try:
        socket.getaddrinfo(name, None)
    # What cannot be a host's name is refused by Python itself.
    except (socket.gaierror, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no host can be called so"
        raise ClusterError(
            f"the name of node {shown(name, SHOWN_CHARS)!r} must resolve to an address, because the processes meet "
            f"there, but on {socket.gethostname()} it does not: {reason}; {remedy}"
        ) from None
