"""`metaser ablate`: variants of an experiment with seeds and folds, here or on a SLURM cluster, then one table."""

from __future__ import annotations

import logging
import multiprocessing
from typing import TYPE_CHECKING, Annotated

import typer

from launch.clusteroptions import with_cluster_options
from launch.words import say

if TYPE_CHECKING:
    from metaser.eval.ablation import Ablation, Cell


@with_cluster_options
def ablate(
    config: Annotated[str, typer.Argument(help="YAML file of the experiment; one split rule has a fold.")],
    variants: Annotated[str, typer.Argument(metavar="SET", help="YAML file of the arms, seeds and contrasts.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changed values, e.g. ablation.seeds=[0] stages.0.num_steps=9.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Folds trained at the same time on this machine.")] = 1,
    cluster: Annotated[str | None, typer.Option(help="YAML file of the cluster: an array per arm and seed.")] = None,
    changes: tuple[str, ...] = (),
) -> None:
    """Train every arm with every seed and fold, then show one table; the same command runs what is missing.

    Started several times, on one machine or on several with the same disk, each takes the next fold that nobody trains.
    """
    from metaser.errors import ConfigError, RunError
    from metaser.eval.ablation import check_ablation, plan_ablation
    from metaser.train.checks import check_folds

    if cluster is None and changes:
        raise ConfigError(f"options of the cluster belong to --cluster, which is not given, got {', '.join(changes)}")
    ablation = plan_ablation(config, variants, tuple(overrides or ()))
    check_ablation(ablation)
    for cell in ablation.cells:
        if cell.missing and cell.baseline is None:
            for note in dict.fromkeys(check_folds(cell.plan)):
                say(f"{cell.arm}: {note}")
    num_folds = sum(len(cell.folds) for cell in ablation.cells)
    say(f"{len(ablation.cells)} models of {num_folds} folds, {ablation.num_missing} to train")
    for cell in ablation.cells:
        _judge_baseline(cell)
    if cluster is not None:
        _submit(ablation, cluster, changes)
    elif not _train_here(ablation, parallel):
        say("stopped; the same command continues")
        return
    _show(ablation)
    if cluster is None and ablation.num_missing:
        raise RunError(
            f"every fold must finish, but {ablation.num_missing} of {num_folds} did not; what they said stands above "
            "and in their train.log; the same command runs only these again"
        )


def _judge_baseline(cell: Cell) -> None:
    from metaser.distributed import DistInfo
    from metaser.eval.baseline import judge_baseline
    from metaser.processes import Processes

    if cell.baseline is None:
        return
    for fold in cell.missing:
        experiment = cell.plan.experiment(fold)
        processes = Processes(experiment.parallel, DistInfo(0, 1, 0))
        try:
            report = judge_baseline(experiment, cell.baseline, processes)
        finally:
            processes.close()
        task = report["tasks"][cell.plan.config.main_task]
        say(f"{cell.arm}, fold {fold} ({cell.plan.groups[fold]}): UA {task['ua']:.3f}")


# ---------------------------------------------------------------- on this machine


def _train_here(ablation: Ablation, parallel: int) -> bool:
    """Train what is missing in so many processes; return False when stopped on request."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_train_beside, args=(ablation,)) for _ in range(parallel - 1)]
    for other in others:
        other.start()
    is_done = False
    try:
        is_done = _train_missing(ablation)
    finally:
        for other in others:
            if not is_done:
                # It saves and stops, too.
                other.terminate()
            other.join()
    return is_done


def _train_beside(ablation: Ablation) -> None:
    from shards.parentdeath import exit_with_parent

    exit_with_parent()
    _train_missing(ablation)


def _train_missing(ablation: Ablation) -> bool:
    from transformers.utils.logging import disable_progress_bar

    from metaser.distributed import DistInfo
    from metaser.eval.ablation import drop_models
    from metaser.eval.crossval import start_crossval
    from metaser.progress import is_finished
    from metaser.runlock import lock_holder
    from metaser.train.run import train
    from shards.errors import InputError

    logging.getLogger().setLevel(logging.ERROR)
    disable_progress_bar()
    for cell in ablation.cells:
        if cell.baseline is not None or not cell.missing:
            continue
        start_crossval(cell.plan)
        for fold in cell.missing:
            run = cell.plan.run(fold)
            # Another process may have finished it meanwhile.
            if is_finished(run) or lock_holder(run) is not None:
                continue
            try:
                if not train(cell.plan.experiment(fold), DistInfo(0, 1, 0)):
                    return False
            except InputError as error:
                say(f"error: {_name(cell)}, fold {fold}: {error}")
                continue
            say(f"{_name(cell)}, {_describe(cell, fold)}")
            if not ablation.config.keep_models:
                drop_models(run)
    return True


def _name(cell: Cell) -> str:
    return f"{cell.arm}, seed {cell.plan.config.seed}"


def _describe(cell: Cell, fold: int) -> str:
    from launch.verbs.crossval import describe_fold

    return describe_fold(cell.plan, fold)


# ---------------------------------------------------------------- on a cluster


def _submit(ablation: Ablation, cluster: str, changes: tuple[str, ...]) -> None:
    from launch.verbs.crossval import train_on_cluster

    for cell in ablation.cells:
        if cell.baseline is None and cell.missing:
            say(f"{_name(cell)}:")
            train_on_cluster(cell.plan, cluster, changes, folds=cell.folds)
    if ablation.num_missing:
        say("the table: this command again when the jobs are finished")


def _show(ablation: Ablation) -> None:
    from rich.console import Console

    from metaser.errors import RunError
    from metaser.eval.ablation import ablation_tables, write_ablation
    from shards.shown import shown_table, shown_text

    try:
        report = write_ablation(ablation)
    except RunError:
        if not ablation.num_missing:
            raise
        return
    console = Console()
    tables, notes = ablation_tables(report)
    for header, rows in tables:
        console.print(shown_table(header, rows))
    for note in notes:
        console.print(shown_text(note), highlight=False, soft_wrap=True)
    say(f"written to {ablation.report}")
