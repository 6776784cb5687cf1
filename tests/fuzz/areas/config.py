"""Experiments: YAML, as bytes and as what it says, and `a.b=c`; what is accepted means what YAML 1.2 says."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from fuzz.area import ACCEPTED, REFUSED, Area, Plan, Run, need, refused
from fuzz.common import EXPERIMENT, choose, experiment, make_common
from fuzz.mutate import PAYLOAD, WORDS, damaged_bytes, damaged_tree, holds_raw

_REFUSED = "refused"
_MEANT: tuple[tuple[str, Any], ...] = (
    ("seed: 010\n", 10),
    ("seed: 0010\n", 10),
    ("seed: -010\n", -10),
    ("seed: 0o17\n", 15),
    ("seed: 0x1F\n", 31),
    ("seed: 0b11\n", _REFUSED),
    ("seed: 1:30\n", _REFUSED),
    ("seed: 12:00:00\n", _REFUSED),
    ("seed: 1_000\n", 1000),
    ("seed: +12\n", 12),
    ("seed: 1e3\n", 1000),
    ("seed: 1.0\n", 1),
    ("seed: 1.5\n", _REFUSED),
    ("seed: .inf\n", _REFUSED),
    ("seed: yes\n", _REFUSED),
    ("seed: on\n", _REFUSED),
    ("seed: ~\n", _REFUSED),
    ("seed:\n", _REFUSED),
    ("seed: 1 2\n", _REFUSED),
    ("seed: 2001-01-01\n", _REFUSED),
    ("seed: 9" + "9" * 5000 + "\n", _REFUSED),
    ("seed: 1\nseed: 2\n", _REFUSED),
    ("seed: 1\n'seed': 1\n", _REFUSED),
    ("seed: 1\n? seed\n: 2\n", _REFUSED),
    ("stages: []\n", _REFUSED),
    ("<<: {seed: 3}\nseed: 4\n", 4),
    ("<<: {output_dir: other}\n", None),
    ("<<: *nothing\n", _REFUSED),
    (f"seed: !!python/object/apply:os.system ['touch {PAYLOAD}']\n", _REFUSED),
    ("seed: !!int 7\n", 7),
    ("seed: !!binary MQ==\n", _REFUSED),
    ("seed: !!set {1}\n", _REFUSED),
    ("1: 2\n", _REFUSED),
    ("null: 2\n", _REFUSED),
    ("[a]: 2\n", _REFUSED),
    ("{a: b}: 2\n", _REFUSED),
    ("---\nseed: 3\n", _REFUSED),
    ("seed: 3\n...\nmore\n", _REFUSED),
    ("\tseed: 3\n", _REFUSED),
    ("seed: [" + "[" * 3000 + "]" * 3001 + "\n", _REFUSED),
    ("seed: {a: " * 1000 + "1" + "}" * 1000 + "\n", _REFUSED),
    ("data: {shards: x, shards: y}\n", _REFUSED),
    ("seed: &a 5\n", 5),
    ("x: &a [1]\n", _REFUSED),
    ("seed: &a [*a]\n", _REFUSED),
    ("seed: \x1b[2J\n", _REFUSED),
    ("seed: '\\x1b[2J'\n", _REFUSED),
    ('seed: "\\e[2J"\n', _REFUSED),
    ("\ufeffseed: 3\n", None),
    ("seed: 3\u2028main_task: emotion\n", None),
    ("seed: 3\x85", None),
)
"""Lines behind the experiment, and the seed that they mean; None: any, as they are odd but no lie."""
_FOLDERS: tuple[tuple[str, bool], ...] = (
    ('""', False),
    ("''", False),
    ("~", False),
    ("", False),
    ("~/r", True),
    ("'~/r'", True),
    ('"a\\nb"', False),
    ('"a\\0b"', False),
    ('"a\\e[2J"', False),
    ('" "', False),
    ("[a]", False),
    ("{a: b}", False),
    ("1", False),
)
"""What stands for `output_dir`, and whether it may be accepted."""


class Configuration(Area):
    """`train --print-config` on a damaged experiment."""

    name = "config"

    def prepare(self) -> None:
        make_common(with_run=False)

    def make(self, draw: random.Random, work: Path) -> Plan:
        kind = choose(
            draw, [("bytes", 4), ("tree", 5), ("meant", 4), ("folder", 1), ("bomb", 1), ("override", 4), ("place", 1)]
        )
        text = EXPERIMENT.read_text()
        plan: Plan = {"kind": kind, "overrides": []}
        if kind == "tree":
            tree = damaged_tree(draw, experiment())
            plan["tree"] = None if holds_raw(tree) else tree
            text = yaml.safe_dump(
                tree, allow_unicode=draw.random() < 0.5, default_flow_style=draw.choice((None, True, False))
            )
        elif kind == "meant":
            more, plan["meant"] = draw.choice(_MEANT)
            text += more
        elif kind == "folder":
            said, plan["may"] = draw.choice(_FOLDERS)
            if draw.random() < 0.5:
                text = text.replace("output_dir: runs/tiny", f"output_dir: {said}")
            else:
                plan["overrides"] = [f"output_dir={said}"]
        elif kind == "bomb":
            text += _bomb(draw)
        elif kind == "override":
            plan["overrides"] = [_override(draw) for _ in range(draw.choice((1, 1, 2, 3)))]
        data = text.encode("utf-8", "surrogatepass")
        if kind == "bytes":
            data = (
                damaged_bytes(draw, data)
                if draw.random() < 0.8
                else text.encode(draw.choice(("utf-16", "latin-1", "utf-32")))
            )
        path = work / "experiment.yaml"
        path.write_bytes(data)
        if kind == "place":
            from fuzz.common import replace_file

            replace_file(draw, path)
        return plan

    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        path = work / "experiment.yaml"
        said = run(["train", path, "--print-config", "--", *plan["overrides"]])
        need(not Path(PAYLOAD).exists(), "a word of the experiment was executed")
        if refused(said):
            return REFUSED
        need(plan["kind"] not in ("bomb", "place"), f"accepted: {said.out[:200]}")
        # What a run keeps of its configuration must be what was said.
        (work / "again.yaml").write_text(said.out)
        again = run(["train", work / "again.yaml", "--print-config"])
        need(again.out == said.out, f"not the same when it is read back: {again.err[-500:]!r}")
        found = yaml.safe_load(said.out)
        if plan["kind"] == "meant":
            need(
                plan["meant"] is None or plan["meant"] == found["seed"],
                f"{plan['meant']} was meant, got {found['seed']}",
            )
        if plan["kind"] == "folder":
            need(plan["may"] and not str(found["output_dir"]).startswith("~"), f"output_dir is {found['output_dir']!r}")
        if plan.get("tree") is not None:
            difference = _difference(plan["tree"], found, "")
            need(difference is None, f"accepted with another meaning: {difference}")
        return ACCEPTED


def _bomb(draw: random.Random) -> str:
    depth, width = draw.choice(((9, 10), (12, 4), (20, 2), (6, 30), (60, 2), (4, 100)))
    form = draw.choice(("list", "object"))
    nested = "&z0 [x]"
    for level in range(1, depth):
        if form == "list":
            nested = f"&z{level} [{nested}{f',*z{level - 1}' * (width - 1)}]"
        else:
            more = "".join(f", k{number}: *z{level - 1}" for number in range(1, width))
            nested = f"&z{level} {{k0: {nested}{more}}}"
    return f"seed: {nested}\n"


def _override(draw: random.Random) -> str:
    names = (
        "seed",
        "output_dir",
        "data.shards",
        "stages.0.num_steps",
        "stages.9.name",
        "stages.-1.name",
        "stages.x",
        "",
    )
    more = (
        "data",
        "stages",
        "tasks.0.name",
        "model.encoder.width",
        "data.batch_utterances",
        "a.b.c",
        "..",
        "seed.a",
        ".seed",
    )
    values = (
        "1",
        "010",
        "[",
        "{",
        "&a",
        "*a",
        "1:30",
        "!!python/name:os.system",
        "- 1",
        "x: y: z",
        '"',
        "null",
        "1e9",
        "-1",
    )
    name = draw.choice((*names, *more))
    return f"{name}={draw.choice((*values, *WORDS))}".replace("\0", "")


def _difference(said: Any, found: Any, where: str) -> str | None:
    """Return where what was found is not what was said; defaults may stand beside it."""
    if isinstance(said, dict) and isinstance(found, dict):
        for name, value in said.items():
            if str(name) not in map(str, found):
                return f"{where}.{name} is missing"
            inner = next(other for key, other in found.items() if str(key) == str(name))
            if (difference := _difference(value, inner, f"{where}.{name}")) is not None:
                return difference
        return None
    if isinstance(said, list) and isinstance(found, list):
        if len(said) != len(found):
            return f"{where} has {len(found)} items instead of {len(said)}"
        pairs = (
            _difference(one, other, f"{where}.{at}") for at, (one, other) in enumerate(zip(said, found, strict=True))
        )
        return next(filter(None, pairs), None)
    is_home = isinstance(said, str) and (said == "~" or said.startswith("~/")) and str(Path(said).expanduser()) == found
    is_number = _number(said) == _number(found) is not None
    return None if said == found or is_home or is_number else f"{where} is {found!r}, said {said!r}"


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
