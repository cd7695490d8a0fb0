"""Feature maps phi(x, y) of generated responses, and centring on a prompt's own draws (THEORY 1).

Every map turns one :class:`~spannerlm.records.Generated` (one prompt, ``n`` distinct responses) into an array [n, d].
Norms are reported by those who use the features, never enforced; each map only divides by a fixed number that does not
look at the data, so that typical norms are O(1). Values are rounded to float32, so that stored draws are exact.

A row depends on its prompt and response alone, up to the float noise of the forward pass that made its hidden state
(about 1e-6 relative in float32, when a batch is composed differently).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np

from spannerlm.embedding import EmbeddingFeatures, EncoderFeatures
from spannerlm.errors import InputError, ModelError
from spannerlm.feature_parts import gaussian_projection, nearest, number, one_of, rounded, whole
from spannerlm.http import Usage
from spannerlm.records import FloatArray, Generated, IntArray

Pooling = Literal["mean", "before-eos"]
FeatureFunction = Callable[[list[str], list[str]], Any]
"""``(prompts [n], completions [n]) -> array-like [n, d]``."""

WORDS = r"(?u)\w+|[^\w\s]"
"""A word or one punctuation mark: in a short reply "!" is as telling as a word."""
WIDEST_HIDDEN = 256
"""Hidden states above this width are projected to it by default: d enters the label cost squared (THEORY 3)."""


class FeatureMap(Protocol):
    """phi: one prompt's generated responses -> [n, d]."""

    @property
    def dim(self) -> int:
        """Feature dimension d."""

    @property
    def hidden(self) -> tuple[str, ...]:
        """Pooled hidden states that the back end must collect, as ``pooling:layer``, for example ``mean:-1``."""

    def __call__(self, batch: Generated) -> FloatArray:
        """[n, d] features of the n distinct responses, float32 values in float64. Cost: no draws, no labels."""

    def spec(self) -> dict[str, Any]:
        """JSON object from which :func:`feature_map` rebuilds the map; InputError where that is impossible."""


@dataclass(frozen=True)
class HiddenStates:
    """Pooled hidden states of one layer, divided by sqrt(D), optionally projected to fewer dimensions.

    ``mean`` averages the states of the response's tokens, its end-of-sequence token left out; ``before-eos`` is the
    state from which the end was predicted. The state *at* end-of-sequence carries little and is never used.
    """

    hidden_size: int
    """D, the width of the model."""
    layer: int = -1
    """As Hugging Face counts them: 0 the embeddings, -1 the last, after the final norm."""
    pooling: Pooling = "mean"
    project: int | None = None
    """d' of a fixed Gaussian projection; None keeps all D."""
    seed: int = 0
    """Seed of the projection."""
    scale: float = 1.0
    """Further factor on every feature."""

    def __post_init__(self) -> None:
        whole("hidden_size", self.hidden_size, 1)
        whole("layer", self.layer, None)
        whole("seed", self.seed, 0)
        if self.project is not None:
            whole("project", self.project, 1)
        one_of("pooling", self.pooling, ("mean", "before-eos"))
        number("scale", self.scale)

    @property
    def dim(self) -> int:
        """Feature dimension: d' where projected, else D."""
        return self.project or self.hidden_size

    @property
    def hidden(self) -> tuple[str, ...]:
        """The one pooled state that is needed."""
        return (f"{self.pooling}:{self.layer}",)

    @cached_property
    def _matrix(self) -> FloatArray | None:
        return None if self.project is None else gaussian_projection(self.hidden_size, self.project, self.seed)

    def __call__(self, batch: Generated) -> FloatArray:
        """[n, d] scaled, projected states."""
        states = _pooled(batch, self.hidden[0], self.hidden_size)
        if self._matrix is not None:
            states = states @ self._matrix  # [n, d']
        return rounded(states * (self.scale / np.sqrt(self.hidden_size)))

    def spec(self) -> dict[str, Any]:
        """JSON object that rebuilds this map."""
        return {"kind": "hidden", **asdict(self)}


@dataclass(frozen=True)
class NGrams:
    """Hashed counts of the response's word or character n-grams, each row of unit norm (zero for an empty response)."""

    hidden: ClassVar[tuple[str, ...]] = ()
    dim: int = 256
    """d, the number of hash buckets; signs alternate, so that collisions cancel on average."""
    low: int = 1
    """Shortest n-gram."""
    high: int = 2
    """Longest n-gram."""
    analyzer: Literal["word", "char"] = "word"
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("dim", "low", "high"):
            whole(name, getattr(self, name), 1)
        if self.high < self.low:
            raise InputError(f"n-grams: expected low <= high, got low={self.low}, high={self.high}; swap them")
        one_of("analyzer", self.analyzer, ("word", "char"))
        number("scale", self.scale)

    @cached_property
    def _vectorizer(self) -> Any:
        # Imported here because it takes longer than all else that importing spannerlm does, and only this map needs it.
        from sklearn.feature_extraction.text import HashingVectorizer

        return HashingVectorizer(
            n_features=self.dim,
            ngram_range=(self.low, self.high),
            analyzer=self.analyzer,
            token_pattern=WORDS if self.analyzer == "word" else None,
            norm="l2",
        )

    def __call__(self, batch: Generated) -> FloatArray:
        """[n, d] signed, normalised n-gram counts."""
        return rounded(self._vectorizer.transform(batch.responses).toarray() * self.scale)

    def spec(self) -> dict[str, Any]:
        """JSON object that rebuilds this map."""
        return {"kind": "ngrams", **asdict(self)}


@dataclass(frozen=True)
class LogprobLength:
    """[log pi_ref(y | x), tokens] divided by ``typical``: what a model's own confidence and verbosity explain."""

    dim: ClassVar[int] = 2
    hidden: ClassVar[tuple[str, ...]] = ()
    typical: float = 16.0
    """Tokens of a typical response; with it both features are O(1)."""

    def __post_init__(self) -> None:
        number("typical", self.typical)
        if self.typical <= 0:
            raise InputError(f"features: expected a positive number for typical, got {self.typical!r}")

    def __call__(self, batch: Generated) -> FloatArray:
        """[n, 2] log-probability in nats and length in tokens, both over ``typical``; ModelError where none is told."""
        if np.isnan(batch.logprobs).any():
            raise ModelError(
                "features: expected log-probabilities for logprob-length, this model's server tells none: set features "
                "to ngrams, embeddings or encoder"
            )
        return rounded(np.stack([batch.logprobs, batch.lengths], axis=1) / self.typical)

    def spec(self) -> dict[str, Any]:
        """JSON object that rebuilds this map."""
        return {"kind": "logprob-length", **asdict(self)}


@dataclass(frozen=True)
class Concatenation:
    """Several maps side by side, each block times its weight."""

    parts: tuple[FeatureMap, ...]
    weights: tuple[float, ...] = ()
    """One per part; empty means 1 each."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("concatenation: expected at least one feature map, got none; name one in parts")
        if self.weights and len(self.weights) != len(self.parts):
            raise InputError(
                f"concatenation: expected {len(self.parts)} weights, one per part, got {len(self.weights)}; "
                "give one for each or leave them out"
            )
        for weight in self.weights:
            number("weights", weight)

    @property
    def dim(self) -> int:
        """Sum of the parts' dimensions."""
        return sum(part.dim for part in self.parts)

    @property
    def hidden(self) -> tuple[str, ...]:
        """Union of what the parts need, in order."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.hidden))

    @property
    def usage(self) -> Usage | None:
        """What servers behind the parts were asked for; None where there is none."""
        paid = [usage for part in self.parts if (usage := getattr(part, "usage", None)) is not None]
        return sum(paid[1:], paid[0]) if paid else None

    def __call__(self, batch: Generated) -> FloatArray:
        """[n, d] the weighted blocks."""
        weights = self.weights or (1.0,) * len(self.parts)
        blocks = [weight * part(batch) for part, weight in zip(self.parts, weights, strict=True)]
        return rounded(np.concatenate(blocks, axis=1))

    def spec(self) -> dict[str, Any]:
        """JSON object that rebuilds this map."""
        return {"kind": "concat", "parts": [part.spec() for part in self.parts], "weights": list(self.weights)}


@dataclass(frozen=True)
class CallableFeatures:
    """Features from the user's own function; cannot be rebuilt from a saved policy.

    The function must give the same row for the same text whatever else is in the batch: nothing can check that here.
    """

    hidden: ClassVar[tuple[str, ...]] = ()
    function: FeatureFunction
    dim: int
    """d; :func:`feature_map` finds it by one trial call."""

    def __call__(self, batch: Generated) -> FloatArray:
        """[n, d] what the function returned, checked: n rows, d columns, finite; else InputError."""
        n = len(batch.responses)
        return rounded(_called(self.function, [batch.prompt] * n, list(batch.responses), (n, self.dim)))

    def spec(self) -> dict[str, Any]:
        """Raise InputError: a Python function is not JSON."""
        name = getattr(self.function, "__qualname__", repr(self.function))
        raise InputError(
            f"features: expected a map that a file can describe, got the Python function {name!r}; "
            "pass the same function again (features=...) where the policy is loaded"
        )


def feature_map(config: Any, hidden_size: int | None = None) -> FeatureMap:
    """Feature map from a JSON specification, a short name, a list (concatenation), a function or a map itself.

    Names: ``hidden``, ``mean:LAYER``, ``before-eos:LAYER`` (projected to 256 where the model is wider), ``ngrams``,
    ``logprob-length``, ``encoder:MODEL`` (a directory or hub id).
    ``hidden_size`` is the model's width D, for maps of hidden states that do not state it.
    InputError names what is wrong and the nearest valid word.
    """
    if isinstance(config, str):
        return _from_name(config, hidden_size)
    if isinstance(config, Mapping):
        return _from_mapping(config, hidden_size)
    if isinstance(config, Sequence):
        return Concatenation(tuple(feature_map(part, hidden_size) for part in config))
    if callable(getattr(config, "spec", None)) and callable(config):
        return cast(FeatureMap, config)
    if callable(config):
        return CallableFeatures(config, _trial_dim(config))
    raise InputError(f"features: expected a name, a mapping, a list or a function, got {config!r}; try 'hidden'")


def centre(features: FloatArray, counts: IntArray) -> FloatArray:
    """[n, d] features minus the mean of the prompt's own draws, each distinct response weighted by its count [n].

    Only differences within a prompt matter (THEORY 1), so this changes no policy. InputError if no draw is counted.
    """
    total = int(np.sum(counts))
    if len(counts) != len(features) or total <= 0:
        raise InputError(
            f"centre: expected a count for each of {len(features)} rows and one draw at least, got {counts!r}"
        )
    return features - (counts @ features) / total


def _from_name(name: str, hidden_size: int | None) -> FeatureMap:
    kind, _, layer = name.partition(":")
    if kind in ("hidden", "mean", "before-eos"):
        pooling, width = "mean" if kind == "hidden" else kind, _width(hidden_size)
        project = WIDEST_HIDDEN if width > WIDEST_HIDDEN else None
        try:
            at = int(layer or -1)
        except ValueError:
            raise InputError(f"features: expected a layer number after ':', got {name!r}; try '{kind}:-1'") from None
        return HiddenStates(width, at, cast(Pooling, pooling), project)
    if kind == "encoder" and layer:
        return EncoderFeatures(layer)
    if not layer and kind in ("ngrams", "logprob-length"):
        return _from_mapping({"kind": kind}, hidden_size)
    raise InputError(f"features: unknown name {name!r};{nearest(kind, (*_KINDS, 'mean', 'before-eos'))}")


def _from_mapping(config: Mapping[str, Any], hidden_size: int | None) -> FeatureMap:
    options = dict(config)
    kind = options.pop("kind", None)
    if kind == "callable":
        raise InputError("features: a Python function is not stored in a file; pass it again as features=...")
    if kind not in _KINDS:
        raise InputError(f"features: unknown kind {kind!r};{nearest(str(kind), tuple(_KINDS))}")
    build, known = _KINDS[kind]
    for key in options.keys() - set(known):
        raise InputError(f"features: unknown key {key!r} for kind {kind!r};{nearest(str(key), known)}")
    if kind == "concat":
        parts = tuple(feature_map(part, hidden_size) for part in options.get("parts", ()))
        return Concatenation(parts, tuple(options.get("weights", ())))
    if kind == "hidden" and options.get("hidden_size") is None:
        options["hidden_size"] = _width(hidden_size)
    return cast(FeatureMap, build(**options))


_KINDS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "hidden": (HiddenStates, ("hidden_size", "layer", "pooling", "project", "seed", "scale")),
    "ngrams": (NGrams, ("dim", "low", "high", "analyzer", "scale")),
    "logprob-length": (LogprobLength, ("typical",)),
    "embeddings": (EmbeddingFeatures, tuple(f.name for f in fields(EmbeddingFeatures))),
    "encoder": (EncoderFeatures, tuple(f.name for f in fields(EncoderFeatures))),
    "concat": (Concatenation, ("parts", "weights")),
}


def _called(
    function: FeatureFunction, prompts: list[str], completions: list[str], shape: tuple[int, int]
) -> FloatArray:
    """The function's answer as [n, d], checked; a d of -1 leaves the number of columns open."""
    wanted = f"[{shape[0]}, {'d' if shape[1] < 0 else shape[1]}]"
    advice = "return one row of finite numbers per completion"
    try:
        out = np.asarray(function(prompts, completions), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"features: expected an array {wanted}, but the function failed: {error}; {advice}") from error
    if out.ndim != 2 or out.shape[0] != shape[0] or (out.shape[1] != shape[1] if shape[1] >= 0 else out.shape[1] < 1):
        raise InputError(f"features: expected an array {wanted}, got shape {list(out.shape)}; {advice}")
    if not np.isfinite(out).all():
        row = int(np.argmin(np.isfinite(out).all(axis=1)))
        raise InputError(f"features: expected finite numbers, got {out[row]} for {completions[row]!r}; {advice}")
    return out


def _trial_dim(function: FeatureFunction) -> int:
    """Dimension d of a user's function, by one call on a made-up text."""
    try:
        return int(_called(function, ["a prompt"], ["a completion"], (1, -1)).shape[1])
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"features: the trial call function(['a prompt'], ['a completion']) raised {error!r}; "
            "make it accept any text, or pass CallableFeatures(function, dim=...)"
        ) from error


def _pooled(batch: Generated, name: str, width: int) -> FloatArray:
    """[n, D] the pooled states of that name; InputError if the back end did not bring them, or of another width."""
    if name not in batch.hidden:
        raise InputError(
            f"features: expected hidden states {name!r}, got {sorted(batch.hidden)}; "
            "generate with hidden=features.hidden, from a back end that can read hidden states"
        )
    states = batch.hidden[name]
    if states.shape[1:] != (width,):
        raise InputError(f"features: expected states of width {width}, got {states.shape}; is this the same model?")
    return states


def _width(hidden_size: int | None) -> int:
    if hidden_size is None:
        raise InputError(
            "features: expected a model whose hidden states can be seen, got one behind a server, or one without a "
            "hidden_size: set features to ngrams, embeddings or encoder"
        )
    return hidden_size
