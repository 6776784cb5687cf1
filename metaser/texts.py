"""What views that read are given: the texts of utterances, looked up by their positions as labels are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from metaser.config.schema import ModelConfig
from metaser.errors import ConfigError
from metaser.inputs import TextLookup

if TYPE_CHECKING:
    from metaser.model.encoders.base import Encoder
    from metaser.model.network import MetaSERNetwork
    from shards.index import Index


def text_lookups(model: MetaSERNetwork, index: Index) -> dict[str, TextLookup]:
    """Return what each view that reads is given of the utterances of `index`, by the view's name.

    Shards without the view's field have no text.
    """
    return {name: _field_lookup(view, index) for name, view in model.reading_views.items()}


def given_text(model: MetaSERNetwork, text: str | None) -> dict[str, TextLookup]:
    """Return lookups that give every view that reads the same text, whatever the position."""

    def lookup_of(view: Encoder) -> TextLookup:
        return lambda items: view.tokenize([text] * len(items))

    return {name: lookup_of(view) for name, view in model.reading_views.items()}


def _field_lookup(view: Encoder, index: Index) -> TextLookup:
    field = view.field
    if field is None or field not in index.fields:
        return lambda items: view.tokenize([None] * len(items))
    return lambda items: view.tokenize(index.take(items).values(field))


def check_texts(model: ModelConfig, training: Sequence[Index]) -> None:
    """Refuse an experiment with a view that has nothing to read in the training utterances, given by stage.

    Raises:
        ConfigError: naming the view and its field.
    """
    for name, view in model.views.items():
        if view.text_field is None:
            continue
        if not any(_num_texts(index, view.text_field) for index in training):
            fields = ", ".join(training[0].fields)
            raise ConfigError(
                f"model.views.{name}.field must be a field with texts, but no training utterance has one in "
                f"{view.text_field!r} (the shards have {fields}); name another field or leave the view out"
            )


def text_notes(model: MetaSERNetwork, judged: Index) -> Iterator[str]:
    """Yield what a report must say of the texts that views read."""
    for name, view in model.reading_views.items():
        yield (
            f"the view {name!r} read the field {view.field!r} of {_num_texts(judged, view.field)} of the {len(judged)} "
            "utterances"
        )


def _num_texts(index: Index, field: str | None) -> int:
    if field is None or field not in index.fields:
        return 0
    return sum(text is not None and bool(str(text).strip()) for text in index.values(field))
