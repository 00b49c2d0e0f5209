"""All checks, in the order in which a person would look: each one even if another fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec import UNSET

from agent.config import AgentConfig, load_config
from agent.diagnosis import broker, machine, readiness, service, state
from agent.diagnosis.finding import Finding, examine
from agent.install.status import InstallStatus
from agent.state.layout import StateDirectory
from contract.errors import ConfigInvalid, EdgeBundleError


def examine_all(config_path: Path) -> Iterator[Finding]:
    """Findings as they are made; without a usable configuration only what needs none."""
    config: AgentConfig | None = None
    try:
        config = load_config(config_path)
    except ConfigInvalid as error:
        yield Finding("configuration", "bad", error.message, f"mend it, then edge-agent check-config {config_path}")
    else:
        yield Finding("configuration", "ok", f"{config_path}: device {config.device}")
    yield from examine("processor", machine.processor)
    yield from examine("runtime", machine.runtime)
    yield from examine("memory", machine.memory)
    yield from examine("power", machine.power)
    yield from examine("isolation", machine.isolation)
    yield from examine("service", service.unit)
    if config is not None:
        yield from _with(config)


def _with(config: AgentConfig) -> Iterator[Finding]:
    place = StateDirectory(config.state_dir)
    overview: InstallStatus | None = None
    try:
        overview = readiness.ask(place)
    except EdgeBundleError as error:
        yield Finding("ready", "bad", error.message, "run this as root or as the agent's account")
        asked = False
    else:
        asked = True
    told = overview.reported.warnings if overview is not None else UNSET
    store = "; ".join(each.message for each in ([] if told is UNSET else told) if each.reason in readiness.LASTING)
    yield from examine("state", lambda: state.directory(place, store or state.unwritable(place)))
    yield from examine("database", lambda: state.database(place))
    yield from examine("clock", lambda: machine.clock(state.clock_floor(place)))
    yield from examine("trust", lambda: state.trust(place))
    yield from examine("bundle", lambda: state.active_bundle(place, config.install))
    yield from examine("warnings", lambda: readiness.warnings(place, overview))
    yield from examine("installation", lambda: readiness.last_failure(place, overview))
    if asked:
        yield from examine("engine", lambda: readiness.engine(overview))
    yield from examine("broker", lambda: broker.round_trip(config.broker, config.topics))
    yield from examine("groups", lambda: broker.group_round_trip(config.broker, config.topics, config.groups))
    yield from examine("connection", lambda: broker.as_the_agent_finds_it(place))
    if asked:
        yield from examine("ready", lambda: readiness.ready(place, overview))
