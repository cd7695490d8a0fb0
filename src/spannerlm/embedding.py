"""Feature maps for models whose hidden states nobody sees: an embeddings endpoint, or an encoder that runs here.

    features: {kind: embeddings, url: "http://127.0.0.1:8000/v1", model: my-embedder, key_env: EMBEDDINGS_KEY}
    features: {kind: encoder, model: path/or/hub-id, text: both}

Vectors are scaled to norm 1 (or divided by sqrt(D)), projected to 64 dimensions by a fixed matrix, because d enters the
label cost squared (THEORY 3), and rounded to float32. They are not centred: explorers centre on a prompt's own draws.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from spannerlm.backends import encoder
from spannerlm.embedding_client import Client, Settings, address
from spannerlm.errors import InputError
from spannerlm.feature_parts import gaussian_projection, number, one_of, rounded, whole
from spannerlm.http import Usage, checked_seconds
from spannerlm.records import FloatArray, Generated

DIM = 64
"""d' of the projection where none is given."""
TEMPLATE = "{prompt}\n{response}"


@dataclass(frozen=True)
class _Vectors:
    """What both maps do with a vector of a text."""

    hidden: ClassVar[tuple[str, ...]] = ()
    model: str = ""
    """What the server calls it; of an encoder the directory or hub id."""
    project: int | None = DIM
    """d' of a fixed Gaussian projection; None keeps all D."""
    seed: int = 0
    """Seed of the projection."""
    normalise: bool = True
    """Whether each vector is scaled to norm 1, else divided by sqrt(D); zero stays zero."""
    scale: float = 1.0
    """Further factor on every feature."""

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise InputError(f"features: expected the name of a model for model, got {self.model!r}")
        if self.project is not None:
            whole("project", self.project, 1)
        whole("seed", self.seed, 0)
        _truth("normalise", self.normalise)
        number("scale", self.scale)

    def _features(self, vectors: FloatArray) -> FloatArray:
        """[n, d] of the model's vectors [n, D]."""
        width = vectors.shape[1]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True) if self.normalise else np.sqrt(float(width))
        scaled = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0.0)
        if self.project is not None:
            scaled = scaled @ _projection(width, self.project, self.seed)  # [n, d']
        return rounded(scaled * self.scale)


@dataclass(frozen=True)
class EncoderFeatures(_Vectors):
    """Mean of an encoder's last hidden states over the tokens of the response, or of prompt and response.

    The model, of any kind that Transformers knows, runs here in float32; it is loaded at the first use, and nothing is
    kept of a text, so that the same record gives the same bits also where a run was resumed.
    """

    text: Literal["response", "both"] = "response"
    """What is read; of ``both``, prompt, line break, response, what is too long loses its beginning."""
    batch_size: int = 64
    device: str = "auto"
    max_tokens: int | None = None
    """Tokens of a text that are read; None: as many as model and tokenizer say they can."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("text", self.text, ("response", "both"))
        whole("batch_size", self.batch_size, 1)
        if self.max_tokens is not None:
            whole("max_tokens", self.max_tokens, 1)

    @property
    def dim(self) -> int:
        """d: d' where projected, else the model's D, for which it is loaded."""
        return self.project or int(self._encoder.width)

    @cached_property
    def _encoder(self) -> Any:
        return encoder()(
            self.model,
            device=self.device,
            revision=self.revision,
            max_tokens=self.max_tokens,
            keep_end=self.text == "both",
        )

    def __call__(self, batch: Generated) -> FloatArray:
        """[n, d] features; `ModelError` where the encoder cannot be loaded or its states are no finite numbers."""
        texts = batch.responses
        if self.text == "both":
            texts = tuple(_filled(TEMPLATE, batch.prompt, response) for response in texts)
        return self._features(self._encoder.means(texts, self.batch_size))

    def spec(self) -> dict[str, Any]:
        """JSON object that rebuilds this map, in any working directory."""
        path = Path(self.model).expanduser()
        return {"kind": "encoder", **asdict(self), "model": str(path.resolve()) if path.is_dir() else self.model}


@dataclass(frozen=True)
class EmbeddingFeatures(_Vectors):
    """Vectors of an OpenAI-compatible ``/embeddings`` endpoint, for the filled template; blank texts are zero.

    A request is sent again, ``retries`` times at most and later each time, after 429 and 5xx (when Retry-After says), a
    connection that failed or broke, and a reply that is no JSON or not complete within ``timeout_s`` seconds. What came
    is checked: one vector per text, put in order by ``index``, of one width, finite. A text is asked for once in a
    process, as long as its vector is kept. The key is read at each call and stored nowhere.
    """

    url: str = ""
    """Such as http://127.0.0.1:8000/v1."""
    key_env: str | None = None
    """Environment variable with the API key; None: no key."""
    template: str = TEMPLATE
    """The text that is embedded, with {response} and, where it matters, {prompt}."""
    width: int | None = None
    """D, which the vectors must have; None: that of the first one. Needed where nothing is projected."""
    batch_size: int = 32
    """Texts of one request."""
    concurrency: int = 4
    """Requests under way at once, at most."""
    timeout_s: float = 60.0
    """Seconds for one request."""
    retries: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        address(self.url)
        if not isinstance(self.template, str) or "{response}" not in self.template:
            raise InputError(f"features: expected a template with {{response}} in it, got {self.template!r}")
        if self.key_env is not None and (not isinstance(self.key_env, str) or not self.key_env):
            raise InputError(
                f"features: expected the name of an environment variable for key_env, got {self.key_env!r}"
            )
        if self.width is not None:
            whole("width", self.width, 1)
        if self.width is None and self.project is None:
            raise InputError(
                "features: expected width, of the server's vectors, where project is null: give one of them"
            )
        for name, least in (("batch_size", 1), ("concurrency", 1), ("retries", 0)):
            whole(name, getattr(self, name), least)
        number("timeout_s", self.timeout_s)
        checked_seconds(self.timeout_s)

    @property
    def dim(self) -> int:
        """d: d' where projected, else D."""
        return self.project or self.width or 0

    @property
    def usage(self) -> Usage:
        """Replies and tokens of this object so far; its cost is left to the server's bill."""
        return self._client.usage

    @cached_property
    def _client(self) -> Client:
        about = Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})
        return Client(about, self._features, self.dim)

    def __call__(self, batch: Generated) -> FloatArray:
        """[n, d] features. Cost: a request per ``batch_size`` texts that are not kept. `ModelError` says what came."""
        texts = [_filled(self.template, batch.prompt, response) for response in batch.responses]
        return np.array(self._client.rows(texts), dtype=np.float64).reshape(len(texts), self.dim)

    def spec(self) -> dict[str, Any]:
        """JSON object that rebuilds this map; it names the key's variable, not the key."""
        return {"kind": "embeddings", **asdict(self)}


@lru_cache(maxsize=8)
def _projection(rows: int, columns: int, seed: int) -> FloatArray:
    return gaussian_projection(rows, columns, seed)


def _filled(template: str, prompt: str, response: str) -> str:
    """The template with both put in, in one pass: neither text is searched for names."""
    texts = {"{prompt}": prompt, "{response}": response}
    return re.sub(r"\{prompt\}|\{response\}", lambda found: texts[found[0]], template)


def _truth(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise InputError(f"features: expected true or false for {name}, got {value!r}")
