"""Give damaged and hostile input to everything that MetaSER reads, and count what comes of it.

    python tests/fuzz --seconds 300                     # all areas, on all cores
    python tests/fuzz --areas best,audio --runs 1000 --keep /tmp/kept
    python tests/fuzz --replay /tmp/kept/best-0-17      # one case again

A case is decided by its area, the seed and its number. It must end in success with the right answer, or in one sentence
and exit code 2, within 10 s and 2 GiB. Exit code 1 if one did not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

# The tests' own modules are imported by their names.
sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from hermetic import hide  # noqa: E402


def main() -> int:
    """Run what the command line says."""
    hide()
    from tinyruns import start_server

    from fuzz.areas import AREAS
    from fuzz.engine import FAILURES, fuzz, prepare, replay, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="for all areas together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--areas", default=",".join(AREAS), help=f"of {', '.join(AREAS)}")
    parser.add_argument("--runs", type=int, help="at most so many of each area")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at the same time")
    parser.add_argument("--keep", type=Path, help="folder for the cases that fail")
    parser.add_argument("--replay", type=Path, help="a case in such a folder, judged again")
    options = parser.parse_args()
    if options.replay is not None:
        options.areas = options.replay.name.partition("-")[0]
    unknown = set(options.areas.split(",")) - set(AREAS)
    if unknown:
        parser.error(f"--areas must be of {', '.join(AREAS)}, got {', '.join(sorted(unknown))}")
    makers = [AREAS[name] for name in options.areas.split(",")]
    with tempfile.TemporaryDirectory(prefix="metaser-fuzz-") as folder:
        base = Path(folder)
        start_server()
        prepare(makers, base)
        if options.replay is not None:
            verdict = replay(makers, options.replay.resolve(), base)
            print(f"{verdict.outcome}, {verdict.peak_mib:.0f} MiB, {verdict.seconds:.1f} s\n{verdict.detail}")
            return int(verdict.outcome in FAILURES)
        tallies = fuzz(
            makers,
            base,
            seed=options.seed,
            seconds=options.seconds,
            jobs=options.jobs,
            most_runs=options.runs,
            kept=None if options.keep is None else options.keep.resolve(),
            say=partial(print, file=sys.stderr, flush=True),
        )
    print(table(tallies))
    return int(any(tally.failures for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
