"""`metaser demo`: the whole line on the embedded corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from launch.words import tell


def demo(out: Annotated[str, typer.Option(help="Folder of the run.")] = "runs/demo") -> None:
    """Make the embedded corpus, pack it, train both stages, evaluate on unseen voices."""
    from launch.console import plain_logging, show_report
    from launch.train import start_training
    from launch.verbs.pack import pack
    from metaser.config.load import load_experiment
    from metaser.distributed import DistInfo
    from metaser.rundir import RunDir

    # In quotes, because YAML would read a folder `01` as a number.
    overrides = [f"output_dir={json.dumps(out)}", f"data.shards={json.dumps(f'{out}/shards')}"]
    experiment = load_experiment(_config_path(), overrides)
    with plain_logging():
        pack("demo", "-", experiment.data.shard_folders[0], seed=experiment.seed)
    if start_training(experiment, DistInfo(rank=0, num_processes=1, local_rank=0), "auto"):
        show_report(experiment.output_dir, experiment.main_task)
        run = RunDir(Path(experiment.output_dir))
        tell(f"pictures: {', '.join(str(path) for path in sorted(run.report.glob('*.png')))}")
        tell(f"try: metaser predict {run.best} some.wav")


def _config_path() -> Path:
    """Return the demo's experiment: in a checkout where it is edited, in an installed wheel where it is packed."""
    checkout = Path(__file__).parents[2] / "configs" / "experiment" / "demo.yaml"
    return checkout if checkout.is_file() else Path(__file__).parents[1] / "demo.yaml"
