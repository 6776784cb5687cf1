"""The run-time type checker of the tests: beartype, which like PEP 484 and mypy takes an int for a float."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
