"""The local two-node cluster must be up (slurm/local/up.sh): `make cluster` and `.ci/run` see to it."""

import os
import subprocess

import pytest
from clusterjobs import cancelled_at_the_end
from tinyruns import make_corpus, make_demo, pack_demo


@pytest.fixture(scope="session", autouse=True)
def _cluster():
    found = subprocess.run(["sinfo", "--noheader", "--format=%N"], capture_output=True, text=True)
    assert "metaser[1-2]" in found.stdout, (
        f"run `make cluster`: {found.stderr} SLURM_CONF={os.environ.get('SLURM_CONF')}"
    )


@pytest.fixture(autouse=True)
def _empty_queue():
    with cancelled_at_the_end():
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Return the embedded corpus and the demo's experiment, cut to a few steps."""
    folder = tmp_path_factory.mktemp("demo")
    return make_demo(folder, pack_demo(folder / "shards"), steps=8)
