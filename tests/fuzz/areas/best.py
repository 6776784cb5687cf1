"""An exported model's folder: any change that is accepted must leave every answer as it was."""

from __future__ import annotations

import json
import math
import random
import struct
from functools import cached_property
from pathlib import Path
from typing import Any

from fuzz.area import ACCEPTED, REFUSED, Area, Plan, Run, Said, need, raises_input_error, refused
from fuzz.common import (
    GOOD,
    RUN,
    RUN_WITH_VIEWS,
    choose,
    copy_folder,
    files_of,
    json_lines,
    make_common,
    make_run_with_views,
    replace_file,
    resign,
)
from fuzz.mutate import damaged_bytes, damaged_tree, doubled_name, json_bytes


class Best(Area):
    """`predict` and `from_pretrained` on a damaged copy."""

    name = "best"

    def prepare(self) -> None:
        make_common()
        make_run_with_views()

    def make(self, draw: random.Random, work: Path) -> Plan:
        has_views = draw.random() < 0.4
        folder = copy_folder(_source(has_views), work / "best")
        path = draw.choice([*files_of(folder), folder / "config.json", folder / "model.safetensors"])
        kind = choose(draw, [("bytes", 5), ("json", 5), ("weights", 3), ("replaced", 1), ("header", 2)])
        if kind == "json":
            path = draw.choice([path for path in files_of(folder) if path.suffix == ".json"])
            text = json_bytes(damaged_tree(draw, json.loads(path.read_bytes())), indent=2)
            path.write_bytes(
                doubled_name(draw, text.decode(errors="replace")).encode() if draw.random() < 0.1 else text
            )
        elif kind in ("weights", "header"):
            path = folder / "model.safetensors"
            path.write_bytes(_damaged_weights(draw, path.read_bytes(), in_header=kind == "header"))
        elif kind == "replaced":
            kind = replace_file(draw, path)
        else:
            path.write_bytes(damaged_bytes(draw, path.read_bytes()))
        is_signed = draw.random() < 0.4 and path.is_file() and not path.is_symlink() and path.name != "SHA256SUMS"
        if is_signed:
            # As somebody else would make it who knows the format.
            resign(path)
        entry = choose(draw, [("predict", 4), ("from_pretrained", 2)])
        return {"file": path.name, "kind": kind, "entry": entry, "is_signed": is_signed, "has_views": has_views}

    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        if plan["entry"] == "from_pretrained":
            return self._loaded(work / "best", plan)
        has_views = bool(plan["has_views"])
        said = run(_question(work / "best", has_views))
        # What no answer can be made of is told in the file's own line.
        if (said.code == 2 and said.out and all("error" in line for line in _answers(said))) or refused(said):
            return REFUSED
        answers = _answers(said)
        for line in answers:
            _check_answer(line)
        need(plan["is_signed"] or answers == self._right[has_views], f"another answer after {plan}: {said.out[:300]!r}")
        return ACCEPTED

    def _loaded(self, folder: Path, plan: Plan) -> str:
        from metaser.model.metaser import MetaSERModel

        models: list[Any] = []
        if raises_input_error(lambda: models.append(MetaSERModel.from_pretrained(folder))):
            return REFUSED
        (model,) = models
        if plan["is_signed"]:
            return ACCEPTED
        has_views = bool(plan["has_views"])
        state, right = model.state_dict(), self._sound[has_views].state_dict()
        is_same = state.keys() == right.keys() and all(state[name].equal(right[name]) for name in right)
        need(is_same, f"other weights after {plan}")
        need(_told(model) == _told(self._sound[has_views]), f"another model after {plan}")
        return ACCEPTED

    @cached_property
    def _right(self) -> dict[bool, list[Any]]:
        from fuzz.area import run_here

        return {has_views: _answers(run_here(_question(_source(has_views), has_views))) for has_views in (False, True)}

    @cached_property
    def _sound(self) -> dict[bool, Any]:
        from metaser.model.metaser import MetaSERModel

        return {has_views: MetaSERModel.from_pretrained(_source(has_views)) for has_views in (False, True)}


def _source(has_views: bool) -> Path:
    return (RUN_WITH_VIEWS if has_views else RUN) / "best"


def _question(folder: Path, has_views: bool) -> list[Any]:
    text = ["--text", "an so"] if has_views else []
    return ["predict", folder, GOOD, "--format", "jsonl", *text]


def _told(model: Any) -> tuple[Any, ...]:
    config = model.config
    return config.tasks, config.main_task, config.model, config.encoder, config.views


def _check_answer(line: dict[str, Any]) -> None:
    """Hold an answer of a model of others against what answers are."""
    for values in line.values():
        shares = values.get("probabilities", {}).values() if isinstance(values, dict) else ()
        need(not shares or math.isclose(sum(shares), 1, abs_tol=1e-3), f"probabilities {values}")


def _answers(said: Said) -> list[Any]:
    return json_lines(said.out)


def _damaged_weights(draw: random.Random, data: bytes, *, in_header: bool) -> bytes:
    size = struct.unpack("<Q", data[:8])[0]
    if not in_header:
        at = draw.randrange(8 + size, len(data))
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    header = json_bytes(damaged_tree(draw, json.loads(data[8 : 8 + size])), separators=(",", ":"))
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]
