"""The command line: what it refuses and how, and a real run that is interrupted, resumed, reported, sampled, copied.

The model, the ledger and the signals are the real ones. One run is shared by most tests, because loading takes seconds.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spannerlm import cli
from spannerlm.ledger import Ledger

COMMAND = [sys.executable, "-c", "from spannerlm.cli import main; main()"]
SMALL = [
    "--set=max_prompts=4",
    "--set=evaluation.max_prompts=3",
    "--set=evaluation.draws=32",
    "--set=task=helpdesk",
    "--set=reward=reward.py:score",
    "--set=batch=4",
    "--labels=12",
    "--eval-labels=4",
]
REWARD = """
import os, pathlib, time

def score(prompts, completions):
    print("noise on standard output")
    os.write(1, b"noise from below\\n")
    with open("charged.txt", "a") as file:
        file.writelines(f"{p!r} {c!r}\\n" for p, c in zip(prompts, completions))
    time.sleep(float(os.environ.get("SLEEP", "0")))
    return [float("seven" in c) + 0.1 * len(c.split()) for c in completions]
"""


def started(folder, *args, **environment):
    """The command as a process of its own, its output in pipes."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen([*COMMAND, *map(str, args)], cwd=folder, env=env, text=True, **pipes)


def finished(process, limit=120):
    """(exit status, standard output, standard error)"""
    out, err = process.communicate(timeout=limit)
    return process.returncode, out, err


def wait_for(path, process, limit=120):
    end = time.monotonic() + limit
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    """Run the command line within this process, in an empty folder: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["spannerlm", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capfd.readouterr()

    return run


# --- parsing and refusing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "resume", "report", "sample", "verify", "backup"])
def test_help_ends_with_examples_of_this_command(call, command):
    status, out, err = call(command, "--help")
    assert (status, err) == (0, "")
    examples = out.split("Examples:\n")[1].splitlines()
    assert all(line.startswith(f"    spannerlm {command}") for line in examples)


def test_help_and_version_need_no_torch_and_no_sklearn():
    code = (
        "import sys; from spannerlm import cli; sys.argv = ['spannerlm', '--version']\n"
        "try: cli.main()\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"spannerlm \d+\.\d+\.\d+\S*\n\[\]\n", done.stdout)


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["run", "--labls", "3"], 2, "--labels"),
        (["nonsense"], 2, "nonsense"),
        (["run", "--labels", "many"], 2, "Error: --set labels: expected a whole number, got 'many' (text)\n"),
        (["run", "--labels", "0"], 2, "Error: --set labels: expected a number of at least 1, got 0 (a whole number)"),
        (["run", "--explorer", "pasive"], 2, "got 'pasive' (text); did you mean 'passive'?"),
        (["run", "--set", "labels"], 2, "Error: --set labels: expected key=value, for example labels=200"),
        (["run", "kl=1"], 2, "put --set before each KEY=VALUE"),
        (["run", "missing.yaml"], 2, "Error: missing.yaml: expected a configuration file in YAML, could not read it"),
        (
            ["run", "bad.yaml"],
            2,
            "Error: bad.yaml: 2 mistakes\n  bad.yaml:2: labls: unknown key; did you mean 'labels'?\n",
        ),
        (["run", "--out", "bad.yaml"], 1, "Error: bad.yaml: expected a directory, found a file"),
        (["run", "--out", "/proc/x"], 1, "Error: /proc/x: No such file or directory"),
        (["run", "own.yaml"], 1, "prompts.jsonl:2: prompt: expected text, got 3 (int)"),
        (["resume", "nowhere"], 1, "Error: nowhere: expected the directory of a run, found none"),
        (["resume", "empty"], 1, "Error: empty: expected a run directory, found no config.yaml in it"),
        (["resume", "empty", "--in-doubt", "maybe"], 2, "maybe"),
        (["report", "emty"], 1, "did you mean 'empty'?"),
        (["sample", "empty", "--prompt", "x"], 1, "found no run.db in it"),
        (["sample", "empty", "-n", "0", "--prompt", "x"], 2, "-n"),
        (["backup", "empty", "file"], 1, "found no run.db in it"),
    ],
)
def test_a_users_mistake_gets_one_message_a_status_and_no_traceback(call, tmp_path, args, status, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yaml").write_text("kl: 1\nlabls: 3\nseed: x\n")
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "fine"}\n{"prompt": 3}\n')
    (tmp_path / "own.yaml").write_text("model: ./empty\nprompts: prompts.jsonl\nreward: reward.py:score\n")
    found, out, err = call(*args)
    assert (found, out) == (status, "")
    assert message in err
    assert "Traceback" not in err
    assert list((tmp_path / "runs").glob("*")) == []  # nothing is left behind


def test_with_json_an_error_is_a_document_too(call):
    status, out, err = call("run", "--set", "labls=3", "--json")
    message = "--set labls: unknown key; did you mean 'labels'?"
    assert (status, json.loads(out)) == (2, {"error": {"type": "ConfigError", "message": message}})
    assert err == f"Error: {message}\n"


def test_escape_codes_in_a_message_are_stripped(call):
    status, _, err = call("report", "\x1b[31mred")
    assert (status, err) == (1, "Error: red: expected the directory of a run, found none\n")


# --- a run of its own -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    (folder / "reward.py").write_text(REWARD)
    return folder


@pytest.fixture(scope="module")
def stopped(home):
    """A run that Ctrl-C stopped during its first purchase: (exit status, standard output, standard error)."""
    process = started(home, "run", *SMALL, "--json", SLEEP="1")
    wait_for(home / "charged.txt", process)
    process.send_signal(signal.SIGINT)
    return finished(process)


@pytest.fixture(scope="module")
def resumed(home, stopped):
    """That run, resumed to its end: (exit status, standard output, standard error)."""
    return finished(started(home, "resume", "runs/helpdesk-1", "--json"))


@pytest.fixture
def at_home(call, home, resumed, monkeypatch):
    """`call`, in the folder with the finished run."""
    monkeypatch.chdir(home)
    return call


def test_the_first_ctrl_c_lets_the_purchase_at_hand_be_recorded(home, stopped):
    status, out, err = stopped
    assert status == 130
    assert "stopping after the request at hand; Ctrl-C again stops at once" in err
    assert err.endswith("stopped; nothing is lost; `spannerlm resume runs/helpdesk-1` goes on\n")
    assert json.loads(out)["error"]["type"] == "KeyboardInterrupt"
    assert "Traceback" not in err


def test_resume_goes_on_buys_nothing_twice_and_prints_one_document(home, resumed):
    status, out, err = resumed
    assert status == 0, err
    report = json.loads(out)
    charged = (home / "charged.txt").read_text().splitlines()
    assert len(charged) == len(set(charged)) == report["counts"]["labels"] + report["counts"]["eval_labels"]
    assert len(charged) <= 12
    assert report["directory"] == "runs/helpdesk-1"
    assert err.count("noise on standard output") == err.count("noise from below") > 0


def test_the_run_directory_holds_what_it_should(home, resumed):
    assert resumed[0] == 0
    held = {path.name for path in (home / "runs/helpdesk-1").iterdir()}
    assert held >= {"run.db", "config.yaml", "policy.safetensors", "policy.json", "report.json", "report.html", "draws"}


def test_report_shows_the_table_within_80_columns_and_the_same_as_json(at_home, home, resumed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = at_home("report", "runs/helpdesk-1")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    for part in ("base model", "directed", "prompt", "before", "after", "report.html", "time"):
        assert part in out
    status, out, _ = at_home("report", "runs/helpdesk-1", "--json")
    assert (status, json.loads(out)["counts"]) == (0, json.loads(resumed[1])["counts"])


def test_a_directory_with_a_run_is_not_run_again(at_home):
    status, _, err = at_home("run", "--out", "runs/helpdesk-1")
    assert status == 1
    assert "`spannerlm resume runs/helpdesk-1` goes on with it" in err


def test_verify_tells_a_whole_run_from_a_damaged_one(at_home, home, tmp_path):
    status, out, _ = at_home("verify", "runs/helpdesk-1")
    assert status == 0
    assert out.endswith("all as it was written\n")
    damaged = shutil.copytree(home / "runs/helpdesk-1", tmp_path / "damaged")
    shard = sorted((damaged / "draws").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    status, out, _ = at_home("verify", damaged, "--json")
    assert status == 1
    assert not json.loads(out)["ok"]
    assert shard.name in json.loads(out)["problems"][0]


def test_backup_makes_one_file_and_overwrites_none(at_home, tmp_path):
    status, out, _ = at_home("backup", "runs/helpdesk-1", tmp_path / "copy", "--json")
    assert (status, json.loads(out)["bytes"]) == (0, (tmp_path / "copy").stat().st_size)
    status, _, err = at_home("backup", "runs/helpdesk-1", tmp_path / "copy")
    assert status == 1
    assert "expected a file that does not exist yet" in err


def test_run_learns_from_comparisons(call, tmp_path):
    small = [setting for setting in SMALL if setting.startswith("--set=") and "reward" not in setting]
    status, out, err = call("run", *small, "--labels=60", "--set", "feedback=comparison", "--out", "pairs", "--json")
    assert status == 0, err
    report = json.loads(out)
    assert report["counts"]["labels"] == 60
    assert report["feedback"] == "comparison"
    assert list(report["baselines"]) == ["random comparisons"]
    assert (tmp_path / "pairs" / "report.html").exists()
    with Ledger.open(tmp_path / "pairs", read_only=True) as ledger:
        assert ledger.counts.labels == 60


def test_in_doubt_ask_has_nothing_to_ask_where_nothing_is_in_doubt(home, resumed):
    assert cli._ask(Path(home, "runs/helpdesk-1")) is None


def test_sample_draws_from_the_learned_policy(at_home, home):
    (home / "prompts.txt").write_text("my printer is hot ;\n")
    args = ["--prompt", "my printer is hot ;", "--prompts", "prompts.txt", "-n", 2, "--seed", 3, "--json"]
    status, out, err = at_home("sample", "runs/helpdesk-1", *args)
    assert status == 0, err
    samples = json.loads(out)["samples"]
    assert [row["prompt"] for row in samples] == ["my printer is hot ;"] * 2
    assert all(len(row["responses"]) == 2 and row["draws"] >= 2 for row in samples)


def test_the_second_ctrl_c_ends_the_process_at_once_and_what_was_asked_for_is_in_doubt(tmp_path, monkeypatch, capfd):
    (tmp_path / "reward.py").write_text(REWARD)
    process = started(tmp_path, "run", *SMALL, "--out", "run", SLEEP="300")
    wait_for(tmp_path / "charged.txt", process)
    process.send_signal(signal.SIGINT)
    assert "stopping after the request at hand" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    status, _, err = finished(process, limit=10)
    assert status == 130
    assert "noise" not in err
    assert err == "stopped; nothing is lost; `spannerlm resume run` goes on\n"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["spannerlm", "resume", "run", "--in-doubt", "ask"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "expected a terminal to ask on; give --in-doubt rebuy or --in-doubt drop" in capfd.readouterr().err
