"""`Run`: ask / tell. Labels that come from people, a lab or a queue, in their own time (RELIABILITY: ask / tell).

    run = Run.open("runs/mine", prompts=[...], model="...", budget=200)       # creates, or resumes
    for query in run.ask(20, worker="ann"): ...                               # the same ones until they are answered
    run.tell(query.id, 0.7); run.skip(other.id); run.fail(third.id, "the assay broke")

Queries are chosen knowing that others are still out. What `tell` has returned from is on disk.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spannerlm.api import DEFAULT_KL, asked, check_feedback, loaded_model
from spannerlm.askdriver import ANYBODY, AskDriver, LazyOracle, Settings
from spannerlm.backends.oracle import ModelOracle
from spannerlm.environments import TabularEnvironment
from spannerlm.errors import InputError, ModelError
from spannerlm.explorers import STEP_EXPLORERS, Explorer, explorer_by_name
from spannerlm.features import feature_map
from spannerlm.ledger import Claim, Counts, Ledger
from spannerlm.ledger.codec import check_text
from spannerlm.oracle import SamplingOracle
from spannerlm.policy import Policy
from spannerlm.records import DrawRequest, Failed, FloatArray, LabelItem, Labelled, LabelRequest, Spec, StopRequest
from spannerlm.run import check_budget, explorer_meta, spec_meta
from spannerlm.tilted import save_policy

ANYONE = "anyone"
"""Name of the rater where no worker is named."""
GIVEN = "given"
"""Name of the rater of labels that were there already."""
ID_LENGTH = 20
"""Hex digits of a query's id, the first ones of its claim's key: 80 bits."""


@dataclass(frozen=True)
class Query:
    """One question that is out: what is this response worth, or which of two is better."""

    id: str
    """Stable: the same question to the same worker has the same id in every process."""
    prompt: str
    response: str
    opponent: str | None
    """The other response of a comparison; None where a number is asked for."""
    worker: str
    columns: Mapping[str, Any]
    """What else is known of the prompt."""


@dataclass(frozen=True)
class Answer:
    """One query that was asked, and what became of it."""

    query: Query
    status: str
    """``waiting``, ``label``, ``skip``, ``failed`` or ``released``."""
    value: float | None


class Run:
    """A run whose labels are told; made by `Run.open`. Safe to use from several threads of one process."""

    def __init__(
        self, oracle: SamplingOracle, explorer: Explorer, ledger: Ledger, spec: Spec, settings: Settings
    ) -> None:
        self._oracle, self._explorer, self._ledger, self._spec = oracle, explorer, ledger, spec
        self._settings = settings
        self._lock = threading.RLock()  # the ledger and the state; held for milliseconds
        self._deciding = threading.Lock()  # one decision or generation at a time; held for as long as it takes
        self._keys: dict[str, str] = {}
        self._stale = False  # whether answers were revised that the state does not know of
        self._driver = self._folded()
        self._settle()

    @classmethod
    def open(
        cls,
        directory: Path | str,
        *,
        env: TabularEnvironment | None = None,
        prompts: Sequence[Any] | None = None,
        model: Any = None,
        features: Any = "hidden",
        explorer: str | Explorer = "directed",
        budget: int | None = None,
        money: float | None = None,
        prices: Mapping[str, float] | None = None,
        overlap: int = 1,
        batch: int = 4,
        seed: int = 0,
        draws: int | None = None,
        beta: float | None = None,
        kl: float | None = None,
        feedback: Literal["scalar", "comparison"] = "scalar",
        scale: float = 1.0,
        target_regret: float | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> Run:
        """The run of a directory: a new one, or the one that is there.

        A new one needs ``prompts`` [X] and ``model`` (see `spannerlm.explore` for these, ``features``, ``explorer``,
        ``beta``, ``kl``, ``feedback``, ``scale``, ``columns``, ``generation``), or an ``env``, and a budget: ``budget``
        labels in all, or ``money`` at ``prices`` per label, by worker (``"*"``: anyone else), or both. ``overlap``
        different workers rate each response. ``batch``: questions chosen together, at most. To resume, the directory
        is enough, unless ``env``, a loaded model or a feature function was given; what is given must be what it was.

        Cost: none before `ask`. Raises `InputError`, and `LedgerError` where another process writes there.
        """
        folder = Path(directory)
        if (folder / "run.db").exists() and prompts is None and env is None:
            return cls._resumed(folder, model, features)
        if budget is None and (money is None or not prices):
            raise InputError("budget: expected a number of labels, or money and prices, got neither: try budget=100")
        if isinstance(overlap, bool) or not isinstance(overlap, int) or overlap < 1:
            raise InputError(f"overlap: expected how many workers rate each response, at least 1, got {overlap!r}")
        settings = Settings(overlap, dict(prices or {}), money, dict(columns or {}), {})
        labels = settings.affordable() if budget is None else budget
        check_budget(labels, draws, batch)
        if beta is not None and (kl is not None or not beta > 0.0):
            raise InputError(f"expected a positive beta or a kl, got beta={beta} and kl={kl}: give one of them")
        check_feedback(feedback, None, scale, target_regret)
        chosen = explorer_by_name(explorer)
        if chosen.name in STEP_EXPLORERS:
            raise InputError(f"explorer: expected one of whole responses, got {chosen.name!r}: choose another")
        oracle: SamplingOracle
        if env is not None:
            oracle, dim, kl = env, env.dim, None
            probs, beta, fresh = np.asarray(env.prompt_probs), env.beta, True
        else:
            if prompts is None or model is None:
                raise InputError("expected prompts= and model=, or env=, for a run that is new")
            given = asked(model, prompts, generation, folder)
            phi = feature_map(features, getattr(given.model, "hidden_size", None))
            oracle, dim, fresh = ModelOracle(given.model, given.texts, phi), phi.dim, False
            probs = np.full(len(given.texts), 1.0 / len(given.texts))
            kl = (DEFAULT_KL if kl is None else kl) if beta is None else None
            name = model if isinstance(model, str) else None
            name = str(Path(name).resolve()) if name is not None and Path(name).exists() else name
            described = None if callable(features) and not hasattr(features, "spec") else phi.spec()
            settings.about.update(model=name, options=given.options, features=described)
        spec = Spec(probs, dim, labels, draws, batch, beta, kl, fresh, feedback, float(scale), target_regret)
        meta = {**spec_meta(spec, seed), **explorer_meta(chosen), **settings.about, "asked": settings.meta()}
        ledger = Ledger.open(folder, meta=meta, prompts=list(oracle.prompts), columns=settings.columns)
        try:
            return cls(oracle, chosen, ledger, spec, replace(settings, seed=seed, folder=folder))
        except BaseException:
            ledger.close()
            raise

    @classmethod
    def _resumed(cls, folder: Path, model: Any, features: Any) -> Run:
        """The run of a directory, from what its ledger says."""
        ledger = Ledger.open(folder)
        try:
            meta = ledger.meta
            if "asked" not in meta:
                raise InputError(f"{folder}: expected a run of ask and tell, found one with a reward: use resume")
            about: dict[str, Any] = {name: meta[name] for name in ("model", "options", "features") if name in meta}
            told = meta["asked"]
            settings = Settings(told["overlap"], told["prices"], told["money"], told["columns"], about)
            settings = replace(settings, seed=meta["seed"], folder=folder)
            if not about:
                raise InputError(f"{folder}: expected env=, the environment that it was made with, got none")
            source = about["model"] if model is None else model
            phi = about["features"] if features == "hidden" else features
            if source is None or phi is None:
                what = "model" if source is None else "features"
                raise InputError(f"{what}: expected what the run was made with, got nothing: give {what}= again")
            names = ("labels", "draws", "batch", "beta", "kl", "fresh", "dim", "feedback", "scale", "target_regret")
            known = {name: meta[name] for name in names if name in meta}
            probs = np.full(len(ledger.prompts), 1.0 / len(ledger.prompts))
            spec = Spec(prompt_probs=probs, **known)

            def load() -> ModelOracle:
                found = loaded_model(source, about["options"], folder)
                return ModelOracle(found, ledger.prompts, feature_map(phi, getattr(found, "hidden_size", None)))

            explorer = explorer_by_name(meta["explorer"], meta["settings"])
            return cls(LazyOracle(ledger.prompts, spec.dim, load), explorer, ledger, spec, settings)
        except BaseException:
            ledger.close()
            raise

    # --- asking -----------------------------------------------------------------------------------------------------

    def ask(self, n: int = 1, worker: str | None = None, *, wait: bool = True) -> list[Query]:
        """At most ``n`` queries that wait for this worker's answer: those that he has already, then new ones.

        Fewer where the budget, what can be drawn, or what he has not rated yet leaves no more. A query that was
        returned is on disk, and counts against the budget until it is answered or released. Cost: draws; none where
        ``wait`` is False: then only what was prepared is given.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InputError(f"n: expected a number of queries of at least 1, got {n!r}")
        name = self._name(worker)
        while True:
            with self._lock:
                mine = self._mine(name)
                mine += self._assigned(name, n - len(mine))
                open_for_others, known = len(self._unclaimed()), self._ledger.next_request
            if len(mine) >= n or not wait:
                return mine[:n]
            if not self.prepare(open_for_others + n - len(mine)) and self._ledger.next_request == known:
                return mine[:n]  # nor has anybody else prepared more since

    def prepare(self, n: int) -> bool:
        """Decide until ``n`` items wait for a worker; whether there are more than before. Cost: draws.

        The lock is not held meanwhile: others may ask and tell. What they tell is known to the next decision.
        """
        grown = False
        with self._deciding:
            while True:
                with self._lock:
                    if len(self._unclaimed()) >= n or not self._affords():
                        return grown
                    state, k, cut_off = self._driver.state, self._ledger.next_request, self._ledger.unfinished()
                if cut_off is not None and isinstance(cut_off[1], DrawRequest):
                    self._draw(cut_off[0], cut_off[1])  # the draws failed, or could not be written: once more
                    continue
                request = self._explorer.decide(state, rng=np.random.default_rng([self._settings.seed, k]))
                if isinstance(request, StopRequest):
                    self._driver.reason = request.reason
                    return grown
                with self._lock:
                    if self._ledger.next_request != k:
                        continue  # labels were added meanwhile: decide again
                    if isinstance(request, LabelRequest):
                        items = self._shared_out(request.items)
                        if not items:
                            self._driver.reason = "labels spent"
                            return grown
                        self._issue(k, replace(request, items=items))
                        grown, self._driver.reason = True, ""
                        continue
                    self._driver.fold(self._ledger.request(k, request))
                self._draw(k, request)

    def tell(self, id: str | Mapping[str, float], value: float | None = None, *, revise: bool = False) -> None:
        """Record the answer to a query, or to several, ``{id: value}``, all or none; durable when this returns.

        A number; of a comparison one from 0 to 1, 1 where ``response`` is preferred to ``opponent``. The same answer
        again changes nothing. Another one raises `InputError` unless ``revise``; the first stays in the ledger. An
        answer to a query that was skipped is a revision too. A late one, to a query that was taken back, is kept.
        """
        answers = {id: value} if isinstance(id, str) else dict(id)
        self._tell({name: _number(name, given) for name, given in answers.items()}, revise)

    def tell_all(self, answers: Mapping[str, float | Failed | None], *, revise: bool = False) -> None:
        """Record answers, skips (None) and failures (`Failed`) together, all or none, by the rules of `tell`."""
        plain = {name: a if a is None or isinstance(a, Failed) else _number(name, a) for name, a in answers.items()}
        self._tell(plain, revise)

    def check(self, answers: Mapping[str, float | Failed | None], *, revise: bool = False) -> dict[str, str]:
        """What is wrong with each answer, by id: why `tell_all` would refuse them; empty where it would not."""
        with self._lock:
            return {name: problem for name, a in answers.items() if (problem := self._problem(name, a, revise))}

    def skip(self, id: str) -> None:
        """Record that this query will not be answered: no reward, its charge is kept."""
        self._tell({id: None}, False)

    def fail(self, id: str, reason: str, *, charged: bool = True) -> None:
        """Record that the source broke on this query; ``charged``: whether it cost a label all the same."""
        self._tell({id: Failed(str(reason), bool(charged))}, False)

    def release(self, ids: Sequence[str]) -> None:
        """Take unanswered queries back, so that others may be asked. Answered ones are left as they are."""
        with self._lock:
            claims = [self._ledger.claim_by_key(self._key(name)) for name in dict.fromkeys(ids)]
            self._ledger.release([claim for claim, status, _ in claims if status is None])

    def add(
        self,
        prompts: Sequence[str | int],
        responses: Sequence[str],
        values: Sequence[float],
        *,
        opponents: Sequence[str | None] | None = None,
        rater: str = GIVEN,
    ) -> int:
        """Enter labels that one has already: learned from, never asked again, no part of the budget. How many were new.

        ``prompts`` by text or index. A run of comparisons takes rewards as well, without an opponent: both enter one
        posterior. Features of responses that were never drawn come from the model. Cost: no draws.
        """
        others: Sequence[str | None] = [None] * len(responses) if opponents is None else opponents
        if not len(prompts) == len(responses) == len(values) == len(others):
            raise InputError(
                f"add: expected one prompt and value per response, got {len(prompts)}, {len(values)}, {len(responses)}"
            )
        if self._spec.feedback == "scalar" and any(other is not None for other in others):
            raise InputError("opponents: expected none in a run of rewards, got some: use feedback='comparison'")
        indices = [self._prompt(i, prompt) for i, prompt in enumerate(prompts)]
        for i, (response, other) in enumerate(zip(responses, others, strict=True)):
            check_text(response, f"responses[{i}]")
            if other is not None:
                check_text(other, f"opponents[{i}]")
        replies = [_number(f"values[{i}]", value) for i, value in enumerate(values)]
        items = [LabelItem(x, y, opponent=o) for x, y, o in zip(indices, responses, others, strict=True)]
        if not items:
            return 0
        with self._deciding, self._lock:  # the model serves one at a time
            self._release_given()
            self._tell_explorer()
            self._check_given(items, replies, rater)
            features = self._given_features(items)
            k = self._ledger.next_request
            request = LabelRequest(tuple(items), {"phase": GIVEN})
            self._ledger.request(k, request, purpose="given", detached=True)
            claims = self._ledger.claim(k, rater=rater)
            todo = [(claim, v) for claim, v in zip(claims, replies, strict=True) if claim.to_buy]
            self._ledger.reply([claim for claim, _ in todo], [v for _, v in todo])
            told = Labelled(self._ledger.labels(k), features, {"phase": GIVEN, "given": True})
            self._driver.fold(self._ledger.labelled(k, told), purpose="given")
        return len(todo)

    # --- reading ----------------------------------------------------------------------------------------------------

    @property
    def counts(self) -> Counts:
        """What was spent so far."""
        with self._lock:
            return self._ledger.counts

    @property
    def spec(self) -> Spec:
        """Sizes and budgets."""
        return self._spec

    @property
    def overlap(self) -> int:
        """How many workers rate each response."""
        return self._settings.overlap

    @property
    def directory(self) -> Path:
        """Where everything is kept."""
        return self._settings.folder

    @property
    def reason(self) -> str:
        """Why nothing more is asked; empty while the run goes on."""
        with self._lock:
            waiting = self._ledger.waiting()
            if any(item.claim is not None for item in waiting):
                return ""
            if not self._affords():
                return "money spent"
            return "" if waiting else self._driver.reason

    def spent(self) -> float:
        """Money that was charged so far, open queries included; nan without prices."""
        with self._lock:
            charged = self._ledger.charged_by_rater()
        return sum((self._settings.price(name) * n for name, n in charged.items() if n), start=self._settings.nothing())

    def answers(self) -> list[Answer]:
        """Every query that was asked, in order, and what became of it; labels that were added are none."""
        with self._lock:
            rows = list(self._ledger.purchases())
        asked = [(claim, status, value) for claim, status, value in rows if self._purpose(claim) != GIVEN]
        return [Answer(self._query(claim), status or "waiting", value) for claim, status, value in asked]

    def query(self, id: str) -> Query:
        """The query of this id, answered or not."""
        with self._lock:
            return self._query(self._ledger.claim_by_key(self._key(id))[0])

    def policy(self) -> Policy:
        """The policy learned so far; the base model's before the first label."""
        with self._lock:
            state = self._driver.state
        return self._explorer.policy(state)

    def progress(self) -> dict[str, Any]:
        """What the explorer says of itself: phase, predicted regret, ..."""
        with self._lock:
            state = self._driver.state
        return dict(self._explorer.progress(state))

    def agreement(self) -> tuple[float, int]:
        """Share of pairs of answers to the same question that agree, and how many pairs there are; nan without any.

        Numbers agree where they differ by less than a tenth of all answers' range, comparisons on the same side.
        """
        by_item: dict[tuple[int, frozenset[str]], list[float]] = defaultdict(list)
        with self._lock:
            rows = list(self._ledger.purchases())
        for claim, status, value in rows:
            if status == "label" and value is not None:
                texts = frozenset(text for text in (claim.response, claim.opponent) if text is not None)
                by_item[claim.prompt, texts].append(value)  # of a comparison: as of the pair's first purchase
        values = [value for group in by_item.values() for value in group]
        width = 0.5 if self._spec.feedback == "comparison" else 0.1 * (max(values) - min(values) if values else 0.0)
        pairs = [abs(a - b) <= width for group in by_item.values() for i, a in enumerate(group) for b in group[:i]]
        return (float(np.mean(pairs)) if pairs else math.nan), len(pairs)

    def save(self) -> None:
        """Write ``policy.safetensors`` and ``policy.json``: what `load_policy` and `spannerlm sample` read."""
        policy = self.policy()
        about = {name: value for name, value in self._settings.about.items() if value is not None}
        save_policy(self._settings.folder, policy.theta, getattr(policy, "beta", float("nan")), about)

    def close(self) -> None:
        """Release the directory; nothing needs to be saved. Closing twice does nothing."""
        with self._lock:
            self._ledger.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- within -----------------------------------------------------------------------------------------------------

    def _folded(self) -> AskDriver:
        """A driver whose state is the fold of the ledger, the last answers in the place of the first."""
        driver = AskDriver(
            self._oracle,
            self._explorer,
            None,
            self._ledger,
            self._spec,
            seed=self._settings.seed,
            columns=self._settings.columns,
        )
        for entry in self._ledger.replay():
            driver.fold(entry.event, purpose=entry.purpose)
        return driver

    def _settle(self) -> None:
        """Finish what a crash cut off: draws that were asked for, answers that no outcome holds yet."""
        unfinished = self._ledger.unfinished()
        if unfinished is not None and isinstance(unfinished[1], DrawRequest):
            self._draw(unfinished[0], unfinished[1])
        self._release_given()
        self._tell_explorer()

    def _release_given(self) -> None:
        """Take back what was being added when it was cut off."""
        rows = [claim for claim, status, _ in self._ledger.purchases() if status is None]
        self._ledger.release([claim for claim in rows if self._purpose(claim) == GIVEN])

    def _draw(self, k: int, request: DrawRequest) -> None:
        drawn = self._driver.generate(k, request)  # without the lock: this takes long
        with self._lock:
            self._driver.fold(self._ledger.drawn(k, drawn))

    def _issue(self, k: int, request: LabelRequest) -> None:
        self._driver.fold(self._ledger.request(k, request, detached=True))

    def _tell_explorer(self) -> None:
        """Make outcomes of the answers that are in the ledger and in no outcome yet."""
        for k, purpose, items in self._ledger.untold():
            positions = [position for position, _ in items]
            info: dict[str, Any] = {"given": True} if purpose == GIVEN else {}
            features = np.array([self._phi(item) for _, item in items]).reshape(len(items), self._spec.dim)
            told = Labelled(self._ledger.labels(k, positions), features, info)
            self._driver.fold(self._ledger.labelled(k, told, positions), purpose=purpose)

    def _tell(self, answers: Mapping[str, float | Failed | None], revise: bool) -> None:
        with self._lock:
            for problem in self.check(answers, revise=revise).values():
                raise InputError(f"{problem}; nothing of this batch was recorded")
            rows = [(*self._ledger.claim_by_key(self._key(name)), answer) for name, answer in answers.items()]
            revised = [
                (claim, a)
                for claim, status, value, a in rows
                if status not in (None, "released") and not self._same(status, value, a)
            ]
            self._stale = self._stale or bool(revised) or any(status == "released" for _, status, _, _ in rows)
            late = [(self._ledger.reopen(claim.key)[1], a) for claim, status, _, a in rows if status == "released"]
            fresh = [(claim, a) for claim, status, _, a in rows if status is None] + late
            self._ledger.reply([claim for claim, _ in fresh], [a for _, a in fresh])
            for claim, answer in revised:
                self._ledger.revise(claim, answer)
            if self._stale:  # what was learned from the former answers has to be learned again
                self._driver, self._stale = self._folded(), False
            self._tell_explorer()

    def _problem(self, name: str, answer: float | Failed | None, revise: bool) -> str:
        """Why an answer is refused; empty where it is not."""
        try:
            claim, status, value = self._ledger.claim_by_key(self._key(name))
        except InputError as error:
            return str(error)
        if isinstance(answer, float) and claim.opponent is not None and not 0.0 <= answer <= 1.0:
            return f"{name}: expected a comparison in [0, 1], got {answer:g}"
        if status in (None, "released", "skip") or revise or self._same(status, value, answer):
            return ""
        now = answer if isinstance(answer, float) else "skip" if answer is None else "failed"
        was = value if status == "label" else status
        return f"{name}: was answered {was}, now {now}: say revise to replace the answer"

    @staticmethod
    def _same(status: str | None, value: float | None, answer: float | Failed | None) -> bool:
        if isinstance(answer, float):
            return status == "label" and value == answer
        return status == ("skip" if answer is None else "failed")

    def _check_given(self, items: Sequence[LabelItem], values: Sequence[float], rater: str) -> None:
        """`InputError` where an item has another value already, in the ledger or earlier in the batch."""
        known, asked = {}, set()
        for claim, status, value in self._ledger.purchases():
            key, plain = _oriented(claim.prompt, claim.response, claim.opponent, math.nan if value is None else value)
            if claim.rater == rater and status == "label":
                known[key] = plain
            elif claim.rater == rater and status != "released":
                asked.add(key)
        for i, (item, value) in enumerate(zip(items, values, strict=True)):
            if item.opponent is not None and not 0.0 <= value <= 1.0:
                raise InputError(f"values[{i}]: expected a comparison in [0, 1], got {value:g}; nothing was recorded")
            key, plain = _oriented(item.prompt, item.response, item.opponent, value)
            if key in asked and key not in known:
                raise InputError(f"values[{i}]: expected what {rater!r} was not asked, got a query: tell it instead")
            if known.setdefault(key, plain) != plain:
                raise InputError(
                    f"values[{i}]: expected {known[key]:g}, as {rater!r} gave before; nothing was recorded"
                )

    def _given_features(self, items: Sequence[LabelItem]) -> FloatArray:
        """[n, d] features of labels that were there already; `InputError` names the one that the model cannot read."""
        rows = []
        for i, item in enumerate(items):
            try:
                rows.append(self._phi(item, f"responses[{i}]"))
            except ModelError as error:  # such as a text beyond its context
                raise InputError(f"responses[{i}]: {error}") from error
        return np.array(rows).reshape(len(items), self._spec.dim)

    def _mine(self, name: str) -> list[Query]:
        """Queries that this worker has been asked and has not answered."""
        found = [item.claim for item in self._ledger.waiting() if item.claim is not None]
        return [self._query(claim) for claim in found if claim.rater == name]

    def _unclaimed(self) -> list[tuple[int, int, LabelItem]]:
        """(request, position, item) that nobody was asked yet."""
        return [(w.request, w.position, w.item) for w in self._ledger.waiting() if w.claim is None]

    def _assigned(self, name: str, n: int) -> list[Query]:
        """At most ``n`` items that nobody was asked yet, asked of this worker: none that he has rated before."""
        rated, turns = self._rated(name)
        chosen: dict[int, list[int]] = defaultdict(list)
        free = self._money_left()
        price = self._settings.price(name)
        for k, position, item in self._unclaimed():
            key, turn = _asked(item), (k, position // self.overlap)
            if n <= 0 or key in rated or turn in turns or (free is not None and price > free + 1e-9):
                continue
            rated.add(key)
            turns.add(turn)
            chosen[k].append(position)
            n -= 1
            free = None if free is None else free - price
        claims = [claim for k, at in chosen.items() for claim in self._ledger.claim(k, rater=name, positions=at)]
        self._tell_explorer()  # an item that an earlier label answers is never asked
        return [self._query(claim) for claim in claims if claim.to_buy]

    def _rated(self, name: str) -> tuple[set[tuple[int, frozenset[str]]], set[tuple[int, int]]]:
        """What this worker was asked before, and the turns (`_shared_out`) that he has had.

        Where labels are fresh, the same may be asked again once it is answered, but not within one turn.
        """
        rows = [
            (claim, status)
            for claim, status, _ in self._ledger.purchases()
            if claim.rater == name and status != "released"
        ]
        texts = {
            _asked(LabelItem(claim.prompt, claim.response, opponent=claim.opponent))
            for claim, status in rows
            if status is None or not self._spec.fresh
        }
        return texts, {(claim.request, claim.position // self.overlap) for claim, _ in rows}

    def _shared_out(self, items: tuple[LabelItem, ...]) -> tuple[LabelItem, ...]:
        """The items, each as often as workers rate it (its turn), as many as the budget leaves room for."""
        out = self._ledger.counts.charged + len(self._unclaimed())
        room = max(0, min(self._explorer.learner(self._driver.state).labels_left, self._spec.labels - out))
        return tuple(item for item in items[: room // self.overlap] for _ in range(self.overlap))

    def _affords(self) -> bool:
        """Whether the money is enough for a label of the cheapest worker."""
        left = self._money_left()
        return left is None or left + 1e-9 >= self._settings.cheapest()

    def _money_left(self) -> float | None:
        return None if self._settings.money is None else self._settings.money - self.spent()

    def _phi(self, item: LabelItem, what: str = "responses") -> FloatArray:
        """[d] what a label is regressed on: relative where it is a comparison."""
        phi = self._driver.phi(item.prompt, item.response, what)
        return phi if item.opponent is None else phi - self._driver.phi(item.prompt, item.opponent, what)

    def _query(self, claim: Claim) -> Query:
        name = claim.key[:ID_LENGTH]
        self._keys[name] = claim.key
        claim, _, _ = self._ledger.claim_by_key(claim.key)  # the way round that it was asked first, as answers are told
        columns = {column: values[claim.prompt] for column, values in self._settings.columns.items()}
        prompt = self._ledger.prompts[claim.prompt]
        return Query(name, prompt, claim.response, claim.opponent, claim.rater, columns)

    def _key(self, name: str) -> str:
        """The claim's key of a query's id."""
        if not isinstance(name, str) or len(name) != ID_LENGTH:
            raise InputError(f"id: expected that of a query, {ID_LENGTH} hex digits, got {name!r:.80}")
        if name not in self._keys:
            self._keys |= {claim.key[:ID_LENGTH]: claim.key for claim, _, _ in self._ledger.purchases()}
        if name not in self._keys:
            raise InputError(f"{name}: expected the id of a query of this run, found none of that name")
        return self._keys[name]

    def _purpose(self, claim: Claim) -> str:
        return self._ledger.purpose(claim.request)

    def _prompt(self, number: int, prompt: str | int) -> int:
        """Index of a prompt, the ``number``-th of a batch; of two alike, the first."""
        texts = self._ledger.prompts
        if isinstance(prompt, str):
            if prompt not in texts:
                raise InputError(f"prompts[{number}]: expected one of this run's, got {prompt[:80]!r}")
            return texts.index(prompt)
        if isinstance(prompt, bool) or not isinstance(prompt, Integral) or not 0 <= prompt < len(texts):
            raise InputError(f"prompts[{number}]: expected a prompt or an index below {len(texts)}, got {prompt!r:.80}")
        return int(prompt)

    def _name(self, worker: str | None) -> str:
        if worker is None:
            if self._settings.overlap > 1:
                raise InputError(f"worker: expected a name where {self.overlap} workers rate each response, got None")
            worker = ANYONE
        if not isinstance(worker, str) or not worker.strip() or worker == GIVEN:
            raise InputError(f"worker: expected a name, other than {GIVEN!r}, got {worker!r:.80}")
        if self._settings.money is not None and math.isnan(self._settings.price(worker)):
            raise InputError(
                f"prices: expected one for {worker!r}, or for {ANYBODY!r}, where money is counted; got none"
            )
        return worker


def _oriented(
    prompt: int, response: str, opponent: str | None, value: float
) -> tuple[tuple[int, str, str | None], float]:
    """What a value is about, and the value, whichever way round a pair is."""
    if opponent is None or response < opponent:
        return (prompt, response, opponent), value
    return (prompt, opponent, response), 1.0 - value


def _asked(item: LabelItem) -> tuple[int, frozenset[str]]:
    return item.prompt, frozenset(text for text in (item.response, item.opponent) if text is not None)


def _number(name: str, value: object) -> float:
    if value is None:
        raise InputError(f"{name}: expected a number, got None: skip the query instead; nothing was recorded")
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            plain = float(value)
        except OverflowError:
            plain = math.inf
        if math.isfinite(plain):
            return plain
    raise InputError(f"{name}: expected a finite number, got {value!r:.80}; nothing of this batch was recorded")
