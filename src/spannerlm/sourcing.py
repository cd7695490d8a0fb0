"""Sources of labels as a configuration names them: a function, perhaps in a process of its own; a verifier; a judge.

reward: reward.py:helpful
reward: {kind: function, function: reward.py:helpful, timeout_s: 30}
reward: {kind: sum, functions: [reward.py:helpful, "trl.rewards:think_format_reward"], weights: [1, 0.5]}
reward: {kind: numeric, column: answer, relative: 0.01}
compare: {kind: judge, url: "http://127.0.0.1:8000/v1", model: my-judge, guidelines: Prefer the polite one.}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from spannerlm import fields
from spannerlm.errors import InputError
from spannerlm.fields import Positive
from spannerlm.sources.judge import PairJudge, RubricJudge
from spannerlm.sources.process import Killable
from spannerlm.sources.verifiers import ExactMatch, MathMatch, NumericMatch, RegexMatch

JOURNAL = "judge-{}.jsonl"
"""File in a run's directory that keeps what a judge was paid for; ``{}``: reward or compare."""

Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Price = Annotated[tuple[Number, Number], BeforeValidator(fields.as_tuple)]
Text = Annotated[str, Field(min_length=1)]


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FunctionSource(_Source):
    """A function in a process that is killed where a call takes too long."""

    kind: Literal["function"]
    function: Annotated[str, BeforeValidator(fields.function)]
    timeout_s: Positive
    """Seconds for one call."""
    by_item: bool = False
    """Whether each response is a call of its own."""


class SumSource(_Source):
    """The weighted sum of several functions: TRL's ``reward_funcs`` and ``reward_weights``."""

    kind: Literal["sum"]
    functions: Annotated[
        tuple[Annotated[str, BeforeValidator(fields.function)], ...],
        BeforeValidator(fields.as_tuple),
        Field(min_length=1),
    ]
    weights: Annotated[tuple[Finite, ...], BeforeValidator(fields.as_tuple)] | None = None
    """One each; None: 1."""


class ExactSource(_Source):
    """1 where the response is the column's text."""

    kind: Literal["exact"]
    column: Text = "answer"
    strip: bool = True
    ignore_case: bool = False


class RegexSource(_Source):
    """1 where a regular expression is found, or its first group is the column's text."""

    kind: Literal["regex"]
    pattern: Text
    column: Text | None = None
    last: bool = True


class NumericSource(_Source):
    """1 where the last number is the column's, up to a tolerance."""

    kind: Literal["numeric"]
    column: Text = "answer"
    tolerance: Number = 0.0
    relative: Number = 0.0


class MathSource(_Source):
    """1 where the mathematics is the column's."""

    kind: Literal["math"]
    column: Text = "answer"
    timeout_s: Positive = 10.0


class JudgeSource(_Source):
    """A language model behind a server: a rubric's score, or, for pairs, which of two is better."""

    kind: Literal["judge"]
    url: Annotated[str, BeforeValidator(fields.url)]
    model: Text
    template: Text | None = None
    guidelines: str = ""
    key_env: Text | None = None
    price: Price = (0.0, 0.0)
    timeout_s: Positive = 60.0
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 4
    options: Annotated[dict[str, Any], BeforeValidator(fields.json_value)] = Field(default_factory=dict)
    lowest: Finite = 0.0
    """Worst score of the rubric; a judge of pairs gives none."""
    highest: Finite = 10.0


KINDS: dict[str, type[_Source]] = {
    "function": FunctionSource,
    "sum": SumSource,
    "exact": ExactSource,
    "regex": RegexSource,
    "numeric": NumericSource,
    "math": MathSource,
    "judge": JudgeSource,
}
"""``kind`` -> what may be set."""
REFERENCE = "reference"
"""Tag of a source that is ``path/to/file.py:function`` alone."""


def tag(value: Any) -> str | None:
    """The kind of source that a value of a configuration is; None for one that is none."""
    if isinstance(value, str):
        return REFERENCE
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) and kind in KINDS else None


SourceSettings = FunctionSource | SumSource | ExactSource | RegexSource | NumericSource | MathSource | JudgeSource
AnySource = Annotated[
    Annotated[str, BeforeValidator(fields.function), Tag(REFERENCE)]
    | Annotated[FunctionSource, Tag("function")]
    | Annotated[SumSource, Tag("sum")]
    | Annotated[ExactSource, Tag("exact")]
    | Annotated[RegexSource, Tag("regex")]
    | Annotated[NumericSource, Tag("numeric")]
    | Annotated[MathSource, Tag("math")]
    | Annotated[JudgeSource, Tag("judge")],
    Discriminator(tag),
]
"""What ``reward`` and ``compare`` may be."""


def build(settings: SourceSettings, key: Literal["reward", "compare"], directory: Path | None) -> Any:
    """The reward or comparison function of these settings, sums excepted (`tasks`). Cost: nothing yet.

    ``directory``: of the run; a judge keeps there what it was paid for, so that a run taken up again pays nothing
    twice. Without one, that is kept for this process. Raises `InputError` for settings that cannot be together.
    """
    if isinstance(settings, JudgeSource):
        return _judge(settings, key, directory)
    if key == "compare" and not isinstance(settings, FunctionSource):
        raise InputError(f"compare: expected a source of comparisons, function or judge, got {settings.kind!r}")
    if isinstance(settings, FunctionSource):
        return Killable(settings.function, timeout_s=settings.timeout_s, by_item=settings.by_item)
    options = settings.model_dump(exclude={"kind"})
    verifiers: dict[type[_Source], Any] = {
        ExactSource: ExactMatch,
        RegexSource: RegexMatch,
        NumericSource: NumericMatch,
        MathSource: MathMatch,
    }
    return verifiers[type(settings)](**options)


def _judge(settings: JudgeSource, key: Literal["reward", "compare"], directory: Path | None) -> PairJudge | RubricJudge:
    options = settings.model_dump(exclude={"kind", "url", "model", "lowest", "highest"})
    options["journal"] = None if directory is None else directory / JOURNAL.format(key)
    if key == "compare":
        if (settings.lowest, settings.highest) != (0.0, 10.0):
            raise InputError("compare: expected no lowest and highest of a judge that compares: leave them out")
        return PairJudge(settings.url, settings.model, **options)
    return RubricJudge(settings.url, settings.model, lowest=settings.lowest, highest=settings.highest, **options)


def describe(source: str | SourceSettings) -> str:
    """What a source is called in a report."""
    if isinstance(source, str):
        return source
    if isinstance(source, FunctionSource):
        return f"{source.function}, at most {source.timeout_s:g} s a call"
    if isinstance(source, JudgeSource):
        return f"judge {source.model}"
    if isinstance(source, SumSource):
        weights = source.weights or (1.0,) * len(source.functions)
        return " + ".join(f"{w:g} {f}" if w != 1 else f for w, f in zip(weights, source.functions, strict=False))
    detail = source.pattern if isinstance(source, RegexSource) else f"column {source.column}"
    return f"{source.kind} match, {detail}"


def identity(source: str | SourceSettings) -> bytes:
    """What decides a source's labels: the bytes of the function's file, or the settings."""
    if isinstance(source, SumSource):
        return json.dumps(source.weights).encode() + b"".join(identity(one) for one in source.functions)
    reference = source if isinstance(source, str) else source.function if isinstance(source, FunctionSource) else None
    if reference is not None:
        place = Path(reference.rpartition(":")[0])
        return reference.encode() if fields.in_module(reference) else place.read_bytes()
    assert not isinstance(source, str)
    return json.dumps(source.model_dump(), sort_keys=True).encode()
