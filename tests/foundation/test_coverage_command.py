"""``spannerlm coverage`` as a user types it, in a process of its own: one model, models side by side, own prompts."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from documents import case
from rich.console import Console

from spannerlm import bundled
from spannerlm.foundation.command import cells, show, side_by_side

TASK = bundled.load("helpdesk")
QUICK = ["--draws", "40", "--set", "coverage.max_prompts=5", "--set", "coverage.simulations=0"]
QUICK += ["--set", "coverage.features=[hidden, ngrams]"]


def spannerlm(*arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from spannerlm.cli import main; main()", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


def test_the_bundled_model_and_what_the_terminal_says(tmp_path: Path) -> None:
    done = spannerlm("coverage", *QUICK, cwd=tmp_path)
    document = json.loads((tmp_path / "runs/coverage-1/coverage.json").read_text())
    verdict = document["models"][0]["verdict"]
    said = " ".join(done.stdout.split())
    assert verdict["title"] in said
    for reason in verdict["reasons"]:
        assert " ".join(reason.split()) in said
    assert "spent 200 draws, 0 labels" in said
    assert "runs/coverage-1/coverage.html" in said
    assert (tmp_path / "runs/coverage-1/coverage.html").exists()


def test_models_stand_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "ckpt").symlink_to(TASK.model_path)
    models = ["--model", str(TASK.model_path), "--model", "ckpt"]
    shown = spannerlm("coverage", *models, *QUICK, "--success", "0.5", "--out", "both", cwd=tmp_path).stdout
    document = json.loads((tmp_path / "both/coverage.json").read_text())
    assert [model["name"] for model in document["models"]] == ["model", "ckpt"]
    assert document["settings"]["success"] == {"value": 0.5, "source": "given"}
    assert document["best"] in ("model", "ckpt")
    head = next(line for line in shown.splitlines() if "verdict" in line)
    assert "KL = 2" in head
    assert cells(document["models"][0], 1000)[0] in shown
    assert " ".join(document["headline"][0].split()) in " ".join(shown.split())


def test_the_table_has_every_number_whole_in_80_columns() -> None:
    document = case("three models")
    for k, model in enumerate(document["models"]):
        model["name"] = f"models/checkpoint-{k}00/final"
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(side_by_side(document))
    ends = [line.split()[-5:] for line in console.export_text().splitlines()]
    assert all(list(cells(model, 1000)) in ends for model in document["models"])


def test_what_a_run_had_paid_is_not_called_spent() -> None:
    shown = {}
    for looked in (False, True):
        console = Console(width=80, file=io.StringIO(), record=True)
        show(console, case("labels"), Path("here"), looked=looked)
        shown[looked] = console.export_text()
    assert "spent    12,288 draws, 60 labels\n" in shown[False]
    assert "read     12,288 draws, 60 labels of the run\n" in shown[True]


def test_own_prompts_need_no_reward(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("my printer is hot ;\nmy laptop is slow ;\nmy phone is dead ;\n")
    text = f"model: {TASK.model_path}\nprompts: prompts.txt\ngeneration: {{max_new_tokens: 32}}\n"
    (tmp_path / "my.yaml").write_text(text)
    done = spannerlm("coverage", "my.yaml", *QUICK, "--out", "own", cwd=tmp_path)
    assert "Without a reward nobody can tell" in done.stdout
    (tmp_path / "reward.py").write_text(
        "def short(prompts, completions, **columns):\n    return [-len(c) / 50 for c in completions]\n"
    )
    (tmp_path / "my.yaml").write_text(text + "reward: reward.py:short\n")
    paid = spannerlm(
        "coverage", "my.yaml", *QUICK, "--labels", "20", "--success", "-0.5", "--out", "paid", "--json", cwd=tmp_path
    )
    document = json.loads(paid.stdout)  # one document and nothing else
    assert document["directory"] == "paid"
    assert {k: v for k, v in document.items() if k != "directory"} == json.loads(
        (tmp_path / "paid/coverage.json").read_text()
    )
    assert 0 < document["settings"]["labels"] <= 20
    assert document["models"][0]["success"]["by"] == "labels"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--labels", "5"], 1, "labels: expected none where the reward is free, got 5"),
        (["--run", "nowhere"], 1, "nowhere: expected the directory of a run"),
        (["--run", "x", "--draws", "3"], 2, "--run: expected no configuration beside it"),
        (["--set", "coverage.drawz=3"], 2, "did you mean 'draws'?"),
        (["--draws", "many"], 2, "coverage.draws: expected a whole number"),
        (["--model", "no/such/model"], 1, "no/such/model"),
    ],
)
def test_mistakes_end_with_one_message(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    done = spannerlm("coverage", *arguments, cwd=tmp_path, check=False)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
