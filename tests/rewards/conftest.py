"""Workers of one test must not survive into the next."""

import pytest

from r1llama.rewards import algebra


@pytest.fixture
def fresh_workers():
    algebra.shutdown()
    yield
    algebra.shutdown()
