"""Helpdesk conversations of K replies, rewarded only where all are good: whole conversations tilted, or turn by turn.

    python benchmarks/conversations.py                                # best case: the true reward is known
    python benchmarks/conversations.py --labels 100 200 --seeds 5     # learned from labels at the end

At equal generated tokens: the sequence level draws n whole conversations and keeps one, turn by turn n replies are
drawn at each turn and one is kept; both by the largest key, at one beta, on held-out conversations. Intervals: 95 %,
Wilson in the best case (one answer to each of many conversations), Student over seeds where it is learned.
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
from spannerlm.bundled.helpdesk.conversation import GOOD_RATE, ConversationReward, conversations, customer, good
from spannerlm.evaluation import mean_interval
from spannerlm.explorers import explorer_by_name
from spannerlm.features import CallableFeatures, FeatureMap, HiddenStates
from spannerlm.ledger import Ledger
from spannerlm.records import DrawRequest, FloatArray, Spec, StepTilt
from spannerlm.run import Driver
from spannerlm.samplers import pool_sample
from spannerlm.stepwise import rolled

EXPLORERS = ("directed", "multi-turn-spanner")


@dataclass(frozen=True)
class Answers:
    """One answer to each conversation."""

    successes: FloatArray
    """[X] 1 where all replies are good."""
    good_replies: float
    """Share of replies that are."""
    tokens: int
    """Generated in all, what was not kept included."""


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
    model: HuggingFaceModel,
    explorer: str,
    replies: int,
    count: int,
    n: int,
    beta: float,
    labels: int,
    dim: int,
    seed: int,
) -> tuple[Answers, int, float]:
    """The policy of one run, on held-out conversations; the run's tokens; the mean of its labels."""
    phi = HiddenStates(model.hidden_size, project=dim)
    train = conversations(replies, 64, seed=seed)
    oracle = ConversationOracle(model, train, phi, customer, horizon=replies)
    rho = np.full(len(train), 1.0 / len(train))
    spec = Spec(rho, oracle.dim, labels, None, 20, beta=beta, horizon=replies if explorer == EXPLORERS[1] else None)
    with Ledger.open(None, meta={}, prompts=train) as ledger:
        run = Driver(oracle, explorer_by_name(explorer), ConversationReward(), ledger, spec, seed=seed)
        run.explore()
        theta = np.asarray(run.explorer.policy(run.state).theta)
        values = [label.value for label, _ in run.labels_seen if label.value is not None]
        tokens = ledger.counts.tokens
    held = ConversationOracle(
        model, conversations(replies, count, heldout=True, seed=seed), phi, customer, horizon=replies
    )
    if explorer == EXPLORERS[1]:
        return by_turns(held, n, theta, beta, seed=seed), tokens, float(np.mean(values))
    return whole(held, n, lambda _, __, phi: phi @ theta / beta, seed=seed), tokens, float(np.mean(values))


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--draws", type=int, default=16, help="n: conversations, or replies at each turn")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--conversations", type=int, default=200, help="held-out ones, for each seed")
    parser.add_argument("--labels", type=int, nargs="*", default=[], help="learn from that many; none: the best case")
    parser.add_argument("--dim", type=int, default=16, help="d of the projected hidden states")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    task = bundled.load("helpdesk")
    model = HuggingFaceModel.load(str(task.model_path), max_new_tokens=task.max_new_tokens)
    print(f"n = {args.draws}, beta = {args.beta:g}; {args.conversations} held-out conversations a seed")
    print("equal tokens: n K replies generated per answer at either level, of about 12 tokens each")
    print("| K | knows | policy | success | 95 % | good replies | tokens per answer | tokens to learn | mean label |")
    print("|--:|---|---|--:|---|--:|--:|--:|--:|")
    for replies in args.replies:
        for name, got in best_case(model, replies, args.conversations, args.draws, args.beta, 0).items():
            ci = binomtest(int(got.successes.sum()), len(got.successes)).proportion_ci(method="wilson")
            rate, each = got.successes.mean(), got.tokens / len(got.successes)
            print(
                f"| {replies} | the reward | {name} | {rate:.3f} | {ci.low:.3f} to {ci.high:.3f} "
                f"| {got.good_replies:.3f} | {each:.0f} | | |",
                flush=True,
            )
        for labels in args.labels:
            for explorer in EXPLORERS:
                sizes = (replies, args.conversations, args.draws, args.beta, labels, args.dim)
                runs = [learned(model, explorer, *sizes, seed) for seed in range(args.seeds)]
                mean = mean_interval(np.array([got.successes.mean() for got, _, _ in runs]))
                each = np.mean([got.tokens / len(got.successes) for got, _, _ in runs])
                share = np.mean([got.good_replies for got, _, _ in runs])
                print(
                    f"| {replies} | {labels} labels | {explorer} | {mean.value:.3f} "
                    f"| {mean.low:.3f} to {mean.high:.3f} | {share:.3f} | {each:.0f} "
                    f"| {np.mean([spent for _, spent, _ in runs]):.0f} | {np.mean([m for _, _, m in runs]):.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
