"""Base roll-outs as a tree: what a prefix is worth, from the leaves up, and the tilted law of what the leaves hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from spannerlm.oracle import TokenOracle
from spannerlm.records import Draws, FloatArray

Node = tuple[int, tuple[str, ...]]
"""A prompt and the segments after it."""
Ask = Callable[[Sequence[int], Sequence[tuple[str, ...]], int], tuple[Sequence[Draws], int]]
"""Prompts, prefixes, n -> n next segments after each, and the tokens of all: the oracle, or a ledger before it."""
Score = Callable[[Sequence[int], Sequence[str]], FloatArray]
"""Prompts [k] and complete responses [k] -> free rewards [k], nan where declined."""
Wholes = Callable[[FloatArray, np.random.Generator | None], tuple[FloatArray, FloatArray]]
"""Weights of the prompts [X] -> ratios [K] of whole answers and their tilted masses; with a generator, resampled."""


def asked(oracle: TokenOracle, rng: np.random.Generator) -> Ask:
    """Draws straight from the oracle, unrecorded. Cost: as `TokenOracle.extend`."""

    def ask(prompts: Sequence[int], prefixes: Sequence[tuple[str, ...]], n: int) -> tuple[Sequence[Draws], int]:
        records = oracle.extend(prompts, prefixes, n, rng=rng)
        return records, sum(map(oracle.tokens, records))

    return ask


class Tree:
    """Base roll-outs as they were drawn: after each prefix its next segments, and how often each came."""

    def __init__(self, oracle: TokenOracle, ask: Ask) -> None:
        self._oracle, self._ask = oracle, ask
        self.after: dict[Node, dict[Node, int]] = {}
        self.draws = self.tokens = self.tokens_of_first = 0

    def walk(self, walkers: Mapping[Node, int]) -> dict[Node, int]:
        """The complete answers, and how many of the walkers ended at each."""
        ends: dict[Node, int] = {}
        first = True
        while walkers:
            done = {node: n for node, n in walkers.items() if self._oracle.complete(*node)}
            for node, n in done.items():
                ends[node] = ends.get(node, 0) + n
            before = self.tokens
            walkers = self.step({node: n for node, n in walkers.items() if node not in done})
            self.tokens_of_first, first = self.tokens - before if first else self.tokens_of_first, False
        return ends

    def step(self, walkers: Mapping[Node, int]) -> dict[Node, int]:
        """Where the walkers are one segment on. Few calls: of 2^i draws each, by the binary digits of their numbers."""
        found: dict[Node, int] = {}
        for digit in range(max(walkers.values(), default=0).bit_length()):
            here = [node for node, n in walkers.items() if n >> digit & 1]
            if not here:
                continue
            records, tokens = self._ask([x for x, _ in here], [prefix for _, prefix in here], 1 << digit)
            self.draws, self.tokens = self.draws + (len(here) << digit), self.tokens + tokens
            for (x, prefix), record in zip(here, records, strict=True):
                counts = self.after.setdefault((x, prefix), {})
                for segment, n in zip(record.responses, record.counts, strict=True):
                    child = x, (*prefix, segment)
                    counts[child] = counts.get(child, 0) + int(n)
                    found[child] = found.get(child, 0) + int(n)
        return found

    def values(self, leaves: Mapping[Node, float], prompts: Sequence[int]) -> dict[Node, float]:
        """log W of every prefix of these prompts, from the leaves' log weights up."""
        value = dict(leaves)
        for node in sorted((n for n in self.after if n[0] in set(prompts)), key=lambda n: -len(n[1])):
            counts = self.after[node]
            logs = np.array([value[child] for child in counts])
            top = float(np.max(logs))
            total = np.array(list(counts.values()), dtype=np.float64)
            with np.errstate(divide="ignore"):
                mean = np.log(total @ np.exp(logs - top) / total.sum()) if top > -math.inf else -math.inf
            value[node] = top + float(mean) if top > -math.inf else -math.inf
        return value

    def weak(self, value: Mapping[Node, float], leaf: Node) -> list[Node]:
        """Prefixes of an answer at which the segment it takes came once, and carries more than half of what they are
        worth: how rare that segment is, the draws there do not say."""
        x, y = leaf
        found = []
        for h in range(len(y)):
            node, child = (x, y[:h]), (x, y[: h + 1])
            counts = self.after[node]
            share = counts[child] / sum(counts.values()) * math.exp(value[child] - value[node])
            if counts[child] == 1 and len(counts) > 1 and share > 0.5:
                found.append(node)
        return found

    def law(self, leaves: Mapping[Node, float], prompt: int) -> tuple[FloatArray, FloatArray]:
        """[n] log weights of the prompt's leaves that have one, and their base mass as the tree estimates it."""
        logs, masses = [], []
        ahead: list[tuple[Node, float]] = [((prompt, ()), 1.0)]
        while ahead:
            node, mass = ahead.pop()
            if node in leaves:
                if leaves[node] > -math.inf:
                    logs.append(leaves[node])
                    masses.append(mass)
                continue
            counts = self.after[node]
            total = sum(counts.values())
            ahead += [(child, mass * n / total) for child, n in counts.items()]
        return np.array(logs), np.array(masses)


def graded(score: Score, beta: float, leaves: Mapping[Node, int], oracle: TokenOracle) -> dict[Node, float]:
    """r / beta of complete answers; -inf where declined."""
    nodes = list(leaves)
    if not nodes:
        return {}
    rewards = score([x for x, _ in nodes], [oracle.joined(x, y) for x, y in nodes])
    logs = np.where(np.isnan(rewards), -math.inf, rewards / beta)
    return dict(zip(nodes, logs.tolist(), strict=True))


def kept(
    leaves: Mapping[Node, float], ends: Mapping[Node, int], prompt: int, paths: int, rng: np.random.Generator
) -> list[tuple[str, ...]]:
    """``paths`` of the prompt's pool by the tilted law's odds, evenly spread (systematic resampling)."""
    mine = [leaf for leaf in ends if leaf[0] == prompt and leaves[leaf] > -math.inf]
    if not mine:
        return []
    logs = np.array([leaves[leaf] for leaf in mine])
    law = np.cumsum(np.array([ends[leaf] for leaf in mine]) * np.exp(logs - np.max(logs)))
    at = (rng.random() + np.arange(paths)) / paths * law[-1]
    return [mine[i][1] for i in np.minimum(np.searchsorted(law, at, side="right"), len(mine) - 1)]


def wholes_of(pools: Sequence[tuple[FloatArray, FloatArray]], n: int) -> Wholes:
    """Ratios of whole answers, from their log weights and base masses, of each prompt; resampled, from laws as in
    `foundation.bounds`: Dirichlet(n masses), on every second call with one answer more, as good as any of any prompt,
    that none of n draws has shown."""
    top = max(float(np.max(logs)) for logs, _ in pools)

    def wholes(weights: FloatArray, rng: np.random.Generator | None) -> tuple[FloatArray, FloatArray]:
        unseen = rng is not None and rng.random() < 0.5
        ratios, tilted = [], []
        for weight, (logs, masses) in zip(weights, pools, strict=True):
            w, base = np.exp(np.append(logs, top) - top), np.append(n * masses, 1.0 if unseen else 0.0)
            base = base if rng is None else rng.standard_gamma(base)
            total = base @ w
            kept = base * w > 0.0
            if not total > 0.0:  # nothing near the best answer: no tilt that counts
                w, total, kept = np.ones(len(w)), base.sum(), base > 0.0
            ratios.append((w * base.sum() / total)[kept])
            tilted.append((weight * base * w / total)[kept])
        return np.concatenate(ratios), np.concatenate(tilted)

    return wholes


def missed(pools: Sequence[tuple[FloatArray, FloatArray]], n: int) -> float:
    """Share of the tilted law on one answer more than n draws have shown, as good as any; 1 where all are alike."""
    top = max(float(np.max(logs)) for logs, _ in pools)
    if all(np.ptp(logs) == 0.0 for logs, _ in pools):
        return 1.0
    return float(np.mean([1.0 / (1.0 + n * masses @ np.exp(logs - top)) for logs, masses in pools]))
