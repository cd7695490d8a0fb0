"""Sources of labels named in a configuration: verifiers, functions that are killed, judges; what they cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from referees import Referee

from spannerlm import sourcing
from spannerlm.config import RunConfig, dump_config, load_config
from spannerlm.errors import ConfigError, InDoubtError, InputError
from spannerlm.job import fingerprint, load_report, resume_job, run_job
from spannerlm.ledger import Ledger
from spannerlm.rewards import NoisyReward, call_reward
from spannerlm.sources.judge import PairJudge, RubricJudge
from spannerlm.sources.process import Killable
from spannerlm.sources.verifiers import ExactMatch, MathMatch, NumericMatch, RegexMatch
from spannerlm.tasks import load_task

MODEL = Path(sourcing.__file__).parent / "bundled" / "helpdesk" / "model"
PROMPTS = [f"my {thing} is {fault} ;" for thing in ("printer", "laptop", "phone") for fault in ("hot", "slow")]
FUNCTIONS = """
import time

def words(prompts, completions, **columns):
    return [float(len(text.split())) for text in completions]

def hangs(prompts, completions, **columns):
    if "printer" in "".join(prompts):
        time.sleep(60)
    return words(prompts, completions)
"""


@pytest.fixture
def referee(tmp_path: Path) -> Iterator[Referee]:
    with Referee(tmp_path) as started:
        yield started


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rows = [{"prompt": prompt, "answer": i} for i, prompt in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(FUNCTIONS)
    return tmp_path


def configured(folder: Path, source: str, *more: str) -> RunConfig:
    """A run of a few labels on the bundled model, with this line for its source."""
    text = (
        f"model: {MODEL}\nprompts: prompts.jsonl\nlabels: 6\nbatch: 3\ndraws: 60\nevaluation: {{draws: 8}}\n{source}\n"
    )
    (folder / "my.yaml").write_text("\n".join([text, *more]))
    return load_config(folder / "my.yaml")


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("{kind: exact, strip: false}", ExactMatch("answer", strip=False)),
        ("{kind: regex, pattern: 'a(b)', column: answer, last: false}", RegexMatch("a(b)", "answer", last=False)),
        ("{kind: numeric, column: n, relative: 0.01}", NumericMatch("n", relative=0.01)),
        ("{kind: math, timeout_s: 5}", MathMatch("answer", 5.0)),
    ],
)
def test_a_verifier_is_built_as_it_is_named_and_comes_back_from_its_file(files: Path, source: str, made: Any) -> None:
    config = configured(files, f"reward: {source}")
    assert not isinstance(config.reward, str)
    assert config.reward is not None
    assert sourcing.build(config.reward, "reward", None) == made
    (files / "again.yaml").write_text(dump_config(config))
    assert load_config(files / "again.yaml") == config


def test_a_sum_of_functions_is_what_trl_makes_of_them(files: Path) -> None:
    """Two of a file, one of TRL's, weights; the file is found from the configuration's folder, also once written."""
    pytest.importorskip("trl")
    source = "{kind: sum, functions: [reward.py:said, 'trl.rewards:think_format_reward', reward.py:level], "
    source += "weights: [1, 5, -0.5]}"
    (files / "reward.py").write_text(
        FUNCTIONS + "def level(completions, answer, **_):\n    return [float(a) for a in answer]\n"
    )
    talks = [{"prompt": [{"role": "user", "content": prompt}], "answer": i} for i, prompt in enumerate(PROMPTS)]
    (files / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    config = configured(files, f"reward: {source}")
    (files / "reward.py").write_text(
        (files / "reward.py").read_text()
        + "def said(completions, **_):\n    return [float(len(c[0]['content'].split())) for c in completions]\n"
    )
    (files / "again").mkdir()
    (files / "again" / "config.yaml").write_text(dump_config(config))
    for one in (config, load_config(files / "again" / "config.yaml")):
        task = load_task(one)
        assert task.reward is not None
        texts = ["two words", "<think>so</think>yes"]
        found = call_reward(task.reward, PROMPTS[:2], texts, {"answer": [4, 6]})
        assert found == [2.0 - 2.0, 1.0 + 5.0 - 3.0]
        assert (
            task.reward_name
            == f"{files}/reward.py:said + 5 trl.rewards:think_format_reward + -0.5 {files}/reward.py:level"
        )
    before = fingerprint(config)
    (files / "reward.py").write_text((files / "reward.py").read_text() + "\n")
    assert fingerprint(config) != before


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{kind: sum}", "reward.functions: expected a value, got none"),
        ("{kind: sum, functions: []}", "reward.functions: "),
        ("{kind: sum, functions: [words]}", "expected path/to/file.py:function or package.module:function"),
        ("{kind: sum, functions: reward.py:words}", "reward.functions: expected a list"),
        ("{kind: sum, functions: [reward.py:words], weights: [.inf]}", "reward.weights"),
        ("{kind: sum, functions: [reward.py:words], weights: [1, 2]}", "a finite weight for each, got 1 functions"),
        ("{kind: sum, functions: [reward.py:wrds]}", "did you mean 'words'"),
    ],
)
def test_a_sum_that_cannot_be_is_refused(files: Path, source: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        load_task(configured(files, f"reward: {source}"))
    assert says in str(caught.value)


def test_an_encoders_directory_is_found_from_the_configurations_folder(files: Path) -> None:
    (files / "enc").mkdir()
    lines = (
        "features: [ngrams, 'encoder:enc', {kind: concat, parts: [{kind: encoder, model: enc}, 'encoder:org/name']}]"
    )
    found = configured(files, "reward: reward.py:words", lines, "coverage: {features: ['encoder:./enc']}")
    place = str(files / "enc")
    parts = [{"kind": "encoder", "model": place}, "encoder:org/name"]
    assert found.features == ["ngrams", f"encoder:{place}", {"kind": "concat", "parts": parts}]
    assert found.coverage.features == (f"encoder:{files / './enc'}",)


def test_a_verifier_reads_its_column_and_may_be_free(files: Path) -> None:
    config = configured(files, "reward: {kind: numeric}", "reward_free: true")
    task = load_task(config)
    assert isinstance(task.reward, NoisyReward)
    assert task.truth is not None
    right = [str(answer) for answer in task.columns["answer"]]
    assert call_reward(task.truth, task.prompts, right, task.columns) == [1.0] * 6
    assert call_reward(task.truth, task.prompts, ["-1"] * 6, task.columns) == [0.0] * 6
    assert task.reward_name == "numeric match, column answer"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "reward: {kind: exat}",
            "reward: expected path/to/file.py:function, or a mapping whose kind is function, sum, exact",
        ),
        ("reward: {column: a}", "reward: expected path/to/file.py:function, or a mapping whose kind is"),
        ("reward: {kind: [exact]}", "reward: expected path/to/file.py:function, or a mapping whose kind is"),
        ("reward: 3", "reward: expected path/to/file.py:function, or a mapping whose kind is"),
        ("reward:\n  kind: exact\n  colum: a", "my.yaml:9: reward.colum: unknown key; did you mean 'column'?"),
        ("reward: {kind: exact, column: ''}", "reward.column: "),
        ("reward: {kind: numeric, relative: -1}", "reward.relative: expected a number of at least 0, got -1"),
        ("reward: {kind: judge, url: 'http://a/v1'}", "reward.model: expected a value, got none"),
        ("reward: {kind: judge, url: 'http://a/v1', model: m, price: [1]}", "reward.price"),
        ("reward: {kind: function, function: reward.py:words}", "reward.timeout_s: expected a value, got none"),
        (
            "reward: {kind: function, function: words, timeout_s: 1}",
            "reward.function: expected path/to/file.py:function",
        ),
    ],
)
def test_mistakes_are_named_with_their_key(files: Path, source: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(files, source)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{kind: exact}", "compare: expected a source of comparisons, function or judge, got 'exact'"),
        ("{kind: judge, url: 'http://a/v1', model: m, lowest: 1}", "compare: expected no lowest and highest"),
        ("{kind: judge, url: 'http://u:p@a/v1', model: m}", "key_env"),
        ("{kind: judge, url: 'http://a/v1', model: m, key_env: NO_SUCH_KEY}", "NO_SUCH_KEY"),
        ("{kind: judge, url: 'http://a/v1', model: m, template: '{{'}", "template"),
    ],
)
def test_what_cannot_be_together_is_refused_before_anything_is_bought(files: Path, source: str, says: str) -> None:
    config = configured(files, f"compare: {source}", "feedback: comparison")
    with pytest.raises(InputError, match=says):
        run_job(config, files / "run")


def test_a_judge_of_pairs_is_paid_once_for_what_the_ledger_says(files: Path, referee: Referee) -> None:
    """Six comparisons cost twelve requests; the run reported again costs none; the bill is in the report."""
    source = f"compare: {{kind: judge, url: '{referee.url}', model: m, price: [1, 10]}}"
    report = run_job(configured(files, source, "feedback: comparison"), files / "run")
    with Ledger.open(files / "run", read_only=True) as ledger:
        assert ledger.counts.labels == 6
    assert len(referee.charged) == len(set(referee.charged)) == 12
    paid = report["usage"]["the judge of pairs"]
    assert (paid["requests"], paid["prompt_tokens"], paid["completion_tokens"]) == (12, 1200, 120)
    assert paid["cost"] == pytest.approx(12 * 0.2)
    assert "12, 1,200 + 120 tokens, cost 2.4" in (files / "run" / "report.html").read_text()
    assert report["reward_name"] == "judge m"
    resume_job(files / "run")
    assert len(referee.charged) == 12
    assert load_report(files / "run")["usage"]["the judge of pairs"] == paid


def test_a_rubric_is_a_reward(files: Path, referee: Referee) -> None:
    source = f"reward: {{kind: judge, url: '{referee.url}', model: m, lowest: 0, highest: 1}}"
    report = run_job(configured(files, source), files / "run")
    assert len(referee.charged) == 6
    assert (files / "run" / "judge-reward.jsonl").exists()
    assert report["usage"]["the judge of rewards"]["requests"] == 6


def test_a_function_that_hangs_is_killed_and_its_labels_are_in_doubt(files: Path) -> None:
    source = "reward: {kind: function, function: reward.py:hangs, timeout_s: 0.5, by_item: true}"
    config = configured(files, source, "heldout_fraction: 0.01")
    with pytest.raises(InDoubtError, match=r"no answer within 0\.5 s"):
        run_job(config, files / "run")
    for _ in range(6):  # each time it hangs again, one label is in doubt
        try:
            report = resume_job(files / "run", in_doubt="drop")
            break
        except InDoubtError:
            continue
    counts = report["counts"]
    assert counts["labels"] + counts["failed"] == 6
    assert counts["labels"] > 0
    assert counts["failed"] > 0


def test_kinds_are_what_they_say(files: Path) -> None:
    judge: dict[str, Any] = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m"}
    settings = sourcing.JudgeSource(**judge)
    with sourcing.build(settings, "compare", None) as made:
        assert isinstance(made, PairJudge)
    with sourcing.build(settings, "reward", None) as made:
        assert isinstance(made, RubricJudge)
    place = f"{files / 'reward.py'}:words"
    with sourcing.build(sourcing.FunctionSource(kind="function", function=place, timeout_s=9), "reward", None) as made:
        assert isinstance(made, Killable)
        assert made(["p"], ["two words"]) == [2.0]


def test_a_changed_setting_or_file_changes_the_fingerprint(files: Path) -> None:
    one = fingerprint(configured(files, "reward: {kind: exact}"))
    assert one == fingerprint(configured(files, "reward: {kind: exact, column: answer}"))
    assert one != fingerprint(configured(files, "reward: {kind: exact, ignore_case: true}"))
    named = configured(files, "reward: reward.py:words")
    before = fingerprint(named)
    (files / "reward.py").write_text(FUNCTIONS + "\n")
    assert fingerprint(named) != before
