"""How far devices are with a desired bundle, from their reports alone."""

from __future__ import annotations

from typing import Any

import pytest

from contract.errors import BundleRefused, SourceUnavailable
from contract.mqtt.desired import BundleReference
from contract.mqtt.encoding import encode
from contract.mqtt.faults import ReportedError
from contract.mqtt.reports import BundleState, Phase, PlannedSwap, Progress, Reported, Waiting
from packager.watch.deployment import QUIET_SECONDS, UNHEARD, Deployment

RETRIED = ReportedError("source_unavailable", "depot is away; retrying in 5 s", retry_in_seconds=5.0)
FINAL = ReportedError("target_unknown", "it is not listed")


def bundle(version: str, name: str = "tiny") -> BundleState:
    return BundleState(name=name, version=version, digest="0" * 64, security_epoch=0)


def report(
    phase: Phase = "IDLE",
    *,
    active: str | None = "1.0.0",
    error: ReportedError | None = None,
    revision: str | None = "r2",
    **more: Any,
) -> bytes:
    state = None if active is None else bundle(active)
    return encode(Reported(revision, phase, more.pop("progress", None), state, None, error, **more))


@pytest.fixture
def deployment() -> Deployment:
    return Deployment("tiny@2.0.0", "r2", ["box"], 0.0)


def line(deployment: Deployment, payload: bytes) -> str | None:
    news = deployment.report("box", payload, 1.0)
    return None if news is None else news[1]


def test_active_is_said_of_what_was_asked_for_alone(deployment: Deployment) -> None:
    assert line(deployment, report()) == "tiny@1.0.0 is still active"
    assert deployment.waiting
    assert line(deployment, report("FETCH", progress=Progress(45, 100))) == "fetch 40 %"
    assert line(deployment, report("FETCH", progress=Progress(49, 100))) is None, "no news"
    assert line(deployment, report(active="2.0.0")) == "active tiny@2.0.0"
    deployment.conclude(1.0, [])


@pytest.mark.parametrize(
    ("swap", "text"),
    [
        (PlannedSwap("overlap", 0.0, "there is memory for both"), "requests will not wait"),
        (PlannedSwap("drain", 300.0, "set"), "requests will wait for its load, 300 s at most: set"),
        (
            PlannedSwap("aside", 900.0, "no room"),
            "requests will wait for its trial and its load, 900 s at most: no room",
        ),
    ],
)
def test_how_long_requests_will_wait_is_said_before(deployment: Deployment, swap: PlannedSwap, text: str) -> None:
    assert line(deployment, report("CHECK", swap=swap)) == f"check ({text})"
    assert line(deployment, report("FETCH", swap=swap, progress=Progress(45, 100))) == "fetch 40 %"
    assert line(deployment, report("CANARY", swap=swap)) == f"canary ({text})"
    assert line(deployment, report("SWITCH", swap=swap)) == "switch"


def test_what_waits_for_its_time_is_followed(deployment: Deployment) -> None:
    waiting = Waiting("waiting_for_window", "its maintenance window opens at T", prefetched=True, until="T")
    text = "waiting (fetched and verified): its maintenance window opens at T"
    assert line(deployment, report(waiting=waiting)) == text
    assert deployment.waiting
    with pytest.raises(SourceUnavailable, match="its maintenance window opens"):
        deployment.conclude(1.0, [])
    assert line(deployment, report("CANARY")) == "canary"


def test_an_adapter_is_active_beside_its_model(deployment: Deployment) -> None:
    assert line(deployment, report(adapters=[bundle("2.0.0")])) == "active tiny@2.0.0"


def test_what_was_reported_before_is_no_answer(deployment: Deployment) -> None:
    before = report(error=FINAL)
    assert deployment.reported_before("box", before) is None
    assert line(deployment, before) is None
    assert line(deployment, report("RESOLVE")) == "resolve"
    assert line(deployment, before) == "failed: it is not listed [target_unknown]"
    with pytest.raises(BundleRefused, match="box refused it: it is not listed"):
        deployment.conclude(1.0, [])


def test_what_was_active_before_is(deployment: Deployment) -> None:
    assert deployment.reported_before("box", report(active="2.0.0")) == "active tiny@2.0.0"
    assert not deployment.waiting


def test_a_device_that_tries_again_is_no_refusal(deployment: Deployment) -> None:
    assert line(deployment, report(error=RETRIED)) == ("waiting: depot is away; retrying in 5 s [source_unavailable]")
    with pytest.raises(SourceUnavailable) as caught:
        deployment.conclude(7.0, [])
    assert caught.value.exit_status == 4
    assert "box: not done within 7 s, it tries again: depot is away" in caught.value.message


def test_another_wish_that_came_between_ends_it(deployment: Deployment) -> None:
    assert line(deployment, report(revision="r1")) is None, "it has not heard of ours yet"
    line(deployment, report("RESOLVE"))
    said = line(deployment, report("RESOLVE", revision="r3", desired=BundleReference("tiny", "3.0.0")))
    assert said == "superseded: tiny@3.0.0 is desired now, by revision r3"
    with pytest.raises(SourceUnavailable, match="superseded"):
        deployment.conclude(1.0, [])


def test_silence_is_broken(deployment: Deployment) -> None:
    assert deployment.reminders(QUIET_SECONDS - 1) == []
    assert deployment.reminders(QUIET_SECONDS) == [("box", "has not reported on it yet, for 30 s")]
    assert deployment.status("box", False, QUIET_SECONDS) == "offline; it continues when it is back"
    assert deployment.status("box", False, QUIET_SECONDS) is None
    assert deployment.reminders(2 * QUIET_SECONDS) == [("box", "offline; has not reported on it yet, for 60 s")]
    assert deployment.status("box", True, 70.0) == "online again"


def test_those_that_were_offline_are_named(deployment: Deployment) -> None:
    line(deployment, report(active="2.0.0"))
    with pytest.raises(SourceUnavailable, match="attic is offline and follows when it is back"):
        deployment.conclude(1.0, ["attic"])


@pytest.mark.parametrize("payload", [b"", b"\xff", b"[" * 10_000, b"{}"])
def test_nonsense_is_no_news(deployment: Deployment, payload: bytes) -> None:
    assert line(deployment, payload) is None


def test_a_broker_that_is_away_is_not_taken_for_a_device_that_is_at_it(deployment: Deployment) -> None:
    assert line(deployment, report("CANARY", active=None)) == "canary"
    assert deployment.broker(True, 2.0) is None, "no news"
    assert deployment.broker(False, 10.0) == UNHEARD
    assert deployment.broker(False, 11.0) is None, "said once"
    heard = "the broker does not answer, for 21 s; last heard: canary"
    assert deployment.reminders(QUIET_SECONDS + 1.0) == [("box", heard)]
    with pytest.raises(SourceUnavailable, match="box: the broker does not answer; last heard: not done within 60 s"):
        deployment.conclude(60.0, [])
    assert deployment.broker(True, 40.0) == "answers again"
    assert deployment.reminders(2 * QUIET_SECONDS + 1.0) == [("box", "canary, for 60 s")]
