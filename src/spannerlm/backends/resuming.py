"""Starting a frontier from what a store of prefixes knows, and telling the store what the frontier has read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from spannerlm.backends.decoding import BoolArray
from spannerlm.backends.forward import Frontier, States
from spannerlm.backends.prefixes import Held, PrefixStore, Tail
from spannerlm.records import IntArray

Prefix = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Resuming:
    """A store at work for one batch, whose prompts are prefixes of tokens: the `Memory` of its sampling."""

    store: PrefixStore
    layers: tuple[int, ...]
    """Whose states are asked for."""
    prefixes: Sequence[Prefix]
    """[m]"""
    frontier: Frontier
    """The batch's, empty before the start."""
    fresh: Callable[[int, int], Frontier]
    """(rows, tokens) -> an empty frontier, for what is not known yet."""
    rows: int
    """Rows that one forward pass may have."""

    def start(self) -> tuple[torch.Tensor, States]:
        """Logits [m, V] and states at the ends of the prefixes, which the frontier then holds.

        What the store lacks is encoded first, each prefix once however often it occurs.
        """
        known = self._known(set(self.prefixes))
        self.frontier.load([known[prefix] for prefix in self.prefixes])
        return _stacked([_tail(known[prefix]) for prefix in self.prefixes], self.layers)

    def known(self, prompts: IntArray, tokens: IntArray) -> tuple[BoolArray, States]:
        """[k] whether the states at the ends of these sequences are known, and those that are."""
        whole = zip(prompts.tolist(), tokens.tolist(), strict=True)
        tails = [self.store.find((*self.prefixes[i], *own), self.layers).tail for i, own in whole]
        found = [tail for tail in tails if tail is not None]
        return np.array([tail is not None for tail in tails]), _stacked(found, self.layers)[1] if found else {}

    def keep(
        self, prompts: IntArray, rows: IntArray, tokens: IntArray, end: tuple[torch.Tensor, States] | None
    ) -> None:
        """Store what ``rows`` [k] of the frontier have read behind their prefixes: ``tokens`` [k, L]."""
        length = tokens.shape[1]
        if not length:
            return
        chunks = self.frontier.chunks(rows, self.frontier.length - length, self.frontier.length)
        for i, (prompt, own, chunk) in enumerate(zip(prompts.tolist(), tokens.tolist(), chunks, strict=True)):
            prefix = self.prefixes[prompt]
            self.store.add((*prefix, *own), len(prefix), chunk, None if end is None else _tail_of(*end, i))

    def _known(self, prefixes: set[Prefix]) -> dict[Prefix, Held]:
        """Everything about these prefixes, tails included; those short of equally many tokens are read together."""
        done: dict[Prefix, Held] = {}
        waiting = sorted(prefixes, key=lambda p: (len(p), p))
        while waiting:
            found = {prefix: self._found(prefix) for prefix in waiting}
            lacks = {prefix: len(prefix) - held.length for prefix, held in found.items()}
            fewest = lacks[waiting[0]]
            now = [prefix for prefix in waiting if lacks[prefix] == fewest]
            for at in range(0, len(now), self.rows):
                part = now[at : at + self.rows]
                done |= {p: found[p] for p in part} if not fewest else self._read(part, [found[p] for p in part])
            waiting = [prefix for prefix in waiting if prefix not in done]
        return done

    def _found(self, prefix: Prefix) -> Held:
        """What the store has: all of it with a tail, or so much that a token is left to be read."""
        held = self.store.find(prefix, self.layers)
        return held if held.tail is not None else held.upto(min(held.length, len(prefix) - 1))

    def _read(self, prefixes: Sequence[Prefix], held: Sequence[Held]) -> dict[Prefix, Held]:
        """Encode what is missing of each prefix, equally many tokens, and store it."""
        width = max(map(len, prefixes))
        missing = np.array([p[h.length :] for p, h in zip(prefixes, held, strict=True)], dtype=np.int64)
        frontier = self.fresh(len(prefixes), width)
        if width == missing.shape[1]:
            end = frontier.prefill(missing.tolist())
        else:
            frontier.load(held)
            end = frontier.step(missing)
        out = {}
        chunks = frontier.chunks(np.arange(len(prefixes)), frontier.length - missing.shape[1], frontier.length)
        for i, (prefix, before, chunk) in enumerate(zip(prefixes, held, chunks, strict=True)):
            tail = _tail_of(*end, i)
            self.store.add(prefix, before.length, chunk, tail)
            out[prefix] = Held((*before.chunks, chunk), len(prefix), tail)
        return out


def _tail(held: Held) -> Tail:
    assert held.tail is not None  # where it was missing, the last token was read again
    return held.tail


def _stacked(tails: Sequence[Tail], layers: Sequence[int]) -> tuple[torch.Tensor, States]:
    states = {layer: torch.stack([tail.states[layer] for tail in tails]) for layer in layers}
    return torch.stack([tail.logits for tail in tails]), states


def _tail_of(logits: torch.Tensor, states: States, row: int) -> Tail:
    kept: Mapping[int, torch.Tensor] = {layer: s[row].clone() for layer, s in states.items()}
    return Tail(logits[row].clone(), kept)
