"""What the log, ``audit.jsonl`` and the events say of a bundle's life: a line for each step, with who wanted it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import msgspec
import pytest

from agent.install.desired import rollback_target
from agent.install.ports import ServingCounters, Speed
from agent.state.audit import read_audit
from contract.reasons import Reason
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import Stage, desired
from tests.agent.install.test_reconciler import active, failed, stage_for
from tests.agent.install.trust.test_revocation import SOON, settle
from tests.agent.waiting import until

STEPS = ["wanted", "resolved", "fetched", "canary", "swapped", "probation", "committed"]


class Lines(logging.Handler):
    """The fields of every line that tells of a step, and the sentences of all others from warning on."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, str]] = []
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        found = getattr(record, "edge_fields", {})
        if "step" in found:
            self.steps.append({**found, "level": record.levelname.lower(), "said": record.getMessage()})
        elif record.levelno >= logging.WARNING:
            self.warnings.append(record.getMessage())

    def named(self) -> list[str]:
        return [line["step"] for line in self.steps]

    def last(self, step: str) -> dict[str, str]:
        return next(line for line in reversed(self.steps) if line["step"] == step)


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("edge_agent")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


async def run_first(stage: Stage, market: Market) -> None:
    """A first bundle, from wish to commit."""
    market.publish("1.0.0", security_epoch=2)
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.0.0"))
        await stage.until(active("1.0.0"))


async def test_each_step_has_one_line_with_what_was_measured(market: Market, device: Device, lines: Lines) -> None:
    stage = stage_for(market, device, probation_requests=7)
    stage.workers.drift, stage.workers.peak = 0.0125, 123_456
    stage.serving.after_swap = ServingCounters(9, 0, 0, Speed(41.26, 20.0), 3.0)
    await run_first(stage, market)
    assert lines.named() == STEPS
    bundle = device.state().bundles()[0]
    assert lines.last("wanted") | {"by": "desired", "revision": "r1.0.0", "level": "info"} == lines.last("wanted")
    assert lines.last("resolved")["bytes"] == str(bundle.bytes)
    assert lines.last("resolved")["digest"] == bundle.digest
    fetched = lines.last("fetched")
    assert 0 < int(fetched["bytes"]) <= bundle.bytes
    assert float(fetched["seconds"]) >= 0
    canary = lines.last("canary")
    assert (canary["drift"], canary["peak_rss_bytes"]) == ("0.0125", "123456")
    swapped = lines.last("swapped")
    assert (swapped["mode"], swapped["pause_ms"]) == ("drain", "12.5")
    assert lines.last("probation")["requests"] == "7"
    committed = lines.last("committed")
    assert {name: committed[name] for name in ("by", "epoch", "answered", "failed", "tokens_per_second")} == {
        "by": "desired", "epoch": "2", "answered": "9", "failed": "0", "tokens_per_second": "41.3",
    }  # fmt: skip
    assert all(line["bundle"] == "tiny@1.0.0" for line in lines.steps)
    assert lines.warnings == []


async def test_a_bundle_that_fails_in_probation_is_rolled_back_with_the_reason(
    market: Market, device: Device, lines: Lines
) -> None:
    stage = stage_for(market, device)
    await run_first(stage, market)
    market.publish("1.1.0", {"README.md": b"1.1.0"}, security_epoch=2)
    stage.restart()
    stage.serving.after_swap = ServingCounters(5, 2, 0, None)
    lines.steps.clear()
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.1.0"))
        await stage.until(failed(Reason.PROBATION_ERRORS))
        await until(lambda: "rolled_back" in lines.named())
    assert lines.named() == [*STEPS[:-1], "rolled_back"]
    back = lines.last("rolled_back")
    assert back["level"] == "warning"
    assert (back["bundle"], back["previous"]) == ("tiny@1.0.0", "tiny@1.1.0")
    assert (back["reason"], back["by"]) == ("probation_errors", "automatic")
    assert "2 of 7 requests failed" in back["said"]


@pytest.mark.parametrize("what", ["the agent ends", "another bundle is desired", "the operator wants another bundle"])
async def test_a_candidate_given_up_in_probation_says_for_whom(
    market: Market, device: Device, lines: Lines, what: str
) -> None:
    stage = stage_for(market, device)
    await run_first(stage, market)
    market.publish("1.1.0", {"README.md": b"1.1.0"}, security_epoch=2)
    market.publish("1.2.0", {"README.md": b"1.2.0"}, security_epoch=2)
    stage.settings = msgspec.structs.replace(stage.settings, probation_seconds=3600.0)
    stage.restart()
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.1.0"))
        await until(lambda: lines.named()[-1] == "probation")
        if what == "another bundle is desired":
            reconciler.set_desired(desired("1.2.0"))
            await until(lambda: "rolled_back" in lines.named())
        elif what == "the operator wants another bundle":
            await reconciler.execute(rollback_target(stage.state, stage.settings, allow_epoch=False))
    if what == "the agent ends":
        stage.restart()
        async with stage.agent():
            await until(lambda: "rolled_back" in lines.named())
    by = {"the agent ends": "automatic", "another bundle is desired": "desired"}.get(what, "operator")
    back = lines.last("rolled_back")
    assert (back["by"], back["reason"], back["previous"]) == (by, "interrupted", "tiny@1.1.0")


async def test_going_back_by_hand_is_the_operators_in_log_audit_and_event(
    market: Market, device: Device, lines: Lines
) -> None:
    stage = stage_for(market, device)
    await run_first(stage, market)
    market.publish("1.1.0", {"README.md": b"1.1.0"}, security_epoch=2)
    stage.restart()
    async with stage.agent() as reconciler:
        reconciler.set_desired(desired("1.1.0"))
        await stage.until(active("1.1.0"))
        lines.steps.clear()
        outcome = await reconciler.execute(rollback_target(stage.state, stage.settings, allow_epoch=False))
        assert outcome.kind == "active"
    assert lines.named() == [*STEPS, "rolled_back"]
    assert (lines.last("wanted")["by"], lines.last("fetched")["bytes"]) == ("operator", "0")
    assert lines.last("committed")["by"] == "operator"
    back = lines.last("rolled_back")
    assert (back["bundle"], back["previous"], back["by"], back["reason"], back["level"]) == (
        "tiny@1.0.0", "tiny@1.1.0", "operator", "operator", "info",
    )  # fmt: skip
    (entry,) = [entry for entry in read_audit(device.directory.audit) if entry.decision == "rolled_back"]
    assert (entry.by, entry.bundle, entry.reason) == ("operator", "tiny@1.0.0", "operator")
    assert "tiny@1.1.0" in (entry.message or "")
    committed = [entry.by for entry in read_audit(device.directory.audit) if entry.decision == "committed"]
    assert committed == ["agent", "agent", "operator"]
    (event,) = [detail for kind, detail in stage.events if kind == "rollback"]
    assert (event["from"], event["to"], event["by"], event["reason"]) == (
        "tiny@1.1.0", "tiny@1.0.0", "operator", "operator",
    )  # fmt: skip


@pytest.mark.parametrize("before", ["1.0.0", None])
async def test_a_revoked_bundle_that_is_replaced_is_the_agents_own_doing(
    market: Market, device: Device, lines: Lines, before: str | None
) -> None:
    stage = stage_for(market, device)
    await settle(stage, market, *([before] if before else []), "1.1.0")
    market.repository.revoke("tiny@1.1.0")
    stage.settings = msgspec.structs.replace(stage.settings, trust_refresh_seconds=SOON, on_revoked="replace")
    lines.steps.clear()
    async with stage.agent():
        await until(lambda: "rolled_back" in lines.named())
    assert lines.named() == ([*STEPS, "rolled_back"] if before else ["rolled_back"])
    assert {line["by"] for line in lines.steps if "by" in line} == {"automatic"}
    back = lines.last("rolled_back")
    assert (back.get("bundle"), back["previous"], back["reason"]) == (
        before and f"tiny@{before}", "tiny@1.1.0", "revoked",
    )  # fmt: skip
    assert any("tiny@1.1.0" in said and "revoked" in said for said in lines.warnings), "told once when it was noticed"
    (event,) = [detail for kind, detail in stage.events if kind == "rollback"]
    assert event["by"] == "automatic"


async def test_an_active_bundle_that_does_not_load_is_said_to_be_unavailable(market: Market, device: Device) -> None:
    stage = stage_for(market, device)
    await run_first(stage, market)
    stage.restart()
    stage.serving.refuses.add("1.0.0")
    async with stage.agent():
        assert "unavailable" in stage.serving.moves
