"""Several variants of one experiment, each with several seeds over several folds, and one table over all.

Every variant (an arm) with every seed is a cross-validation in a folder of its own, `OUT/ARM/seedN`, of which some
folds may be left out; `OUT/report` has the table.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from metaser import markdown
from metaser.config.load import load_experiment, load_section
from metaser.continuing import refuse_changes
from metaser.errors import ConfigError, RunError
from metaser.eval.baseline import BaselineKind
from metaser.eval.compare import (
    DIFFERENCE_TITLES,
    System,
    compare_systems,
    comparison_notes,
    difference_cells,
    pooled_system,
)
from metaser.eval.crossval import CrossValidation, check_crossval, plan_folds
from metaser.eval.metrics import rounded
from metaser.eval.paired import METRICS, Difference, metric_of_answers
from metaser.progress import is_finished
from metaser.rundir import REPORT, REPORT_PAGE, RunDir
from metaser.runfiles import write_whole, writing
from metaser.tasks.kinds import all_metrics
from shards.config import PathText
from shards.jsontext import dump_json
from shards.record import Section


def _usable_name(name: str) -> str:
    if not name or name != name.strip() or "/" in name or name.startswith("."):
        raise ValueError(f"must be a name that a folder can have, got {name!r}")
    return name


ArmName = Annotated[str, Field(max_length=80), AfterValidator(_usable_name)]


class AblationConfig(Section):
    """What is varied, and how often."""

    output_dir: PathText
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    folds: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    baselines: tuple[BaselineKind, ...] = ()
    """Rows without any training by steps; see `metaser baseline`. They have one model, whatever the seeds."""
    arms: dict[ArmName, dict[str, Any]] = Field(min_length=1)
    """By name what changes in the experiment: values by their paths, as in overrides."""
    keep_models: bool = False
    """Keep checkpoints and best model of every fold that was trained here; otherwise, once it is judged, only what it
    said: hundreds of models fill a disk."""
    contrasts: tuple[tuple[str, str], ...] = ()
    """Pairs of rows to compare: how much more the first has than the second."""

    @model_validator(mode="after")
    def _check(self) -> AblationConfig:
        for part in (self.seeds, self.folds):
            if part != "all" and len(set(part)) < len(part):
                raise ValueError(f"seeds and folds must be named once each, got {list(part)}")
        if both := sorted(set(self.arms) & {*self.baselines, RunDir(Path()).report.name}):
            raise ValueError(f"arms must have other names than baselines and the report, got {both}")
        names = [*self.baselines, *self.arms]
        for pair in self.contrasts:
            if strange := [name for name in pair if name not in names]:
                raise ValueError(f"contrasts must be of arms and baselines ({', '.join(names)}), got {strange}")
        return self


@dataclass(frozen=True)
class Cell:
    """One arm with one seed over the folds."""

    arm: str
    plan: CrossValidation
    folds: tuple[int, ...]
    baseline: BaselineKind | None = None

    @property
    def missing(self) -> list[int]:
        """The folds that are not trained and judged yet."""
        finished = has_report if self.baseline is not None else is_finished
        return [fold for fold in self.folds if not finished(self.plan.run(fold))]


def has_report(run: RunDir) -> bool:
    """Return whether a baseline's fold is judged."""
    return run.report_json.exists()


def check_ablation(ablation: Ablation) -> None:
    """Refuse what the folders hold of other experiments: it would be told as that of these arms.

    Raises:
        RunError: saying what differs.
    """
    for cell in ablation.cells:
        if cell.baseline is None:
            check_crossval(cell.plan)
            continue
        for fold in cell.folds:
            run = cell.plan.run(fold)
            if run.is_run():
                refuse_changes(load_experiment(run.config), cell.plan.experiment(fold), run)


def drop_models(run: RunDir) -> None:
    """Delete the weights of a run that is finished.

    Raises:
        RunError: if the system refuses.
    """
    with writing(run.root):
        for folder in (run.best, *(run.checkpoints(number) for number in range(1, _num_stages(run) + 1))):
            if folder.is_dir():
                shutil.rmtree(folder)


def _num_stages(run: RunDir) -> int:
    return len(load_experiment(run.config).stages)


@dataclass(frozen=True)
class Ablation:
    """All cells, and where they lie."""

    root: Path
    config: AblationConfig
    cells: tuple[Cell, ...]

    @property
    def report(self) -> Path:
        """The folder of the table."""
        return RunDir(self.root).report

    @property
    def num_missing(self) -> int:
        """Folds of all cells that are not trained and judged yet."""
        return sum(len(cell.missing) for cell in self.cells)


def plan_ablation(experiment: str | Path, path: str | Path, overrides: tuple[str, ...] = ()) -> Ablation:
    """Return the cells of the ablation in the YAML file `path` over the experiment in `experiment`.

    Overrides whose path begins with `ablation.` change the ablation, all others the experiment before its arms do.

    Raises:
        ConfigError: if a file or an arm is wrong.
        InputError: if the shards cannot be read or split so.
    """
    mine = [text.removeprefix("ablation.") for text in overrides if text.startswith("ablation.")]
    others = [text for text in overrides if not text.startswith("ablation.")]
    config = load_section(AblationConfig, path, mine, name="SET", whole="the ablation")
    root = Path(config.output_dir)
    cells = []
    for baseline in config.baselines:
        cells.append(_cell(experiment, config, baseline, others, root / baseline / "seed0", baseline))
    for arm, changes in config.arms.items():
        changed = [*others, *(f"{name}={json.dumps(value)}" for name, value in changes.items())]
        for seed in config.seeds:
            try:
                cells.append(_cell(experiment, config, arm, [*changed, f"seed={seed}"], root / arm / f"seed{seed}"))
            except ConfigError as error:
                raise ConfigError(f"arm {arm!r}: {error}") from error
    return Ablation(root, config, tuple(cells))


def _cell(
    experiment: str | Path,
    config: AblationConfig,
    arm: str,
    overrides: list[str],
    folder: Path,
    baseline: BaselineKind | None = None,
) -> Cell:
    plan = plan_folds(load_experiment(experiment, [*overrides, f"output_dir={folder}"]))
    num_folds = len(plan.groups)
    folds = tuple(range(num_folds)) if config.folds == "all" else config.folds
    if strange := [fold for fold in folds if fold >= num_folds]:
        raise ConfigError(f"folds must be among the {num_folds} of the experiment, got {strange}")
    return Cell(arm, plan, folds, baseline)


# ---------------------------------------------------------------- one table over all


def write_ablation(ablation: Ablation) -> dict[str, Any]:
    """Write `OUT/report/report.json` and `report.md` over all that is finished, and return what the former holds.

    Raises:
        RunError: if nothing is finished.
    """
    systems = _systems(ablation)
    if not systems:
        raise RunError(f"{str(ablation.root)!r} must have a finished arm to be reported, but has none yet")
    comparison = compare_systems(list(systems.values()))
    contrasts = [
        (one, other, compare_systems([systems[other], systems[one]]))
        for one, other in ablation.config.contrasts
        if one in systems and other in systems
    ]
    notes = dict.fromkeys(note for _, _, found in contrasts for note in comparison_notes(found))
    report = {
        "task": comparison.task,
        "arms": {name: _arm_numbers(system) | comparison.metrics[name] for name, system in systems.items()},
        "contrasts": [
            {"of": one, "to": other, **asdict(found.differences[one]["ua"])} for one, other, found in contrasts
        ],
        "notes": [*(notes or comparison_notes(comparison)), *_further_notes(ablation, systems, len(contrasts))],
    }
    with writing(ablation.report):
        ablation.report.mkdir(parents=True, exist_ok=True)
        write_whole(ablation.report / REPORT_PAGE, _markdown(report))
        write_whole(ablation.report / REPORT, dump_json(report, indent=2) + "\n")
    return report


def _further_notes(ablation: Ablation, systems: Mapping[str, System], num_contrasts: int) -> Iterator[str]:
    if num_contrasts > 1:
        yield (
            f"{num_contrasts} contrasts are tested: of such, one in twenty falls below 0.05 though there is none; "
            f"after Bonferroni, {0.05 / num_contrasts:.4f} is the level"
        )
    left_out = dict.fromkeys(cell.arm for cell in ablation.cells if cell.arm not in systems)
    if left_out:
        yield f"not finished: {', '.join(left_out)}"


def _systems(ablation: Ablation) -> dict[str, System]:
    """Return the arms of which every fold of every seed is finished."""
    cells: dict[str, list[Cell]] = {}
    for cell in ablation.cells:
        cells.setdefault(cell.arm, []).append(cell)
    return {
        arm: pooled_system(arm, [[cell.plan.run(fold).root for fold in cell.folds] for cell in some])
        for arm, some in cells.items()
        if not any(cell.missing for cell in some)
    }


def _arm_numbers(system: System) -> dict[str, Any]:
    num_models = len(system.answers.predictions)
    uas = [metric_of_answers(system.answers, model, system.labels, "ua") for model in range(num_models)]
    return {
        "num_models": len(uas),
        "ua_of_seeds": uas,
        "ua_std_over_seeds": statistics.stdev(uas) if len(uas) > 1 else None,
    }


Table = tuple[list[str], list[list[str]]]
"""Column titles, and rows of text."""


def ablation_tables(report: Mapping[str, Any]) -> tuple[list[Table], list[str]]:
    """Return what a person reads of a report: the arms, the contrasts, and sentences without their full stops."""
    header = ["arm", *(all_metrics()[name].title for name in METRICS), "std over seeds", "UA of each seed"]
    rows = []
    for name, arm in report["arms"].items():
        metrics = [rounded(arm[metric]) for metric in METRICS]
        rows.append([name, *metrics, rounded(arm["ua_std_over_seeds"]), " ".join(map(rounded, arm["ua_of_seeds"]))])
    tables = [(header, rows)]
    if report["contrasts"]:
        told = [
            [f"{found['of']} over {found['to']}", *difference_cells(Difference(**_without_names(found)))]
            for found in report["contrasts"]
        ]
        tables.append((["UA", *DIFFERENCE_TITLES], told))
    return tables, report["notes"]


def _without_names(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("of", "to")}


def _markdown(report: Mapping[str, Any]) -> str:
    tables, notes = ablation_tables(report)
    lines = ["# Ablation"]
    for header, rows in tables:
        lines += ["", *markdown.table(header, rows, rule="---:")]
    for note in notes:
        lines += ["", f"{markdown.plain(note)}."]
    return "\n".join(lines) + "\n"
