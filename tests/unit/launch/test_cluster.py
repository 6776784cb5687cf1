import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import typer
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from launch.cluster import PASSED_VARIABLES, ClusterConfig, ClusterError, load_cluster
from launch.clusteroptions import with_cluster_options
from launch.job import REQUEUE_FILE, TrainingJob, ask_for_requeue, check_requeue_file, export_ranks, master_port
from launch.nodes import check_resolves, first_node
from launch.sbatch import clean_environment, sbatch_text, slurm_executor
from launch.slurm import check_cluster, job_states, num_gpus, run_command
from metaser.errors import ConfigError, RunError
from shards.shown import shown

ROOT = Path(__file__).parents[3]


def text_of(**changes):
    cluster = ClusterConfig(**{"time_min": 90, "nodes": 2, "gpus_per_node": 4, **changes})
    return sbatch_text(slurm_executor(cluster, Path("/runs/x/jobs"), "metaser-x")).splitlines()


@pytest.mark.parametrize("path", sorted((ROOT / "configs/cluster").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_cluster(path):
    assert load_cluster(path).num_tasks == {"local_test": 2, "gpu": 16}[path.stem]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus_per_node": 8, "tasks_per_node": 4}, r"one task each: 8\), got 4"),
        ({"grace_s": 5400}, r"grace_s must be shorter than time_min \(5400 s\), got 5400"),
        ({"nodes": 0}, "nodes: Input should be greater than 0, got 0"),
        ({"gpus": 8}, r"gpus: unknown key \(value 8\)"),
    ],
)
def test_a_wrong_cluster_is_one_sentence_with_the_value(tmp_path, changes, words):
    path = tmp_path / "cluster.yaml"
    path.write_text(json.dumps({"time_min": 90, **changes}))
    with pytest.raises(ConfigError, match=words):
        load_cluster(path)


def test_the_sbatch_file_asks_for_what_the_cluster_says():
    text = text_of(
        cpus_per_task=6,
        mem_gb=1.5,
        partition="gpu",
        account="abc",
        qos="high",
        constraint="a100&ib",
        grace_s=120,
        modules=("cuda/13.0",),
        environment_file="/etc/nccl.sh",
        container_image="/images/m.sqsh",
        sbatch={"exclude": "node7"},
    )
    for option in (
        "nodes=2",
        "ntasks-per-node=4",
        "gpus-per-node=4",
        "cpus-per-task=6",
        "mem=1536M",
        "time=90",
        "partition=gpu",
        "account=abc",
        "qos=high",
        "constraint='a100&ib'",
        "signal=USR2@120",
        "requeue",
        "open-mode=append",
        "exclude=node7",
    ):
        assert f"#SBATCH --{option}" in text
    setup = ("module load cuda/13.0", "source /etc/nccl.sh", "export SRUN_CPUS_PER_TASK=6")
    order = [text.index(line) for line in setup]
    (srun,) = [line for line in text if line.startswith("srun ")]
    assert [*order, text.index(srun)] == sorted([*order, text.index(srun)])
    assert "--kill-on-bad-exit=1" in srun
    assert "--container-image=/images/m.sqsh" in srun


def test_what_is_not_asked_for_is_left_to_the_cluster():
    text = "\n".join(text_of(gpus_per_node=0))
    for option in ("partition", "account", "qos", "constraint", "mem", "gpus", "wckey"):
        assert f"--{option}" not in text


def test_an_option_that_is_false_is_left_out():
    text = "\n".join(text_of(sbatch={"hold": False, "exclusive": True}))
    assert "--exclusive" in text
    assert "hold" not in text


def test_a_job_that_shall_never_come_back():
    text = text_of(max_requeues=0)
    assert "#SBATCH --no-requeue" in text
    assert "#SBATCH --requeue" not in text


SET_BY_US = {
    **{
        "nodes": "nodes",
        "N": "nodes",
        "n": "nodes and",
        "ntasks": "gpus_per_node or",
        "ntasks-per-node": "gpus_per_node",
    },
    **{
        "ntasks_per_node": "gpus_per_node",
        "--time": "time_min",
        "t": "time_min",
        "TIME": "time_min",
        "tim": "time_min",
    },
    **{"requeue": "max_requeues", "no-requeue": "max_requeues", "signal": "grace_s", "array": "max_parallel_folds"},
    **{"output": "output_dir", "o": "output_dir", "J": "output_dir", "job-name": "output_dir", "part": "partition"},
    **{"mem": "mem_gb", "cpus-per-task": "cpus_per_task", "gpus": "gpus_per_node", "gres": "gpus_per_node"},
    **{"mem-per-cpu": "mem_gb", "export": "pass_environment", "open_mode": "are appended to", "wait": "--follow"},
}


@pytest.mark.parametrize("name", SET_BY_US)
def test_an_sbatch_entry_that_follows_from_other_values_names_them(name):
    value = "gpu:2" if name == "gres" else "7x"
    words = rf"sbatch\.{name} must be left out, because MetaSER sets it: .*{SET_BY_US[name]}.*, got '{value}'"
    with pytest.raises(ValidationError, match=words):
        ClusterConfig(time_min=9, mem_gb=4, sbatch={name: value})


def test_every_option_that_we_set_is_refused_as_an_sbatch_entry():
    everything = {"mem_gb": 2, "partition": "p", "account": "a", "qos": "q", "constraint": "c", "gpus_per_node": 2}
    named = {line.split("--")[1].partition("=")[0] for line in text_of(**everything) if line.startswith("#SBATCH")}
    assert len(named) > 12
    for name in named:
        with pytest.raises(ValidationError, match="must be left out"):
            ClusterConfig(time_min=9, mem_gb=2, sbatch={name: "1"})


def test_other_sbatch_entries_pass():
    entries = {
        "exclude": "node7",
        "mail_type": "END",
        "gres": "nvme:1",
        "mem-per-cpu": "4G",
        "time-min": 5,
        "hold": True,
    }
    text = text_of(sbatch=entries)
    for line in ("exclude=node7", "mail-type=END", "gres=nvme:1", "mem-per-cpu=4G", "time-min=5", "hold"):
        assert f"#SBATCH --{line}" in text
    for name in ("x", "--exclude", ""):
        with pytest.raises(ValidationError, match="by their long names"):
            ClusterConfig(time_min=9, sbatch={name: "node7"})


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_times_in_slurms_notations(days, hours, minutes, seconds):
    whole = (days * 24 + hours) * 60 + minutes + (seconds > 0)
    assume(whole)
    assert cluster_of(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == whole
    assert cluster_of(f"{24 * days + hours}:{minutes:02}:{seconds:02}") == whole
    assert cluster_of(f"{(24 * days + hours) * 60 + minutes}:{seconds:02}") == whole
    assert cluster_of(str(whole)) == whole
    if days + hours and not seconds:
        assert cluster_of(f"{days}-{hours}:{minutes}") == whole


def cluster_of(time):
    return ClusterConfig(time_min=time, grace_s=1).time_min


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("12:00:00", 720), ("1:30:00", 90), ("90:00", 90), ("2-00:00:00", 2880), ("1-12", 2160), ("0:30:00", 30)],
)
def test_a_time_in_yaml_needs_no_quotes(tmp_path, time, minutes):
    path = tmp_path / "cluster.yaml"
    for text in (time, f"'{time}'"):
        path.write_text(f"time_min: {text}\ngrace_s: 1\nsbatch: {{begin: 16:00}}\n")
        cluster = load_cluster(path)
        assert (cluster.time_min, cluster.sbatch) == (minutes, {"begin": "16:00"})
    assert load_cluster(path, [f"time_min={time}"]).time_min == minutes


@pytest.mark.parametrize("time", ["", "1:2:3:4", "soon", "0", "0:00", "-5", "1-"])
def test_what_is_no_time(time):
    with pytest.raises(ValidationError, match=r"time_min\n.+input_value"):
        ClusterConfig(time_min=time)


# ---------------------------------------------------------------- options of the verbs

COMMAND = "touch PWN"
HOSTILE = st.sampled_from(["\n", "\r\n", "\x0b", "\x85", "\u2028", "\x1b[2J", "\u202e", "\0"])
QUOTED = st.text("ab '\"$`;&|<>()#*?!~{}[]=/\\", min_size=1, max_size=20)


def read_cluster(folder, **values):
    path = folder / "cluster.yaml"
    path.write_text(json.dumps({"time_min": 90, **values}))
    return load_cluster(path)


def entry_of(name, text):
    """Return `text` as the value `name` of a cluster's file."""
    if name == "sbatch key":
        return {"sbatch": {text: "x"}}
    if name == "sbatch value":
        return {"sbatch": {"comment": text}}
    return {name: [text] if name in ("modules", "container_mounts", "pass_environment") else text}


WORDS = [
    *("partition", "account", "qos", "constraint", "modules", "container_image", "container_mounts"),
    *("environment_file", "pass_environment", "sbatch key", "sbatch value"),
]


@pytest.mark.parametrize("name", WORDS)
@given(end=HOSTILE)
def test_no_value_begins_a_line_of_the_job(tmp_path_factory, name, end):
    with pytest.raises(ConfigError) as caught:
        read_cluster(tmp_path_factory.getbasetemp(), **entry_of(name, f"p{end}{COMMAND} #"))
    said = str(caught.value)
    assert "must" in said and shown(said) == said and len(said.splitlines()) == 1


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("text", ["", " ", "-x", "--wrap=touch", " p"])
def test_no_value_is_empty_or_another_option(tmp_path, name, text):
    if name == "sbatch value" or (name in ("container_image", "environment_file", "container_mounts") and "-" in text):
        pytest.skip("it stands behind its option's name or is a file")
    with pytest.raises(ConfigError, match="must"):
        read_cluster(tmp_path, **entry_of(name, text))


@given(QUOTED, st.sampled_from(["partition", "qos", "constraint", "modules", "sbatch value", "environment_file"]))
def test_what_a_shell_would_obey_reaches_the_job_as_one_word(tmp_path_factory, text, name):
    folder = tmp_path_factory.getbasetemp()
    try:
        cluster = read_cluster(folder, **entry_of(name, text))
    except ConfigError:
        assert text != text.strip() or text[0] in "-~"
        return
    plain = sbatch_text(slurm_executor(read_cluster(folder), Path("/runs/x/jobs"), "metaser-x")).splitlines()
    lines = sbatch_text(slurm_executor(cluster, Path("/runs/x/jobs"), "metaser-x")).splitlines()
    (line,) = [line for line in lines if line not in plain]
    words = shlex.split(line.removeprefix("#SBATCH "), comments=True)
    assert words[-1].endswith(str(Path(text).absolute()) if name == "environment_file" else text)
    assert len(words) == {"modules": 3, "environment_file": 2}.get(name, 1)


@pytest.mark.parametrize("name", ["ALL", "NIL", "NONE", "A=1", "A,B", "1A", "A B"])
def test_only_names_of_variables_are_passed_on(tmp_path, name):
    with pytest.raises(ConfigError, match="must be the name of one variable"):
        read_cluster(tmp_path, pass_environment=[name])


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("/runs/a\ntouch PWN #/jobs", "no control characters"),
        ("/runs/\x1b[2J/jobs", "no control characters"),
        ("/runs/%j/jobs", "hold no %, which SLURM replaces"),
        ("/runs/a\\b/jobs", r"hold no \\, which SLURM replaces"),
        ("/runs/a,/etc:/etc/jobs", "hold no ,, which srun takes"),
    ],
)
def test_a_folder_that_would_not_reach_the_job_as_it_is(folder, words):
    cluster = ClusterConfig(time_min=9, container_image="m.sqsh")
    with pytest.raises(RunError, match=words):
        slurm_executor(cluster, Path(folder), "metaser-x")


def test_mounts_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_cluster(tmp_path, container_mounts=["~/a:/b"]).container_mounts == (f"{tmp_path}/a:/b",)
    for wrong in ("/a,/b", "/a:", ":/b", "/a:/b\n"):
        with pytest.raises(ConfigError, match="container_mounts"):
            read_cluster(tmp_path, container_mounts=[wrong])


@pytest.mark.parametrize("answer", ["a warning", "1|2\nwords", "1|"])
def test_slurms_answer_may_be_no_table(tmp_path, monkeypatch, answer):
    command = tmp_path / "squeue"
    command.write_text(f"#!/bin/sh\nprintf '{answer}\\n'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ClusterError, match=r"SLURM's squeue must answer in rows of 3 words, but said"):
        job_states(["1"])


def test_what_slurm_says_may_be_no_text(tmp_path, monkeypatch):
    command = tmp_path / "squeue"
    command.write_text("#!/bin/sh\nprintf '\\377\\033[2J' >&2; exit 1\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ClusterError, match="SLURM refused 'squeue"):
        job_states(["1"])


GIVEN = {
    "nodes": ("3", 3),
    "gpus_per_node": ("0", 0),
    "tasks_per_node": ("2", 2),
    "cpus_per_task": ("4", 4),
    "mem_gb": ("1.5", 1.5),
    "time_min": ("1-00:30", 1470),
    "partition": ("01", "01"),
    "account": ("1e3", "1e3"),
    "qos": ("no", "no"),
    "constraint": ("a100&ib", "a100&ib"),
    "grace_s": ("60", 60),
    "modules": ("cuda/13.0", ("cuda/13.0",)),
    "container_image": ("/m.sqsh", "/m.sqsh"),
    "container_mounts": ("/a:/b", ("/a:/b",)),
    "environment_file": ("site.sh", "site.sh"),
    "pass_environment": ("MY", ("MY",)),
    "max_requeues": ("7", 7),
    "max_parallel_folds": ("5", 5),
    "check_node_names": (None, True),
    "sbatch": ("exclude=node7", {"comment": "kept", "exclude": "node7"}),
}


def cluster_from(*options, **file):
    """Return the cluster that a verb with these options would use, beside a file of these values."""
    seen = []

    @with_cluster_options
    def verb(cluster: str, changes: tuple[str, ...] = ()) -> None:
        seen.append(load_cluster(cluster, changes))

    app = typer.Typer()
    app.command()(verb)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cluster.yaml")
        path.write_text(json.dumps({"time_min": 90, "sbatch": {"comment": "kept"}, **file}))
        app([str(path), *options], standalone_mode=False)
    return seen[0]


@pytest.mark.parametrize("name", ClusterConfig.model_fields)
def test_every_value_is_an_option_that_overrides_the_file(name):
    text, value = GIVEN[name]
    option = f"--{name.replace('_', '-')}"
    file = {"check_node_names": False} if text is None else {}
    given_here = cluster_from(*([option] if text is None else [option, text]), **file)
    expected = cluster_from(**file).model_copy(update={name: value})
    assert given_here == expected


def test_without_options_the_file_counts():
    assert cluster_from(nodes=3) == ClusterConfig(time_min=90, nodes=3, sbatch={"comment": "kept"})


def test_the_short_name_of_the_time_and_what_comes_several_times():
    cluster = cluster_from("--time", "2:00:00", "--modules", "a", "--modules", "b", "--no-check-node-names")
    assert (cluster.time_min, cluster.modules, cluster.check_node_names) == (120, ("a", "b"), False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--nodes", "0"), "nodes: Input should be greater than 0, got 0"),
        (("--nodes", "many"), "nodes: Input should be a valid integer, .+, got 'many'"),
        (("--time", "soon"), "time_min: Input should be a valid integer, .+, got 'soon'"),
        (("--grace-s", "5400"), r"grace_s must be shorter than time_min \(5400 s\), got 5400"),
        (("--sbatch", "time=3"), "sbatch.time must be left out, .+ use time_min, got 3"),
        (("--sbatch", "--injected=--injected"), "options of sbatch by their long names, .+ got '--injected'"),
        (("--sbatch", "exclusive"), r"must look like a\.b=value, got 'sbatch\.exclusive'"),
    ],
)
def test_a_wrong_option_is_refused_as_in_the_file(options, words):
    with pytest.raises(ConfigError, match=words):
        cluster_from(*options)


def test_without_submitit_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ClusterError, match=r"must be installed, but is not .+; pip install 'metaser\[slurm\]'"):
        text_of()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.sh", "No such file or directory"),
        (".", "it is a folder, not a file"),
        ("loop", "Too many levels of symbolic links"),
        ("x" * 300, "File name too long"),
    ],
)
def test_an_environment_file_that_is_no_file(tmp_path, name, words):
    (tmp_path / "loop").symlink_to("loop")
    cluster = ClusterConfig(time_min=9, environment_file=str(tmp_path / name), check_node_names=False)
    with pytest.raises(ClusterError, match=rf"environment_file must be a file, but '.+' is not: {words}"):
        check_cluster(cluster)


def test_without_slurm_the_sentence_names_no_option_of_a_verb(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ClusterError, match=r"SLURM's sinfo must be on the PATH of this host, but is not; .+ login node"
    ):
        run_command("sinfo")


def test_each_task_has_as_many_threads_as_cores_unless_told_otherwise():
    lines = text_of(cpus_per_task=3, environment_file="slurm/env.sh")
    assert (
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-3}"
        in lines[lines.index(f"source {Path('slurm/env.sh').absolute()}") :]
    )


def test_only_named_variables_reach_a_job():
    (export,) = [line for line in text_of(pass_environment=("MY_SETTING",)) if line.startswith("#SBATCH --export=")]
    assert export.removeprefix("#SBATCH --export=").split(",") == [*PASSED_VARIABLES, "MY_SETTING"]
    assert not [name for name in PASSED_VARIABLES if any(word in name for word in ("TOKEN", "KEY", "SECRET", "PASS"))]


@given(
    st.lists(
        st.tuples(st.sampled_from(["gpu", "nvme", "fpga"]), st.sampled_from(["", ":a100", ":h200"]), st.integers(0, 16))
    )
)
def test_gpus_are_counted_in_slurms_words(parts):
    words = ",".join(f"{kind}{model}:{number}(S:0-1)" for kind, model, number in parts)
    assert num_gpus(words or "(null)") == sum(number for kind, _, number in parts if kind == "gpu")


def test_a_name_that_does_not_resolve_is_refused():
    check_resolves("localhost", "ask somebody")
    for name in ("x" * 300, "a..b\n", "a\0b"):
        with pytest.raises(ClusterError, match="must resolve to an address"):
            check_resolves(name, "ask somebody")
    words = r"node 'node7\.invalid' must resolve to an address.+ but on .+ it does not: .+; ask somebody$"
    with pytest.raises(ClusterError, match=words):
        check_resolves("node7.invalid", "ask somebody")


@pytest.fixture
def environment(monkeypatch):
    """An environment of the test's own."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SUBMITIT_")):
            monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        # Noted first, so that what the tested function sets goes away again.
        monkeypatch.setenv(name, "to be replaced")
        monkeypatch.delenv(name)
    return monkeypatch


TASK = {
    "SLURM_JOB_ID": "17",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "n[1-4]",
}


def test_a_task_takes_its_place_from_slurm(environment):
    for name, value in {**TASK, "MASTER_ADDR": "localhost", "SLURM_RESTART_COUNT": "2"}.items():
        environment.setenv(name, value)
    export_ranks()
    place = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")]
    assert place == ["5", "8", "1", "localhost", str(20_000 + 7 * 17 + 2)]


def test_an_unresolvable_master_is_an_error_and_never_this_host(environment):
    for name, value in {**TASK, "MASTER_ADDR": "node7.invalid"}.items():
        environment.setenv(name, value)
    with pytest.raises(ClusterError, match=r"'node7\.invalid' must resolve"):
        export_ranks()


@pytest.fixture
def no_commands(environment, tmp_path):
    """A container: none of SLURM's commands."""
    environment.setenv("PATH", str(tmp_path))
    return environment


def test_in_a_container_the_tasks_meet_on_the_first_node(no_commands):
    for name, value in {**TASK, "SLURM_JOB_NODELIST": "localhost,node[01-03,07]"}.items():
        no_commands.setenv(name, value)
    export_ranks()
    assert os.environ["MASTER_ADDR"] == "localhost"


def test_a_first_node_without_an_address_is_named(no_commands):
    for name, value in {**TASK, "SLURM_JOB_NODELIST": "node7x[01-03,07].invalid"}.items():
        no_commands.setenv(name, value)
    words = r"'node7x01\.invalid' must resolve .+ or export an address that does as MASTER_ADDR in the batch script"
    with pytest.raises(ClusterError, match=words):
        export_ranks()


NAMES = st.from_regex(r"[a-z][a-z0-9._-]{0,5}", fullmatch=True)
RANGES = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 99), st.integers(0, 99)).map(
        lambda x: (f"{x[1]:0{x[0]}}", f"{x[1] + x[2]:0{x[0]}}")
    ),
    min_size=1,
    max_size=3,
)


@given(st.lists(st.tuples(NAMES, RANGES | st.none()), min_size=1, max_size=3), st.lists(NAMES, max_size=2))
def test_the_first_of_slurms_node_names(parts, others):
    names = first = ""
    for name, ranges in parts:
        words = [low if low == high else f"{low}-{high}" for low, high in ranges or ()]
        names += f"{name}[{','.join(words)}]" if words else name
        first += name + (ranges[0][0] if ranges else "")
    assert first_node(",".join([names, *others])) == first


@pytest.mark.parametrize("names", ["", "[", ",", "node[", "node[]", "node[a-b]", "(null)", "node 1"])
def test_what_is_no_list_of_nodes_is_refused_and_never_this_host(names):
    with pytest.raises(ClusterError, match="SLURM_JOB_NODELIST must name nodes such as"):
        first_node(names)


def test_a_job_that_nobody_can_queue_again_is_refused_before_it_trains(environment):
    environment.delenv(REQUEUE_FILE, raising=False)
    check_requeue_file(0)
    with pytest.raises(ClusterError, match=f"{REQUEUE_FILE} must name .+; set it as slurm/train.sbatch does, or set"):
        check_requeue_file(3)
    environment.setenv(REQUEUE_FILE, "/somewhere")
    check_requeue_file(3)


def test_a_requeue_is_asked_of_the_batch_script_up_to_the_limit(no_commands, tmp_path):
    file = tmp_path / "requeue-17"
    for name, value in {**TASK, REQUEUE_FILE: str(file), "SLURM_RESTART_COUNT": "2"}.items():
        no_commands.setenv(name, value)
    assert not ask_for_requeue(2)
    assert not file.exists()
    assert ask_for_requeue(3)
    assert file.exists()
    no_commands.setenv(REQUEUE_FILE, str(tmp_path / "no/folder"))
    with pytest.raises(ClusterError, match=r"must be writable, but .+ the run is saved, submit it again"):
        ask_for_requeue(3)


@pytest.fixture
def batch_host(tmp_path):
    """Return a function that runs a batch script and returns its exit code and what it asked of SLURM."""
    commands, asked = tmp_path / "bin", tmp_path / "asked"
    for folder in (commands, tmp_path / "slurm", tmp_path / "runs"):
        folder.mkdir()
    (tmp_path / "slurm/env.sh").write_text("")

    def run(script, *arguments, srun, state):
        for name, text in {
            "squeue": f"echo {state}",
            "scontrol": f'[[ $1 == show ]] && printf "node01\\nnode02\\n" || echo "$@" >> {asked}',
            "srun": f"echo meet at $MASTER_ADDR >> {asked}\n{srun}",
        }.items():
            (commands / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (commands / name).chmod(0o755)
        told = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "x"}
        path = f"{commands}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", script, *arguments], env={**told, "PATH": path}, cwd=tmp_path, capture_output=True, timeout=60
        )
        assert not list(tmp_path.rglob("requeue-*")), done
        return done.returncode, asked.read_text().splitlines()

    return run


@pytest.mark.parametrize("kind", ["submit", "train.sbatch"])
@pytest.mark.parametrize(
    ("srun", "state", "expected"),
    [
        ("exit 0", "RUNNING", (0, [])),
        ("exit 2", "RUNNING", (2, [])),
        (f"touch ${REQUEUE_FILE}", "RUNNING", (0, ["requeue 17"])),
        (f"touch ${REQUEUE_FILE}; exit 1", "RUNNING", (1, ["requeue 17"])),
        (f"touch ${REQUEUE_FILE}", "CANCELLED", (0, [])),
        (f"touch ${REQUEUE_FILE}", "", (0, [])),
    ],
)
def test_the_batch_script_says_where_to_meet_and_requeues_what_asked_for_it(
    batch_host, tmp_path, kind, srun, state, expected
):
    if kind == "submit":
        script = tmp_path / "submitted.sh"
        executor = slurm_executor(ClusterConfig(time_min=90), tmp_path / "runs", "metaser-x")
        script.write_text(sbatch_text(executor))
        arguments = ()
    else:
        script, arguments = ROOT / "slurm/train.sbatch", ("config.yaml",)
    code, asked = expected
    assert batch_host(script, *arguments, srun=srun, state=state) == (code, ["meet at node01", *asked])


def test_a_container_sees_the_run_and_what_the_cluster_mounts(tmp_path):
    cluster = ClusterConfig(time_min=9, container_image="m.sqsh", container_mounts=("/data", "/a:/b"))
    for folder, run in ((Path.cwd() / "runs/x/jobs", ()), (tmp_path / "x/jobs", (tmp_path / "x",))):
        mounts = ",".join([*(f"{path}:{path}" for path in (Path.cwd(), *run)), "/data", "/a:/b"])
        assert f"--container-mounts={mounts} " in sbatch_text(slurm_executor(cluster, folder, "metaser-x"))


def test_outside_a_job_there_is_no_place(environment):
    with pytest.raises(ClusterError, match="SLURM_PROCID, SLURM_JOB_NODELIST is not set; start it by srun"):
        export_ranks()


LOCAL_TASK = {
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_LOCALID": "1",
    "SUBMITIT_LOCAL_JOB_ID": "17",
}


@pytest.mark.parametrize(
    ("task", "name", "value"),
    [
        *((TASK, name, None) for name in TASK),
        *((TASK, name, "abc") for name in TASK if name != "SLURM_JOB_NODELIST"),
        (TASK, "SLURM_PROCID", "-1"),
        (TASK, "SLURM_RESTART_COUNT", "x"),
        (TASK, "MASTER_PORT", "http"),
        *((LOCAL_TASK, name, value) for name in list(LOCAL_TASK)[1:] for value in (None, "abc")),
    ],
)
def test_a_task_that_does_not_know_its_place_names_the_variable(environment, task, name, value):
    for each, given_value in {**task, "MASTER_ADDR": "localhost", name: value}.items():
        if given_value is not None:
            environment.setenv(each, given_value)
    words = f"{name} (is not set|must be a whole number, got None)" if value is None else f"{name} must .+ '{value}'"
    with pytest.raises(ClusterError, match=words):
        export_ranks()


@pytest.mark.parametrize("module", ["launch.job", "launch.slurm"])
@pytest.mark.parametrize("name", ["METASER_GRACE_S", "METASER_MAX_REQUEUES"])
def test_a_setting_of_the_sbatch_script_that_is_no_number(module, name):
    # Under its earlier name, too: sbatch scripts of users' own start it so.
    command = [sys.executable, "-m", module, "train", "nowhere.yaml"]
    done = subprocess.run(
        command, env={**os.environ, name: "abc"}, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (2, f"error: {name} must be a whole number, got 'abc'\n")


@given(st.integers(1, 2**32), st.integers(0, 1000))
def test_ports_are_above_the_systems_and_below_the_ephemeral_ones(job, restarts):
    assert 20_000 <= master_port(job, restarts) < 30_000
    assert master_port(job, restarts) != master_port(job, restarts + 1)
    assert master_port(job, restarts) != master_port(job + 1, restarts)


def test_what_would_change_an_sbatch_file_is_hidden_and_comes_back(environment):
    variables = {"SBATCH_EXPORT": "ALL", "SLURM_JOB_ID": "3", "SLURM_CONF": "/x", "RANK": "0", "OTHER": "1"}
    for name, value in variables.items():
        environment.setenv(name, value)
    with clean_environment():
        assert {name for name in variables if name in os.environ} == {"SLURM_CONF", "OTHER"}
    assert {name: os.environ[name] for name in variables} == variables


def test_what_is_pickled_is_paths_and_strings_and_is_found_by_its_name():
    import pickle

    job = TrainingJob("/project", "/project/runs/x/jobs/experiment.yaml", ("seed=1",))
    assert pickle.loads(pickle.dumps(job)) == job
    assert job.checkpoint().function == job
    assert len(pickle.dumps(job)) < 500


def test_what_an_earlier_version_queued_is_found_under_its_earlier_name():
    import pickle

    job = TrainingJob("/project", "/project/runs/x/jobs/experiment.yaml", ("seed=1",), 60.0, 3, "/project/runs")
    # This protocol writes names as lines.
    queued = pickle.dumps(job, protocol=0).replace(b"launch.job\n", b"launch.slurm\n")
    assert b"claunch.slurm\nTrainingJob\n" in queued
    program = f"import pickle; job = pickle.loads({queued!r}); print(job.__class__.__module__, job.max_requeues)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "launch.job 3\n", done.stderr
    assert pickle.loads(queued) == job


def test_the_sbatch_scripts_are_shell():
    for path in [*(ROOT / "slurm").rglob("*.sbatch"), *(ROOT / "slurm").rglob("*.sh")]:
        assert subprocess.run(["bash", "-n", path], capture_output=True).returncode == 0, path
