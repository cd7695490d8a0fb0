"""A ledger in memory and one on disk: the tests of the contract run on both."""

import pytest
from ledgers import META, PROMPTS, quick_folder

from spannerlm.ledger import Ledger


@pytest.fixture(params=["memory", "disk"])
def place(request, tmp_path):
    if request.param == "memory":
        yield None
        return
    with quick_folder(tmp_path) as folder:
        yield folder / "run"


@pytest.fixture
def ledger(place):
    with Ledger.open(place, meta=META, prompts=PROMPTS) as opened:
        yield opened
