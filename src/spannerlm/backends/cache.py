"""A key-value cache whose rows can be copied and dropped without moving the others.

``DynamicLayer`` of transformers concatenates at every token, which for small models costs more than the model itself
(75 % of the time at batch 1024). Here keys and values live in buffers that double; a token is written in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from spannerlm.records import IntArray


@dataclass(frozen=True)
class Move:
    """Which rows go where when the k rows of the next step come from the rows of this one."""

    order: IntArray
    """[k] the child that takes each row."""
    sources: IntArray
    """[c] rows to copy from; none of them is copied to."""
    targets: IntArray
    """[c] rows to copy to."""

    @property
    def rows(self) -> int:
        """Rows afterwards, k."""
        return len(self.order)


def plan_move(parents: IntArray) -> Move:
    """Plan with the fewest copies: of each parent's children (``parents`` [k], ascending) the first stays in place."""
    k = len(parents)
    first = np.diff(parents, prepend=-1) > 0
    stays = first & (parents < k)
    slots = np.full(k, -1)
    slots[stays] = parents[stays]
    free = np.ones(k, dtype=bool)
    free[parents[stays]] = False
    slots[~stays] = np.flatnonzero(free)
    return Move(np.argsort(slots), parents[~stays], slots[~stays])


class RowBuffer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values [rows, heads, length, width], as views of larger buffers.

    The buffers start with room for ``rows`` rows and ``length`` tokens, and double where that is not enough.
    """

    def __init__(self, rows: int, length: int) -> None:
        super().__init__()
        self._room = rows, length
        self._buffers: list[Any] = []
        self.rows = self.length = 0

    def update(self, key_states: Any, value_states: Any, *_args: Any, **_kwargs: Any) -> tuple[Any, Any]:
        """Keys and values so far, the new ones [rows, heads, new, width] written behind them."""
        if not self._buffers:
            self._allocate(key_states, value_states)
        end = self.length + key_states.shape[2]
        self._reserve(self.rows, end)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self.rows, :, self.length : end] = new
        self.length = end
        self._view()
        return self.keys, self.values

    def move(self, plan: Move) -> None:
        """Copy and drop rows as planned."""
        self._reserve(max(self.rows, plan.rows), self.length)
        if len(plan.sources):
            sources = torch.as_tensor(plan.sources, device=self._buffers[0].device)
            targets = torch.as_tensor(plan.targets, device=self._buffers[0].device)
            for buffer in self._buffers:
                used = buffer[:, :, : self.length]
                used.index_copy_(0, targets, used.index_select(0, sources))  # twice as fast as used[t] = used[s]
        self.rows = plan.rows
        self._view()

    def _allocate(self, keys: Any, values: Any) -> None:
        self.rows = keys.shape[0]
        rows, length = max(self._room[0], self.rows), max(self._room[1], keys.shape[2])
        self._buffers = [_empty(x, rows, length) for x in (keys, values)]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True  # what the base class sets itself

    def _view(self) -> None:
        self.keys, self.values = (buffer[: self.rows, :, : self.length] for buffer in self._buffers)

    def _reserve(self, rows: int, length: int) -> None:
        for i, old in enumerate(self._buffers):
            if rows > old.shape[0] or length > old.shape[2]:
                new_rows = max(rows, 2 * old.shape[0]) if rows > old.shape[0] else old.shape[0]
                new_length = max(length, 2 * old.shape[2]) if length > old.shape[2] else old.shape[2]
                new = _empty(old, new_rows, new_length)
                new[: self.rows, :, : self.length] = old[: self.rows, :, : self.length]
                self._buffers[i] = new


def make_cache(config: Any, rows: int, length: int) -> Any:
    """Empty cache of the kind the model's configuration asks for, its plain layers replaced by :class:`RowBuffer`."""
    cache = DynamicCache(config=config)
    cache.layers = [RowBuffer(rows, length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def move_rows(cache: Any, plan: Move, parents: IntArray) -> None:
    """Rearrange every layer; ``parents`` [k] are the rows, in the plan's order, for layers that gather anew."""
    for layer in cache.layers:
        if isinstance(layer, RowBuffer):
            layer.move(plan)
        else:
            layer.reorder_cache(torch.as_tensor(parents))


def _empty(like: Any, rows: int, length: int) -> Any:
    return like.new_empty((rows, like.shape[1], length, like.shape[3]))
