"""The driver: explorer, oracle, reward and ledger, one request after the other; and `explore`, its plain face.

A run is a fold over its ledger. The driver asks the explorer for a request, records it, executes it, records the
outcome, and folds both into the explorer's state; what is recorded is never decided again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from spannerlm.buying import Buyer, refuse_doubtful, turned_away
from spannerlm.errors import InputError
from spannerlm.explorers import Explorer
from spannerlm.ledger import Claim, Counts, Ledger
from spannerlm.oracle import SamplingOracle, TokenOracle
from spannerlm.policy import Policy, TruncatedSoftmaxPolicy
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Draws,
    FloatArray,
    Info,
    Label,
    LabelItem,
    Labelled,
    LabelRequest,
    Request,
    Spec,
    StopRequest,
    Tilt,
)
from spannerlm.rewards import Answer, CompareFunction, RewardFunction, ask_comparison, ask_reward, is_pure
from spannerlm.samplers import Accepted, softmax_sampler
from spannerlm.stepwise import largest_scores, rolled

Measure = Callable[[Policy], Info]
"""What a row of the history says of a policy beyond its costs: its regret, its value."""
Purpose = Literal["explore", "evaluate"]


@dataclass(frozen=True, eq=False)
class Result:
    """What a run ended with."""

    labels: int
    """T_data: reward labels bought to learn."""
    draws: int
    """T_comp: oracle draws spent to learn."""
    policy: Policy
    history: list[dict[str, Any]]
    """First row at 0 labels, then one per label batch: labels, draws, regret or value, phase, ..."""
    reason: str
    """Why the explorer stopped."""
    counts: Counts
    """Everything that was spent, evaluation included."""
    explorer: Explorer
    state: Any
    """The explorer's last state."""
    run_dir: Path | None
    levels: FloatArray | None = None
    """[H] largest score of any segment drawn at each step (`step_levels`); None where the policy has no steps."""

    @property
    def theta(self) -> FloatArray:
        """[d] the learned reward parameter; [H, d], one of each step, where the explorer acts step by step."""
        return self.policy.theta


@dataclass
class Stopwatch:
    """Seconds spent by part of a run, each counted once."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of a with-block to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Driver:
    """One explorer at work on one oracle, reward and ledger.

    ``reward`` gives the labels of single responses, ``compare`` those of pairs; None where the run has no such source.
    What becomes of a source that breaks, or asks to come back later, `spannerlm.buying` says.
    """

    def __init__(
        self,
        oracle: SamplingOracle,
        explorer: Explorer,
        reward: RewardFunction | None,
        ledger: Ledger,
        spec: Spec,
        *,
        seed: int,
        compare: CompareFunction | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        observe: Callable[[Driver], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.oracle, self.explorer, self.ledger = oracle, explorer, ledger
        self.reward, self.compare = reward, compare
        self.spec, self.seed, self.columns, self.observe = spec, seed, dict(columns or {}), observe
        self.measure: Measure = lambda _: {}
        self.stopwatch = Stopwatch()
        self.state: Any = explorer.init(spec)
        self._buyers = {pairs: Buyer(ledger, self._ask, clock=clock, sleep=sleep) for pairs in (False, True)}
        self.history: list[dict[str, Any]] = []
        self.evaluation_draws: tuple[Draws, ...] = ()
        self.evaluation_labels: Labelled | None = None
        self.exploration_draws: list[Draws] = []
        self.labels_seen: list[tuple[Label, FloatArray]] = []
        self.reason = ""
        self._rows: dict[tuple[int, str], FloatArray] = {}
        self._segments: dict[tuple[int, tuple[str, ...]], dict[str, FloatArray]] = {}

    # --- the fold ---------------------------------------------------------------------------------------------------

    def replay(self) -> None:
        """Fold everything that the ledger holds, then finish the request that was cut off, if there is one."""
        for entry in self.ledger.replay():
            self._fold(entry.event, entry.purpose, entry.counts)
        unfinished = self.ledger.unfinished()
        if unfinished is not None:
            self._execute(*unfinished)

    def explore(self) -> None:
        """Let the explorer decide until it stops, or until it had stopped before."""
        self._row(self.ledger.counts)
        while not self.reason:
            k = self.ledger.next_request
            with self.stopwatch.part("explorer"):
                request = self.explorer.decide(self.state, rng=np.random.default_rng([self.seed, k]))
            if isinstance(request, StopRequest):
                self.reason = request.reason
                self._stop = request
            else:
                self._issue(k, request, "explore")
            self.observe(self)

    def stop(self) -> None:
        """Record why the explorer stopped: the run's last row. A run that had stopped before is left as it is."""
        if self.ledger.stopped is None:
            self.ledger.stop(self.ledger.next_request, self._stop)

    def draw_for_evaluation(self, prompts: Sequence[int], n: int) -> tuple[Draws, ...]:
        """[m] draws that serve to measure policies; drawn once per run, counted apart from T_comp."""
        if not self.evaluation_draws:
            request = DrawRequest(tuple(prompts), n, info={"phase": "evaluate"})
            self._issue(self.ledger.next_request, request, "evaluate")
        return self.evaluation_draws

    def label_for_evaluation(self, items: Sequence[LabelItem]) -> Labelled:
        """Labels bought to measure policies, once per run: from the same budget, counted in their own column."""
        if self.evaluation_labels is None:
            self._issue(self.ledger.next_request, LabelRequest(tuple(items), {"phase": "evaluate"}), "evaluate")
        assert self.evaluation_labels is not None  # folded by the line before
        return self.evaluation_labels

    def _issue(self, k: int, request: Request, purpose: Purpose) -> None:
        with self.stopwatch.part("ledger"):
            request = self.ledger.request(k, request, purpose=purpose)
        self._fold(request, purpose, self.ledger.counts)
        self._execute(k, request)

    def _execute(self, k: int, request: Request) -> None:
        """Execute a recorded request, record its outcome, fold it."""
        purpose = self.ledger.purpose(k)
        if isinstance(request, DrawRequest):
            drawn = self._draw(k, request)
            with self.stopwatch.part("ledger"):
                drawn = self.ledger.drawn(k, drawn)
            self._fold(drawn, purpose, self.ledger.counts)
        elif isinstance(request, LabelRequest):
            labelled = self._label(k, request)
            self._fold(labelled, purpose, self.ledger.counts)

    def _fold(self, event: Any, purpose: str, counts: Counts) -> None:
        if isinstance(event, StopRequest):
            self.reason, self._stop = event.reason, event
        if isinstance(event, Drawn):
            for draws in event.draws:
                rows = dict(zip(draws.responses, draws.features, strict=True))
                for response, phi in rows.items() if draws.prefix is None else ():
                    self._rows.setdefault((draws.prompt, response), phi)
                if draws.prefix is not None:
                    self._segments.setdefault((draws.prompt, draws.prefix), {}).update(rows)
            self._fold_paths(event)
        if purpose == "evaluate":
            if isinstance(event, Drawn):
                self.evaluation_draws = event.draws
            elif isinstance(event, Labelled):
                self.evaluation_labels = event
            return
        if isinstance(event, Drawn) and not event.exhausted and not event.info.get("enumerate"):
            self.exploration_draws += [draws for draws in event.draws if draws.prefix is None]
        if isinstance(event, Labelled):
            self.labels_seen += [(a, phi) for a, phi in zip(event.labels, event.features, strict=True) if a.charged]
        with self.stopwatch.part("explorer"):
            if not self.history:
                self._row(Counts())
            self.state = self.explorer.absorb(self.state, event)
        if isinstance(event, Labelled):
            self._row(counts)

    def _fold_paths(self, event: Drawn) -> None:
        """Features of the complete sequences that were rolled out: each step's in its own block of d."""
        for path in event.paths:
            steps = [self._segments[path.prompt, path.segments[:h]][s] for h, s in enumerate(path.segments)]
            phi = np.zeros(self.spec.dim)  # a sequence may end before step H
            phi[: sum(map(len, steps))] = np.concatenate(steps)
            self._rows.setdefault((path.prompt, path.response), phi)

    def step_levels(self, theta: FloatArray) -> FloatArray:
        """[H] largest score under theta [H, d] of any segment drawn so far at each step; inf where there is none."""
        return largest_scores(theta, ((len(prefix), rows.values()) for (_, prefix), rows in self._segments.items()))

    def _row(self, counts: Counts) -> None:
        """Add a row to the history, unless this number of labels has one."""
        if self.history and self.history[-1]["labels"] == counts.labels:
            return
        with self.stopwatch.part("explorer"):
            policy, progress = self.explorer.policy(self.state), self.explorer.progress(self.state)
        with self.stopwatch.part("evaluation"):
            measured = self.measure(policy)
        tokens = {"tokens": counts.tokens} if hasattr(self.oracle, "tokens") else {}
        self.history.append({"labels": counts.labels, "draws": counts.draws, **tokens, **measured, **progress})

    # --- execution --------------------------------------------------------------------------------------------------

    def _draw(self, k: int, request: DrawRequest) -> Drawn:
        rng = np.random.default_rng([self.seed, k, 1])
        with self.stopwatch.part("generation"):
            if request.info.get("enumerate"):
                draws = self._enumerate(request)
                return Drawn(draws, sum(len(record.responses) for record in draws), info=request.info)
            if request.prefixes is not None:
                return rolled(self._token_oracle(), request, rng=rng)
            if request.tilt is None:
                draws = self.oracle.draw(request.prompts, request.n, rng=rng)
                return Drawn(draws, request.n * len(request.prompts), info=request.info, tokens=self._tokens(draws))
            assert isinstance(request.tilt, Tilt)  # a step tilt has prefixes
            seen: list[Draws] = []
            accepted = [self._accept(x, request.tilt, i, rng, seen) for i, x in enumerate(request.prompts)]
        draws = tuple(
            Draws(x, a.responses, np.ones(1, dtype=np.int64), a.features)
            for x, a in zip(request.prompts, accepted, strict=True)
        )
        exhausted = tuple(a.exhausted for a in accepted)
        return Drawn(draws, sum(a.spent for a in accepted), exhausted, request.info, tokens=self._tokens(seen))

    def _tokens(self, draws: Sequence[Draws]) -> int:
        """Tokens of these draws; 0 where the oracle counts none."""
        counted = getattr(self.oracle, "tokens", None)
        return 0 if counted is None else sum(map(counted, draws))

    def _token_oracle(self) -> TokenOracle:
        """The oracle, if it can extend prefixes; else `InputError`."""
        if not hasattr(self.oracle, "extend"):
            raise InputError(
                f"explorer: {self.explorer.name} needs an oracle that can go on after a prefix, got "
                f"{type(self.oracle).__name__}: choose another explorer, or a token environment"
            )
        return cast(TokenOracle, self.oracle)

    def _enumerate(self, request: DrawRequest) -> tuple[Draws, ...]:
        """[m] every response of each prompt, at most ``n``; `InputError` where the oracle cannot list them."""
        listing = getattr(self.oracle, "enumerate", None)
        if listing is None:
            raise InputError(
                f"explorer: {self.explorer.name} needs an environment that can list its responses, got "
                f"{type(self.oracle).__name__}: choose another explorer, or an exact environment"
            )
        found: tuple[Draws, ...] = listing(request.prompts, request.n)
        return found

    def _accept(self, prompt: int, tilt: Tilt, row: int, rng: np.random.Generator, seen: list[Draws]) -> Accepted:
        """One response that the sampler accepts; every draw that it looks at is added to ``seen``."""
        policy = TruncatedSoftmaxPolicy(tilt.theta, tilt.beta, tilt.root, tilt.nu)

        def draw(n: int) -> Draws:
            seen.append(self.oracle.draw([prompt], n, rng=rng)[0])
            return seen[-1]

        return softmax_sampler(
            draw,
            lambda phi: policy.scores(phi, tilt.anchors[row]) / tilt.beta,
            bound=tilt.bound,
            delta=tilt.delta,
            rng=rng,
        )

    def _label(self, k: int, request: LabelRequest) -> Labelled:
        """Claim, buy, settle: every label is on disk before the explorer hears of it."""
        for item in request.items:
            self._source(item)  # before the first claim: what cannot be bought is never in doubt
        with self.stopwatch.part("ledger"):
            claims = self.ledger.claim(k)
        todo = [claim for claim in claims if claim.to_buy]
        refuse_doubtful([""] * sum(c.in_doubt and not turned_away(c) and not is_pure(self._source(c)) for c in todo))
        unknown: list[str] = []
        for paired, buyer in self._buyers.items():
            alike = [claim for claim in todo if (claim.opponent is not None) == paired]
            unknown += buyer.buy(alike) if alike else []
        refuse_doubtful(unknown)
        rows = [self._phi(item) for item in request.items]
        features = np.array(rows, dtype=np.float64).reshape(len(rows), self.spec.dim)
        with self.stopwatch.part("ledger"):
            return self.ledger.labelled(k, Labelled(self.ledger.labels(k), features, request.info))

    def _source(self, asked: LabelItem | Claim) -> RewardFunction | CompareFunction:
        """What gives the label of one item; `InputError` where the run has nothing of its kind."""
        source = self.reward if asked.opponent is None else self.compare
        if source is None:
            name, kind = ("reward", "rewards") if asked.opponent is None else ("compare", "comparisons")
            raise InputError(
                f"{name}: expected a source of {kind}, for which explorer {self.explorer.name!r} asks where feedback "
                f"is {self.spec.feedback!r}, got None: give {name}=, or choose another explorer or feedback"
            )
        return source

    def _phi(self, item: LabelItem) -> FloatArray:
        """[d] the feature that a label is regressed on: relative where it is a comparison."""
        phi = self._rows[item.prompt, item.response]
        return phi if item.opponent is None else phi - self._rows[item.prompt, item.opponent]

    def _ask(self, claims: Sequence[Claim]) -> list[Answer]:
        """Answers to claims of one kind, in their order."""
        prompts = [self.oracle.prompts[c.prompt] for c in claims]
        columns = {name: [values[c.prompt] for c in claims] for name, values in self.columns.items()}
        columns |= {"replicate": [c.replicate for c in claims], "idempotency_key": [c.key for c in claims]}
        source, responses = self._source(claims[0]), [c.response for c in claims]
        opponents = [c.opponent for c in claims if c.opponent is not None]
        with self.stopwatch.part("reward"):
            if opponents:
                return ask_comparison(source, prompts, responses, opponents, columns)
            return ask_reward(source, prompts, responses, columns)


def result_of(run: Driver, run_dir: Path | None) -> Result:
    """The result of a run that has stopped."""
    counts, policy = run.ledger.counts, run.explorer.policy(run.state)
    return Result(
        labels=counts.labels,
        draws=counts.draws,
        policy=policy,
        history=run.history,
        reason=run.reason,
        counts=counts,
        explorer=run.explorer,
        state=run.state,
        run_dir=run_dir,
        levels=run.step_levels(policy.theta) if policy.theta.ndim == 2 else None,
    )


def explorer_meta(explorer: Explorer) -> dict[str, Any]:
    """Name and settings of an explorer, as a ledger keeps them."""
    settings: dict[str, Any] = asdict(explorer) if is_dataclass(explorer) and not isinstance(explorer, type) else {}
    return {"explorer": explorer.name, "settings": settings}


def spec_meta(spec: Spec, seed: int) -> dict[str, Any]:
    """Budgets and seed of a run, as a ledger keeps them.

    What came later is named only where it is not the default, so that runs begun before it are still resumed.
    """
    names = ["labels", "draws", "batch", "beta", "kl", "fresh", "dim"]
    later = ("feedback", "scale", "target_regret", "horizon")
    names += [name for name in later if getattr(spec, name) != getattr(Spec, name)]
    return {"seed": seed, **{name: getattr(spec, name) for name in names}}


def check_budget(labels: int, draws: int | None, batch: int) -> None:
    """Raise `InputError` on a budget that is not a positive whole number."""
    for name, value in (("labels", labels), ("draws", draws), ("batch", batch)):
        if value is None and name == "draws":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(f"{name}: expected a whole number of at least 1, got {value!r}")
