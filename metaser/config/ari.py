"""The forms of ARI that `model.ari.form` chooses from; a new one is a module and a line here."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Strict
from pydantic_core import PydanticCustomError


class Form(NamedTuple):
    """What a form does after the encoder's layers, and whether between them, too."""

    integration: str
    """A `metaser.model.ari.Integration` as `MODULE:CLASS`."""
    is_dense: bool = False
    """Whether each layer hears all that precede it (`metaser.model.ari.DenseResiduals`)."""


ARI_FORMS: dict[str, Form] = {
    "none": Form("metaser.model.ari:LastLayer"),
    "weighted_sum": Form("metaser.model.ari:WeightedSum"),
    "normed_weighted_sum": Form("metaser.model.ari:NormedWeightedSum"),
    "task": Form("metaser.model.ari:TaskResiduals"),
    "dense": Form("metaser.model.ari:LastLayer", is_dense=True),
    "gated": Form("metaser.model.ari:GatedResiduals"),
    "dense+task": Form("metaser.model.ari:TaskResiduals", is_dense=True),
}
"""By the word that `model.ari.form` holds."""


def _check_form(name: str) -> str:
    if name not in ARI_FORMS:
        raise PydanticCustomError("unknown_form", "must be one of {known}", {"known": ", ".join(ARI_FORMS)})
    return name


AriForm = Annotated[str, Strict(), AfterValidator(_check_form)]
"""A form's name."""
