"""What commands owe the terminal: statuses, one document on standard output, Ctrl-C, the hint that a run goes on."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import typer
from rich.console import Console

from spannerlm.errors import ConfigError, LedgerError, ModelError, RewardError
from spannerlm.live import LiveView
from spannerlm.progress import Progress
from spannerlm.terminal import Interrupts, boundary, kept, print_json, reserved_stdout


def outcome(error, capfd, as_json=False):
    """(exit status, standard output, standard error) of a command that ends with this error."""
    with pytest.raises(typer.Exit) as ended, boundary(as_json):
        raise error
    return ended.value.exit_code, *capfd.readouterr()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("wrong"), 2, "Error: wrong\n"),
        (ModelError("no \x1b[31mmodel"), 1, "Error: no model\n"),
        (LedgerError("lost"), 1, "Error: lost\n"),
        (OSError(errno.EACCES, "Permission denied", "/x"), 1, "Error: /x: Permission denied\n"),
        (MemoryError(), 1, "Error: out of memory; lower generation.batch_size or max_prompts\n"),
        (KeyboardInterrupt("stopped; nothing is lost"), 130, "stopped; nothing is lost\n"),
    ],
)
def test_each_failure_has_its_status_and_one_message(capfd, error, status, message):
    assert outcome(error, capfd) == (status, "", message)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_that_nothing_is_lost(capfd, number):
    status, _, err = outcome(OSError(number, os.strerror(number), "runs/x"), capfd)
    assert status == 1
    assert err == f"Error: runs/x: {os.strerror(number)}; make room, nothing is lost and `spannerlm resume` goes on\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), boundary(False):
        raise ZeroDivisionError


def test_a_failure_is_one_document_where_one_is_wanted(capfd):
    _, out, _ = outcome(ModelError("no é model"), capfd, as_json=True)
    assert json.loads(out) == {"error": {"type": "ModelError", "message": "no é model"}}
    assert out.isascii()


def test_whoever_reads_may_stop_reading():
    code = (
        "from spannerlm.terminal import *\n"
        "import typer\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def many():\n"
        "    with boundary(False), reserved_stdout(False) as console:\n"
        "        print_lines(console, ['line'] * 100_000)\n"
        "app()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 1


def test_with_json_standard_output_is_kept_for_the_document(capfd):
    with reserved_stdout(True) as console:
        print("from Python")
        os.write(1, b"from below\n")
        print_json(console, {"a": (1, float("nan")), "b": np.array([1.5, np.inf]), "c": np.float64(2), "d": "\ud800"})
    print("afterwards")
    out, err = capfd.readouterr()
    document, _, rest = out.partition("}\n")
    assert json.loads(document + "}") == {"a": [1, None], "b": [1.5, None], "c": 2.0, "d": "\ud800"}
    assert rest == "afterwards\n"
    assert sorted(err.splitlines()) == ["from Python", "from below"]


def test_an_error_that_can_be_mended_says_how_the_run_goes_on(tmp_path, capfd):
    def fail():
        with kept(tmp_path):
            raise RewardError("reward 0: NaN")

    with pytest.raises(typer.Exit), boundary(False):
        fail()
    assert capfd.readouterr().err == "Error: reward 0: NaN\n"
    (tmp_path / "run.db").touch()
    with pytest.raises(typer.Exit), boundary(False):
        fail()
    assert f"`spannerlm resume {tmp_path}` goes on" in capfd.readouterr().err


@pytest.fixture
def view():
    with open(os.devnull, "w") as file:
        yield LiveView(Console(file=file))


@pytest.fixture
def restored():
    """Whatever a test does to Ctrl-C is undone."""
    former = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, former)


def press():
    signal.raise_signal(signal.SIGINT)


def run(directory, view, before, after=None):
    """A run that is interrupted after one record, and would go on to another."""
    with Interrupts(directory, view) as observer:
        observer(before)
        press()
        observer(after)


def test_before_the_first_draw_ctrl_c_stops_at_once(tmp_path, view, restored, capfd):
    with pytest.raises(KeyboardInterrupt, match="stopped before anything was drawn or bought"):
        run(tmp_path, view, Progress("load the model", 0, 0, 100))
    assert capfd.readouterr().err == ""


def test_after_it_the_next_record_stops_the_run(tmp_path, view, restored, capfd):
    (tmp_path / "run.db").touch()
    with pytest.raises(KeyboardInterrupt, match="stopped; nothing is lost"):
        run(tmp_path, view, Progress("draw", 64, 0, 100), Progress("label", 64, 20, 100))
    assert capfd.readouterr().err == "stopping after the request at hand; Ctrl-C again stops at once\n"


def test_a_run_that_ends_gives_ctrl_c_back(tmp_path, view):
    former = signal.getsignal(signal.SIGINT)
    with Interrupts(tmp_path, view):
        assert signal.getsignal(signal.SIGINT) != former
    assert signal.getsignal(signal.SIGINT) == former


def test_whoever_ignores_ctrl_c_goes_on_doing_so(tmp_path, view, restored):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run(tmp_path, view, Progress("draw", 64, 0, 100), Progress("draw", 128, 0, 100))
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
