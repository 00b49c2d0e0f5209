"""What systemd says of the agent, where systemd runs."""

from __future__ import annotations

import subprocess

from agent.diagnosis.finding import Finding
from agent.setup.steps import systemd_runs
from contract.errors import ConfigInvalid

SECONDS = 20.0
_PROPERTIES = ("LoadState", "ActiveState", "SubState", "StatusText", "NRestarts", "ExecMainStatus", "UnitFileState")


def unit() -> list[Finding]:
    if not systemd_runs():
        return [Finding("service", "note", "systemd does not run here")]
    agent, workers = _show("edge-agent.service"), _show("edge-agent-worker.socket")
    if agent.get("LoadState") != "loaded":
        return [Finding("service", "note", "edge-agent.service is not installed", "edge-agent setup")]
    return [_agent(agent), _workers(workers)]


def _agent(facts: dict[str, str]) -> Finding:
    text = f"{facts['ActiveState']} ({facts['StatusText'] or facts['SubState']}), {facts['NRestarts']} restarts"
    if facts["ActiveState"] == "active":
        if facts["UnitFileState"] != "enabled":
            return Finding("service", "bad", f"{text}, but not at the next boot", "systemctl enable edge-agent")
        return Finding("service", "ok", text)
    if facts["ExecMainStatus"] == str(ConfigInvalid.exit_status):
        return Finding(
            "service", "bad", f"{text}: its configuration is wrong", "fix it, then run systemctl restart edge-agent"
        )
    return Finding("service", "bad", text, "systemctl restart edge-agent; journalctl -u edge-agent says why it ended")


def _workers(facts: dict[str, str]) -> Finding:
    if facts.get("ActiveState") == "active":
        return Finding("workers", "ok", "sandboxed units start on demand")
    return Finding(
        "workers", "bad", "edge-agent-worker.socket is not active", "systemctl start edge-agent-worker.socket"
    )


def _show(name: str) -> dict[str, str]:
    done = subprocess.run(
        ["systemctl", "show", name, "-p", ",".join(_PROPERTIES)],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    facts = dict.fromkeys(_PROPERTIES, "")
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        facts[key] = value
    return facts
