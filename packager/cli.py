"""``edge-packager``: one module of ``packager.commands`` for each sub-command."""

from __future__ import annotations

import sys

from contract.system.command_line import main as run_command

COMMANDS = {
    "build": ("packager.commands.build", "turn a model into a bundle directory"),
    "pack": ("packager.commands.pack", "turn a finished onnxruntime-genai folder into a bundle directory"),
    "check": ("packager.commands.check", "read a bundle back, load it and generate with it"),
    "diff": ("packager.commands.diff", "what a device would fetch, and what changes, from one bundle to another"),
    "fit": ("packager.commands.fit", "whether a device has memory and disk for a bundle, and what it makes of them"),
    "cache": ("packager.commands.cache", "what builds have kept, and removing it"),
    "repo": ("packager.commands.repo", "keys and the signed repository"),
    "deploy": ("packager.commands.deploy", "tell devices which bundle to run"),
    "prompt": ("packager.commands.prompt", "ask a device and print the answer as it comes"),
    "forget": ("packager.commands.forget", "remove what the broker keeps of devices that are gone"),
    "agent-kit": ("packager.commands.agent_kit", "one archive that installs the agent on a box without a network"),
    "completion": ("packager.commands.completion", "complete commands and options in a shell"),
    "watch": ("packager.commands.watch", "follow what a device reports"),
}


DESCRIPTION = "Builds, signs and rolls out language-model bundles."


def main() -> int:
    """Console script."""
    return run_command("edge-packager", DESCRIPTION, COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
