"""Specifications of rollouts: all faults at once, each with its field and what was probably meant."""

from __future__ import annotations

from typing import Any

import pytest

from contract.errors import RequestInvalid
from contract.windows import Window
from fleet.rollout.canary import Canary, Prompt
from fleet.rollout.spec import Gates, Spec, parse_spec, read_spec
from fleet.rollout.waves import Size

LEAST: dict[str, Any] = {"bundle": "smollm2@1.1.0", "where": "site=oslo"}


def test_the_least_that_can_be_said_has_careful_defaults() -> None:
    spec = read_spec(LEAST)
    assert spec == Spec(name="smollm2", version="1.1.0", where="site=oslo")
    assert spec.bundle == "smollm2@1.1.0"
    assert spec.rollback == "wave"
    assert spec.gates == Gates()


def test_a_whole_file() -> None:
    text = b"""
        bundle = "smollm2@1.1.0"
        where = "site=oslo and ram>=4G"
        mode = "dynamic"
        waves = [2, "5%", "100%"]
        holdout = "5%"
        bake = "45m"
        deadline = "90s"
        slots_per_site = 2
        rollback = "all"
        approval = true
        [halt]
        max_failures = 2
        [gates]
        tokens_per_second = 0.8
        memory = false
        quality = 0.95
        [canary]
        [[canary.prompts]]
        prompt = "2 + 2?"
        expect = ["4", "four"]
        [[canary.prompts]]
        prompt = "Which city is Norway's capital?"
        expect = "Oslo"
        [[windows]]
        from = "22:00"
        until = "05:30"
        zone = "Europe/Oslo"
        days = ["sat", "sun"]
    """
    spec = read_spec(parse_spec(text))
    assert spec.waves == (Size(2), Size(percent=5), Size(percent=100))
    assert (spec.bake, spec.deadline) == (2700.0, 90.0)
    assert spec.gates.memory is None
    assert spec.gates.tokens_per_second == 0.8
    assert spec.gates.quality == 0.95
    prompts = (Prompt("2 + 2?", ("4", "four")), Prompt("Which city is Norway's capital?", ("Oslo",)))
    assert spec.canary == Canary(prompts, 64)
    assert spec.windows == (Window(1320, 330, "Europe/Oslo", ("sat", "sun")),)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"bundle": "smollm2"}, "bundle", "is not NAME@VERSION"),
        ({"bundle": "smollm2@one"}, "bundle", "is not a version"),
        ({"where": "sit=oslo"}, "where", "did you mean `site`?"),
        ({"wave": [1]}, "wave", "did you mean `waves`?"),
        ({"rollback": "wav"}, "rollback", "did you mean `wave`?"),
        ({"mode": "dynamik"}, "mode", "did you mean `dynamic`?"),
        ({"waves": []}, "waves", "length >= 1"),
        ({"waves": [0]}, "waves[0]", "a wave of no device"),
        ({"waves": ["10%", "5%"]}, "waves[1]", "each is larger than the one before"),
        ({"waves": ["110%"]}, "waves[0]", "neither a number of devices nor a share"),
        ({"bake": "soon"}, "bake", "write 90s, 30m, 2h or 7d"),
        ({"expires": "900d"}, "expires", "longer than a year"),
        ({"deadline": "0s"}, "deadline", "longer than nothing"),
        ({"deadline": "40d"}, "deadline", "longer than the whole rollout"),
        ({"source": "a b"}, "source", "cannot name a source"),
        ({"halt": {"max_failure": 1}}, "halt.max_failure", "did you mean `max_failures`?"),
        ({"gates": {"tokens_per_secnd": 0.9}}, "gates.tokens_per_secnd", "did you mean `tokens_per_second`?"),
        ({"gates": {"error_rate": 2}}, "gates.error_rate", "<= 1"),
        ({"gates": {"min_requests": False}}, "gates.min_requests", "int"),
        ({"windows": [{"from": "24:00", "until": "05:00", "zone": "Europe/Oslo"}]}, "windows[0].from", "HH:MM"),
        (
            {"windows": [{"from": "22:00", "until": "05:00", "zone": "Europe/Olso"}]},
            "windows[0].zone",
            "did you mean `Europe/Oslo`?",
        ),
        ({"windows": [{"from": "22:00", "until": "22:00", "zone": "UTC"}]}, "windows[0].until", "never open"),
        ({"windows": [{"form": "22:00", "until": "22:00", "zone": "UTC"}]}, "windows[0].form", "did you mean `from`?"),
        ({"prefetch": True}, "prefetch", "without windows"),
        ({"prefetched": True}, "prefetched", "did you mean `prefetch`?"),
        ({"max_in_progress": 0}, "max_in_progress", ">= 1"),
        ({"canary": {"prompts": []}}, "canary.prompts", "length >= 1"),
        ({"canary": {"prompt": []}}, "canary.prompt", "did you mean `prompts`?"),
        ({"canary": {"prompts": [{"prompt": "2 + 2?"}]}}, "canary.prompts[0].expect", "missing"),
        ({"canary": {"prompts": [{"prompt": "2 + 2?", "expect": []}]}}, "canary.prompts[0].expect", "length >= 1"),
        ({"canary": {"prompts": [{"prompt": "", "expect": "4"}]}}, "canary.prompts[0].prompt", "length >= 1"),
        ({"gates": {"quality": 0}}, "gates.quality", "> 0"),
    ],
)
def test_a_fault_names_its_field_and_the_mend(changes: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(RequestInvalid) as raised:
        read_spec(LEAST | changes)
    fault = next(each for each in raised.value.details if each.field == field)
    assert words in fault.message
    assert raised.value.field == raised.value.details[0].field


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(RequestInvalid) as raised:
        read_spec({"bundle": "x", "where": "sit=oslo", "bake": "soon", "halt": {"max_failure": 1}, "rollbak": "all"})
    fields = {fault.field for fault in raised.value.details}
    assert fields == {"bundle", "where", "bake", "halt.max_failure", "rollbak"}
    assert "(and 4 more)" in raised.value.message


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RequestInvalid) as raised:
        read_spec({})
    assert {fault.field for fault in raised.value.details} == {"bundle", "where"}


@pytest.mark.parametrize("data", [b"bundle = ", b"\xff", b"x = [" * 5000])
def test_what_is_no_toml_is_said(data: bytes) -> None:
    with pytest.raises(RequestInvalid, match="is not TOML"):
        parse_spec(data)


def test_a_file_of_any_size_is_not_read() -> None:
    with pytest.raises(RequestInvalid, match="at most"):
        parse_spec(b"#" * 100_000)
