"""`metaser crossval`: one run per fold, here or on a SLURM cluster, then one table."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.clusteroptions import with_cluster_options
from launch.words import say, tell, tell_data
from shards.inputfile import open_regular
from shards.signals import STOP_SIGNALS

if TYPE_CHECKING:
    from metaser.eval.crossval import CrossValidation

_TAIL_BYTES = 10_000
_LOOK_EVERY_S = 0.2
_ASK_EVERY_S = 5.0


@with_cluster_options
def crossval(
    config: Annotated[str, typer.Argument(help="YAML file of the experiment; one split rule has a fold.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changed values, e.g. stages.0.num_steps=9.")] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, show_default="1", help="Folds trained at the same time on this machine.")
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="YAML file of the cluster: folds as one job array.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the sbatch file of a fold and stop.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for the cluster's jobs.")] = False,
    changes: tuple[str, ...] = (),
) -> None:
    """Train and evaluate every fold, then show one table; the same command runs what is missing."""
    from metaser.config.load import load_experiment
    from metaser.errors import ConfigError
    from metaser.eval.crossval import plan_folds
    from metaser.train.checks import check_folds

    if cluster is None and (dry_run or follow):
        raise ConfigError("--dry-run and --follow belong to --cluster, which is not given")
    if cluster is None and changes:
        raise ConfigError(f"options of the cluster belong to --cluster, which is not given, got {', '.join(changes)}")
    if cluster is not None and parallel is not None:
        raise ConfigError(
            f"--parallel is of this machine and must come without --cluster, got {parallel}; "
            "the cluster's file says it in max_parallel_folds"
        )
    if dry_run and follow:
        raise ConfigError("--dry-run starts nothing, so it must come without --follow")
    plan = plan_folds(load_experiment(config, overrides or []))
    if plan.missing:
        for note in check_folds(plan):
            say(note)
    if cluster is None:
        _train_here(plan, parallel or 1)
    else:
        train_on_cluster(plan, cluster, changes, dry_run=dry_run, follow=follow)


def _show_table(plan: CrossValidation) -> None:
    from rich.console import Console

    from metaser.eval.crossval import write_crossval
    from metaser.eval.report import render_folds

    render_folds(write_crossval(plan), Console())


def describe_fold(plan: CrossValidation, fold: int) -> str:
    """Return a finished fold's line."""
    from metaser.eval.crossval import read_fold_report

    task = read_fold_report(plan.run(fold)).tasks.get(plan.config.main_task, {})
    numbers = ", ".join(f"{name} {task[name]:.3f}" for name in ("wa", "ua", "macro_f1") if task.get(name) is not None)
    return f"fold {fold} ({plan.groups[fold]}): {numbers or 'finished'}"


# ---------------------------------------------------------------- on this machine


def _train_here(plan: CrossValidation, parallel: int) -> None:
    from metaser.errors import RunError
    from metaser.eval.crossval import check_crossval, start_crossval

    check_crossval(plan)
    start_crossval(plan)
    waiting = plan.missing
    say(f"{len(plan.groups)} folds, {len(waiting)} to train, {min(parallel, len(waiting))} at a time")
    running: dict[int, subprocess.Popen[bytes]] = {}
    gpus = _visible_gpus() if parallel > 1 else []
    gpu_of: dict[int, str] = {}
    failed: dict[int, int] = {}
    with _signals_forwarded(running) as asked:
        while running or (waiting and not asked):
            while waiting and len(running) < parallel and not asked:
                fold = waiting.pop(0)
                if gpus:
                    # The one with the fewest folds on it.
                    gpu_of[fold] = min(gpus, key=[gpu_of[other] for other in running].count)
                running[fold] = _start_fold(plan, fold, gpu_of.get(fold))
            time.sleep(_LOOK_EVERY_S)
            for fold, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[fold]
                if code:
                    failed[fold] = code
                elif fold in plan.missing:
                    asked.append("metaser stop")
                else:
                    say(describe_fold(plan, fold))
    if failed:
        fold, code = next(iter(failed.items()))
        said = _console_log(plan, fold)
        raise RunError(
            f"every fold must finish, but {len(failed)} of {len(plan.groups)} did not, fold {fold} with exit code "
            f"{code} ({_last_line(said)}); see {said}; the same command runs only the missing ones again"
        )
    if asked:
        say(f"stopped by {asked[0]} and saved; the same command continues")
        return
    _show_table(plan)


def _start_fold(plan: CrossValidation, fold: int, gpu: str | None) -> subprocess.Popen[bytes]:
    from launch.submission import write_experiment
    from metaser.runfiles import writing
    from shards.parentdeath import terminate_with_parent

    experiment = plan.experiment(fold)
    path = write_experiment(plan.run(fold), experiment)
    environment = dict(os.environ)
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    log = _console_log(plan, fold)
    with writing(log):
        output = log.open("ab")
    with output:
        return subprocess.Popen(
            [sys.executable, "-m", "launch.cli", "train", str(path.absolute())],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A fold must not go on alone when this process is killed.
            preexec_fn=terminate_with_parent,
        )


def _console_log(plan: CrossValidation, fold: int) -> Path:
    return plan.run(fold).console_log


def _last_line(path: Path) -> str:
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"what it said cannot be read: {error.strerror}"
    return lines[-1] if lines else "it said nothing"


def _visible_gpus() -> list[str]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


@contextmanager
def _signals_forwarded(running: dict[int, subprocess.Popen[bytes]]) -> Iterator[list[str]]:
    """Ask the folds to save and stop when this process is asked; yields by what it was."""
    asked: list[str] = []

    def note(number: int, _frame: object) -> None:
        asked.append(signal.Signals(number).name)
        for process in running.values():
            process.terminate()

    kept = {number: signal.signal(number, note) for number in (*STOP_SIGNALS, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- on a cluster


def train_on_cluster(
    plan: CrossValidation,
    cluster: str,
    changes: tuple[str, ...],
    *,
    dry_run: bool = False,
    follow: bool = False,
    folds: Sequence[int] | None = None,
) -> None:
    """Submit the folds that are missing and in no job, of all or of `folds`, as one array."""
    from dataclasses import replace

    from launch import submission
    from launch.cluster import load_cluster
    from launch.sbatch import sbatch_text, slurm_executor
    from metaser.eval.crossval import check_crossval, fold_runs, start_crossval
    from metaser.progress import is_finished
    from metaser.rundir import RunDir

    where = load_cluster(cluster, changes)
    parallel = plan.config.parallel.model_copy(update={"expected_num_processes": where.num_tasks})
    plan = replace(plan, config=plan.config.model_copy(update={"parallel": parallel}))
    executor = slurm_executor(where, RunDir(plan.root).jobs.absolute(), f"metaser-{plan.root.name}")
    if dry_run:
        tell_data(f"{sbatch_text(executor)}\n")
        return
    queued = {
        fold: found[0]
        for fold, run in fold_runs(plan.root).items()
        if not is_finished(run) and (found := submission.live_job(run)) is not None
    }
    check_crossval(plan, is_queued=bool(queued))
    missing = [fold for fold in plan.missing if folds is None or fold in folds]
    live = {fold: queued[fold] for fold in missing if fold in queued}
    new = [fold for fold in missing if fold not in live]
    for fold, job in live.items():
        say(f"fold {fold} ({plan.groups[fold]}) is in job {job} already")
    if new:
        submission.prepare_checks(where, executor, cluster)
        for fold in new:
            submission.check_run_folder(plan.run(fold))
            submission.check_continues(plan.run(fold), plan.experiment(fold))
        start_crossval(plan)
        root = str(plan.root.absolute())
        jobs = [submission.prepare_job(plan.run(fold), plan.experiment(fold), where, crossval=root) for fold in new]
        done = submission.submit_slurm(executor, where, [plan.run(fold) for fold in new], jobs)
        for fold, submitted in zip(new, done, strict=True):
            tell(f"job {submitted.job_id}, fold {fold} ({plan.groups[fold]}), run {plan.run(fold).root}")
            live[fold] = submitted.job_id
        say(f"  how far they are  metaser status {shlex.quote(str(plan.root))}")
        say(f"  the table         {plan.root}/report/report.md when all are finished, or this command again")
    if follow:
        _wait(plan, live)
    if not plan.missing:
        _show_table(plan)


def _wait(plan: CrossValidation, live: dict[int, str]) -> None:
    from launch.slurm import JOB_IS_LIVE, job_states
    from metaser.errors import RunError

    waiting = dict(live)
    while waiting:
        states = job_states(list(waiting.values()))
        for fold, job in list(waiting.items()):
            if states.get(job) in JOB_IS_LIVE:
                continue
            del waiting[fold]
            say(
                describe_fold(plan, fold)
                if fold not in plan.missing
                else f"fold {fold}: job {job} ended before its end"
            )
        if waiting:
            time.sleep(_ASK_EVERY_S)
    if plan.missing:
        raise RunError(
            f"every fold must finish, but {len(plan.missing)} of {len(plan.groups)} did not: "
            f"{', '.join(map(str, plan.missing))}; see {plan.root}/jobs; the same command runs only these again"
        )
