"""Checkpoints and the other files of a run: what goes on from them gives what it would have given, or says why not."""

from __future__ import annotations

import json
import random
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from fuzz.area import ACCEPTED, REFUSED, Area, Plan, Run, check_sentence, need, parsed_json, refused
from fuzz.common import EXPERIMENT, RUN, choose, copy_folder, files_of, make_common, replace_file, resign
from fuzz.mutate import damaged_bytes, damaged_tree, doubled_name, json_bytes


class Checkpoints(Area):
    """Reading damaged checkpoints, and continuing from them."""

    name = "checkpoints"

    def prepare(self) -> None:
        make_common()
        # As after a kill in the last stage.
        half = copy_folder(RUN, self.base / "half")
        for left in (*(half / "stage2" / "checkpoints").glob("step-000006"), half / "best", half / "report"):
            shutil.rmtree(left)

    def make(self, draw: random.Random, work: Path) -> Plan:
        entry = choose(draw, [("read", 12), ("resume", 1)])
        if entry == "resume":
            run = copy_folder(self.base / "half", work / "run")
        else:
            run = work / "run"
            for stage in (1, 2):
                copy_folder(RUN / f"stage{stage}", run / f"stage{stage}")
        folders = sorted(run.glob("stage*/checkpoints/step-*"))
        path = draw.choice(files_of(draw.choice(folders[-2:] if entry == "resume" else folders)))
        marker = path.with_name("checkpoint.json")
        kind = choose(
            draw, [("bytes", 4), ("flip", 3), ("state", 5), ("tree", 2), ("twice", 1), ("swap", 1), ("place", 2)]
        )
        if kind in ("bytes", "flip"):
            data = path.read_bytes()
            path.write_bytes(damaged_bytes(draw, data) if kind == "bytes" else _flipped(draw, data))
        elif kind == "state":
            path = marker
            tree = json.loads(path.read_bytes())
            tree["state"] = damaged_tree(draw, tree["state"])
            path.write_bytes(json_bytes(tree, indent=1))
        elif kind == "tree":
            path = marker
            path.write_bytes(json_bytes(damaged_tree(draw, json.loads(path.read_bytes())), indent=1))
        elif kind == "twice":
            path = marker
            path.write_text(doubled_name(draw, path.read_text()))
        elif kind == "swap":
            # Which stage a folder is of, only the run that goes on knows.
            stage = "" if entry == "resume" else f"stage{draw.choice((1, 2))}"
            one, other = draw.sample([path for path in folders if stage in str(path)], 2)
            other.rename(other.with_name("aside"))
            copy_folder(one, other)
        else:
            kind = replace_file(draw, path)
        is_signed = draw.random() < 0.3 and kind in ("bytes", "flip", "state", "tree")
        if is_signed:
            resign(path)
        return {"entry": entry, "kind": kind, "path": str(path.relative_to(work)), "is_signed": is_signed}

    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        return self._resumed(work, plan, run) if plan["entry"] == "resume" else self._read(work, plan)

    def _read(self, work: Path, plan: Plan) -> str:
        from metaser.errors import RunError
        from metaser.train.checkpoint import newest_checkpoint, prune_checkpoints, read_checkpoint

        outcome = ACCEPTED
        for path in sorted((work / "run").glob("stage*/checkpoints/step-*")):
            try:
                found = read_checkpoint(path)
                tensors = [found.model_tensors(), found.optimizer_tensors()]
            except RunError as error:
                check_sentence(str(error))
                outcome = REFUSED
                continue
            if plan["is_signed"] or plan["kind"] == "swap":
                # Whose it is, only its folder tells.
                continue
            state, right = self._sound(f"{path.parts[-3]}/{path.name}")
            need(found.state.to_dict() == state, f"another state after {plan}: {found.state}")
            for mine, theirs in zip(tensors, right, strict=True):
                is_same = mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in theirs)
                need(is_same, f"other tensors after {plan}")
        for stage in (1, 2):
            folder = work / "run" / f"stage{stage}" / "checkpoints"
            newest = newest_checkpoint(folder)
            if newest is not None and not plan["is_signed"]:
                state, _ = self._sound(f"stage{stage}/{newest.path.name}")
                need(newest.state.to_dict() == state, f"continues from another state after {plan}: {newest.state}")
            prune_checkpoints(folder, keep_last=1)
        return outcome

    def _sound(self, name: str) -> tuple[Any, list[Any]]:
        from metaser.train.checkpoint import read_checkpoint

        if name not in self._kept:
            stage, step = name.split("/")
            sound = read_checkpoint(RUN / stage / "checkpoints" / step)
            self._kept[name] = sound.state.to_dict(), [sound.model_tensors(), sound.optimizer_tensors()]
        return self._kept[name]

    @cached_property
    def _kept(self) -> dict[str, tuple[Any, list[Any]]]:
        return {}

    def _resumed(self, work: Path, plan: Plan, run: Run) -> str:
        said = run(["train", EXPERIMENT, f"output_dir={work / 'run'}"])
        if refused(said):
            return REFUSED
        if plan["is_signed"]:
            return ACCEPTED
        mine, right = _results(work / "run"), _results(RUN)
        for name, value in right.items():
            need(mine[name] == value, f"continued to other {name} after {plan}: {said.err[-1000:]!r}")
        return ACCEPTED


def _results(run: Path) -> dict[str, Any]:
    """Return what a training ends with, without places and times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": (run / "best" / "model.safetensors").read_bytes(),
        "metrics": json.loads((run / "report" / "report.json").read_bytes())["tasks"],
        "losses": [(line["stage"], line["step"], line.get("loss"), str(line.get("dev"))) for line in lines],
    }


def _flipped(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


_SUBMISSION = [
    {
        "time": "2026-01-01T00:00:00+00:00",
        "executor": "slurm",
        "job_id": "1",
        "run": "x",
        "output": "x.out",
        "host": "a",
    }
]


class RunFiles(Area):
    """`status`, `evaluate`, `stop` and `train` on a run with one damaged file, beside a sound run."""

    name = "runs"
    limit_s = 20.0

    def prepare(self) -> None:
        make_common()

    def make(self, draw: random.Random, work: Path) -> Plan:
        entry = choose(draw, [("status", 12), ("stop", 2), ("evaluate", 2), ("train", 1)])
        run = copy_folder(RUN, work / "run")
        (run / "jobs").mkdir(exist_ok=True)
        names = (
            "config.yaml",
            "data.json",
            "environment.json",
            "metrics.jsonl",
            "metrics.jsonl",
            "trained_on.parquet",
            ".lock",
        )
        more = ("jobs/submissions.json", "crossval.json", "report/report.json", "train.log", ".stop")
        path = run / draw.choice((*names, *more))
        if path.name in ("submissions.json", "crossval.json"):
            path.write_text(json.dumps(_SUBMISSION))
        elif not path.exists():
            path.write_text('{"host": "a", "pid": 1, "slurm_job": null}' if path.name == ".lock" else "")
        kind = choose(draw, [("bytes", 4), ("tree", 6), ("place", 2)])
        data = path.read_bytes()
        if kind == "tree" and path.suffix in (".json", ".jsonl", ".lock"):
            path.write_bytes(_damaged_lines(draw, data) if path.suffix == ".jsonl" else _damaged_json(draw, data))
        elif kind == "place":
            kind = replace_file(draw, path)
        else:
            path.write_bytes(damaged_bytes(draw, data))
        return {"entry": entry, "kind": kind, "path": str(path.relative_to(run))}

    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        if plan["entry"] == "status":
            return self._status(work, plan, run)
        if plan["entry"] == "stop":
            return REFUSED if refused(run(["stop", work / "run"])) else ACCEPTED
        if plan["entry"] == "train":
            said = run(["train", EXPERIMENT, f"output_dir={work / 'run'}"])
            return REFUSED if refused(said) else ACCEPTED
        said = run(["evaluate", work / "run", "--json"])
        if refused(said):
            return REFUSED
        if plan["path"] != "config.yaml":
            found = parsed_json(said.out)["tasks"]
            need(found == self._report["tasks"], f"judged otherwise after {plan}: {str(found)[:300]}")
        return ACCEPTED

    def _status(self, work: Path, plan: Plan, run: Run) -> str:
        said = run(["status", work / "run", RUN, "--json"])
        need(said.code == 0, f"the sound run was not shown: {said.err[-500:]!r}")
        states = {state["run"]: state for state in parsed_json(said.out)}
        sound = states.get(str(RUN))
        need(sound is not None and sound["state"] == "finished", f"the sound run is {sound}")
        shown = run(["status", work / "run", RUN])
        need(shown.code == 0, f"shown as JSON, but not as a table: {shown.err[-500:]!r}")
        accepted = [state for name, state in states.items() if name != str(RUN) and state["state"] != "damaged"]
        for progress in filter(None, (state["progress"] for state in accepted)):
            place = progress["stage"], progress["step"]
            if place != (0, 0):
                need(progress["loss"] == self._losses.get(place), f"another loss after {plan}: {progress}")
        return ACCEPTED if accepted else REFUSED

    @cached_property
    def _losses(self) -> dict[tuple[int, int], float]:
        lines = map(json.loads, (RUN / "metrics.jsonl").read_text().splitlines())
        return {(line["stage"], line["step"]): line["loss"] for line in lines if "loss" in line}

    @cached_property
    def _report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((RUN / "report" / "report.json").read_bytes())
        return found


def _damaged_json(draw: random.Random, data: bytes) -> bytes:
    try:
        tree = json.loads(data)
    except ValueError:
        return damaged_bytes(draw, data)
    return json_bytes(damaged_tree(draw, tree), indent=1)


def _damaged_lines(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines()
    at = draw.choice((0, len(lines) - 1, draw.randrange(len(lines))))
    kind = draw.choice(("tree", "tree", "tree", "again", "gone", "cut"))
    if kind == "tree":
        lines[at] = json_bytes(damaged_tree(draw, json.loads(lines[at])))
    elif kind == "again":
        lines.insert(at, lines[at])
    elif kind == "gone":
        del lines[at]
    else:
        lines[at] = lines[at][: len(lines[at]) // 2]
    return b"\n".join(lines) + draw.choice((b"", b"\n"))
