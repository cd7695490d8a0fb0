"""SpannerSampling, schedule `adaptive` (ours): THEORY 3 for people who know neither C_cov nor the noise.

It departs from the published schedule in five ways. (1) nu and the pools have no formula: epochs alternate the two
phases, each time with a smaller nu and larger pools. (2) Sigma starts at the prior precision of the regression instead
of lambda I. (3) A prompt's pair is the farthest among all pairs of its draws instead of the first beyond nu. (4) The
softmax draw comes from the stored pool, so no draw is spent twice. (5) The regression is Bayesian on single labels with
a random intercept per prompt, and the policy is not truncated: shrinkage already keeps unseen directions at zero.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

import numpy as np

from spannerlm.explorers import pools
from spannerlm.explorers.learner import Learner
from spannerlm.linalg import pair_distances, whiten
from spannerlm.policy import Policy, tilt
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Draws,
    Event,
    FloatArray,
    Info,
    LabelItem,
    Labelled,
    LabelRequest,
    Request,
    Spec,
    StopRequest,
)
from spannerlm.spanner import Certificate, Spanner, certify, disjoint_pairs, greedy_pair

MAX_EPOCHS = 60
"""Epochs without draws looked ahead for something to label: nu has then shrunk by 0.7^60, below any rounding."""
TILT_TRIES = 50
"""Prompts tried per tilted pair before giving up on finding a response that has no label yet."""


@dataclass(frozen=True, eq=False)
class AdaptiveState:
    """The learner, its pools, and the design."""

    learner: Learner
    nu: float
    pools: pools.Pools = field(default_factory=dict)
    spanner: Spanner | None = None
    """None before the first pool, which sets where Sigma starts."""
    epoch: int = 0
    size: int = 0
    """Draws per prompt of the last pool request."""
    spanned: int = 0
    """Labels asked for by this epoch's spanner phase."""
    explored: int = 0
    """Labels asked for by this epoch's exploration phase."""
    clean: bool = False
    """Whether this epoch's spanner phase is over."""
    certificates: tuple[Certificate, ...] = ()


@dataclass(frozen=True)
class AdaptiveSpannerSampling:
    """SpannerSampling that is told nothing but its budgets.

    Cost: X * pool draws at first, ``growth`` times as many in each epoch while the draws budget lasts; two labels a
    pair. An epoch's spanner phase buys at most ``acceptance_bound(d, lambda, nu)`` pairs in all, its exploration phase
    as many labels as the spanner phase, at least a batch.
    """

    pool: int = 64
    """Draws per prompt of the first pool."""
    growth: int = 4
    """Factor by which an epoch's fresh pools exceed those of the epoch before."""
    nu: float = 2.0
    """First spanner radius, in units of the label noise's standard deviation: 2 takes only what the prior leaves wide
    open, so that few labels are spent before the pools have grown."""
    decay: float = 0.7
    """Factor by which nu shrinks from epoch to epoch: 1/sqrt(2), i.e. twice the labels per direction."""
    delta: float = 0.05
    """Failure probability of all certificates together."""
    max_prompts: int = 128
    """Prompts that get a pool, at most; chosen once, from rho."""
    name: ClassVar[str] = "spanner-sampling"

    def init(self, spec: Spec) -> AdaptiveState:
        """The state before the first request."""
        return AdaptiveState(Learner.start(spec), nu=self.nu)

    def decide(self, state: AdaptiveState, *, rng: np.random.Generator) -> Request:
        """Pools first; then spanner pairs until none is left beyond nu, tilted pairs, and a new epoch."""
        learner = state.learner
        if learner.labels_left <= 0:
            return StopRequest("labels spent", self.progress(state))
        if not state.pools:
            return pools.opening(learner, self.pool, self.max_prompts, rng=rng)
        for _ in range(MAX_EPOCHS):
            request = self._labels(state, rng=rng)
            if request is not None:
                return request
            prompts = tuple(sorted(state.pools))
            size = int(min(self.growth * state.size, learner.draws_left // len(prompts)))
            if size > 0:
                info = {"phase": "pool", "epoch": state.epoch + 1, "seed": int(rng.integers(2**31))}
                return DrawRequest(prompts, size, info=info)
            state = self._next_epoch(state)
        return StopRequest("no unlabelled response is left in the pools, and no draws", self.progress(state))

    def _labels(self, state: AdaptiveState, *, rng: np.random.Generator) -> LabelRequest | None:
        """This epoch's next label request; None when the epoch is over."""
        info = {"epoch": state.epoch, "nu": state.nu}
        items = () if state.clean else _spanner_items(state, rng=rng)
        if items:
            return LabelRequest(items, {"phase": "span", **info})
        if state.explored < max(state.spanned, state.learner.spec.batch):
            items = _tilted_items(state, rng=rng)
        return LabelRequest(items, {"phase": "explore", **info}) if items else None

    def _next_epoch(self, state: AdaptiveState) -> AdaptiveState:
        """The state at the start of the next epoch: a smaller nu, both phases to be done again."""
        nu = state.nu * self.decay
        return replace(state, epoch=state.epoch + 1, nu=nu, spanned=0, explored=0, clean=False)

    def absorb(self, state: AdaptiveState, event: Event) -> AdaptiveState:
        """The state after an event. Pairs enter Sigma when they are asked for: a design needs no values."""
        state = replace(state, learner=state.learner.absorb(event))
        if isinstance(event, LabelRequest):
            return self._asked(state, event)
        if isinstance(event, Drawn) and not event.exhausted:
            return self._drawn(state, event)
        if isinstance(event, Labelled) and event.info.get("phase") not in ("span", "explore"):
            return _foreign(state, event)
        return state

    def _asked(self, state: AdaptiveState, event: LabelRequest) -> AdaptiveState:
        phase = event.info.get("phase")
        while state.epoch < event.info.get("epoch", 0):
            state = self._next_epoch(state)
        spanner = state.spanner
        for relative in _relative_features(state, event):
            spanner = spanner.accept(relative) if spanner is not None else None
        spanned = state.spanned + (len(event.items) if phase == "span" else 0)
        explored = state.explored + (len(event.items) if phase == "explore" else 0)
        clean = state.clean or phase == "explore"
        return replace(state, spanner=spanner, spanned=spanned, explored=explored, clean=clean)

    def _drawn(self, state: AdaptiveState, event: Drawn) -> AdaptiveState:
        """New pools: tested against the spanner before they join it, then a new epoch begins."""
        joined = pools.add(state.pools, event.draws)
        if event.info.get("phase") != "pool":
            return replace(state, pools=joined)
        size = min(int(d.counts.sum()) for d in event.draws)
        if state.spanner is None:
            return replace(state, pools=joined, spanner=Spanner.start(prior_precision(state.learner)), size=size)
        certificates = (*state.certificates, self._certificate(state, event, state.spanner))
        state = replace(state, pools=joined, certificates=certificates, size=size)
        return self._next_epoch(state)

    def _certificate(self, state: AdaptiveState, event: Drawn, spanner: Spanner) -> Certificate:
        """One test of the spanner on draws that it has not seen: the same number of disjoint pairs per prompt."""
        rng = np.random.default_rng(event.info["seed"])
        norms = [_pair_norms(spanner, draws, rng=rng) for draws in event.draws]
        k = min(len(n) for n in norms)
        return certify(np.concatenate([n[:k] for n in norms]), state.nu, self.delta, spanner.accepted)

    def policy(self, state: AdaptiveState) -> Policy:
        """The linear softmax policy of the posterior mean."""
        return pools.tilted_policy(state.learner, state.pools)

    def learner(self, state: AdaptiveState) -> Learner:
        """Labels, moments and posterior."""
        return state.learner

    def progress(self, state: AdaptiveState) -> Info:
        """Phase, epoch, nu, pairs in the design and the latest certificate."""
        phase = "pool" if not state.pools else "explore" if state.clean else "span"
        certificate = asdict(state.certificates[-1]) if state.certificates else None
        pairs = state.spanner.accepted if state.spanner else 0
        return {"phase": phase, "epoch": state.epoch, "nu": state.nu, "pairs": pairs, "certificate": certificate}


def prior_precision(learner: Learner) -> FloatArray:
    """[d, d] precision of theta / sigma under the regression's prior, at the largest penalty it considers."""
    inverse = np.linalg.inv(learner.transform)
    return learner.scale * inverse @ inverse


def _open_rows(state: AdaptiveState, draws: Draws) -> np.ndarray:
    """Rows of the prompt's pool whose label would be new."""
    if state.learner.spec.fresh:
        return np.arange(len(draws.responses))
    return np.array([i for i, r in enumerate(draws.responses) if state.learner.open(draws.prompt, r)], dtype=np.int64)


def _subset(draws: Draws, rows: np.ndarray) -> Draws:
    return Draws(draws.prompt, tuple(draws.responses[i] for i in rows), draws.counts[rows], draws.features[rows])


def _spanner_items(state: AdaptiveState, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
    """Label items of the prompts' farthest pairs beyond nu, prompts in random order, up to a batch."""
    learner, spanner = state.learner, state.spanner
    assert spanner is not None  # pools exist
    items: list[LabelItem] = []
    for x in rng.permutation(sorted(state.pools)):
        if len(items) + 2 > learner.batch():
            break
        draws = _subset(state.pools[int(x)], _open_rows(state, state.pools[int(x)]))
        pair = greedy_pair(spanner, draws, state.nu)
        if pair is not None:
            spanner = spanner.accept(draws.features[pair.first] - draws.features[pair.second])
            items += [LabelItem(int(x), draws.responses[i], learner.spec.fresh) for i in (pair.first, pair.second)]
    return tuple(items)


def _tilted_items(state: AdaptiveState, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
    """Label items of pairs (tilted draw, base draw) of random prompts, up to a batch."""
    learner = state.learner
    beta = pools.temperature(learner, state.pools, learner.theta)
    size, fresh = learner.batch(), learner.spec.fresh
    items: list[LabelItem] = []
    for x in pools.random_prompts(learner.spec, state.pools, TILT_TRIES * size, rng=rng):
        if len(items) >= size:
            break
        draws = state.pools[int(x)]
        base = draws.counts / draws.counts.sum()
        pair = rng.choice(len(base), p=tilt(base, draws.features @ learner.theta, beta)), rng.choice(len(base), p=base)
        for i in pair:
            item = LabelItem(int(x), draws.responses[int(i)], fresh)
            if fresh or (learner.open(item.prompt, item.response) and item not in items):
                items.append(item)
    return tuple(items[:size])


def _relative_features(state: AdaptiveState, event: LabelRequest) -> list[FloatArray]:
    """[d] relative features of a request: consecutive items of one prompt are a pair, a single stands alone.

    A single is measured against its prompt's mean feature.
    """
    relative, previous = [], None
    for item in event.items:
        draws = state.pools.get(item.prompt)
        if draws is None or item.response not in draws.responses:
            previous = None
            continue
        phi = draws.features[draws.responses.index(item.response)]
        if previous is not None and previous[0] == item.prompt:
            relative[-1] = previous[1] - phi
            previous = None
        else:
            relative.append(phi - state.learner.centres[item.prompt])
            previous = (item.prompt, phi)
    return relative


def _foreign(state: AdaptiveState, event: Labelled) -> AdaptiveState:
    """Labels that were never asked for enter the design against their prompt's mean."""
    spanner = state.spanner
    for label, phi in zip(event.labels, event.features, strict=True):
        if spanner is not None and label.value is not None:
            spanner = spanner.accept(phi - state.learner.centres[label.prompt])
    return replace(state, spanner=spanner)


def _pair_norms(spanner: Spanner, draws: Draws, *, rng: np.random.Generator) -> FloatArray:
    """[k] norms of the prompt's disjoint pairs."""
    pairs = disjoint_pairs(draws.counts, rng=rng)
    whitened = whiten(spanner.root, draws.features)
    n = len(whitened)
    if n * n < len(pairs):  # few distinct responses, drawn often: each distinct pair is measured once
        table: FloatArray = np.sqrt(pair_distances(whitened, slice(0, n), slice(0, n)))
        return table[pairs[:, 0], pairs[:, 1]]
    norms: FloatArray = np.linalg.norm(whitened[pairs[:, 0]] - whitened[pairs[:, 1]], axis=1)
    return norms
