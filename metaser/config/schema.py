"""The experiment as one typed tree: what to train on what, in which stages, how fast.

Where a job runs (nodes, GPUs, time) is not part of an experiment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from metaser.config.ari import AriForm
from metaser.config.augment import AugmentConfig
from metaser.config.encoders import AnyEncoder, EncoderConfig, LogMelEncoderConfig, NumHeads, Width
from metaser.tasks.kinds import AnyTask, kind_of
from shards.config import Count, DataConfig, PathText, SamplingConfig
from shards.record import Section

# ---------------------------------------------------------------- model


_NumMasks = Annotated[int, Field(ge=0, le=1000)]
"""They are drawn one by one, for each clip."""


CoattentionForm = Literal["none", "concat", "cross", "frame_weights"]


class AriConfig(Section):
    """Augmented Residual Integration: how the layers' features reach the tasks."""

    form: AriForm = "task"


class CoattentionConfig(Section):
    """How the emotion stream meets those of the metadata and of the views."""

    form: CoattentionForm = "cross"
    streams: tuple[str, ...] | None = None
    """Names of the tasks and views that the main task's stream meets; None means all of them."""
    width: Width = 256
    num_heads: NumHeads = 4
    dropout: float = Field(default=0.1, ge=0, lt=1)


class AdapterConfig(Section):
    """Small trainable parts inside a frozen encoder; 0 leaves a part out."""

    lora_rank: int = Field(default=0, ge=0, le=2**16)
    lora_alpha: float = Field(default=64.0, gt=0, le=1e6)
    bottleneck: int = Field(default=0, ge=0, le=2**16)
    """Width of the bottleneck after each layer."""


class SpecAugmentConfig(Section):
    """Masks over the encoder's input frames during training; 0 masks draw none."""

    num_time_masks: _NumMasks = 0
    max_time_mask_frames: Count = 10
    num_feature_masks: _NumMasks = 0
    max_feature_mask: Count = 16


_VIEW_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


def _sorted_views(views: dict[str, EncoderConfig]) -> dict[str, EncoderConfig]:
    # JSON files of transformers are sorted, and co-attention puts its streams side by side in this order.
    if strange := [name for name in views if not _VIEW_NAME.fullmatch(name)]:
        raise ValueError(f"views must have names of up to 40 letters, digits and _, got {strange[0][:80]!r}")
    return dict(sorted(views.items()))


class ModelConfig(Section):
    """Encoder, views, ARI, co-attention and heads."""

    encoder: AnyEncoder = LogMelEncoderConfig()
    """The main encoder: every task's stream is made of its layers."""
    views: Annotated[dict[str, AnyEncoder], AfterValidator(_sorted_views)] = Field(default={}, max_length=16)
    """Further encoders by name, of the sound or of what was said; co-attention joins their top layers' frames. In which
    order they are given makes no difference."""
    ari: AriConfig = AriConfig()
    coattention: CoattentionConfig = CoattentionConfig()
    adapters: AdapterConfig = AdapterConfig()
    spec_augment: SpecAugmentConfig = SpecAugmentConfig()
    pooling: Literal["mean", "attentive_statistics"] = "mean"
    """How classification and regression heads see an utterance's frames."""
    head_dropout: float = Field(default=0.1, ge=0, lt=1)
    head_width: Width = 128
    """Hidden width of the main task's classifier."""

    def other_streams(self, main_task: str, tasks: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the streams that `main_task`'s meets: of tasks, then of views, or as they are given.

        Raises:
            ValueError: if a view has a task's name, or a stream that is named does not exist.
        """
        if both := sorted(set(tasks) & set(self.views)):
            raise ValueError(f"views must have other names than tasks, got {both}; rename them")
        known = (*(task for task in tasks if task != main_task), *self.views)
        if self.coattention.streams is None:
            return known
        chosen = self.coattention.streams
        if strange := [name for name in chosen if name not in known]:
            raise ValueError(
                f"model.coattention.streams must name tasks or views other than {main_task!r} ({', '.join(known)}), "
                f"got {strange}"
            )
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"model.coattention.streams must name each stream once, got {list(chosen)}")
        return chosen


# ---------------------------------------------------------------- stages


PARAMETER_GROUPS = ("encoder", "views", "ari", "heads", "coattention", "adapters")
_LAYER_RANGE = re.compile(r"encoder\.layers\.\d+-\d+")


_Beta = Annotated[float, Field(ge=0, lt=1)]
_Rate = Annotated[float, Field(ge=0, le=1e3)]


class LearningRates(Section):
    """Peak learning rates by parameter group."""

    encoder: _Rate = 1e-5
    views: _Rate = 1e-5
    heads: _Rate = 1e-4
    """Heads, co-attention and adapters."""
    ari: _Rate = 1e-2
    """ARI's scalars: they start at zero, and Adam moves a scalar by about the rate per step."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each encoder layer's rate is the next upper layer's times this; a final norm belongs to the top layer, and what
    comes before the layers has the lowest rate."""


class ScheduleConfig(Section):
    """Warm-up to the peak, then decay, which would reach `final_fraction` of it one step after the stage's last."""

    warmup_fraction: float = Field(default=0.1, ge=0, le=1)
    decay: Literal["linear", "cosine", "constant"] = "cosine"
    final_fraction: float = Field(default=0.0, ge=0, le=1)


class StageConfig(Section):
    """What one fine-tuning stage trains, on which tasks, and for how long."""

    name: str
    train: tuple[str, ...] = Field(min_length=1)
    """`encoder`, `encoder.layers.6-11` (with the final norm if the top layer is among them), `ari`, `heads`,
    `heads.NAME`, `coattention`, `adapters`, `views`, `views.NAME`."""
    weights: dict[str, NonNegativeFloat]
    """Loss weight per task; a task that is not named has weight 0."""
    num_steps: Count
    filter: str | None = None
    """Expression over metadata, e.g. `emotion in ["anger", "neutral"] and duration_s < 20`."""
    sampling: SamplingConfig = SamplingConfig()
    augment: AugmentConfig = AugmentConfig()
    """A stage's own, because what leaves a transcript alone may change a voice's gender or emotion."""
    learning_rate: LearningRates = LearningRates()
    schedule: ScheduleConfig = ScheduleConfig()
    weight_decay: float = Field(default=0.01, ge=0, le=1e3)
    betas: tuple[_Beta, _Beta] = (0.9, 0.98)
    max_grad_norm: PositiveFloat = 1.0
    eval_every_steps: Count = 100
    save_every_steps: Count = 200
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Judge, hand on and export an exponential moving average of the weights instead of the weights themselves; each
    step keeps this share of it (0.999 averages over about 1,000 steps), early ones less: (1 + t) / (10 + t) after t
    steps, so that the weights that a short stage began with are forgotten."""
    select: str = "loss"
    """Dev metric that chooses the weights handed on: `loss` (weighted dev loss, lowest), or `TASK.METRIC`
    (e.g. `emotion.ua`, highest)."""

    @property
    def weighted_tasks(self) -> tuple[str, ...]:
        """Names of the tasks with a positive weight."""
        return tuple(name for name, weight in self.weights.items() if weight > 0)

    @model_validator(mode="after")
    def _check(self) -> StageConfig:
        if not self.weighted_tasks:
            raise ValueError(f"stage {self.name!r} must give some task a positive weight, got {self.weights}")
        return self


Strategy = Literal["single", "ddp", "zero1", "zero2", "zero3"]


class ParallelConfig(Section):
    """How the work is spread; may change between runs that continue one another."""

    strategy: Literal["auto"] | Strategy = "auto"
    """`single`: one process. `ddp`: every process holds everything. `zero1`: optimizer states are spread over the
    processes, `zero2`: gradients too, `zero3`: weights too (DeepSpeed; any number of processes, one as well).
    `auto`: `single`, or `ddp` when a launcher started several."""
    offload: Literal["none", "cpu"] = "none"
    """`cpu` keeps the optimizer in the computer's memory (`zero2`, `zero3`), and the weights too (`zero3`)."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """What the model computes in; weights, gradients and the optimizer stay in float32. `fp16`, for GPUs without bf16
    (V100, T4), scales the loss."""
    activation_checkpointing: bool = False
    """Compute the encoder layers' activations again in the backward pass instead of keeping them."""
    compile_layers: bool = False
    """Compile the encoder layers (torch.compile, once for all lengths)."""
    expected_num_processes: Count | None = None
    """Refuse to start on any other number of processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    peak_tflops: PositiveFloat | None = None
    """What one device can do in this precision, in 1e12 operations a second; given, `mfu` is logged."""
    extra: dict[str, Any] = Field(default={})
    """Settings of DeepSpeed (`zero1` to `zero3`), as in its JSON, that replace those that MetaSER writes."""

    @model_validator(mode="after")
    def _check(self) -> ParallelConfig:
        if self.offload == "cpu" and self.strategy not in ("zero2", "zero3"):
            raise ValueError(f"offload 'cpu' needs strategy 'zero2' or 'zero3', got {self.strategy!r}; change one")
        if self.extra and not self.strategy.startswith("zero"):
            raise ValueError(
                f"extra holds settings of DeepSpeed, which strategy {self.strategy!r} does not use, got "
                f"{sorted(self.extra)}; choose 'zero1' to 'zero3' or leave them out"
            )
        return self


class CheckpointConfig(Section):
    """What stays on disk."""

    keep_last: Count = 2


class ExperimentConfig(Section):
    """Everything that decides what a run computes."""

    output_dir: PathText
    seed: int = Field(default=0, ge=0)
    init_from: PathText | None = None
    """A run's folder or an exported model whose weights the first stage starts from; the encoder must be the same, and
    what else does not fit starts fresh."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    tasks: tuple[AnyTask, ...]
    main_task: str = "emotion"
    """The task whose stream co-attends to the others."""
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    parallel: ParallelConfig = ParallelConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    log_keys: bool = False
    """Write which utterances each process read in each step to `keys/` in the run."""
    frame_cache: PathText | None = None
    """Folder that keeps what the encoder's frozen part makes of the clips, without its dropout, so that it is computed
    once; trainings with the same frozen part share it. Stages that change the sound do without."""
    max_skipped_steps: Count = 20
    """Non-finite steps in a row that stop the run."""

    @model_validator(mode="after")
    def _check(self) -> ExperimentConfig:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"task names must differ, got {names}")
        if self.main_task not in names:
            raise ValueError(f"main_task must be one of the tasks {names}, got {self.main_task!r}")
        main = next(task for task in self.tasks if task.name == self.main_task)
        if kind_of(main).per_frame:
            raise ValueError(
                f"main_task must answer once an utterance, but {self.main_task!r} of kind {main.kind} answers for "
                "every frame; name another task"
            )
        if self.model.encoder.given_fields:
            raise ValueError(
                f"model.encoder must be an encoder that hears, got one of kind {self.model.encoder.kind!r}; make it "
                "one of model.views"
            )
        for name, view in self.model.views.items():
            # An age tells its group.
            told = {*view.given_fields} & {field.replace("age_group", "age") for field in main.metadata_fields}
            if told:
                raise ValueError(
                    f"model.views.{name} must not be given the answer of the main task {self.main_task!r}, but reads "
                    f"{sorted(told)}; leave the field out"
                )
        if not self.model.other_streams(self.main_task, names) and self.model.coattention.form != "none":
            raise ValueError(
                f"model.coattention.form {self.model.coattention.form!r} needs a second task or view beside "
                f"{self.main_task!r}; add one or set the form to 'none'"
            )
        for stage in self.stages:
            vtlp = stage.augment.vtlp.probability
            if vtlp > 0 and not any(encoder.has_mel_filters for encoder in self._computed(stage, names)):
                raise ValueError(
                    f"stage {stage.name!r} has augment.vtlp.probability {vtlp:g}, which moves mel filters, but "
                    f"model.encoder.kind is {self.model.encoder.kind!r}, which has none, and no view of the stage has "
                    "some; set it to 0"
                )
            unknown = [name for name in stage.weights if name not in names]
            if unknown:
                raise ValueError(f"stage {stage.name!r} weighs unknown tasks {unknown}; the tasks are {names}")
            parts = (*(f"heads.{name}" for name in names), *(f"views.{name}" for name in self.model.views))
            groups = (*PARAMETER_GROUPS, *parts)
            strange = [group for group in stage.train if group not in groups and not _LAYER_RANGE.fullmatch(group)]
            if strange:
                raise ValueError(
                    f"stage {stage.name!r} trains unknown parameter groups {strange}; choose from "
                    f"{', '.join(groups)} and encoder.layers.A-B"
                )
        return self

    def _computed(self, stage: StageConfig, tasks: Sequence[str]) -> list[EncoderConfig]:
        """Return the encoders that `stage` computes: the main one, and the views that its main task's stream meets."""
        model = self.model
        if model.coattention.form == "none" or self.main_task not in stage.weighted_tasks:
            return [model.encoder]
        joined = model.other_streams(self.main_task, tasks)
        return [model.encoder, *(view for name, view in model.views.items() if name in joined)]
