"""Numbers as a reader wants them, and sentences that say no more than the rows do."""

from __future__ import annotations

import math

import pytest
import reports

from spannerlm import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.96, "0.96"),
        (-0.3, "-0.30"),
        (0.0, "0.00"),
        (0.0123, "0.012"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (2e-9, "2.0e-09"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
        ("7", "–"),
        (True, "–"),
    ],
)
def test_short(value: object, text: str) -> None:
    assert wording.short(value) == text


def test_an_interval_has_the_digits_that_its_width_needs() -> None:
    assert wording.interval(reports.band(0.96, 0.05)) == "0.96 [0.91, 1.01]"
    assert wording.interval(reports.band(1234.5, 0.25)) == "1,234.5 [1,234.2, 1,234.8]"
    assert wording.interval({"value": 0.5, "low": None, "high": 1.0}) == "0.50"
    assert wording.interval({"value": None, "low": 0.1, "high": 1.0}) == "–"


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (14.23, "14.2"), (1234.0, "1,234"), (0.004, "0.004"), (None, "–")]
)
def test_few(value: object, text: str) -> None:
    assert wording.few(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.42, "0.4 s"), (38.2, "38 s"), (720, "12 min"), (11160, "3.1 h"), (None, "–")]
)
def test_seconds(value: object, text: str) -> None:
    assert wording.seconds(value) == text


def test_counts_and_shares() -> None:
    assert wording.count(40960) == "40,960"
    assert wording.count(None) == "–"
    assert wording.share(0.0034) == "0.34 %"
    assert wording.share(math.nan) == "–"


@pytest.mark.parametrize(
    "character", ["\x1b", "\x07", "\x9b", "\x00", "\r", "\u202e", "\u2066", "\ufeff", "\ud800", "\U000e0041"]
)
def test_control_characters_become_visible(character: str) -> None:
    text = wording.visible(f"a{character}b")
    assert character not in text
    assert text.startswith("a\\")
    text.encode("utf-8")


def test_ordinary_text_stays_as_it_is() -> None:
    for text in ("a\nb\tc", "日本語 مرحبا می‌خواهم 👩‍👩‍👧 é"):  # with joiners that these scripts need
        assert wording.visible(text) == text


def test_plain_names_are_short_ascii() -> None:
    assert wording.plain("日本\x1b[0m") == "??\\x1b[0m"
    assert len(wording.plain("x" * 1000)) == 28


def test_quantile_is_the_smallest_value_that_covers_the_share() -> None:
    values = [1.0, 2.0, 3.0, 10.0]
    for q in (0.01, 0.25, 0.26, 0.5, 0.9, 1.0):
        slow = min(v for v in values if sum(w <= v for w in values) >= q * len(values) - 1e-9)
        assert wording.quantile(values, q) == slow


def test_the_headline_compares_with_base_random_and_optimum() -> None:
    text = " ".join(wording.headline(reports.full()))
    for part in (
        "100 labels",
        "earns 0.96 [0.91, 1.01]",
        "0.21 [0.19, 0.23]",
        "0.59 [0.54, 0.64]",
        "1.02 [0.98, 1.06]",
    ):
        assert part in text
    assert "10 times" in text
    assert "80.2 % of the way" in text
    assert "predicted" not in text
    assert "overlap" not in text


def test_the_headline_says_where_intervals_overlap() -> None:
    report = reports.full()
    report["table"][1] |= reports.band(0.93, 0.05)
    assert "overlap" in " ".join(wording.headline(report))


def test_the_headline_of_a_reward_that_is_not_free_calls_it_a_prediction() -> None:
    text = " ".join(wording.headline(reports.sparse()))
    for part in ("20 labels", "predicted to earn 3.40 [2.10, 4.70]", "2.90 [2.40, 3.40]", "overlap", "labels alone"):
        assert part in text
    assert "Random" not in text
    assert "optimum" not in text.lower()


def test_the_headline_without_a_value_names_the_reason() -> None:
    report = reports.sparse() | {"table": [], "history": [], "reason": "budget spent"}
    text = " ".join(wording.headline(report))
    assert "20 labels" in text
    assert "cannot be told" in text
    assert "budget spent" in text
    assert "–" not in text


def test_a_single_label_and_none_are_said_in_words() -> None:
    report = reports.full()
    report["table"][3]["labels"] = 1
    assert "With 1 label the" in wording.headline(report)[0]
    report["table"][3]["labels"] = 0
    assert "With no labels the" in wording.headline(report)[0]


def test_the_certificate_promises_what_theory_allows() -> None:
    text = " ".join(wording.certificate_words(reports.full()))
    for part in (
        "confidence 95 %",
        "at most 0.34 % of cases",
        "ν = 1.4",
        "2,560 independent pairs",
        "31 pairs",
        "none",
    ):
        assert part in text
    assert "coverage, not about quality" in text
    assert "unseen" in text


def test_a_pair_beyond_nu_voids_the_promise_but_not_the_radius() -> None:
    report = reports.full()
    report["history"] = report["history"][:4]
    text = " ".join(wording.certificate_words(report))
    assert "promises nothing" in text
    assert "at most 1.12 % of such pairs are farther apart than 2.61" in text
    assert "3 of them lay beyond" in text


def test_no_certificate_is_said_plainly() -> None:
    assert "No certificate" in " ".join(wording.certificate_words(reports.sparse()))


def test_the_recommendation_names_kl_value_and_cost() -> None:
    text = wording.recommendation(reports.full())
    for part in ("1.5 nats", "β = 0.31", "0.86 [0.82, 0.90]", "6.52 draws"):
        assert part in text
    assert wording.recommendation({"recommended": None}) == ""
    assert "–" not in wording.recommendation(reports.sparse())


def test_every_caption_is_one_sentence_with_the_runs_own_numbers() -> None:
    captions = wording.captions(reports.full())
    assert all(text.endswith(".") and text.count(". ") == 0 for text in captions.values())
    for name, numbers in {
        "value_against_labels": ("0.21", "0.96", "100 labels", "1.02", "1,000 labels"),
        "value_against_kl": ("1.5 nats", "6.52"),
        "spanner_growth": ("40 pairs", "0.34 %", "1.4"),
        "spectrum": ("64", "17.3"),
        "draws_per_answer": ("40", "21", "37"),
    }.items():
        assert all(n in captions[name] for n in numbers), captions[name]
    assert set(wording.captions(dict.fromkeys(reports.full()))) == set(captions)  # nothing known: still sentences


def test_comparisons_without_a_free_reward_tell_a_gain() -> None:
    report = {"explorer": "spanner-sampling", "feedback": "comparison", "counts": {"labels": 60}, "reason": "done"}
    gain = {"name": wording.GAIN, "value": 0.5, "low": 0.4, "high": 0.6}
    text = " ".join(wording.headline({**report, "estimates": [gain]}))
    assert "With 60 labels the tilted policy is predicted to earn 0.50 [0.40, 0.60] more than the base model" in text
    assert "Comparisons tell which reply is better, not how good it is." in text
    assert "cannot be told." in wording.headline(report)[0]


def test_a_number_without_a_bound_keeps_its_own_digits() -> None:
    assert wording.short(1.5, math.inf) == wording.short(1.5) == "1.50"


def test_what_was_never_seen_is_zero_up_to_a_bound() -> None:
    assert wording.interval({"value": 0.0, "low": 0.0, "high": 0.00013}) == "0 [0, 0.00013]"
    assert wording.interval({"value": 0.0, "low": -0.1, "high": 0.1}) == "0.00 [-0.10, 0.10]"
