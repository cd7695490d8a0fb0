"""The suites as plain tables: which explorers, on which environments, with how many labels and seeds.

Adding an explorer, an environment or a suite is adding a line to one of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from spannerlm.bench.paper_plan import PAPER
from spannerlm.bench.plans import Block, Plan, Task, Variant, check_steps, known_variants
from spannerlm.bench.rows import Job, Suite
from spannerlm.bench.tables import CONTENDERS, HELD_OUT, OTHERS, SEQUENCES, STEPS, TUNING, lock
from spannerlm.environments import FAMILIES, TOKEN_FAMILIES
from spannerlm.errors import InputError
from spannerlm.explorers import EXPLORERS, STEP_EXPLORERS

# --- explorers ------------------------------------------------------------------------------------------------------

QUICK_EXPLORERS = known_variants(
    Variant("directed"),
    Variant("spanner-sampling"),
    Variant("passive", long=True),
)

# --- environments ---------------------------------------------------------------------------------------------------

QUICK_TASKS = (
    Task("rare-skill p=.1", "rare-skill", {"p": 0.1}, labels=400, long=1000),
    Task("rare-skill p=.01", "rare-skill", {"p": 0.01}, labels=400, long=6000),
    Task("tie", "tie", labels=400, long=600),
)

LOCKS = tuple(lock(family, h, 200 + 20 * h, 1500) for family in ("delayed-lock", "gated-lock") for h in (4, 6, 8))

# --- suites ---------------------------------------------------------------------------------------------------------

SUITES = {
    "quick": Plan(
        "A first look: what is rare, what is less rare, and where nothing is.",
        (Block(QUICK_TASKS, QUICK_EXPLORERS),),
        seeds=4,
        batch=20,
        reference="spanner-sampling",
    ),
    "rivals": Plan(
        "Every explorer on the families that `directed` was made on, and on families that nothing was tuned on.",
        (Block(TUNING + HELD_OUT, CONTENDERS), Block(TUNING + HELD_OUT, OTHERS, seeds=5)),
        seeds=20,
        batch=5,
        reference="directed",
        first_seed=2000,  # seeds below were looked at while explorers were made
    ),
    "multi-turn": Plan(
        "Step by step against whole sequences, on locks of growing length.",
        (Block(LOCKS, STEPS + SEQUENCES),),
        seeds=4,
        batch=20,
        reference="multi-turn-spanner",
    ),
    "paper": PAPER,
}


def suite_by_name(
    name: str,
    explorers: Sequence[str] | None = None,
    environments: Sequence[str] | None = None,
    seeds: int | None = None,
    first_seed: int | None = None,
) -> Suite:
    """The jobs of a suite, task by task, explorer by explorer, seed by seed.

    ``explorers`` and ``environments`` choose lines of the suite by their own name or that of the explorer or family; a
    known one that the suite lacks is added with its defaults. Chosen explorers meet every chosen environment. ``seeds``
    counts from ``first_seed``; both default to the suite's.

    Raises `InputError` naming what there is to choose from.
    """
    plan = SUITES[_known("suite", name, SUITES)]
    first = plan.first_seed if first_seed is None else first_seed
    if (seeds is not None and seeds < 1) or first < 0:
        raise InputError(f"seeds: expected at least 1, from 0 or above, got {seeds} from {first}")
    blocks = plan.blocks
    if explorers is not None:
        lines = _distinct(variant for block in blocks for variant in block.variants)
        chosen = _chosen("explorers", explorers, lines, _variant_names, {**EXPLORERS, **STEP_EXPLORERS}, Variant)
        blocks = tuple(replace(block, variants=chosen) for block in blocks)
    if environments is not None:
        tasks = _distinct(task for block in blocks for task in block.tasks)
        wanted = _chosen("environments", environments, tasks, _task_names, {**FAMILIES, **TOKEN_FAMILIES}, _task)
        kept = tuple(replace(block, tasks=tuple(t for t in wanted if t in block.tasks)) for block in blocks)
        added = tuple(task for task in wanted if task not in tasks)
        every = _distinct(variant for block in blocks for variant in block.variants)
        stepless = every if explorers is not None else tuple(v for v in every if v.explorer in EXPLORERS)
        blocks = (*kept, *(Block((t,), every if t.environment in TOKEN_FAMILIES else stepless) for t in added))
    jobs = tuple(
        _job(task, variant, seed, block.batch or plan.batch)
        for block in blocks
        for task in block.tasks
        for variant in block.variants
        for seed in range(first + block.offset, first + block.offset + (seeds or block.seeds or plan.seeds))
    )
    for job in jobs:
        check_steps(job.explorer, job.environment)
    jobs = _distinct(jobs)  # chosen explorers meet a task once, also where two blocks of the suite hold it
    present = {job.variant for job in jobs}
    return Suite(name, jobs, plan.note, plan.reference if plan.reference in present else "")


def _task(family: str) -> Task:
    return Task(family, family)


def _job(task: Task, variant: Variant, seed: int, batch: int) -> Job:
    return Job(
        task=task.name,
        environment=task.environment,
        parameters=dict(task.parameters),
        modifiers={name: dict(given) for name, given in task.modifiers.items()},
        explorer=variant.explorer,
        settings={**variant.settings, **(task.settings if variant.family else {})},
        seed=seed,
        labels=task.long if variant.long and task.long else task.labels,
        batch=task.batch or batch,
        variant=variant.name or variant.explorer,
        draws=task.draws,
        drawn=task.drawn,
    )


Line = TypeVar("Line")


def _distinct(lines: Iterable[Line]) -> tuple[Line, ...]:
    """The lines in their order, each once."""
    return tuple({repr(line): line for line in lines}.values())


def _chosen(
    what: str,
    asked: Sequence[str],
    lines: Sequence[Line],
    names: Callable[[Line], tuple[str, str]],
    known: Iterable[str],
    make: Callable[[str], Line],
) -> tuple[Line, ...]:
    """The lines of each name that is asked for, in the order asked: their own name, else the second of ``names``; a new
    line where only ``known`` has it."""
    known = list(known)
    found: list[Line] = []
    for name in asked:
        fitting = [line for line in lines if names(line)[0] == name] or [line for line in lines if name in names(line)]
        if not fitting:
            fitting = [make(_known(what, name, [n for line in lines for n in names(line)] + known))]
        found += fitting
    if not found:
        raise InputError(f"{what}: expected at least one name, got none: leave it out for all of the suite's")
    return _distinct(found)


def _variant_names(variant: Variant) -> tuple[str, str]:
    return variant.name or variant.explorer, variant.explorer


def _task_names(task: Task) -> tuple[str, str]:
    return task.name, task.environment


def _known(what: str, name: str, names: Iterable[str]) -> str:
    """The name, if it is one of ``names``; else `InputError` with all of them and the nearest."""
    known = list(dict.fromkeys(names))
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{what}: expected one of {', '.join(known)}, got {name!r}{hint}")
