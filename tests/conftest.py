"""What holds for every test: checked types and shapes, reproducible examples, one thread, no network."""

from __future__ import annotations

import os

from hypothesis import settings
from jaxtyping import install_import_hook

# Set before torch or huggingface_hub is imported, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where tensors cross boundaries; elsewhere in shards mypy is enough.
install_import_hook(["metaser", "shards.batch", "shards.read"], "typechecking.checked")

settings.register_profile("reproducible", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("reproducible")
