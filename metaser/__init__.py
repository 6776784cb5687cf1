"""The model, its two fine-tuning stages, the engine, evaluation and export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaser.model.metaser import MetaSERModel

__all__ = ["MetaSERModel"]


def __getattr__(name: str) -> Any:
    # Late, because it loads torch, which most of the package and all of the command line's help do without.
    if name == "MetaSERModel":
        from metaser.model.metaser import MetaSERModel

        return MetaSERModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
