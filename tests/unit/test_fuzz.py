"""The fuzzing itself can fail: an entry that raises, hangs, allocates, dies or answers wrongly is counted as that."""

import json
import os
import random
import time
from functools import partial

import pytest
from fuzz.area import ACCEPTED, REFUSED, Area, CrashError, Said, WrongAnswerError, need, refused, run_here
from fuzz.areas import AREAS
from fuzz.engine import fuzz, prepare, replay, table
from fuzz.mutate import damaged_bytes, damaged_tree, json_bytes
from tinyruns import start_server

OUTCOMES = {
    "raises": "crash",
    "hangs": "hang",
    "allocates": "memory",
    "dies": "crash",
    "is wrong": "wrong",
    "says nothing": "wrong",
    "refuses": "refused",
    "is right": "accepted",
}


class Broken(Area):
    """Goes wrong in one way."""

    def __init__(self, base, kind):
        self.name = kind
        self.limit_s = 0.5 if kind == "hangs" else 60.0
        super().__init__(base)

    def make(self, draw, work):
        (work / "input").write_bytes(draw.randbytes(8))
        return {"kind": self.name}

    def judge(self, work, plan, run):
        kind = plan["kind"]
        if kind == "raises":
            raise KeyError("a bug")
        if kind == "hangs":
            time.sleep(60)
        if kind == "allocates":
            return str(len(bytearray(1 << 34)))
        if kind == "dies":
            os.abort()
        need(kind != "is wrong", "another answer")
        if kind == "says nothing":
            return REFUSED if refused(Said(2, "", "no sentence")) else ACCEPTED
        return REFUSED if kind == "refuses" else ACCEPTED


def test_what_goes_wrong_is_counted_kept_and_found_again(tmp_path) -> None:
    start_server()
    base, kept = tmp_path / "base", tmp_path / "kept"
    said: list[str] = []
    makers = [partial(Broken, kind=kind) for kind in OUTCOMES]
    prepare(makers, base)
    tallies = fuzz(makers, base, seed=7, seconds=60, most_runs=1, kept=kept, say=said.append)
    assert {kind: dict(tally.outcomes) for kind, tally in tallies.items()} == {
        kind: {outcome: 1} for kind, outcome in OUTCOMES.items()
    }
    assert len(said) == len(list(kept.iterdir())) == 6
    assert "| all | 8 | 1 | 1 | 2 | 1 | 1 | 2 |" in table(tallies)
    assert "KeyError: 'a bug'" in (kept / "raises-7-0" / "verdict.txt").read_text()
    assert json.loads((kept / "is wrong-7-0" / "case.json").read_text())["outcome"] == "wrong"
    assert replay(makers, kept / "is wrong-7-0", base).detail == "another answer"


def test_a_command_that_ends_in_a_traceback_or_says_what_a_terminal_obeys_is_no_refusal(monkeypatch) -> None:
    assert refused(run_here(["inspect", "/nowhere"]))

    def command(code, out="", err=""):
        monkeypatch.setattr("launch.exits.exit_code", lambda app: print(out, end="") or code)
        return run_here([])

    with pytest.raises(CrashError):
        command(1)
    with pytest.raises(WrongAnswerError, match="which a terminal obeys"):
        command(0, out="\x1b[2J")


def test_every_kind_of_input_has_an_area() -> None:
    assert set(AREAS) == {
        *("manifest", "index", "tars", "notes", "checkpoints", "runs", "config"),
        *("tables", "corpora", "audio", "best", "http", "cluster"),
    }


def test_damage_is_repeated_by_its_seed_and_never_nothing() -> None:
    tree = {"a": [1, 2.5, {"b": "x"}], "c": None, "d": True}
    data = json_bytes(tree, indent=1)
    for seed in range(300):
        changed = damaged_bytes(random.Random(seed), data)
        assert changed != data
        assert changed == damaged_bytes(random.Random(seed), data)
        assert str(damaged_tree(random.Random(seed), tree)) == str(damaged_tree(random.Random(seed), tree))
    assert tree == {"a": [1, 2.5, {"b": "x"}], "c": None, "d": True}
