"""Whatever fails while a ``desired`` document is taken in: it is reported, and the next one is followed. A broker keeps
the document, so one that ends the agent would end it at every start.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import pytest

from agent.install import desired_intake
from agent.install import reconciler as reconciling
from agent.install.desired_intake import DesiredIntake
from contract.mqtt.reports import Reported
from contract.reasons import Reason
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import desired
from tests.agent.install.test_reconciler import active, stage_for


class Injected(Exception):
    """What a step is made to raise."""


class Watcher:
    """Follows one document through ``root``, and makes one of the functions of ours that it calls fail."""

    def __init__(self, root: CodeType) -> None:
        self.root = root
        self.steps: dict[CodeType, None] = {}
        self.victim: CodeType | None = None

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> Watcher | None:
        code = frame.f_code
        if event == "call" and frame.f_globals.get("__name__", "").startswith(("agent.", "contract.")):
            caller: FrameType | None = frame
            while caller is not None and caller.f_code is not self.root:
                caller = caller.f_back
            if caller is not None:
                self.steps[code] = None
                if code is self.victim:
                    self.victim = None
                    raise Injected(code.co_qualname)
        return None


@contextlib.contextmanager
def watched(root: CodeType) -> Iterator[Watcher]:
    watcher = Watcher(root)
    sys.settrace(watcher)
    try:
        yield watcher
    finally:
        sys.settrace(None)


def over(revision: str) -> Any:
    def holds(reported: Reported) -> bool:
        return reported.revision == revision and reported.phase == "IDLE"

    return holds


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desired_intake, "DEBOUNCE_SECONDS", 0.0)
    monkeypatch.setattr(desired_intake, "RECORD_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(reconciling, "RESTORE_RETRY_SECONDS", 0.0)


async def test_whichever_step_of_taking_in_a_document_fails_the_next_one_is_followed(
    market: Market, device: Device
) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        with watched(DesiredIntake._consider.__code__) as watcher:
            reconciler.set_desired(desired("1.0.0", "watched"))
            await stage.until(over("watched"))
        names = {step.co_qualname for step in watcher.steps}
        assert {
            "read_desired",
            "InstallationState.record_desired",
            "DesiredIntake._adopt",
            "UpdateRunner.supersede",
        } <= names
        for number, step in enumerate(watcher.steps):
            stage.reported.clear()
            with watched(DesiredIntake._consider.__code__) as again:
                again.victim = step
                reconciler.set_desired(desired("1.0.0", f"bad{number}"))
                await stage.until(
                    lambda reported, number=number: (  # type: ignore[misc]
                        over(f"bad{number}")(reported)
                        or (reported.error is not None and reported.error.reason == Reason.INTERNAL_ERROR)
                    )
                )
            assert again.victim is None, step.co_qualname
            reconciler.set_desired(desired("1.0.0", f"good{number}"))
            await stage.until(over(f"good{number}"))


async def test_a_wish_whose_pursuit_meets_a_fault_is_tried_again(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        real = reconciler._runner.run

        async def fail(_target: object) -> object:
            monkeypatch.setattr(reconciler._runner, "run", real)
            raise Injected("pursue")

        monkeypatch.setattr(reconciler._runner, "run", fail)
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(lambda reported: reported.error is not None and reported.error.reason == "internal_error")
        reported = await stage.until(active("1.0.0"))
        assert reported.error is None


async def test_a_stored_document_at_which_every_start_fails_keeps_nobody_from_starting(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"more"})
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
    stage.restart()

    def fail(_payload: bytes) -> str:
        raise Injected("revision_in")

    with monkeypatch.context() as patched:
        patched.setattr(desired_intake, "revision_in", fail)
        async with stage.agent():
            assert stage.serving.swaps == [("1.0.0", "drain")]
            await stage.until(lambda reported: reported.error is not None and reported.error.reason == "internal_error")
    stage.restart()
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.1.0"))
        await stage.until(active("1.1.0"))


HALF = b'{"revision":"r\\ud83d","bundle":{"name":"tiny","version":"1.0.0"}}'


async def test_half_a_character_in_a_document_is_reported(market: Market, device: Device) -> None:
    market.publish("1.0.0")
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(HALF)
        reported = await stage.until(lambda reported: reported.error is not None)
        assert reported.error is not None
        assert (reported.error.reason, reported.error.field) == ("desired_invalid", "revision")
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))


BAD = [
    (b'{"revision":"r7","bundle":{"name":"tiny","version":"1.0.0"},"policy":{"probation_seconds":1e400}}', "policy."),
    (b'{"revision":"r7","bundle":{"name":"tiny","version":99999999999999999999}}', "bundle.version"),
    (b'{"revision":"r7","bundle":{"name":"tiny","version":"1.0.0"},"bundle":{}}', "bundle"),
    (b'{"revision":"r7","bundle":{"name":"tiny","version":"1.0.0"},}', ""),
    (b'\xef\xbb\xbf{"revision":"r7","bundle":{"name":"tiny","version":"1.0.0"}}', ""),
    (b'{"revision":"r7","bundle":{"name":"tiny","version":"1.0.0"}}\0', ""),
    (b'{"revision":"r7","bundle":{"name":"tiny","vers', ""),
    (b'{"revision":"r7","bundle":{"name":"\xe4","version":"1.0.0"}}', "bundle.name"),
    (b'{"revision":"r7","bundle":' + b"[" * 40, "bundle"),
    (b'{"bundel":{},"revision":"r7"}', "bundel"),
]


@pytest.mark.parametrize(("document", "field"), BAD)
async def test_a_document_that_is_refused_is_reported_under_its_revision(
    market: Market, device: Device, document: bytes, field: str
) -> None:
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(document)
        reported = await stage.until(lambda reported: reported.error is not None)
    assert reported.error is not None
    assert (reported.revision, reported.error.reason) == ("r7", "desired_invalid")
    assert (reported.error.field or "").startswith(field)


async def test_a_refused_document_stays_reported_over_a_restart_until_it_is_gone(
    market: Market, device: Device
) -> None:
    """The broker sends its copy at every start, before the wish that was stored is looked at."""
    market.publish("1.0.0")
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
    stage.restart()
    async with stage.agent() as reconciler:
        reconciler.set_desired(BAD[3][0], repeated=True)
        # An order of the operator's comes after what was wished for.
        await reconciler.refresh_trust()
        reported = stage.reported[-1]
        assert reported.error is not None
        assert (reported.revision, reported.error.reason) == ("r7", "desired_invalid")
        stage.reported.clear()
        reconciler.set_desired(desired("1.0.0"), repeated=True)
        await stage.until(lambda reported: reported.error is None and reported.revision == "r1.0.0")


async def test_a_refused_document_that_is_cleared_is_reported_no_longer(market: Market, device: Device) -> None:
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(BAD[0][0])
        await stage.until(lambda reported: reported.error is not None and reported.revision == "r7")
        stage.reported.clear()
        reconciler.set_desired(b"")
        await stage.until(lambda reported: reported.error is None and reported.revision is None)


async def test_all_faults_of_a_document_are_reported(market: Market, device: Device) -> None:
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(
            b'{"revision":"r7","bundle":{"name":"../x","version":"latest"},"policy":{"swapp":"drain"},"sources":"x"}'
        )
        reported = await stage.until(lambda reported: reported.error is not None)
    assert reported.error is not None
    found = {each.field: each.suggestion for each in reported.error.details}  # type: ignore[union-attr]
    assert found["policy.swapp"] == "swap"
    assert found["sources"] == "source"
    assert {"bundle.name", "bundle.version"} <= found.keys()


async def test_a_document_that_an_older_agent_stored_is_refused_now(market: Market, device: Device) -> None:
    """What is refused today was accepted once: the agent starts, serves and says so."""
    market.publish("1.0.0")
    stage = stage_for(market, device)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))
        stage.state.record_desired(HALF)
    stage.restart()
    async with stage.agent():
        assert stage.serving.swaps == [("1.0.0", "drain")]
        await stage.until(lambda reported: reported.error is not None and reported.error.reason == "desired_invalid")
