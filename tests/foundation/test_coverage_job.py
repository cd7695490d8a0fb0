"""`coverage_report` and the configured job: what a user calls, on the bundled model, and what it leaves on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import spannerlm
from spannerlm import bundled
from spannerlm.config import load_config
from spannerlm.environments import rare_skill
from spannerlm.errors import InputError
from spannerlm.foundation.job import coverage_job, coverage_of_run
from spannerlm.job import plain, run_job
from spannerlm.ledger import Ledger
from spannerlm.progress import Progress

TASK = bundled.load("helpdesk")
SMALL = ["coverage.draws=48", "coverage.max_prompts=6", "coverage.simulations=0", "coverage.features=[hidden, ngrams]"]


def report(**options: Any) -> spannerlm.CoverageReport:
    given: dict[str, Any] = {
        "model": str(TASK.model_path),
        "prompts": TASK.train_prompts[:4],
        "features": ["hidden"],
        "draws": 40,
        "simulations": 0,
        "generation": {"max_new_tokens": TASK.max_new_tokens},
    }
    return spannerlm.coverage_report(**{**given, **options})


def test_an_environment_before_a_label_is_bought(tmp_path: Path) -> None:
    found = spannerlm.coverage_report(rare_skill(0.05), draws=512, simulations=2, horizon=200, out=tmp_path)
    assert found.verdict == "go"
    assert found.verdicts == {"environment": "go"}
    assert str(found).startswith("environment: Go: about ")
    assert found.document["models"][0]["counts"] == {"prompts": 32, "draws": 16384, "labels": 0, "skips": 0}
    stored = json.loads((tmp_path / "coverage.json").read_text())
    assert stored["models"][0]["verdict"]["title"] == found.document["headline"][0]
    assert found.document["headline"][0] in (tmp_path / "coverage.html").read_text().replace("&#39;", "'")
    assert {file.suffix for file in (tmp_path / "figures").iterdir()} == {".png", ".svg"}


def test_draws_only_then_a_free_reward() -> None:
    bare = report()
    assert bare.verdict == "cannot tell"
    assert bare.document["settings"]["reward"] is None
    graded = report(reward=TASK.reward, reward_free=True, reward_noise=0.3, parts=TASK.parts, success=1.2)
    assert graded.document["settings"]["success"] == {"value": 1.2, "source": "given"}
    parts = graded.document["models"][0]["maps"]["rows"][0]["parts"]
    assert [row["part"] for row in parts] == list(TASK.parts)


def test_labels_that_cost_are_kept_and_not_bought_twice(tmp_path: Path) -> None:
    asked: list[str] = []

    def paid(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        asked.extend(completions)
        return [float("sorry" in text) for text in completions]

    first = report(reward=paid, labels=12, out=tmp_path)
    bought = len(asked)
    assert 0 < bought <= 12
    assert first.document["settings"]["labels"] == bought
    assert first.document["settings"]["reward_kind"] == "two values"
    with Ledger.open(tmp_path / "models" / "model", read_only=True) as ledger:
        assert ledger.counts.eval_labels == bought
        assert ledger.counts.eval_draws == 160
        assert ledger.counts.labels == ledger.counts.draws == 0  # nothing of it is the learner's
    again = report(reward=paid, labels=12, out=tmp_path)
    assert len(asked) == bought
    assert json.dumps(plain(again.document)) == json.dumps(plain(first.document))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, "prompts= with either model= or models="),
        ({"labels": 5}, "labels: expected a reward to buy 5 of, got none"),
        ({"reward": TASK.reward, "reward_free": True, "labels": 5}, "labels: expected none where the reward is free"),
        ({"draws": 0}, "draws: expected a whole number of at least 1, got 0"),
        ({"kl": 0.0}, "kl: expected a budget above 0 nats"),
        ({"share": 1.0}, "share: expected a number between 0 and 1"),
        ({"features": ["hiden"]}, "did you mean 'hidden'"),
        ({"success": float("nan")}, "success: expected a finite reward"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        report(**options)


def test_an_environment_brings_its_own() -> None:
    with pytest.raises(InputError, match="an environment brings its own prompts, features"):
        spannerlm.coverage_report(rare_skill(0.1), prompts=["a"], features=["hidden"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Progress]]:
    directory, seen = tmp_path_factory.mktemp("coverage") / "own", []
    coverage_job(load_config(None, SMALL, rewarded=False), directory, seen.append)
    return directory, seen


def test_the_bundled_task_as_configured(made: tuple[Path, list[Progress]]) -> None:
    directory, seen = made
    document = json.loads((directory / "coverage.json").read_text())
    assert document["settings"]["success"] == {"value": 1.2, "source": "given"}
    assert document["settings"]["draws"] == 48
    (model,) = document["models"]
    assert model["name"] == "helpdesk (bundled)"
    assert [row["map"] for row in model["maps"]["rows"]] == ["hidden", "ngrams"]
    assert document["prompts"] == list(TASK.train_prompts[:6])
    phases = [p.phase for p in seen]
    assert phases[0].endswith("load the model")
    assert phases[-1] == "write the report"
    assert load_config(directory / "config.yaml", rewarded=False).coverage.draws == 48


def test_the_same_directory_goes_on_and_another_question_costs_no_draws(made: tuple[Path, list[Progress]]) -> None:
    directory, _ = made
    ledger = directory / "models" / "helpdesk" / "run.db"
    ledger = ledger if ledger.exists() else next(directory.glob("models/*/run.db"))
    before = ledger.read_bytes()
    found = coverage_job(load_config(None, [*SMALL, "coverage.success=0.5"], rewarded=False), directory)
    assert ledger.read_bytes() == before
    assert found.document["settings"]["success"]["value"] == 0.5


def test_two_models_have_a_ledger_each(tmp_path: Path) -> None:
    other = tmp_path / "ckpt" / "other"
    other.parent.mkdir()
    other.symlink_to(TASK.model_path)
    config = load_config(None, [*SMALL, f"coverage.models=[{TASK.model_path}, {other}]"], rewarded=False)
    found = coverage_job(config, tmp_path / "out")
    assert list(found.verdicts) == ["model", "other"]
    assert len(list((tmp_path / "out" / "models").iterdir())) == 2
    first, second = (plain(model) for model in found.document["models"])
    assert first["success"] == second["success"]  # one model under two names, drawn with one seed
    assert first["reach"] == second["reach"]


def test_the_report_of_a_run_costs_nothing(tmp_path: Path) -> None:
    small = ["labels=20", "draws=1024", "max_prompts=8", "evaluation.draws=16", "evaluation.max_prompts=2"]
    run_job(load_config(None, [*small, "baselines=false", "coverage.simulations=0"]), tmp_path / "run")
    found = coverage_of_run(tmp_path / "run", tmp_path / "out")
    (model,) = found.document["models"]
    assert model["counts"] == {"prompts": 128, "draws": 1024, "labels": 20, "skips": 0}
    assert model["warnings"][0].startswith("Draws and labels are those of the run")
    assert model["success"]["by"] == "true reward"
    assert (tmp_path / "out" / "coverage.html").exists()


@pytest.mark.parametrize(
    "bad",
    [{"kl": float("inf")}, {"kl": float("nan")}, {"batch": 0}, {"reward_noise": -1.0}, {"reward_noise": float("nan")}],
)
def test_bad_numbers_are_refused_before_anything_is_drawn(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        spannerlm.coverage_report(model=object(), prompts=["a"], reward=TASK.reward, reward_free=True, **bad)
