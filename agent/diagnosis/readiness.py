"""Whether prompts are answered now: what the running agent says of itself, and what is recorded of failures."""

from __future__ import annotations

from msgspec import UNSET

from agent.diagnosis.finding import Finding
from agent.install.status import InstallStatus
from agent.operator.control import Order, call_agent
from agent.state.audit import Entry, read_audit
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.lock import is_held
from agent.state.opening import open_to_read
from contract.mqtt.faults import ReportedError
from contract.reasons import Reason

NOT_READY = {
    "loading": ("the active bundle is being checked and loaded", "wait, then check again"),
    "swapping": ("one model makes room for another", "wait, then check again"),
    "no_model": ("no bundle is active", "edge-agent install SOURCE NAME@VERSION, or edge-packager deploy"),
    "engine_unavailable": (
        "the active bundle does not load, or its worker ends again and again",
        "the service's log says why; edge-agent verify, edge-agent rollback",
    ),
    "store_unavailable": ("results cannot be stored", "see the state directory above"),
    "stopping": ("the agent is being stopped", "wait, then check again"),
}
"""What each reason of ``health`` that keeps a device from answering means, and the mend."""

STILL_READY = {
    "unloaded": "the model was idle and is loaded with the next request",
    "store_read_only": "results are kept in memory only",
    "throttled_temperature": "fewer answers at once: it is too hot",
    "throttled_memory": "fewer answers at once: memory is short",
}
"""What the reasons of a device that answers mean."""

LASTING = frozenset({Reason.STORE_FULL, Reason.STORE_BROKEN})
"""Warnings that the check of the state directory gives already."""


def query_agent(state_dir: StateDirectory) -> InstallStatus | None:
    """What the agent that runs here says; None when none can be asked.

    Raises:
        StoreBroken: there is one, and this account may not ask it, or it broke off.
    """
    if not state_dir.control_socket.exists():
        return None
    return call_agent(state_dir, Order(op="status"), lambda reported: None)


def ready(state_dir: StateDirectory, overview: InstallStatus | None) -> Finding:
    """Whether a prompt that comes now is answered."""
    if overview is None or overview.health is None:
        if is_held(state_dir.lock):
            fix = "where the disk has room, restart the service; until then health and reported tell by the broker"
            return Finding("ready", "warning", "an agent runs and cannot be asked: its control socket is missing", fix)
        fix = "systemctl start edge-agent, or edge-agent run --config FILE"
        return Finding("ready", "bad", "no agent runs on this state directory: nothing is answered", fix)
    health = overview.health
    if overview.broker is not None and not overview.broker.connected:
        why = overview.broker.problem or "it has none yet"
        return Finding("ready", "bad", f"the agent has no connection to the broker: {why}", "see broker above")
    if health.ready:
        active = overview.reported.active
        text = "prompts are answered" + (f" by {active.name}@{active.version}" if active is not None else "")
        known = "; ".join(STILL_READY.get(reason, reason) for reason in health.reasons)
        if "store_read_only" in health.reasons:
            return Finding("ready", "warning", f"{text}; {known}", "see the state directory above")
        return Finding("ready", "note" if known else "ok", f"{text}; {known}" if known else text)
    found = [(reason, *NOT_READY.get(reason, (reason, "the service's log"))) for reason in health.reasons]
    blocking = [each for each in found if each[0] in NOT_READY] or found
    text = "; ".join(f"{reason}: {meaning}" for reason, meaning, _ in blocking) or "no reason is given"
    text += f" ({health.message})" if health.message else ""
    return Finding("ready", "bad", f"prompts are not answered: {text}", "; ".join({fix: 0 for *_, fix in blocking}))


def warnings(state_dir: StateDirectory, overview: InstallStatus | None) -> list[Finding]:
    """What is not as it should be although prompts are answered: as the agent says, else as it is recorded."""
    if overview is not None:
        self_reported = overview.reported.warnings
        active = overview.reported.active
        reference = None if active is None else f"{active.name}@{active.version}"
        return [
            _warning(each, reference)
            for each in ([] if self_reported is UNSET else self_reported)
            if each.reason not in LASTING
        ]
    if not state_dir.database.is_file():
        return []
    opened = open_to_read(state_dir)
    try:
        state = InstallationState(opened)
        bundle = state.bundle(state.snapshot().active)
        found = [ReportedError(each.reason, each.message) for each in state.warning_store.warnings()]
    finally:
        opened.close()
    return [_warning(each, None if bundle is None else bundle.reference) for each in found]


def _warning(warned: ReportedError, active: str | None) -> Finding:
    text = f"{warned.message} [{warned.reason}]"
    if warned.reason == Reason.REVOKED:
        if active is not None and active in warned.message:
            fix = 'deploy another version, or set install.on_revoked = "replace"'
            return Finding("bundle", "bad", f"it serves although it is revoked: {text}", fix)
        return Finding("bundle", "warning", text)
    if warned.reason in (Reason.EXPIRED, Reason.TRUST_STATE_LOST):
        return Finding("trust", "warning", text, "see trust above")
    return Finding("warning", "warning", text, "edge-agent status; docs/SECURITY.md explains the reason")


def last_failure(state_dir: StateDirectory, overview: InstallStatus | None) -> list[Finding]:
    """The last installation, if it failed: of this run of the agent, else as ``audit.jsonl`` has it."""
    if overview is not None and (error := overview.reported.error) is not None:
        document = error.reason == Reason.DESIRED_INVALID
        wanted = (not document and overview.desired) or "what was desired last"
        text = error.message if error.message.startswith(wanted) else f"{wanted}: {error.message}"
        if error.retry_in_seconds is not UNSET:
            fix = "what stands between this device and its source? edge-agent check-config, edge-agent trust refresh"
            if error.reason == Reason.TRUST_STATE_LOST:
                fix = "edge-agent trust provision ROOT_JSON --replace"
            return [Finding("installation", "warning", f"postponed: {text} [{error.reason}]", fix)]
        return [_failure(f"{text} [{error.reason}]")]
    entry = _last_outcome(read_audit(state_dir.audit))
    if entry is None:
        return []
    what = entry.bundle or (entry.revision and f"the document {entry.revision}") or "what was desired"
    return [_failure(f"{entry.at[:16].replace('T', ' ')} UTC, {what}: {entry.message or ''} [{entry.reason}]")]


def _last_outcome(entries: list[Entry]) -> Entry | None:
    """The refusal that came after the last bundle was committed; a rollback tells of the refusal before it."""
    for entry in reversed(entries):
        if entry.decision == "committed":
            return None
        if entry.decision == "refused":
            return entry
    return None


def _failure(text: str) -> Finding:
    return Finding(
        "installation", "warning", f"the last installation failed: {text}", "edge-agent status, edge-agent bundles"
    )


def engine(overview: InstallStatus | None) -> list[Finding]:
    """Which engine serves and why it is that one."""
    if overview is None:
        return [Finding("engine", "note", "it is chosen when a model is loaded, and no agent runs")]
    if overview.engine is None:
        return [Finding("engine", "note", "no model is loaded")]
    return [Finding("engine", "ok" if overview.engine.engine == "batched" else "note", overview.engine.summary)]
