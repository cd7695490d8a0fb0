"""Replies of a conversation as steps."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tiny_models import PROMPTS, make, rng

from spannerlm.backends.conversation import ConversationOracle, turns_of, written
from spannerlm.errors import InputError
from spannerlm.features import HiddenStates
from spannerlm.records import DrawRequest, StepTilt
from spannerlm.stepwise import rolled


def user(prompt: str, replies: tuple[str, ...]) -> str | None:
    """Says goodbye once a reply has an a in it; else repeats the prompt behind the last reply's first word."""
    if any("a" in reply.split() for reply in replies):
        return None
    return " ".join([*(replies[-1].split()[:1] if replies else ()), prompt])


def oracle(horizon: int = 3, **options) -> ConversationOracle:
    return ConversationOracle(make(**options), PROMPTS, HiddenStates(16), user, horizon=horizon)


@pytest.mark.parametrize(
    "turns",
    [(), (("a", "b"),), (("", ""), ("x", "")), (("a\nuser: b", "\n\n    c\n"), ("model: ", "    d\r\0e\u2028"))],
)
def test_a_conversation_is_read_back_exactly(turns):
    assert turns_of(written(turns)) == turns


@pytest.mark.parametrize("text", ["hello", "user: a", "model: a\nuser: b", "user: a\nmodel: b\nmore"])
def test_other_texts_are_no_conversations(text):
    with pytest.raises(InputError, match="conversation: expected lines"):
        turns_of(text)


def test_conversations_are_put_together_from_replies():
    made, model = oracle(), make()
    draws = made.draw([2, 0, 2], 8, rng=rng())
    assert [d.prompt for d in draws] == [2, 0, 2]
    total, lengths = 0, set()
    for d in draws:
        assert d.counts.sum() == 8
        assert len(set(d.responses)) == len(d.responses)
        assert d.features.shape == (len(d.responses), made.dim) == (len(d.responses), 48)
        for text, count, phi in zip(d.responses, d.counts, d.features, strict=True):
            turns = turns_of(text)
            replies = tuple(reply for _, reply in turns)
            lengths.add(len(replies))
            assert made.joined(d.prompt, replies) == text
            assert made.complete(d.prompt, replies)
            assert not made.complete(d.prompt, replies[:-1])
            expected = np.zeros((3, 16))
            for h, (given, reply) in enumerate(turns):
                assert given == user(PROMPTS[d.prompt], replies[:h])
                scored = model.score(given, [reply], made.features.hidden)
                expected[h] = made.features(scored)[0]
                total += count * int(scored.lengths[0])
            np.testing.assert_allclose(phi.reshape(3, 16), expected, atol=1e-5)
    assert lengths == {1, 2, 3}
    assert sum(map(made.tokens, draws)) == total


def test_whole_conversations_and_replies_one_by_one_have_the_same_law():
    made, n = oracle(horizon=2, max_new_tokens=2), 4000
    whole = made.draw([1], n, rng=rng(1))[0]
    request = DrawRequest((1,) * n, 1, StepTilt(np.zeros((2, 16)), 1.0), prefixes=((),) * n)
    steps = Counter(path.response for path in rolled(made, request, rng=rng(2)).paths)
    one = dict(zip(whole.responses, whole.counts.tolist(), strict=True))
    often = [text for text in one if one[text] + steps[text] >= 40]
    assert len(often) > 10
    z = [(one[t] - steps[t]) / np.sqrt(one[t] + steps[t]) for t in often]
    assert np.max(np.abs(z)) < 4.0
    assert 0.5 < np.mean(np.square(z)) < 1.6


def test_a_reply_follows_its_prefix():
    made = oracle()
    (first, later) = made.extend([0, 0], [(), ("b c",)], 12, rng=rng())
    assert (first.prefix, later.prefix) == ((), ("b c",))
    assert first.features.shape[1] == made.step_dim == 16
    given = "b " + PROMPTS[0]
    scored = make().score(given, later.responses, made.features.hidden)
    np.testing.assert_allclose(made.features(scored), later.features, atol=1e-5)
    assert made.tokens(later) == int(later.counts @ scored.lengths)


def test_what_makes_no_conversation_is_refused():
    made = oracle()
    with pytest.raises(InputError, match="its end"):
        made.extend([0], [("a",)], 2, rng=rng())
    with pytest.raises(InputError, match="one per prompt"):
        made.extend([0, 1], [()], 2, rng=rng())
    with pytest.raises(InputError, match="after its end"):
        made.joined(0, ("a", "b"))
    with pytest.raises(InputError, match="at least one conversation"):
        made.draw([0], 0, rng=rng())
    with pytest.raises(InputError, match="above 0"):
        oracle(horizon=0)
    for wrong, text in ((lambda *_: None, "a first input"), (lambda *_: 3, "expected a text")):
        with pytest.raises(InputError, match=text):
            ConversationOracle(make(), PROMPTS, HiddenStates(16), wrong, horizon=2).draw([0], 1, rng=rng())


class Counting:
    """A user who counts the letters of what was said so far, and those of each candidate."""

    remembers = 2

    def __call__(self, prompt, replies):
        return user(prompt, replies)

    def remember(self, prompt, replies, candidates):
        return [[len(prompt + "".join(replies)), len(candidate)] for candidate in candidates]


def test_features_may_remember_what_was_said():
    made = ConversationOracle(make(), PROMPTS, HiddenStates(16), Counting(), horizon=3)
    plain = oracle()
    assert (made.step_dim, made.dim) == (18, 54)
    after = made.extend([0, 1], [(), ("b",)], 6, rng=rng())
    for d, other in zip(after, plain.extend([0, 1], [(), ("b",)], 6, rng=rng()), strict=True):
        assert d.responses == other.responses
        np.testing.assert_array_equal(d.features[:, :16], other.features)
        said = len(PROMPTS[d.prompt] + "".join(d.prefix))
        np.testing.assert_array_equal(d.features[:, 16:], [[said, len(reply)] for reply in d.responses])
    for d in made.draw([0, 1], 12, rng=rng()):
        for text, phi in zip(d.responses, d.features.reshape(-1, 3, 18), strict=True):
            said = PROMPTS[d.prompt]
            for h, (_, reply) in enumerate(turns_of(text)):
                np.testing.assert_array_equal(phi[h, 16:], [len(said), len(reply)])
                said += reply
    request = DrawRequest((0, 0), 4, StepTilt(np.zeros((3, 18)), 1.0), prefixes=((), ()))
    assert len(rolled(made, request, rng=rng()).paths) == 2


@pytest.mark.parametrize("rows", [[[1.0]], [[1.0, np.nan]], [[1.0, 2.0]] * 2, 3.0])
def test_memory_of_another_shape_is_refused(rows):
    forgetful = Counting()
    forgetful.remember = lambda prompt, replies, candidates: rows
    made = ConversationOracle(make(), PROMPTS, HiddenStates(16), forgetful, horizon=3)
    with pytest.raises(InputError, match=r"user\.remember: expected finite numbers of shape \[1, 2\]"):
        made.draw([0], 1, rng=rng())
    forgetful.remembers = -1
    with pytest.raises(InputError, match=r"user\.remembers"):
        ConversationOracle(make(), PROMPTS, HiddenStates(16), forgetful, horizon=3)
