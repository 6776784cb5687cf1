"""SLURM's commands as shell scripts, for what can be seen without a cluster: they keep the queue in a file."""

from __future__ import annotations

import os
from pathlib import Path

_SCRIPTS = {
    "sbatch": """
case "$1" in
  --version) echo "slurm 23.11"; exit ;;
  --test-only)
    cat > "$FOLDER/tested.sh"
    if [ -e "$FOLDER/refuse" ]; then echo "allocation failure: $(cat "$FOLDER/refuse")" >&2; exit 1; fi
    exit ;;
esac
if [ -e "$FOLDER/refuse-real" ]; then echo "sbatch: error: $(cat "$FOLDER/refuse-real")" >&2; exit 1; fi
if [ -e "$FOLDER/on-submit" ]; then . "$FOLDER/on-submit"; fi
number=$((100 + $(wc -l < "$FOLDER/queue")))
echo "$number|$1" >> "$FOLDER/queue"
echo "Submitted batch job $number"
""",
    "squeue": """
case "$*" in
  *%o*) cat "$FOLDER/queue" ;;
  *)
    while IFS="|" read -r number script; do
      # An array's tasks, whether or not it is one.
      for name in "$number" "${number}_0" "${number}_1" "${number}_2" "${number}_3" "${number}_4" "${number}_5"; do
        echo "$number|$name|PENDING"
      done
    done < "$FOLDER/queue"
    ;;
esac
""",
    "scancel": """
for number in "$@"; do sed -i "/^$number|/d" "$FOLDER/queue"; done
""",
    "sinfo": """
case "$*" in
  *--Node*) ;;
  *) echo "main|(null)|2" ;;
esac
""",
    "srun": "exit 1",
}


class FakeSlurm:
    """A queue that never starts anything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        (folder / "queue").touch()
        for name, text in _SCRIPTS.items():
            path = folder / "bin" / name
            path.write_text(f"#!/bin/sh\nFOLDER={folder}\n{text.strip()}\n")
            path.chmod(0o755)

    @property
    def path(self) -> str:
        """What PATH must be."""
        return f"{self.folder / 'bin'}:/usr/bin:/bin"

    def __call__(self) -> None:
        """Put the commands first on the PATH of this process for good."""
        os.environ["PATH"] = self.path
        os.environ.pop("SLURM_CONF", None)

    @property
    def queue(self) -> list[str]:
        """The ids of the jobs that wait."""
        return [line.split("|")[0] for line in (self.folder / "queue").read_text().splitlines()]

    def says(self, name: str, text: str) -> None:
        """Write the file `name` that a script looks at: `refuse`, `refuse-real`, `on-submit`."""
        (self.folder / name).write_text(text)
