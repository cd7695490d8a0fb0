"""Functions in a worker: what goes in, what comes out, what becomes of those that hang, die, raise or are wrong."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from spannerlm.errors import InputError, RewardError
from spannerlm.records import Failed, Later, Unknown
from spannerlm.rewards import FunctionRaisedError, Raised, ask_comparison, ask_reward, is_pure
from spannerlm.sources.process import Killable

FILE = Path(__file__).with_name("worked_functions.py")


def worker(name: str, **options: Any) -> Killable:
    return Killable(f"{FILE}:{name}", **{"timeout_s": 30.0, **options})


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"  # a child of nobody may wait to be reaped


def gone(pid: int) -> bool:
    return any(not alive(pid) or time.sleep(0.05) for _ in range(100))


def test_a_worker_gives_what_the_function_gives() -> None:
    columns = {"level": [1, 2], "k": ["a", "b"]}
    with worker("lengths") as lengths:
        assert ask_reward(lengths, ["p", "p"], ["a", "bb"], columns) == [1.0, 2.0]
        assert not is_pure(lengths)
    with worker("slowly", pure=True) as slowly:
        assert ask_reward(slowly, ["p", "p"], ["a", "bb"], columns) == [1.0 + 8, 2.0 + 8]  # k and prompts
        assert is_pure(slowly)
    with worker("longer", by_item=True) as longer:
        assert ask_comparison(longer, ["p", "p"], ["a", "bb"], ["", "ccc"], columns) == [1.0, 0.0]
    with Killable("worked_functions:lengths", timeout_s=30.0) as module:
        assert ask_reward(module, ["p"], ["abc"], {}) == [3.0]


def test_texts_and_records_come_through_whole() -> None:
    texts = ["", "\x00", "\ud800", "é🙂", "\n\r\u2028", "x" * 3_000_000]
    with worker("echo") as echo:
        assert ask_reward(echo, ["p"] * 6, texts, {"seen": texts}) == [1.0] * 6
        assert ask_reward(echo, ["p"] * 6, texts, {"seen": texts[::-1]}) == [0.0] * 6
    with worker("everything") as everything:
        names = ["none", "int", "numpy", "decimal", "failed", "later", "unknown"]
        values = [None, 3.0, 0.5, 0.25, Failed("broken", False), Later(2.5, "busy"), Unknown("cut off", b"\xff\x00")]
        assert ask_reward(everything, ["p"] * 7, names, {}) == values


@pytest.mark.parametrize(
    ("wrong", "says"),
    [("nan", "expected a finite number, got nan"), ("true", r"got True \(bool\)"), ("text", r"got '1.0' \(str\)")],
)
@pytest.mark.parametrize("by_item", [False, True])
def test_a_wrong_reply_is_refused_and_kept(wrong: str, says: str, by_item: bool) -> None:
    with worker("everything", by_item=by_item) as everything:
        with pytest.raises(RewardError, match=says) as refused:
            ask_reward(everything, ["p", "p"], ["int", wrong], {})
        assert "3" in refused.value.reply
        assert not isinstance(refused.value, FunctionRaisedError)


def test_what_is_no_list_is_refused() -> None:
    with worker("moody") as moody, pytest.raises(RewardError, match=r"expected a list of 1 rewards, got 1\.0"):
        ask_reward(moody, ["p"], ["number"], {})


def test_what_raises_is_named_and_the_worker_stays() -> None:
    with worker("moody") as moody:
        [pid] = ask_reward(moody, ["p"], ["fine"], {})
        for text, says in (("raise", "the reward function raised KeyError: 'x'"), ("leave", "raised SystemExit: 0")):
            with pytest.raises(FunctionRaisedError, match=says):
                ask_reward(moody, ["p", "p"], ["fine", text], {})
        assert ask_reward(moody, ["p"], ["fine"], {}) == [pid]
    with worker("moody", by_item=True) as moody:
        found = ask_reward(moody, ["p"] * 3, ["fine", "raise", "fine"], {})
        assert found[0] == found[2]
        assert found[1] == Raised("the reward function raised KeyError: 'x'")


def test_what_hangs_is_killed_with_all_that_it_started_and_the_next_call_has_a_new_worker(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    for by_item in (False, True):
        with worker("moody", timeout_s=1.0, by_item=by_item) as moody:
            [first] = ask_reward(moody, ["p"], ["fine"], {})
            found = ask_reward(moody, ["p"] * 3, ["fine", f"hang {pids}", "fine"], {})
            hung = Unknown("no answer within 1 s")
            assert found[1] == hung
            assert all(gone(int(pid)) for pid in pids.read_text().split())
            if by_item:
                assert found[0] == first != found[2]
            else:
                assert found == [hung] * 3
            [later] = ask_reward(moody, ["p"], ["fine"], {})
            assert isinstance(later, float)
            assert later != first


def test_what_dies_is_unknown_and_failed_where_it_is_pure(monkeypatch: pytest.MonkeyPatch) -> None:
    died = "the worker died without an answer (exit status 7)"
    with worker("moody") as moody:
        assert ask_reward(moody, ["p"], ["die"], {}) == [Unknown(died)]
        [pid] = ask_reward(moody, ["p"], ["fine"], {})
        assert isinstance(pid, float)
        os.kill(int(pid), signal.SIGKILL)  # between two calls: nothing had been asked
        assert moody._worker is not None
        moody._worker.process.wait()
        assert isinstance(ask_reward(moody, ["p"], ["fine"], {})[0], float)
        monkeypatch.setattr(moody._worker.process, "poll", lambda: None)  # it dies just after somebody has looked
        moody._worker.process.kill()
        moody._worker.process.wait()
        assert ask_reward(moody, ["p"], ["fine"], {}) == [Later(0.0, "the worker died before it was asked")]
        assert isinstance(ask_reward(moody, ["p"], ["fine"], {})[0], float)
    with worker("moody", pure=True) as moody:
        assert ask_reward(moody, ["p"], ["die"], {}) == [Failed(died)]


def test_workers_end_with_whoever_started_them() -> None:
    moody = worker("moody")
    [pid] = ask_reward(moody, ["p"], ["fine"], {})
    assert isinstance(pid, float)
    del moody
    gc.collect()
    assert gone(int(pid))
    code = f"""
import os, signal
from spannerlm.sources.process import Killable
print(Killable({f"{FILE}:moody"!r}, timeout_s=30.0)(["p"], ["fine"]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert gone(int(float(done.stdout.strip("[]\n"))))


@pytest.mark.parametrize(
    ("reference", "timeout_s", "says"),
    [
        ("reward", 1.0, "reference: expected path/to/file.py:function or module:function, got 'reward'"),
        ("nowhere.py:f", 1.0, "expected a Python file, found no nowhere.py"),
        (f"{FILE}:lengths", 0.0, "timeout_s: expected a positive number of seconds, got 0.0"),
        (f"{FILE}:lengths", float("nan"), "timeout_s"),
        (f"{FILE}:lengths", True, "timeout_s"),
    ],
)
def test_bad_arguments_are_named(reference: str, timeout_s: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Killable(reference, timeout_s=timeout_s)


def test_a_function_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "gone.py").write_text("import os\nos._exit(4)")
    for reference, says in (
        (f"{FILE}:nothing", "could not be loaded: AttributeError.*'nothing'"),
        (f"{FILE}:FILE", "AttributeError"),
        ("no_such_module:f", "could not be loaded: ModuleNotFoundError"),
        (f"{tmp_path}/broken.py:f", "could not be loaded: ZeroDivisionError"),
        (f"{tmp_path}/gone.py:f", r"did not start: the worker died without an answer \(exit status 4\)"),
    ):
        with pytest.raises(RewardError, match=says):
            ask_reward(Killable(reference, timeout_s=5.0), ["p"], ["a"], {})
