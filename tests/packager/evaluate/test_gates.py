"""Limits: kept, broken with the numbers, accepted with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from contract.errors import BuildRefused, UsageError
from packager.build.plan import OFFERED
from packager.evaluate.gates import DEFAULT_LIMITS, Limits, check_reason, choose_limits, evaluate_limits

NUMBERS = {"kl": 0.3, "perplexity": 13.0, "source_perplexity": 10.0, "perplexity_ratio": 1.3}


def test_every_offered_precision_has_limits() -> None:
    assert {precision for offered in OFFERED.values() for precision in offered} <= set(DEFAULT_LIMITS)


def test_limits_kept_leave_them_in_the_manifest() -> None:
    assert evaluate_limits(Limits(0.5, 1.5), None, NUMBERS, None) == {"max_kl": 0.5, "max_perplexity_ratio": 1.5}


@pytest.mark.parametrize(
    ("limits", "said"), [(Limits(0.2, 1.5), ["0.3", "0.2"]), (Limits(0.5, 1.1), ["13", "10", "1.3", "1.1"])]
)
def test_a_broken_limit_fails_with_the_numbers(limits: Limits, said: list[str]) -> None:
    with pytest.raises(BuildRefused) as caught:
        evaluate_limits(limits, None, NUMBERS, None)
    assert all(number in caught.value.message for number in said)
    assert "--accept-quality" in caught.value.message


def test_a_number_that_is_none_keeps_no_limit() -> None:
    with pytest.raises(BuildRefused):
        evaluate_limits(Limits(0.5, 1.5), None, {**NUMBERS, "kl": float("nan")}, None)


@pytest.mark.parametrize("kl", [0.6, float("nan")])
def test_answers_about_pictures_have_the_limit_of_text(kl: float) -> None:
    with pytest.raises(BuildRefused, match="asked about pictures, its KL divergence from the source is"):
        evaluate_limits(Limits(0.5, 1.5), None, NUMBERS, None, pictures_kl=kl)
    verdict = evaluate_limits(Limits(0.5, 1.5), "a toy for the lab", NUMBERS, None, pictures_kl=kl)
    assert len(verdict["accepted"]["faults"]) == 1
    assert "accepted" not in evaluate_limits(Limits(0.5, 1.5), "not needed", NUMBERS, None, pictures_kl=0.49)


def test_lost_behaviour_fails_by_name() -> None:
    behaviour: dict[str, Any] = {"lost": ["capital"], "source_passed": 3}
    with pytest.raises(BuildRefused, match="fails 1 of the 3 behaviours that the source passes, first 'capital'"):
        evaluate_limits(Limits(0.5, 1.5), None, NUMBERS, behaviour)


def test_a_reason_lets_it_pass_and_is_written_down() -> None:
    verdict = evaluate_limits(Limits(0.2, 1.5), "a toy for the lab", NUMBERS, None)
    assert verdict["accepted"]["reason"] == "a toy for the lab"
    assert len(verdict["accepted"]["faults"]) == 1


def test_a_reason_that_was_not_needed_is_not_written() -> None:
    assert "accepted" not in evaluate_limits(Limits(0.5, 1.5), "just in case", NUMBERS, None)


@pytest.mark.parametrize("reason", ["", "  \n", "x" * 501])
def test_reasons_say_something(reason: str) -> None:
    with pytest.raises(UsageError):
        check_reason(reason)


@pytest.mark.parametrize(("kl", "ratio"), [(0.0, None), (-1.0, None), (float("nan"), None), (None, 0.9)])
def test_limits_that_nothing_could_keep_are_refused(kl: float | None, ratio: float | None) -> None:
    with pytest.raises(UsageError):
        choose_limits("int4", kl, ratio)


def test_one_limit_can_be_chosen_alone() -> None:
    assert choose_limits("int4", 0.2, None) == Limits(0.2, DEFAULT_LIMITS["int4"].max_perplexity_ratio)


@pytest.mark.parametrize("agreement", [0.0, 0.39, float("nan")])
def test_a_small_divergence_does_not_excuse_other_top_tokens(agreement: float) -> None:
    with pytest.raises(BuildRefused, match="its most likely token is the source's in"):
        evaluate_limits(Limits(0.5, 1.5), None, {**NUMBERS, "top1_agreement": agreement}, None)
    assert evaluate_limits(Limits(0.5, 1.5), None, {**NUMBERS, "top1_agreement": 0.4}, None)["min_agreement"] == 0.4
    assert choose_limits("int4", None, None, 0.2).min_agreement == 0.2
    with pytest.raises(UsageError, match="--min-agreement"):
        choose_limits("int4", None, None, 1.1)


def test_other_tokens_than_the_sources_are_refused_unless_accepted() -> None:
    with pytest.raises(BuildRefused, match="makes other tokens of 2 texts, first 'one'"):
        evaluate_limits(Limits(0.5, 1.5), None, None, None, ["one", "two"])
    with pytest.raises(BuildRefused, match="other tokens of the text that was read"):
        evaluate_limits(Limits(0.5, 1.5), None, {**NUMBERS, "tokenizer_same": False}, None)
    assert evaluate_limits(Limits(0.5, 1.5), "it is known", None, None, ["one"])["accepted"]["reason"] == "it is known"
