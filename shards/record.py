"""The base of settings and records: frozen pydantic models that are closed to unknown keys."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Base of every section and record: unknown keys and endless numbers are refused, and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_whole_numbers(self) -> Self:
        for name, value in self:
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError(f"{name} must be less than 2^63, got a number of {value.bit_length()} bits")
        return self
