"""The tiny corpus, once for all tests with several processes, and the server that these are forked from."""

import pytest
from tinyruns import make_corpus, start_server


@pytest.fixture(scope="session", autouse=True)
def _server():
    start_server(with_deepspeed=True)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("tiny"))
