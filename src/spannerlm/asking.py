"""`Run`: ask / tell. Labels that come from people, a lab or a queue, in their own time (RELIABILITY: ask / tell).

    run = Run.open("runs/mine", prompts=[...], model="...", budget=200)       # creates, or resumes
    for query in run.ask(20, worker="ann"): ...                               # the same ones until they are answered
    run.tell(query.id, 0.7); run.skip(other.id); run.fail(third.id, "the assay broke")

Queries are chosen knowing that others are still out. What `tell` has returned from is on disk.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spannerlm.api import DEFAULT_KL, asked, check_feedback, loaded_model
from spannerlm.askdriver import AskDriver, LazyOracle, Settings
from spannerlm.backends.oracle import ModelOracle
from spannerlm.environments import TabularEnvironment
from spannerlm.errors import InputError, ModelError
from spannerlm.explorers import STEP_EXPLORERS, Explorer, explorer_by_name
from spannerlm.features import feature_map
from spannerlm.ledger import Counts, Ledger
from spannerlm.ledger.codec import check_text
from spannerlm.oracle import SamplingOracle
from spannerlm.policy import Policy
from spannerlm.questions import GIVEN, Answer, Query, Questions, number, same_answer
from spannerlm.records import DrawRequest, Failed, FloatArray, LabelItem, Labelled, LabelRequest, Spec, StopRequest
from spannerlm.run import check_budget, explorer_meta, spec_meta
from spannerlm.tilted import save_policy


class Run:
    """A run whose labels are told; made by `Run.open`. Safe to use from several threads of one process."""

    def __init__(
        self, oracle: SamplingOracle, explorer: Explorer, ledger: Ledger, spec: Spec, settings: Settings
    ) -> None:
        self._oracle, self._explorer, self._ledger, self._spec = oracle, explorer, ledger, spec
        self._settings = settings
        self._lock = threading.RLock()  # the ledger and the state; held for milliseconds
        self._deciding = threading.Lock()  # one decision or generation at a time; held for as long as it takes
        self._questions = Questions(ledger, spec, settings)
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
        name = self._questions.worker(worker)
        while True:
            with self._lock:
                mine = self._questions.held(name)
                claims = self._questions.assign(name, n - len(mine))
                self._tell_explorer()  # an item that an earlier label answers is never asked
                mine += [self._questions.query(claim) for claim in claims if claim.to_buy]
                open_for_others, known = len(self._questions.unclaimed()), self._ledger.next_request
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
                    if len(self._questions.unclaimed()) >= n or not self._questions.affords():
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
                        left = self._explorer.learner(self._driver.state).labels_left
                        items = self._questions.shared_out(request.items, left)
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
        self._tell({name: number(name, given) for name, given in answers.items()}, revise)

    def tell_all(self, answers: Mapping[str, float | Failed | None], *, revise: bool = False) -> None:
        """Record answers, skips (None) and failures (`Failed`) together, all or none, by the rules of `tell`."""
        plain = {name: a if a is None or isinstance(a, Failed) else number(name, a) for name, a in answers.items()}
        self._tell(plain, revise)

    def check(self, answers: Mapping[str, float | Failed | None], *, revise: bool = False) -> dict[str, str]:
        """What is wrong with each answer, by id: why `tell_all` would refuse them; empty where it would not."""
        with self._lock:
            return {
                name: problem for name, a in answers.items() if (problem := self._questions.problem(name, a, revise))
            }

    def skip(self, id: str) -> None:
        """Record that this query will not be answered: no reward, its charge is kept."""
        self._tell({id: None}, False)

    def fail(self, id: str, reason: str, *, charged: bool = True) -> None:
        """Record that the source broke on this query; ``charged``: whether it cost a label all the same."""
        self._tell({id: Failed(str(reason), bool(charged))}, False)

    def release(self, ids: Sequence[str]) -> None:
        """Take unanswered queries back, so that others may be asked. Answered ones are left as they are."""
        with self._lock:
            claims = [self._questions.by_id(name) for name in dict.fromkeys(ids)]
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
        replies = [number(f"values[{i}]", value) for i, value in enumerate(values)]
        items = [LabelItem(x, y, opponent=o) for x, y, o in zip(indices, responses, others, strict=True)]
        if not items:
            return 0
        with self._deciding, self._lock:  # the model serves one at a time
            self._release_given()
            self._tell_explorer()
            self._questions.check_given(items, replies, rater)
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
            if not self._questions.affords():
                return "money spent"
            return "" if waiting else self._driver.reason

    def spent(self) -> float:
        """Money that was charged so far, open queries included; nan without prices."""
        with self._lock:
            return self._questions.spent()

    def answers(self) -> list[Answer]:
        """Every query that was asked, in order, and what became of it; labels that were added are none."""
        with self._lock:
            return self._questions.answers()

    def query(self, id: str) -> Query:
        """The query of this id, answered or not."""
        with self._lock:
            return self._questions.query(self._questions.by_id(id)[0])

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
        with self._lock:
            return self._questions.agreement()

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
        self._ledger.release([claim for claim in rows if self._questions.is_given(claim)])

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
            rows = [(*self._questions.by_id(name), answer) for name, answer in answers.items()]
            revised = [
                (claim, a)
                for claim, status, value, a in rows
                if status not in (None, "released") and not same_answer(status, value, a)
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

    def _given_features(self, items: Sequence[LabelItem]) -> FloatArray:
        """[n, d] features of labels that were there already; `InputError` names the one that the model cannot read."""
        rows = []
        for i, item in enumerate(items):
            try:
                rows.append(self._phi(item, f"responses[{i}]"))
            except ModelError as error:  # such as a text beyond its context
                raise InputError(f"responses[{i}]: {error}") from error
        return np.array(rows).reshape(len(items), self._spec.dim)

    def _phi(self, item: LabelItem, what: str = "responses") -> FloatArray:
        """[d] what a label is regressed on: relative where it is a comparison."""
        phi = self._driver.phi(item.prompt, item.response, what)
        return phi if item.opponent is None else phi - self._driver.phi(item.prompt, item.opponent, what)

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
