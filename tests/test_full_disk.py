"""A disk that fills up during a run: a clear error, nothing lost, and the run goes on when there is room (fault 4)."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from spannerlm.ledger import Ledger

SETTINGS = ["labels=20", "batch=10", "max_prompts=6", "draws=600", "evaluation.draws=64", "evaluation.max_prompts=4"]


def spannerlm(*args: str, room: int | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, no file of which may grow beyond ``room`` bytes."""

    def limit() -> None:
        if room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    command = [str(Path(sys.executable).with_name("spannerlm")), *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, preexec_fn=limit)


SETS = [part for s in (*SETTINGS, "baselines=false") for part in ("--set", s)]
ROOMS = [20_000, 60_000, 90_000] if os.environ.get("SPANNERLM_SOAK") else [20_000, 90_000]


def exported(directory: Path) -> list[str]:
    with Ledger.open(directory, read_only=True) as ledger:
        return list(ledger.export())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The canonical ledger of the run that had room."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    whole = spannerlm("run", *SETS, "--out", str(directory))
    assert whole.returncode == 0, whole.stderr
    return exported(directory)


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_a_full_disk_loses_nothing(room: int, undisturbed: list[str], tmp_path: Path) -> None:
    broken = spannerlm("run", *SETS, "--out", str(tmp_path / "run"), room=room)
    assert broken.returncode == 1, broken.stderr
    assert "Traceback" not in broken.stderr
    assert "room" in broken.stderr or "space" in broken.stderr, broken.stderr
    assert Ledger.verify(tmp_path / "run").ok
    resumed = spannerlm("resume", str(tmp_path / "run"))
    assert resumed.returncode == 0, resumed.stderr
    assert exported(tmp_path / "run") == undisturbed
