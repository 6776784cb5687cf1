from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from metaser.provenance import installed_packages


def test_a_half_installed_package_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = installed_packages()
    assert expected["torch"] == version("torch")
    (tmp_path / "half-1.0.dist-info").mkdir()
    (tmp_path / "whole-2.0.dist-info").mkdir()
    (tmp_path / "whole-2.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: whole\nVersion: 2.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_packages() == expected | {"whole": "2.0"}
