"""A referee for each test."""

import pytest
from referees import Referee


@pytest.fixture
def referee(tmp_path):
    with Referee(tmp_path) as started:
        yield started
