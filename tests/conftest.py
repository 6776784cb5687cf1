"""What holds for every test: nothing of the machine is seen, shapes are checked, examples are reproducible."""

from __future__ import annotations

from hermetic import hide, show, show_cluster

# Before torch or huggingface_hub is imported; the processes that tests start inherit it.
hide()

import gc  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Where tensors cross boundaries; elsewhere in shards mypy is enough.
install_import_hook(["metaser", "shards.batch", "shards.read"], "typechecking.checked")

settings.register_profile("reproducible", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("reproducible")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Show what the chosen tests are about, and start what they fork from."""
    marks = {mark.name for item in session.items for mark in item.iter_markers()}
    if "cluster" in marks:
        show_cluster()
    elif "ffmpeg" in marks:
        show(("ffmpeg", "ffprobe"))
    if any({"integration", "distributed", "slurm"} & {*item.path.parts} for item in session.items):
        from tinyruns import start_server

        start_server(with_deepspeed="distributed" in marks)
    # A training ends with two collections, 0.6 s each over what is imported here.
    gc.collect()
    gc.freeze()
