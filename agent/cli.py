"""``edge-agent``: one module of ``agent.commands`` for each sub-command."""

from __future__ import annotations

import sys

from contract.system.command_line import main as run_command

COMMANDS = {
    "run": ("agent.commands.run", "serve prompts and follow the desired bundle"),
    "install": ("agent.commands.install", "install a bundle from a file, directory or URL"),
    "status": ("agent.commands.status", "show phase, active bundle and last error"),
    "bundles": ("agent.commands.bundles", "list the bundles on this device"),
    "rollback": ("agent.commands.rollback", "roll back to the bundle before this one"),
    "verify": ("agent.commands.verify", "re-check every installed byte"),
    "check-config": ("agent.commands.check_config", "check a configuration file"),
    "setup": ("agent.commands.setup", "make this machine a device: service, accounts, configuration, trust"),
    "doctor": ("agent.commands.doctor", "check everything that serving needs, and how to fix it"),
    "bench": ("agent.commands.bench", "measure the active bundle beside the previous one and its budget"),
    "report": ("agent.commands.report", "write a support file, without secrets and prompts"),
    "trust": ("agent.commands.trust", "provision, show and refresh what this device trusts"),
}


def main() -> int:
    """Console script."""
    return run_command("edge-agent", "Runs language models on this device.", COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
