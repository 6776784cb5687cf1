"""What cannot be recorded or be given by a real SLURM is refused in one sentence, and nothing stays queued."""

import pytest
from clusterjobs import nothing_queued, slurm, write_cluster
from tinyruns import error_line, files_below, metaser, read_json

from metaser.rundir import RunDir
from metaser.runlock import RunLock

pytestmark = pytest.mark.cluster

LEAVE_ONE_OUT = "data.splits=[{policy: leave_one_out}]"


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def command(corpus, tmp_path):
    """Return a function that runs a verb on the tiny experiment; its jobs wait for ever."""

    def act(verb, out, *more, **changes):
        cluster = write_cluster(tmp_path, **{"nodes": 1, "sbatch": {"hold": True}, **changes})
        return metaser(verb, corpus.yaml, f"output_dir={out}", *more, "--cluster", cluster, folder=tmp_path)

    return act


def queue():
    """Return the jobs that wait, arrays as one."""
    return slurm("squeue", "--noheader", "--format=%A").split()


def test_a_job_that_cannot_be_recorded_is_taken_back_and_no_other(command, run, tmp_path):
    assert command("submit", tmp_path / "other").returncode == 0
    before = queue()
    (run / "jobs/.submissions.json.tmp").mkdir(parents=True)
    said = error_line(command("submit", run))
    assert "output_dir must be writable to record a job" in said
    assert "Is a directory; nothing stays submitted" in said
    assert queue() == before


def test_folds_that_cannot_be_recorded_are_taken_back(command, run):
    (run / "fold3/jobs/.submissions.json.tmp").mkdir(parents=True)
    assert "nothing stays submitted" in error_line(command("crossval", run, LEAVE_ONE_OUT))
    assert nothing_queued()


def test_a_refused_cross_validation_leaves_nothing(command, run):
    refused = command("crossval", run, LEAVE_ONE_OUT, partition="gpus")
    assert "partition must be one of main, nowhere, got 'gpus'" in error_line(refused)
    lock = RunLock(RunDir(run / "fold3"))
    assert f"run '{run}/fold3' is in use by process" in error_line(command("crossval", run, LEAVE_ONE_OUT))
    lock.release()
    assert files_below(run) == ["fold3", "fold3/.lock"]
    assert nothing_queued()


def test_a_cross_validation_may_be_corrected_until_a_fold_waits(command, run):
    assert command("crossval", run, LEAVE_ONE_OUT).returncode == 0
    refused = error_line(command("crossval", run, LEAVE_ONE_OUT, "seed=8"))
    assert "must hold the same cross-validation to go on with it" in refused
    slurm("scancel", *queue())
    assert command("crossval", run, LEAVE_ONE_OUT, "seed=8").returncode == 0
    assert len(read_json(run / "crossval.json")["groups"]) == 6


def test_slurms_refusal_names_the_clusters_file(command, run, tmp_path):
    said = error_line(command("submit", run, constraint="no-such-feature"))
    assert f"the cluster must give what '{tmp_path}/cluster-" in said
    assert "asks for, but SLURM refused 'sbatch --test-only': " in said
    assert "Invalid feature specification" in said


def test_hints_can_be_pasted(command, tmp_path):
    done = command("submit", tmp_path / "with space")
    assert f"metaser stop '{tmp_path}/with space'\n" in done.stderr
    assert f"metaser status '{tmp_path}/with space'\n" in done.stderr
    assert f"`metaser stop '{tmp_path}/with space'`" in error_line(command("submit", tmp_path / "with space"))
    done = command("crossval", tmp_path / "more space", LEAVE_ONE_OUT)
    assert f"metaser status '{tmp_path}/more space'\n" in done.stderr
