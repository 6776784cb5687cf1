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
    return lambda items: view.tokenize(_texts(index.take(items), field, view.view))


def _texts(index: Index, field: str, view: str) -> list[str | None]:
    """Return the texts in `field`.

    Raises:
        ConfigError: if it holds something else.
    """
    values = index.values(field)
    for value in values:
        if value is not None and not isinstance(value, str):
            raise ConfigError(
                f"model.views.{view}.field must be a field with texts, but {field!r} of the shards holds {value!r}; "
                "name another field, or pack it as text"
            )
    return values


def check_texts(model: ModelConfig, training: Sequence[Index]) -> None:
    """Refuse an experiment with a view that has nothing to read in the training utterances, given by stage.

    Raises:
        ConfigError: naming the view and its field.
    """
    for name, view in model.views.items():
        if view.text_field is None:
            continue
        if not any(_num_texts(index, view.text_field, name) for index in training):
            fields = ", ".join(training[0].fields)
            raise ConfigError(
                f"model.views.{name}.field must be a field with texts, but no training utterance has one in "
                f"{view.text_field!r} (the shards have {fields}); name another field or leave the view out"
            )


def text_notes(model: MetaSERNetwork, judged: Index) -> Iterator[str]:
    """Yield what a report must say of the texts that views read."""
    for name, view in model.reading_views.items():
        num_texts = _num_texts(judged, view.field, name)
        yield f"the view {name!r} read the field {view.field!r} of {num_texts} of the {len(judged)} utterances"


def _num_texts(index: Index, field: str | None, view: str) -> int:
    if field is None or field not in index.fields:
        return 0
    return sum(bool((text or "").strip()) for text in _texts(index, field, view))
