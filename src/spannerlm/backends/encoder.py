"""Texts as vectors of a model that runs here: the mean of its last hidden states over a text's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError

from spannerlm.backends.loading import _hub_known, _is_directory, _no_progress_bar, pick_device
from spannerlm.errors import ModelError
from spannerlm.records import FloatArray

MOST_TOKENS = 2**17
"""A tokenizer that knows no limit says some larger number."""


class Encoder:
    """A model without its head, float32, and its tokenizer. Python code that comes with a model never runs.

    Of a model with encoder and decoder the encoder is used. A longer text than the model reads, or than ``max_tokens``,
    loses its beginning with ``keep_end``, else its end. `ModelError` where the model cannot be loaded, has no hidden
    states of texts, or not all of its weights.
    """

    def __init__(self, name_or_path: str, *, device: str, revision: str | None, max_tokens: int | None, keep_end: bool):
        self._device, self._name = pick_device(device), name_or_path
        local = _is_directory(name_or_path)
        common = {"local_files_only": not local and not _hub_known(), "trust_remote_code": False, "revision": revision}
        if revision is None:
            del common["revision"]
        try:
            with _no_progress_bar(), _no_notes():
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                    name_or_path, truncation_side="left" if keep_end else "right", **common
                )
                model, found = transformers.AutoModel.from_pretrained(
                    name_or_path, dtype=torch.float32, output_loading_info=True, **common
                )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            said = " ".join(str(error).split())[:300].rstrip(" .") or type(error).__name__
            raise ModelError(
                f"encoder {name_or_path!r} could not be loaded: {said}; expected a directory, or the hub id of a model "
                "that Transformers knows, with a tokenizer"
            ) from error
        if missing := sorted(key for key in found["missing_keys"] if "pooler" not in key):
            raise ModelError(
                f"encoder {name_or_path!r}: the file has no weights for {missing[0]}, {len(missing)} in all, which "
                "would be random numbers: choose a checkpoint of this architecture"
            )
        self._model = (model.get_encoder() if model.config.is_encoder_decoder else model).to(self._device).eval()
        limits = (max_tokens, getattr(self._tokenizer, "model_max_length", None), _positions(model))
        self._limit = min((limit for limit in limits if limit is not None and limit < MOST_TOKENS), default=None)

    def means(self, texts: Sequence[str], batch_size: int) -> FloatArray:
        """[n, D] mean of the last layer's states over each text's tokens, those that frame it included.

        A text without tokens is the zero vector. Texts of similar length go through the model together, so that a row
        depends on the others by float noise only; the same ``texts`` give the same bits. `ModelError` where a state is
        no finite number.
        """
        readable = [text.encode("utf-8", "replace").decode() for text in texts]  # no tokenizer takes a lone surrogate
        cut = {} if self._limit is None else {"truncation": True, "max_length": self._limit}
        ids = self._tokenizer(readable, **cut)["input_ids"] if readable else []
        order = sorted((i for i in range(len(ids)) if ids[i]), key=lambda i: len(ids[i]))
        means = np.zeros((len(texts), self.width))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            means[rows] = self._means([ids[i] for i in rows])
        if not np.isfinite(means).all():
            row = int(np.argmin(np.isfinite(means).all(axis=1)))
            raise ModelError(f"encoder {self._name!r}: expected finite hidden states, got others for {texts[row]!r}")
        return means

    @property
    def width(self) -> int:
        """D."""
        return int(self._model.config.get_text_config().hidden_size)

    def _means(self, ids: Sequence[Sequence[int]]) -> FloatArray:
        """[b, D] of sequences that are not empty, side by side."""
        longest = max(map(len, ids))
        tokens = torch.full((len(ids), longest), self._tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(tokens)
        for row, sequence in enumerate(ids):
            tokens[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        with torch.inference_mode():
            out = self._model(input_ids=tokens.to(self._device), attention_mask=mask.to(self._device))
        states: Any = getattr(out, "last_hidden_state", None)
        if states is None:
            raise ModelError(f"encoder {self._name!r}: expected a model of texts with hidden states, got {type(out)}")
        weights = mask.to(torch.float64)[:, :, None]  # [b, T, 1]
        means = (states.to("cpu", torch.float64) * weights).sum(1) / weights.sum(1)
        return np.asarray(means.numpy(), dtype=np.float64)


def _positions(model: Any) -> int | None:
    """Tokens for which the model has places; of RoBERTa's kind, those before the first one are not used."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings) - int(module.padding_idx) - 1
    places: int | None = getattr(model.config, "max_position_embeddings", None)
    return places


@contextmanager
def _no_notes() -> Iterator[None]:
    """No list of weights that an encoder does not use; those that it lacks are looked for here."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)
