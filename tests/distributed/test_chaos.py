"""Whatever is killed, and whenever: started again often enough, the job ends with the same weights."""

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tinyruns import dev_metrics, losses, make_demo, num_lines, started, train_ranks

from launch.exits import exit_with_code
from launch.train import train

KILLS = {"four": (4, 16), "fifty": (50, None)}
"""How often a demo training is disturbed, and to how many steps its stages are cut."""
COUNT = 2
CHANGES = ("stages.0.save_every_steps=4", "stages.1.save_every_steps=4", "data.num_workers=1", "log_keys=true")
PATIENCE_S = 60
WHOLE_RUN_S = 1200


def launch_ranks(experiment, overrides, said):
    """Start the ranks and, as torchrun does, end them all when one has died."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked, so that everything is imported; the ranks ask the kernel to end with this process.
    context = multiprocessing.get_context("fork")
    job = port, experiment, overrides, said
    ranks = [context.Process(target=rank_of_job, args=(rank, *job)) for rank in range(COUNT)]
    for process in ranks:
        process.start()
    while any(process.is_alive() for process in ranks):
        if any(process.exitcode not in (None, 0) for process in ranks):
            for process in ranks:
                process.terminate()
            time.sleep(1)
            for process in ranks:
                process.kill()
        time.sleep(0.02)
    exit_with_code(lambda: None) if all(process.exitcode == 0 for process in ranks) else os._exit(3)


def rank_of_job(rank, port, experiment, overrides, said):
    descriptor = os.open(f"{said}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    place = {"RANK": rank, "WORLD_SIZE": COUNT, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    exit_with_code(lambda: train(str(experiment), list(overrides)))


def children(pid):
    """Return the processes that `pid` and its children have started."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *children(child)]
    return found


def readers(job):
    """Return the reader processes: what the ranks' fork servers have started."""
    ranks = direct_children(job)
    return [pid for pid in children(job) if pid not in ranks and not children(pid)]


def direct_children(pid):
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def is_saving(run):
    return any(run.glob("stage*/checkpoints/.step-*.tmp"))


def wait_for(condition, job):
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and job.is_alive():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.0005)


def disturb(job, run, kind, line, generator):
    """Kill something of the job once it has made progress and written `line` lines of metrics.

    Returns:
        Its ranks, and all processes that belong to it.
    """
    seen = run_state(run)
    # A resumed run first cuts the file back.
    wait_for(lambda: run_state(run) != seen, job)
    seen = run_state(run)
    wait_for(lambda: run_state(run) != seen and num_lines(run / "metrics.jsonl") >= line, job)
    if kind == "during a save":
        wait_for(lambda: is_saving(run), job)
    else:
        time.sleep(generator.uniform(0, 0.3))
    ranks, family = direct_children(job.pid), children(job.pid)
    assert job.is_alive(), (run.with_name("said-0.txt")).read_text()[-3000:]
    victims = {"the launcher": [job.pid], "a reader": readers(job.pid)}.get(kind, ranks)
    # Readers are deaf to SIGTERM on purpose.
    number = signal.SIGKILL if kind == "a reader" else generator.choice([signal.SIGKILL, signal.SIGTERM])
    with suppress(ProcessLookupError):
        os.kill(generator.choice(victims), number)
    return ranks, family


def run_state(run):
    path = run / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def end_readers(pids):
    """End what a killed rank's reader server keeps alive; such readers wait for a rank that never comes back."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def all_gone(pids, timeout_s=15):
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in pids if not is_zombie(pid)]:
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
        time.sleep(0.05)


def is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    "amount",
    [pytest.param("four", marks=pytest.mark.distributed), pytest.param("fifty", marks=pytest.mark.reliability)],
)
def test_random_kills_end_in_the_same_weights(demo_shards, tmp_path, amount):
    num_kills, steps = KILLS[amount]
    demo = make_demo(tmp_path, demo_shards, steps=steps)
    expected = train_ranks(COUNT, demo.yaml, tmp_path / "undisturbed", *CHANGES, timeout_s=WHOLE_RUN_S)
    run, generator = tmp_path / "run", random.Random(11)
    kinds = ["a rank", "a reader", "the launcher", "during a save"]
    lines = num_lines(expected / "metrics.jsonl")
    for number in range(num_kills):
        kind, line = kinds[number % len(kinds)], (number + 1) * lines // (num_kills + 2)
        with started(launch_ranks, demo.yaml, [*CHANGES, f"output_dir={run}"], tmp_path / "said") as job:
            ranks, family = disturb(job, run, kind, line, generator)
            job.join(PATIENCE_S)
            assert not job.is_alive(), "the job did not end"
        all_gone(ranks)
        end_readers(family)
        assert not (run / "report/report.json").exists(), "the job has come to its end before the last kill"
    train_ranks(COUNT, demo.yaml, run, *CHANGES, timeout_s=WHOLE_RUN_S)
    assert len(json.loads((run / "environment.json").read_text())["starts"]) == num_kills + 1
    assert losses(run) == losses(expected)
    assert dev_metrics(run) == dev_metrics(expected)
    assert (run / "best/model.safetensors").read_bytes() == (expected / "best/model.safetensors").read_bytes()
