"""`spannerlm bench` as a user meets it: table, document, mistakes, failures, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from spannerlm import cli
from spannerlm.bench import suites, tables
from spannerlm.bench.show import progress_line

ARGS = ["bench", "quick", "--environments", "tie", "--seeds", "2"]


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    """Run the command line within this process, in an empty folder: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["spannerlm", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capfd.readouterr()

    return run


def test_the_table_the_document_and_the_resumed_suite_say_the_same(call, tmp_path):
    status, out, err = call(*ARGS)
    assert status == 0
    assert sum(line.startswith("[") for line in err.splitlines()) == 6
    assert "[6/6] tie, " in err
    assert max(map(len, out.splitlines())) <= 80
    assert (tmp_path / "runs/bench-quick/suite.json").exists()
    status, text, err = call(*ARGS, "--json")
    assert (status, err) == (0, "")  # nothing was left to do
    shown = json.loads(text)
    assert (shown["suite"], shown["jobs"], shown["failed"]) == ("quick", 6, [])
    for record in shown["table"]:
        line = next(line for line in out.splitlines() if line.startswith(f" {record['variant']} "))
        assert f" {record['labels']['value']:.0f} [" in line
        assert f"{round(2 * record['reached'])}/2" in line
    assert call(*ARGS, "--quiet") == (0, "", "")


def test_an_infinity_is_text_in_the_document_and_a_sign_in_the_table(call, monkeypatch):
    block = suites.Block((suites.Task("tie", "tie", labels=20),), tables.RIVALS)
    monkeypatch.setitem(suites.SUITES, "quick", suites.Plan("note", (block,), 1, 20, "passive"))
    table = json.loads(call("bench", "quick", "--json")[1])["table"]
    assert table[0]["labels"] == {"value": "inf", "low": "inf", "high": "inf"}
    assert table[0]["ratio"] == {"value": None, "low": 0.0, "high": "inf"}
    assert "– [0, ∞]" in call("bench", "quick")[1]


def test_locks_are_counted_in_tokens(call):
    args = ["bench", "quick", "--environments", "gated-lock", "--explorers", "passive", "--seeds", "1", "--quiet"]
    status, text, _ = call(*args, "--json")
    record = json.loads(text)["table"][0]
    assert (status, record["tokens"]["value"]) == (0, 8 * record["draws"]["value"])  # H = 8 tokens a sequence
    _, out, _ = call(*args[:-1])
    assert "labels, tokens: until regret" in out
    assert "draws" not in out


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (
            ["quikc"],
            2,
            "Error: suite: expected one of quick, rivals, multi-turn, paper, got 'quikc': did you mean 'quick'?",
        ),
        (["quick", "--explorers", "pasive"], 2, "got 'pasive': did you mean 'passive'?"),
        (["quick", "--explorers", ","], 2, "explorers: expected at least one name, got none"),
        (["quick", "--seeds", "0"], 2, "--seeds"),
        (["quick", "--engine", "dask"], 2, "--engine"),
        ([], 2, "SUITE"),
        (["quick", "--out", "file"], 1, "Error: file/rows: could not be made"),
    ],
)
def test_a_users_mistake_gets_one_message_and_a_status(call, tmp_path, args, status, message):
    (tmp_path / "file").write_text("")
    found, out, err = call("bench", *args)
    assert (found, out) == (status, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_help_ends_with_examples(call):
    status, out, _ = call("bench", "--help")
    assert status == 0
    assert all(line.startswith("    spannerlm bench") for line in out.split("Examples:\n")[1].splitlines())


def test_a_failed_job_is_shown_even_when_quiet_and_makes_the_status_1(call, monkeypatch):
    broken = suites.Variant("passive", settings={"nope": 1}, name="broken")
    block = suites.Block((suites.Task("tie", "tie", labels=100),), (suites.Variant("passive"), broken))
    monkeypatch.setitem(suites.SUITES, "quick", suites.Plan("note", (block,), 1, 20, "passive"))
    status, out, err = call("bench", "quick")
    assert status == 1
    assert "0/0, 1 failed" in out
    assert "1 of 2 jobs failed" in out
    assert "tie, broken, seed 0: failed: " in err
    status, out, err = call("bench", "quick", "--json", "--quiet")
    assert (status, len(json.loads(out)["failed"])) == (1, 1)
    assert err.startswith("[2/2] tie, broken, seed 0: failed: ")
    assert err.count("\n") == 1


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path):
    command = [sys.executable, "-c", "from spannerlm.cli import main; main()", "bench", "rivals", "--out", "out"]
    command += ["--jobs", "1"]  # a worker that is still starting prints what Python prints, whatever we do
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for number in range(1, 4):
            assert process.stderr.readline().startswith(f"[{number}/")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: workers get it too
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.endswith("stopped; finished jobs are kept, the same command goes on\n")


def test_escape_codes_in_an_error_are_stripped():
    job = SimpleNamespace(task="\x1b[31mt", variant="v", seed=0)
    rows = SimpleNamespace(num_rows=1, slice=lambda _: SimpleNamespace(to_pylist=lambda: [{}]))
    line = progress_line(SimpleNamespace(job=job, rows=rows, number=1, total=2, error="E: \x1b[2Jx"))
    assert line == "[1/2] t, v, seed 0: failed: E: x"


def test_the_paper_suite_writes_its_page(call, tmp_path):
    args = ["bench", "paper", "--explorers", "passive,thompson", "--environments", "e: tie,f: tie", "--seeds", "1"]
    status, out, err = call(*args, "--out", "out")
    assert status == 0, err
    assert "page     out/paper.html" in out
    shown = json.loads((tmp_path / "out/paper.json").read_text())
    assert set(shown["claims"]) == {"c", "d", "e", "f"}  # (c) has the sign vectors, which need no rows
    assert {path.name for path in (tmp_path / "out/figures").glob("*.png")} == {
        f"{name}.png" for name in ("sign_vectors", "samplers", "harmless", "rivals")
    }
    assert "(e) " in (tmp_path / "out/paper.html").read_text()
    status, out, err = call("bench", "quick", "--rivals", "out")
    assert (status, out) == (2, "")
    assert "--rivals: expected the suite paper" in err
