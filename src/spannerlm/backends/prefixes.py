"""Key-value states of token prefixes that were encoded before: a tree of chunks, the least recently used dropped first.

What is extended step by step (THEORY 5) is mostly known: the prompt, the segments kept, and, where hidden states were
asked for, the very draws that one goes on from. A node holds the states of its own tokens alone, so that prefixes share
what they have in common; at its last token it may also hold the next-token logits, without which that token has to be
encoded again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

Chunk = tuple[tuple[torch.Tensor, torch.Tensor], ...]
"""Keys and values [heads, tokens, width] by layer."""


@dataclass(frozen=True, eq=False)
class Tail:
    """What a forward pass said at a prefix's last token."""

    logits: torch.Tensor
    """[V]"""
    states: Mapping[int, torch.Tensor]
    """[D] by layer."""


@dataclass(frozen=True, eq=False)
class Held:
    """The known start of a prefix."""

    chunks: tuple[Chunk, ...]
    """One behind the other."""
    length: int
    """Tokens in them."""
    tail: Tail | None = None
    """At the last of them, where it is known and the prefix ends there."""

    def upto(self, length: int) -> Held:
        """The first ``length`` tokens of these."""
        kept, room = [], length
        for chunk in self.chunks:
            size = min(_length(chunk), room)
            if size:
                kept.append(_cut(chunk, 0, size))
            room -= size
        return Held(tuple(kept), length)


@dataclass(eq=False)
class _Node:
    tokens: tuple[int, ...]
    chunk: Chunk
    parent: _Node | None = None
    tail: Tail | None = None
    children: dict[int, _Node] = field(default_factory=dict)
    """By their first token."""


class PrefixStore:
    """States by token prefix, at most ``limit`` bytes of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        """Of the keys, values and logits held."""
        self._root = _Node((), ())
        self._nodes: OrderedDict[_Node, None] = OrderedDict()  # oldest first; a parent is never older than its child

    def find(self, ids: Sequence[int], layers: Sequence[int]) -> Held:
        """The longest known start of these tokens; its tail only if it has the states of all ``layers``."""
        path, length = self._walk(ids)
        self._touch([node for node, _ in path])
        chunks = tuple(_cut(node.chunk, 0, size) for node, size in path)
        tail = path[-1][0].tail if path and length == len(ids) and path[-1][1] == len(path[-1][0].tokens) else None
        if tail is not None and not set(layers) <= set(tail.states):
            tail = None
        return Held(chunks, length, tail)

    def add(self, ids: Sequence[int], start: int, chunk: Chunk, tail: Tail | None) -> None:
        """Keep the states of ``ids[start:]`` and the tail at their end; nothing where what precedes them is gone."""
        path, length = self._walk(ids)
        if length < start:
            return
        nodes = [node for node, _ in path]
        if path and path[-1][1] < len(nodes[-1].tokens) and (length < len(ids) or tail is not None):
            nodes[-1] = self._split(nodes[-1], path[-1][1])
        parent = nodes[-1] if nodes else self._root
        if length < len(ids):
            own = _cut(chunk, length - start, len(ids) - start)
            node = _Node(tuple(ids[length:]), tuple((k.clone(), v.clone()) for k, v in own), parent)
            parent.children[ids[length]] = node
            self.bytes += _chunk_bytes(node.chunk)
            nodes.append(node)
        if tail is not None and nodes:
            self.bytes += _tail_bytes(tail) - _tail_bytes(nodes[-1].tail)
            nodes[-1].tail = tail
        self._touch(nodes)
        while self.bytes > self.limit and self._nodes:
            self._drop(next(iter(self._nodes)))

    def clear(self) -> None:
        """Drop everything."""
        self._root = _Node((), ())
        self._nodes.clear()
        self.bytes = 0

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """The token prefixes at which nodes end, least recently used first."""
        for node in self._nodes:
            parts, at = [node.tokens], node.parent
            while at is not None:
                parts.append(at.tokens)
                at = at.parent
            yield tuple(token for part in reversed(parts) for token in part)

    def _walk(self, ids: Sequence[int]) -> tuple[list[tuple[_Node, int]], int]:
        """Nodes along these tokens, how many of each one's tokens agree (all but for the last node), and their sum."""
        path: list[tuple[_Node, int]] = []
        at, length = self._root, 0
        while length < len(ids) and (node := at.children.get(ids[length])) is not None:
            pairs = zip(node.tokens, ids[length:], strict=False)
            size = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(node.tokens), len(ids) - length))
            path.append((node, size))
            length += size
            if size < len(node.tokens):
                break
            at = node
        return path, length

    def _split(self, node: _Node, size: int) -> _Node:
        """A new node that takes the first ``size`` tokens from this one, and is its parent."""
        assert node.parent is not None  # the root has no tokens
        upper = _Node(node.tokens[:size], _own(node.chunk, 0, size), node.parent)
        node.parent.children[node.tokens[0]] = upper
        node.tokens, node.chunk = node.tokens[size:], _own(node.chunk, size, len(node.tokens))
        node.parent = upper
        upper.children[node.tokens[0]] = node
        self._nodes[upper] = None
        return upper

    def _touch(self, path: Sequence[_Node]) -> None:
        for node in reversed(path):
            self._nodes[node] = None
            self._nodes.move_to_end(node)

    def _drop(self, node: _Node) -> None:
        assert node.parent is not None
        assert not node.children  # the oldest node is a leaf
        del node.parent.children[node.tokens[0]], self._nodes[node]
        self.bytes -= _chunk_bytes(node.chunk) + _tail_bytes(node.tail)


def _cut(chunk: Chunk, start: int, end: int) -> Chunk:
    return tuple((k[:, start:end], v[:, start:end]) for k, v in chunk)


def _own(chunk: Chunk, start: int, end: int) -> Chunk:
    """A copy, so that what it was cut from can be freed."""
    return tuple((k.clone(), v.clone()) for k, v in _cut(chunk, start, end))


def _length(chunk: Chunk) -> int:
    return int(chunk[0][0].shape[1])


def _chunk_bytes(chunk: Chunk) -> int:
    return sum(k.nbytes + v.nbytes for k, v in chunk)


def _tail_bytes(tail: Tail | None) -> int:
    return 0 if tail is None else tail.logits.nbytes + sum(s.nbytes for s in tail.states.values())
