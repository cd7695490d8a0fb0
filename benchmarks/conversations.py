"""Helpdesk conversations of K replies, rewarded only where all are good: whole conversations tilted, or turn by turn.

    python benchmarks/conversations.py                                # best case: the true reward is known
    python benchmarks/conversations.py --labels 100 200 --seeds 5     # learned from labels at the end

At equal generated tokens: the sequence level draws n whole conversations and keeps one, turn by turn n replies are
drawn at each turn and one is kept; both by the largest key, at one beta, on held-out conversations. Intervals: 95 %,
Wilson in the best case (one answer to each of many conversations), Student over seeds where it is learned. What is
learned from: a feature that says whether a reply is good, with or without memory (`Customer`), among 15 n-grams.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from spannerlm import bundled
from spannerlm.backends.conversation import ConversationOracle, turns_of
from spannerlm.backends.huggingface import HuggingFaceModel
from spannerlm.bundled.helpdesk.conversation import (
    GOOD_RATE,
    ConversationReward,
    Customer,
    conversations,
    customer,
    good,
)
from spannerlm.evaluation import mean_interval
from spannerlm.explorers import explorer_by_name
from spannerlm.features import CallableFeatures, Concatenation, FeatureMap, NGrams
from spannerlm.ledger import Ledger
from spannerlm.records import DrawRequest, FloatArray, Spec, StepTilt
from spannerlm.run import Driver
from spannerlm.samplers import pool_sample
from spannerlm.stepwise import rolled

NUISANCE = 15
"""Hashed n-grams beside the feature that matters: the explorer is not told which one does."""
TRAIN, POOL = 64, 64
"""Training conversations, and whole ones that are drawn of each where steps are not resumed."""
ALIKE = 0.9
"""Prior correlation of the turns' parameters: every turn is a reply to a question."""


@dataclass(frozen=True)
class Way:
    """How a policy is learned."""

    name: str
    explorer: str
    remembers: bool
    """Whether a feature says that all replies were good so far and this one is; there always is one for this reply."""


WAYS = (
    Way("turn by turn", "multi-turn-spanner", True),
    Way("turn by turn, no memory", "multi-turn-spanner", False),
    Way("whole conversations", "directed", True),
)


@dataclass(frozen=True)
class Answers:
    """One answer to each conversation."""

    successes: FloatArray
    """[X] 1 where all replies are good."""
    good_replies: float
    """Share of replies that are."""
    tokens: int
    """Generated in all, what was not kept included."""


@dataclass(frozen=True)
class Learned:
    """One run."""

    answers: Answers
    tokens: int
    """Generated to learn."""


def answers(oracle: ConversationOracle, texts: Sequence[str], tokens: int) -> Answers:
    """What these conversations, one per prompt, are worth."""
    reward = ConversationReward()
    each = [good(question, reply) for text in texts for question, reply in turns_of(text)]
    found = np.array([reward.value(x, text) for x, text in zip(oracle.prompts, texts, strict=True)])
    return Answers(found, float(np.mean(each)), tokens)


def whole(
    oracle: ConversationOracle, n: int, score: Callable[[str, Sequence[str], FloatArray], FloatArray], *, seed: int
) -> Answers:
    """Each conversation: the one of ``n`` that the largest key falls on; ``score`` in units of beta."""
    rng = np.random.default_rng([seed, 1])
    found = oracle.draw(range(len(oracle.prompts)), n, rng=rng)
    texts = []
    for record in found:
        logw = score(oracle.prompts[record.prompt], record.responses, record.features)
        texts.append(record.responses[int(pool_sample(logw, record.counts, 1, rng, distinct=True)[0])])
    return answers(oracle, texts, sum(map(oracle.tokens, found)))


def by_turns(oracle: ConversationOracle, n: int, theta: FloatArray, beta: float, *, seed: int) -> Answers:
    """Each conversation: at each turn the one of ``n`` replies that the largest key falls on; theta [H, d]."""
    prompts = tuple(range(len(oracle.prompts)))
    request = DrawRequest(prompts, n, StepTilt(theta, beta), prefixes=((),) * len(prompts))
    drawn = rolled(oracle, request, rng=np.random.default_rng([seed, 2]))
    return answers(oracle, [path.response for path in drawn.paths], drawn.tokens)


def knowing() -> FeatureMap:
    """The one feature of a reply that says whether it is good."""
    return CallableFeatures(lambda given, replies: [[float(good(*pair))] for pair in zip(given, replies)], 1)  # noqa: B905


def true_steps(replies: int, beta: float) -> FloatArray:
    """[H, 1] what a good reply is worth at each turn to the optimal policy, by backward induction at `GOOD_RATE`."""
    values = [1.0]
    for _ in range(replies - 1):
        values.append(beta * np.log1p(GOOD_RATE * np.expm1(values[-1] / beta)))
    return np.array(values[::-1])[:, None]


def best_case(model: HuggingFaceModel, replies: int, count: int, n: int, beta: float, seed: int) -> dict[str, Answers]:
    """Base, whole conversations and turns, where the reward is known."""
    prompts = conversations(replies, count, heldout=True, seed=seed)
    oracle = ConversationOracle(model, prompts, knowing(), customer, horizon=replies)
    reward = ConversationReward()

    def score(prompt: str, texts: Sequence[str], _: FloatArray) -> FloatArray:
        return np.array([reward.value(prompt, text) for text in texts]) / beta

    return {
        "base model": whole(oracle, 1, score, seed=seed + 1),
        "whole conversations": whole(oracle, n, score, seed=seed),
        "turn by turn": by_turns(oracle, n, true_steps(replies, beta), beta, seed=seed),
    }


def learned(
    model: HuggingFaceModel, way: Way, replies: int, count: int, n: int, beta: float, labels: int, seed: int
) -> Learned:
    """The policy of one run, on held-out conversations."""
    phi = Concatenation((knowing(), NGrams(NUISANCE)))
    user = Customer() if way.remembers else customer
    train = conversations(replies, TRAIN, seed=seed)
    oracle = ConversationOracle(model, train, phi, user, horizon=replies)
    rho = np.full(len(train), 1.0 / len(train))
    stepwise = way.explorer == "multi-turn-spanner"
    horizon, draws = (replies, None) if stepwise else (None, POOL * len(train))
    spec = Spec(rho, oracle.dim, labels, draws, 20, beta=beta, horizon=horizon)
    settings = {"alike": ALIKE} if stepwise else {}
    with Ledger.open(None, meta={}, prompts=train) as ledger:
        explorer = explorer_by_name(way.explorer, settings)
        run = Driver(oracle, explorer, ConversationReward(), ledger, spec, seed=seed)
        run.explore()
        theta = np.asarray(run.explorer.policy(run.state).theta)
        tokens = ledger.counts.tokens
    prompts = conversations(replies, count, heldout=True, seed=seed)
    held = ConversationOracle(model, prompts, phi, user, horizon=replies)
    if stepwise:
        return Learned(by_turns(held, n, theta, beta, seed=seed), tokens)
    return Learned(whole(held, n, lambda _, __, phi: phi @ theta / beta, seed=seed), tokens)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--draws", type=int, default=16, help="n: conversations, or replies at each turn")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--conversations", type=int, default=200, help="held-out ones, for each seed")
    parser.add_argument("--labels", type=int, nargs="*", default=[], help="learn from that many; none: the best case")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    task = bundled.load("helpdesk")
    model = HuggingFaceModel.load(str(task.model_path), max_new_tokens=task.max_new_tokens)
    print(f"n = {args.draws}, beta = {args.beta:g}; {args.conversations} held-out conversations a seed")
    print("equal tokens: n K replies generated per answer at either level, of about 12 tokens each")
    print("| K | knows | policy | success | 95 % | good replies | tokens per answer | tokens to learn |")
    print("|--:|---|---|--:|---|--:|--:|--:|")
    for replies in args.replies:
        for name, got in best_case(model, replies, args.conversations, args.draws, args.beta, 0).items():
            ci = binomtest(int(got.successes.sum()), len(got.successes)).proportion_ci(method="wilson")
            rate, each = got.successes.mean(), got.tokens / len(got.successes)
            print(
                f"| {replies} | the reward | {name} | {rate:.3f} | {ci.low:.3f} to {ci.high:.3f} "
                f"| {got.good_replies:.3f} | {each:.0f} | |",
                flush=True,
            )
        for labels in args.labels:
            for way in WAYS:
                sizes = (replies, args.conversations, args.draws, args.beta, labels)
                runs = [learned(model, way, *sizes, seed) for seed in range(args.seeds)]
                mean = mean_interval(np.array([run.answers.successes.mean() for run in runs]))
                each = np.mean([run.answers.tokens / len(run.answers.successes) for run in runs])
                share = np.mean([run.answers.good_replies for run in runs])
                low, high = max(mean.low, 0.0), min(mean.high, 1.0)
                print(
                    f"| {replies} | {labels} labels | {way.name} | {mean.value:.3f} | {low:.3f} to {high:.3f} "
                    f"| {share:.3f} | {each:.0f} | {np.mean([run.tokens for run in runs]):,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
