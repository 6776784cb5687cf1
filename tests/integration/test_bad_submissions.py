"""`submit` and `crossval` on what they must refuse before they ask any SLURM; what SLURM says: tests/slurm."""

import shutil

import pytest
import yaml
from tinyruns import error_line, files_below, metaser

LEAVE_ONE_OUT = "data.splits=[{policy: leave_one_out}]"


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def command(corpus, tmp_path):
    """Return a function that runs a verb on the tiny experiment and a cluster."""
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(yaml.safe_dump({"time_min": 10, "tasks_per_node": 1}))

    def act(verb, out, *more):
        return metaser(verb, corpus.yaml, f"output_dir={out}", *more, "--cluster", cluster, folder=tmp_path)

    return act


def test_local_processes_that_cannot_be_recorded_are_ended(command, run):
    (run / "jobs/.submissions.json.tmp").mkdir(parents=True)
    said = error_line(command("submit", run, "--local"))
    assert "nothing stays submitted" in said
    assert not (run / "config.yaml").exists()


@pytest.mark.parametrize("data", [None, b"", b'[{"time": ', b'[{"a": 1}]', b"{}", b"\x80\xff"])
def test_a_damaged_record_is_refused_and_kept(command, run, data):
    (run / "jobs").mkdir(parents=True)
    path = run / "jobs/submissions.json"
    path.mkdir() if data is None else path.write_bytes(data)
    assert "submissions.json" in error_line(command("submit", run, "--local"))
    assert data is None or path.read_bytes() == data
    assert not (run / "config.yaml").exists()


def test_a_cross_validation_in_a_runs_folder(corpus, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "copy")
    before = files_below(run)
    done = metaser("crossval", corpus.yaml, LEAVE_ONE_OUT, f"output_dir={run}", folder=tmp_path)
    assert f"a cross-validation must have a folder of its own, but '{run}' holds a run" in error_line(done)
    assert files_below(run) == before


@pytest.mark.parametrize("verb", ["submit", "train"])
def test_a_run_in_the_folder_of_a_cross_validation(corpus, command, run, tmp_path, verb):
    run.mkdir()
    (run / "crossval.json").write_text("{}")
    if verb == "submit":
        done = command("submit", run, "--local")
    else:
        done = metaser("train", corpus.yaml, f"output_dir={run}", folder=tmp_path)
    assert f"a run must have a folder of its own, but '{run}' holds a cross-validation" in error_line(done)
    assert files_below(run) == ["crossval.json"]


@pytest.mark.parametrize("rule", ["num_dev_groups: 99", "field: session"])
def test_a_rule_that_no_fold_can_follow(corpus, run, tmp_path, rule):
    splits = f"data.splits=[{{policy: leave_one_out, {rule}}}]"
    done = metaser("crossval", corpus.yaml, splits, f"output_dir={run}", folder=tmp_path)
    assert "of corpus 'tiny'" in error_line(done)
    assert not run.exists()


def test_a_value_of_the_cluster_without_one(corpus, run, tmp_path):
    done = metaser("crossval", corpus.yaml, LEAVE_ONE_OUT, f"output_dir={run}", "--nodes", 2, folder=tmp_path)
    assert "options of the cluster belong to --cluster, which is not given, got nodes=2" in error_line(done)
    assert not run.exists()


@pytest.mark.parametrize("name", ["file/run", "x" * 300])
def test_a_folder_that_cannot_be_made(command, tmp_path, name):
    (tmp_path / "file").touch()
    assert f"{tmp_path}/{name}" in error_line(command("submit", tmp_path / name, "--local"))


@pytest.mark.parametrize("verb", ["submit", "crossval"])
def test_a_percent_sign(command, tmp_path, verb):
    said = error_line(command(verb, tmp_path / "50%j", LEAVE_ONE_OUT, "--dry-run"))
    assert f"output_dir must hold no %, which SLURM replaces in paths, got '{tmp_path}/50%j" in said
    assert not list(tmp_path.glob("50*"))


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        ("submit", ["--local", "--dry-run"], "--dry-run starts nothing, so it must come without --local"),
        ("submit", ["--follow", "--dry-run"], "--dry-run starts nothing, so it must come without --follow"),
        ("crossval", ["--parallel", "3"], "must come without --cluster, got 3"),
        ("submit", ["--local", "--nodes", "0"], "nodes: Input should be greater than 0, got 0"),
        ("submit", ["--local", "--sbatch", "t=3"], "sbatch.t must be left out, because MetaSER sets it: use time_min"),
        ("crossval", ["--time", "1:2:3:4"], "time_min: Input should be a valid integer"),
        ("crossval", ["--dry-run", "--follow"], "--dry-run starts nothing, so it must come without --follow"),
    ],
)
def test_options_that_contradict_each_other(command, run, verb, options, words):
    assert words in error_line(command(verb, run, LEAVE_ONE_OUT, *options))
    assert not run.exists()
