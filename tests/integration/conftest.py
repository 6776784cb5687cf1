"""One packed corpus and one finished run for all tests here; signal handlers are put back after each."""

import signal

import pytest
from tinyruns import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def finished(corpus, tmp_path_factory):
    """A run that nothing interrupted."""
    return corpus.train(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(autouse=True)
def _handlers():
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
