"""Which parameters a stage moves."""

from __future__ import annotations

from torch.nn import Parameter

from metaser.config.schema import StageConfig
from metaser.errors import TrainingError
from metaser.model.metaser import MetaSERModel


def select_parameters(model: MetaSERModel, stage: StageConfig) -> dict[str, Parameter]:
    """Return the parameters that `stage` moves, by name, in the model's order.

    `heads` means the heads of the stage's weighted tasks; `heads.NAME` names one.

    Raises:
        ConfigError: if a group is unknown.
        TrainingError: if nothing is left to train, or a named part takes no part in the stage's tasks.
    """
    chosen: set[str] = set()
    for group in stage.train:
        if group == "heads":
            for task in stage.weighted_tasks:
                chosen |= model.parameters_of(f"heads.{task}").keys()
            continue
        if group.split(".")[0] in ("coattention", "views") and model.config.main_task not in stage.weighted_tasks:
            raise TrainingError(
                f"stage {stage.name!r} trains {group!r} but gives {model.config.main_task!r} no weight, so no "
                "gradient would reach it; weigh the task or leave the group out"
            )
        if group.startswith("views.") and group[len("views.") :] not in model.joined_views:
            model.parameters_of(group)
            raise TrainingError(
                f"stage {stage.name!r} trains {group!r}, which model.coattention does not join to "
                f"{model.config.main_task!r}; name it in model.coattention.streams or leave the group out"
            )
        if group.startswith("heads.") and group[len("heads.") :] not in stage.weighted_tasks:
            model.parameters_of(group)
            raise TrainingError(
                f"stage {stage.name!r} trains {group!r}, a task without weight in it; weigh it or leave it out"
            )
        found = model.parameters_of(group)
        if not found and (group not in ("ari", "coattention", "views") or (group == "views" and not model.views)):
            # The form `none` has no parameters, or joins no view, by intent: an ablation changes one value.
            raise TrainingError(
                f"stage {stage.name!r} trains {group!r}, but this model has no such parameters; leave the group out or "
                "switch the part on in `model`"
            )
        chosen |= found.keys()
    if not chosen:
        raise TrainingError(
            f"stage {stage.name!r} must train something, but nothing of {list(stage.train)} is in this model; name "
            "another group"
        )
    return {name: parameter for name, parameter in model.named_parameters() if name in chosen}


def freeze_all_but(model: MetaSERModel, trainable: dict[str, Parameter]) -> None:
    """Let gradients reach exactly `trainable`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
