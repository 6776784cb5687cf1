"""`status`, `stop`, `submit` and `train` on run folders whose files are damaged, and on folders that are no runs."""

import json
import os
import shutil

import pytest
from fuzz.area import run_here
from tinyruns import REPOSITORY, error_line, metaser

from launch.submission import last_submission
from metaser.rundir import RunDir
from metaser.runlock import RunLock
from metaser.sums import sealed_json

CLUSTER = str(REPOSITORY / "configs/cluster/local_test.yaml")
FOLDS = "data.splits=[{policy: leave_one_out}]"
BAD_LINES = {
    "garbage": b"garbage\n",
    "zeros": b"\0" * 512 + b"\n",
    "binary": b"\x80\x04\xff\n",
    "no object": b"[1]\n",
    "no stage": b'{"loss": 1.0, "step": 1}\n',
    "stage 9": b'{"stage": 9, "step": 1, "loss": 1.0, "audio_s_per_s": 1.0, "step_s": 1.0}\n',
}
BAD_JSON = {"binary": b"\x80\xff", "truncated": b'[{"time": "2', "an object": b'{"a":1}', "a list": b'[{"a": 1}]'}
DAMAGE = {
    **{f"metrics.jsonl, {name}": ("metrics.jsonl", data) for name, data in BAD_LINES.items()},
    **{f".lock, {name}": (".lock", data) for name, data in BAD_JSON.items()},
    **{f"submissions.json, {name}": ("jobs/submissions.json", data) for name, data in BAD_JSON.items()},
    "submissions.json, empty": ("jobs/submissions.json", b""),
    "config.yaml, no YAML": ("config.yaml", b"a: [\n"),
    **{f"{name}, a folder": (name, None) for name in ("metrics.jsonl", ".lock", "jobs/submissions.json")},
}


LOGGED = ("log_keys=true", "stages.0.num_steps=2", "stages.1.num_steps=2")


@pytest.fixture(scope="module")
def logged(corpus, tmp_path_factory):
    """A short run that keeps what it read."""
    return corpus.train(tmp_path_factory.mktemp("logged") / "run", *LOGGED)


def damaged(finished, folder, name, data):
    """Return a copy of the finished run with `data` at the end of, or for JSON instead of, the file `name`."""
    run = shutil.copytree(finished, folder)
    path = run / name
    path.parent.mkdir(exist_ok=True)
    if data is None:
        path.unlink(missing_ok=True)
        path.mkdir()
    elif name == "metrics.jsonl":
        path.write_bytes(path.read_bytes() + data)
    else:
        path.write_bytes(data)
    return run


def states_of(*runs, folder):
    done = metaser("status", *runs, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return {state["run"]: state for state in json.loads(done.stdout)}


@pytest.mark.parametrize("damage", DAMAGE)
def test_one_damaged_run_has_a_row_and_hides_no_other(finished, tmp_path, damage):
    name, data = DAMAGE[damage]
    run = damaged(finished, tmp_path / "bad", name, data)
    states = states_of(finished, run, finished, folder=tmp_path)
    assert states[str(finished)]["state"] == "finished"
    assert states[str(run)]["state"] == "damaged"
    assert f"{run}/{name}" in states[str(run)]["damage"]
    shown = metaser("status", finished, run, folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    (row,) = [line for line in shown.stdout.splitlines() if f" {run} " in line]
    assert row.split()[1] == "damaged"
    assert f"{run}/{name}" in row


@pytest.mark.parametrize("damage", [name for name in DAMAGE if not name.startswith(("metrics", "config"))])
def test_stop_on_damaged_files(finished, tmp_path, damage):
    name, data = DAMAGE[damage]
    run = damaged(finished, tmp_path / "bad", name, data)
    assert f"{run}/{name}" in error_line(metaser("stop", run, folder=tmp_path))


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name.startswith("metrics") and "stage 9" not in name])
def test_train_again_on_damaged_metrics(corpus, finished, tmp_path, damage):
    name, data = DAMAGE[damage]
    run = damaged(finished, tmp_path / "bad", name, data)
    before = (run / name).read_bytes() if data is not None else None
    said = error_line(metaser("train", corpus.yaml, f"output_dir={run}", folder=tmp_path))
    assert f"{run}/{name}" in said
    assert data is None or (run / name).read_bytes() == before


@pytest.mark.parametrize("data", [b"{", b"{}", b"\x80\xff"])
def test_train_again_on_a_damaged_record_of_starts(corpus, finished, tmp_path, data):
    run = damaged(finished, tmp_path / "bad", "environment.json", data)
    said = error_line(metaser("train", corpus.yaml, f"output_dir={run}", folder=tmp_path))
    assert f"{run}/environment.json is damaged" in said
    assert (run / "environment.json").read_bytes() == data


def changed_digit(path):
    """Change a digit in the middle of the file, or a byte where it is no text."""
    content = bytearray(path.read_bytes())
    digits = [at for at, byte in enumerate(content) if byte in b"0123456789"] if path.suffix != ".parquet" else []
    content[digits[len(digits) // 2] if digits else len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["config.yaml", "data.json", "environment.json", "metrics.jsonl", "trained_on.parquet", "keys/rank-0.jsonl"]
)
def test_no_changed_digit_of_what_a_training_reads_back_is_believed(logged, corpus, tmp_path, name):
    run = shutil.copytree(logged, tmp_path / "run")
    changed_digit(run / name)
    assert str(run / name) in said_here("train", corpus.yaml, f"output_dir={run}", *LOGGED)


@pytest.mark.parametrize("name", ["jobs/submissions.json", ".lock", "metrics.jsonl", "config.yaml"])
def test_no_changed_digit_of_what_status_reads_is_believed(logged, tmp_path, name):
    run = shutil.copytree(logged, tmp_path / "run")
    (run / "jobs").mkdir()
    job = {"time": "1", "job_id": "17", "executor": "slurm", "host": "a", "command": [], "experiment": "x"}
    submissions = {"submissions": [{**job, "output": "x", "cluster": {}, "git": None}]}
    (run / "jobs/submissions.json").write_text(sealed_json(submissions))
    assert last_submission(RunDir(run)).job_id == "17"
    changed_digit(run / name)
    ((_, state),) = states_of(run, folder=tmp_path).items()
    assert state["state"] == "damaged"
    assert str(run / name) in state["damage"]


def crossval(finished, root, *names):
    """Write a cross-validation of which the folders `names` are finished runs."""
    root.mkdir()
    experiment = (finished / "config.yaml").read_text()
    splits = "  splits:\n  - policy: stored\n    corpus: null\n    num_dev_speakers: 0\n"
    assert splits in experiment
    experiment = experiment.replace(splits, "  splits:\n  - policy: leave_one_out\n")
    plan = {"rule": 0, "groups": ["a", "b", "c"], "experiment": experiment}
    (root / "crossval.json").write_text(json.dumps(plan))
    for name in names:
        shutil.copytree(finished, root / name)
    return root


def test_a_backup_beside_the_folds_is_no_fold(finished, tmp_path):
    root = crossval(finished, tmp_path / "cv", "fold0", "fold0_backup", "fold10", "fold2")
    states = states_of(root, folder=tmp_path)
    assert list(states) == [f"{root}/fold0", f"{root}/fold2", f"{root}/fold10"]
    assert "is neither" in error_line(metaser("stop", root, folder=tmp_path))


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"rule":0}', b"\x80\xff", b'{"rule":0,"groups":3,"experiment":""}'])
def test_a_damaged_plan_has_a_row_beside_its_folds(finished, tmp_path, data):
    root = crossval(finished, tmp_path / "cv", "fold0")
    (root / "crossval.json").write_bytes(data)
    states = states_of(root, folder=tmp_path)
    assert [state["state"] for state in states.values()] == ["damaged", "finished"]
    assert f"{root}/crossval.json is damaged" in states[str(root)]["damage"]


def test_a_cross_validation_without_folds_is_no_empty_table(finished, tmp_path):
    root = crossval(finished, tmp_path / "cv")
    said = error_line(metaser("status", root, folder=tmp_path))
    assert f"of the cross-validation '{root}' no fold has" in said


def test_one_damaged_fold_keeps_no_other_in_training(finished, tmp_path):
    root = crossval(finished, tmp_path / "cv", "fold0", "fold1")
    (root / "fold0/.lock").write_text("garbage")
    lock = RunLock(RunDir(root / "fold1"))
    done = metaser("stop", root, folder=tmp_path)
    lock.release()
    assert f"{root}/fold0/.lock is damaged" in error_line(done)
    assert done.stdout.startswith(f"{root}/fold1: process {os.getpid()} on ")
    assert (root / "fold1/.stop").exists()


# ---------------------------------------------------------------- no runs


def test_what_lies_beside_the_runs_is_named_and_they_are_shown(finished, tmp_path):
    log, empty = tmp_path / "slurm-17.log", tmp_path / "empty"
    log.touch()
    empty.mkdir()
    done = metaser("status", log, finished, empty, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        f"left out: RUN must be a run's folder, but '{log}' is a file, not a folder\n"
        f"left out: RUN must be a run's folder, but '{empty}' holds neither config.yaml nor a submission\n"
    )
    assert str(finished) in done.stdout
    said = error_line(metaser("status", log, empty, folder=tmp_path))
    assert f"'{log}' is a file, not a folder; RUN must be a run's folder, but '{empty}' holds neither" in said


def no_folders(folder):
    """Return names that are no folder's, and what is to be said of each."""
    (folder / "file").touch()
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    return {
        "x" * 300: "cannot be reached: File name too long",
        str(folder / "file"): "is a file, not a folder",
        str(folder / "pipe"): "is no folder",
        str(folder / "loop"): "cannot be reached: Too many levels of symbolic links",
        str(folder / "loop/x"): "cannot be reached: Too many levels of symbolic links",
        str(folder / "file/x"): "cannot be reached: Not a directory",
        str(folder / "dangling"): "is a link to what does not exist",
    }


def said_here(*arguments):
    """Return the one sentence of a command that is refused, run in this process: many of them start nothing."""
    said = run_here(arguments)
    assert said.code == 2, said
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    return line


def test_what_is_no_folder_is_told_by_every_verb(corpus, finished, tmp_path):
    wav = tmp_path / "a.wav"
    for name, words in no_folders(tmp_path).items():
        for verb in ("status", "stop", "evaluate"):
            assert f"RUN must be a run's folder, but {name!r} {words}" in said_here(verb, name)
        assert f"MODEL must be a run's folder or an exported model's, but {name!r} {words}" in said_here(
            "predict", name, wav
        )
        where = f"output_dir={name}"
        told = f"output_dir must be a folder, but {name!r} {words}"
        assert told in said_here("train", corpus.yaml, where)
        assert told in said_here("submit", corpus.yaml, where, "--local", "--cluster", CLUSTER)
        assert told in said_here("crossval", corpus.yaml, where, FOLDS)


def test_what_is_no_folder_to_start_from_is_told(corpus, tmp_path):
    name = str(tmp_path / "loop")
    words = no_folders(tmp_path)[name]
    told = f"init_from must be a run's folder or an exported model's, but {name!r} {words}"
    for verb, *more in (("train",), ("crossval", FOLDS)):
        said = said_here(verb, corpus.yaml, f"output_dir={tmp_path / 'new'}", f"init_from={name}", *more)
        assert told in said
    assert not (tmp_path / "new/config.yaml").exists()


@pytest.mark.parametrize("verb", ["train", "submit", "crossval"])
def test_what_is_no_file_of_settings_is_told(verb, tmp_path):
    more = ("--cluster", CLUSTER) if verb == "submit" else ()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    names = {
        "x" * 300: "File name too long",
        str(tmp_path / "folder"): "it is a folder, not a file",
        str(tmp_path / "loop"): "Too many levels of symbolic links",
    }
    for name, words in names.items():
        assert f"CONFIG must be a readable YAML file, but {name!r} is not: {words}" in said_here(verb, name, *more)


def test_a_run_whose_files_are_no_files_is_one_and_they_are_told(corpus, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for name in ("config.yaml", "best/config.json"):
        path = run / name
        kept = path.read_bytes()
        path.unlink()
        path.symlink_to(path.name)
        said = said_here("evaluate", run)
        assert path.name in said
        assert "Too many levels of symbolic links" in said
        path.unlink()
        path.write_bytes(kept)


@pytest.mark.skipif(os.getuid() == 0, reason="root may look everywhere")
def test_a_folder_that_may_not_be_entered_is_told(finished, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    outer.chmod(0)
    try:
        for verb in ("status", "stop", "evaluate"):
            assert "cannot be reached: Permission denied" in said_here(verb, outer / "run")
    finally:
        outer.chmod(0o700)
