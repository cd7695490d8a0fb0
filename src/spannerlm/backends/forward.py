"""Forward passes over a frontier of rows: prompts once, then one token per row, with the hidden states asked for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spannerlm.backends.cache import RowBuffer, make_cache, move_rows, plan_move
from spannerlm.backends.prefixes import Chunk, Held
from spannerlm.errors import InputError, ModelError
from spannerlm.records import IntArray

States = Mapping[int, torch.Tensor]
"""Hidden states by layer: [rows, D], of the last position."""


def parse_hidden(name: str, layers: int) -> tuple[str, int]:
    """(pooling, layer 0 .. ``layers``) of a name such as ``mean:-1``. InputError otherwise."""
    pooling, _, number = name.partition(":")
    try:
        layer = int(number)
    except ValueError:
        layer = layers + 1
    if pooling not in ("mean", "before-eos") or not -layers - 1 <= layer <= layers:
        raise InputError(
            f"hidden states: expected 'mean:LAYER' or 'before-eos:LAYER' with LAYER from {-layers - 1} to {layers}, "
            f"got {name!r}; -1 is the last layer, after the final norm"
        )
    return pooling, layer % (layers + 1)


def accepted(model: Any) -> set[str]:
    """Names of the arguments that the model's forward pass takes. ModelError where it has no key-value cache."""
    names = set(inspect.signature(model.forward).parameters)
    if not {"input_ids", "past_key_values"} <= names:
        raise ModelError(f"{type(model).__name__} has no key-value cache; expected a causal transformer language model")
    return names


def decoder(model: Any) -> Any:
    """The part of the model whose output is the last hidden state, after the final norm."""
    found = model.get_decoder()
    return model.base_model if found is None or found is model else found  # transformers 4 answers some models so


def decoder_layers(model: Any) -> Any:
    """The model's list of decoder layers. ModelError where there is none to be found."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    found = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count]
    if not found:
        raise ModelError(f"expected {count} decoder layers in one ModuleList of {type(model).__name__}, found none")
    return found[0]


@contextmanager
def tapped(model: Any, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Dictionary that each forward pass fills with the hidden states [rows, positions, D] of these layers.

    Layer k is the input of decoder layer k, and the last one the decoder's output, after its final norm: the very
    entries of ``output_hidden_states``, at the price of the layers asked for alone.
    """
    states: dict[int, torch.Tensor] = {}
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    hooks = []
    for layer in layers:
        if layer == count:
            hooks.append(decoder(model).register_forward_hook(_keep_output(states, layer)))
        else:
            module = decoder_layers(model)[layer]
            hooks.append(module.register_forward_pre_hook(_keep_input(states, layer), with_kwargs=True))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Tally:
    """What has gone through a network."""

    encoded: int = 0
    """Tokens, each row's own counted: prompts are, padding is not."""


class Frontier:
    """Live rows of a batch: their cache, and the mask where prompts were padded. Rows are counted from 0.

    One instance serves one batch, of about ``rows`` rows and ``length`` tokens; the model runs in ``inference_mode``.
    """

    def __init__(self, model: Any, states: Mapping[int, torch.Tensor], rows: int, length: int, tally: Tally) -> None:
        self._model = model
        self._tap = states
        self._cache = make_cache(model.config, rows, length)
        self._accepts = accepted(model)
        self._mask: torch.Tensor | None = None
        self._rows = 0
        self._tally = tally

    @property
    def storable(self) -> bool:
        """Whether states can be taken out and put back: not where a layer forgets, as sliding windows do."""
        return all(isinstance(layer, RowBuffer) for layer in self._cache.layers)

    @property
    def length(self) -> int:
        """Tokens that each row holds, padding included."""
        return int(self._cache.layers[0].length)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, States]:
        """Logits [m, V] after each prompt's last token, and the states there. Prompts are padded on the left."""
        ids, mask = left_padded(prompts)
        padded = not bool(mask.all())
        self._mask = mask.to(self._model.device) if padded else None
        self._tally.encoded += sum(map(len, prompts))
        return self._forward(ids.to(self._model.device))

    def load(self, rows: Sequence[Held]) -> None:
        """Start from known states, one row each, padded on the left; at least one of them holds a token."""
        self._rows, width = len(rows), max(row.length for row in rows)
        some = next(row.chunks[0] for row in rows if row.length)
        for number, layer in enumerate(self._cache.layers):
            both = [x.new_zeros((len(rows), x.shape[0], width, x.shape[2])) for x in some[number]]
            for i, row in enumerate(rows):
                at = width - row.length
                for chunk in row.chunks:
                    end = at + chunk[number][0].shape[1]
                    for to, new in zip(both, chunk[number], strict=True):
                        to[i, :, at:end] = new
                    at = end
            layer.update(*both)
        lengths = torch.tensor([row.length for row in rows])[:, None]
        mask = (torch.arange(width)[None] >= width - lengths).long()
        self._mask = None if bool(mask.all()) else mask.to(self._model.device)

    def chunks(self, rows: IntArray, start: int, end: int) -> list[Chunk]:
        """States of the columns ``start`` .. ``end`` - 1 of these rows, not copied for each."""
        index = torch.as_tensor(rows)
        layers = [
            tuple(x[index.to(x.device), :, start:end] for x in (layer.keys, layer.values))
            for layer in self._cache.layers
        ]
        return [tuple((keys[i], values[i]) for keys, values in layers) for i in range(len(rows))]

    def step(self, tokens: IntArray) -> tuple[torch.Tensor, States]:
        """Logits [m, V] and states after the further tokens [m], or [m, k], of each row."""
        new = torch.as_tensor(tokens.reshape(len(tokens), -1), device=self._model.device)
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(new.shape)], dim=1)
        self._tally.encoded += new.numel()
        return self._forward(new)

    def branch(self, parents: IntArray) -> IntArray:
        """[k] the child in each row, once the k children of ``parents`` (ascending) have taken their places."""
        if len(parents) == self._rows and np.array_equal(parents, np.arange(self._rows)):
            return np.arange(self._rows)
        plan = plan_move(parents)
        rows = parents[plan.order]
        move_rows(self._cache, plan, rows)
        if self._mask is not None:
            self._mask = self._mask[torch.as_tensor(rows, device=self._mask.device)]
        self._rows = plan.rows
        return plan.order

    def _forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, States]:
        self._rows = ids.shape[0]
        arguments: dict[str, Any] = {"input_ids": ids, "past_key_values": self._cache, "use_cache": True}
        arguments |= mask_arguments(self._mask, ids.shape[1], self._accepts)
        if "logits_to_keep" in self._accepts:
            arguments["logits_to_keep"] = 1
        logits = self._model(**arguments).logits[:, -1]
        return logits, {layer: state[:, -1] for layer, state in self._tap.items()}


def mask_arguments(mask: torch.Tensor | None, new: int, accepts: set[str]) -> dict[str, Any]:
    """Mask and position arguments for ``new`` tokens at the end of a left-padded batch; none without padding."""
    if mask is None:
        return {}
    arguments = {"attention_mask": mask}
    if "position_ids" in accepts:
        arguments["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -new:]
    return arguments


def left_padded(sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [m, T] padded with 0 on the left, and the mask [m, T], 1 at real tokens."""
    width = max(len(s) for s in sequences)
    ids = np.zeros((len(sequences), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, s in enumerate(sequences):
        ids[i, width - len(s) :] = s
        mask[i, width - len(s) :] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _keep_output(states: dict[int, torch.Tensor], layer: int) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        states[layer] = output[0]

    return hook


def _keep_input(states: dict[int, torch.Tensor], layer: int) -> Any:
    def hook(_module: Any, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        states[layer] = inputs[0] if inputs else keywords["hidden_states"]

    return hook
