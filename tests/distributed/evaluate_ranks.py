"""Evaluates a run on as many processes as torchrun starts: RUN SPLIT."""

import sys

from metaser.config.load import load_experiment
from metaser.distributed import dist_info
from metaser.eval.protocol import evaluate_run
from metaser.rundir import existing_run

run = existing_run(sys.argv[1])
evaluate_run(run, load_experiment(run.config), dist_info(), split=sys.argv[2])
