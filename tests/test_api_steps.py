"""`explore` step by step on real models: segments of a response, turns of a conversation, what is saved and resumed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spannerlm
from spannerlm.backends.conversation import turns_of
from spannerlm.config import RunConfig
from spannerlm.errors import InputError
from spannerlm.job import build_explorer

sys.path.insert(0, str(Path(__file__).parent / "backends"))

STEP_OPTIONS: dict[str, Any] = {
    "prompts": ["the printer", "a", "the printer is hot ;"],
    "features": "before-eos:-1",
    "explorer": "multi-turn-spanner",
    "beta": 0.3,
    "segments": 2,
    "labels": 24,
    "columns": {"level": [0, 1, 2]},
}


class Words:
    """Counts the words a and b of complete responses; what it was asked for is kept."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int]] = []

    def __call__(self, prompts: Any, completions: Any, level: Any, **_: Any) -> list[float]:
        self.seen.extend(zip(prompts, completions, level, strict=True))
        return [sum(word in ("a", "b") for word in text.split()) / 6 for text in completions]


def tiny(**options: Any) -> Any:
    return pytest.importorskip("tiny_models").make(max_new_tokens=6, **options)


@pytest.mark.parametrize("explorer", ["multi-turn-spanner", "multi-turn-spanner-paper"])
def test_a_real_model_is_explored_step_by_step_and_its_policy_drawn_from(tmp_path: Path, explorer: str) -> None:
    reward, model = Words(), tiny()
    options = {**STEP_OPTIONS, "model": model, "explorer": explorer, "run_dir": tmp_path / "run"}
    result = spannerlm.explore(reward=reward, **options)
    assert 0 < result.labels == len(reward.seen) <= 24
    assert result.theta.shape == (3, model.hidden_size)
    assert result.levels is not None
    assert {(prompt, level) for prompt, _, level in reward.seen} <= set(
        zip(STEP_OPTIONS["prompts"], range(3), strict=True)
    )
    assert all(len(text.split()) <= 6 for _, text, _ in reward.seen)
    last = result.history[-1]
    assert 0 < last["tokens"] <= 6 * last["draws"]
    policy = spannerlm.load_policy(tmp_path / "run", model=model)
    np.testing.assert_array_equal(policy.theta, result.theta)
    answers = policy.sample(["the printer", "hot"], 2, rng=np.random.default_rng(0))
    assert [(a.prompt, len(a.responses)) for a in answers] == [("the printer", 2), ("hot", 2)]
    again = spannerlm.explore(reward=Words(), **options)  # resumed: nothing is bought
    assert again.history == result.history
    np.testing.assert_array_equal(again.theta, result.theta)
    with pytest.raises(InputError, match="segments"):
        spannerlm.explore(reward=Words(), **{**options, "segments": {"tokens": 2, "until": "line"}, "horizon": 3})


def test_a_run_cut_off_while_it_acts_step_by_step_is_resumed(tmp_path: Path) -> None:
    class Broken(Words):
        pure = True

        def __call__(self, *args: Any, **columns: Any) -> list[float]:
            if len(self.seen) > 8:
                raise KeyboardInterrupt
            return super().__call__(*args, **columns)

    whole = spannerlm.explore(reward=Words(), model=tiny(), **STEP_OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        spannerlm.explore(reward=Broken(), model=tiny(), run_dir=tmp_path / "run", **STEP_OPTIONS)
    rest = Words()
    rest.pure = True  # type: ignore[attr-defined]
    parts = spannerlm.explore(reward=rest, model=tiny(), run_dir=tmp_path / "run", **STEP_OPTIONS)
    assert 0 < len(rest.seen) < 24
    assert parts.history == whole.history


def test_a_function_says_where_segments_end_and_draws_are_a_budget(tmp_path: Path) -> None:
    def hot(text: str) -> bool:
        return text.endswith("hot")

    options = {**STEP_OPTIONS, "model": tiny(), "segments": hot, "horizon": 2, "run_dir": tmp_path / "run"}
    result = spannerlm.explore(reward=Words(), draws=300, **options)
    assert result.draws <= 300
    assert result.theta.shape[0] == 2
    with pytest.raises(InputError, match="pass segments= as in the run"):
        spannerlm.load_policy(tmp_path / "run", model=options["model"])
    policy = spannerlm.load_policy(tmp_path / "run", model=options["model"], segments=hot)
    assert len(policy.sample(["a"], 2, rng=np.random.default_rng(0))[0].responses) == 2


def asks(prompt: str, replies: tuple[str, ...]) -> str | None:
    """A user who says a reply back once, and leaves where it was empty."""
    return prompt if not replies else replies[-1] or None


@pytest.mark.parametrize("explorer", ["multi-turn-spanner", "directed"])
def test_turns_of_a_conversation_are_steps(tmp_path: Path, explorer: str) -> None:
    model = tiny()
    options = {**STEP_OPTIONS, "model": model, "segments": None, "turns": asks, "horizon": 2, "run_dir": tmp_path / "r"}
    reward = Words()
    result = spannerlm.explore(reward=reward, **{**options, "explorer": explorer})
    assert 0 < result.labels == len(reward.seen) <= 24
    assert result.theta.size == 2 * model.hidden_size
    for prompt, text, _ in reward.seen:
        said = turns_of(text)
        assert 1 <= len(said) <= 2
        assert said[0][0] == prompt
        assert [given for given, _ in said[1:]] == [reply for _, reply in said[:-1]]
    assert spannerlm.explore(reward=Words(), **{**options, "explorer": explorer}).history == result.history
    if explorer == "directed":
        with pytest.raises(InputError, match="tilts whole conversations"):
            spannerlm.load_policy(tmp_path / "r", model=model, turns=asks)
        return
    answer = spannerlm.load_policy(tmp_path / "r", model=model, turns=asks).sample(
        ["hot"], 3, rng=np.random.default_rng(0)
    )[0]
    assert all(turns_of(text)[0][0] == "hot" for text in answer.responses)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"turns": asks}, "segments: expected none where a step is a reply of turns"),
        ({"segments": None, "turns": asks}, "horizon: expected how many replies"),
        ({"segments": None}, "segments: expected what a step is for explorer 'multi-turn-spanner', got None"),
        ({"explorer": "directed"}, "explorer: expected one that acts step by step where segments=2 is given"),
        ({"beta": None}, "beta: expected a KL temperature for .*, got neither beta nor kl"),
        ({"beta": None, "kl": 1.0}, "beta: expected a KL temperature for .*, got kl=1"),
        ({"segments": "line"}, "horizon: expected how many segments \\(line:64\\) a response has at most"),
        ({"segments": "lines"}, "segments: expected tokens"),
        ({"segments": None, "horizon": 3, "explorer": "directed"}, "segments: expected what a step is where horizon=3"),
        ({"feedback": "comparison", "compare": len}, "feedback: multi-turn-spanner learns from 'scalar' alone"),
    ],
)
def test_combinations_of_steps_that_make_no_sense_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        spannerlm.explore(model=tiny(), reward=Words(), **{**STEP_OPTIONS, **change})


def test_a_configured_run_refuses_steps_and_says_where_they_are() -> None:
    with pytest.raises(InputError, match=r"explorer: expected one of whole responses .* spannerlm.explore"):
        build_explorer(RunConfig(explorer="multi-turn-spanner"))
