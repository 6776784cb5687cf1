"""The commands that docs/getting-started.md shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "getting-started.md").read_text("utf-8")
COMMANDS = [
    shlex.split(line.replace("\\\n", " "), comments=True)[1:]
    for line in re.findall(r"^    (metaser (?:.*\\\n)*.*)$", PAGE, flags=re.MULTILINE)
]
IS_TEMPLATE = re.compile(r"[A-Z]{4,}|\[|^\.\.\.$")
RUNNABLE = [command for command in COMMANDS if not any(map(IS_TEMPLATE.search, command))]
"""Those without placeholders."""
