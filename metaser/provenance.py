"""Which code ran."""

from __future__ import annotations

import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any


def installed_packages() -> dict[str, str]:
    """Return the versions of all installed packages by name; what an interrupted pip left behind has none."""
    # Each access to a package's `metadata` parses its file anew.
    found = [package.metadata for package in distributions()]
    return dict(sorted((str(one["Name"]), str(one["Version"])) for one in found if one["Name"]))


def git_state() -> dict[str, Any] | None:
    """Return the commit that this code lies in and its difference from that, None outside a repository."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(folder), *arguments]
            # A difference may hold files of any encoding.
            done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        except FileNotFoundError:
            return None
        return done.stdout if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    # An installed package inside someone else's repository is not that repository's code.
    if commit is None or git("ls-files", "--error-unmatch", __file__) is None:
        return None
    return {"commit": commit.strip(), "diff": git("diff", "HEAD", "--", str(folder.parent))}
