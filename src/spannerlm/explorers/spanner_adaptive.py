"""SpannerSampling, schedule `adaptive` (ours): THEORY 3 for people who know neither C_cov nor the noise.

It departs from the published schedule in five ways. (1) nu and the pools have no formula: epochs alternate the two
phases, each time with a smaller nu and larger pools. (2) Sigma starts at the prior precision of the regression instead
of lambda I. (3) A prompt's pair is the farthest among all pairs of its draws instead of the first beyond nu. (4) The
softmax draw comes from the stored pool, so no draw is spent twice. (5) The regression is Bayesian on single labels with
a random intercept per prompt, and the policy is not truncated: shrinkage already keeps unseen directions at zero.

With comparisons (THEORY 6) a pair is one label, the regression is logistic, and everything is in logits: the prior's
precision is that of theta / s, and a pair adds to Sigma the most that a comparison can tell, phi phi' / 4.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

import numpy as np

from spannerlm.explorers import pools
from spannerlm.explorers.duels import Duels
from spannerlm.explorers.learner import Asked, Learner, asked
from spannerlm.linalg import pair_distances, whiten
from spannerlm.policy import Policy, tilt
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Draws,
    Event,
    FloatArray,
    Info,
    IntArray,
    LabelItem,
    Labelled,
    LabelRequest,
    Request,
    Spec,
    StopRequest,
)
from spannerlm.spanner import Certificate, Spanner, certify, disjoint_pair_counts, disjoint_pairs, greedy_pair

MAX_EPOCHS = 60
"""Epochs without draws looked ahead for something to label: nu has then shrunk by 0.7^60, below any rounding."""
PATIENCE = 3
"""Pools in a row, each ``growth`` times the one before, without a new response, after which no more are drawn for what
is labelled already: the mass of what is then still unseen is beyond any label budget."""
MAX_POOL = 10**8
"""Draws of one prompt in one request, at most: shuffling counts is exact in NumPy up to 1e9."""
EPOCH_LABELS = 20
"""Labels of an epoch's exploration phase, at least: with small batches nu and the pools would run away from them."""
CANDIDATES = 4
"""Tilted pairs looked at per pair that is labelled: at 50 labels the worst of 8 helpdesk seeds is at .14 with one
candidate, at .87 with four."""
TILT_TRIES = 10
"""Prompts tried per candidate before giving up on finding a response that has no label yet."""
INFORMATION = 0.25
"""Largest p (1 - p): what one comparison tells of its logit, at most."""


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
    idle: int = 0
    """Pools in a row that brought no response which was not known before, since labels were last asked for."""
    certificates: tuple[Certificate, ...] = ()


@dataclass(frozen=True)
class AdaptiveSpannerSampling:
    """SpannerSampling that is told nothing but its budgets.

    Cost: X * pool draws at first, ``growth`` times as many in each epoch while the draws budget lasts; two labels a
    pair, one with comparisons. The spanner phases up to radius nu buy at most ``acceptance_bound(d, lambda, nu)`` pairs
    together, lambda the least eigenvalue of where Sigma starts (features of norm at most 1; with comparisons 4 lambda
    and nu / 2); an exploration phase buys as many labels as its epoch's spanner phase, a batch and 20 at least.
    """

    pool: int = 64
    """Draws per prompt of the first pool."""
    growth: int = 4
    """Factor by which an epoch's fresh pools exceed those of the epoch before."""
    nu: float = 2.0
    """First spanner radius, in units of the label noise's standard deviation (of comparisons: in logits): 2 takes only
    what the prior leaves wide open, so that few labels are spent before the pools have grown."""
    decay: float = 0.7
    """Factor by which nu shrinks from epoch to epoch: 1/sqrt(2), i.e. twice the labels per direction."""
    delta: float = 0.05
    """Failure probability of all certificates together."""
    max_prompts: int = 128
    """Prompts that get a pool, at most; chosen once, from rho."""
    name: ClassVar[str] = "spanner-sampling"
    comparisons: ClassVar[bool] = True

    def init(self, spec: Spec) -> AdaptiveState:
        """The state before the first request."""
        return AdaptiveState(Learner.start(spec), nu=self.nu)

    def decide(self, state: AdaptiveState, *, rng: np.random.Generator) -> Request:
        """Pools first; then spanner pairs until none is left beyond nu, tilted pairs, and a new epoch."""
        learner = state.learner
        if learner.labels_left <= 0:
            return StopRequest("labels spent", self.progress(state))
        if state.spanner is None:
            return pools.opening(learner, self.pool, self.max_prompts, rng=rng)
        prompts = tuple(sorted(state.pools))
        open_left = _open_left(state)
        for _ in range(MAX_EPOCHS):
            request = self._labels(state, rng=rng) if open_left else None
            if request is not None:
                return request
            size = pools.affordable(learner.draws_left, len(prompts), min(self.growth * state.size, MAX_POOL))
            if size > 0 and (state.idle < PATIENCE or (learner.spec.fresh and open_left)):
                info = {"phase": "pool", "epoch": state.epoch + 1, "seed": int(rng.integers(2**31))}
                return DrawRequest(prompts, size, info=info)
            if not open_left:
                break
            state = self._next_epoch(state)
        what = "comparison that tells anything" if _comparing(state) else "unlabelled response"
        return StopRequest(f"no {what} is left, and more draws bring none", self.progress(state))

    def _labels(self, state: AdaptiveState, *, rng: np.random.Generator) -> LabelRequest | None:
        """This epoch's next label request; None when the epoch is over."""
        info = {"epoch": state.epoch, "nu": state.nu}
        items = () if state.clean else _spanner_items(state, rng=rng)
        if items:
            return LabelRequest(items, {"phase": "span", **info})
        if state.explored < max(state.spanned, state.learner.spec.batch, EPOCH_LABELS):
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
        return replace(state, spanner=spanner, spanned=spanned, explored=explored, clean=clean, idle=0)

    def _drawn(self, state: AdaptiveState, event: Drawn) -> AdaptiveState:
        """New pools: tested against the spanner before they join it, then a new epoch begins."""
        joined = pools.add(state.pools, event.draws)
        if event.info.get("phase") != "pool" or not event.draws:
            return replace(state, pools=joined)
        size = min(int(d.counts.sum()) for d in event.draws)
        if state.spanner is None:
            return replace(state, pools=joined, spanner=Spanner.start(_first_sigma(state.learner)), size=size)
        news = sum(len(joined[x].responses) for x in joined) - sum(len(d.responses) for d in state.pools.values())
        certificates = state.certificates + self._certificate(state, event, state.spanner)
        idle = 0 if news else state.idle + 1
        return self._next_epoch(replace(state, pools=joined, certificates=certificates, size=size, idle=idle))

    def _certificate(self, state: AdaptiveState, event: Drawn, spanner: Spanner) -> tuple[Certificate, ...]:
        """One test of the spanner on draws that it has not seen: the same number of disjoint pairs per prompt.

        None where it was tested after as many acceptances before: delta_j pays for one test only. None for draws that
        were not asked for either: who knows what they have been used for.
        """
        tested = any(c.acceptances == spanner.accepted for c in state.certificates)
        k = min(int(draws.counts.sum()) for draws in event.draws) // 2
        if tested or k == 0 or "seed" not in event.info:
            return ()
        rng = np.random.default_rng(event.info["seed"])
        found = [_pair_norms(spanner, draws, k, rng=rng) for draws in event.draws]
        norms, counts = (np.concatenate(part) for part in zip(*found, strict=True))
        return (certify(norms, state.nu, self.delta, spanner.accepted, counts=counts),)

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
    """[d, d] precision of theta / sigma under the regression's prior at lambda = S: signal as large as noise."""
    inverse = np.linalg.inv(learner.transform)
    return learner.scale * inverse @ inverse


def _first_sigma(learner: Learner) -> FloatArray:
    """[d, d] where Sigma starts: the prior precision, and what labels from before the first pool have told."""
    if learner.spec.feedback == "scalar":
        return prior_precision(learner) + learner.stats.centred(learner.centres).outer
    if learner.comparisons.comparisons == 0:
        return prior_precision(learner)
    relative = learner.comparisons.relative
    return prior_precision(learner) + INFORMATION * relative.T @ relative


def _comparing(state: AdaptiveState) -> bool:
    return state.learner.spec.feedback == "comparison"


def _per_pair(state: AdaptiveState) -> int:
    """Labels that a pair costs."""
    return 1 if _comparing(state) else 2


def _told(state: AdaptiveState, relative: FloatArray) -> FloatArray:
    """[..., d] relative features of pairs as they enter Sigma."""
    return np.sqrt(INFORMATION) * relative if _comparing(state) else relative


def _open_left(state: AdaptiveState) -> bool:
    """Whether the pools hold anything to label."""
    if _comparing(state):
        duels = Duels(state.learner)
        return any(duels.any(draws) for draws in state.pools.values())
    return any(len(_open_rows(state, draws)) for draws in state.pools.values())


def _open_rows(state: AdaptiveState, draws: Draws) -> np.ndarray:
    """Rows of the prompt's pool whose reward label would be new."""
    if state.learner.spec.fresh:
        return np.arange(len(draws.responses))
    return np.array([i for i, r in enumerate(draws.responses) if state.learner.open(draws.prompt, r)], dtype=np.int64)


def _subset(draws: Draws, rows: np.ndarray) -> Draws:
    return Draws(draws.prompt, tuple(draws.responses[i] for i in rows), draws.counts[rows], draws.features[rows])


def _pair_items(state: AdaptiveState, draws: Draws, first: int, second: int) -> list[LabelItem]:
    """What labelling a pair takes: one comparison, or the rewards of both."""
    one, other, fresh = draws.responses[first], draws.responses[second], state.learner.spec.fresh
    if _comparing(state):
        return [LabelItem(draws.prompt, one, fresh, other)]
    return [LabelItem(draws.prompt, response, fresh) for response in (one, other)]


def _spanner_items(state: AdaptiveState, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
    """Label items of the prompts' farthest pairs beyond nu, prompts in random order, up to a batch."""
    learner, spanner, duels = state.learner, state.spanner, Duels(state.learner)
    assert spanner is not None  # pools exist
    items: list[LabelItem] = []
    for x in rng.permutation(sorted(state.pools)):
        if len(items) + _per_pair(state) > learner.batch():
            break
        draws = state.pools[int(x)]
        if _comparing(state):
            pair = duels.farthest(spanner, draws, state.nu)
        else:
            draws = _subset(draws, _open_rows(state, draws))
            pair = greedy_pair(spanner, draws, state.nu)
        if pair is not None:
            spanner = spanner.accept(_told(state, draws.features[pair.first] - draws.features[pair.second]))
            items += _pair_items(state, draws, pair.first, pair.second)
    return tuple(items)


def _tilted_items(state: AdaptiveState, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
    """Label items of pairs (tilted draw, base draw) of random prompts, up to a batch.

    Of more candidates than the batch takes, those farthest apart are kept, each measured in the Sigma that includes the
    ones before it: a pair that tells next to nothing costs as much as any other.
    """
    learner, spanner = state.learner, state.spanner
    assert spanner is not None  # pools exist
    size, fresh = learner.batch(), learner.spec.fresh
    pairs = _tilted_pairs(state, CANDIDATES * max(1, size // _per_pair(state)), rng=rng)
    relative = np.array([state.pools[x].features[i] - state.pools[x].features[j] for x, i, j in pairs])
    left = np.ones(len(pairs), dtype=np.bool_)
    items: list[LabelItem] = []
    taken: set[Asked] = set()
    while left.any() and len(items) < size:
        k = int(np.argmax(np.where(left, spanner.norms(relative), -1.0)))
        left[k] = False
        x, i, j = pairs[k]
        found = _pair_items(state, state.pools[x], i, j)
        new = [m for m in found if fresh or (asked(m) not in taken and learner.open(x, m.response, m.opponent))]
        if new:
            items += new
            taken.update(map(asked, new))
            spanner = spanner.accept(_told(state, relative[k]))
    return tuple(items[:size]) or _any_open_items(state, rng=rng)


def _tilted_pairs(state: AdaptiveState, size: int, *, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Up to ``size`` (prompt, row of a tilted draw, row of a base draw), rows different and worth a label."""
    learner, duels = state.learner, Duels(state.learner)
    beta = pools.temperature(learner, state.pools, learner.theta)
    laws: dict[int, tuple[FloatArray, FloatArray]] = {}
    pairs: list[tuple[int, int, int]] = []
    for x in map(int, pools.random_prompts(learner.spec, state.pools, TILT_TRIES * size, rng=rng)):
        if len(pairs) >= size:
            break
        draws = state.pools[x]
        if x not in laws:
            base = draws.counts / draws.counts.sum()
            laws[x] = base, tilt(base, draws.features @ learner.theta, beta)
        base, tilted = laws[x]
        i, j = int(rng.choice(len(base), p=tilted)), int(rng.choice(len(base), p=base))
        if _comparing(state):
            worth = duels.open(draws, i, j)
        else:
            worth = i != j and any(learner.open(x, draws.responses[row]) for row in (i, j))
        if worth:
            pairs.append((x, i, j))
    return pairs


def _any_open_items(state: AdaptiveState, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
    """Label items of random responses or pairs that have none, whatever their mass, up to a batch."""
    if _comparing(state):
        return Duels(state.learner).some(state.pools, state.learner.batch(), rng=rng)
    rows = [(x, i) for x, draws in sorted(state.pools.items()) for i in _open_rows(state, draws)]
    chosen = [rows[k] for k in rng.permutation(len(rows))[: state.learner.batch()]]
    return tuple(LabelItem(x, state.pools[x].responses[i], state.learner.spec.fresh) for x, i in chosen)


def _relative_features(state: AdaptiveState, event: LabelRequest) -> list[FloatArray]:
    """[d] relative features of a request as they enter Sigma: of comparisons, or of rewards.

    Consecutive rewards of one prompt are a pair; a single is measured against its prompt's mean feature.
    """
    relative, previous = [], None
    for item in event.items:
        draws = state.pools.get(item.prompt)
        texts = [item.response] if item.opponent is None else [item.response, item.opponent]
        unused = (item.opponent is not None) != _comparing(state)
        if draws is None or unused or any(text not in draws.responses for text in texts):
            previous = None
            continue
        phi, *other = (draws.features[draws.responses.index(text)] for text in texts)
        if other:
            relative.append(_told(state, phi - other[0]))
        elif previous is not None and previous[0] == item.prompt:
            relative[-1] = previous[1] - phi
            previous = None
        else:
            relative.append(phi - state.learner.centres[item.prompt])
            previous = (item.prompt, phi)
    return relative


def _foreign(state: AdaptiveState, event: Labelled) -> AdaptiveState:
    """Labels that were never asked for enter the design: rewards against their prompt's mean."""
    spanner = state.spanner
    for label, phi in zip(event.labels, event.features, strict=True):
        used = label.value is not None and (label.opponent is not None) == _comparing(state)
        if spanner is not None and used:
            relative = phi if label.opponent is not None else phi - state.learner.centres[label.prompt]
            spanner = spanner.accept(_told(state, relative))
    return replace(state, spanner=spanner)


def _pair_norms(spanner: Spanner, draws: Draws, k: int, *, rng: np.random.Generator) -> tuple[FloatArray, IntArray]:
    """(norms, how many pairs have each) of ``k`` disjoint pairs of the prompt's draws."""
    whitened = whiten(spanner.root, draws.features - draws.features.mean(axis=0))
    n = len(whitened)
    if n * n < k:  # few distinct responses, drawn often: each distinct pair is measured once
        norms = np.sqrt(pair_distances(whitened, slice(0, n), slice(0, n)))
        return norms.ravel(), disjoint_pair_counts(draws.counts, k, rng=rng).ravel()
    pairs = disjoint_pairs(draws.counts, rng=rng)[:k]
    return np.linalg.norm(whitened[pairs[:, 0]] - whitened[pairs[:, 1]], axis=1), np.ones(k, dtype=np.int64)
