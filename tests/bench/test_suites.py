"""The tables of suites: every line can be built, and choosing lines chooses them."""

import json
from dataclasses import asdict

import pytest

from spannerlm.bench import SUITES, suite_by_name, suites
from spannerlm.bench.suites import HELD_OUT, TUNING
from spannerlm.environments import TOKEN_FAMILIES, environment, token_environment
from spannerlm.errors import InputError
from spannerlm.explorers import STEP_EXPLORERS, explorer_by_name


@pytest.mark.parametrize("name", SUITES)
def test_every_line_builds_its_environment_and_its_explorer(name):
    suite = suite_by_name(name, seeds=1)
    json.dumps([asdict(job) for job in suite.jobs])
    for block in SUITES[name].blocks:
        for task in block.tasks:
            made = token_environment if task.environment in TOKEN_FAMILIES else environment
            assert made(task.environment, **task.parameters, seed=0, modifiers=task.modifiers).coverage() > 1.0
        for variant in block.variants:
            explorer_by_name(variant.explorer, variant.settings)
    assert len({(job.task, job.variant) for job in suite.jobs}) == len(suite.jobs)  # no two lines of one name
    assert suite.reference in {job.variant for job in suite.jobs}


def test_rivals_meet_on_tuning_and_held_out_families_with_fresh_seeds_and_small_batches():
    jobs = suite_by_name("rivals").jobs
    assert {job.task for job in jobs} == {task.name for task in TUNING + HELD_OUT}
    assert not {task.name for task in TUNING} & {task.name for task in HELD_OUT}
    assert len(HELD_OUT) >= 4
    assert {job.seed for job in jobs} == set(range(2000, 2020))
    assert {job.batch for job in jobs} == {5}


def test_lines_are_chosen_by_their_name_or_family_and_known_ones_are_added():
    def lines(suite):
        return list(dict.fromkeys((job.task, job.variant) for job in suite.jobs))

    assert lines(suite_by_name("quick", ["passive"], ["tie"])) == [("tie", "passive")]
    rare = suite_by_name("quick", ["passive"], ["rare-skill"])
    assert lines(rare) == [("rare-skill p=.1", "passive"), ("rare-skill p=.01", "passive")]
    assert rare.reference == "passive"
    added = suite_by_name("quick", environments=["decoys"], seeds=2, first_seed=7)
    names = [variant.explorer for variant in suites.QUICK_EXPLORERS]
    assert set(names) - {"directed"} == {"spanner-sampling", "passive"}
    assert lines(added) == [("decoys", name) for name in names]
    assert [job.seed for job in added.jobs[:2]] == [7, 8]
    assert lines(suite_by_name("rivals", ["passive"], ["decoys"])) == [("decoys", "passive")]  # not uneven decoys
    assert max(job.labels for job in suite_by_name("quick", ["passive"]).jobs) == 6000  # its long budget


def test_token_families_stand_beside_tables_and_only_they_meet_explorers_of_steps():
    locks = suite_by_name("multi-turn").jobs
    assert {job.environment for job in locks} == {"delayed-lock", "gated-lock"}
    assert {job.explorer for job in locks} > {"multi-turn-spanner", "directed"}
    chosen = suite_by_name("quick", ["multi-turn-spanner", "passive"], ["gated-lock"], seeds=1)
    assert [(job.environment, job.explorer) for job in chosen.jobs] == [
        ("gated-lock", "multi-turn-spanner"),
        ("gated-lock", "passive"),
    ]
    tables = suite_by_name("multi-turn", environments=["tie"], seeds=1).jobs  # whoever can, where nobody was named
    assert {job.explorer for job in tables} == {"directed", "spanner-sampling", "passive"}
    steps = {job.environment for job in suite_by_name("paper").jobs if job.explorer in STEP_EXPLORERS}
    assert steps == {"delayed-lock", "gated-lock"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("quikc",), "suite: expected one of quick, rivals, multi-turn, paper, got 'quikc': did you mean 'quick'?"),
        (("quick", ["pasive"]), "got 'pasive': did you mean 'passive'?"),
        (("quick", None, ["ty"]), "environments: expected one of rare-skill p=.1, rare-skill, "),
        (("quick", []), "explorers: expected at least one name, got none"),
        (("quick", ["multi-turn-spanner"], ["tie"]), "expected a token environment for 'multi-turn-spanner'"),
        (("multi-turn", ["multi-turn-spanner"], ["tie"]), "got 'tie': choose environments among additive-lock, "),
        (("quick", None, None, 0), "seeds: expected at least 1, from 0 or above, got 0 from 0"),
    ],
)
def test_a_wrong_choice_is_told_what_there_is(args, message):
    with pytest.raises(InputError) as raised:
        suite_by_name(*args)
    assert message in str(raised.value)


def test_a_variant_takes_the_settings_of_a_task_only_if_it_says_so():
    jobs = {(job.task, job.variant): job for job in suite_by_name("paper", seeds=1).jobs}
    mine, theirs = jobs["c: k=3", "coreset"], jobs["c: k=3", "spanner-sampling"]
    assert (mine.settings["fresh_prompts"], mine.settings["skip"], theirs.settings) == (16, False, {})
    assert jobs["c: k=3, skip", "online-dpo"].settings == {**mine.settings, "skip": True}
    sweep = jobs["a: C=256, 0.5 C draws, noise 0.1", "coreset"]
    assert (sweep.draws, sweep.drawn, sweep.batch) == (128, True, 20)
    cells = [
        {job.seed for job in suite_by_name("paper").jobs if job.task == name}
        for name in (sweep.task, "a: C=256, 1 C draws, noise 0.1")
    ]
    assert not cells[0] & cells[1]  # independent of each other


def test_explorers_that_are_not_there_yet_are_left_out_of_tables():
    assert suites.known_variants(suites.Variant("passive"), suites.Variant("nobody")) == (suites.Variant("passive"),)
