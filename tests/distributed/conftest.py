"""The tiny corpus, once for all tests with several processes."""

import pytest
from tinyruns import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("tiny"))
