"""Cluster files and their options: no word of them may become a command or an option of the job."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from fuzz.area import ACCEPTED, REFUSED, Area, Plan, Run, need, refused
from fuzz.common import EXPERIMENT, choose, make_common, replace_file
from fuzz.mutate import PAYLOAD, WORDS, damaged_bytes, damaged_tree

_CLUSTER: dict[str, Any] = {
    "nodes": 2,
    "gpus_per_node": 4,
    "cpus_per_task": 8,
    "mem_gb": 100,
    "time_min": 60,
    "partition": "main",
    "account": "speech",
    "qos": "normal",
    "constraint": "a100",
    "grace_s": 60,
    "modules": ["cuda/13.0"],
    "container_image": "/images/metaser.sqsh",
    "container_mounts": ["/data/shards"],
    "environment_file": "slurm/env.sh",
    "pass_environment": ["WANDB_MODE"],
    "max_requeues": 3,
    "sbatch": {"exclude": "node7", "mail-type": "FAIL"},
}
_INJECTIONS = (
    f"a\ntouch {PAYLOAD}\n",
    f"a\n\ntouch {PAYLOAD}",
    f"a; touch {PAYLOAD}",
    f"a && touch {PAYLOAD}",
    f"a | touch {PAYLOAD}",
    f"$(touch {PAYLOAD})",
    f"`touch {PAYLOAD}`",
    f"'; touch {PAYLOAD}; '",
    f'"; touch {PAYLOAD}; "',
    f"a\r\ntouch {PAYLOAD}",
    f"a\x0btouch {PAYLOAD}",
    f"\\\ntouch {PAYLOAD}",
    f"a' \ntouch {PAYLOAD} #'",
    f"<(touch {PAYLOAD})",
    f"&touch {PAYLOAD}",
    "a\n#SBATCH --injected=1",
    "a #\n#SBATCH --injected=1",
    "a --injected=1",
    "--injected",
)
_OPTIONS = ("--partition", "--account", "--qos", "--constraint", "--modules", "--container-image", "--environment-file")


class ClusterFile(Area):
    """`submit --dry-run`, and the script that it prints, run without SLURM."""

    name = "cluster"

    def prepare(self) -> None:
        make_common(with_run=False)

    def make(self, draw: random.Random, work: Path) -> Plan:
        kind = choose(draw, [("injection", 6), ("tree", 5), ("bytes", 3), ("option", 3), ("name", 3), ("place", 1)])
        tree: Any = dict(_CLUSTER)
        for name in draw.sample(sorted(tree), draw.randrange(len(tree) - 1)):
            if name != "time_min":
                del tree[name]
        plan: Plan = {"kind": kind, "more": [], "overrides": []}
        injected = draw.choice((*_INJECTIONS, *WORDS))
        if kind == "injection":
            tree = _with(draw, tree, injected)
        elif kind == "tree":
            tree = damaged_tree(draw, tree)
        elif kind == "option":
            plan["more"] = [draw.choice(_OPTIONS), injected.replace("\0", "")]
            if draw.random() < 0.3:
                plan["more"] = [
                    "--sbatch",
                    f"{draw.choice(('comment', 'exclude', injected))}={injected}".replace("\0", ""),
                ]
        elif kind == "name":
            plan["overrides"] = [f"output_dir={_quoted(injected)}"]
        data = yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")
        (work / "cluster.yaml").write_bytes(damaged_bytes(draw, data) if kind == "bytes" else data)
        if kind == "place":
            replace_file(draw, work / "cluster.yaml")
        return plan

    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        file = ["--cluster", work / "cluster.yaml"]
        said = run(["submit", *file, "--dry-run", *plan["more"], "--", EXPERIMENT, *plan["overrides"]])
        if refused(said):
            return REFUSED
        options = [line.removeprefix("#SBATCH") for line in said.out.splitlines() if line.startswith("#SBATCH")]
        words = [word for option in options for word in shlex.split(option)]
        need(not any(word.startswith("--injected") for word in words), "an option was put into the job")
        if plan["kind"] != "bytes":
            need(not _executes(said.out, work / "node"), f"a word became a command: {said.out}")
        return ACCEPTED


def _with(draw: random.Random, tree: dict[str, Any], word: str) -> dict[str, Any]:
    name = draw.choice([name for name in _CLUSTER if isinstance(_CLUSTER[name], str | list | dict)])
    value = _CLUSTER[name]
    if isinstance(value, list):
        word_or_list: Any = [word] if draw.random() < 0.7 else [*value, word]
    elif isinstance(value, dict):
        word_or_list = {word: "1"} if draw.random() < 0.5 else {"comment": word}
    else:
        word_or_list = word
    return {**tree, name: word_or_list}


def _quoted(word: str) -> str:
    import json

    return json.dumps(f"runs/{word}")


def _executes(script: str, folder: Path) -> bool:
    """Run what the job would run, but for the programs, and return whether a word of the input was executed."""
    folder.mkdir()
    (folder / "bin").mkdir()
    (folder / "bin" / "touch").symlink_to(shutil.which("touch") or "/usr/bin/touch")
    (folder / "job.sh").write_text(script)
    environment = {"PATH": str(folder / "bin"), "HOME": str(folder), "SLURM_JOB_ID": "1"}
    shell = shutil.which("bash") or "/bin/bash"
    with contextlib.suppress(subprocess.TimeoutExpired):
        # What the file to be sourced is, is its owner's matter: it may be a device.
        subprocess.run(
            [shell, "--norc", "job.sh"],
            cwd=folder,
            env=environment,
            timeout=3,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    return os.path.lexists(folder / PAYLOAD)
