"""``edge-fleet``: one module of ``fleet.commands`` for each sub-command."""

from __future__ import annotations

import sys

from contract.system.command_line import main as run_command

COMMANDS = {
    "init": ("fleet.commands.init", "make the database"),
    "serve": ("fleet.commands.serve", "take in what devices publish, and drive rollouts"),
    "devices": ("fleet.commands.devices", "the devices that were heard"),
    "device": ("fleet.commands.device", "one device: what it says, and labels and pins that you give it"),
    "rollout": ("fleet.commands.rollout", "roll a bundle out in waves, and stop, resume or abort that"),
    "user": ("fleet.commands.user", "accounts of the console and the API, their roles and tokens"),
    "token": ("fleet.commands.token", "API keys of the gateway: make, list, revoke"),
    "audit": ("fleet.commands.audit", "who did what"),
}

DESCRIPTION = "Knows many devices, and rolls bundles out to them in waves that stop themselves."


def main() -> int:
    """Console script."""
    return run_command("edge-fleet", DESCRIPTION, COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
