"""A model behind an OpenAI-compatible server as sampling oracle: vLLM, SGLang, ``transformers serve``, hosted ones.

pi_ref is what the server samples at temperature 1 and top_p 1; from vLLM and SGLang without top_k, min_p and penalties
as well, so that the model's own settings do not change it. Elsewhere what it was started with stays in force.
What a server honours is found out at the first call (`spannerlm.backends.probing`) and said in ``warnings``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from spannerlm.backends import probing, wire
from spannerlm.backends.endpoint import Endpoint
from spannerlm.backends.pieces import Cutter, Draw, Read, nothing, read, whole
from spannerlm.backends.spool import Usage
from spannerlm.backends.wire import Plan, Reply, Request
from spannerlm.dialogue import PLAIN, Form
from spannerlm.errors import InputError, ModelError
from spannerlm.records import Generated
from spannerlm.segments import Segments, cut_at_stop

NEW_TOKENS = 128
"""Token limit where none is named."""
SEEDS = 2**53
"""Seeds are below this: every JSON reader has them exactly."""


class ServerModel:
    """pi_ref: a model behind an OpenAI-compatible server. Made by :meth:`load`; threads may share one.

    Draws are independent where the server's are: one seed for each request, drawn from the caller's generator. Replies
    are kept in a journal under the hash of their request before anything is made of them, so that a run which is
    resumed, and sends the same requests, does not pay for them again (`spannerlm.backends.spool`).

    Lengths. Tokens of a response are those that the server shows with log-probabilities; else its count, which is exact
    for one draw per request and shared by characters among several; else 1 + characters / 4. The sum over a request's
    draws, which budgets count, is the server's own wherever it counts.
    """

    hidden_size: int | None = None
    """None: a server shows no hidden states."""

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        *,
        api: str = "auto",
        form: Form | None = None,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        per_request: int = 8,
    ) -> None:
        if api not in ("auto", "completions", "chat"):
            raise InputError(f"api: expected auto, completions or chat, got {api!r}")
        self.form = form or PLAIN
        """What the text of a prompt stands for."""
        if api == "completions" and self.form != PLAIN:
            what = "system" if self.form.system is not None else "prompts"
            raise InputError(
                f"{what}: expected the user's words alone with api: completions, got messages: use api: chat"
            )
        if isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop):
            raise InputError(f"stop: expected a list of non-empty strings, got {stop!r}")
        self.name, self.max_new_tokens = (
            name,
            _positive("max_new_tokens", NEW_TOKENS if max_new_tokens is None else max_new_tokens),
        )
        self._endpoint, self._stop = endpoint, tuple(stop)
        self._per_request = _positive("per_request", per_request)
        apis = ("chat", "completions") if self.form == PLAIN else ("chat",)
        self._apis = apis if api == "auto" else (api,)
        self._plan: Plan | None = None
        self._goes_on: str | None = None
        self.warnings: list[str] = []
        """What the server was found not to honour, in words."""

    @classmethod
    def load(
        cls,
        name: str,
        *,
        base_url: str,
        api: str = "auto",
        key_env: str | None = None,
        system: str | None = None,
        dialogues: bool = False,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        concurrency: int = 8,
        timeout_s: float = 120.0,
        price: Sequence[float] = (0.0, 0.0),
        per_request: int = 8,
        retries: int = 6,
        journal: Path | str | None = None,
    ) -> ServerModel:
        """The model that the server at ``base_url`` (…/v1) calls ``name``; nothing is sent yet.

        ``api`` auto: chat where the server takes it, else completions. ``key_env``: the environment variable with the
        API key. ``system``: message in front of each prompt; ``dialogues``: prompts are whole conversations (see
        `spannerlm.dialogue`); either needs chat. ``concurrency`` requests at once, of ``per_request`` draws each
        where the server honours ``n``. ``timeout_s``: for one whole reply. ``price``: of 1,000 prompt and completion
        tokens. ``retries``: of one request, see `Endpoint`. ``journal``: a file for replies that were paid for; None:
        they are kept nowhere.
        `InputError` for wrong settings, `ModelError` without the package httpx.
        """
        endpoint = Endpoint(
            base_url,
            key_env=key_env,
            timeout_s=timeout_s,
            retries=retries,
            concurrency=concurrency,
            price=price,
            journal=None if journal is None else Path(journal),
        )
        return cls(
            name,
            endpoint,
            api=api,
            form=Form(system, dialogues),
            max_new_tokens=max_new_tokens,
            stop=stop,
            per_request=per_request,
        )

    @property
    def usage(self) -> Usage:
        """Requests, tokens and cost so far, probes included."""
        return self._endpoint.spool.usage

    def forget(self) -> None:
        """Nothing is kept of prefixes here; the journal is bounded by itself."""

    def close(self) -> None:
        """Make the journal durable and close it."""
        self._endpoint.close()

    def generate(
        self, prompts: Sequence[str], n: int, *, hidden: Sequence[str] = (), rng: np.random.Generator
    ) -> tuple[Generated, ...]:
        """[m] records of ``n`` independent responses to each prompt. Cost: ``n * m`` draws.

        Requests depend on ``rng``, a prompt's place and ``per_request`` alone. `InputError` for ``hidden`` states,
        `ModelError` where the server does not give what was asked for; nothing that it gave is lost.
        """
        _positive("n", n)
        _no_states(hidden)
        if not prompts:
            return ()
        plan = self._planned(prompts[0])
        drawn = self._sent(plan, [(p, "", self.max_new_tokens) for p in prompts], n, rng)
        return tuple(self._record(p, replies) for p, replies in zip(prompts, drawn, strict=True))

    def extend(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[Sequence[str]],
        n: int,
        *,
        segments: Segments,
        horizon: int | None = None,
        hidden: Sequence[str] = (),
        rng: np.random.Generator,
    ) -> tuple[Generated, ...]:
        """[m] records of ``n`` next segments after prompt i and the segments of prefix i. Cost: ``n * m`` segments.

        As with a model in this process, but for two things. A prefix is text, which the server spells in tokens again:
        where the spelling differs from the one drawn, so does the law of what follows. And a segment that ends by its
        text is drawn up to its token limit and cut, so that any server and any end will do: its ``tokens`` are those
        that were paid for. The control characters U+0003 and U+001F mark ends and token counts in ``segments``, and
        are left out of a server's texts. With chat the server must go on from the last message as vLLM and SGLang do;
        this is checked at the first prefix. `ModelError` where it does not, or where it drops spaces that are needed.
        """
        _positive("n", n)
        _no_states(hidden)
        if len(prefixes) != len(prompts):
            raise InputError(f"prefixes: expected one per prompt, {len(prompts)} in all, got {len(prefixes)}")
        before = [read(prefix) for prefix in prefixes]
        steps = [len(prefix) for prefix in prefixes]
        last = math.inf if horizon is None else horizon
        over = [self._over(r) or k >= last for r, k in zip(before, steps, strict=True)]
        go = [i for i, done in enumerate(over) if not done]
        seeds = rng.integers(0, 2**63 - 1, size=len(prompts))
        found = {i: nothing(prompts[i] + before[i].text, n) for i, done in enumerate(over) if done}
        if go:
            plan = self._planned(prompts[go[0]])
            spaces = self._spaces(plan, prompts[go[0]]) if any(before[i].text for i in go) else "kept"
            if spaces == "dropped" and any(before[i].text[-1:].strip() for i in go):
                raise ModelError(
                    f"{self._endpoint.url}: the server drops the space in front of what it goes on with, and nobody "
                    "can tell where a word goes on: set segments: line, or use another server"
                )
            final = {i: steps[i] >= last - 1 for i in go}
            left = {i: self.max_new_tokens - before[i].tokens for i in go}
            limits = {i: left[i] if final[i] else min(left[i], segments.tokens) for i in go}
            asked = [(prompts[i], before[i].text, limits[i]) for i in go]
            drawn = self._sent(plan, asked, n, [seeds[i] for i in go])
            for i, replies in zip(go, drawn, strict=True):
                make = Cutter(before[i], segments, self._stop, final[i], left[i], spaces == "words")
                found[i] = self._record(prompts[i] + before[i].text, replies, make)
        return tuple(found[i] for i in range(len(prompts)))

    def joined(self, prompt: str, segments: Sequence[str]) -> str:  # noqa: ARG002 - a tokenizer's spelling needs it
        """The response that these segments make, as :meth:`generate` would give it: cut at the first stop string."""
        return cut_at_stop(read(segments).text, self._stop, keep=False)

    def complete(self, prompt: str, segments: Sequence[str]) -> bool:  # noqa: ARG002 - a tokenizer's spelling needs it
        """Whether the response has ended: by itself, a stop string or the token limit."""
        return self._over(read(segments))

    def score(self, prompt: str, responses: Sequence[str], hidden: Sequence[str] = ()) -> Generated:
        """Record [n] of given responses, in their order, with estimated lengths. Cost: nothing, no request is sent.

        Log-probabilities are nan: servers do not give those of a text that they did not draw. Maps that need them
        refuse such a record.
        """
        _no_states(hidden)
        n = len(responses)
        return Generated(
            prompt=prompt,
            responses=tuple(responses),
            counts=np.ones(n, dtype=np.int64),
            logprobs=np.full(n, np.nan),
            lengths=np.array([wire.estimated(text) for text in responses], dtype=np.int64),
            finished=np.ones(n, dtype=bool),
        )

    def _over(self, found: Read) -> bool:
        return found.ended or found.tokens >= self.max_new_tokens or any(s in found.text for s in self._stop)

    def _planned(self, prompt: str) -> Plan:
        """How the server is asked: as the journal says, so that a resumed run sends the same, else found out now."""
        if self._plan is None:
            many, stops = self._per_request > 1, bool(self._stop)
            facts = f"plan of {self.name} at {self._endpoint.url}, {'/'.join(self._apis)}, {many}, {stops}"
            known = self._endpoint.spool.fact(facts)
            if known is None:
                ask = self._asking(prompt)
                found = probing.probed(self._endpoint, self._apis, ask, self.max_new_tokens, many, stops)
                self._endpoint.spool.note(facts, asdict(found))
            else:
                found = Plan(**{**known, "warnings": tuple(known["warnings"])})
            self._plan = found
            self.warnings += found.warnings
        return self._plan

    def _spaces(self, plan: Plan, prompt: str) -> str:
        """How the server goes on from a beginning, found out once, see `probing.continued`."""
        if self._goes_on is None:
            facts = f"how {self.name} at {self._endpoint.url} goes on, {plan.api}"
            known = self._endpoint.spool.fact(facts)
            if known is None:
                known = probing.continued(self._endpoint, plan, self._asking(prompt), self.max_new_tokens)
                self._endpoint.spool.note(facts, known)
            self._goes_on = str(known[0])
            self.warnings += [] if known[1] is None else [known[1]]
        return self._goes_on

    def _asking(self, prompt: str) -> probing.Ask:
        def ask(
            plan: Plan,
            *,
            n: int,
            seed: int,
            limit: int,
            temperature: float,
            exact: bool,
            behind: str = "",
            stops: bool = False,
        ) -> Request:
            return wire.request(
                plan,
                self.name,
                prompt,
                n=n,
                limit=limit,
                seed=seed,
                behind=behind,
                form=self.form,
                stop=self._stop if stops else (),
                temperature=temperature,
                exact=exact,
            )

        return ask

    def _sent(
        self,
        plan: Plan,
        asked: Sequence[tuple[str, str, int]],
        n: int,
        rng: np.random.Generator | Iterable[int],
    ) -> list[list[Reply]]:
        """Replies with ``n`` draws in all after each (prompt, beginning, limit); seeds from ``rng``, one per prompt."""
        if isinstance(rng, np.random.Generator):
            rng = rng.integers(0, 2**63 - 1, size=len(asked))
        each = self._per_request if plan.many else 1
        sizes = [each] * (n // each) + ([n % each] if n % each else [])
        requests = []
        for (prompt, behind, limit), start in zip(asked, rng, strict=True):
            seeds = np.random.default_rng(start).integers(0, SEEDS, size=len(sizes)).tolist()
            requests += [
                wire.request(
                    plan,
                    self.name,
                    prompt,
                    n=size,
                    limit=limit,
                    seed=seed,
                    behind=behind,
                    form=self.form,
                    stop=self._stop,
                )
                for size, seed in zip(sizes, seeds, strict=True)
            ]
        replies = self._endpoint.send(requests)
        return [replies[k : k + len(sizes)] for k in range(0, len(replies), len(sizes))]

    def _record(self, prompt: str, replies: Sequence[Reply], make: Cutter | None = None) -> Generated:
        """The draws of one prompt, each text once; of several draws of one text the most probable stands for it."""
        table: dict[str, Draw] = {}
        counts: dict[str, int] = {}
        tokens = 0
        for reply in replies:
            lengths = reply.lengths()
            tokens += sum(lengths) if reply.completion_tokens is None else reply.completion_tokens
            for choice, length in zip(reply.choices, lengths, strict=True):
                draw = whole(choice, length, self._stop) if make is None else make(choice, length)
                key = draw.text if draw.segment is None else draw.segment
                counts[key] = counts.get(key, 0) + 1
                if key not in table or draw.logprob > table[key].logprob:
                    table[key] = draw
        draws = [table[key] for key in counts]
        return Generated(
            prompt=prompt,
            responses=tuple(d.text for d in draws),
            counts=np.array(list(counts.values()), dtype=np.int64),
            logprobs=np.array([d.logprob for d in draws]),
            lengths=np.array([d.length for d in draws], dtype=np.int64),
            finished=np.array([d.finished for d in draws], dtype=bool),
            tokens=tokens,
            segments=None if make is None else tuple(counts),
        )


def _no_states(hidden: Sequence[str]) -> None:
    if hidden:
        raise InputError(
            "features: a model behind a server shows no hidden states: set features: ngrams, one of the kinds "
            "embeddings and encoder, or a function of your own"
        )


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name}: expected a whole number above 0, got {value!r}")
    return int(value)
