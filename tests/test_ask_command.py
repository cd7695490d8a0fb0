"""`spannerlm ask`, `tell`, `add` and `restore`: real files, a real run on the bundled model, what is refused."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from test_cli import call  # noqa: F401

from spannerlm import cli
from spannerlm.errors import LedgerError
from spannerlm.ledger import Ledger

SMALL = ["--set=labels=12", "--set=batch=4", "--set=draws=4000"]
ODD = ["a\0b", "\U0001f600 שלום", 'say "no",\r\nthen', "=1+1", "-3", "'=x", "\x1b[31mred", ""]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with a run whose first four questions are in queries.jsonl; the tests work on copies of it."""
    folder = tmp_path_factory.mktemp("begun")
    code = "from spannerlm.cli import main; main()"
    args = ["ask", "run", *SMALL, "-n", "4", "--out", "queries.jsonl"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "4 questions in queries.jsonl; labels left of the budget: 8\n"
        "`spannerlm tell run queries.jsonl` takes the answers, once each value is filled in\n"
    )
    return folder


@pytest.fixture
def at(call, begun, tmp_path, monkeypatch):  # noqa: F811
    """`call`, in a folder with a copy of the run."""
    shutil.copytree(begun, tmp_path / "at")
    monkeypatch.chdir(tmp_path / "at")
    return call


def read(name):
    with open(name, encoding="utf-8", newline="") as file:
        return [json.loads(line) for line in file] if name.endswith("jsonl") else list(csv.DictReader(file))


def write(name, rows):
    with open(name, "w", encoding="utf-8", newline="") as file:
        if name.endswith("jsonl"):
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return name


def export(folder="run"):
    with Ledger.open(folder, read_only=True) as ledger:
        return list(ledger.export())


# --- ask ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ask", "tell", "add", "restore"])
def test_help_ends_with_examples_of_this_command(call, command):  # noqa: F811
    status, out, err = call(command, "--help")
    assert (status, err) == (0, "")
    assert all(line.startswith(f"    spannerlm {command}") for line in out.split("Examples:\n")[1].splitlines())


def test_a_new_run_has_its_configuration_beside_it_and_is_gone_on_with_without_one(at):
    rows = read("queries.jsonl")
    assert [list(row) for row in rows] == [["id", "prompt", "response", "worker", "value"]] * 4
    assert {row["value"] for row in rows} == {None}
    with open("run/config.yaml") as file:
        text = file.read()
    assert "labels: 12\n" in text
    assert "task: helpdesk\n" in text
    status, out, _ = at("ask", "run", "-n", 4, "--json")
    found = json.loads(out)
    assert (status, found["left"], found["queries"]) == (0, 8, rows)  # the same ones, until they are answered
    status, _, err = at("ask", "run", "--set", "labels=50")
    assert (status, "expected no configuration for a run that has one" in err) == (1, True)


def test_a_csv_for_a_spreadsheet_has_the_same_questions(at):
    assert at("ask", "run", "-n", 4, "--out", "queries.csv")[0] == 0
    expected = [{**row, "value": ""} for row in read("queries.jsonl")]
    assert read("queries.csv") == expected


def test_no_file_is_overwritten_and_nothing_asked_where_none_can_be_written(at):
    before = export()
    for name, message in (
        ("queries.jsonl", "expected a file that does not exist yet"),
        ("queries.xlsx", "expected a file that ends in .jsonl or .csv"),
        ("nowhere/queries.csv", "expected a folder 'nowhere' for it"),
    ):
        status, out, err = at("ask", "run", "-n", 8, "--out", name)
        assert (status, out, message in err) == (1, "", True), err
    assert export() == before
    assert not os.path.exists("queries.jsonl.tmp")


def test_each_worker_has_questions_of_his_own_and_the_terminal_shows_them(at):
    status, out, _ = at("ask", "run", "--worker", "\x1b[31mann")
    assert status == 0
    assert "\x1b" not in out
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["prompt", "response"]
    assert out.splitlines()[0].split()[1] == "ann"
    assert out.endswith("1 question; labels left of the budget: 7\n")
    name = out.split()[0]
    assert name not in {row["id"] for row in read("queries.jsonl")}


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["ask", "run", "-n", "0"], 2, "-n"),
        (["ask", "run", "--overlap", "0"], 2, "--overlap"),
        (["ask", "full"], 1, "expected a run of `spannerlm ask`, or a new directory"),
        (["ask", "full/file"], 1, "expected a run of `spannerlm ask`, or a new directory"),
        (["ask", "new", "--set", "labls=3"], 2, "did you mean 'labels'?"),
        (["ask", "new", "missing.yaml"], 2, "could not read it"),
        (["tell", "nowhere", "queries.jsonl"], 1, "see `spannerlm ask`"),
        (["add", "full", "queries.jsonl"], 1, "see `spannerlm ask`"),
        (["tell", "run", "missing.jsonl"], 1, "expected a file that can be read"),
        (["tell", "run", "run"], 1, "expected a file that ends in .jsonl or .csv"),
    ],
)
def test_a_users_mistake_gets_one_message_and_leaves_nothing(at, args, status, message):
    os.mkdir("full")
    open("full/file", "w").close()
    found, out, err = at(*args)
    assert (found, out) == (status, "")
    assert message in err
    assert "Traceback" not in err
    assert not os.path.exists("new")


def test_commands_of_runs_with_a_reward_say_what_to_use_instead(at):
    for args in (["resume", "run"], ["report", "run"], ["run", "--out", "run"], ["resume", "run", "--in-doubt=drop"]):
        status, _, err = at(*args)
        assert status == 1
        assert "`spannerlm ask`, `tell` and `label` go on with it" in err
    assert at("verify", "run")[0] == 0


def test_a_run_killed_before_its_first_row_is_begun_again(call, tmp_path):  # noqa: F811
    def killed(point):
        if point == "before-open":
            raise LedgerError("killed")

    with pytest.raises(LedgerError):
        Ledger.open(tmp_path / "run", meta={}, prompts=["p"], trace=killed)
    status, _, err = call("tell", "run", write("labels.jsonl", [{"id": "a", "value": 1.0}]))
    assert (status, "see `spannerlm ask`" in err) == (1, True)
    status, out, err = call("ask", "run", *SMALL, "--json")
    assert (status, len(json.loads(out)["queries"])) == (0, 1), err


OWN = """
model: {model}
prompts: prompts.csv
labels: 10
feedback: comparison
heldout_fraction: 0.25
generation:
  max_new_tokens: 12
"""


def test_ones_own_model_and_prompts_need_no_reward_and_columns_come_along(call, tmp_path):  # noqa: F811
    from spannerlm import bundled

    task = bundled.load("helpdesk")
    rows = [{"prompt": prompt, "device": prompt.split()[1]} for prompt in task.train_prompts[:4]]
    write("prompts.csv", rows)
    (tmp_path / "own.yaml").write_text(OWN.format(model=task.model_path))
    (tmp_path / "own.py").write_text("print('noise on standard output')\ndef score(prompts, completions): return [0.0]")
    status, out, err = call(
        "ask", "noisy", "own.yaml", "--set", "reward=own.py:score", "--set=feedback=scalar", "--json"
    )
    assert (status, len(json.loads(out)["queries"]), "noise" in err) == (0, 1, True), err
    status, out, err = call("ask", "run", "own.yaml", "-n", 3, "--overlap", 2, "--worker", "ann", "--json")
    assert status == 0, err
    queries = json.loads(out)["queries"]
    assert len(queries) == 3
    assert all(set(row) == {"id", "prompt", "response", "opponent", "worker", "columns", "value"} for row in queries)
    assert all(row["columns"] == {"device": row["prompt"].split()[1]} for row in queries)
    assert call("ask", "run", "-n", 3, "--worker", "ann", "--out", "queries.csv")[0] == 0
    answered = [{**row, "value": "0.5"} for row in read("queries.csv")]
    answered[1]["value"] = "1.5"
    status, _, err = call("tell", "run", write("out.csv", answered))
    assert (status, "out.csv: line 3: " in err, "[0, 1]" in err) == (1, True, True)
    answered[1]["value"] = "0"
    assert call("tell", "run", write("in.csv", answered))[0] == 0
    others = json.loads(call("ask", "run", "-n", 3, "--worker", "bob", "--json")[1])["queries"]
    pairs = [{frozenset((row["response"], row["opponent"])) for row in rows} for rows in (queries, others)]
    assert pairs[0] & pairs[1]


# --- tell -----------------------------------------------------------------------------------------------------------


def test_what_is_told_is_learned_and_sampled_from(at):
    rows = read("queries.jsonl")
    values = [{"id": row["id"], "value": -1.5 + i} for i, row in enumerate(rows[:3])]
    labels = write("labels.jsonl", [*values, {"id": rows[3]["id"], "skip": True}])
    status, out, err = at("tell", "run", labels, "--json")
    assert status == 0, err
    assert json.loads(out) == {
        "directory": "run", "told": 4, "labels": 3, "waiting": 0, "left": 8, "reason": "",
    }  # fmt: skip
    before = export()
    status, out, _ = at("tell", "run", labels)  # the same again
    assert (status, export()) == (0, before)
    assert out == "4 told; labels so far: 3; open questions: 0\nlabels left of the budget: 8\n"
    status, out, err = at("sample", "run", "--prompt", rows[0]["prompt"], "-n", 2, "--json")
    assert status == 0, err
    assert len(json.loads(out)["samples"][0]["responses"]) == 2


def test_a_changed_answer_needs_to_be_called_a_revision(at):
    rows = read("queries.jsonl")
    at("tell", "run", write("first.jsonl", [{"id": row["id"], "value": 1} for row in rows]))
    before = export()
    changed = write("second.jsonl", [{"id": row["id"], "value": i % 2} for i, row in enumerate(rows)])
    status, _, err = at("tell", "run", changed)
    assert status == 1
    assert err.startswith("Error: second.jsonl: line 1: ")
    assert "; line 3: " in err
    assert "say revise" in err
    assert export() == before
    assert at("tell", "run", changed, "--revise")[0] == 0
    assert len(export()) == len(before) + 2
    assert at("tell", "run", write("late.jsonl", [{"id": rows[0]["id"], "skip": True}]), "--revise")[0] == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"value": None}, "line 2: value: expected a number, got none: fill it in"),
        ({"value": "0.5"}, "line 2: value: expected a number, got '0.5'"),
        ({"value": True}, "line 2: value: expected a number, got True"),
        ({"value": float("nan")}, "line 2: value: expected a finite number"),
        ({"value": float("-inf")}, "line 2: value: expected a finite number"),
        ({"value": 10**400}, "line 2: value: expected a finite number"),
        ({"id": "0" * 20}, "line 2: 00000000000000000000: expected the id of a query of this run"),
        ({"id": "x"}, "line 2: id: expected that of a query"),
        ({"id": 3}, "line 2: expected an id"),
        ({"id": None}, "line 2: expected an id"),
    ],
)
def test_one_bad_row_rejects_the_file_and_is_named(at, bad, message):
    rows = [{"id": row["id"], "value": 0.5} for row in read("queries.jsonl")]
    rows[1] |= bad
    before = export()
    status, out, err = at("tell", "run", write("labels.jsonl", rows))
    assert (status, out) == (1, "")
    assert message in err
    assert "Nothing of the file was recorded" in err
    assert export() == before


def test_the_same_question_twice_in_a_file_is_refused(at):
    rows = [{"id": row["id"], "value": 0.5} for row in read("queries.jsonl")]
    status, _, err = at("tell", "run", write("labels.jsonl", [*rows, rows[0]]))
    assert (status, "line 5: id" in err, "was on line 1 already" in err) == (1, True, True)


def test_a_spreadsheet_that_was_filled_in_is_told_negative_numbers_included(at):
    assert at("ask", "run", "-n", 4, "--out", "queries.csv")[0] == 0
    rows = read("queries.csv")
    assert at("tell", "run", "queries.csv")[0] == 1  # not filled in yet
    for row, value in zip(rows, ["-0.5", "1e-3", "", "+2"], strict=True):
        row |= {"value": value, "status": "" if value else "skip", "reason": ""}
    rows[0] |= {"value": "", "status": "failed", "reason": "-1 is no reason"}
    with open("answered.csv", "wb") as file:  # as a spreadsheet writes it: a byte-order mark, CRLF
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
        file.write(b"\xef\xbb\xbf" + text.getvalue().encode())
    status, out, err = at("tell", "run", "answered.csv", "--json")
    assert status == 0, err
    assert (json.loads(out)["labels"], json.loads(out)["waiting"]) == (2, 0)
    with Ledger.open("run", read_only=True) as ledger:
        assert [(s, v) for _, s, v in ledger.purchases()] == [
            ("failed", None), ("label", 1e-3), ("skip", None), ("label", 2.0),
        ]  # fmt: skip


def test_labels_come_from_standard_input_too(at, monkeypatch):
    rows = read("queries.jsonl")
    lines = "".join(json.dumps({"id": row["id"], "value": 1.0}) + "\n" for row in rows).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert at("tell", "run", "-", "--json")[0] == 0
    with Ledger.open("run", read_only=True) as ledger:
        assert ledger.counts.labels == 4


def test_the_run_ends_with_its_budget_and_says_so(at):
    for name in ("a", "b", "c"):
        queries = json.loads(at("ask", "run", "-n", 4, "--json")[1])["queries"]
        rows = [{"id": row["id"], "value": len(row["response"])} for row in queries]
        assert at("tell", "run", write(f"{name}.jsonl", rows))[0] == 0
    status, out, _ = at("ask", "run", "-n", 4, "--out", "none.jsonl")
    assert (status, out) == (0, "0 questions; labels left of the budget: 0 (labels spent)\n")
    assert not os.path.exists("none.jsonl")


def test_a_tell_that_was_killed_is_told_again(at):
    rows = [{"id": row["id"], "value": 0.5} for row in read("queries.jsonl")]
    write("labels.jsonl", rows)
    code = (
        "import os, signal\nfrom spannerlm import cli\nfrom spannerlm.ledger.journal import Journal\n"
        "append = Journal.append\n"
        "def killed(self, kind, *rest):\n"
        "    if kind == 'labelled': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return append(self, kind, *rest)\n"
        "Journal.append = killed\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "tell", "run", "labels.jsonl"], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    status, out, err = at("tell", "run", "labels.jsonl", "--json")
    assert (status, json.loads(out)["labels"]) == (0, 4), err
    assert at("verify", "run")[0] == 0


# --- add, restore ---------------------------------------------------------------------------------------------------


def test_labels_that_one_has_are_added_once_and_cost_nothing(at):
    rows = read("queries.jsonl")
    known = [{"prompt": row["prompt"], "response": text, "value": i} for row in rows[:1] for i, text in enumerate(ODD)]
    status, out, err = at("add", "run", write("known.jsonl", known), "--json")
    assert status == 0, err
    assert json.loads(out) == {"directory": "run", "added": len(ODD), "given": len(ODD)}
    with Ledger.open("run", read_only=True) as ledger:
        assert [claim.response for claim, status, _ in ledger.purchases() if status == "label"] == ODD  # to the byte
        assert (ledger.counts.labels, ledger.counts.charged) == (0, 4)
    status, out, _ = at("add", "run", "known.jsonl")
    assert out == f"labels added: 0, in all {len(ODD)}; the budget is as it was\n"
    assert at("sample", "run", "--prompt", rows[0]["prompt"])[0] == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": "what is that"}, "line 2: prompts[1]: expected one of this run's"),
        ({"value": 7.0, "response": "yes"}, "line 2: values[1]: expected 1, as 'given' gave before"),
        ({"value": None}, "line 2: value: expected a number, got none"),
        ({"response": None}, "line 2: response: expected text"),
        ({"response": "\ud800"}, "line 2: responses[1]: expected text that a model can read, got a lone surrogate"),
        ({"response": "yes " * 400}, "line 2: responses[1]: a prompt has"),
        ({"response": "x" * 17_000_000}, "line 2: responses[1]: 17000000 bytes of text, more than the limit"),
        ({"opponent": "no"}, "opponents: expected none in a run of rewards"),
    ],
)
def test_one_bad_label_rejects_the_file(at, bad, message):
    prompt = read("queries.jsonl")[0]["prompt"]
    rows = [{"prompt": prompt, "response": "yes", "value": 1.0}, {"prompt": prompt, "response": "no", "value": 0.0}]
    rows[1] |= bad
    before = export()
    status, _, err = at("add", "run", write("known.jsonl", rows))
    assert (status, message in err) == (1, True), err
    assert export() == before


def test_a_backup_is_restored_whole_and_gone_on_with(at):
    assert at("backup", "run", "run.backup")[0] == 0
    status, out, err = at("restore", "run.backup", "copy")
    assert (status, out) == (0, "copy: the run that run.backup holds\n"), err
    assert export("copy") == export()
    with open("run/config.yaml") as one, open("copy/config.yaml") as other:
        assert one.read() == other.read()
    assert at("verify", "copy")[0] == 0
    assert json.loads(at("ask", "copy", "-n", 4, "--json")[1])["queries"] == read("queries.jsonl")
    status, _, err = at("restore", "run.backup", "copy")
    assert (status, "holds a ledger already" in err) == (1, True)
    write("bad.jsonl", [{"id": "x", "value": 1}])
    for name in ("bad.jsonl", "nothing"):
        status, _, err = at("restore", name, "other", "--json")
        assert (status, "Traceback" in err) == (1, False)
        assert not os.path.exists("other/run.db")


def test_the_commands_are_there():
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert names >= {"ask", "tell", "add", "restore", "backup", "verify"}
