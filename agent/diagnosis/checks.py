"""All checks, in the order in which a person would look: each one even if another fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec import UNSET

from agent.config import AgentConfig, load_config
from agent.diagnosis import broker, capacity, hardware, readiness, service, state
from agent.diagnosis.finding import Finding, run_check
from agent.install.status import InstallStatus
from agent.state.layout import StateDirectory
from contract.errors import ConfigInvalid, EdgeBundleError


def run_all_checks(config_path: Path) -> Iterator[Finding]:
    """Findings as they are made; without a usable configuration only what needs none."""
    config: AgentConfig | None = None
    try:
        config = load_config(config_path)
    except ConfigInvalid as error:
        yield Finding("configuration", "bad", error.message, f"fix it, then run edge-agent check-config {config_path}")
    else:
        yield Finding("configuration", "ok", f"{config_path}: device {config.device}")
    yield from run_check("processor", hardware.processor)
    yield from run_check("runtime", hardware.runtime)
    yield from run_check("memory", hardware.memory)
    yield from run_check("power", hardware.power)
    yield from run_check("isolation", hardware.isolation)
    yield from run_check("service", service.unit)
    if config is not None:
        yield from _with(config)


def _with(config: AgentConfig) -> Iterator[Finding]:
    state_dir = StateDirectory(config.state_dir)
    overview: InstallStatus | None = None
    try:
        overview = readiness.query_agent(state_dir)
    except EdgeBundleError as error:
        yield Finding("ready", "bad", error.message, "run this as root or as the agent's account")
        asked = False
    else:
        asked = True
    self_reported = overview.reported.warnings if overview is not None else UNSET
    store = "; ".join(
        each.message for each in ([] if self_reported is UNSET else self_reported) if each.reason in readiness.LASTING
    )
    disk = run_check("state", lambda: state.directory(state_dir, store or state.unwritable(state_dir)))
    yield from disk
    yield from run_check("database", lambda: state.database(state_dir))
    yield from run_check("clock", lambda: hardware.clock(state.clock_floor(state_dir)))
    yield from run_check("trust", lambda: state.trust(state_dir))
    yield from run_check("bundle", lambda: state.active_bundle(state_dir, config.install))
    reported = any(each.verdict == "bad" for each in disk)
    yield from run_check("plan", lambda: capacity.plan(state_dir, config, disk_reported=reported))
    yield from run_check("warnings", lambda: readiness.warnings(state_dir, overview))
    yield from run_check("installation", lambda: readiness.last_failure(state_dir, overview))
    if asked:
        yield from run_check("engine", lambda: readiness.engine(overview))
    yield from run_check("broker", lambda: broker.round_trip(config.broker, config.topics))
    yield from run_check("groups", lambda: broker.group_round_trip(config.broker, config.topics, config.groups))
    yield from run_check("connection", lambda: broker.reported_by_agent(state_dir))
    if asked:
        yield from run_check("ready", lambda: readiness.ready(state_dir, overview))
