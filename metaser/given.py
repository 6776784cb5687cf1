"""What views are given of utterances beside the sound, looked up by position as labels are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from metaser.config.schema import ModelConfig
from metaser.errors import ConfigError

if TYPE_CHECKING:
    from metaser.model.encoders.base import Encoder, Lookup
    from metaser.model.network import MetaSERNetwork
    from shards.index import Index


FramesOf = Callable[["Index"], "Lookup"]
"""Returns what finds what the main encoder is given of the utterances of an index."""


def lookups(model: MetaSERNetwork, index: Index, frames_of: FramesOf | None = None) -> dict[str, Lookup]:
    """Return what each view is given of the utterances of `index`, by the view's name; the main encoder has none.

    Shards without a view's field have nothing to give.
    """
    found = {name: view.lookup(index) for name, view in model.given_views.items()}
    return found if frames_of is None else {**found, model.encoder.view: frames_of(index)}


def given_text(model: MetaSERNetwork, text: str | None) -> dict[str, Lookup]:
    """Return lookups that give every view that reads the same text, whatever the position."""

    def lookup_of(view: Encoder) -> Lookup:
        return lambda items: view.tokenize([text] * len(items))

    return {name: lookup_of(view) for name, view in model.given_views.items() if view.reads_text}


def fit_views(model: MetaSERNetwork, training: Index) -> None:
    """Let each view take from the training utterances what is not learned by steps."""
    for view in model.given_views.values():
        view.fit(training)


def check_given(model: ModelConfig, training: Sequence[Index]) -> None:
    """Refuse an experiment with a view that is given nothing in the training utterances, which are given by stage.

    Raises:
        ConfigError: naming the view and its fields.
    """
    for name, view in model.views.items():
        setting = f"model.views.{name}"
        if view.given_fields and not any(view.num_given(index, setting=setting) for index in training):
            fields = ", ".join(training[0].fields)
            raise ConfigError(
                f"{setting} must be given something, but no training utterance has anything in "
                f"{view.describe_given()} (the shards have {fields}); name another field or leave the view out"
            )


def given_notes(model: MetaSERNetwork, judged: Index) -> Iterator[str]:
    """Yield what a report must say of what the views were given of the utterances that it judges."""
    for name, view in model.config.blueprint().model.views.items():
        if name in model.given_views:
            num_given = view.num_given(judged, setting=f"model.views.{name}")
            yield f"the view {name!r} read {view.describe_given()} of {num_given} of the {len(judged)} utterances"
