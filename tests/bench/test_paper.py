"""The page of `bench paper`: numbers against slow rewrites on rows whose truth is known, words that follow."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from spannerlm.bench import SCHEMA, Suite, paper, run_suite, suite_by_name
from spannerlm.bench import paper_plan as plan
from spannerlm.bench.paper import load_rivals, paper_numbers, render_paper, write_paper
from spannerlm.bench.paper_claims import costs, coverage, foresight, harmless, interventions, rare, rivals
from spannerlm.bench.paper_direct import TARGET, best_signs, samplers
from spannerlm.bench.paper_figures import CLAIM, FIGURES, build
from spannerlm.bench.paper_words import meets, sentences
from spannerlm.bench.statistics import runs
from spannerlm.environments.max_k_dnf import max_k_dnf_terms
from spannerlm.errors import InputError

SEEDS = 8


def job_rows(task, variant, seed, reach, budget, draws=None, rounds_each=1, column="regret", end=0.01, step=20):
    """Rows every ``step`` labels; regret .5 until ``reach`` labels, then ``end``; draws 10 times the labels."""
    grid = [0, *(x for x in range(step, int(budget) + step, step))]
    low = [end if x >= reach else 0.5 for x in grid]
    fixed = {"job": f"{task}|{variant}|{seed}", "suite": "paper", "task": task, "variant": variant}
    fixed |= {"explorer": variant, "environment": "e", "seed": seed, "start": 1.0, "status": "done", "stopped": False}
    return pa.Table.from_pylist(
        [
            {
                **fixed,
                "labels": x,
                "draws": 10 * x if draws is None else int(draws),
                "rounds": i,
                "updates": rounds_each * i,
                "regret": value if x else 1.0,
                "regret_drawn": value if column == "regret_drawn" and x else 1.0,
            }
            for i, (x, value) in enumerate(zip(grid, low, strict=True))
        ],
        schema=SCHEMA,
    )


def grouped(tables):
    """What `runs` gives for these jobs: one job each, rows in order."""
    found = {}
    for rows in tables:
        first = rows.slice(0, 1).to_pylist()[0]
        found.setdefault((first["task"], first["variant"]), {})[first["seed"]] = rows
    return found


def sweep(power):
    """Near-orthogonal rows in which y* comes after C^power 64^(1 - power) times a quantile of an exponential law."""
    tables, truth = [], {}
    for c in plan.COVERAGES:
        for share in plan.SHARES:
            for seed in range(SEEDS):
                wait = -math.log(1.0 - (seed + 0.5) / SEEDS) * c**power * 64 ** (1.0 - power)
                truth[c, share, seed] = round(share * c) >= wait
                reach = 20 if truth[c, share, seed] else math.inf
                task = plan.sweep_task(c, share)
                tables.append(job_rows(task, "coreset", seed, reach, 100, column="regret_drawn"))
    return grouped(tables), truth


def test_draws_to_completion_are_spearman_and_karbers_and_their_exponent_is_judged_by_what_it_is():
    found, truth = sweep(1.0)
    assert runs(pa.concat_tables(list(found[plan.sweep_task(64, 1.0), "coreset"].values()))).keys() < found.keys()
    numbers = coverage(found)["given"]["coreset"]
    for row in numbers["draws"]:
        slow = []
        for seed in range(SEEDS):
            sufficed = sum(truth[row["c"], share, seed] for share in plan.SHARES)
            slow.append(math.log(row["c"] * 16) + math.log(2) * (0.5 - sufficed))
        assert row["value"] == pytest.approx(math.exp(np.mean(slow)))
    for c, share, value in numbers["success"]:
        assert value == pytest.approx(np.mean([truth[c, share, seed] for seed in range(SEEDS)]))
    logs = [math.log(row["value"]) for row in numbers["draws"]]
    expected = np.polyfit(np.log(plan.COVERAGES), logs, 1)[0]
    assert numbers["exponent_draws"]["value"] == pytest.approx(expected)
    assert abs(expected - 1.0) < 0.05
    assert "within 1.00 ± 0.05: holds" in sentences({"a": coverage(found)})["a"][0]
    slower, _ = sweep(0.8)
    assert "within 1.00 ± 0.05: does not hold" in sentences({"a": coverage(slower)})["a"][0]


def rare_rows(labels_power, draws_power, other):
    """Ours: labels 40 (1/p)^power, draws (1/p)^power; the others reach p = .001 at ``other`` labels, of 20,000."""
    tables = []
    for p in plan.MASSES:
        for seed in range(4):
            reach = 40 * (0.1 / p) ** labels_power
            task = plan.rare_task(p)
            tables.append(job_rows(task, "spanner-sampling", seed, reach, 2000, draws=100 * (1 / p) ** draws_power))
    tables += [job_rows(plan.rare_task(1e-3), "xpo", seed, other, 20_000, step=500) for seed in range(4)]
    return rare(grouped(tables))


def test_a_rare_skill_claim_that_does_not_hold_is_said_not_to():
    good = sentences({"b": rare_rows(0.0, 1.0, 10_000)})["b"]
    assert "at most 0.15: holds" in good[0]
    assert "within 1.0 ± 0.1: holds" in good[0]
    assert any("xpo takes 250 times" in s and "at least 100: holds" in s for s in good)
    bad = sentences({"b": rare_rows(0.3, 0.6, 2_000)})["b"]
    assert "at most 0.15: does not hold" in bad[0]
    assert "within 1.0 ± 0.1: does not hold" in bad[0]
    assert any("at least 100: does not hold" in s for s in bad)


def test_a_method_that_never_got_there_is_bounded_from_below_only():
    numbers = rare_rows(0.0, 1.0, math.inf)
    ratio = numbers["ratios"]["spanner-sampling"]["xpo"]
    assert (ratio["value"], ratio["reached"]) == (500.0, 0.0)
    said = sentences({"b": numbers})["b"]
    assert any("takes at least 500 times" in s and "100: holds" in s for s in said)
    near = rare_rows(0.3, 1.0, math.inf)  # 20,000 labels are less than 100 times ours
    near["ratios"]["spanner-sampling"]["xpo"]["value"] = 80.0
    assert any("at least 80 times" in s and "100: undecided" in s for s in sentences({"b": near})["b"])


def test_costs_are_those_of_the_first_row_held_or_of_the_last():
    tables = [job_rows("t", "v", 0, 60, 200, rounds_each=3), job_rows("t", "v", 1, math.inf, 200)]
    np.testing.assert_array_equal(costs(tables), [[60, 200], [600, 2000], [9, 10], [1, 0]])


def dnf_rows(proper, ours):
    """Labels 20 2^(e k) / 4^e each; every round of 20 labels is two updates."""
    tables = []
    for k in plan.TERMS:
        for seed in range(3):
            for name, e in (("online-dpo", proper), ("coreset", ours)):
                reach = 100 * 2.0 ** (e * (k - 2))
                tables.append(job_rows(plan.dnf_task(k, False), name, seed, reach, 8 * reach, rounds_each=2))
    return interventions(grouped(tables))


def test_growth_in_k_is_fitted_and_judged_for_proper_and_improper():
    good = dnf_rows(1.0, 0.1)
    values = [p["labels"]["value"] for p in good["without_skip"]["online-dpo"]["points"]]
    slope = np.polyfit(plan.TERMS, np.log2(values), 1)[0]
    assert good["without_skip"]["online-dpo"]["exponent_labels"]["value"] == pytest.approx(slope)
    assert good["without_skip"]["coreset"]["points"][0]["rounds"]["value"] == 10.0
    said = sentences({"c": good})["c"]
    assert "at least 2^(0.8 k): holds" in said[0]
    assert "at most 3: holds" in said[1]
    said = sentences({"c": dnf_rows(0.5, 0.5)})["c"]
    assert "at least 2^(0.8 k): does not hold" in said[0]
    assert "at most 3: does not hold" in said[1]


def harmless_rows(end):
    task = plan.HARMLESS[0].name
    tables = [job_rows(task, "passive", seed, 40, 600, end=0.1) for seed in range(5)]
    return harmless(grouped([*tables, *(job_rows(task, "thompson", seed, 40, 600, end=end) for seed in range(5))]))


def test_harm_is_an_interval_above_one():
    assert harmless_rows(0.1)["tie"]["thompson"]["ratio"][-1]["value"] == 1.0
    assert "no harm seen" in sentences({"e": harmless_rows(0.1)})["e"][0]
    worse = harmless_rows(0.3)
    assert worse["tie"]["thompson"]["ratio"][-1]["value"] == pytest.approx(3.0)
    assert "hurts at some budgets" in sentences({"e": worse})["e"][0]


def test_the_rivals_sentence_compares_with_the_best_enumeration_aside():
    def table(ours, best):
        reach = {"spanner-sampling": ours, "xpo": best, "passive": math.inf, "linucb-enumerate": 20}
        tables = [job_rows("f: tie", name, 0, value, 400) for name, value in reach.items()]
        return rivals(pa.concat_tables(tables), "spanner-sampling", "Reduced")

    numbers = table(100, 100)
    assert {r["variant"]: r["labels"]["value"] for r in numbers["table"]}["passive"] == math.inf
    assert "on 1 of 1 tasks" in sentences({"f": numbers})["f"][1]
    said = sentences({"f": table(200, 100)})["f"][1]
    assert "2.00 times, on tie (asked: 1.3 everywhere: does not hold" in said


def foreseen_rows(task, seed, factor, warned=(), variant="directed", step=5, budget=120):
    """Regret 1 / labels, times a wobble; the expected one is ``factor`` times less, the wide one twice the expected."""
    grid = [0, *range(step, budget + step, step)]
    fixed = job_rows(task, variant, seed, math.inf, 20).slice(0, 1).to_pylist()[0]
    rows = []
    for i, x in enumerate(grid):
        true = (1.0 + 0.3 * ((7 * i + seed) % 5)) / max(x, 1)
        told = {} if x == 0 else {"predicted_regret": true / factor, "predicted_regret_wide": 2.0 * true / factor}
        told |= {"warning": "no fit"} if x in warned else {}
        rows.append({**fixed, "labels": x, "rounds": i, "regret": true, "start": 2.0, **told})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def foreseen(factors, warned=()):
    """(g) of realizable families with these factors, four seeds each, and one misspecified task."""
    right = [foreseen_rows(f"f: {t}", s, f * 1.1**s, warned) for t, f in factors.items() for s in range(4)]
    wrong = [foreseen_rows(plan.FORESIGHT[0].name, s, 9.0, (100, 120) if s else (60,)) for s in range(4)]
    return foresight(grouped(right), grouped(wrong), "Realizable families: some")


def test_true_over_predicted_regret_is_a_median_over_runs_and_is_judged_by_what_it_is():
    numbers = foreseen({"tie": 0.8, "decoys": 1.2})
    family = numbers["realizable"]["families"]["tie"]
    slow = np.median([0.8 * 1.1**s for s in range(4)])
    assert family["expected"]["value"] == pytest.approx(slow)
    assert family["wide"]["value"] == pytest.approx(slow / 2)
    assert [row["labels"] for row in family["at"]] == [20, 40, 60, 100]
    assert all(row["expected"]["value"] == pytest.approx(slow) for row in family["at"])
    everything = np.median([f * 1.1**s for f in (0.8, 1.2) for s in range(4)])
    assert numbers["realizable"]["overall"]["expected"]["value"] == pytest.approx(everything)
    rows = foreseen_rows("f: tie", 2, 0.8 * 1.1**2).to_pylist()
    true = next(row["regret"] for row in rows if row["labels"] == 80)
    mark = family["points"][2 * 2 + 1]  # two marks a run, at 40 and 80 labels
    assert mark == pytest.approx([true / slow_factor / 2.0 for slow_factor in (0.8 * 1.21, 0.4 * 1.21, 1.0)])
    said = sentences({"g": numbers})["g"]
    assert "within [0.5, 2]: holds) over 8 runs; within on 2 of 2 families" in said[1]
    assert "within on 1 of 2 families, from 0.46 (tie) to 0.69 (decoys)" in said[2]
    biased = sentences({"g": foreseen({"tie": 3.0, "decoys": 4.0})})["g"]
    assert "within [0.5, 2]: does not hold) over 8 runs; within on 0 of 2" in biased[1]


def test_a_warning_counts_once_a_run_at_any_row_and_at_the_last():
    numbers = foreseen({"tie": 1.0}, warned=(40,))
    assert [numbers["realizable"]["overall"][key] for key in ("warned", "warned_last")] == [1.0, 0.0]
    wrong = numbers["misspecified"]["families"]["tie, zeta=1"]
    assert [wrong[key] for key in ("warned", "warned_last")] == [1.0, 0.75]
    said = sentences({"g": numbers})["g"]
    assert "100 % of 4 runs warn at some row, 0 % at the last" in said[3]
    assert said[4].startswith("tie, zeta=1: 100 % of 4 runs warn at some row, 75 % at the last; true regret is 9.00")


def test_predictions_of_nothing_and_regrets_of_zero_have_no_ratio_and_other_explorers_none():
    rows = foreseen_rows("f: tie", 0, 1.0)
    zero = pa.array([0.0] * rows.num_rows)
    lost = rows.set_column(rows.schema.get_field_index("regret"), "regret", zero)
    numbers = foresight(grouped([lost]), {}, "Some")["realizable"]
    assert math.isnan(numbers["overall"]["expected"]["value"])
    assert "undecided" in sentences({"g": {"source": "Some", "realizable": numbers}})["g"][1]
    assert build("foresight", {"g": {"realizable": numbers}}) is None
    assert foresight(grouped([foreseen_rows("f: tie", 0, 1.0, variant="passive")]), {}, "Some") == {}


def test_foresight_comes_from_the_rows_of_the_page_with_or_without_the_rivals(quick_direct):
    reduced = [foreseen_rows("f: tie", s, 1.0, step=20) for s in range(2)]
    wrong = [foreseen_rows(task, 0, 9.0) for task in plan.MISSPECIFIED]
    own = paper_numbers(pa.concat_tables([*reduced, *wrong]))["g"]
    assert own["source"] == "Realizable families: the reduced runs of (f)"
    assert (list(own["realizable"]["families"]), own["realizable"]["overall"]["seeds"]) == (["tie"], 2)
    assert len(own["misspecified"]["families"]) == len(plan.MISSPECIFIED) == 10
    others = pa.concat_tables([foreseen_rows("decoys", s, 1.0) for s in range(3)])
    given = paper_numbers(pa.concat_tables(reduced), (others, "directed", "The suite rivals: 3 seeds"))["g"]
    assert given["source"] == "Realizable families: the suite rivals: 3 seeds"
    assert (list(given["realizable"]["families"]), given["realizable"]["overall"]["seeds"]) == (["decoys"], 3)
    assert "misspecified" not in given
    assert paper_numbers(pa.concat_tables([job_rows("f: tie", "passive", 0, 40, 100)]))["g"] == {}


def test_an_undefined_number_meets_nothing():
    assert [meets(x, 0.9, 1.1) for x in (1.0, 1.2, math.nan, math.inf)] == [
        "holds",
        "does not hold",
        "undecided",
        "does not hold",
    ]


def test_the_maxsat_solution_is_the_best_of_all_sign_vectors():
    terms = max_k_dnf_terms(3, n=8, prompts=60, seed=1)
    every = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    best = max(int(terms.satisfied(signs).sum()) for signs in every)
    assert int(terms.satisfied(best_signs(terms)).sum()) == best >= int(terms.satisfied(terms.truth).sum())


def test_the_largest_key_is_never_further_off_than_the_chance_to_miss(monkeypatch):
    monkeypatch.setattr("spannerlm.bench.paper_direct.SIMULATED", 200)
    for curve in samplers()["curves"]:
        if curve["sampler"] == "adaptive":
            for m, error in curve["points"]:
                assert error <= (1.0 - 1.0 / curve["c"]) ** max(1, round(m * curve["c"])) + 1e-12
    assert TARGET.sum() == pytest.approx(1.0)


class Tags(HTMLParser):
    """Checks that every tag is closed, in order; collects the text."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.text, self.names = [], "", []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def quick_direct(monkeypatch):
    """The parts that need no rows, without their seconds: each has a test of its own."""
    monkeypatch.setattr(paper, "samplers", dict)
    monkeypatch.setattr(paper, "sign_vectors", lambda: None)


def test_the_page_is_well_formed_escapes_text_and_has_every_figure_inside(quick_direct, tmp_path):
    rows = pa.concat_tables(
        [job_rows("f: <b>x</b>", "spanner-sampling", 0, 40, 400), job_rows("f: <b>x</b>", "<i>", 0, 40, 400)]
    )
    written = write_paper(tmp_path, Suite("paper", (), "A <script>note</script>."), rows)
    text = (tmp_path / "paper.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not {"script", "b", "i"} & set(tags.names)
    assert "A <script>note</script>." in tags.text
    assert "<b>x</b>" in tags.text
    assert text.count("data:image/svg+xml;base64,") == tags.names.count("img") == 1
    assert {path.name for path in written} == {"rivals.png", "rivals.svg", "paper.json", "paper.html"}
    assert json.loads((tmp_path / "paper.json").read_text())["numbers"]["f"]["seeds"] == 1
    assert "http" not in text.replace("http-equiv", "")
    assert render_paper("n", {}, {}, {}).count("<h2") == 0


def test_figures_are_drawn_from_whatever_is_there_and_only_that():
    numbers = {
        "a": coverage(sweep(1.0)[0]),
        "b": rare_rows(0.0, 1.0, math.inf),
        "c": dnf_rows(1.0, 0.1),
        "e": harmless_rows(0.3),
        "g": foreseen({"tie": 0.8, "decoys": 1.2}),
    }
    drawn = {name for name in FIGURES if build(name, numbers) is not None}
    assert drawn == {
        "completion",
        "coverage_growth",
        "rare_labels",
        "rare_draws",
        "rate",
        "terms_labels",
        "harmless",
    } | {"foresight"}
    assert not any(build(name, {}) for name in FIGURES)
    assert {name for names in CLAIM.values() for name in names} == set(FIGURES)


def test_rivals_rows_of_their_own_suite_take_the_place_of_the_reduced_table(quick_direct, tmp_path):
    jobs = suite_by_name("rivals", ["passive"], ["tie"], seeds=1).jobs
    suite = Suite("rivals", tuple(replace(job, labels=40) for job in jobs))
    rows = run_suite(suite, tmp_path, jobs=1)
    numbers = paper_numbers(rows, load_rivals(tmp_path))
    assert numbers["f"]["source"] == "The suite rivals: 1 seeds, batches of 5"
    assert [r["task"] for r in numbers["f"]["table"]] == ["tie"]
    with pytest.raises(InputError, match=r"no suite\.json"):
        load_rivals(tmp_path / "nowhere")
