"""Metadata fields that views are given: texts and numbers of utterances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from metaser.errors import ConfigError
from shards.errors import FilterError

if TYPE_CHECKING:
    from shards.index import Index


def texts_in(index: Index, field: str, *, setting: str) -> list[str | None]:
    """Return the texts in `field`, None where there is none; shards without the field have no text.

    Args:
        index: The utterances.
        field: The field's name.
        setting: The view in the experiment, for the message.

    Raises:
        ConfigError: The field holds something else.
    """
    if field not in index.fields:
        return [None] * len(index)
    values = index.values(field)
    for value in values:
        if value is not None and not isinstance(value, str):
            raise ConfigError(
                f"{setting}.field must be a field with texts, but {field!r} of the shards holds {value!r}; "
                "name another field, or pack it as text"
            )
    return values


def numbers_in(index: Index, fields: Sequence[str], *, setting: str) -> np.ndarray:
    """Return the numbers in `fields`, shape (num_utterances, num_fields), NaN where there is none.

    Shards without a field have no number in it. The arguments are those of `texts_in`.

    Raises:
        ConfigError: A field holds something else.
    """
    there = [field for field in fields if field in index.fields]
    numbers_UV = np.full((len(index), len(fields)), np.nan)
    try:
        numbers_UV[:, [fields.index(field) for field in there]] = index.number_table(there)
    except FilterError as error:
        raise ConfigError(f"{setting}.fields must be fields with numbers, but {error}; leave it out") from error
    return numbers_UV
