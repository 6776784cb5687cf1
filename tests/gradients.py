"""The gradient of one step of the tiny experiment, computed in any number of processes and in any cut."""

import math

import torch
from safetensors.torch import load_file, save_file
from tinyruns import EXACT, ranks

from metaser.config.schema import ExperimentConfig
from metaser.distributed import dist_info
from metaser.given import fit_views, lookups
from metaser.model.metaser import build_model
from metaser.processes import Processes
from metaser.seeding import seed_generators
from metaser.stagedata import stage_data, training_rows
from metaser.targets import Targets, resolve_tasks
from metaser.train.augment import Augmenter
from metaser.train.build import build_engine
from metaser.train.optim import build_optimizer
from metaser.train.stage import freeze_all_but, select_parameters
from metaser.train.step import StepRunner
from shards.indexload import load_index
from shards.plan import Schedule
from shards.read import read_batches
from shards.splits import assign_splits

STEP = 2
ALL_AT_ONCE, IN_MICRO_BATCHES = "data.max_micro_batch_s=60", "data.max_micro_batch_s=1"


def stage_runner(config: ExperimentConfig, processes: Processes, dtype: torch.dtype) -> StepRunner:
    """Return what runs the steps of the last stage, from fresh weights."""
    index = load_index(config.data.shard_folders)
    splits = assign_splits(index, config.data.splits, allow_speaker_overlap=False)
    specs = resolve_tasks(config.tasks, index.take(training_rows(config, index, splits)))
    stage = config.stages[-1]
    training = stage_data(stage, specs, index, splits).training
    seed_generators(config.seed, "init")
    model = build_model(config.model, specs, config.main_task)
    fit_views(model, training)
    # Coefficients start at zero, where half of the gradients are zero, too.
    with torch.no_grad():
        for scalars in model.ari.scalar_parameters().values():
            scalars.normal_(std=0.1)
    trainable = select_parameters(model, stage)
    freeze_all_but(model, trainable)
    model.to(dtype).train()
    engine = build_engine(processes, model, build_optimizer(model, trainable, stage), max_grad_norm=1.0)
    schedule = Schedule(training.num_samples, batch_utterances=16, pool_utterances=1600, seed=1)
    augmenter = Augmenter(stage.augment, seed=config.seed)
    targets, found = Targets(specs, training), lookups(model, training)
    return StepRunner(config, stage, 2, specs, training, targets, schedule, engine, augmenter, found)


def write_gradient(config: ExperimentConfig, path: str, in_float64: bool) -> None:
    """In each process: do one step up to its gradient; the main process writes it, and how many micro-batches."""
    info = dist_info()
    processes = Processes(config.parallel, info)
    runner = stage_runner(config, processes, torch.float64 if in_float64 else torch.float32)
    if in_float64:
        # The model turns audio and logits into float32 on purpose.
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double
    micro_batches = runner.micro_batches_of(STEP)
    batches = list(read_batches(runner.index, micro_batches, num_workers=0, timeout_s=30))
    runner.forward_backward(STEP, batches)
    gradients = {name: value.contiguous() for name, value in runner.engine.gradients().items()}
    if info.is_main:
        save_file({**gradients, "num_micro_batches": torch.tensor(len(micro_batches))}, path)
    processes.close()


def gradient_of(corpus, folder, count, strategy, micro_batches, *, in_float64=False, more=()):
    config = corpus.experiment(folder / "run", *EXACT, micro_batches, f"parallel.strategy={strategy}", *more)
    path = folder / f"{strategy}-{count}-{micro_batches}.safetensors"
    with ranks(count, write_gradient, config, str(path), in_float64, folder=folder / "said") as job:
        assert job.join() == [0] * count, job.said()
    found = load_file(path)
    num_micro_batches = int(found.pop("num_micro_batches"))
    assert (num_micro_batches > 1) == (micro_batches == IN_MICRO_BATCHES)
    return found


def distance(ours, theirs):
    """Return the norm of the difference over the norm of the whole gradient."""
    assert ours.keys() == theirs.keys()
    difference = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    whole = sum(float(value.double().square().sum()) for value in theirs.values())
    return math.sqrt(difference / whole)
