"""The tiny corpus, once for all tests with several processes."""

import pytest
from tinyruns import make_corpus, pack_demo


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def demo_shards(tmp_path_factory):
    return pack_demo(tmp_path_factory.mktemp("demo") / "shards")
