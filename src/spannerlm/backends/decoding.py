"""Exact sampling from pi_ref, many draws at a time, each distinct prefix computed once.

The draws of a prompt are leaves of a tree of prefixes. A step runs the model on the *distinct* live prefixes only; each
draw then picks its next token with a uniform number of its own, and a prefix branches into the distinct tokens picked.
So a prompt is read once, duplicates cost nothing, and finished rows leave the batch at once. Draws stay independent,
and draw i is a function of its uniforms u[i, :], whatever else is in the batch (except where float noise moves a
boundary of the distribution across u: about once in 1e6 tokens in float32).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from spannerlm.backends.forward import Frontier, States
from spannerlm.errors import ModelError
from spannerlm.records import FloatArray, IntArray

BoolArray = NDArray[np.bool_]
Test = Callable[[IntArray, IntArray], BoolArray]
"""(prompts [k], tokens [k, L]) -> [k] whether something holds of these sequences, as of their last token."""

BLOCK = 2**24
"""Elements of one block of gathered distributions: 128 MB of float64, whatever the vocabulary."""


@dataclass(frozen=True)
class Rules:
    """When a draw ends, and what is pooled on the way."""

    limits: IntArray
    """[m] tokens at most by prompt, end-of-sequence included; all 0 pools the states at the prompts' ends and draws
    nothing."""
    eos: tuple[int, ...]
    """End-of-sequence ids; they count as one event, whose probability is their sum."""
    pools: dict[str, tuple[str, int]]
    """Name -> (pooling, layer)."""
    stops: Test | None = None
    """Whether the last token completes a stop string: it is no part of the response, nor of the pooled states."""
    ends: Test | None = None
    """Whether the last token completes a segment, which it is part of."""

    @property
    def limit(self) -> int:
        """The largest limit."""
        return int(np.max(self.limits, initial=0))

    def of(self, prompts: IntArray) -> Rules:
        """The rules of a batch with these prompts [m], which it counts from 0."""

        def behind(test: Test | None) -> Test | None:
            return None if test is None else lambda rows, tokens: test(prompts[rows], tokens)

        return replace(self, limits=self.limits[prompts], stops=behind(self.stops), ends=behind(self.ends))


@dataclass(frozen=True, eq=False)
class Sequences:
    """Distinct token sequences [k] of equal length L, live or done, with the draws that took them."""

    prompt: IntArray
    """[k] index into the batch's prompts."""
    first: IntArray
    """[k] smallest index of the draws that took the sequence."""
    counts: IntArray
    """[k] number of draws that took it."""
    tokens: IntArray
    """[k, L] tokens, the end-of-sequence token included where it came."""
    logprobs: FloatArray
    """[k] sum of the tokens' log-probabilities, nats."""
    ended: BoolArray
    """[k] whether the last token is end-of-sequence."""
    stopped: BoolArray
    """[k] whether the last token completes a stop string."""
    last: dict[int, torch.Tensor]
    """[k, D] by layer: state of the newest token that was read."""
    total: dict[int, torch.Tensor]
    """[k, D] by layer: sum of the states of the tokens that were read, without the prompt's."""
    read: int
    """Tokens that were read: L, or L - 1 where the last one was drawn and not read."""

    def take(self, rows: IntArray) -> Sequences:
        """The chosen rows, repeated or dropped."""
        return Sequences(
            prompt=self.prompt[rows],
            first=self.first[rows],
            counts=self.counts[rows],
            tokens=self.tokens[rows],
            logprobs=self.logprobs[rows],
            ended=self.ended[rows],
            stopped=self.stopped[rows],
            last={layer: s[torch.as_tensor(rows, device=s.device)] for layer, s in self.last.items()},
            total={layer: s[torch.as_tensor(rows, device=s.device)] for layer, s in self.total.items()},
            read=self.read,
        )

    def after(self, states: States) -> Sequences:
        """The same rows once their newest token has been read, with its states [k, D]."""
        last = {layer: s.double() for layer, s in states.items()}
        total = {layer: self.total[layer] + s for layer, s in last.items()}
        return replace(self, last=last, total=total, read=self.read + 1)

    def pooled(self, pools: dict[str, tuple[str, int]]) -> dict[str, FloatArray]:
        """[k, D] by name: state of the last token read, or mean over those of the response (of none: the last)."""
        out = {}
        for name, (pooling, layer) in pools.items():
            mean = pooling == "mean" and self.read > 0
            out[name] = (self.total[layer] / self.read if mean else self.last[layer]).cpu().numpy()
        return out


class Memory(Protocol):
    """What was read before, in other calls."""

    def known(self, prompts: IntArray, tokens: IntArray) -> tuple[BoolArray, States]:
        """[k] whether the states at the ends of these sequences are known, and those that are."""

    def keep(
        self, prompts: IntArray, rows: IntArray, tokens: IntArray, end: tuple[torch.Tensor, States] | None
    ) -> None:
        """Remember sequences [k]: the frontier's rows, the tokens [k, L] that these have read behind the prompts, and
        what the model said at the last one, logits [k, V] and states, where there is one."""


def sample(
    frontier: Frontier,
    start: tuple[torch.Tensor, States],
    draws: IntArray,
    u: FloatArray,
    rules: Rules,
    memory: Memory | None = None,
) -> list[Sequences]:
    """Draw ``draws[i]`` responses to prompt i, at temperature 1 from the whole vocabulary.

    ``start`` is what the frontier said at the prompts' ends: logits [m, V] and states. ``u`` [N, limit] are independent
    uniforms, a row per draw, those of prompt 0 first. A ``memory`` is told of each sequence that is done while the
    frontier still holds it, as far as it was read, and asked before its last token is. Cost: N draws.
    """
    logits, states = start
    rows = _roots(draws, states)
    if rules.limit == 0:
        return [rows]
    done: list[Sequences] = []
    draw = np.arange(len(u))
    row_of_draw = np.repeat(np.arange(len(draws)), draws)
    for t in range(rules.limit):
        children, parents, member = _children(rows, logits, draw, row_of_draw, u[draw, t], rules)
        over = children.ended | children.stopped | (t + 1 == rules.limits[children.prompt])
        if rules.ends is not None:
            over |= rules.ends(children.prompt, children.tokens)
        gone = over & (children.ended | children.stopped | (not rules.pools))  # the last token need not be read
        if gone.any():
            out = np.flatnonzero(gone)
            done.append(children.take(out))
            if memory is not None:
                memory.keep(children.prompt[out], parents[out], children.tokens[out, :-1], None)
        if memory is not None and (last := np.flatnonzero(over & ~gone)).size:
            known, found = memory.known(children.prompt[last], children.tokens[last])
            if known.any():
                done.append(children.take(last[known]).after(found))
                gone[last[known]] = True
        live = np.flatnonzero(~gone)
        if not len(live):
            break
        live = live[frontier.branch(parents[live])]
        rows = children.take(live)
        logits, states = frontier.step(rows.tokens[:, -1])
        rows = rows.after(states)
        if over[live].any():
            out = np.flatnonzero(over[live])
            done.append(rows.take(out))
            if memory is not None:
                index = torch.as_tensor(out, device=logits.device)
                end = logits[index], {layer: state[index] for layer, state in states.items()}
                memory.keep(rows.prompt[out], out, rows.tokens[out], end)
        draw, row_of_draw = _follow(draw, member, live, over)
        if not len(draw):
            break
    return done


def _roots(draws: IntArray, states: States) -> Sequences:
    """[m] empty sequences, one per prompt with all its draws, and the states at the prompts' ends."""
    m = len(draws)
    zero, no = np.zeros(m, dtype=np.int64), np.zeros(m, dtype=bool)
    last = {layer: s.double() for layer, s in states.items()}
    total = {layer: torch.zeros_like(s) for layer, s in last.items()}
    tokens = np.zeros((m, 0), dtype=np.int64)
    return Sequences(np.arange(m), zero, draws, tokens, np.zeros(m), no, no, last, total, 0)


def _children(
    rows: Sequences, logits: torch.Tensor, draw: IntArray, row_of_draw: IntArray, u: FloatArray, rules: Rules
) -> tuple[Sequences, IntArray, IntArray]:
    """Distinct continuations [k] by one token, their parents [k] in ascending order, and the child of each draw [N]."""
    probs = distribution(logits, rules.eos)
    vocabulary = probs.shape[1]
    token = pick(probs, row_of_draw, u)
    key, first, member, counts = np.unique(
        row_of_draw * vocabulary + token, return_index=True, return_inverse=True, return_counts=True
    )
    parents, token = np.divmod(key, vocabulary)
    at = torch.as_tensor(parents, device=probs.device), torch.as_tensor(token, device=probs.device)
    children = rows.take(parents)
    tokens = np.concatenate([children.tokens, token[:, None]], axis=1)
    children = replace(
        children,
        first=draw[first],
        counts=counts.astype(np.int64),
        tokens=tokens,
        logprobs=children.logprobs + probs[at].log().cpu().numpy(),
        ended=token == rules.eos[0] if rules.eos else np.zeros(len(token), dtype=bool),
        stopped=rules.stops(children.prompt, tokens) if rules.stops is not None else np.zeros(len(token), dtype=bool),
    )
    return children, parents, member


def distribution(logits: torch.Tensor, eos: tuple[int, ...]) -> torch.Tensor:
    """[m, V] next-token probabilities in float64, all end-of-sequence ids merged into the first."""
    probs = torch.softmax(logits.double(), dim=-1)
    if len(eos) > 1:
        ends = list(eos)
        together = probs[:, ends].sum(dim=1)
        probs[:, ends] = 0.0
        probs[:, eos[0]] = together
    return probs


def pick(probs: torch.Tensor, rows: IntArray, u: FloatArray) -> IntArray:
    """[N] token of each draw by inversion: the first whose cumulated probability in ``probs[rows]`` exceeds u."""
    cumulated = probs.cumsum(dim=1)
    if not bool(torch.isfinite(cumulated[:, -1]).all()):
        raise ModelError("the model's logits are not finite numbers; load it with dtype='float32' (or 'bfloat16')")
    uniform = torch.as_tensor(u, device=probs.device)
    index = torch.as_tensor(rows, device=probs.device)
    block = max(1, BLOCK // probs.shape[1])
    picked = [
        _invert(cumulated[i], v) for i, v in zip(torch.split(index, block), torch.split(uniform, block), strict=True)
    ]
    return np.asarray(torch.cat(picked).cpu().numpy(), dtype=np.int64)


def _invert(cumulated: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    threshold = (u * cumulated[:, -1])[:, None]
    found = torch.searchsorted(cumulated, threshold, right=True)[:, 0]
    return found.clamp(max=cumulated.shape[1] - 1)


def _follow(draw: IntArray, member: IntArray, live: IntArray, over: BoolArray) -> tuple[IntArray, IntArray]:
    """Draws that go on and their rows: ``member`` [N] is each draw's child, ``live`` [rows] the child in each row."""
    row = np.full(len(over), -1)
    row[live] = np.arange(len(live))
    row[over] = -1
    going = row[member] >= 0
    return draw[going], row[member[going]]
