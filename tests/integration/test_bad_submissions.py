"""`submit` and `crossval` on what they must refuse, with SLURM played by scripts: nothing queued, nothing half-made."""

import json
import shutil

import pytest
import yaml
from fakeslurm import FakeSlurm
from tinyruns import error_line, metaser

from metaser.rundir import RunDir, RunLock

LEAVE_ONE_OUT = "data.splits=[{policy: leave_one_out}]"


@pytest.fixture
def slurm(tmp_path):
    return FakeSlurm(tmp_path / "slurm")


@pytest.fixture
def cluster(tmp_path):
    return write_cluster(tmp_path / "cluster.yaml")


def write_cluster(path, **changes):
    path.write_text(yaml.safe_dump({"time_min": 10, "check_node_names": False, "partition": "main", **changes}))
    return path


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def command(corpus, cluster, slurm, tmp_path):
    """Return a function that runs a verb on the tiny experiment and a cluster."""

    def act(verb, out, *more, cluster=cluster):
        arguments = (verb, corpus.yaml, f"output_dir={out}", *more, "--cluster", cluster)
        return metaser(*arguments, folder=tmp_path, before=slurm)

    return act


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_submitted_is_recorded(command, run, slurm):
    done = command("submit", run)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((run / "jobs/submissions.json").read_text())
    assert [record["job_id"]] == slurm.queue
    assert f"is in use by SLURM job {record['job_id']} (PENDING)" in error_line(command("submit", run))
    assert len(slurm.queue) == 1


# ---------------------------------------------------------------- the record


@pytest.mark.parametrize("data", [None, b"", b'[{"time": ', b'[{"a": 1}]', b"{}", b"\x80\xff"])
def test_a_damaged_record_is_refused_before_queueing(command, run, slurm, data):
    (run / "jobs").mkdir(parents=True)
    path = run / "jobs/submissions.json"
    path.mkdir() if data is None else path.write_bytes(data)
    assert "submissions.json" in error_line(command("submit", run))
    assert slurm.queue == []
    assert data is None or path.read_bytes() == data


def test_a_job_that_cannot_be_recorded_is_taken_back(command, run, slurm):
    slurm.says("queue", "7|/elsewhere/x.sh\n")
    slurm.says("on-submit", f"mkdir {run}/jobs/submissions.tmp")
    said = error_line(command("submit", run))
    assert "output_dir must be writable to record a job" in said
    assert "Is a directory; nothing stays submitted" in said
    assert slurm.queue == ["7"]


def test_folds_that_cannot_be_recorded_are_taken_back(command, run, slurm):
    slurm.says("on-submit", f"mkdir {run}/fold3/jobs/submissions.tmp")
    assert "nothing stays submitted" in error_line(command("crossval", run, LEAVE_ONE_OUT))
    assert slurm.queue == []


def test_local_processes_that_cannot_be_recorded_are_ended(command, run):
    (run / "jobs/submissions.tmp").mkdir(parents=True)
    said = error_line(command("submit", run, "--local"))
    assert "nothing stays submitted" in said
    assert not (run / "config.yaml").exists()


# ---------------------------------------------------------------- whose folder it is


def test_a_cross_validation_in_a_runs_folder(command, finished, tmp_path, slurm):
    run = shutil.copytree(finished, tmp_path / "copy")
    before = files(run)
    refused = error_line(command("crossval", run, LEAVE_ONE_OUT))
    assert f"a cross-validation must have a folder of its own, but '{run}' holds a run" in refused
    assert files(run) == before
    assert slurm.queue == []


def test_a_cross_validation_here_in_a_runs_folder(corpus, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "copy")
    before = files(run)
    done = metaser("crossval", corpus.yaml, LEAVE_ONE_OUT, f"output_dir={run}", folder=tmp_path)
    assert f"a cross-validation must have a folder of its own, but '{run}' holds a run" in error_line(done)
    assert files(run) == before


@pytest.mark.parametrize("verb", ["submit", "train"])
def test_a_run_in_the_folder_of_a_cross_validation(corpus, command, run, slurm, tmp_path, verb):
    run.mkdir()
    (run / "crossval.json").write_text("{}")
    if verb == "submit":
        done = command("submit", run)
    else:
        done = metaser("train", corpus.yaml, f"output_dir={run}", folder=tmp_path)
    assert f"a run must have a folder of its own, but '{run}' holds a cross-validation" in error_line(done)
    assert files(run) == ["crossval.json"]
    assert slurm.queue == []


# ---------------------------------------------------------------- a refused cross-validation


def test_a_refused_cross_validation_leaves_nothing(command, run, slurm, tmp_path):
    bad = write_cluster(tmp_path / "bad.yaml", partition="gpus")
    refused = command("crossval", run, LEAVE_ONE_OUT, cluster=bad)
    assert "partition must be one of main, got 'gpus'" in error_line(refused)
    lock = RunLock(RunDir(run / "fold3"))
    assert f"run '{run}/fold3' is in use by process" in error_line(command("crossval", run, LEAVE_ONE_OUT))
    lock.release()
    assert files(run) == ["fold3", "fold3/.lock"]
    assert command("crossval", run, LEAVE_ONE_OUT, "seed=7").returncode == 0
    assert slurm.queue != []


def test_a_cross_validation_that_only_sbatch_refused_may_be_corrected(command, run, slurm):
    slurm.says("refuse-real", "QOSMaxSubmitJobPerUserLimit")
    assert "QOSMaxSubmitJobPerUserLimit" in error_line(command("crossval", run, LEAVE_ONE_OUT))
    (slurm.folder / "refuse-real").unlink()
    assert command("crossval", run, LEAVE_ONE_OUT, "seed=7").returncode == 0
    refused = error_line(command("crossval", run, LEAVE_ONE_OUT, "seed=8"))
    assert "must hold the same cross-validation to go on with it" in refused


@pytest.mark.parametrize("rule", ["num_dev_groups: 99", "field: session"])
@pytest.mark.parametrize("where", ["here", "cluster"])
def test_a_rule_that_no_fold_can_follow(corpus, command, run, slurm, tmp_path, rule, where):
    splits = f"data.splits=[{{policy: leave_one_out, {rule}}}]"
    if where == "here":
        done = metaser("crossval", corpus.yaml, splits, f"output_dir={run}", folder=tmp_path)
    else:
        done = command("crossval", run, splits)
    assert "of corpus 'tiny'" in error_line(done)
    assert not run.exists()
    assert slurm.queue == []


# ---------------------------------------------------------------- options and words


@pytest.mark.parametrize("verb", ["submit", "crossval"])
@pytest.mark.parametrize("name", ["file/run", "x" * 300])
def test_a_folder_that_cannot_be_made(command, tmp_path, slurm, verb, name):
    (tmp_path / "file").touch()
    said = error_line(command(verb, tmp_path / name, LEAVE_ONE_OUT))
    assert f"{tmp_path}/{name}" in said
    assert slurm.queue == []


@pytest.mark.parametrize("verb", ["submit", "crossval"])
def test_a_percent_sign(command, tmp_path, slurm, verb):
    said = error_line(command(verb, tmp_path / "50%j", LEAVE_ONE_OUT))
    assert f"output_dir must hold no %, which SLURM replaces in paths, got '{tmp_path}/50%j" in said
    assert not list(tmp_path.glob("50*"))
    assert slurm.queue == []


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        ("submit", ["--local", "--dry-run"], "--dry-run starts nothing, so it must come without --local"),
        ("submit", ["--follow", "--dry-run"], "--dry-run starts nothing, so it must come without --follow"),
        ("crossval", ["--parallel", "3"], "must come without --cluster, got 3"),
        ("crossval", ["--dry-run", "--follow"], "--dry-run starts nothing, so it must come without --follow"),
    ],
)
def test_options_that_contradict_each_other(command, run, verb, options, words):
    assert words in error_line(command(verb, run, LEAVE_ONE_OUT, *options))
    assert not run.exists()


def test_slurms_refusal_names_the_clusters_file(command, run, cluster, slurm):
    slurm.says("refuse", "Requested node configuration is not available")
    said = error_line(command("submit", run))
    assert f"must give what '{cluster}' asks for, but SLURM refused 'sbatch --test-only': " in said
    assert "node configuration is not available" in said
    assert "#SBATCH --time=10" in (slurm.folder / "tested.sh").read_text()


def test_hints_can_be_pasted(command, tmp_path):
    done = command("submit", tmp_path / "with space")
    assert f"metaser stop '{tmp_path}/with space'\n" in done.stderr
    assert f"metaser status '{tmp_path}/with space'\n" in done.stderr
    assert f"`metaser stop '{tmp_path}/with space'`" in error_line(command("submit", tmp_path / "with space"))
    done = command("crossval", tmp_path / "more space", LEAVE_ONE_OUT)
    assert f"metaser status '{tmp_path}/more space'\n" in done.stderr
