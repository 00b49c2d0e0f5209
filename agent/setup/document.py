"""Writes ``docs/CONFIGURATION.md`` from the types that read ``agent.toml``.

``python -m agent.setup.document [--write]``.
Without ``--write`` it checks that the file says what the types say.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from agent.setup.reference import Key, Table, tables

FILE = Path(__file__).resolve().parents[2] / "docs" / "CONFIGURATION.md"

HEAD = """# Configuration of a device: `agent.toml`

Written from the types by `python -m agent.setup.document --write`; changes belong there.

The agent reads one TOML file, `/etc/edge-agent/agent.toml`, strictly: an unknown key, a value of another type or out of
bounds is refused with its line and the nearest right key (`edge-agent check-config FILE`; the service ends with status
78 and stays down). It is read at the start: `systemctl restart edge-agent` makes a change count. On a device, this page
is a file of comments, `/etc/edge-agent/agent.reference.toml`, which `edge-agent setup` writes.

`device` is the only key that a file must have. Secrets stand in files of their own, never in this one. How the parts
play together: [OPERATIONS.md](OPERATIONS.md#configuration). What a `desired` document may make stricter for one bundle:
[MQTT.md](MQTT.md#deploying).
"""

ENVIRONMENT = (
    ("EDGE_AGENT_WORKER_SOCKET", "edge-agent run", "stands for `worker.socket`; the unit sets it"),
    ("CREDENTIALS_DIRECTORY", "edge-agent run", "where systemd puts the secrets of `credentials/`"),
    (
        "HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY",
        "edge-agent`, `edge-packager",
        "proxies of the sources that name none",
    ),
    (
        "EDGE_BROKER`, `EDGE_BROKER_PASSWORD",
        "edge-packager`, `edge-fleet",
        "the broker as `mqtt://USER@HOST:PORT` (or `mqtts`, `ws`, `wss`), where `--broker` is not given; its password",
    ),
    ("EDGE_REPO_PASSPHRASE", "edge-packager repo", "passphrase of the signing keys, where there is no terminal"),
    ("EDGE_CACHE`, `XDG_CACHE_HOME", "edge-packager build", "where builds keep what can be used again"),
    ("EDGE_BUNDLE_TRACEBACK", "every command", "`1` shows the traceback of an error that is ours"),
    (
        "EDGE_FLEET_DATABASE`, `EDGE_FLEET_DEPOT`, `EDGE_FLEET_ROOT`, `EDGE_FLEET_USER`, `EDGE_FLEET_URL`, "
        "`EDGE_FLEET_OIDC",
        "edge-fleet",
        "see [FLEET.md](FLEET.md)",
    ),
)

TAIL = """
`edge-packager` and `edge-fleet` have no configuration file: options of each command (`--help`) say all. A build's
options can stand in a recipe (`edge-packager build --recipe`), a rollout's in a [spec](FLEET.md#a-rollout).
"""


def text() -> str:
    """The whole page."""
    parts = [HEAD]
    parts += [_section(table) for table in tables()]
    parts.append("## Environment\n\n| variable | read by | |\n|---|---|---|")
    parts += [f"| `{variable}` | `{readers}` | {meaning} |" for variable, readers, meaning in ENVIRONMENT]
    parts.append(TAIL)
    return "\n".join(parts).rstrip() + "\n"


def _section(table: Table) -> str:
    title = f"## `[{table.name}]`" if table.name else "## Top of the file"
    lines = [title, "", table.description, "", "| key | type | default | unit, bounds | |", "|---|---|---|---|---|"]
    lines += _rows(table.keys)
    return "\n".join(lines) + "\n"


def _rows(keys: tuple[Key, ...]) -> Iterator[str]:
    for key in keys:
        default = "**needed**" if key.needed else "–" if key.default is None else f"`{key.default}`"
        limits = "; ".join(part for part in (key.unit, key.bounds) if part)
        cells = (f"`{key.name}`", key.type, default, limits, key.description)
        yield f"| {' | '.join(_cell(each) for each in cells)} |"


def _cell(content: str) -> str:
    return content.replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write the page, or say whether it is up to date."""
    if "--write" in arguments:
        FILE.write_text(text(), encoding="utf-8")
        return 0
    if not FILE.exists() or FILE.read_text(encoding="utf-8") != text():
        print("docs/CONFIGURATION.md is out of date: run python -m agent.setup.document --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
